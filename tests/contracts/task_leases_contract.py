"""What a registry does for a run that wants a task of its own: claims of a named task, and who may take one over."""

from __future__ import annotations

from datetime import timedelta

import pytest

from necrocode.agent_runner import (
    HandedLease,
    IllegalTransitionError,
    LocalTaskRegistry,
    StaleLeaseError,
    TaskContextValidationError,
    TaskLeasedError,
    TaskLeases,
    TaskNotFoundError,
)
from necrocode.agent_runner.records import ClaimedTask, TaskDefinition, TaskSet
from tests.contracts.task_registry_contract import task
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock


def take(
    registry: LocalTaskRegistry, runner_id: str = "r", task_id: str = "1.1", *, key: str | None = None
) -> ClaimedTask:
    return registry.claim_this_task(
        task_id, runner_id, lease_seconds=60, spec_name=task().spec_name, idempotency_key=key
    )


class TaskLeasesContract:
    """Inherit it, and say what the registry under test is; ``clock`` is the registry's own."""

    def test_a_registry_with_leases_is_known_as_one(self, registry: LocalTaskRegistry) -> None:
        assert isinstance(registry, TaskLeases)

    def test_a_named_task_is_held_whatever_else_waits(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        registry.register_task(task("1.0"))
        registry.register_task(task())
        held = take(registry, "me")
        assert (held.task_id, held.status, held.attempt, held.lease_holder) == ("1.1", "running", 1, "me")
        assert (held.lease.epoch, held.lease.cancel_requested) == (1, False)
        assert held.lease.expires_at == clock.now() + timedelta(seconds=60)
        assert registry.renew_lease("1.1", held.lease.token, lease_seconds=60).epoch == 1
        assert registry.get_task("1.0").status == "ready"

    def test_another_runner_is_told_who_holds_it_and_until_when(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        registry.register_task(task())
        first = take(registry, "one")
        clock.sleep(59)
        until = f"{first.lease.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        with pytest.raises(TaskLeasedError, match=f"is held by one until {until}") as caught:
            take(registry, "two")
        assert (caught.value.retryable, caught.value.status_code) == (True, 409)
        assert registry.renew_lease("1.1", first.lease.token, lease_seconds=60).epoch == 1

    def test_a_lease_that_ran_out_is_taken_over(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        registry.register_task(task())
        first = take(registry, "one")
        clock.sleep(60)
        second = take(registry, "two")
        assert (second.lease.epoch, second.attempt, second.lease.lineage) == (2, 2, first.lease.lineage)
        with pytest.raises(StaleLeaseError):
            registry.renew_lease("1.1", first.lease.token, lease_seconds=60)
        with pytest.raises(StaleLeaseError):
            registry.add_event("1.1", "late", lease_epoch=first.lease.epoch)

    def test_a_runner_takes_over_from_itself(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        first, second = take(registry), take(registry)
        assert second.lease.epoch == first.lease.epoch + 1
        with pytest.raises(StaleLeaseError):
            registry.release_task("1.1", first.lease.token)

    def test_a_task_that_runs_without_a_lease_is_taken(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        registry.update_task_status("1.1", "running")
        assert take(registry).lease.epoch == 1

    def test_a_wish_to_stop_outlives_the_runner_that_did_not_hear_it(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        registry.register_task(task())
        take(registry, "one")
        registry.cancel_task("1.1")
        clock.sleep(61)
        assert take(registry, "two").lease.cancel_requested

    def test_what_cannot_run_is_not_held(self, registry: LocalTaskRegistry) -> None:
        tasks = (TaskDefinition(task_id="1"), TaskDefinition(task_id="2", dependencies=("1",)))
        registry.create_taskset(TaskSet(spec_name=task().spec_name, tasks=tasks))
        with pytest.raises(IllegalTransitionError, match=r"It waits for 1 \(ready\)"):
            take(registry, task_id="2")
        registry.update_task_status("1", "done", lease_epoch=take(registry, task_id="1").lease.epoch)
        with pytest.raises(IllegalTransitionError, match="it has ended"):
            take(registry, task_id="1")
        with pytest.raises(TaskNotFoundError):
            take(registry, task_id="3")

    def test_of_many_that_want_it_one_gets_it(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        got = at_once(lambda number: take(registry, f"runner-{number}"), range(8))
        assert [type(one) for one in got].count(TaskLeasedError) == 7
        assert [one.lease.epoch for one in got if isinstance(one, ClaimedTask)] == [1]

    def test_the_same_key_is_the_same_claim(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        assert take(registry, key="k") == take(registry, key="k")
        assert registry.get_task("1.1").epoch == 1

    def test_each_task_counts_by_itself(self, registry: LocalTaskRegistry) -> None:
        for task_id in ("1.1", "1.2"):
            registry.register_task(task(task_id))
        lineages = {take(registry, task_id=task_id).lease.lineage for task_id in ("1.1", "1.2")}
        assert len(lineages) == 2
        assert "" not in lineages

    def test_a_claim_becomes_a_task_to_run(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task(acceptance_criteria=["a"], metadata={"k": 1}))
        held = registry.claim_task("dispatcher", lease_seconds=60)
        assert held is not None
        made = held.task_context(repo_url="/r", test_commands=["true"])
        assert made.model_copy(update={"lease": None}) == task(
            acceptance_criteria=["a"], metadata={"k": 1}, repo_url="/r", test_commands=["true"]
        )
        assert made.lease == HandedLease(token=held.lease.token, epoch=1, lineage=held.lease.lineage)
        assert held.lease.token not in made.model_dump_json()
        assert held.lease.token not in repr(made)
        with pytest.raises(TaskContextValidationError, match="repo_url"):
            held.task_context()
