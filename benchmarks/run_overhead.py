"""A whole run with a model that answers at once and ``true`` as test, beside the bare git commands that do the same.

``python benchmarks/run_overhead.py [FILES ...]`` (default: 200 5000 50000). Both sides work on a warm checkout of the
same synthetic repository and make the same one-line change; the run also keeps a registry, artifacts and leases.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from _measure import median_ratio, side_by_side

from necrocode.agent_runner import RunnerConfig, RunnerOrchestrator, ScriptedLLM, TaskContext

ROUNDS = 9
CHANGED = "d000/f0.py"
AUTHOR = ("-c", "user.name=b", "-c", "user.email=b@localhost")


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [200, 5_000, 50_000]
    print(f"{'files':>7}{'bare git ms':>13}{'run ms':>9}{'ratio':>8}{'own CPU ms':>12}{'git processes':>15}")
    for size in sizes:
        folder = Path(tempfile.mkdtemp(prefix="necrocode-benchmark-"))
        try:
            report(size, folder)
        finally:
            shutil.rmtree(folder)


def report(size: int, folder: Path) -> None:
    origin = make_repository(folder / "origin", size)
    bare, ours = Bare(origin, folder / "bare"), Ours(origin, folder / "state")
    seconds = side_by_side({"bare": bare.run, "ours": ours.run}, ROUNDS)
    print(
        f"{size:>7}{statistics.median(seconds['bare']) * 1000:13.0f}{statistics.median(seconds['ours']) * 1000:9.0f}"
        f"{median_ratio(seconds, 'ours', 'bare'):8.2f}{statistics.median(ours.own_seconds[1:]) * 1000:12.0f}"
        f"{statistics.median(ours.git_processes[1:]):15.0f}"
    )


def make_repository(path: Path, size: int) -> Path:
    words = random.Random(1)
    for number in range(size):
        file = path / f"d{number // 100:03}" / f"f{number % 100}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"v{words.randrange(10**6)} = {line}\n" for line in range(40)), encoding="utf-8")
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, *AUTHOR, "commit", "--quiet", "--message", "base")
    return path


def git(path: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(path), *arguments], check=True, capture_output=True)


@dataclass
class Bare:
    """The git commands alone, in a clone that stays."""

    origin: Path
    clone: Path
    count: int = 0

    def __post_init__(self) -> None:
        subprocess.run(["git", "clone", "--quiet", "--shared", str(self.origin), str(self.clone)], check=True)

    def run(self) -> None:
        self.count += 1
        for command in (
            ("reset", "--quiet", "--hard"),
            ("clean", "-ffdxq"),
            ("switch", "--quiet", "-C", f"task-{self.count}", "origin/main"),
        ):
            git(self.clone, *command)
        (self.clone / CHANGED).write_text(f"x = {self.count}\n", encoding="utf-8")
        for command in (("add", CHANGED), (*AUTHOR, "commit", "--quiet", "-m", "change"), ("diff", "HEAD~1", "HEAD")):
            git(self.clone, *command)
        subprocess.run(["true"], check=True)


@dataclass
class Ours:
    """A whole run, without a push."""

    origin: Path
    state: Path
    count: int = 0
    own_seconds: list[float] = field(default_factory=list)
    git_processes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = ScriptedLLM([self.answer] * (ROUNDS + 1))
        self.orchestrator = RunnerOrchestrator(RunnerConfig(state_dir=self.state, push=False), llm=model)

    def answer(self, _messages: object) -> str:
        change = {"operation": "modify", "file_path": CHANGED, "content": f"x = {self.count}\n"}
        return json.dumps({"changes": [change]})

    def run(self) -> None:
        self.count += 1
        task = TaskContext(
            task_id=f"{self.count}",
            spec_name="benchmark",
            title="change",
            description=f"Change {CHANGED}.",
            repo_url=str(self.origin),
            test_commands=["true"],
        )
        with CountedGit() as counted:
            start = time.process_time()
            result = self.orchestrator.run(task)
            self.own_seconds.append(time.process_time() - start)
        if not result.success:
            sys.exit(f"the run failed: {result.error}")
        self.git_processes.append(counted.count)


class CountedGit:
    """Counts the git processes that this process starts meanwhile."""

    def __init__(self) -> None:
        self.count = 0
        self._init: Any = subprocess.Popen.__init__

    def __enter__(self) -> Self:
        def counted(popen: Any, args: Any, *rest: Any, **options: Any) -> None:
            program = args if isinstance(args, (str, bytes, os.PathLike)) else args[0]
            self.count += Path(os.fsdecode(program)).name == "git"
            self._init(popen, args, *rest, **options)

        subprocess.Popen.__init__ = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.Popen.__init__ = self._init  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
