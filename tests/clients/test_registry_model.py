"""The registry and its leases beside a simple model of them, under random calls."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from necrocode.agent_runner import IllegalTransitionError, LocalTaskRegistry, StaleLeaseError, TaskLeasedError
from necrocode.agent_runner.clients._task_states import FINISHED, FOLLOWS
from necrocode.agent_runner.records import ClaimedTask, TaskDefinition, TaskSet
from tests.support.clocks import FakeClock
from tests.support.postgres import empty_database

NEEDS: dict[str, tuple[str, ...]] = {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("c", "d")}
PRIORITY = {"a": 0, "b": 2, "c": 1, "d": 2, "e": 0}
TASKS = st.sampled_from(sorted(NEEDS))
RUNNERS = st.sampled_from(["r", "q"])
BEHIND = st.sampled_from([None, 0, 1])
LEASE_SECONDS = 30


@dataclass
class Modelled:
    status: str
    epoch: int = 0
    attempt: int = 0
    expires: float | None = None
    token: str | None = None
    holder: str | None = None
    cancel_requested: bool = False
    history: list[str] = field(default_factory=list)

    def free(self) -> None:
        self.expires = self.token = self.holder = None
        self.cancel_requested = False

    def held(self, runner: str, now: float, got: ClaimedTask) -> None:
        self.status, self.epoch, self.attempt = "running", self.epoch + 1, self.attempt + 1
        self.expires, self.token, self.holder = now + LEASE_SECONDS, got.lease.token, runner

    def is_stale(self, behind: int | None) -> bool:
        return behind is not None and self.said(behind) < self.epoch

    def said(self, behind: int) -> int:
        """The epoch that a writer says who is so many claims behind."""
        return max(0, self.epoch - behind)


@dataclass
class Model:
    tasks: dict[str, Modelled] = field(
        default_factory=lambda: {name: Modelled("blocked" if needs else "ready") for name, needs in NEEDS.items()}
    )

    def waits(self, name: str) -> bool:
        return any(self.tasks[need].status != "done" for need in NEEDS[name])

    def unblock_for(self, done: Modelled) -> None:
        """Free those that waited for a task that has just become done."""
        for name, task in self.tasks.items():
            is_for_it = any(self.tasks[need] is done for need in NEEDS[name])
            if is_for_it and task.status == "blocked" and not self.waits(name):
                task.status = "ready"

    def claimable(self, now: float) -> str | None:
        for task in self.tasks.values():
            if task.expires is not None and task.expires <= now and task.cancel_requested:
                task.status = "cancelled"
                task.free()
        names = [
            name
            for name, task in self.tasks.items()
            if task.status == "ready" or (task.expires is not None and task.expires <= now)
        ]
        return min(names, key=lambda name: (-PRIORITY[name], name), default=None)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()
        self.clock = FakeClock()
        self.registry = self.open.enter_context(LocalTaskRegistry(self.url(), clock=self.clock))
        tasks = tuple(
            TaskDefinition(task_id=name, dependencies=needs, priority=PRIORITY[name]) for name, needs in NEEDS.items()
        )
        self.registry.create_taskset(TaskSet(spec_name="s", tasks=tasks))
        self.model = Model()
        self.tokens: list[tuple[str, str]] = []

    def url(self) -> str:
        folder = self.open.enter_context(tempfile.TemporaryDirectory())
        return f"sqlite:///{Path(folder) / 'r.db'}"

    def teardown(self) -> None:
        self.open.close()

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.clock.sleep(seconds)

    @rule(runner=RUNNERS)
    def claim(self, runner: str) -> None:
        self.clock.sleep(1)  # leases that ran out are compared once a second
        got = self.registry.claim_task(runner, lease_seconds=LEASE_SECONDS)
        name = self.model.claimable(self.clock.seconds)
        assert (got.task_id if got else None) == name
        if got is None or name is None:
            return
        self.model.tasks[name].cancel_requested = False
        self._held(name, runner, got)

    @rule(name=TASKS, runner=RUNNERS)
    def claim_this(self, name: str, runner: str) -> None:
        task = self.model.tasks[name]
        is_live = task.expires is not None and task.expires > self.clock.seconds
        try:
            got = self.registry.claim_this_task(name, runner, lease_seconds=LEASE_SECONDS)
        except TaskLeasedError:
            assert is_live
            assert task.holder not in {None, runner}
            return
        except IllegalTransitionError:
            assert task.status not in {"ready", "running"}
            return
        assert task.status in {"ready", "running"}
        assert not is_live or task.holder == runner
        self._held(name, runner, got)

    def _held(self, name: str, runner: str, got: ClaimedTask) -> None:
        task = self.model.tasks[name]
        task.held(runner, self.clock.seconds, got)
        assert (got.epoch, got.attempt, got.lease_holder) == (task.epoch, task.attempt, runner)
        assert (got.lease.epoch, got.lease.cancel_requested) == (task.epoch, task.cancel_requested)
        self.tokens.append((name, got.lease.token))

    @rule(name=TASKS, status=st.sampled_from(sorted(FOLLOWS)), behind=BEHIND)
    def report(self, name: str, status: str, behind: int | None) -> None:
        task = self.model.tasks[name]
        epoch = None if behind is None else task.said(behind)
        may = task.status == status or (
            status in FOLLOWS[task.status] and not (epoch is not None and task.status in FINISHED)
        )
        try:
            self.registry.update_task_status(name, status, lease_epoch=epoch)
        except StaleLeaseError:
            assert task.is_stale(behind)
        except IllegalTransitionError:
            assert not may
        else:
            assert may
            assert not task.is_stale(behind)
            self._moved(task, status)

    def _moved(self, task: Modelled, status: str) -> None:
        old, task.status = task.status, status
        task.attempt += status == "running" and old != "running"
        if status != "running":
            task.free()
        if status == "done" and old != "done":
            self.model.unblock_for(task)

    @rule(name=TASKS, behind=BEHIND, is_event=st.booleans())
    def tell(self, name: str, behind: int | None, is_event: bool) -> None:
        task = self.model.tasks[name]
        epoch = None if behind is None else task.said(behind)
        what = f"{len(task.history)}"
        try:
            if is_event:
                self.registry.add_event(name, what, lease_epoch=epoch)
            else:
                self.registry.add_artifact(name, what, "u", lease_epoch=epoch)
        except StaleLeaseError:
            assert task.is_stale(behind)
        else:
            assert not task.is_stale(behind)
            task.history.append(what)

    @rule(pick=st.integers(0, 100), release=st.booleans())
    def use_a_token(self, pick: int, release: bool) -> None:
        if not self.tokens:
            return
        name, token = self.tokens[pick % len(self.tokens)]
        task = self.model.tasks[name]
        try:
            if release:
                self.registry.release_task(name, token)
            else:
                renewed = self.registry.renew_lease(name, token, lease_seconds=LEASE_SECONDS)
        except StaleLeaseError:
            assert task.token != token
            return
        if release and task.token is not None:
            assert task.token == token
            task.status = "cancelled" if task.cancel_requested else "ready"
            task.epoch += 1
            task.free()
        elif not release:
            assert task.token == token
            assert (renewed.epoch, renewed.cancel_requested) == (task.epoch, task.cancel_requested)
            task.expires = self.clock.seconds + LEASE_SECONDS

    @rule(name=TASKS)
    def cancel(self, name: str) -> None:
        task = self.model.tasks[name]
        try:
            self.registry.cancel_task(name)
        except IllegalTransitionError:
            assert task.status in {"done", "failed"}
            return
        assert task.status not in {"done", "failed"}
        if task.status == "running":
            task.cancel_requested = True
        else:
            task.status = "cancelled"

    @rule(name=TASKS)
    def retry(self, name: str) -> None:
        task = self.model.tasks[name]
        try:
            self.registry.retry_task(name)
        except IllegalTransitionError:
            assert task.status not in {"failed", "cancelled"}
            return
        assert task.status in {"failed", "cancelled"}
        task.status = "blocked" if self.model.waits(name) else "ready"
        task.epoch += 1
        task.free()

    @invariant()
    def the_registry_is_as_the_model(self) -> None:
        for found in self.registry.list_tasks():
            task = self.model.tasks[found.task_id]
            seen = (found.status, found.epoch, found.attempt, found.cancel_requested, found.lease_holder)
            assert seen == (task.status, task.epoch, task.attempt, task.cancel_requested, task.holder)
            assert (found.lease_expires_at is None) == (task.expires is None)
            if task.history:
                records: list[Any] = [*self.registry.list_events(found.task_id)]
                told = [one.event_type for one in records]
                told += [one.type for one in self.registry.list_artifacts(found.task_id)]
                assert sorted(told) == sorted(task.history)


class PostgresMachine(RegistryMachine):
    def url(self) -> str:
        return self.open.enter_context(empty_database())


def bounded(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


TestRegistryAgainstModel = RegistryMachine.TestCase
TestRegistryAgainstModel.settings = bounded(20, 30)
TestPostgresAgainstModel = PostgresMachine.TestCase
TestPostgresAgainstModel.settings = bounded(4, 30)


@pytest.mark.soak
class TestManyAgainstModel(RegistryMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = bounded(400, 60)


@pytest.mark.soak
class TestManyOnPostgresAgainstModel(PostgresMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = bounded(60, 60)
