"""Apply: the change set becomes a commit in the object store, all of it or nothing, before any file is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from necrocode.agent_runner._git import MODE_EXECUTABLE, MODE_FILE, MODE_TREE, Author, FileChange, GitError
from necrocode.agent_runner._names import check_change_path, check_path_inside, fold_name
from necrocode.agent_runner.errors import ChangeRejectedError, EditRejectedError, NothingChangedError
from necrocode.agent_runner.fencing import signed
from necrocode.agent_runner.generation.edited_bytes import edited_bytes
from necrocode.agent_runner.generation.file_lines import Effort
from necrocode.agent_runner.generation.planned_tree import BaseTree, PlannedTree, kind_of
from necrocode.agent_runner.generation.refusals import RefusedFile, feedback_of, message_of
from necrocode.agent_runner.results import ImplementationResult
from necrocode.agent_runner.verdict.tamper import protected_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.fencing import Fence
    from necrocode.agent_runner.models import CodeChange, LLMResponse, TaskContext
    from necrocode.agent_runner.verdict.tamper import TreeFiles
    from necrocode.agent_runner.workspace import Workspace

_MOST_NAMES = 100
_BOM = b"\xef\xbb\xbf"


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
    changes: Sequence[CodeChange],
    objects: ObjectReader,
    base_tree: str,
    limits: Limits,
    *,
    already: Mapping[str, FileChange] = MappingProxyType({}),
) -> tuple[FileChange, ...]:
    """What the change set does to the base tree, in exact bytes; nothing is written.

    The changes are taken one after the other: an edit of a file that an earlier one made or moved finds it so. Only a
    rename onto a file that a later one moves away is as git has it: both happen at once.
    ``already`` are the planned changes of earlier answers, by path: the files are then taken to be as those have made
    them, and the result is what both together do to the base.

    Every path and content rule is checked first: :class:`ChangeRejectedError` names the change and the rule, and
    :class:`EditRejectedError`, with feedback for the model, every edit that has no one place in its file. Files that
    would come out as in the base are left out; a set that changes nothing at all is refused.
    """
    _check_count(len({change.file_path for change in changes}), limits)
    leaving = {change.file_path.removeprefix("./") for change in changes if change.operation == "rename"}
    tree = PlannedTree(BaseTree(objects, base_tree), already, leaving)
    effort = Effort()
    refused = [file for change in changes if (file := _resolve(change, tree, effort)) is not None]
    if refused:
        raise EditRejectedError(message_of(refused), feedback=feedback_of(refused))
    _check_places(tree.changes, tree.base)
    _check_sizes(tree.changes.values(), limits)
    effective = tree.effective()
    if not effective or tree.is_as_before(effective):
        raise NothingChangedError("The answer changes nothing: every file would come out as it is already.")
    _check_count(len(effective) - tree.rename_count, limits)
    return effective


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_changed_files:
        raise ChangeRejectedError(f"The answer changes {count} files; at most {limits.max_changed_files} may be.")


def refuse_secrets(
    changes: Sequence[FileChange], base: TreeFiles, secrets_in: Callable[[str], Counter[str]]
) -> tuple[str, ...]:
    """Refuse planned changes that would commit this runner's own secrets, in a text or in a name.

    A secret that the base's version of the file has may stay, no more often than there, and goes where its file is
    moved. Returned are the paths of the texts that keep one.
    """
    moved = Counter[str]()
    for change in changes:
        if change.removes:
            moved += secrets_in(_decoded(base.read(change.path)))
        elif base.entry(change.path) is None and secrets_in(change.path):
            raise ChangeRejectedError("The answer would make a file whose name holds one of this runner's secrets.")
    keeping: list[str] = []
    for change in changes:
        if not (secrets := secrets_in(_text_of(change, base))):
            continue
        added = secrets - secrets_in(_decoded(base.read(change.path)))
        if not added <= moved:
            raise ChangeRejectedError(f"The answer would commit one of this runner's secrets in {change.path!r}.")
        moved -= added
        keeping.append(change.path)
    return tuple(keeping)


def _text_of(change: FileChange, base: TreeFiles) -> str:
    return _decoded(base.objects.blob(change.oid) if change.content is None and change.oid else change.content)


def _decoded(content: bytes | None) -> str:
    return (content or b"").decode(errors="replace")


def with_protection(instructions: str, config: RunnerConfig) -> str:
    """The instructions, and which files must stay as they are, where an answer that changes one is refused."""
    if config.protected_paths_policy != "refuse":
        return instructions
    own = ", ".join(("settings of continuous integration", "of git and its hooks", *config.protected_paths))
    return f"{instructions.strip()}\n\nThese files must stay as they are: {own}.".strip()


def refuse_protected(changes: Iterable[FileChange], config: RunnerConfig) -> None:
    """Refuse planned changes to protected files, where ``protected_paths_policy`` says so."""
    found = protected_files((change.path for change in changes), config.protected_paths)
    if found and config.protected_paths_policy == "refuse":
        raise ChangeRejectedError(
            f"The answer changes {', '.join(map(repr, found[:5]))}: protected files, which it must leave as they are.",
            hint="Do the task without changing them.",
        )


def commit_message(config: RunnerConfig, task: TaskContext, run_id: str, fence: Fence | None = None) -> str:
    """The configured message for a task's commit, and the trailers that say whose it is."""
    message = config.commit_message.format(
        task_id=task.task_id, spec_name=task.spec_name, title=task.title, description=task.description, run_id=run_id
    ).replace("\0", "")
    return signed(message, run_id, fence)


def commit_changes(
    workspace: Workspace,
    changes: Sequence[FileChange],
    *,
    ref: str,
    message: str,
    author: Author,
    response: LLMResponse,
    deadline: Deadline,
    protected: Iterable[str] = (),
) -> ImplementationResult:
    """Write the planned changes as one commit on top of the workspace's base, kept under ``ref``.

    Where that is another commit already, which stays, it is kept under ``ref`` with ``-2`` at its end, and so on; so
    the same changes, message and author may be written any number of times. ``protected`` are the configured patterns;
    the result names the files that they, or our own, fit.
    """
    name = ref
    for number in range(2, _MOST_NAMES):
        try:
            commit = workspace.repository.write_commit(
                workspace.base_commit, changes, ref=name, message=message, author=author, deadline=deadline
            )
            break
        except GitError as error:
            if "Not updating" not in error.output:
                raise
            name = f"{ref}-{number}"
    else:
        raise ChangeRejectedError(f"There are {_MOST_NAMES} commits already that are kept under {ref}.")
    return ImplementationResult(
        base_commit=workspace.base_commit,
        commit=commit,
        ref=name,
        tree=workspace.objects.tree_of(commit),
        files=(files := tuple(sorted(change.path for change in changes))),
        protected_files=protected_files(files, protected),
        explanation=response.explanation,
        model=response.model,
        edit_format=response.edit_format,
        tokens_used=response.tokens_used,
        commit_message=message,
    )


def _resolve(change: CodeChange, tree: PlannedTree, effort: Effort) -> RefusedFile | None:
    """Plan one change on top of those before it; what is wrong with its edits, where they are refused."""
    path = _checked_path(change.file_path, tree)
    if change.edits and change.operation != "delete":
        path = tree.present_name(path)
    if change.operation == "delete":
        return _delete(change, path, tree, effort)
    if change.operation == "rename":
        return _rename(change, path, tree, effort)
    if change.operation == "edit":
        return _edit(change, path, tree, effort)
    old = tree.file(path)
    if old is not None and change.must_be_new:
        raise ChangeRejectedError(
            f"Cannot create {path!r}: the file exists already.", hint="Write a diff of the file as it is."
        )
    if old is not None:
        _refuse_twice(path, tree)
    content = _bytes(change, None if old is None else tree.content(old))
    tree.plan(FileChange(path, _mode(change, None if old is None else old.mode), content=content))
    return None


def _delete(change: CodeChange, path: str, tree: PlannedTree, effort: Effort) -> RefusedFile | None:
    """Plan a removal; a diff that shows the lines that go must show all that the file has."""
    old = tree.existing(path, "delete")
    _refuse_twice(path, tree)
    if change.edits:
        left, refused = _edited(change, path, tree.content(old), effort)
        if refused is not None:
            return refused
        if left.removeprefix(_BOM).strip():
            raise ChangeRejectedError(
                f"The diff removes {path!r}, and does not show all of its lines as they are.",
                hint=f"Show the whole file with - before each line, or write only the line: DELETE {path}",
            )
    tree.plan(FileChange(path))
    return None


def _refuse_twice(path: str, tree: PlannedTree) -> None:
    if tree.is_touched(path):
        raise ChangeRejectedError(f"The answer changes {path!r} twice.")


def _rename(change: CodeChange, path: str, tree: PlannedTree, effort: Effort) -> RefusedFile | None:
    waiting = tree.taken_from_aside(path)
    source = waiting or tree.existing(path, "rename")
    target = _checked_path(change.new_path or "", tree)
    if tree.file(target) is not None and not tree.put_aside(target):
        raise ChangeRejectedError(f"Cannot rename {path!r} to {target!r}: that file exists already.")
    moved = FileChange(target, _mode(change, source.mode), content=source.content, oid=source.oid)
    if change.content is not None:
        moved = replace(moved, content=_bytes(change, tree.content(source)), oid=None)
    elif change.edits:
        content, refused = _edited(change, path, tree.content(source), effort)
        if refused is not None:
            return refused
        moved = replace(moved, content=content, oid=None)
    if waiting is None:
        tree.plan(FileChange(path), renamed_to=target)
    tree.plan(moved)
    return None


def _edit(change: CodeChange, path: str, tree: PlannedTree, effort: Effort) -> RefusedFile | None:
    new_text = _text_of_new_file(change)
    old = tree.file(path) if new_text is not None else tree.existing(path, "edit")
    if old is None:
        tree.plan(FileChange(path, _mode(change, None), content=_encoded(new_text or "", path)))
        return None
    if not change.edits:
        tree.plan(FileChange(path, _mode(change, old.mode), content=old.content, oid=old.oid))
        return None
    content, refused = _edited(change, path, tree.content(old), effort)
    if refused is None:
        tree.plan(FileChange(path, _mode(change, old.mode), content=content))
    return refused


def _text_of_new_file(change: CodeChange) -> str | None:
    """The whole text that an edit without a search gives a file that is not there; None for any other edit."""
    first, *others = change.edits or (None,)
    if first is None or others or first.search or first.at_end or first.anchors or first.line not in {None, 1}:
        return None
    return first.replace


def _edited(change: CodeChange, path: str, old: bytes, effort: Effort) -> tuple[bytes, RefusedFile | None]:
    new, refusals = edited_bytes(old, change.edits, in_order=change.in_order, effort=effort, path=path)
    return new, RefusedFile(path, len(change.edits), refusals) if refusals else None


def _mode(change: CodeChange, old: str | None) -> str:
    if change.executable is None:
        return old or MODE_FILE
    return MODE_EXECUTABLE if change.executable else MODE_FILE


def _checked_path(path: str, tree: PlannedTree) -> str:
    """The path, by the rules; a file that the base has may have a name that not every file system can hold."""
    try:
        path = check_path_inside(path.removeprefix("./"))
        return path if tree.base.has_file(path) else check_change_path(path)
    except ValueError as error:
        raise ChangeRejectedError(f"The path is refused: {error}.") from error


def _encoded(text: str, path: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ChangeRejectedError(f"The text for {path!r} holds half of a surrogate pair.") from error


def _bytes(change: CodeChange, old: bytes | None) -> bytes:
    """The new text in the old file's manner: its byte order mark, its line ends, its missing final newline.

    Line ends of the other kind stay only where the text is the old one but for them: then they are what is asked for.
    """
    new = _encoded(change.content or "", change.file_path)
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
    elif b"\n" in old and b"\r" not in old and (unix := new.replace(b"\r\n", b"\n")) != old:
        new = unix
    if old.startswith(_BOM) and not new.startswith(_BOM):
        new = _BOM + new
    if not change.exact and old.rpartition(b"\n")[2].strip():  # a last line of blanks alone is no missing newline
        new = new.removesuffix(b"\n").removesuffix(b"\r")
    return new


def _check_places(planned: Mapping[str, FileChange], tree: BaseTree) -> None:
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


def _check_against_base(prefix: str, path: str, tree: BaseTree, removed: set[str]) -> None:
    folder, _, name = prefix.rpartition("/")
    siblings = tree.siblings(folder)
    entry = siblings.get(name)
    if entry is not None:
        if prefix != path and entry.mode != MODE_TREE and prefix not in removed:
            raise ChangeRejectedError(f"{path!r} goes through {prefix!r}, which is {kind_of(entry)}.")
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
