"""Whole runs with registry, pool and store behind HTTP, told from what the services themselves have on record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    ArtifactStoreClient,
    LocalArtifactStore,
    LocalRepoPool,
    LocalTaskRegistry,
    RepoPoolClient,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    TaskContext,
    TaskRegistryClient,
)
from necrocode.agent_runner._git import Git
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
from tests.contracts.lost_answers import lose_answers
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import CALC_TEST, CALC_TEST_COMMAND, FIXED_CALC, files_at, git
from tests.support.served import served as serving
from tests.support.wire_service import PoolService, StoreService

TOKEN = "a-token-for-tests"
GOOD_ANSWER = f"calc.py\n```python\n{FIXED_CALC}```\n"
USELESS_ANSWER = "calc.py\n```python\ndef add(a, b):\n    return 0\n```\n"
BRANCH = "feature/task-電卓-1.1-足し算を直す"
SLOTS = 2


@dataclass
class Site:
    """The three services, and the embedded objects that hold their records."""

    folder: Path
    repository: Path
    registry_url: str
    registry: LocalTaskRegistry
    pool: PoolService
    store: StoreService

    def task(self, **changes: Any) -> TaskContext:
        values: dict[str, Any] = {
            "task_id": "1.1",
            "spec_name": "電卓",
            "title": "足し算を直す",
            "description": "add() subtracts.",
            "repo_url": str(self.repository),
            "test_commands": [CALC_TEST_COMMAND],
        }
        return TaskContext(**(values | changes))

    def orchestrator(self, *answers: Any, **options: Any) -> RunnerOrchestrator:
        config = RunnerConfig(
            task_registry_url=self.registry_url,
            repo_pool_url=self.pool.url,
            artifact_store_url=self.store.url,
            service_token=TOKEN,
            state_dir=self.folder / "runner",
            runner_id="runner-1",
        )
        return RunnerOrchestrator(config, llm=ScriptedLLM(answers), **options)

    def status(self) -> str:
        return self.registry.get_task("1.1", spec_name="電卓").status

    def events(self) -> list[str]:
        return [one.event_type for one in self.registry.list_events("1.1", spec_name="電卓")]

    def stored(self, result: RunnerResult) -> dict[str, bytes]:
        """The artifacts of a run as the store hands them out, checked against the registry's record of them."""
        found = {}
        with ArtifactStoreClient(self.store.url, token=TOKEN) as client:
            for record in self.registry.list_artifacts(result.task_id, spec_name=result.spec_name):
                content = client.download(record.uri.rpartition("/artifacts/")[2])
                assert record.size_bytes == len(content)
                assert record.metadata["sha256"] == hashlib.sha256(content).hexdigest()
                assert record.metadata["run_id"] == result.run_id
                found[record.type] = content
        assert set(found) == {artifact.type for artifact in result.artifacts}
        return found

    def assert_all_slots_are_free(self) -> None:
        slots = [self.pool.pool.allocate_slot(str(self.repository), "test") for _ in range(SLOTS)]
        for slot in slots:
            self.pool.pool.release_slot(slot.slot_id, lease_token=slot.lease_token)


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> Iterator[Site]:
    served = tmp_path / "served"
    pool = LocalRepoPool(served / "pool", Git(served / "git"), pool_size=SLOTS)
    with (
        LocalTaskRegistry(f"sqlite:///{served / 'registry.db'}") as registry,
        serving(create_app(task_registry_service(registry), token=TOKEN)) as registry_url,
        PoolService(pool, token=TOKEN) as pool_service,
        StoreService(LocalArtifactStore(served / "store"), token=TOKEN) as store_service,
    ):
        yield Site(tmp_path, repository, registry_url, registry, pool_service, store_service)


def test_a_task_becomes_a_tested_commit_and_every_service_knows(site: Site) -> None:
    result = site.orchestrator(GOOD_ANSWER).run(site.task())
    assert (result.success, result.error, result.reported, result.warnings) == (True, None, "yes", ())
    assert files_at(site.repository, BRANCH) == {"calc.py": FIXED_CALC.encode(), "test_calc.py": CALC_TEST.encode()}
    record = site.registry.get_task("1.1", spec_name="電卓")
    assert (record.status, record.attempt, record.title) == ("done", 1, "足し算を直す")
    assert record.metadata["commit"] == git(site.repository, "rev-parse", BRANCH)
    assert site.events() == [
        "run_started", "slot_allocated", "implementation_started", "implementation_completed", "tests_completed",
        "branch_delivered", "run_finished",
    ]  # fmt: skip
    stored = site.stored(result)
    assert set(stored) == {"diff", "test", "transcript", "log", "manifest"}
    git(site.repository, "apply", "--check", "-", stdin=stored["diff"])
    assert json.loads(stored["test"])["success"] is True
    site.assert_all_slots_are_free()


def test_nothing_is_kept_on_the_runners_side(site: Site) -> None:
    site.orchestrator(GOOD_ANSWER).run(site.task())
    left = {path.name for path in (site.folder / "runner").iterdir()}
    assert left.isdisjoint({"registry.db", "pool", "artifacts"})


def test_failing_tests_are_on_record_and_nothing_is_delivered(site: Site) -> None:
    result = site.orchestrator(USELESS_ANSWER).run(site.task())
    assert (result.success, result.status, result.reported) == (False, "failed", "yes")
    assert git(site.repository, "branch", "--format=%(refname:short)") == "main"
    assert site.status() == "failed"
    assert site.events()[-2:] == ["tests_completed", "run_finished"]
    finished = site.registry.list_events("1.1", spec_name="電卓")[-1].data
    assert (finished["status"], finished["tests_passed"], finished["run_id"]) == ("failed", False, result.run_id)
    assert (finished["error_type"], finished["retryable"]) == ("TestsFailed", False)
    stored = site.stored(result)
    assert json.loads(stored["test"])["success"] is False
    assert "AssertionError" in stored["log"].decode()
    site.assert_all_slots_are_free()


def test_a_failed_task_can_be_done_by_a_second_run(site: Site) -> None:
    for answer in (USELESS_ANSWER, GOOD_ANSWER):
        site.orchestrator(answer).run(site.task())
    record = site.registry.get_task("1.1", spec_name="電卓")
    assert (record.status, record.attempt) == ("done", 2)


def test_a_repository_that_is_not_there_is_told_as_such(site: Site) -> None:
    result = site.orchestrator(GOOD_ANSWER).run(site.task(repo_url="/none/here"))
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("RepositoryNotFoundError", "allocate")
    assert result.error_details.retryable is False
    assert site.status() == "failed"


def test_a_run_over_a_bad_network_has_each_effect_once(site: Site) -> None:
    clock = FakeClock()
    with (
        TaskRegistryClient(site.registry_url, token=TOKEN, clock=clock) as registry,
        RepoPoolClient(site.pool.url, token=TOKEN, clock=clock) as pool,
        ArtifactStoreClient(site.store.url, token=TOKEN, clock=clock) as store,
    ):
        services: list[Any] = [registry, pool, store]
        for client in services:
            lose_answers(client, 3)
        orchestrator = site.orchestrator(GOOD_ANSWER, task_registry=registry, repo_pool=pool, artifact_store=store)
        result = orchestrator.run(site.task())
    assert (result.success, result.warnings) == (True, ())
    assert site.status() == "done"
    assert len(site.events()) == len(set(site.events())) == 7
    assert set(site.stored(result)) == {"diff", "test", "transcript", "log", "manifest"}
    assert len(site.registry.list_artifacts("1.1", spec_name="電卓")) == 5
    site.assert_all_slots_are_free()


def test_six_tasks_at_once_share_two_slots(site: Site) -> None:
    orchestrator = site.orchestrator(*[GOOD_ANSWER] * 6)
    results = at_once(lambda number: orchestrator.run(site.task(task_id=f"2.{number}")), range(6))
    assert [getattr(result, "error", result) for result in results] == [None] * 6
    registry = site.registry
    assert {registry.get_task(f"2.{number}", spec_name="電卓").status for number in range(6)} == {"done"}
    assert len(git(site.repository, "branch", "--format=%(refname:short)").split()) == 7
    site.assert_all_slots_are_free()


def test_a_wrong_token_is_told_before_anything_is_done(site: Site) -> None:
    with TaskRegistryClient(site.registry_url, token="another-token", clock=FakeClock()) as registry:
        result = site.orchestrator(GOOD_ANSWER, task_registry=registry).run(site.task())
    assert result.error_details is not None
    assert result.error_details.type == "AuthenticationError"
    assert "another-token" not in result.model_dump_json()
    assert git(site.repository, "branch", "--format=%(refname:short)") == "main"
