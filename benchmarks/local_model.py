"""How many real tasks end as a delivered change, by edit format, repair rounds and candidates.

``python benchmarks/local_model.py ask --url URL --model NAME [--set humaneval|quixbugs] [--count N] [--format F]
[--rounds N] [--candidates N] [--no-test-base]`` runs the tasks against a model and records its raw answers; a question
on record is not asked again.
``python benchmarks/local_model.py table`` runs every recorded experiment again with the recorded answers: parsing,
applying, testing and repairing are done anew, and only the model is not needed. The tasks are read from
``NECROCODE_SHARED`` (default ``../shared``) and are not part of the recording.

A task counts as solved when the run delivers a branch on which the task's own tests pass, as they are on the base.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner import (
    EmptyAnswerError,
    LLMClient,
    LLMConfig,
    Message,
    ModelAnswer,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    TaskContext,
    errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECORDING = Path(__file__).with_name("recorded") / "local_model.jsonl.gz"
SHARED = Path(os.environ.get("NECROCODE_SHARED", Path(__file__).parents[2] / "shared"))
MAX_TOKENS = 1200
WINDOW_TOKENS = 8192
_COUNTS = ("solved", "after 1 round", "after 2", "any candidate")


@dataclass(frozen=True)
class Experiment:
    """One way to ask a set of tasks."""

    tasks: str
    count: int
    edit_format: str
    rounds: int
    candidates: int
    test_base: bool = True
    """Whether the model is told how the tests fail before its change."""

    @property
    def name(self) -> str:
        told = "" if self.test_base else " test_base=false"
        return f"{self.tasks} {self.edit_format} rounds={self.rounds} candidates={self.candidates}{told}"


@dataclass(frozen=True)
class Outcome:
    """What came of one task."""

    task_id: str
    solved_in_round: int | None
    solved_by_candidate: int | None
    answers: int
    error: str


class Recorder:
    """A model that keeps what it says, call by call; a question to which its answer is ``known`` is not asked again."""

    def __init__(self, model: LLMClient, known: Sequence[dict[str, Any]] = ()) -> None:
        self._model = model
        self._known = [call for call in known if "answer" in call]
        self.calls: list[dict[str, Any]] = []
        self.asked = 0

    def complete(self, messages: Sequence[Message], **options: Any) -> ModelAnswer:
        call: dict[str, Any] = {"prompt": fingerprint(messages), "temperature": options["temperature"]}
        self.calls.append(call)
        known = next((one for one in self._known if one.items() >= call.items()), None)
        if known is not None:
            self._known.remove(known)
            call["answer"] = known["answer"]
            return ModelAnswer(**known["answer"])
        self.asked += 1
        try:
            answer = self._model.complete(messages, **options)
        except errors.RunnerError as error:
            call["error"] = [type(error).__name__, str(error)]
            raise
        call["answer"] = answer.model_dump(exclude_defaults=True)
        return answer


class Replay:
    """A model that says again what it said, in order; candidates are told apart by their temperature."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self._calls = list(calls)
        self._lock = threading.Lock()
        self.other_prompts = 0
        self.unanswered = 0

    def complete(self, messages: Sequence[Message], **options: Any) -> ModelAnswer:
        with self._lock:
            call = next((one for one in self._calls if one["temperature"] == options["temperature"]), None)
            if call is None:
                self.unanswered += 1
                raise EmptyAnswerError("This question was not asked when the answers were recorded.")
            self._calls.remove(call)
            self.other_prompts += call["prompt"] != fingerprint(messages)
        if "error" in call:
            kind, text = call["error"]
            raise getattr(errors, kind)(text)
        return ModelAnswer(**call["answer"])


def fingerprint(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps([message.content for message in messages]).encode()).hexdigest()[:16]


def load_tasks(experiment: Experiment) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data" / "tasks" / f"{experiment.tasks}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][: experiment.count]


def run(item: dict[str, Any], experiment: Experiment, model: Any) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="necrocode-benchmark-"))
    try:
        repository = make_repository(folder / "repository", item["files"])
        config = RunnerConfig(
            state_dir=folder / "state",
            max_repair_rounds=experiment.rounds,
            test_base=experiment.test_base,
            llm_config=LLMConfig(
                edit_format=experiment.edit_format,
                candidates=experiment.candidates,
                context_tokens=(WINDOW_TOKENS - MAX_TOKENS) * 2 // 3,
                temperature=0,
                max_tokens=MAX_TOKENS,
            ),
        )
        task = TaskContext(
            task_id="1",
            spec_name="benchmark",
            title=item["id"],
            description=item["description"],
            repo_url=str(repository),
            test_commands=[shlex.join(item["test_cmd"])],
            timeout_seconds=3600,
        )
        with RunnerOrchestrator(config, llm=model) as orchestrator:
            result = orchestrator.run(task)
        return outcome_of(item, result, repository, folder / "check")
    finally:
        shutil.rmtree(folder)


def outcome_of(item: dict[str, Any], result: RunnerResult, repository: Path, folder: Path) -> Outcome:
    last = result.rounds[-1] if result.rounds else None
    solved = result.success and passes(item, repository, result.branch, folder)
    return Outcome(
        item["id"],
        last.round if last is not None and solved else None,
        last.candidate if last is not None and solved else None,
        len(result.rounds),
        result.error or ("" if solved else "the tests, as they were, do not pass"),
    )


def passes(item: dict[str, Any], repository: Path, branch: str, folder: Path) -> bool:
    """Whether the task's own tests pass on the branch; files that its solution need not touch are put back first."""
    subprocess.run(["git", "clone", "-q", "-b", branch, str(repository), str(folder)], check=True)
    for path, text in item["files"].items():
        if path not in item["gold"]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    done = subprocess.run(item["test_cmd"], cwd=folder, capture_output=True, check=False, timeout=300)
    return done.returncode == 0


def make_repository(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    identity = ("-c", "user.name=b", "-c", "user.email=b@localhost")
    for argv in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", "base"]):
        subprocess.run(["git", "-C", str(path), *argv], check=True)
    return path


# --- the two commands


def ask(experiment: Experiment, url: str, model: str, recording: Path) -> None:
    client = LLMClient(
        LLMConfig(
            endpoint=url,
            model=model,
            temperature=0,
            max_tokens=MAX_TOKENS,
            timeout_seconds=1200,
            edit_format=experiment.edit_format,
        )
    )
    for item in load_tasks(experiment):  # an interrupted recording goes on
        mark = {"experiment": asdict(experiment), "task_id": item["id"]}
        known = [call for row in read(recording) if row["task_id"] == item["id"] for call in row["calls"]]
        recorder = Recorder(client, known)
        started = time.monotonic()
        outcome = run(item, experiment, recorder)
        print(f"{time.monotonic() - started:6.0f} s  {recorder.asked} asked  {outcome}", flush=True)
        write(recording, {**mark, "calls": recorder.calls})
    report(recording, only=experiment)


def write(recording: Path, row: dict[str, Any]) -> None:
    """Put the row into the recording, in place of an older one of its task."""
    mark = {name: row[name] for name in ("experiment", "task_id")}
    old = list(read(recording))
    place = next((at for at, one in enumerate(old) if one.items() >= mark.items()), len(old))
    rows = [*old[:place], row, *old[place + 1 :]]
    recording.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(recording, "wb", mtime=0) as file:
        for one in rows:
            file.write(json.dumps(one, ensure_ascii=False, sort_keys=True).encode() + b"\n")


def read(recording: Path) -> Iterator[dict[str, Any]]:
    if recording.exists():
        with gzip.open(recording, "rt", encoding="utf-8") as lines:
            yield from [json.loads(line) for line in lines]


def report(recording: Path, only: Experiment | None = None) -> None:
    rows = list(read(recording))
    heads = ("tasks", "format", "failure told", "rounds", "candidates", *_COUNTS, "of")
    print(f"| {' | '.join(heads)} |\n| {' | '.join(['---'] * len(heads))} |")
    for experiment in dict.fromkeys(Experiment(**row["experiment"]) for row in rows):
        if only is not None and experiment != only:
            continue
        outcomes, other_prompts, unanswered = again(experiment, rows)
        print(f"| {' | '.join(map(str, line(experiment, outcomes)))} |", flush=True)
        if other_prompts or unanswered:
            text = f"{other_prompts} prompts differ from the recorded ones, {unanswered} questions have no answer"
            print(f"{experiment.name}: {text}", file=sys.stderr)


def line(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[object]:
    """One line of the table; empty where the experiment does not say."""

    def solved(rounds: int) -> int:
        return sum(one.solved_in_round is not None and one.solved_in_round <= rounds for one in outcomes)

    at_first = sum(one.solved_in_round == 0 and one.solved_by_candidate == 1 for one in outcomes)
    return [
        experiment.tasks,
        experiment.edit_format,
        "yes" if experiment.test_base else "no",
        experiment.rounds,
        experiment.candidates,
        at_first,
        *(solved(rounds) if rounds <= experiment.rounds else "" for rounds in (1, 2)),
        solved(0) if experiment.candidates > 1 else "",
        len(outcomes),
    ]


def again(experiment: Experiment, rows: list[dict[str, Any]]) -> tuple[list[Outcome], int, int]:
    items = {item["id"]: item for item in load_tasks(experiment)}
    outcomes, other_prompts, unanswered = [], 0, 0
    for row in rows:
        if row["experiment"] == asdict(experiment) and row["task_id"] in items:
            replay = Replay(row["calls"])
            outcomes.append(run(items[row["task_id"]], experiment, replay))
            other_prompts += replay.other_prompts
            unanswered += replay.unanswered
    return outcomes, other_prompts, unanswered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["ask", "table"])
    parser.add_argument("--url", default=os.environ.get("NECROCODE_LOCAL_LLM_URL"))
    parser.add_argument("--model", default=os.environ.get("NECROCODE_LOCAL_LLM_MODEL", "local"))
    parser.add_argument("--set", default="humaneval", choices=["humaneval", "quixbugs"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--format", default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--no-test-base", dest="test_base", action="store_false")
    parser.add_argument("--recording", type=Path, default=RECORDING)
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if options.command == "table":
        report(options.recording)
        return
    if not options.url:
        parser.error("--url or NECROCODE_LOCAL_LLM_URL is needed")
    experiment = Experiment(
        options.set, options.count, options.format, options.rounds, options.candidates, options.test_base
    )
    ask(experiment, options.url, options.model, options.recording)


if __name__ == "__main__":
    main()
