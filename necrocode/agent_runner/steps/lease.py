"""Lease: the task is this run's alone, for as long as it lasts, and everything that the run writes says so."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing, in_time, outrun
from necrocode.agent_runner.errors import (
    ConfigurationError,
    RunCancelledError,
    RunnerError,
    RunnerTimeoutError,
    StaleLeaseError,
    TaskLeasedError,
)
from necrocode.agent_runner.fencing import Fence, HandedLease
from necrocode.agent_runner.heartbeat import Hold, kept
from necrocode.agent_runner.protocols import TaskLeases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.protocols import TaskRegistry
    from necrocode.agent_runner.records import ClaimedTask

# A runner takes over its own lease, which it may hold from before a crash: but not from another run that goes on here.
_HELD_HERE: set[tuple[str, str, str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class HeldTask:
    """A run's hold on its task."""

    fence: Fence
    hold: Hold

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Where the run writes under it; ``StaleLeaseError`` once the hold is lost, which such an answer tells too."""
        self.hold.check()
        try:
            yield
        except StaleLeaseError:
            self.hold.lose()
            raise


@contextmanager
def held_task(
    task: TaskContext,
    registry: TaskRegistry,
    *,
    runner_id: str,
    lease_seconds: float,
    deadline: Deadline,
    is_begun: Callable[[], bool],
    on_note: Callable[[str], None],
    on_trouble: Callable[[str], None],
) -> Iterator[HeldTask | None]:
    """The task made known, and held for as long as the context lasts; None where the registry has no leases.

    A lease that the task brings is kept; else the task is claimed, or ``TaskLeasedError``. A lease that is lost, or a
    registry that wants the run to stop, is told by ``deadline.cancellation``.

    The report of the run's end ends the lease. It is given back here where the run has not begun (``is_begun``), and
    runs out where the end could not be reported: the task is not for others while its outcome is on the way.
    """
    with _alone(runner_id, task):
        lease = _taken(
            task,
            registry,
            runner_id=runner_id,
            lease_seconds=lease_seconds,
            deadline=deadline,
            on_trouble=on_trouble,
        )
        if lease is None or not isinstance(registry, TaskLeases):
            on_note("the task registry gives no leases: nothing keeps another run of this task away")
            yield None
            return
        keeper = _Keeper(task, registry, lease, lease_seconds, deadline)
        hold = keeper.hold()
        try:
            with kept(hold, keeper.renew, on_trouble):
                yield HeldTask(lease.fence, hold)
        finally:
            if not is_begun() and not hold.is_lost:
                keeper.give_back(on_trouble)


@contextmanager
def _alone(runner_id: str, task: TaskContext) -> Iterator[None]:
    key = (runner_id, task.spec_name, task.task_id)
    with _lock:
        if key in _HELD_HERE:
            raise TaskLeasedError(
                f"Task {task.task_id} of spec {task.spec_name} is held by another run of this runner, {runner_id}.",
                hint="Run it again when that has ended.",
            )
        _HELD_HERE.add(key)
    try:
        yield
    finally:
        with _lock:
            _HELD_HERE.discard(key)


def _taken(
    task: TaskContext,
    registry: TaskRegistry,
    *,
    runner_id: str,
    lease_seconds: float,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
) -> HandedLease | None:
    """The lease that the task brings, or a new one."""
    leases = registry if isinstance(registry, TaskLeases) else None
    if task.lease is not None:
        if leases is None:
            raise ConfigurationError(
                f"Task {task.task_id} brings a lease, and the task registry that was passed in can renew none.",
                hint="Pass one that has the methods of TaskLeases, or a task without a lease.",
            )
        return task.lease  # whoever claimed the task has registered it: a new record might undo a later runner's end
    outrun(deadline, partial(registry.register_task, task), doing="tell the task registry of the task")
    if leases is None:
        return None
    claim = partial(
        leases.claim_this_task, task.task_id, runner_id, lease_seconds=lease_seconds, spec_name=task.spec_name
    )
    try:
        claimed = outrun(deadline, claim, doing="claim the task")
    except (RunCancelledError, RunnerTimeoutError, KeyboardInterrupt) as stop:
        deadline.cancellation.request(str(stop) or "The run was interrupted.")
        with closing(deadline):
            _give_back_unseen(task, leases, claim, on_trouble)
        raise
    return None if claimed is None else _handed(claimed)


def _handed(claimed: ClaimedTask) -> HandedLease:
    lease = claimed.lease
    return HandedLease.model_validate({"epoch": lease.epoch, "lineage": lease.lineage, "token": lease.token})


def _give_back_unseen(
    task: TaskContext,
    registry: TaskLeases,
    claim: Callable[[], ClaimedTask | None],
    on_trouble: Callable[[str], None],
) -> None:
    """Give back a claim whose answer was not waited for: to claim it again is the one way to the lease it may have."""

    def give_back() -> None:
        if (claimed := claim()) is not None:
            registry.release_task(task.task_id, claimed.lease.token, spec_name=task.spec_name)

    try:
        in_time(give_back, doing="give the task back")
    except TaskLeasedError:
        return  # the claim had not come through
    except RunnerError as error:
        on_trouble(f"Whether task {task.task_id} is held by this run is not known; a lease runs out by itself. {error}")


@dataclass(frozen=True)
class _Keeper:
    task: TaskContext
    registry: TaskLeases
    lease: HandedLease
    lease_seconds: float
    deadline: Deadline

    def hold(self) -> Hold:
        clock, task = self.deadline.clock, self.task
        what = f"task {task.task_id} of spec {task.spec_name}"
        return Hold(what, clock, self.lease_seconds, clock.monotonic(), self.deadline.cancellation)

    def renew(self) -> None:
        task = self.task
        answer = self.registry.renew_lease(
            task.task_id, self._token, lease_seconds=self.lease_seconds, spec_name=task.spec_name
        )
        if answer.cancel_requested:
            self.deadline.cancellation.request("The task registry asks this run to stop.")

    def give_back(self, on_trouble: Callable[[str], None]) -> None:
        try:
            release = partial(self.registry.release_task, self.task.task_id, self._token, spec_name=self.task.spec_name)
            in_time(release, doing="give the task back")
        except RunnerError as error:
            on_trouble(f"The lease on task {self.task.task_id} was not given back: {error}")

    @property
    def _token(self) -> str:
        return self.lease.token.get_secret_value()
