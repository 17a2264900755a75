"""What a command has written: the files below its folders, and those that it holds open without a name."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_REST = 0.9  # measuring takes at most a tenth of the time
_LONG_REST = 0.98  # where nothing says that it is worth it: others may be giving back what is taken here
_LEAST_BYTES = 4096  # what a file, folder or link counts at least, for the disk has room for so many only
_LONGEST_PATH = 4000  # longer ones cannot be named: to hide files there would be the only use
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ALL_MODES = 0o700


class WrittenFiles:
    """The files below ``folders``: measured when the disk's free space says that it may be worth it."""

    def __init__(self, folders: Sequence[Path], most_bytes: int, most_file_bytes: int, since_ns: int) -> None:
        self._folders = folders
        self._most_bytes = most_bytes
        self._most_file_bytes = most_file_bytes
        self._since_ns = since_ns
        self._used = 0
        self._free = self._free_bytes()
        self._next = self._next_anyway = 0.0

    def is_over(self, processes: Sequence[int]) -> bool:
        """Whether they take up more than they may, or one of them is as large as one may be."""
        free, now = self._free_bytes(), time.monotonic()
        room = min(self._most_bytes - self._used, self._most_file_bytes)
        has_less = max(had - has for had, has in zip(self._free, free, strict=True)) >= room // 2
        if now < (self._next if has_less else self._next_anyway):
            return False
        self._free = free
        self._used, largest, is_all = self._measured()
        self._used += held_bytes(processes, in_memory=False)
        ended = time.monotonic()
        self._next, self._next_anyway = (ended + (ended - now) / (1 - rest) for rest in (_REST, _LONG_REST))
        return self._used > self._most_bytes or largest >= self._most_file_bytes or not is_all

    def has_full_file(self) -> bool:
        """Whether a file is as large as one may be: who wrote it was told that it is too large, or soon would be."""
        return self._measured()[1] >= self._most_file_bytes

    def _free_bytes(self) -> tuple[int, int]:
        """By what is free, and by how many files there can still be."""
        found = os.statvfs(self._folders[0])
        return found.f_bfree * found.f_frsize, found.f_ffree * _LEAST_BYTES

    def _measured(self) -> tuple[int, int, bool]:
        """The bytes of all files, and of the largest that the command wrote; whether no folder was too deep."""
        used, largest, is_all = 0, 0, True
        for folder in self._folders:
            for found in _entries_below(folder):
                if found is None:
                    is_all = False
                    continue
                used += max(found.st_blocks * 512, _LEAST_BYTES)
                if stat.S_ISREG(found.st_mode) and found.st_mtime_ns >= self._since_ns:
                    largest = max(largest, min(found.st_size, found.st_blocks * 512))
        return used, largest, is_all


def held_bytes(processes: Sequence[int], *, in_memory: bool) -> int:
    """The bytes of files without a name that processes hold open: of memory files, or of those on disk.

    Each thread is asked: it may have files of its own, and the first of them may have ended.
    """
    seen: dict[tuple[int, int], int] = {}
    for pid in processes:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    seen |= _held_by(f"/proc/{pid}/task/{task}/fd", in_memory=in_memory)
    return sum(seen.values())


def _held_by(handles: str, *, in_memory: bool) -> dict[tuple[int, int], int]:
    found = {}
    for name in os.listdir(handles):
        with suppress(OSError):
            target = os.readlink(f"{handles}/{name}")
            if target.endswith(" (deleted)") and target.startswith("/memfd:") is in_memory:
                file = os.stat(f"{handles}/{name}")
                if stat.S_ISREG(file.st_mode):
                    found[file.st_dev, file.st_ino] = file.st_blocks * 512
    return found


def _entries_below(top: Path) -> Iterator[os.stat_result | None]:
    """Of every file, folder and link; None for a folder whose path is too long. Links are not followed."""
    start = os.fsencode(top)
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if len(path) > _LONGEST_PATH:
            yield None
            continue
        with suppress(OSError):
            yield from _entries(path, start, waiting)


def _entries(path: bytes, top: bytes, waiting: list[bytes]) -> Iterator[os.stat_result]:
    """Of what is in one folder; the folders in there go to ``waiting``."""
    handle = _opened(path, top)
    try:
        with os.scandir(handle) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path + b"/" + os.fsencode(entry.name))
                    yield entry.stat(follow_symlinks=False)
    finally:
        os.close(handle)


def _opened(path: bytes, top: bytes) -> int:
    """A folder below ``top``, open; folders of this user's that nobody may read do not hinder it."""
    try:
        return os.open(path, _FOLDER)
    except PermissionError:
        handle = os.open(top, _FOLDER)
    for name in path[len(top) :].split(b"/")[1:]:
        try:
            inner = _opened_anyhow(name, handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def _opened_anyhow(name: bytes, parent: int) -> int:
    """A folder, open; one that its owner may not read is made readable for the blink of an eye."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        link = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(link).st_mode)
        os.chmod(f"/proc/self/fd/{link}", mode | _ALL_MODES)  # through the handle: the name could become a link
        try:
            return os.open(f"/proc/self/fd/{link}", os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.chmod(f"/proc/self/fd/{link}", mode)
    finally:
        os.close(link)
