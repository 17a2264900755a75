"""Runs that are asked to stop in the middle of something that would never end by itself."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from necrocode.agent_runner import RunnerOrchestrator, RunnerResult, TaskContext

SOON_SECONDS = 5.0
"""Generous: an idle machine needs less than one."""
_NEVER_ENDING_SECONDS = 120.0


class Stopwatch:
    """Cancels a run once it hangs, and knows how long it took to end after that."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.asked_at: float | None = None
        self.ended_at = 0.0
        self.orchestrator: RunnerOrchestrator | None = None
        self.reason = "Somebody asked."

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


def processes_left() -> list[str]:
    """What this process has started and still runs, but for the launcher of confined commands, and no zombies."""
    left = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if line and "sandbox.launcher" not in line and "multiprocessing" not in line:
            left.append(line)
    return left
