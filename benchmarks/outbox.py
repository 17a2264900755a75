"""What the outbox adds to a run: whole runs with it and without it, one after the other in turn.

``python benchmarks/outbox.py [ROUNDS]`` (default: 15). Both runs add one file to a small repository, with a model that
answers at once, without tests and without a push.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from _measure import side_by_side
from run_overhead import make_repository

from necrocode.agent_runner import RunnerConfig, RunnerOrchestrator, ScriptedLLM, TaskContext

CHANGED = "new.txt"


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 15
    folder = Path(tempfile.mkdtemp(prefix="necrocode-benchmark-"))
    try:
        origin = make_repository(folder / "origin", 200)
        seconds = side_by_side(
            {
                "with": Runs(origin, folder / "with", 256_000_000).run,
                "without": Runs(origin, folder / "without", 0).run,
            },
            rounds,
        )
        added = [one - other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
        print(f"{'with ms':>9}{'without ms':>12}{'added ms':>10}")
        medians = (statistics.median(seconds["with"]), statistics.median(seconds["without"]), statistics.median(added))
        print("{:9.1f}{:12.1f}{:10.1f}".format(*(median * 1000 for median in medians)))
    finally:
        shutil.rmtree(folder)


class Runs:
    """Runs over one state folder."""

    def __init__(self, origin: Path, state: Path, outbox_max_bytes: int) -> None:
        self.count = 0
        self.origin = origin
        config = RunnerConfig(
            state_dir=state, push=False, test_base=False, detect_tests=False, outbox_max_bytes=outbox_max_bytes
        )
        self.orchestrator = RunnerOrchestrator(config, llm=ScriptedLLM([self.answer] * 1000))

    def answer(self, _messages: object) -> str:
        return f"{CHANGED}\n```\nx = {self.count}\n```\n"

    def run(self) -> None:
        self.count += 1
        task = TaskContext(
            task_id=f"{self.count}", spec_name="b", title="change", description="Change it.", repo_url=str(self.origin)
        )
        result = self.orchestrator.run(task)
        if not result.success or result.reported != "yes":
            sys.exit(f"the run failed: {result.error}")


if __name__ == "__main__":
    main()
