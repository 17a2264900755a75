"""Bringing files back from a layer: what lies there was made by tests, so no name in it is trusted.

Every folder is opened by itself and below its parent, and no link is followed; only regular files with one name are
read, so many of them and so many bytes at most.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MAX_REPORT_BYTES = 32 * 1024 * 1024
"""How many bytes are brought back of one command's files together; a larger file is cut."""
MAX_REPORT_FILES = 2_000
"""How many files are brought back of one command."""
MAX_ENTRIES_SEEN = 200_000
"""How many names are looked at in search of them."""
MAX_DEPTH = 32
"""How many folders deep they may lie."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO without a writer would block for ever
_READ_SIZE = 1 << 20


@dataclass
class Collection:
    """Files brought back so far, by their paths with slashes; what is over the limits, or no file, is left out."""

    known: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """What was brought back before, by inode, time and size: a file that is still the same is left out."""
    files: dict[str, bytes] = field(default_factory=dict)
    _bytes_left: int = MAX_REPORT_BYTES
    _entries_left: int = MAX_ENTRIES_SEEN

    def add(
        self,
        top: Path,
        inside: Sequence[str],
        *,
        prefix: str = "",
        patterns: Sequence[str] | None = None,
        since_ns: int = 0,
    ) -> None:
        """Bring back what lies in the folder ``inside`` of ``top``, in order of names.

        With ``patterns`` only files whose path, with a slash before it, matches one of them; ``*`` stands for anything,
        slashes included. ``since_ns``: only files written at that time (``st_mtime_ns``) or later.
        """
        with suppress(OSError), _opened(top, inside) as handle:
            self._walk(handle, "", 0, lambda path, name, folder: self._take(path, name, folder, prefix, since_ns),
                       patterns)  # fmt: skip

    def _walk(
        self,
        folder: int,
        path: str,
        depth: int,
        take: Callable[[str, str, int], None],
        patterns: Sequence[str] | None,
    ) -> None:
        for name, is_folder in self._listed(folder):
            if len(self.files) >= MAX_REPORT_FILES or self._bytes_left <= 0:
                return
            if is_folder and depth < MAX_DEPTH:
                with suppress(OSError):
                    handle = os.open(name, _FOLDER, dir_fd=folder)
                    try:
                        self._walk(handle, f"{path}{name}/", depth + 1, take, patterns)
                    finally:
                        os.close(handle)
            elif patterns is None or any(fnmatchcase(f"/{path}{name}", pattern) for pattern in patterns):
                with suppress(OSError):
                    take(path + name, name, folder)

    def _listed(self, folder: int) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if self._entries_left <= 0:
                    break
                self._entries_left -= 1
                found.append((entry.name, entry.is_dir(follow_symlinks=False)))
        return sorted(found)

    def _take(self, path: str, name: str, folder: int, prefix: str, since_ns: int) -> None:
        handle = os.open(name, _FILE, dir_fd=folder)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_mtime_ns < since_ns:
                return
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self.known.get(prefix + path) == mark:  # times alone are as coarse as the kernel's ticks
                return
            self.known[prefix + path] = mark
            content = bytearray()
            while self._bytes_left > 0 and (chunk := os.read(handle, min(_READ_SIZE, self._bytes_left))):
                content += chunk
                self._bytes_left -= len(chunk)
        finally:
            os.close(handle)
        self.files[(prefix + path).encode(errors="surrogateescape").decode(errors="replace")] = bytes(content)


@contextmanager
def _opened(top: Path, inside: Sequence[str]) -> Iterator[int]:
    """The folder, each step down opened by itself: a link in place of one of them is an error."""
    handle = os.open(top, _FOLDER)
    try:
        for name in inside:
            below = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)
