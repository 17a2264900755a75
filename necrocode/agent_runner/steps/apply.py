"""Apply: the change set becomes a commit in the object store, all of it or nothing, before any file is written."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from necrocode.agent_runner._git import MODE_FILE, MODE_SUBMODULE, MODE_SYMLINK, MODE_TREE, FileChange
from necrocode.agent_runner._names import check_change_path, fold_name
from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.models import ImplementationResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import Author, ObjectReader, TreeEntry
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.models import CodeChange, LLMResponse
    from necrocode.agent_runner.workspace import Workspace

_BOM = b"\xef\xbb\xbf"
_KIND_OF_MODE = {MODE_SYMLINK: "a symbolic link", MODE_SUBMODULE: "a submodule", MODE_TREE: "a directory"}
# Files that decide what runs elsewhere; a change to one of them is applied, and the result says so.
_TELLING_PATHS = (
    ".gitmodules", ".gitattributes", ".github/*", ".gitlab-ci.yml", ".circleci/*", "jenkinsfile",
    "azure-pipelines.yml", ".pre-commit-config.yaml", ".ci/*", ".buildkite/*", ".travis.yml",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How much one change set may do."""

    max_changed_files: int
    max_file_bytes: int
    max_total_bytes: int

    @classmethod
    def of(cls, config: RunnerConfig) -> Limits:
        """The configured limits."""
        return cls(config.max_changed_files, config.max_file_bytes, config.max_total_bytes)


def plan_changes(
    changes: Sequence[CodeChange], objects: ObjectReader, base_tree: str, limits: Limits
) -> tuple[FileChange, ...]:
    """What the change set does to the base tree, in exact bytes; nothing is written.

    Every path and content rule is checked first: :class:`ChangeRejectedError` names the change and the rule. Files that
    would come out as they are already are left out; a set that changes nothing at all is refused.
    """
    if len(changes) > limits.max_changed_files:
        raise ChangeRejectedError(
            f"The answer changes {len(changes)} files; at most {limits.max_changed_files} may be."
        )
    tree = _BaseTree(objects, base_tree)
    planned: dict[str, FileChange] = {}
    for change in changes:
        for file_change in _resolve(change, tree):
            if file_change.path in planned:
                raise ChangeRejectedError(f"The answer changes {file_change.path!r} twice.")
            planned[file_change.path] = file_change
    _check_places(planned, tree)
    _check_sizes(planned.values(), limits)
    effective = tuple(change for change in planned.values() if not tree.has_already(change))
    if not effective:
        raise ChangeRejectedError("The answer changes nothing: every file would come out as it is already.")
    return effective


def refuse_secrets(changes: Iterable[FileChange], holds_secret: Callable[[str], bool]) -> None:
    """Refuse planned changes that would commit one of this runner's own secrets, in a text or in a name."""
    for change in changes:
        if holds_secret((change.content or b"").decode(errors="replace")) or holds_secret(change.path):
            raise ChangeRejectedError("The answer would commit one of this runner's secrets; it was refused.")


def telling_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of the paths that decide what runs elsewhere: CI, submodules, attributes; in any folder and any case."""
    return tuple(
        path for path in paths if any(fnmatchcase(f"/{path.casefold()}", f"*/{one}") for one in _TELLING_PATHS)
    )


def commit_changes(
    workspace: Workspace,
    changes: Sequence[FileChange],
    *,
    ref: str,
    message: str,
    author: Author,
    response: LLMResponse,
    deadline: Deadline,
) -> ImplementationResult:
    """Write the planned changes as one commit on top of the workspace's base, kept under ``ref``."""
    commit = workspace.repository.write_commit(
        workspace.base_commit, changes, ref=ref, message=message, author=author, deadline=deadline
    )
    return ImplementationResult(
        base_commit=workspace.base_commit,
        commit=commit,
        ref=ref,
        tree=workspace.objects.tree_of(commit),
        files=tuple(sorted(change.path for change in changes)),
        explanation=response.explanation,
        model=response.model,
        edit_format=response.edit_format,
        tokens_used=response.tokens_used,
        commit_message=message,
    )


class _BaseTree:
    """Look-ups in the base commit's tree that read only the directories on the way."""

    def __init__(self, objects: ObjectReader, tree: str) -> None:
        self._objects = objects
        self._tree = tree

    def siblings(self, folder: str) -> Mapping[str, TreeEntry]:
        """The entries of a folder of the base; empty where there is no such folder."""
        tree = self._tree
        for name in filter(None, folder.split("/")):
            entry = self._objects.entries(tree).get(name)
            if entry is None or entry.mode != MODE_TREE:
                return {}
            tree = entry.oid
        return self._objects.entries(tree)

    def entry(self, path: str) -> TreeEntry | None:
        """What the base has under a path."""
        folder, _, name = path.rpartition("/")
        return self.siblings(folder).get(name)

    def file(self, path: str) -> TreeEntry | None:
        """The base's file under a path; ``ChangeRejectedError`` when something else than a file is there."""
        entry = self.entry(path)
        if entry is not None and not entry.is_file:
            raise ChangeRejectedError(f"{path!r} is {_KIND_OF_MODE.get(entry.mode, 'no file')} in the repository.")
        return entry

    def content(self, entry: TreeEntry) -> bytes:
        """A file's bytes."""
        return self._objects.blob(entry.oid)

    def has_already(self, change: FileChange) -> bool:
        """Whether the change leaves the base as it is."""
        entry = self.entry(change.path)
        if entry is None or change.removes or entry.mode != change.mode:
            return False
        return entry.oid == change.oid or (change.content is not None and self.content(entry) == change.content)


def _resolve(change: CodeChange, tree: _BaseTree) -> tuple[FileChange, ...]:
    path = _checked_path(change.file_path)
    old = tree.file(path)
    if change.operation == "delete":
        _must_exist(path, old, "delete")
        return (FileChange(path),)
    if change.operation == "rename":
        source = _must_exist(path, old, "rename")
        target = _checked_path(change.new_path or "")
        if tree.file(target) is not None:
            raise ChangeRejectedError(f"Cannot rename {path!r} to {target!r}: that file exists already.")
        if change.content is None:
            return FileChange(path), FileChange(target, source.mode, oid=source.oid)
        return FileChange(path), FileChange(target, source.mode, content=_bytes(change, tree.content(source)))
    content = _bytes(change, None if old is None else tree.content(old))
    return (FileChange(path, MODE_FILE if old is None else old.mode, content=content),)


def _checked_path(path: str) -> str:
    try:
        return check_change_path(path.removeprefix("./"))
    except ValueError as error:
        raise ChangeRejectedError(f"The path is refused: {error}.") from error


def _must_exist(path: str, entry: TreeEntry | None, verb: str) -> TreeEntry:
    if entry is None:
        raise ChangeRejectedError(f"Cannot {verb} {path!r}: the repository has no such file.")
    return entry


def _bytes(change: CodeChange, old: bytes | None) -> bytes:
    """The new text in the old file's manner: its byte order mark, its CRLF line ends, its missing final newline."""
    text = change.content or ""
    try:
        new = text.encode()
    except UnicodeEncodeError as error:
        raise ChangeRejectedError(f"The text for {change.file_path!r} holds half of a surrogate pair.") from error
    if not old:
        return new
    try:
        old.decode()
    except UnicodeDecodeError as error:
        raise ChangeRejectedError(
            f"{change.file_path!r} is not UTF-8 text; rewriting it whole would damage it."
        ) from error
    if old.count(b"\r\n") == old.count(b"\n") > 0 and b"\r\n" not in new:
        new = new.replace(b"\n", b"\r\n")
    if old.startswith(_BOM) and not new.startswith(_BOM):
        new = _BOM + new
    if not change.exact and old.rpartition(b"\n")[2].strip():  # a last line of blanks alone is no missing newline
        new = new.removesuffix(b"\n").removesuffix(b"\r")
    return new


def _check_places(planned: Mapping[str, FileChange], tree: _BaseTree) -> None:
    """No path may go through a file or link, stand where a directory is, or differ from another by case alone."""
    removed = {path for path, change in planned.items() if change.removes}
    written = [path for path in planned if path not in removed]
    spelled: dict[str, str] = {}
    for path in written:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            if depth < len(parts) and prefix in planned and prefix not in removed:
                raise ChangeRejectedError(f"{prefix!r} cannot be both a file and the folder of {path!r}.")
            if spelled.setdefault(fold_name(prefix), prefix) != prefix:
                raise ChangeRejectedError(
                    f"{prefix!r} and {spelled[fold_name(prefix)]!r} differ by case or accents alone."
                )
            _check_against_base(prefix, path, tree, removed)


def _check_against_base(prefix: str, path: str, tree: _BaseTree, removed: set[str]) -> None:
    folder, _, name = prefix.rpartition("/")
    siblings = tree.siblings(folder)
    entry = siblings.get(name)
    if entry is not None:
        if prefix != path and entry.mode != MODE_TREE and prefix not in removed:
            kind = _KIND_OF_MODE.get(entry.mode, "a file")
            raise ChangeRejectedError(f"{path!r} goes through {prefix!r}, which is {kind}.")
        return
    folded = fold_name(name)
    for other in siblings:
        if fold_name(other) == folded and f"{folder}/{other}".lstrip("/") not in removed:
            raise ChangeRejectedError(f"{prefix!r} and the repository's {other!r} differ by case or accents alone.")


def _check_sizes(changes: Iterable[FileChange], limits: Limits) -> None:
    total = 0
    for change in changes:
        size = len(change.content or b"")
        total += size
        if size > limits.max_file_bytes:
            raise ChangeRejectedError(
                f"{change.path!r} would have {size} bytes; at most {limits.max_file_bytes} may be."
            )
    if total > limits.max_total_bytes:
        raise ChangeRejectedError(f"The answer holds {total} bytes; at most {limits.max_total_bytes} may be.")
