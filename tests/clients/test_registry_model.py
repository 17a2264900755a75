"""The registry beside a simple model of it, under random calls."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from necrocode.agent_runner import IllegalTransitionError, LocalTaskRegistry, StaleLeaseError
from necrocode.agent_runner.clients._task_states import FINISHED, FOLLOWS
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from tests.support.clocks import FakeClock

NEEDS: dict[str, tuple[str, ...]] = {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("c", "d")}
PRIORITY = {"a": 0, "b": 2, "c": 1, "d": 2, "e": 0}
TASKS = st.sampled_from(sorted(NEEDS))


@dataclass
class Modelled:
    status: str
    epoch: int = 0
    attempt: int = 0
    expires: float | None = None
    token: str | None = None
    cancel_requested: bool = False

    def free(self) -> None:
        self.expires = self.token = None
        self.cancel_requested = False


@dataclass
class Model:
    tasks: dict[str, Modelled] = field(
        default_factory=lambda: {name: Modelled("blocked" if needs else "ready") for name, needs in NEEDS.items()}
    )

    def waits(self, name: str) -> bool:
        return any(self.tasks[need].status != "done" for need in NEEDS[name])

    def unblock(self) -> None:
        for name, task in self.tasks.items():
            if task.status == "blocked" and not self.waits(name):
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
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.registry = LocalTaskRegistry(f"sqlite:///{Path(self.folder.name) / 'r.db'}", clock=self.clock)
        tasks = tuple(
            TaskDefinition(task_id=name, dependencies=needs, priority=PRIORITY[name]) for name, needs in NEEDS.items()
        )
        self.registry.create_taskset(TaskSet(spec_name="s", tasks=tasks))
        self.model = Model()
        self.tokens: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.clock.sleep(seconds)

    @rule()
    def claim(self) -> None:
        self.clock.sleep(1)  # leases that ran out are compared once a second
        got = self.registry.claim_task("r", lease_seconds=30)
        name = self.model.claimable(self.clock.seconds)
        assert (got.task_id if got else None) == name
        if got is None or name is None:
            return
        task = self.model.tasks[name]
        task.status, task.epoch, task.attempt = "running", task.epoch + 1, task.attempt + 1
        task.expires, task.token, task.cancel_requested = self.clock.seconds + 30, got.lease.token, False
        assert (got.epoch, got.attempt) == (task.epoch, task.attempt)
        self.tokens.append((name, got.lease.token))

    @rule(name=TASKS, status=st.sampled_from(sorted(FOLLOWS)), behind=st.sampled_from([None, 0, 1]))
    def report(self, name: str, status: str, behind: int | None) -> None:
        task = self.model.tasks[name]
        epoch = None if behind is None else max(0, task.epoch - behind)
        may = task.status == status or (
            status in FOLLOWS[task.status] and not (epoch is not None and task.status in FINISHED)
        )
        try:
            self.registry.update_task_status(name, status, lease_epoch=epoch)
        except StaleLeaseError:
            assert epoch is not None
            assert epoch < task.epoch
        except IllegalTransitionError:
            assert not may
        else:
            assert may
            assert epoch is None or epoch >= task.epoch
            self._moved(task, status)

    def _moved(self, task: Modelled, status: str) -> None:
        old, task.status = task.status, status
        task.attempt += status == "running" and old != "running"
        if status != "running":
            task.free()
        if status == "done" and old != "done":
            name = next(name for name, other in self.model.tasks.items() if other is task)
            for waiting, needs in NEEDS.items():
                other = self.model.tasks[waiting]
                if name in needs and other.status == "blocked" and not self.model.waits(waiting):
                    other.status = "ready"

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
                self.registry.renew_lease(name, token, lease_seconds=30)
        except StaleLeaseError:
            assert task.token != token
            return
        if release and task.token is not None:
            assert task.token == token
            task.status = "cancelled" if task.cancel_requested else "ready"
            task.free()
        elif not release:
            assert task.token == token
            task.expires = self.clock.seconds + 30

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
            seen = (found.status, found.epoch, found.attempt, found.cancel_requested, found.lease_expires_at is None)
            assert seen == (task.status, task.epoch, task.attempt, task.cancel_requested, task.expires is None)


TestRegistryAgainstModel = RegistryMachine.TestCase
TestRegistryAgainstModel.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
