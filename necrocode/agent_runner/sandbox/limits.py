"""What a test command may use up, and how it is seen that it does: its process tree and its files are looked at.

Control groups would bound memory and processes more sharply, but few machines let an ordinary user make any. Between
two looks a command can go over: by what it can fill in a tenth of a second. docs/security.md says what no look sees.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner.sandbox.written import WrittenFiles, held_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from necrocode.agent_runner.test_results import StopReason

_INTERVAL_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHELL_SIGNAL = 128  # a shell tells the signal that ended its child as 128 and the signal's number
_REST = 0.9  # measuring memory takes at most a tenth of the time


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
        self.processor_seconds: Callable[[], float] = lambda: 0.0
        """Tells what all processes have used, where there is a better way than to look at them."""
        self.max_output_bytes = limits.output_bytes
        self._files = WrittenFiles(folders, limits.disk_bytes, limits.file_bytes, since_ns)
        self._shared = _shared_memory()
        self._next_memory_look = 0.0

    def look(self, pid: int) -> StopReason | None:
        """Why the command has to be stopped now; None: it goes on."""
        tree = list(_tree(pid))
        if sum(process.threads for process in tree) >= self._limits.processes:
            return "process-limit"
        used = max(sum(process.cpu_ticks for process in tree) / _TICKS, self.processor_seconds())
        if used > self._limits.cpu_seconds:
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
        used = sum(_proportional(process) for process in tree)
        used += held_bytes([process.pid for process in tree], in_memory=True) if has_shared else 0
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
            tasks = os.listdir(f"/proc/{pid}/task")
            resident = int(fields[21]) or max(_resident(f"/proc/{pid}/task/{task}") for task in tasks)
            yield _Process(pid, int(fields[17]), times, resident * _PAGE)
            for task in tasks:
                with suppress(OSError):
                    waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())


def _resident(task: str) -> int:
    """The pages that a thread's process has in memory: once its first thread has ended, only the others tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(task, "statm").read_text().split()[1])
    return 0


def _proportional(process: _Process) -> int:
    """What a process has in memory and swap, shared pages by its share of them.

    Where it hides that from other processes of its user, all that is resident counts.
    """
    with suppress(OSError):
        for task in os.listdir(f"/proc/{process.pid}/task"):
            with suppress(OSError, ValueError):  # one that has ended says nothing
                lines = Path(f"/proc/{process.pid}/task/{task}/smaps_rollup").read_text().splitlines()
                return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss:", "SwapPss:")))
        return process.resident
    return 0


def _shared_memory() -> int:
    """What all tmpfs and memory files of the machine take up."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("Shmem:"):
                return 1024 * int(line.split()[1])
    return 0
