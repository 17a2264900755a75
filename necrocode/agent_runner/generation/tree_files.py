"""The files of one tree of a repository, read from git's objects and never from a checkout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._names import has_control_character
from necrocode.agent_runner.generation.tree_search import Found, search

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader, Repository

MAX_SHOWN_FILE_BYTES = 400_000
_BINARY_PROBE_BYTES = 8000  # as git does (xdiff-interface.c, FIRST_FEW_BYTES)


@dataclass(frozen=True)
class TreeFiles:
    """Ordinary files with names that are text; no symlinks, no submodules."""

    objects: ObjectReader
    ids: Mapping[str, str]
    """The id of each file's blob, by path."""
    sizes: Mapping[str, int]
    """In bytes, by path."""

    def text(self, path: str) -> str | None:
        """A file's text; None for one that is too large, binary, or not UTF-8."""
        text, _ = self._text(path)
        return text

    def hindrance(self, path: str) -> str | None:
        """Why a file has no text; None when it has one."""
        _, hindrance = self._text(path)
        return hindrance

    def _text(self, path: str) -> tuple[str | None, str | None]:
        if self.sizes[path] > MAX_SHOWN_FILE_BYTES:
            return None, f"is larger than {MAX_SHOWN_FILE_BYTES // 1000} kB"
        content = self.objects.blob(self.ids[path])
        if b"\0" in content[:_BINARY_PROBE_BYTES]:
            return None, "is binary"
        try:
            return content.decode("utf-8-sig"), None
        except UnicodeDecodeError:
            return None, "is not UTF-8"


def look_into(
    repository: Repository,
    objects: ObjectReader,
    tree: str,
    words: Iterable[str],
    *,
    seconds: float,
    deadline: Deadline | None,
) -> tuple[TreeFiles, Found]:
    """A tree's files, and where the words are in them; the two are found out at the same time."""
    with ThreadPoolExecutor(1, thread_name_prefix="necrocode-search") as beside:
        cancellation = None if deadline is None else deadline.cancellation
        searching = beside.submit(search, repository, tree, tuple(words), seconds=seconds, cancellation=cancellation)
        listed = repository.files(tree, deadline=deadline)
        ordinary = {
            path: (entry.oid, size) for path, (entry, size) in listed.items() if entry.is_file and _is_text(path)
        }
        found = searching.result()
    ids = {path: oid for path, (oid, _) in ordinary.items()}
    return TreeFiles(objects, ids, {path: size for path, (_, size) in ordinary.items()}), found


def _is_text(name: str) -> bool:
    """Whether a file's name is a line of text: git keeps any bytes; in a prompt a line break in a name would speak."""
    if name.isascii():
        return name.isprintable()
    return not any("\udc80" <= char <= "\udcff" for char in name) and not has_control_character(name)
