"""The embedded task registry: SQLite or PostgreSQL, safe for many threads and processes at once."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Self, TypeVar

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._registry_budget import BudgetCalls, Reserve
from necrocode.agent_runner.clients._registry_call import Call, OnceOnly
from necrocode.agent_runner.clients._registry_calls import DEFAULT_PAGE, RegistryCalls
from necrocode.agent_runner.clients._registry_store import RegistryStore, open_store
from necrocode.agent_runner.records import (
    ArtifactRecord,
    ClaimedTask,
    EventPage,
    EventRecord,
    TaskLease,
    TaskPage,
    TaskRecord,
    TaskSetRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from necrocode.agent_runner.clients._registry_history import TaskOrder
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.records import TaskDefinition, TaskSet
    from necrocode.agent_runner.spending import BudgetReservation, BudgetUsage, Spending, SpendingLimits
    from necrocode.agent_runner.task_graph import TaskGraph

_LARGEST_PAGE = 1000
_POLL_SECONDS = 0.25
_T = TypeVar("_T")


class LocalTaskRegistry:
    """A task registry in a database of our own; the Protocol is :class:`~necrocode.agent_runner.TaskRegistry`.

    ``url`` is ``sqlite:///relative``, ``sqlite:////absolute/path`` or ``postgresql://user@host/database``; folders and
    tables are made, and older tables upgraded, at the first use. Every method is one transaction, durable when it
    returns. A write under a lease says its ``lease_epoch``, and is ``StaleLeaseError`` once another runner has claimed
    the task. A write that comes again with its ``idempotency_key`` is not done again.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store: RegistryStore = open_store(url)
        self.calls = RegistryCalls(clock)
        self.budget_calls = BudgetCalls(clock)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was begun and close the database; a later call opens it again."""
        self.store.close()

    def submit(self, call: Call[_T]) -> Future[Any]:
        """Begin a call without waiting for it: ``call.read`` makes the answer of the future's result."""
        if not call.changes:
            return self.store.submit_read(call.run)
        return self.store.submit(call.run, by_statement=call.by_statement)

    def _done(self, call: Call[_T]) -> _T:
        if not call.changes:
            return call.read(self.store.read(call.run))
        return call.read(self.store.write(call.run, by_statement=call.by_statement))

    def register_task(self, task: TaskContext, *, idempotency_key: str | None = None) -> None:
        """Make the task known, or bring its record up to date; a finished one becomes ``ready`` again.

        It is ``blocked`` while a task that it depends on, and that the registry knows, is not done. A task that waits
        for itself by way of others is ``TaskContextValidationError``.
        """
        definition = {
            "title": task.title,
            "description": task.description,
            "acceptance_criteria": list(task.acceptance_criteria),
            "dependencies": list(task.dependencies),
            "required_skill": task.required_skill,
            "metadata": task.metadata,
        }
        call = self.calls.register(task.spec_name, task.task_id, definition)
        only = _only(idempotency_key, "register", task.spec_name, task.task_id, definition)
        self.store.write(self.calls.once(call, TaskRecord, only).run)

    def put_task(self, task: TaskDefinition, *, spec_name: str, idempotency_key: str | None = None) -> TaskRecord:
        """Register or replace one task, its priority included; otherwise as :meth:`register_task`."""
        only = _only(idempotency_key, "put", spec_name, task.model_dump(mode="json"))
        return self._done(self.calls.once(self.calls.put(spec_name, task), TaskRecord, only))

    def update_task_status(
        self,
        task_id: str,
        status: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Move the task to a state; going to ``running`` from another counts as an attempt.

        A task that becomes ``done`` makes those ``ready`` that waited for it alone. Under a lease, an ended task stays
        as it is.
        """
        call = self.calls.update_status(task_id, status, metadata, spec_name=spec_name, lease_epoch=lease_epoch)
        only = _only(idempotency_key, "status", task_id, status, metadata, spec_name)
        self.store.write(self.calls.once(call, TaskRecord, only).run)

    def add_event(
        self,
        task_id: str,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Append an event to the task's history."""
        call = self.calls.add_event(task_id, event_type, data, spec_name=spec_name, lease_epoch=lease_epoch)
        only = _only(idempotency_key, "event", task_id, event_type, data, spec_name)
        self.store.write(self.calls.once(call, EventRecord, only).run)

    def add_artifact(
        self,
        task_id: str,
        artifact_type: str,
        uri: str,
        size_bytes: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Record where an artifact of the task is stored."""
        values = {"type": artifact_type, "uri": uri, "size_bytes": size_bytes, "metadata": dict(metadata or {})}
        call = self.calls.add_artifact(task_id, values, spec_name=spec_name, lease_epoch=lease_epoch)
        only = _only(idempotency_key, "artifact", task_id, values, spec_name)
        self.store.write(self.calls.once(call, ArtifactRecord, only).run)

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord:
        """The task's record; ``TaskNotFoundError``, ``AmbiguousTaskError``."""
        return self._done(self.calls.get(task_id, spec_name=spec_name))

    def list_events(self, task_id: str, *, spec_name: str | None = None) -> tuple[EventRecord, ...]:
        """The task's events, oldest first."""
        items: list[EventRecord] = []
        cursor = None
        while True:
            page = self._done(self.calls.task_events(task_id, spec_name=spec_name, limit=_LARGEST_PAGE, cursor=cursor))
            items += page.items
            cursor = page.next_cursor
            if cursor is None:
                return tuple(items)

    def list_artifacts(self, task_id: str, *, spec_name: str | None = None) -> tuple[ArtifactRecord, ...]:
        """The task's artifact records, oldest first."""
        items: list[ArtifactRecord] = []
        cursor = None
        while True:
            page = self._done(
                self.calls.task_artifacts(task_id, spec_name=spec_name, limit=_LARGEST_PAGE, cursor=cursor)
            )
            items += page.items
            cursor = page.next_cursor
            if cursor is None:
                return tuple(items)

    def create_taskset(self, taskset: TaskSet, *, idempotency_key: str | None = None) -> TaskSetRecord:
        """Put a spec and its tasks in, or bring them up to date, in one transaction.

        Running and ended tasks keep their state; others are ``ready`` or ``blocked`` by their dependencies. A task that
        the spec no longer has is taken out if nobody ever worked on it, else kept, ``cancelled`` if it was waiting. An
        unknown dependency, an id given twice or tasks that wait for each other are ``TaskContextValidationError``.
        """
        only = _only(idempotency_key, "taskset", taskset.model_dump(mode="json"))
        return self._done(self.calls.once(self.calls.create_taskset(taskset), TaskSetRecord, only))

    def get_taskset(self, spec_name: str) -> TaskSetRecord:
        """The spec and its tasks; ``TaskNotFoundError`` where there is no such spec."""
        return self._done(self.calls.get_taskset(spec_name))

    def task_graph(self, spec_name: str) -> TaskGraph:
        """The spec's tasks and who waits for whom."""
        from necrocode.agent_runner.task_graph import TaskGraph  # noqa: PLC0415  few ask for it

        return TaskGraph.of(spec_name, self.get_taskset(spec_name).tasks)

    def search_tasks(
        self,
        *,
        status: str | None = None,
        spec_name: str | None = None,
        required_skill: str | None = None,
        sort: TaskOrder = "created",
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> TaskPage:
        """A page of the tasks that fit, the oldest first, or with ``sort="priority"`` as they are claimed."""
        return self._done(
            self.calls.search(
                status=status,
                spec_name=spec_name,
                required_skill=required_skill,
                sort=sort,
                limit=limit,
                cursor=cursor,
            )
        )

    def list_tasks(self, *, status: str | None = None, spec_name: str | None = None) -> tuple[TaskRecord, ...]:
        """All tasks that fit, the oldest first."""
        items: list[TaskRecord] = []
        cursor = None
        while True:
            page = self.search_tasks(status=status, spec_name=spec_name, limit=_LARGEST_PAGE, cursor=cursor)
            items += page.items
            cursor = page.next_cursor
            if cursor is None:
                return tuple(items)

    def search_events(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        spec_name: str | None = None,
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> EventPage:
        """A page of all tasks' events, the oldest first; ``since`` is included, ``until`` is not."""
        return self._done(self.calls.events(since=since, until=until, spec_name=spec_name, limit=limit, cursor=cursor))

    def follow_events(self, *, after: int = 0, spec_name: str | None = None) -> Iterator[EventRecord]:
        """Every event with a number above ``after``, in order, each once; waits for more without end."""
        while True:
            up_to = self._done(self.calls.last_settled_event())
            while after < up_to:
                call = self.calls.events(
                    spec_name=spec_name, up_to=up_to, limit=_LARGEST_PAGE, cursor=self.calls.event_cursor(after)
                )
                page = self._done(call)
                yield from page.items
                after = page.items[-1].sequence if page.next_cursor is not None else up_to
            self._clock.sleep(_POLL_SECONDS)

    def claim_task(
        self,
        runner_id: str,
        *,
        lease_seconds: float,
        required_skills: Sequence[str] | None = None,
        spec_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> ClaimedTask | None:
        """The next task, held by the runner for ``lease_seconds`` unless renewed; None when there is none for it.

        The highest priority goes first, then the oldest. With ``required_skills`` only tasks that want one of these, or
        none. A task whose lease has run out is there for others to claim.
        """
        call = self.calls.claim(
            runner_id, lease_seconds=lease_seconds, required_skills=required_skills, spec_name=spec_name
        )
        skills = None if required_skills is None else list(required_skills)
        only = _only(idempotency_key, "claim", runner_id, lease_seconds, skills, spec_name)
        return self._done(self.calls.once(call, ClaimedTask | None, only))

    def claim_this_task(
        self,
        task_id: str,
        runner_id: str,
        *,
        lease_seconds: float,
        spec_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> ClaimedTask:
        """This very task, held by the runner; ``TaskLeasedError`` while another runner holds it.

        One whose lease has run out, or that this runner holds from before, is taken over under a new epoch. One that
        waits for others or has ended is ``IllegalTransitionError``.
        """
        call = self.calls.claim_this(task_id, runner_id, lease_seconds=lease_seconds, spec_name=spec_name)
        only = _only(idempotency_key, "claim this", task_id, runner_id, lease_seconds, spec_name)
        return self._done(self.calls.once(call, ClaimedTask, only))

    def renew_lease(
        self, task_id: str, lease_token: str, *, lease_seconds: float, spec_name: str | None = None
    ) -> TaskLease:
        """Hold the task for another ``lease_seconds``; ``StaleLeaseError`` when another runner has it by now."""
        return self._done(self.calls.renew(task_id, lease_token, lease_seconds=lease_seconds, spec_name=spec_name))

    def release_task(self, task_id: str, lease_token: str, *, spec_name: str | None = None) -> TaskRecord:
        """Give the task back: it is ``ready`` for others, or ``cancelled`` where that was asked for. Idempotent."""
        return self._done(self.calls.give_back(task_id, lease_token, spec_name=spec_name))

    def cancel_task(
        self, task_id: str, *, spec_name: str | None = None, idempotency_key: str | None = None
    ) -> TaskRecord:
        """Ask a running task to stop; one that does not run is ``cancelled`` at once."""
        only = _only(idempotency_key, "cancel", task_id, spec_name)
        return self._done(self.calls.once(self.calls.cancel(task_id, spec_name=spec_name), TaskRecord, only))

    def retry_task(
        self, task_id: str, *, spec_name: str | None = None, idempotency_key: str | None = None
    ) -> TaskRecord:
        """Put a failed or cancelled task back; any other is ``IllegalTransitionError``."""
        only = _only(idempotency_key, "retry", task_id, spec_name)
        return self._done(self.calls.once(self.calls.retry(task_id, spec_name=spec_name), TaskRecord, only))

    def reserve_budget(
        self,
        spec_name: str,
        reservation_id: str,
        *,
        run_id: str,
        need: Spending,
        limits: SpendingLimits,
        ttl_seconds: float,
    ) -> BudgetReservation:
        """Set ``need`` aside for a question of the spec, where that stays within ``limits``; see ``SpecBudgets``."""
        asked = Reserve(spec_name, reservation_id, run_id, need, limits, ttl_seconds)
        return self._done(self.budget_calls.reserve(asked))

    def settle_budget(self, spec_name: str, reservation_id: str, spent: Spending) -> BudgetUsage:
        """Tell what a question came to; what was told first stays."""
        return self._done(self.budget_calls.settle(spec_name, reservation_id, spent))

    def budget_usage(self, spec_name: str) -> BudgetUsage:
        """What the spec has spent and reserved."""
        return self._done(self.budget_calls.usage(spec_name))

    def reset_budget(self, spec_name: str) -> BudgetUsage:
        """Forget what the spec has spent; questions under way still count."""
        return self._done(self.budget_calls.reset(spec_name))


def _only(key: str | None, *asked: object) -> OnceOnly | None:
    """The key with a fingerprint of what was asked."""
    if key is None:
        return None
    text = json.dumps(asked, sort_keys=True, default=str)
    return OnceOnly(key, hashlib.sha256(text.encode()).hexdigest())
