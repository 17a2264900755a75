"""Runs in processes of their own, each killed around one entry of its journal. Started as a program; forks for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from necrocode.agent_runner import LLMConfig, RunnerConfig, RunnerError, RunnerOrchestrator, TaskContext
from necrocode.agent_runner._journal_file import Entry, JournalFile
from tests.support.shared import ROOT


@dataclass
class Start:
    """One process: what it runs, and at which of its own journal's appends it dies."""

    state_dir: str
    task: dict[str, Any]
    endpoint: str
    out: str
    settings: dict[str, Any] = field(default_factory=dict)
    kill_at: int | None = None
    """Counted from 0, in this process. None: it lives."""
    before: bool = False
    """Whether it dies before that entry is written, and not after it."""
    resume: str | None = None
    """A run's id, or ``all``; None: the task is run."""


def in_processes(starts: list[Start], folder: Path) -> list[dict[str, Any]]:
    """What each came to: its ``result``, or its ``error``, and the ``kinds`` of the entries that it wrote."""
    plan = folder / "starts.json"
    plan.write_text(json.dumps([asdict(start) for start in starts]))
    subprocess.run([sys.executable, "-m", __name__, str(plan)], check=True, cwd=ROOT, timeout=250)
    return [json.loads(Path(start.out).read_text()) for start in starts]


def _run(start: Start) -> None:
    kinds: list[str] = []
    append = JournalFile.append

    def tell(**outcome: Any) -> None:
        Path(start.out).write_text(json.dumps({"kinds": kinds, **outcome}))

    def append_or_die(file: JournalFile, entry: Entry) -> None:
        is_last = len(kinds) == start.kill_at
        if is_last and start.before:
            tell(killed=True, before=entry.kind)
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, entry)
        kinds.append(entry.kind)
        if is_last:
            tell(killed=True)
            os.kill(os.getpid(), signal.SIGKILL)

    JournalFile.append = append_or_die  # type: ignore[method-assign]
    config = RunnerConfig(
        state_dir=Path(start.state_dir),
        sandbox="none",
        llm=LLMConfig(endpoint=start.endpoint, api_key="a-key-that-nobody-may-see", retry_count=0),
        **start.settings,
    )
    with RunnerOrchestrator(config) as orchestrator:
        try:
            if start.resume is None:
                result = orchestrator.run(TaskContext(**start.task))
            elif start.resume == "all":
                (result,) = orchestrator.resume_all()
            else:
                result = orchestrator.resume(start.resume)
        except RunnerError as error:
            tell(error=f"{type(error).__name__}: {error}")
        else:
            tell(result=result.model_dump(mode="json"))


def main() -> None:
    for values in json.loads(Path(sys.argv[1]).read_text()):
        start = Start(**values)
        if (child := os.fork()) == 0:
            try:
                _run(start)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
