"""Runs that are killed and go on: nothing is paid for twice, and one thing comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import GOOD_ANSWER, USELESS_ANSWER
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.killed_runs import Start, in_processes
from tests.support.model_server import as_asked, completion
from tests.support.repositories import CALC_TEST_COMMAND, git

ENTRIES = [
    "run", "workspace", "plan", "answer", "commit", "committed", "tests", "answer", "commit", "committed", "tests",
    "delivered", "result", "ended",
]  # fmt: skip
AN_ANSWER_IS_ASKED_AGAIN = {3, 7}
"""Killed before these are written: the model has answered, and nobody knows."""


def mending(request: Request) -> Answer:
    """A useless answer to the first question, a good one to the repair round."""
    is_repair = len(request.json["messages"]) > 2
    return as_asked(request, completion(GOOD_ANSWER if is_repair else USELESS_ANSWER))


class Bench:
    """A repository, a model, and processes that work on one task in a state folder each."""

    def __init__(self, folder: Path, repository: Path, model: ScriptedServer) -> None:
        self.folder = folder
        self.repository = repository
        self.model = model
        self.count = 0

    def start(self, place: str, **changes: Any) -> Start:
        self.count += 1
        task = {
            "task_id": "1.1",
            "spec_name": place,
            "title": "Mend add",
            "description": "add() subtracts.",
            "repo_url": str(self.repository),
            "test_commands": [CALC_TEST_COMMAND],
            **changes.pop("task", {}),
        }
        out = str(self.folder / f"out-{self.count}.json")
        return Start(str(self.folder / place), task, f"{self.model.url}/v1", out, **changes)

    def questions(self, place: str) -> int:
        """How often the model was asked for that task: its prompt names the repository's file alike for all."""
        return sum(f"[{place}]" in json.dumps(request.json) for request in self.model.requests)

    def kept_refs(self, place: str) -> list[str]:
        (mirror,) = (self.folder / place).glob("pool/*/mirror.git")
        return git(mirror, "for-each-ref", "--format=%(refname)", "refs/necrocode/runs").split()

    def journal_ids(self, place: str) -> list[str]:
        return [path.parent.name for path in sorted((self.folder / place).glob("runs/*/journal"))]


@pytest.fixture
def bench(tmp_path: Path, repository: Path) -> Any:
    with serving(mending) as model:
        yield Bench(tmp_path, repository, model)


def test_a_whole_run_journals_each_step(bench: Bench) -> None:
    (told,) = in_processes([bench.start("whole")], bench.folder)
    assert told["kinds"] == ENTRIES
    assert told["result"]["success"]
    assert not told["result"]["resumed"]


def test_a_run_killed_around_any_entry_goes_on_and_pays_for_no_journalled_answer_twice(bench: Bench) -> None:
    places = {f"{when}-{number}": (number, when == "before") for number in range(len(ENTRIES) - 1)
              for when in ("before", "after") if number or when == "after"}  # fmt: skip
    starts = []
    for place, (number, before) in places.items():
        task = {"description": f"add() subtracts. [{place}]"}
        starts += [
            bench.start(place, task=task, kill_at=number, before=before),
            bench.start(place, task=task, resume="all" if number % 2 else None),
        ]
    told = in_processes(starts, bench.folder)
    for (place, (number, before)), killed, resumed in zip(places.items(), told[::2], told[1::2], strict=True):
        assert killed["kinds"] == ENTRIES[: number + (not before)], place
        result = resumed["result"]
        assert result["success"], (place, result["error"])
        assert result["resumed"], place
        assert not [one for one in result["warnings"] if "journal" in one], place
        (run_id,) = bench.journal_ids(place)
        assert result["run_id"] == run_id, place
        paid_twice = before and number in AN_ANSWER_IS_ASKED_AGAIN
        assert bench.questions(place) == 2 + paid_twice, place
        assert result["usage"]["calls"] == 2, place
        assert bench.kept_refs(place) == [f"refs/necrocode/runs/{run_id}/{number}" for number in (1, 2)], place
        branch = f"feature/task-{place}-1.1-mend-add"
        assert git(bench.repository, "rev-parse", branch) == result["impl_result"]["commit"], place
        assert [one["outcome"] for one in result["rounds"]] == ["tests-failed", "accepted"], place
        assert killed["kinds"] + resumed["kinds"] == ENTRIES, place
