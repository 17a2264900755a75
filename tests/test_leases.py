"""Whole runs under leases on their tasks: who may begin, who must stop, and whose writes count."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from necrocode.agent_runner import (
    LocalArtifactStore,
    LocalTaskRegistry,
    Progress,
    RunCancelledError,
    RunnerResult,
    ScriptedLLM,
    ServiceConnectionError,
    StaleLeaseError,
    TaskContext,
    TaskLeasedError,
    TaskRegistry,
    TaskRegistryClient,
)
from necrocode.agent_runner._clock import SYSTEM_CLOCK
from necrocode.agent_runner.records import ClaimedTask, TaskDefinition, TaskLease
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
from tests.support.bench import BRANCH, GOOD_ANSWER, USELESS_ANSWER, Bench, artifacts
from tests.support.cancelling import SOON_SECONDS, Stopwatch
from tests.support.repositories import git
from tests.support.served import served as serving
from tests.support.zombie import LEASE_SECONDS, stopped_while_it_asks

WAIT_SECONDS = 60
HOUR = timedelta(hours=1)


class OffsetClock:
    """A machine whose wall clock is wrong."""

    def __init__(self, offset: timedelta) -> None:
        self.offset = offset

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now() + self.offset

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    def sleep(self, seconds: float) -> None:
        SYSTEM_CLOCK.sleep(seconds)


class PlainRegistry:
    """A registry with the four calls that every registry has, and no others."""

    def __init__(self, registry: LocalTaskRegistry) -> None:
        self.register_task = registry.register_task
        self._registry = registry

    def update_task_status(self, task_id: str, status: str, metadata: Any = None, *, spec_name: Any = None) -> None:
        self._registry.update_task_status(task_id, status, metadata, spec_name=spec_name)

    def add_event(self, task_id: str, event_type: str, data: Any = None, *, spec_name: Any = None) -> None:
        self._registry.add_event(task_id, event_type, data, spec_name=spec_name)

    def add_artifact(
        self, task_id: str, artifact_type: str, uri: str, size_bytes: Any = None, metadata: Any = None,
        *, spec_name: Any = None,
    ) -> None:  # fmt: skip
        self._registry.add_artifact(task_id, artifact_type, uri, size_bytes, metadata, spec_name=spec_name)


class WatchedRegistry(LocalTaskRegistry):
    """Tells of renewals, and keeps the tokens that it gave."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.renewals = threading.Semaphore(0)
        self.tokens: list[str] = []

    def claim_this_task(self, *arguments: Any, **more: Any) -> ClaimedTask:
        claimed = super().claim_this_task(*arguments, **more)
        self.tokens.append(claimed.lease.token)
        return claimed

    def renew_lease(self, *arguments: Any, **more: Any) -> TaskLease:
        renewed = super().renew_lease(*arguments, **more)
        self.renewals.release()
        return renewed


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


def url(bench: Bench) -> str:
    return f"sqlite:///{bench.state_dir / 'registry.db'}"


def claimed(bench: Bench, lease_seconds: float = 60) -> ClaimedTask:
    """The task, claimed as a dispatcher does it."""
    with bench.registry as registry:
        registry.put_task(TaskDefinition(task_id="1.1", title="Mend add"), spec_name="calc")
        found = registry.claim_task("dispatcher", lease_seconds=lease_seconds)
    assert found is not None
    return found


def handed(bench: Bench, claim: ClaimedTask) -> TaskContext:
    return claim.task_context(**bench.task().model_dump(include={"repo_url", "test_commands", "description"}))


def overtake(bench: Bench, runner_id: str = "other") -> ClaimedTask:
    """Take the task over, as a machine does whose clock says that the lease has run out."""
    with LocalTaskRegistry(url(bench), clock=OffsetClock(HOUR)) as registry:
        return registry.claim_this_task("1.1", runner_id, lease_seconds=60, spec_name="calc")


def error_of(result: RunnerResult) -> tuple[str, str | None]:
    assert result.error_details is not None
    return result.error_details.type, result.error_details.step


@contextmanager
def unchanged(bench: Bench) -> Iterator[None]:
    """Nothing that others see changes meanwhile: registry, artifacts, branches."""
    before = seen(bench)
    yield
    assert seen(bench) == before


def seen(bench: Bench) -> object:
    with bench.registry as registry:
        task = registry.get_task("1.1", spec_name="calc")
        told = (task, registry.list_events("1.1", spec_name="calc"), registry.list_artifacts("1.1", spec_name="calc"))
    stored = sorted(str(path) for path in (bench.state_dir / "artifacts").rglob("*") if "+" not in str(path))
    return told, stored, git(bench.repository, "for-each-ref")


# --- a run that goes well


def test_a_run_holds_its_task_until_it_has_reported(bench: Bench) -> None:
    held: list[object] = []

    def answer(_messages: object) -> str:
        with bench.registry as registry:
            task = registry.get_task("1.1", spec_name="calc")
            held.append((task.lease_holder, task.status, task.epoch))
        return GOOD_ANSWER

    result = bench.run(answer, runner_id="me")
    assert (result.success, result.lease_epoch, result.warnings) == (True, 1, ())
    assert held == [("me", "running", 1)]
    with bench.registry as registry:
        task = registry.get_task("1.1", spec_name="calc")
    assert (task.status, task.lease_holder, task.attempt) == ("done", None, 1)
    assert git(bench.repository, "log", "-1", "--format=%(trailers:key=Necrocode-Epoch,valueonly)", BRANCH) == "1"


def test_a_task_that_a_dispatcher_claimed_goes_on_under_its_lease(bench: Bench) -> None:
    claim = claimed(bench)
    result = bench.run(GOOD_ANSWER, task=handed(bench, claim))
    assert (result.success, result.lease_epoch) == (True, claim.epoch)
    with bench.registry as registry:
        task = registry.get_task("1.1", spec_name="calc")
    assert (task.status, task.epoch, task.attempt, task.lease_holder) == ("done", 1, 1, None)


def test_the_manifest_is_stored_last_and_lists_the_others(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    *others, last = result.artifacts
    assert last.type == "manifest"
    listing = json.loads(artifacts(result)["manifest"])
    assert listing["artifacts"] == [one.model_dump() for one in others]
    assert (listing["run_id"], listing["task_id"], listing["spec_name"]) == (result.run_id, "1.1", "calc")
    assert (listing["lease_epoch"], listing["missing"], listing["schema_version"]) == (1, [], 1)


def test_the_secret_of_a_lease_is_written_nowhere(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    claim = claimed(bench)
    first = bench.run(GOOD_ANSWER, task=handed(bench, claim))
    with WatchedRegistry(url(bench)) as registry:
        second = bench.run(GOOD_ANSWER, services={"task_registry": registry})
        tokens = [claim.lease.token, *registry.tokens]
        told = str(seen(bench)) + bench.events_with_data() + caplog.text
    told += "".join(result.model_dump_json() + "".join(artifacts(result).values()) for result in (first, second))
    assert len(tokens) == 2
    assert not [token for token in tokens if token in told]


def test_a_registry_without_leases_works_as_ever(bench: Bench) -> None:
    with bench.registry as registry:
        plain: TaskRegistry = PlainRegistry(registry)
        result = bench.run(GOOD_ANSWER, services={"task_registry": plain})
        task = registry.get_task("1.1", spec_name="calc")
    assert (result.success, result.lease_epoch, task.status, task.epoch) == (True, None, "done", 0)
    assert "gives no leases" in artifacts(result)["log"]
    assert "lease_epoch" not in json.loads(artifacts(result)["manifest"])


# --- who may not begin


def test_of_two_runs_of_one_task_one_begins(bench: Bench) -> None:
    others: list[RunnerResult] = []
    unasked = ScriptedLLM([GOOD_ANSWER])

    def answer(_messages: object) -> str:
        others.append(bench.orchestrator(unasked, runner_id="other").run(bench.task()))
        others.append(bench.orchestrator(unasked, runner_id="me").run(bench.task()))
        return GOOD_ANSWER

    assert bench.run(answer, runner_id="me").success
    assert [error_of(result) for result in others] == [("TaskLeasedError", "prepare")] * 2
    assert "is held by me until" in str(others[0].error)
    assert "another run of this runner, me" in str(others[1].error)
    assert all(result.error_details is not None and result.error_details.retryable for result in others)
    assert unasked.calls == []
    assert [result.artifacts for result in others] == [(), ()]
    assert bench.events().count("run_started") == 1


def test_a_lease_that_another_has_by_now_pays_for_nothing_and_reopens_nothing(bench: Bench) -> None:
    claim = claimed(bench)
    with LocalTaskRegistry(url(bench), clock=OffsetClock(HOUR)) as registry:
        assert bench.run(GOOD_ANSWER, services={"task_registry": registry}).success
    unasked = ScriptedLLM([GOOD_ANSWER])
    with unchanged(bench):
        result = bench.orchestrator(unasked).run(handed(bench, claim))
    assert error_of(result) == ("StaleLeaseError", "prepare")
    assert unasked.calls == []


def test_a_lease_for_a_registry_that_knows_none_is_told(bench: Bench) -> None:
    claim = claimed(bench)
    with bench.registry as registry:
        result = bench.run(GOOD_ANSWER, task=handed(bench, claim), services={"task_registry": PlainRegistry(registry)})
    assert error_of(result) == ("ConfigurationError", "prepare")


def test_a_task_that_shall_stop_is_not_begun(bench: Bench) -> None:
    claim = claimed(bench)
    with bench.registry as registry:
        registry.cancel_task("1.1", spec_name="calc")
    unasked = ScriptedLLM([GOOD_ANSWER])
    result = bench.orchestrator(unasked).run(handed(bench, claim))
    assert error_of(result)[0] == "RunCancelledError"
    assert unasked.calls == []
    with bench.registry as registry:
        assert registry.get_task("1.1", spec_name="calc").lease_holder is None


def test_a_run_that_could_not_begin_gives_its_task_back(bench: Bench) -> None:
    class Refusing(LocalTaskRegistry):
        def update_task_status(self, *_arguments: Any, **_more: Any) -> None:
            raise ServiceConnectionError("away")

    with Refusing(url(bench)) as registry:
        result = bench.run(GOOD_ANSWER, services={"task_registry": registry})
        task = registry.get_task("1.1", spec_name="calc")
    assert error_of(result) == ("ServiceConnectionError", "prepare")
    assert (task.status, task.lease_holder) == ("ready", None)
    assert bench.run(GOOD_ANSWER).success


def test_a_run_that_is_cancelled_while_it_claims_its_task_gives_it_back(bench: Bench) -> None:
    watch = Stopwatch()

    def slow(app: ASGIApp) -> ASGIApp:
        async def called(scope: Scope, receive: Receive, send: Send) -> None:
            async def late(message: Message) -> None:
                if scope.get("path", "").endswith("/claim") and watch.asked_at is None:
                    watch.hang()
                    await asyncio.sleep(1)
                await send(message)

            await app(scope, receive, late)

        return called

    with bench.registry as registry, serving(slow(create_app(task_registry_service(registry)))) as address:
        orchestrator = bench.orchestrator(ScriptedLLM([]), services={"task_registry": TaskRegistryClient(address)})
        result = watch.run(orchestrator, bench.task())
        task = registry.get_task("1.1", spec_name="calc")
    assert error_of(result) == ("RunCancelledError", "prepare")
    assert (result.warnings, watch.seconds < SOON_SECONDS) == ((), True)
    assert (task.status, task.lease_holder) == ("ready", None)


@pytest.mark.parametrize(
    ("again", "warned"), [(TaskLeasedError("another"), False), (ServiceConnectionError("away"), True)]
)
def test_a_claim_that_cannot_be_given_back_is_told_where_it_may_have_come_through(
    bench: Bench, again: Exception, warned: bool
) -> None:
    class Gone(LocalTaskRegistry):
        answers = iter([RunCancelledError("Somebody asked."), again])

        def claim_this_task(self, *_arguments: Any, **_more: Any) -> ClaimedTask:
            raise next(self.answers)

    with Gone(url(bench)) as registry:
        result = bench.run(GOOD_ANSWER, services={"task_registry": registry})
    assert error_of(result) == ("RunCancelledError", "prepare")
    assert [one for one in result.warnings if "is not known" in one] == list(result.warnings)
    assert bool(result.warnings) is warned


def test_a_run_that_fails_ends_its_lease(bench: Bench) -> None:
    assert bench.run(USELESS_ANSWER).status == "failed"
    with bench.registry as registry:
        task = registry.get_task("1.1", spec_name="calc")
    assert (task.status, task.lease_holder) == ("failed", None)


# --- who must stop


def test_a_run_that_is_overtaken_stops_and_writes_nothing_more(bench: Bench) -> None:
    before: list[object] = []

    def answer(_messages: object) -> str:
        overtake(bench)
        before.append(seen(bench))
        return GOOD_ANSWER

    result = bench.run(answer)
    assert error_of(result)[0] == "StaleLeaseError"
    assert (result.status, result.reported, result.artifacts, result.push_result) == ("failed", "no", (), None)
    assert [seen(bench)] == before
    assert any("Nothing was uploaded or reported" in one for one in result.warnings)
    with bench.registry as registry:
        assert registry.get_task("1.1", spec_name="calc").lease_holder == "other"
    bench.assert_nothing_is_left()


def test_what_an_overtaken_run_has_made_is_kept(bench: Bench) -> None:
    def step_in(progress: Progress) -> None:
        if progress.step == "deliver" and progress.seconds is None:
            overtake(bench)

    result = bench.run(GOOD_ANSWER, services={"on_progress": step_in})
    assert result.impl_result is not None
    (mirror,) = bench.state_dir.glob("pool/*/mirror.git")
    assert git(mirror, "rev-parse", result.impl_result.ref) == result.impl_result.commit


def test_a_wish_to_stop_arrives_with_a_heartbeat(bench: Bench) -> None:
    with WatchedRegistry(url(bench)) as registry:

        def answer(_messages: object) -> str:
            registry.cancel_task("1.1", spec_name="calc")
            while registry.renewals.acquire(blocking=False):
                pass
            for _ in range(2):  # the first may have been under way
                assert registry.renewals.acquire(timeout=WAIT_SECONDS)
            return GOOD_ANSWER

        result = bench.run(answer, services={"task_registry": registry}, lease_seconds=3)
        task = registry.get_task("1.1", spec_name="calc")
    assert error_of(result)[0] == "RunCancelledError"
    assert "The task registry asks this run to stop." in str(result.error)
    assert result.push_result is None
    assert task.lease_holder is None


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wall_clock_that_is_set_meanwhile_disturbs_no_run(bench: Bench, hours: int) -> None:
    clock = OffsetClock(timedelta(0))
    with LocalTaskRegistry(url(bench), clock=clock) as registry:

        def answer(_messages: object) -> str:
            clock.offset = timedelta(hours=hours)
            return GOOD_ANSWER

        result = bench.run(answer, services={"task_registry": registry, "clock": clock})
    assert (result.success, result.warnings) == (True, ())


# --- the zombie


def second_run(bench: Bench) -> RunnerResult:
    """A run of another runner, as soon as the task may be had."""
    for _ in range(WAIT_SECONDS * 10):
        result = bench.run(GOOD_ANSWER, runner_id="successor", lease_seconds=LEASE_SECONDS)
        if result.error_details is None or result.error_details.type != "TaskLeasedError":
            return result
        threading.Event().wait(0.1)
    raise AssertionError("the lease did not run out")


def skewed_run(bench: Bench) -> RunnerResult:
    """A run of a runner whose clock is an hour ahead, so that the zombie wakes well within its lease."""
    with LocalTaskRegistry(url(bench), clock=OffsetClock(HOUR)) as registry:
        return bench.run(GOOD_ANSWER, runner_id="successor", services={"task_registry": registry})


@pytest.mark.parametrize("successor", [second_run, skewed_run])
def test_a_zombie_changes_nothing(bench: Bench, successor: Callable[[Bench], RunnerResult]) -> None:
    with stopped_while_it_asks(bench) as zombie:
        assert successor(bench).lease_epoch == 2
        assert bench.status() == "done"
        with unchanged(bench):
            result = zombie.wake()
    assert (result.runner_id, result.lease_epoch) == ("zombie", 1)
    assert (error_of(result)[0], result.status, result.reported) == ("StaleLeaseError", "failed", "no")
    assert (result.artifacts, result.push_result) == ((), None)
    bench.assert_nothing_is_left()


def test_each_single_write_of_a_zombie_is_refused(bench: Bench) -> None:
    first = bench.run(USELESS_ANSWER)
    second = bench.run(GOOD_ANSWER)
    assert (first.lease_epoch, second.lease_epoch) == (1, 2)
    lineage = git(bench.repository, "log", "-1", "--format=%(trailers:key=Necrocode-Lineage,valueonly)", BRANCH)
    place = {"task_id": "1.1", "spec_name": "calc", "run_id": first.run_id}
    metadata = place | {"lease_epoch": 1, "lease_lineage": lineage}
    store = LocalArtifactStore(bench.state_dir / "artifacts")
    with bench.registry as registry, unchanged(bench):
        writes: list[Callable[[], object]] = [
            lambda: registry.update_task_status("1.1", "failed", spec_name="calc", lease_epoch=1),
            lambda: registry.add_event("1.1", "late", spec_name="calc", lease_epoch=1),
            lambda: registry.add_artifact("1.1", "log", "file:///late", spec_name="calc", lease_epoch=1),
            lambda: store.upload("log", b"late", metadata),
            lambda: store.upload("manifest", b"{}", metadata),
        ]
        for write in writes:
            with pytest.raises(StaleLeaseError):
                write()


def test_a_registry_made_anew_does_not_lock_out_its_runs(bench: Bench) -> None:
    for _ in range(3):
        assert bench.run(GOOD_ANSWER).success
    for file in bench.state_dir.glob("registry.db*"):
        file.unlink()
    again = bench.run(GOOD_ANSWER)
    assert (again.success, again.lease_epoch, again.warnings) == (True, 1, ())
