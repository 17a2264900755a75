"""What a test command may use up, and how it is seen that it does: its process tree and its files are looked at.

Control groups would bound memory and processes more sharply, but few machines let an ordinary user make any. Between
two looks a command can go over: by what it can fill in a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.test_results import StopReason

_INTERVAL_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHELL_SIGNAL = 128  # a shell tells the signal that ended its child as 128 and the signal's number
_REST = 0.9  # measuring files takes at most a tenth of the time


@dataclass(frozen=True)
class Limits:
    """Limits of one test command; of files, of all commands of a run together."""

    kept_output_bytes: int = 1_000_000
    """How much output is kept, its beginning and its end."""
    output_bytes: int = 1 << 30
    """How much output may be written."""
    memory_bytes: int = 4 << 30
    """Of all its processes together, shared pages counted once."""
    processes: int = 1024
    """Processes and threads at the same time."""
    cpu_seconds: float = 3600.0
    """Processor time of all its processes together."""
    file_bytes: int = 2 << 30
    """Of one file."""
    disk_bytes: int = 4 << 30
    """Of all files together that were written, as they are allotted on disk."""

    @property
    def shared_memory_bytes(self) -> int:
        """How much ``/dev/shm`` holds."""
        return min(self.memory_bytes // 4, 1 << 30)


class LimitWatch:
    """The :class:`~necrocode.agent_runner._process.Watch` of one command, which writes below ``folders``.

    Make it before the command is started: ``since_ns`` is when that is, by the clock of the files' own system.
    """

    interval_seconds = _INTERVAL_SECONDS

    def __init__(self, limits: Limits, folders: Sequence[Path], since_ns: int) -> None:
        self._limits = limits
        self.max_output_bytes = limits.output_bytes
        self._files = _WrittenFiles(folders, limits, since_ns)
        self._shared = _shared_memory()
        self._next_memory_look = 0.0

    def look(self, pid: int) -> StopReason | None:
        """Why the command has to be stopped now; None: it goes on."""
        tree = list(_tree(pid))
        if sum(process.threads for process in tree) >= self._limits.processes:
            return "process-limit"
        if sum(process.cpu_ticks for process in tree) / _TICKS > self._limits.cpu_seconds:
            return "cpu-limit"
        if self._is_out_of_memory(tree):
            return "oom"
        return "disk-limit" if self._files.is_over([process.pid for process in tree]) else None

    def last_look(self, exit_code: int) -> StopReason | None:
        """Which limit ended a command that has ended by itself."""
        if exit_code in {-signal.SIGXFSZ, _SHELL_SIGNAL + signal.SIGXFSZ}:
            return "disk-limit"
        return "disk-limit" if self._files.has_full_file() else None

    def _is_out_of_memory(self, tree: Sequence[_Process]) -> bool:
        """What is resident, shared pages counted often, is a cheap bound; only when it is over, it is counted well."""
        limit, now = self._limits.memory_bytes, time.monotonic()
        has_shared = _shared_memory() - self._shared > limit // 2
        if now < self._next_memory_look or (sum(process.resident for process in tree) <= limit and not has_shared):
            return False
        used = sum(_proportional(process.pid) for process in tree)
        used += sum(_held_files(process.pid, in_memory=True) for process in tree) if has_shared else 0
        self._next_memory_look = now + (time.monotonic() - now) / (1 - _REST)
        return used > limit


@dataclass(frozen=True)
class _Process:
    pid: int
    threads: int
    cpu_ticks: int
    resident: int


def _tree(top: int) -> Iterator[_Process]:
    """The process and all below it that can be seen now. What has ended is told by the times of its parent."""
    waiting = [top]
    while waiting:
        pid = waiting.pop()
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            times = sum(int(field) for field in fields[11:15])
            yield _Process(pid, int(fields[17]), times, int(fields[21]) * _PAGE)
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())


def _proportional(pid: int) -> int:
    """What a process has in memory and swap, shared pages by its share of them."""
    with suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss:", "SwapPss:")))
    return 0


def _held_files(pid: int, *, in_memory: bool) -> int:
    """The bytes of files without a name that a process holds open: of memory files, or of those on disk."""
    total, seen = 0, set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            with suppress(OSError):
                target = os.readlink(path)
                if target.endswith(" (deleted)") and target.startswith("/memfd:") is in_memory:
                    found = os.stat(path)
                    if (found.st_dev, found.st_ino) not in seen and stat.S_ISREG(found.st_mode):
                        seen.add((found.st_dev, found.st_ino))
                        total += found.st_blocks * 512
    return total


def _shared_memory() -> int:
    """What all tmpfs and memory files of the machine take up."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("Shmem:"):
                return 1024 * int(line.split()[1])
    return 0


class _WrittenFiles:
    """The files below a layer's writable folders: measured when the disk's free space says that it may be worth it."""

    def __init__(self, folders: Sequence[Path], limits: Limits, since_ns: int) -> None:
        self._folders = folders
        self._limits = limits
        self._since_ns = since_ns
        self._used = 0
        self._free = self._free_bytes()
        self._next = 0.0

    def is_over(self, processes: Sequence[int]) -> bool:
        """Whether they take up more than they may, or one of them is as large as one may be."""
        limits, free, now = self._limits, self._free_bytes(), time.monotonic()
        room = min(limits.disk_bytes - self._used, limits.file_bytes)
        if now < self._next or self._free - free < room // 2:
            return False
        self._free = free
        self._used, largest = self._measured()
        self._used += sum(_held_files(pid, in_memory=False) for pid in processes)
        self._next = time.monotonic() + (time.monotonic() - now) / (1 - _REST)
        return self._used > limits.disk_bytes or largest >= limits.file_bytes

    def has_full_file(self) -> bool:
        """Whether a file is as large as one may be: who wrote it was told that it is too large, or soon would be."""
        return self._measured()[1] >= self._limits.file_bytes

    def _free_bytes(self) -> int:
        found = os.statvfs(self._folders[0])
        return found.f_bfree * found.f_frsize

    def _measured(self) -> tuple[int, int]:
        """The bytes of all files, and of the largest that the command wrote."""
        used = largest = 0
        for folder in self._folders:
            for found in _files_below(folder):
                used += found.st_blocks * 512
                if found.st_mtime_ns >= self._since_ns:
                    largest = max(largest, min(found.st_size, found.st_blocks * 512))
        return used, largest


def _files_below(folder: Path) -> Iterator[os.stat_result]:
    """Of every file; folders that cannot be opened are left out, and links are not followed."""
    waiting = [os.fsencode(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False)
