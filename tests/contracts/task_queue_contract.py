"""What a registry of ours does beyond the Protocol: task sets, claims, leases, search, the events of all tasks."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import Any

import pytest

from necrocode.agent_runner import (
    IllegalTransitionError,
    LocalTaskRegistry,
    ServiceError,
    StaleLeaseError,
    TaskContextValidationError,
    TaskNotFoundError,
)
from necrocode.agent_runner.errors import IdempotencyKeyReusedError
from necrocode.agent_runner.records import ClaimedTask, TaskDefinition, TaskSet
from tests.contracts.task_registry_contract import task
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock


def definition(task_id: str, *dependencies: str, **changes: Any) -> TaskDefinition:
    return TaskDefinition(task_id=task_id, title=f"T{task_id}", dependencies=dependencies, **changes)


def taskset(*tasks: TaskDefinition, spec_name: str = "chat", **changes: Any) -> TaskSet:
    return TaskSet(spec_name=spec_name, tasks=tasks, **changes)


def states(registry: LocalTaskRegistry, spec_name: str = "chat") -> dict[str, str]:
    return {one.task_id: one.status for one in registry.get_taskset(spec_name).tasks}


def claimed(registry: LocalTaskRegistry, **wishes: Any) -> ClaimedTask:
    found = registry.claim_task("r", **{"lease_seconds": 60, **wishes})
    assert found is not None
    return found


class TaskQueueContract:
    """Inherit it, and say what the registry under test is; ``clock`` is the registry's own."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def registry(self) -> LocalTaskRegistry:
        """An empty registry."""
        raise NotImplementedError

    # --- task sets

    def test_a_task_set_is_put_in_whole(self, registry: LocalTaskRegistry) -> None:
        given = taskset(
            definition("1.1", priority=3, required_skill="backend", metadata={"空": [1]}),
            definition("1.2", "1.1", description="D", acceptance_criteria=("一",)),
            description="チャット",
            metadata={"k": None},
        )
        answered = registry.create_taskset(given)
        assert answered == registry.get_taskset("chat")
        assert (answered.description, answered.metadata) == ("チャット", {"k": None})
        first, second = answered.tasks
        assert (first.task_id, first.status, first.priority, first.required_skill) == ("1.1", "ready", 3, "backend")
        assert (first.metadata, first.title) == ({"空": [1]}, "T1.1")
        assert (second.task_id, second.status, second.dependencies) == ("1.2", "blocked", ("1.1",))
        assert (second.description, second.acceptance_criteria) == ("D", ("一",))

    @pytest.mark.parametrize(
        ("tasks", "told"),
        [
            ([definition("1.1", "1.2"), definition("1.2", "1.1")], "1.1 -> 1.2 -> 1.1"),
            ([definition("1", "1")], "1 -> 1"),
            ([definition("1", "9")], "Task 1 depends on 9"),
            ([definition("1"), definition("1")], "more than one task 1"),
        ],
    )
    def test_a_task_set_that_makes_no_sense_is_refused_whole(
        self, registry: LocalTaskRegistry, tasks: list[TaskDefinition], told: str
    ) -> None:
        with pytest.raises(TaskContextValidationError, match=told):
            registry.create_taskset(taskset(definition("0"), *tasks))
        with pytest.raises(TaskNotFoundError):
            registry.get_taskset("chat")

    @pytest.mark.parametrize("spec_name", ["none", "../x", "a b", ""])
    def test_an_unknown_spec_is_told(self, registry: LocalTaskRegistry, spec_name: str) -> None:
        with pytest.raises(TaskNotFoundError):
            registry.get_taskset(spec_name)

    def test_put_in_again_it_keeps_what_was_worked_on(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(*(definition(str(number)) for number in range(6)), definition("6", "0")))
        for number, walk in enumerate((["running", "done"], ["running"], ["running", "failed"], ["cancelled"])):
            for status in walk:
                registry.update_task_status(str(number), status)
        registry.update_task_status("5", "running")
        registry.update_task_status("5", "ready")
        kept = [TaskDefinition(task_id=str(number), title="new") for number in range(3)]
        registry.create_taskset(taskset(*kept, definition("6", "0", "1"), definition("7", "0")))
        assert states(registry) == {
            "0": "done",
            "1": "running",
            "2": "failed",
            "3": "cancelled",
            "5": "cancelled",
            "6": "blocked",
            "7": "ready",
        }
        assert registry.get_task("0").title == "new"
        registry.update_task_status("1", "done")
        assert states(registry)["6"] == "ready"

    def test_put_in_twice_it_is_as_it_was(self, registry: LocalTaskRegistry) -> None:
        given = taskset(definition("1"), definition("2", "1"))
        before = registry.create_taskset(given)
        assert registry.create_taskset(given) == before

    def test_the_graph_has_tasks_and_who_waits_for_whom(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2", "1")))
        graph = registry.task_graph("chat")
        assert [(node.id, node.title, node.status) for node in graph.nodes] == [
            ("1", "T1", "ready"),
            ("2", "T2", "blocked"),
        ]
        assert [(edge.source, edge.target) for edge in graph.edges] == [("1", "2")]

    # --- dependencies

    def test_a_task_is_freed_when_all_it_waits_for_is_done(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2"), definition("3", "1", "2")))
        for task_id, after in (("1", "blocked"), ("2", "ready")):
            registry.update_task_status(task_id, "running")
            registry.update_task_status(task_id, "done")
            assert states(registry)["3"] == after

    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    def test_what_was_not_done_frees_nobody(self, registry: LocalTaskRegistry, end: str) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2", "1")))
        registry.update_task_status("1", "running")
        registry.update_task_status("1", end)
        assert states(registry)["2"] == "blocked"

    def test_a_task_registered_alone_waits_for_tasks_that_are_known(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task("1"))
        registry.register_task(task("2", dependencies=["1", "unknown"]))
        with pytest.raises(IllegalTransitionError, match=r"It waits for 1 \(ready\)"):
            registry.update_task_status("2", "running")
        registry.update_task_status("1", "running")
        registry.update_task_status("1", "done")
        assert registry.get_task("2").status == "ready"

    def test_a_task_registered_anew_waits_for_what_it_now_depends_on(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task("1"))
        registry.register_task(task("2"))
        registry.register_task(task("2", dependencies=["1"]))
        assert registry.get_task("2").status == "blocked"
        registry.register_task(task("2"))
        assert registry.get_task("2").status == "ready"

    def test_tasks_registered_alone_cannot_wait_for_each_other(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task("1", dependencies=["2"]))
        registry.register_task(task("2", dependencies=["3"]))
        with pytest.raises(TaskContextValidationError, match="3 -> 1 -> 2 -> 3"):
            registry.register_task(task("3", dependencies=["1"]))
        with pytest.raises(TaskNotFoundError):
            registry.get_task("3")

    def test_dependencies_done_at_the_same_moment_free_the_task(self, registry: LocalTaskRegistry) -> None:
        first = [str(number) for number in range(8)]
        registry.create_taskset(taskset(*map(definition, first), definition("last", *first)))
        for task_id in first:
            registry.update_task_status(task_id, "running")
        assert at_once(lambda task_id: registry.update_task_status(task_id, "done"), first) == [None] * 8
        assert states(registry)["last"] == "ready"

    # --- priorities

    def test_a_task_put_in_alone_has_a_priority_that_registering_keeps(self, registry: LocalTaskRegistry) -> None:
        put = registry.put_task(definition("1", priority=7), spec_name="chat")
        assert (put.priority, put.status, put.spec_name) == (7, "ready", "chat")
        registry.register_task(task("1"))
        assert registry.get_task("1").priority == 7

    # --- claims

    def test_a_claim_gives_the_task_and_a_hold_on_it(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        registry.register_task(task())
        found = registry.claim_task("runner-1", lease_seconds=60)
        assert found is not None
        assert (found.task_id, found.status, found.attempt, found.lease_holder) == ("1.1", "running", 1, "runner-1")
        assert (found.epoch, found.lease.epoch, found.lease.cancel_requested) == (1, 1, False)
        assert found.lease.expires_at == found.lease_expires_at == clock.now() + timedelta(seconds=60)
        assert len(found.lease.token) >= 16
        assert registry.claim_task("runner-2", lease_seconds=60) is None

    def test_the_highest_priority_goes_first_then_the_oldest(self, registry: LocalTaskRegistry) -> None:
        priorities = {"1": 0, "2": 5, "3": -1, "4": 5, "5": 0}
        registry.create_taskset(taskset(*(definition(name, priority=high) for name, high in priorities.items())))
        assert [claimed(registry).task_id for _ in priorities] == ["2", "4", "1", "5", "3"]

    def test_a_claim_may_be_for_one_spec(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1")))
        registry.create_taskset(taskset(definition("1"), spec_name="仕様"))
        assert claimed(registry, spec_name="仕様").spec_name == "仕様"
        assert registry.claim_task("r", lease_seconds=60, spec_name="仕様") is None
        assert claimed(registry).spec_name == "chat"

    def test_a_claim_may_be_for_certain_skills(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(
            taskset(
                definition("1", required_skill="ui", priority=9),
                definition("2"),
                definition("3", required_skill="db", priority=1),
            )
        )
        assert claimed(registry, required_skills=["db", "ops"]).task_id == "3"
        assert claimed(registry, required_skills=[]).task_id == "2"
        assert registry.claim_task("r", lease_seconds=1, required_skills=["db"]) is None
        assert claimed(registry).task_id == "1"

    def test_a_blocked_task_is_not_claimed(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2", "1", priority=9)))
        first = claimed(registry)
        assert registry.claim_task("r", lease_seconds=60) is None
        registry.update_task_status(first.task_id, "done", lease_epoch=first.epoch)
        assert claimed(registry).task_id == "2"

    def test_many_at_once_get_each_task_once(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(*(definition(str(number)) for number in range(40))))

        def take(_number: int) -> list[str]:
            found = []
            while (one := registry.claim_task("r", lease_seconds=60)) is not None:
                found.append(one.task_id)
            return found

        got = at_once(take, range(8))
        assert sorted(task_id for some in got for task_id in some) == sorted(map(str, range(40)))  # type: ignore[union-attr]

    # --- leases

    def test_a_lease_that_ran_out_is_for_others(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        registry.register_task(task())
        first = claimed(registry, lease_seconds=60)
        clock.sleep(60)
        second = claimed(registry, lease_seconds=60)
        assert (second.task_id, second.epoch, second.attempt) == ("1.1", 2, 2)
        assert second.lease.token != first.lease.token
        for write in (
            lambda: registry.update_task_status("1.1", "done", lease_epoch=1),
            lambda: registry.add_event("1.1", "e", lease_epoch=1),
            lambda: registry.add_artifact("1.1", "log", "u", lease_epoch=1),
            lambda: registry.renew_lease("1.1", first.lease.token, lease_seconds=60),
            lambda: registry.release_task("1.1", first.lease.token),
        ):
            with pytest.raises(StaleLeaseError) as caught:
                write()
            assert caught.value.retryable is False
        assert registry.list_events("1.1") == ()
        registry.update_task_status("1.1", "done", lease_epoch=2)

    @pytest.mark.parametrize("skills", [None, ["db"]])
    def test_a_lease_that_ran_out_takes_its_turn_by_priority(
        self, registry: LocalTaskRegistry, clock: FakeClock, skills: list[str] | None
    ) -> None:
        registry.create_taskset(
            taskset(definition("1", priority=5, required_skill="db"), definition("2", priority=9), definition("3"))
        )
        assert [claimed(registry, required_skills=skills).task_id for _ in range(2)] == ["2", "1"]
        clock.sleep(61)
        assert [claimed(registry, required_skills=skills).task_id for _ in range(3)] == ["2", "1", "3"]

    def test_a_slow_runner_is_heard_while_nobody_else_has_begun(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        registry.register_task(task())
        claimed(registry, lease_seconds=60)
        clock.sleep(1000)
        registry.add_event("1.1", "late", lease_epoch=1)
        registry.update_task_status("1.1", "done", lease_epoch=1)
        assert registry.claim_task("r", lease_seconds=1) is None

    def test_a_renewed_lease_lasts(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        registry.register_task(task())
        first = claimed(registry, lease_seconds=60)
        clock.sleep(50)
        renewed = registry.renew_lease("1.1", first.lease.token, lease_seconds=60)
        assert renewed.expires_at == clock.now() + timedelta(seconds=60)
        assert (renewed.token, renewed.epoch) == (first.lease.token, 1)
        clock.sleep(59)
        assert registry.claim_task("r", lease_seconds=60) is None

    def test_a_task_given_back_is_for_others(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        first = claimed(registry)
        given = registry.release_task("1.1", first.lease.token)
        assert (given.status, given.lease_holder, given.cancel_requested) == ("ready", None, False)
        assert registry.release_task("1.1", first.lease.token).status == "ready"
        with pytest.raises(StaleLeaseError):  # sent before, and arrives only now
            registry.update_task_status("1.1", "running", lease_epoch=first.lease.epoch)
        assert claimed(registry).epoch > first.lease.epoch

    def test_an_ended_task_is_held_by_nobody(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        first = claimed(registry)
        registry.update_task_status("1.1", "failed", lease_epoch=1)
        with pytest.raises(StaleLeaseError):
            registry.renew_lease("1.1", first.lease.token, lease_seconds=60)
        assert registry.get_task("1.1").lease_holder is None

    @pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
    def test_under_a_lease_an_end_is_an_end(self, registry: LocalTaskRegistry, end: str) -> None:
        registry.register_task(task())
        claimed(registry)
        registry.update_task_status("1.1", end, lease_epoch=1)
        registry.update_task_status("1.1", end, lease_epoch=1)
        for other in {"ready", "running", "done", "failed", "cancelled"} - {end}:
            with pytest.raises(IllegalTransitionError):
                registry.update_task_status("1.1", other, lease_epoch=1)

    # --- stopping and starting again

    def test_a_running_task_is_asked_to_stop(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        first = claimed(registry)
        asked = registry.cancel_task("1.1")
        assert (asked.status, asked.cancel_requested) == ("running", True)
        assert registry.renew_lease("1.1", first.lease.token, lease_seconds=60).cancel_requested
        given = registry.release_task("1.1", first.lease.token)
        assert (given.status, given.cancel_requested) == ("cancelled", True)

    def test_a_runner_that_was_asked_to_stop_and_died_leaves_a_cancelled_task(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        registry.register_task(task())
        claimed(registry)
        registry.cancel_task("1.1")
        clock.sleep(61)
        assert registry.claim_task("r", lease_seconds=60) is None
        assert registry.get_task("1.1").status == "cancelled"

    @pytest.mark.parametrize("waiting", ["blocked", "ready", "cancelled"])
    def test_a_waiting_task_is_cancelled_at_once(self, registry: LocalTaskRegistry, waiting: str) -> None:
        registry.register_task(task())
        registry.update_task_status("1.1", waiting)
        assert registry.cancel_task("1.1").status == "cancelled"

    @pytest.mark.parametrize("end", ["done", "failed"])
    def test_an_ended_task_cannot_be_cancelled(self, registry: LocalTaskRegistry, end: str) -> None:
        registry.register_task(task())
        for status in ("running", end):
            registry.update_task_status("1.1", status)
        with pytest.raises(IllegalTransitionError, match=f"is {end}"):
            registry.cancel_task("1.1")

    def test_a_failed_task_is_put_back_and_its_last_runner_is_not_heard(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        claimed(registry)
        registry.update_task_status("1.1", "failed", lease_epoch=1)
        assert registry.retry_task("1.1").status == "ready"
        with pytest.raises(StaleLeaseError):
            registry.update_task_status("1.1", "running", lease_epoch=1)
        assert claimed(registry).attempt == 2

    def test_a_task_put_back_waits_for_what_is_not_done(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2", "1")))
        registry.cancel_task("2")
        assert registry.retry_task("2").status == "blocked"

    @pytest.mark.parametrize("walk", [(), ("blocked",), ("running",), ("running", "done")])
    def test_only_what_failed_or_was_cancelled_is_put_back(
        self, registry: LocalTaskRegistry, walk: tuple[str, ...]
    ) -> None:
        registry.register_task(task())
        for status in walk:
            registry.update_task_status("1.1", status)
        with pytest.raises(IllegalTransitionError):
            registry.retry_task("1.1")

    # --- once for each key

    def test_a_repeated_write_gets_the_first_answer(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task(), idempotency_key="k0")
        registry.register_task(task("1.2"))
        first = registry.claim_task("r", lease_seconds=60, idempotency_key="k1")
        assert registry.claim_task("r", lease_seconds=60, idempotency_key="k1") == first
        for _ in range(2):
            registry.update_task_status("1.1", "done", {"n": 1}, idempotency_key="k2")
            registry.add_event("1.1", "e", idempotency_key="k3")
            registry.add_artifact("1.1", "log", "u", idempotency_key="k4")
        assert (len(registry.list_events("1.1")), len(registry.list_artifacts("1.1"))) == (1, 1)

    def test_a_key_is_good_for_one_request(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        registry.add_event("1.1", "one", idempotency_key="k")
        with pytest.raises(IdempotencyKeyReusedError) as caught:
            registry.add_event("1.1", "two", idempotency_key="k")
        assert caught.value.status_code == 422
        assert [event.event_type for event in registry.list_events("1.1")] == ["one"]

    def test_a_write_that_failed_may_be_tried_again_with_its_key(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        with pytest.raises(IllegalTransitionError):
            registry.update_task_status("1.1", "done", idempotency_key="k")
        registry.update_task_status("1.1", "running")
        registry.update_task_status("1.1", "done", idempotency_key="k")
        assert registry.get_task("1.1").status == "done"

    def test_eight_with_one_key_do_it_once(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        assert at_once(lambda _: registry.add_event("1.1", "e", idempotency_key="k"), range(8)) == [None] * 8
        assert len(registry.list_events("1.1")) == 1

    # --- search

    def test_search_finds_by_state_spec_and_skill(self, registry: LocalTaskRegistry) -> None:
        registry.create_taskset(taskset(definition("1"), definition("2", required_skill="db"), definition("3", "1")))
        registry.create_taskset(taskset(definition("1"), spec_name="other"))

        def found(**filters: Any) -> list[tuple[str, str]]:
            return [(one.spec_name, one.task_id) for one in registry.search_tasks(**filters).items]

        assert found() == [("chat", "1"), ("chat", "2"), ("chat", "3"), ("other", "1")]
        assert found(status="blocked") == [("chat", "3")]
        assert found(status="pending", spec_name="chat") == [("chat", "1"), ("chat", "2")]
        assert found(required_skill="db") == [("chat", "2")]
        assert found(spec_name="none") == []
        with pytest.raises(ServiceError):
            found(status="unheard of")

    @pytest.mark.parametrize("sort", ["created", "priority"])
    def test_pages_together_are_the_whole(self, registry: LocalTaskRegistry, sort: str) -> None:
        registry.create_taskset(taskset(*(definition(str(number), priority=number % 3) for number in range(11))))
        order = range(11) if sort == "created" else sorted(range(11), key=lambda number: (-(number % 3), number))
        items, cursor = [], None
        while True:
            page = registry.search_tasks(sort=sort, limit=2, cursor=cursor)  # type: ignore[arg-type]
            items += [one.task_id for one in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page.items) == 2
        assert items == [str(number) for number in order]
        assert [one.task_id for one in registry.list_tasks()] == [str(number) for number in range(11)]

    @pytest.mark.parametrize("cursor", ["x", "!", "bnVsbA", "W10", "WzFd", "é", "WzEsMiwzLDRd", "Wzk5ZTk5LDIsIiIsIiJd"])
    def test_a_cursor_that_is_none_is_refused(self, registry: LocalTaskRegistry, cursor: str) -> None:
        with pytest.raises(ServiceError) as caught:
            registry.search_tasks(cursor=cursor)
        assert caught.value.status_code in {400, 422}

    def test_long_lists_are_read_page_by_page(
        self, registry: LocalTaskRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("necrocode.agent_runner.clients.task_registry_local._LARGEST_PAGE", 3)
        monkeypatch.setattr("necrocode.agent_runner.clients.task_registry_http._PAGE_SIZE", 3)
        registry.create_taskset(taskset(*(definition(str(number)) for number in range(8))))
        for number in range(8):
            registry.add_event("1", f"e{number}")
            registry.add_artifact("1", "log", f"u{number}")
        assert [one.task_id for one in registry.list_tasks()] == [str(number) for number in range(8)]
        assert [event.event_type for event in registry.list_events("1")] == [f"e{number}" for number in range(8)]
        assert [artifact.uri for artifact in registry.list_artifacts("1")] == [f"u{number}" for number in range(8)]
        assert len(list(islice(registry.follow_events(), 8))) == 8

    # --- the events of all tasks

    def test_events_of_all_tasks_are_found_by_time_and_spec(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        for spec_name in ("a", "b"):
            registry.register_task(task("1", spec_name))
        moments = []
        for number in range(6):
            moments.append(clock.now())
            registry.add_event("1", f"e{number}", spec_name="ab"[number % 2])
            clock.sleep(1)

        def found(**filters: Any) -> list[str]:
            return [event.event_type for event in registry.search_events(**filters).items]

        assert found() == ["e0", "e1", "e2", "e3", "e4", "e5"]
        assert found(spec_name="b") == ["e1", "e3", "e5"]
        assert found(since=moments[2], until=moments[4]) == ["e2", "e3"]
        page = registry.search_events(limit=4)
        assert [event.event_type for event in registry.search_events(cursor=page.next_cursor).items] == ["e4", "e5"]

    def test_followed_events_come_once_and_in_order(self, registry: LocalTaskRegistry) -> None:
        registry.register_task(task())
        for number in range(3):
            registry.add_event("1.1", f"before{number}")
        follower = registry.follow_events()
        first = list(islice(follower, 2))
        told = at_once(lambda number: registry.add_event("1.1", f"during{number}"), range(8))
        assert told == [None] * 8
        rest = list(islice(follower, 9))
        numbers = [event.sequence for event in [*first, *rest]]
        assert numbers == sorted({event.sequence for event in registry.list_events("1.1")})
        again = islice(registry.follow_events(after=first[1].sequence, spec_name="chat"), 9)
        assert list(again) == rest
