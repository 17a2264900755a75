"""Each service spoiled in each way from each step of a run on: every run ends in the state that is documented.

The table of docs/guarantees.md is this module's ``EXPECTED``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from necrocode.agent_runner import RunnerOrchestrator, RunnerResult, TaskContext
from tests.faults.site import SERVICES, SPEC, Site, site
from tests.support.fault_proxy import FAULTS, Fault
from tests.support.repositories import FIXED_CALC, files_at

STEPS = ("prepare", "allocate", "examine", "generate", "apply", "test", "deliver", "upload", "report")
SLOW_ONLY: tuple[Fault, ...] = ("latency", "rate")
NEEDED = {"task_registry": "prepare", "repo_pool": "allocate", "artifact_store": "prepare", "llm": "generate"}
"""The last step for which the service must answer; a run that begins this step without it fails."""
EVERY = 13


@dataclass(frozen=True)
class Cell:
    service: str
    step: str
    fault: Fault

    @property
    def name(self) -> str:
        return f"{self.service}-{self.step}-{self.fault}".replace("_", "-")

    @property
    def fails(self) -> bool:
        return self.fault not in SLOW_ONLY and STEPS.index(self.step) <= STEPS.index(NEEDED[self.service])


CELLS = [Cell(service, step, fault) for service in SERVICES for step in STEPS for fault in FAULTS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as one:
        yield one


@pytest.mark.parametrize(
    "cell",
    [pytest.param(one, id=one.name, marks=[pytest.mark.soak] if at % EVERY else []) for at, one in enumerate(CELLS)],
)
def test_a_run_beside_a_spoiled_service_ends_as_documented(place: Site, cell: Cell) -> None:
    task = place.task(cell.name)
    result = place.run(task, cell.service, cell.step, cell.fault)
    if cell.fails:
        assert_failed_without_paying(place, task, result, cell)
    else:
        assert_done(place, task, result)


def assert_failed_without_paying(place: Site, task: TaskContext, result: RunnerResult, cell: Cell) -> None:
    assert result.status == "failed"
    assert result.error_details is not None
    assert result.error_details.retryable, "another run may do better"
    assert place.asked.get(task.title, 0) <= (cell.fault == "cut_response" and cell.service == "llm")
    again = place.run(task, cell.service, "nothing", None)
    assert (again.status, again.error) == ("done", None)
    assert_delivered(place, task)


def assert_done(place: Site, task: TaskContext, result: RunnerResult) -> None:
    assert (result.status, result.error) == ("done", None)
    with place.orchestrator(task.title, lambda _progress: None) as orchestrator:
        flush(orchestrator)
    assert place.asked[task.title] == 1
    assert_delivered(place, task)


def flush(orchestrator: RunnerOrchestrator) -> None:
    orchestrator.flush_outbox()


def assert_delivered(place: Site, task: TaskContext) -> None:
    assert files_at(Path(task.repo_url or ""), task.branch)["calc.py"] == FIXED_CALC.encode()
    assert place.registry.get_task(task.task_id, spec_name=SPEC).status == "done"
    ends = [one for one in place.registry.list_events(task.task_id, spec_name=SPEC) if one.event_type == "run_finished"]
    assert len([one for one in ends if one.data["status"] == "done"]) == 1
    records = place.registry.list_artifacts(task.task_id, spec_name=SPEC)
    types = [one.type for one in records]
    assert {"diff", "test", "log", "transcript"} <= set(types)
    for record in records:
        assert place.store.download(record.uri.rpartition("/artifacts/")[2])
    slot = place.pool.allocate_slot(task.repo_url or "", "the test", timeout_seconds=0)
    place.pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
