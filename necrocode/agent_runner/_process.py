"""Running a command so that it can neither hang the caller, nor flood its memory, nor outlive it."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner.test_results import StopReason

_READ_SIZE = 65_536
_POLL_SECONDS = 0.02  # where no handle tells of the end (not Linux)
_DRAIN_SECONDS = 0.5  # how long output is still read after the command itself has ended
_TERM_SECONDS = 0.3
_STOP = object()


@dataclass(frozen=True)
class ProcessResult:
    """How a command ended. ``exit_code`` is None when it was stopped, for the reason in ``stopped_by``."""

    exit_code: int | None
    output: bytes
    truncated_bytes: int
    duration_seconds: float
    stopped_by: StopReason | None = None

    @property
    def timed_out(self) -> bool:
        """Whether the command was stopped at its time limit."""
        return self.stopped_by == "timeout"


class Watch(Protocol):
    """Looks at a running command now and then, and has it stopped."""

    interval_seconds: float
    """How long to wait before the first look, and between two."""
    max_output_bytes: int
    """A command that writes more than this is stopped; so much of it passes, not so much is kept."""

    def look(self, pid: int) -> StopReason | None:
        """Why the command, the process ``pid`` and all below it, has to be stopped now; None: it goes on."""

    def last_look(self, exit_code: int) -> StopReason | None:
        """Which limit it was that a command met, if it was one, that has ended by itself."""


class Running(Protocol):
    """A command that has been started, with its output to be read."""

    pid: int
    output: IO[bytes]
    ended: int | None
    """A handle that becomes readable when there is news of its end; None: there is no such thing here."""

    def has_ended(self) -> bool:
        """Whether the command itself has ended."""

    def stop(self) -> None:
        """End it, and all that belongs to it; harmless when it has ended."""

    def kill(self) -> None:
        """Have it end, from any thread and without waiting; harmless when it has ended."""

    @property
    def exit_code(self) -> int | None:
        """Once it has ended: its exit code, negative for a signal."""


class HeadAndTail:
    """The first and the last half of ``limit`` bytes; what lies between is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped_bytes = 0
        self.total_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Take in more output."""
        self.total_bytes += len(chunk)
        room = self._half - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        self._tail += chunk
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self.dropped_bytes += excess

    def content(self) -> bytes:
        """What was kept, with a line in place of what was not."""
        if not self.dropped_bytes:
            return bytes(self._head + self._tail)
        gap = f"\n[... {self.dropped_bytes} bytes left out ...]\n".encode()
        return bytes(self._head) + gap + bytes(self._tail)


def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
    max_output_bytes: int,
    watch: Watch | None = None,
    cancellation: Cancellation | None = None,
) -> ProcessResult:
    """Run a command in a session of its own, with exactly this environment and no input.

    Standard output and error come back as one stream. At the time limit, on a cancellation and on any exception in the
    caller, the whole process group is killed; so is whatever is left of it when the command itself has ended. A process
    that moved to another session and holds the output open cannot make this wait. Raises :class:`OSError` when it
    cannot start, and as :func:`supervise`.
    """
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603  running commands is this module's purpose; callers choose them
        argv,
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with _Group(process) as running:
        return supervise(
            running,
            started=started,
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
            watch=watch,
            cancellation=cancellation,
        )


def supervise(
    running: Running,
    *,
    started: float,
    timeout_seconds: float,
    max_output_bytes: int,
    watch: Watch | None = None,
    cancellation: Cancellation | None = None,
) -> ProcessResult:
    """Read a command's output until it ends, or is stopped at its time limit or by ``watch``; then it is stopped.

    ``started`` is the monotonic time from which the limit counts. Once ``cancellation`` is requested the command is
    stopped, and ``RunCancelledError`` raised.
    """
    kept = HeadAndTail(max_output_bytes)
    try:
        with living(running.kill), _told_of(cancellation) as told:
            stopped_by = _pump(running, kept, started + timeout_seconds, watch, told)
    finally:
        running.stop()
    if cancellation is not None:
        cancellation.check()
    _drain(running.output, kept)
    exit_code = None if stopped_by else running.exit_code
    if watch is not None and exit_code is not None and (reason := watch.last_look(exit_code)):
        stopped_by, exit_code = reason, None
    return ProcessResult(exit_code, kept.content(), kept.dropped_bytes, time.monotonic() - started, stopped_by)


class _Group:
    """A process of our own and its group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  for the type checker: stdout=PIPE above
        self._process = process
        self._code: int | None = None
        self.pid = process.pid
        self.output = process.stdout
        self.ended = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.ended is not None:
            os.close(self.ended)
        self.output.close()

    def has_ended(self) -> bool:
        self._code = self._process.poll()
        return self._code is not None

    def stop(self) -> None:
        kill_group(self._process)

    def kill(self) -> None:
        signal_group(self._process, signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        return self._code


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process's whole group and reap the process; harmless when they are gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process has ended, for which it is waited so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the process's group to end, so that it can remove its lock files; then kill what is left, and reap it."""
    signal_group(process, signal.SIGTERM)
    ends_within(process, _TERM_SECONDS)
    kill_group(process)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the group of a process that has not been reaped; harmless when it has."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.returncode is None:
            os.killpg(process.pid, number)


class _Living:
    """How to kill the processes that this one has started and that would outlive it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be as new, in a child process too."""
        self._lock = threading.Lock()
        self._kills: dict[object, Callable[[], None]] = {}

    @contextmanager
    def including(self, kill: Callable[[], None]) -> Iterator[None]:
        key = object()
        with self._lock:
            self._kills[key] = kill
        try:
            yield
        finally:
            with self._lock:
                self._kills.pop(key)

    def kill(self, seconds: float) -> None:
        with self._lock:
            kills = list(self._kills.values())
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=kill, name="necrocode-kill", daemon=True) for kill in kills]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


_living = _Living()
os.register_at_fork(after_in_child=_living.forget)


def living(kill: Callable[[], None]) -> AbstractContextManager[None]:
    """For as long as the block lasts, :func:`kill_living` calls ``kill``."""
    return _living.including(kill)


def kill_living(seconds: float) -> None:
    """Kill all processes that this one has started and that would outlive it; from any thread, within the time."""
    _living.kill(seconds)


@contextmanager
def _told_of(cancellation: Cancellation | None) -> Iterator[int | None]:
    """A handle that becomes readable when the cancellation is requested; None where there is none."""
    if cancellation is None:
        yield None
        return
    told, tell = os.pipe()
    try:
        with cancellation.calling(lambda: _ring(tell)):
            yield told
    finally:
        os.close(told)
        os.close(tell)


def _ring(handle: int) -> None:
    os.write(handle, b".")


def _pump(
    running: Running, kept: HeadAndTail, until: float, watch: Watch | None, told: int | None
) -> StopReason | None:
    """Read until the command has ended or is to be stopped by whoever wants to (None), or has to be stopped."""
    with selectors.DefaultSelector() as selector:
        selector.register(running.output, selectors.EVENT_READ)
        if running.ended is not None:
            selector.register(running.ended, selectors.EVENT_READ)
        if told is not None:
            selector.register(told, selectors.EVENT_READ, _STOP)
        return _pump_selected(running, kept, until, watch, selector)


def _pump_selected(
    running: Running,
    kept: HeadAndTail,
    until: float,
    watch: Watch | None,
    selector: selectors.BaseSelector,
) -> StopReason | None:
    poll_seconds = math.inf if running.ended is not None else _POLL_SECONDS
    next_look = math.inf if watch is None else time.monotonic() + watch.interval_seconds
    while not running.has_ended():
        now = time.monotonic()
        if now >= until:
            return "timeout"
        if watch is not None and now >= next_look:
            if reason := watch.look(running.pid):
                return reason
            next_look = time.monotonic() + watch.interval_seconds
        for key, _ in selector.select(min(until - now, max(0, next_look - now), poll_seconds)):
            if key.data is _STOP:
                return None
            if key.fileobj is running.output:
                chunk = os.read(running.output.fileno(), _READ_SIZE)
                kept.write(chunk)
                if not chunk:
                    selector.unregister(running.output)
        if watch is not None and kept.total_bytes > watch.max_output_bytes:
            return "output-limit"
    return None


def _drain(stream: IO[bytes], kept: HeadAndTail) -> None:
    """Read what the command had written before it ended, without waiting for other holders of the pipe."""
    os.set_blocking(stream.fileno(), False)
    until = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(BlockingIOError):
        while time.monotonic() < until and (chunk := os.read(stream.fileno(), _READ_SIZE)):
            kept.write(chunk)
