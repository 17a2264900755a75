"""Every call of the registry as what is done in the transaction, and how its rows are read afterwards.

The embedded registry waits for a call, the service awaits it; what a call does is said here once.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import bindparam

from necrocode.agent_runner.clients import (
    _registry_claims,
    _registry_history,
    _registry_tasks,
    _registry_tasksets,
)
from necrocode.agent_runner.clients._registry_call import Call, OnceOnly
from necrocode.agent_runner.clients._registry_json import checked_json
from necrocode.agent_runner.clients._registry_sql import insert_row
from necrocode.agent_runner.clients._task_states import canonical_status
from necrocode.agent_runner.clients.registry_schema import idempotency_keys
from necrocode.agent_runner.errors import IdempotencyKeyReusedError
from necrocode.agent_runner.records import (
    ArtifactRecord,
    ArtifactRecordPage,
    ClaimedTask,
    EventPage,
    EventRecord,
    TaskLease,
    TaskPage,
    TaskRecord,
    TaskSetRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.clients._registry_history import TaskOrder
    from necrocode.agent_runner.clients._registry_sql import Row, Transaction
    from necrocode.agent_runner.records import TaskDefinition, TaskSet

DEFAULT_PAGE = 100
KEY_KEPT_SECONDS = 24 * 3600.0
_SECONDS_BETWEEN_SWEEPS = 600.0
_SECONDS_BETWEEN_LOOKS = 1.0
_LINEAGE_LENGTH = 16
_T = TypeVar("_T")

_answered = sa.select(idempotency_keys).where(idempotency_keys.c.key == bindparam("at_key"))
_keep_answer = insert_row(idempotency_keys)
_sweep_answers = sa.delete(idempotency_keys).where(idempotency_keys.c.created_at < bindparam("before"))


class RegistryCalls:
    """Makes the calls; ``new_token`` gives unguessable texts."""

    def __init__(self, clock: Clock, new_token: Callable[[], str] = secrets.token_urlsafe) -> None:
        self._clock = clock
        self._new_token = new_token
        self._next_look = self._next_sweep = clock.monotonic()

    def once(self, call: Call[_T], answer: Any, only: OnceOnly | None) -> Call[_T]:  # noqa: ANN401  a type, or a union
        """The call, done once for its key; then its first answer again. A call that failed is not remembered.

        ``IdempotencyKeyReusedError`` when the key came with something else before.
        """
        if only is None:
            return call
        adapter: TypeAdapter[_T] = TypeAdapter(answer)

        def run(transaction: Transaction) -> _T:
            transaction.lock("key", only.key)
            first = transaction.row(_answered, at_key=only.key)
            if first is not None:
                if first["fingerprint"] != only.fingerprint:
                    raise IdempotencyKeyReusedError(
                        "This Idempotency-Key was used for another request.",
                        hint="Use a new key for a new request.",
                        status_code=422,
                    )
                return adapter.validate_json(first["answer"])
            value = call.read(call.run(transaction))
            text = adapter.dump_json(value).decode()
            now = self._clock.now()
            transaction.run(_keep_answer, key=only.key, fingerprint=only.fingerprint, answer=text, created_at=now)
            self._sweep(transaction, now)
            return value

        return Call(run, _same)

    def _sweep(self, transaction: Transaction, now: datetime) -> None:
        """Forget old answers, every ten minutes."""
        if self._clock.monotonic() >= self._next_sweep:
            self._next_sweep = self._clock.monotonic() + _SECONDS_BETWEEN_SWEEPS
            transaction.run(_sweep_answers, before=now - timedelta(seconds=KEY_KEPT_SECONDS))

    # --- one task

    def register(self, spec_name: str, task_id: str, definition: Row) -> Call[TaskRecord]:
        """Register or replace one task."""
        return Call(
            lambda transaction: _registry_tasks.register(
                transaction, self._clock.now(), spec_name, task_id, definition
            ),
            TaskRecord.model_validate,
        )

    def put(self, spec_name: str, task: TaskDefinition) -> Call[TaskRecord]:
        """Register or replace one task, its priority too."""
        return self.register(spec_name, task.task_id, _registry_tasksets.definition_of(task))

    def update_status(
        self,
        task_id: str,
        status: str,
        metadata: Mapping[str, Any] | None,
        *,
        spec_name: str | None,
        lease_epoch: int | None = None,
    ) -> Call[TaskRecord]:
        """Move a task to a state."""
        kept = checked_json("metadata", metadata)
        return Call(
            lambda transaction: _registry_tasks.update_status(
                transaction, self._clock.now(), task_id, status, kept, spec_name, lease_epoch
            ),
            TaskRecord.model_validate,
        )

    def get(self, task_id: str, *, spec_name: str | None) -> Call[TaskRecord]:
        """One task."""
        return Call(
            lambda transaction: _registry_tasks.find(transaction, task_id, spec_name),
            TaskRecord.model_validate,
            changes=False,
        )

    # --- history

    def add_event(
        self,
        task_id: str,
        event_type: str,
        data: Mapping[str, Any] | None,
        *,
        spec_name: str | None,
        lease_epoch: int | None = None,
    ) -> Call[EventRecord]:
        """Append an event."""
        kept = checked_json("data", data)
        return Call(
            lambda transaction: _registry_history.add_event(
                transaction, self._clock.now(), task_id, event_type, kept, spec_name, lease_epoch
            ),
            EventRecord.model_validate,
        )

    def add_artifact(
        self, task_id: str, values: Row, *, spec_name: str | None, lease_epoch: int | None = None
    ) -> Call[ArtifactRecord]:
        """Record an artifact: ``type``, ``uri``, ``size_bytes``, ``metadata``."""
        kept = values | {"metadata": checked_json("metadata", values["metadata"])}
        return Call(
            lambda transaction: _registry_history.add_artifact(
                transaction, self._clock.now(), task_id, kept, spec_name, lease_epoch
            ),
            ArtifactRecord.model_validate,
        )

    def task_events(
        self, task_id: str, *, spec_name: str | None, limit: int = DEFAULT_PAGE, cursor: str | None = None
    ) -> Call[EventPage]:
        """A page of one task's events."""
        after = _after(cursor)
        return Call(
            lambda transaction: _registry_history.task_history(
                transaction, "events", task_id, spec_name, after=after, limit=limit + 1
            ),
            lambda rows: EventPage.model_validate(_page(rows, limit, _sequence)),
            changes=False,
        )

    def task_artifacts(
        self, task_id: str, *, spec_name: str | None, limit: int = DEFAULT_PAGE, cursor: str | None = None
    ) -> Call[ArtifactRecordPage]:
        """A page of one task's artifact records."""
        after = _after(cursor)
        return Call(
            lambda transaction: _registry_history.task_history(
                transaction, "artifacts", task_id, spec_name, after=after, limit=limit + 1
            ),
            lambda rows: ArtifactRecordPage.model_validate(_page(rows, limit, _sequence)),
            changes=False,
        )

    def events(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        spec_name: str | None = None,
        up_to: int | None = None,
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> Call[EventPage]:
        """A page of all tasks' events."""
        after = _after(cursor)
        return Call(
            lambda transaction: _registry_history.all_events(
                transaction, after=after, limit=limit + 1, since=since, until=until, spec_name=spec_name, up_to=up_to
            ),
            lambda rows: EventPage.model_validate(_page(rows, limit, _sequence)),
            changes=False,
        )

    @staticmethod
    def event_cursor(after: int) -> str:
        """The cursor for the events with a number above ``after``."""
        return _registry_history.to_cursor([after])

    def newest_event(self) -> Call[int]:
        """The highest number among the events that can be seen."""
        return Call(_registry_history.newest_event, int, changes=False)

    def ping(self) -> Call[int]:
        """Whether the database answers, to those who write: on SQLite they have a thread of their own."""
        return Call(_registry_history.newest_event, int)

    def last_settled_event(self) -> Call[int]:
        """The number up to which events are complete."""
        return Call(_registry_history.last_settled_event, int, changes=False)

    # --- specs

    def create_taskset(self, taskset: TaskSet) -> Call[TaskSetRecord]:
        """A spec and its tasks, checked before anything else is done."""
        _registry_tasksets.check_taskset(taskset)

        def run(transaction: Transaction) -> tuple[Row, list[Row]]:
            _registry_tasksets.create(transaction, self._clock.now(), taskset)
            return _registry_tasksets.read(transaction, taskset.spec_name)

        return Call(run, _taskset)

    def get_taskset(self, spec_name: str) -> Call[TaskSetRecord]:
        """A spec and its tasks."""
        return Call(lambda transaction: _registry_tasksets.read(transaction, spec_name), _taskset, changes=False)

    def search(
        self,
        *,
        status: str | None = None,
        spec_name: str | None = None,
        required_skill: str | None = None,
        sort: TaskOrder = "created",
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> Call[TaskPage]:
        """A page of the tasks that fit."""
        after = None if cursor is None else _registry_history.from_cursor(cursor, (int, int, str, str))
        state = None if status is None else canonical_status(status)
        return Call(
            lambda transaction: _registry_history.search_tasks(
                transaction, sort, after, limit + 1, status=state, spec_name=spec_name, required_skill=required_skill
            ),
            lambda rows: TaskPage.model_validate(_page(rows, limit, _registry_history.task_key)),
            changes=False,
        )

    # --- leases

    def claim(
        self,
        runner_id: str,
        *,
        lease_seconds: float,
        required_skills: Sequence[str] | None = None,
        spec_name: str | None = None,
    ) -> Call[ClaimedTask | None]:
        """Hold the next task. Leases that ran out are looked for once a second, and before giving up."""
        claimant = {"runner_id": runner_id, "token": self._new_token(), "lease_seconds": lease_seconds}

        def run(transaction: Transaction) -> Row | None:
            look = self._clock.monotonic() >= self._next_look
            found = _registry_claims.claim(
                transaction,
                self._clock.now(),
                claimant,
                required_skills=required_skills,
                spec_name=spec_name,
                look_for_expired=look,
            )
            if look and not found.was_expired:
                self._next_look = self._clock.monotonic() + _SECONDS_BETWEEN_LOOKS
            return found.row

        return Call(run, _claimed, by_statement=True)

    def claim_this(
        self, task_id: str, runner_id: str, *, lease_seconds: float, spec_name: str | None
    ) -> Call[ClaimedTask]:
        """Hold one task."""
        claimant = {"runner_id": runner_id, "token": self._new_token(), "lease_seconds": lease_seconds}
        return Call(
            lambda transaction: _registry_claims.claim_this(
                transaction, self._clock.now(), task_id, spec_name, claimant
            ),
            _held,
        )

    def renew(self, task_id: str, token: str, *, lease_seconds: float, spec_name: str | None) -> Call[TaskLease]:
        """Hold a task for longer."""
        return Call(
            lambda transaction: _registry_claims.renew(
                transaction, self._clock.now(), task_id, spec_name, token, lease_seconds
            ),
            lambda row: TaskLease.model_validate(_lease(row)),
        )

    def give_back(self, task_id: str, token: str, *, spec_name: str | None) -> Call[TaskRecord]:
        """Let others have a task; the answer says whether it was to be cancelled."""
        return Call(
            lambda transaction: _registry_claims.give_back(transaction, self._clock.now(), task_id, spec_name, token),
            TaskRecord.model_validate,
        )

    def cancel(self, task_id: str, *, spec_name: str | None, lease_epoch: int | None = None) -> Call[TaskRecord]:
        """Ask a task to stop."""
        return Call(
            lambda transaction: _registry_claims.cancel(
                transaction, self._clock.now(), task_id, spec_name, lease_epoch
            ),
            TaskRecord.model_validate,
        )

    def retry(self, task_id: str, *, spec_name: str | None) -> Call[TaskRecord]:
        """Put a failed or cancelled task back."""
        return Call(
            lambda transaction: _registry_claims.retry(transaction, self._clock.now(), task_id, spec_name),
            TaskRecord.model_validate,
        )


def _same(value: _T) -> _T:
    return value


def _claimed(row: Row | None) -> ClaimedTask | None:
    return None if row is None else _held(row)


def _held(row: Row) -> ClaimedTask:
    return ClaimedTask.model_validate({**row, "lease": _lease(row)})


def _lease(row: Row) -> Row:
    return {
        "token": row["lease_token"],
        "epoch": row["epoch"],
        "lineage": _lineage(row),
        "expires_at": row["lease_expires_at"],
        "cancel_requested": row["cancel_requested"],
    }


def _lineage(row: Row) -> str:
    """The same for all epochs of a task as long as this registry knows it: one made anew counts from 0 again."""
    told = f"{row['spec_name']}\0{row['task_id']}\0{row['created_at'].isoformat()}"
    return hashlib.sha256(told.encode()).hexdigest()[:_LINEAGE_LENGTH]


def _taskset(found: tuple[Row, list[Row]]) -> TaskSetRecord:
    spec, rows = found
    return TaskSetRecord.model_validate({**spec, "tasks": rows})


def _after(cursor: str | None) -> int:
    return 0 if cursor is None else int(_registry_history.from_cursor(cursor, (int,))[0])


def _sequence(row: Row) -> list[Any]:
    return [row["sequence"]]


def _page(rows: list[Row], limit: int, key: Callable[[Row], list[Any]]) -> Row:
    """A page of at most ``limit`` of the rows, of which one more was asked for to see whether there are any."""
    more = len(rows) > limit
    return {"items": rows[:limit], "next_cursor": _registry_history.to_cursor(key(rows[limit - 1])) if more else None}
