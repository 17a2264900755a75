"""A commit's tree as a change set makes it, file by file, in memory."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner._git import MODE_SUBMODULE, MODE_SYMLINK, MODE_TREE, FileChange, ObjectTooLargeError
from necrocode.agent_runner.errors import ChangeRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from necrocode.agent_runner._git import ObjectReader, TreeEntry

_KIND_OF_MODE = {MODE_SYMLINK: "a symbolic link", MODE_SUBMODULE: "a submodule", MODE_TREE: "a directory"}
_MOST_NEAR_PATHS = 3
_MOST_LOOKED_AT = 20_000


class BaseTree:
    """Look-ups in the base commit's tree that read only the directories on the way."""

    def __init__(self, objects: ObjectReader, tree: str) -> None:
        self._objects = objects
        self._tree = tree

    def siblings(self, folder: str) -> Mapping[str, TreeEntry]:
        """The entries of a folder of the base; empty where there is no such folder."""
        return self._objects.folder(self._tree, folder)

    def entry(self, path: str) -> TreeEntry | None:
        """What the base has under a path."""
        folder, _, name = path.rpartition("/")
        return self.siblings(folder).get(name)

    def has_file(self, path: str) -> bool:
        """Whether the base has a file under a path."""
        entry = self.entry(path)
        return entry is not None and entry.is_file

    def file(self, path: str) -> TreeEntry | None:
        """The base's file under a path; ``ChangeRejectedError`` when something else than a file is there."""
        entry = self.entry(path)
        if entry is not None and not entry.is_file:
            raise ChangeRejectedError(f"{path!r} is {kind_of(entry)} in the repository.")
        return entry

    def blob(self, oid: str) -> bytes:
        """An object's bytes; ``ChangeRejectedError`` for one that is too large to be changed."""
        try:
            return self._objects.blob(oid)
        except ObjectTooLargeError as error:
            raise ChangeRejectedError(f"A file of the repository is too large to be changed: {error}") from error

    def near(self, path: str) -> list[str]:
        """Paths of the base that may be meant by one that it does not have: of the same name, or of nearly the same."""
        name = path.rpartition("/")[2]
        paths = self._paths()
        same = [other for other in paths if other.rpartition("/")[2] == name]
        return (same or get_close_matches(path, paths[: _MOST_LOOKED_AT // 20]))[:_MOST_NEAR_PATHS]

    def _paths(self) -> list[str]:
        """The base's files, the shallow ones first, for as many as are worth a look."""
        paths: list[str] = []
        folders = [("", self._tree)]
        looked_at = 0
        for prefix, tree in folders:
            for name, entry in self._objects.entries(tree).items():
                looked_at += 1
                if entry.mode == MODE_TREE:
                    folders.append((f"{prefix}{name}/", entry.oid))
                elif entry.is_file:
                    paths.append(f"{prefix}{name}")
            if looked_at > _MOST_LOOKED_AT:
                break
        return paths


def kind_of(entry: TreeEntry) -> str:
    """What an entry of a tree is, for people."""
    return _KIND_OF_MODE.get(entry.mode, "a file")


class PlannedFile(NamedTuple):
    """A file as it is so far: bytes that were planned, or an object of the base."""

    mode: str
    content: bytes | None
    oid: str | None


class PlannedTree:
    """The base with changes on top of it: those of earlier answers, and of this one so far."""

    def __init__(self, base: BaseTree, already: Mapping[str, FileChange], leaving: AbstractSet[str]) -> None:
        """``leaving`` are the paths that this answer renames."""
        self.base = base
        self._leaving = leaving
        self._aside: dict[str, PlannedFile] = {}
        self._already = dict(already)
        self._now = dict(already)
        self._touched: set[str] = set()
        self._renamed: dict[str, str] = {}

    @property
    def rename_count(self) -> int:
        """How many files this answer has moved; each is two paths of one change."""
        return len(self._renamed)

    @property
    def changes(self) -> Mapping[str, FileChange]:
        """What has been planned, by path."""
        return self._now

    def file(self, path: str) -> PlannedFile | None:
        """The file under a path as it is so far; ``ChangeRejectedError`` when something else than a file is there."""
        change = self._now.get(path)
        if change is not None:
            return None if change.removes else PlannedFile(change.mode, change.content, change.oid)
        entry = self.base.file(path)
        return None if entry is None else PlannedFile(entry.mode, None, entry.oid)

    def put_aside(self, path: str) -> bool:
        """Keep a file for the rename of it that is still to come; whether there is one."""
        file = self.file(path)
        if file is None or path not in self._leaving or path in self._touched:
            return False
        self._aside[path] = file
        return True

    def taken_from_aside(self, path: str) -> PlannedFile | None:
        """The file that was put aside under a path, once."""
        return self._aside.pop(path, None)

    def existing(self, path: str, verb: str) -> PlannedFile:
        """The file under a path; ``ChangeRejectedError``, naming near paths, when there is none."""
        file = self.file(path)
        if file is None:
            near = self.base.near(path)
            hint = f"Is it {' or '.join(map(repr, near))}?" if near else None
            raise ChangeRejectedError(f"Cannot {verb} {path!r}: the repository has no such file.", hint=hint)
        return file

    def content(self, file: PlannedFile) -> bytes:
        """A file's bytes."""
        return self.base.blob(file.oid) if file.content is None and file.oid is not None else file.content or b""

    def present_name(self, path: str) -> str:
        """The path, or the one that this answer has renamed it to."""
        seen = {path}
        while path in self._renamed and (path := self._renamed[path]) not in seen:
            seen.add(path)
        return path

    def is_touched(self, path: str) -> bool:
        """Whether this answer has changed the path already."""
        return path in self._touched

    def plan(self, change: FileChange, *, renamed_to: str | None = None) -> None:
        """Take a change in; of a path that was planned before, the later one counts."""
        self._now[change.path] = change
        self._touched.add(change.path)
        self._renamed.pop(change.path, None)
        if renamed_to is not None:
            self._renamed[change.path] = renamed_to

    def effective(self) -> tuple[FileChange, ...]:
        """The planned changes that do not leave the base as it is."""
        return tuple(change for change in self._now.values() if not self._is_as_base(change))

    def is_as_before(self, changes: Sequence[FileChange]) -> bool:
        """Whether these changes are, byte for byte, what the earlier answers had planned."""
        before = {path: change for path, change in self._already.items() if not self._is_as_base(change)}
        return before.keys() == {change.path for change in changes} and all(
            self._same(change, before[change.path]) for change in changes
        )

    def _is_as_base(self, change: FileChange) -> bool:
        entry = self.base.entry(change.path)
        if entry is None or change.removes:
            return entry is None and change.removes
        return self._same(change, FileChange(change.path, entry.mode, oid=entry.oid))

    def _same(self, one: FileChange, other: FileChange) -> bool:
        if one.removes or other.removes or one.mode != other.mode:
            return one.removes and other.removes
        if one.oid is not None and one.oid == other.oid:
            return True
        return self._bytes(one) == self._bytes(other)

    def _bytes(self, change: FileChange) -> bytes:
        return self.content(PlannedFile(change.mode, change.content, change.oid))
