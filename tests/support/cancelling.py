"""Runs that are asked to stop in the middle of something that would never end by itself."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from necrocode.agent_runner import Progress, RunnerOrchestrator, RunnerResult, TaskContext
from tests.support.bench import BRANCH, Bench, artifacts

SOON_SECONDS = 5.0
"""Generous: an idle machine needs less than one."""
_NEVER_ENDING_SECONDS = 120.0


_BEFORE: set[int] = set()
"""Processes that were there before the test: servers of others."""


class Stopwatch:
    """Cancels a run once it hangs, and knows how long it took to end after that."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.asked_at: float | None = None
        self.ended_at = 0.0
        self.orchestrator: RunnerOrchestrator | None = None
        self.reason = "Somebody asked."
        note_processes()

    def hang(self, *_anything: Any) -> None:
        """To be called by what hangs, from whatever thread: it is cancelled now."""
        self.hangs.set()

    def run(self, orchestrator: RunnerOrchestrator, task: TaskContext) -> RunnerResult:
        """The result of the run, which is cancelled from another thread when it hangs."""
        self.orchestrator = orchestrator

        def cancel() -> None:
            if self.hangs.wait(_NEVER_ENDING_SECONDS):
                self.asked_at = time.monotonic()
                orchestrator.cancel(task_id=task.task_id, reason=self.reason)

        canceller = threading.Thread(target=cancel, daemon=True)
        canceller.start()
        result = orchestrator.run(task)
        self.ended_at = time.monotonic()
        self.hangs.set()
        canceller.join()
        return result

    @property
    def seconds(self) -> float:
        """From the request to the result."""
        assert self.asked_at is not None, "nobody was asked"
        return self.ended_at - self.asked_at


class Bell:
    """A FIFO that a command outside of this process writes to: then ``ring`` is called."""

    def __init__(self, folder: Path, ring: Callable[[], None]) -> None:
        self.path = folder / "bell"
        os.mkfifo(self.path)
        threading.Thread(target=self._listen, args=(ring,), daemon=True).start()

    def _listen(self, ring: Callable[[], None]) -> None:
        self.path.read_bytes()
        ring()


def hanging_git(folder: Path, verb: str, bell: Bell) -> str:
    """A PATH whose git never ends when it is asked for ``verb``, in a child of its own that ignores SIGTERM."""
    real = shutil.which("git")
    script = folder / "bin" / "git"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nfor word in "$@"; do\n  if [ "$word" = {verb} ]; then\n    trap "" TERM\n'
        f'    echo >"{bell.path}"\n    sleep 98765\n  fi\ndone\nexec "{real}" "$@"\n'
    )
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def note_processes() -> None:
    """From here on, what is running now is not of interest."""
    _BEFORE.clear()
    _BEFORE.update(process.pid for process in psutil.Process().children(recursive=True))


def processes_left() -> list[str]:
    """What this process has started and still runs, but for the launcher of confined commands, and no zombies."""
    left = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if process.pid not in _BEFORE and line and "sandbox.launcher" not in line and "multiprocessing" not in line:
            left.append(line)
    return left


def assert_cancelled(bench: Bench, result: RunnerResult, watch: Stopwatch, step: str) -> None:
    assert (result.status, result.success) == ("cancelled", False)
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.message) == ("RunCancelledError", "Somebody asked.")
    assert result.error_details.step == step
    assert watch.seconds < SOON_SECONDS
    assert processes_left() == []
    assert list((bench.state_dir / "layers").glob("*")) == []
    assert BRANCH not in bench.branches()


def assert_told(bench: Bench, result: RunnerResult) -> None:
    """The registry has heard of it, the slot is free, and the log says who asked."""
    assert result.reported == "yes"
    assert bench.status() == "cancelled"
    bench.assert_nothing_is_left()
    assert "asked to stop: Somebody asked." in artifacts(result)["log"]


def begun(watch: Stopwatch, step: str, *, after: float) -> Callable[[Progress], None]:
    """A display that has the run cancelled some time after a step has begun: nothing tells when a connection hangs."""

    def show(progress: Progress) -> None:
        if progress.step == step and progress.seconds is None:
            threading.Timer(after, watch.hang).start()

    return show


@contextmanager
def full_backlog() -> Iterator[str]:
    """A URL that no connection can be made to, and none is refused: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
