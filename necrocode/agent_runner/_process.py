"""Running a command so that it can neither hang the caller, nor flood its memory, nor outlive it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_READ_SIZE = 65_536
_DRAIN_SECONDS = 0.5  # how long output is still read after the command itself has ended


@dataclass(frozen=True)
class ProcessResult:
    """How a command ended. ``exit_code`` is None when it was stopped at its time limit."""

    exit_code: int | None
    output: bytes
    truncated_bytes: int
    duration_seconds: float

    @property
    def timed_out(self) -> bool:
        """Whether the command was stopped at its time limit."""
        return self.exit_code is None


class HeadAndTail:
    """The first and the last half of ``limit`` bytes; what lies between is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Take in more output."""
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
) -> ProcessResult:
    """Run a command in a session of its own, with exactly this environment and no input.

    Standard output and error come back as one stream. At the time limit, and on any exception in the caller, the whole
    process group is killed; so is whatever is left of it when the command itself has ended. A process that moved to
    another session and holds the output open cannot make this wait. Raises :class:`OSError` when it cannot start.
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
    kept = HeadAndTail(max_output_bytes)
    assert process.stdout is not None  # noqa: S101  for the type checker: stdout=PIPE above
    with process.stdout:
        try:
            _pump(process, process.stdout, kept, started + timeout_seconds)
            exit_code = process.poll()
        finally:
            kill_group(process)
        _drain(process.stdout, kept)
    return ProcessResult(exit_code, kept.content(), kept.dropped_bytes, time.monotonic() - started)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process's whole group and reap the process; harmless when they are gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _pump(process: subprocess.Popen[bytes], stream: IO[bytes], kept: HeadAndTail, until: float) -> None:
    """Read until the command has ended or its time is up."""
    exited = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            if exited is not None:
                selector.register(exited, selectors.EVENT_READ)
            _pump_selected(process, stream, kept, until, selector)
    finally:
        if exited is not None:
            os.close(exited)


def _pump_selected(
    process: subprocess.Popen[bytes],
    stream: IO[bytes],
    kept: HeadAndTail,
    until: float,
    selector: selectors.BaseSelector,
) -> None:
    poll_seconds = None if len(selector.get_map()) > 1 else 0.02  # no pidfd (not Linux): look for the end in between
    while process.poll() is None and (left := until - time.monotonic()) > 0:
        for key, _ in selector.select(left if poll_seconds is None else min(left, poll_seconds)):
            if key.fileobj is stream:
                chunk = os.read(stream.fileno(), _READ_SIZE)
                kept.write(chunk)
                if not chunk:
                    selector.unregister(stream)


def _drain(stream: IO[bytes], kept: HeadAndTail) -> None:
    """Read what the command had written before it ended, without waiting for other holders of the pipe."""
    os.set_blocking(stream.fileno(), False)
    until = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(BlockingIOError):
        while time.monotonic() < until and (chunk := os.read(stream.fileno(), _READ_SIZE)):
            kept.write(chunk)
