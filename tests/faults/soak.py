"""Many runs with random faults, and a count of what was lost, doubled or left behind.

``python -m tests.faults.soak --runs 1000`` prints a table. Half of the runs happen in one long-lived orchestrator,
whose model fails or whose run is cancelled at random moments; the other half in processes that are killed at a random
place, or told to end. A task whose run did not end as done is run again, as a dispatcher would.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from necrocode.agent_runner import (
    LLMConfig,
    LocalRepoPool,
    LocalTaskRegistry,
    RunnerConfig,
    RunnerOrchestrator,
    TaskContext,
)
from necrocode.agent_runner._git import Git
from tests.faults.world import Zygote
from tests.support.http_server import Answer, Request, ScriptedServer
from tests.support.model_server import as_asked, as_files, completion
from tests.support.repositories import CALC_FILES, FIXED_CALC, files_at, git, make_repository

SPEC = "soak"
REPOSITORIES = 4
MOST_TRIES = 60
"""Half of the tries meet a fault: so many in a row do not happen by chance."""
PLACES = 170
"""About so many places does a run pass at which it can die."""
MODEL_FAULTS = (
    Answer(500, {"error": {"message": "overloaded"}}),
    Answer(200, completion("I would rather not.")),
    Answer(200, completion(as_files({"calc.py": "def add(a, b):\n    return 0\n"}))),
    Answer(drop=True),
    Answer(200, b"<html>"),
)


@dataclass
class Soak:
    """The site of all runs."""

    folder: Path
    dice: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    tries: int = 0
    memory: list[int] = field(default_factory=list)
    """Bytes in use by the long-lived process, after each tenth of its runs."""
    descriptors: list[int] = field(default_factory=list)
    server: ScriptedServer = field(init=False)

    def __post_init__(self) -> None:
        self.origins = [make_repository(self.folder / f"origin-{at}", CALC_FILES) for at in range(REPOSITORIES)]
        self.state = self.folder / "state"
        self.lock = threading.Lock()

    def count(self, fault: str) -> None:
        with self.lock:
            self.faults[fault] += 1

    def task(self, number: int) -> TaskContext:
        return TaskContext(
            task_id=str(number),
            spec_name=SPEC,
            title=f"Mend {number}",
            description="add() subtracts.",
            repo_url=str(self.origins[number % REPOSITORIES]),
            test_commands=["grep -q 'a + b' calc.py"],
        )

    def answer(self, request: Request) -> Answer:
        """The model: one question in six goes wrong."""
        with self.lock:
            fails = self.dice.random() < 1 / 6
            fault = self.dice.choice(MODEL_FAULTS)
        if fails:
            self.count("the model fails")
            return fault
        return as_asked(request, completion(as_files({"calc.py": FIXED_CALC})))

    def config(self, model_url: str) -> RunnerConfig:
        return RunnerConfig(
            state_dir=self.state,
            sandbox="none",
            pool_size=4,
            slot_timeout_seconds=30,
            lease_seconds=30,
            llm=LLMConfig(endpoint=model_url, api_key="unused", model="scripted", retry_count=0, stream=False),
        )

    # --- one task, until it is done

    def in_process(self, orchestrator: RunnerOrchestrator, number: int) -> None:
        for _ in range(MOST_TRIES):
            timer = None
            if self.dice.random() < 1 / 3:
                self.count("cancelled")
                seconds = self.dice.uniform(0, 0.6)
                timer = threading.Timer(seconds, orchestrator.cancel, kwargs={"task_id": str(number)})
                timer.start()
            result = orchestrator.run(self.task(number))
            self.tries += 1
            if timer is not None:
                timer.cancel()
                timer.join()
            if result.success:
                return
        self.problems.append(f"task {number} is not done after {MOST_TRIES} runs: {result.error}")

    def in_zygote(self, zygote: Zygote, model_url: str, number: int) -> None:
        told = self.folder / f"told-{threading.get_ident()}.json"
        for _ in range(MOST_TRIES):
            told.unlink(missing_ok=True)
            order = {
                "state": str(self.state),
                "task": self.task(number).model_dump(mode="json", exclude={"lease"}),
                "model_url": model_url,
                "told": str(told),
                "does": "run",
                "pool_size": 4,
            }
            if self.dice.random() < 1 / 2:
                order["dies_after"] = self.dice.randrange(1, PLACES)
                order["by"] = int(self.dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            code = zygote.run(order)
            self.tries += 1
            if code != 0:
                self.count(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}")
            elif json.loads(told.read_text(encoding="utf-8"))["results"][0]["success"]:
                return
        self.problems.append(f"task {number} is not done after {MOST_TRIES} processes")

    # --- the work of all

    def run(self, runs: int) -> None:
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(runs):
            waiting.put(number)
        with ExitStack() as stack:
            server = self.server = stack.enter_context(ScriptedServer(self.answer))
            url = f"{server.url}/v1"
            zygote = stack.enter_context(Zygote())
            orchestrator = stack.enter_context(RunnerOrchestrator(self.config(url)))
            kept = (
                threading.Thread(
                    target=self._until_empty, args=(waiting, lambda n: self.in_process(orchestrator, n), runs)
                ),
                threading.Thread(target=self._until_empty, args=(waiting, lambda n: self.in_zygote(zygote, url, n), 0)),
            )
            for thread in kept:
                thread.start()
            for thread in kept:
                thread.join()
            orchestrator.flush_outbox()

    def _until_empty(self, waiting: queue.SimpleQueue[int], work: Callable[[int], None], runs: int) -> None:
        done = 0
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            work(number)
            done += 1
            if runs and done % max(1, runs // 20) == 0:
                self._measure()
                sys.stderr.write(f"{done} in process, {self.tries} runs\n")

    def _measure(self) -> None:
        self.server.requests.clear()  # the model's, which remembers what it was asked
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.memory.append(pages * resource.getpagesize())
        self.descriptors.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))

    # --- what came of it

    def check(self, runs: int) -> dict[str, object]:
        """The figures; what must be zero is."""
        lost: list[int] = []
        doubled: dict[int, list[str]] = {}
        with LocalTaskRegistry(f"sqlite:///{self.state / 'registry.db'}") as registry:
            for number in range(runs):
                task = self.task(number)
                ends = Counter(
                    str(one.data.get("run_id"))
                    for one in registry.list_events(str(number), spec_name=SPEC)
                    if one.event_type == "run_finished"
                )
                kinds = Counter(
                    (str(one.metadata.get("run_id")), one.type)
                    for one in registry.list_artifacts(str(number), spec_name=SPEC)
                )
                origin = self.origins[number % REPOSITORIES]
                if not git(origin, "branch", "--list", task.branch):
                    lost.append(number)
                    continue
                commits = git(origin, "rev-list", "--count", f"main..{task.branch}")
                fixed = files_at(origin, task.branch)["calc.py"] == FIXED_CALC.encode()
                if registry.get_task(str(number), spec_name=SPEC).status != "done" or not fixed:
                    lost.append(number)
                twice = [f"{one} {count} times" for one, count in (ends | kinds).items() if count > 1]
                if commits != "1":
                    twice.append(f"{commits} commits")
                if twice:
                    doubled[number] = twice
        pool = LocalRepoPool(self.state / "pool", Git(self.state / "git"), pool_size=4)
        states: Counter[str] = Counter()
        for one in pool.pools_status():
            states.update(one.counts)
        layers = self.state / "layers"
        return {
            "tasks": runs,
            "runs": self.tries,
            "faults": sum(self.faults.values()),
            "lost": len(lost),
            "doubled": len(doubled),
            "slots still held": states["allocated"] + states["quarantined"],
            "slots whose cleaning was cut off, which their next use goes on with": states["cleaning"],
            "layers left": len([one for one in layers.iterdir() if one.name.startswith("layer-")])
            if layers.exists()
            else 0,
            "outbox left": len(list((self.state / "outbox").glob("*.spool"))),
            "memory, first and last tenth (MB)": f"{self.memory[0] >> 20} {self.memory[-1] >> 20}"
            if self.memory
            else "",
            "descriptors, first and last": f"{self.descriptors[0]} {self.descriptors[-1]}" if self.descriptors else "",
            "problems": [
                *self.problems[:5],
                *(f"lost {one}" for one in lost[:5]),
                *(f"doubled {number}: {', '.join(twice)}" for number, twice in list(doubled.items())[:5]),
            ],
        }


def soak(runs: int, seed: int) -> tuple[dict[str, object], Counter[str]]:
    """So many tasks, each until it is done; the figures, and how often each fault struck."""
    folder = Path(tempfile.mkdtemp(prefix="necrocode-soak-"))
    try:
        one = Soak(folder, random.Random(seed))  # noqa: S311  faults, no secrets
        one.run(runs)
        return one.check(runs), one.faults
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="how many tasks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures, faults = soak(options.runs, options.seed)
    for name, value in {**figures, **{f"fault: {name}": count for name, count in sorted(faults.items())}}.items():
        sys.stdout.write(f"| {name} | {value} |\n")


if __name__ == "__main__":
    main()
