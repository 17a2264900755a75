"""Events, artifact records, and searching: lists that are read page by page, each page beginning where one ended."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy import bindparam

from necrocode.agent_runner.clients._registry_sql import insert_row
from necrocode.agent_runner.clients._registry_tasks import check_epoch, identify
from necrocode.agent_runner.clients.registry_schema import artifacts, events, tasks
from necrocode.agent_runner.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from necrocode.agent_runner.clients._registry_sql import Row, Statement, Transaction

TaskOrder = Literal["created", "priority"]
_EVENT_LOCK = "events"
_time = events.c.created_at.type

_insert_event = insert_row(events, "spec_name", "task_id", "event_type", "data", "created_at").returning(*events.c)
_insert_artifact = insert_row(
    artifacts, "spec_name", "task_id", "type", "uri", "size_bytes", "metadata", "created_at"
).returning(*artifacts.c)
_last_sequence = sa.select(sa.func.coalesce(sa.func.max(events.c.sequence), 0).label("sequence"))


def add_event(  # noqa: PLR0917  what the call says
    transaction: Transaction,
    now: datetime,
    task_id: str,
    event_type: str,
    data: Mapping[str, Any],
    spec_name: str | None,
    lease_epoch: int | None,
) -> Row:
    """Append an event. Its number is greater than that of every event that a reader was told is the last."""
    transaction.lock(_EVENT_LOCK, shared=True)  # before any other, so that nobody waits in a ring
    task = identify(transaction, task_id, spec_name)
    check_epoch(task, lease_epoch)
    row = transaction.row(
        _insert_event,
        spec_name=task["spec_name"],
        task_id=task_id,
        event_type=event_type,
        data=dict(data),
        created_at=now,
    )
    return row or {}


def add_artifact(  # noqa: PLR0917  what the call says
    transaction: Transaction,
    now: datetime,
    task_id: str,
    values: Row,
    spec_name: str | None,
    lease_epoch: int | None,
) -> Row:
    """Record an artifact: ``type``, ``uri``, ``size_bytes``, ``metadata``."""
    task = identify(transaction, task_id, spec_name)
    check_epoch(task, lease_epoch)
    row = transaction.row(_insert_artifact, spec_name=task["spec_name"], task_id=task_id, created_at=now, **values)
    return row or {}


def last_settled_event(transaction: Transaction) -> int:
    """The number up to which events are complete: none with a lower one will ever appear.

    PostgreSQL numbers events when they are written, and shows them when they are committed, in another order. Whoever
    writes one holds a shared lock; taking it alone for a moment means that none is half written.
    """
    transaction.lock(_EVENT_LOCK)
    return newest_event(transaction)


def newest_event(transaction: Transaction) -> int:
    """The highest number among the events that can be seen; 0 while there are none."""
    row = transaction.row(_last_sequence)
    return int(row["sequence"]) if row else 0


def task_history(
    transaction: Transaction, kind: Literal["events", "artifacts"], task_id: str, spec_name: str | None, **page: int
) -> list[Row]:
    """One task's events or artifacts, oldest first: ``after`` a number, at most ``limit``."""
    task = identify(transaction, task_id, spec_name)
    return transaction.rows(_history_of_task(kind), at_spec=task["spec_name"], at_task=task_id, **page)


@cache
def _history_of_task(kind: Literal["events", "artifacts"]) -> sa.Select[Any]:
    table = events if kind == "events" else artifacts
    this = (table.c.spec_name == bindparam("at_spec")) & (table.c.task_id == bindparam("at_task"))
    query = sa.select(table).where(this & (table.c.sequence > bindparam("after")))
    return query.order_by(table.c.sequence).limit(bindparam("limit", type_=sa.Integer))


def all_events(transaction: Transaction, *, after: int, limit: int, **filters: object) -> list[Row]:
    """Events of all tasks in the order of their numbers.

    Filters: ``since`` (inclusive), ``until`` (exclusive), ``up_to`` (a number), ``spec_name``.
    """
    given = {name: value for name, value in filters.items() if value is not None}
    return transaction.rows(_events(frozenset(given)), after=after, limit=limit, **given)


@cache
def _events(filters: frozenset[str]) -> sa.Select[Any]:
    conditions = {
        "since": events.c.created_at >= bindparam("since", type_=_time),
        "until": events.c.created_at < bindparam("until", type_=_time),
        "up_to": events.c.sequence <= bindparam("up_to", type_=sa.BigInteger),
        "spec_name": events.c.spec_name == bindparam("spec_name", type_=sa.Text),
    }
    query = sa.select(events).where(events.c.sequence > bindparam("after", type_=sa.BigInteger))
    query = query.where(*(conditions[name] for name in sorted(filters)))
    return query.order_by(events.c.sequence).limit(bindparam("limit", type_=sa.Integer))


def search_tasks(
    transaction: Transaction, order: TaskOrder, after: list[Any] | None, limit: int, **filters: str | None
) -> list[Row]:
    """Tasks in the order in which they were made, or with ``priority`` in which they are claimed.

    Filters: ``status``, ``spec_name``, ``required_skill``. ``after`` is where the page before ended (:func:`task_key`).
    """
    given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    statement = _search(order, frozenset(given), is_first=after is None)
    if after is not None:
        given |= dict(zip(("priority", "position", "last_spec", "last_task"), after, strict=True))
        if order == "created":
            del given["priority"]
    return transaction.rows(statement, limit=limit, **given)


def task_key(row: Row) -> list[Any]:
    """What places a task in both orders."""
    return [row["priority"], row["position"], row["spec_name"], row["task_id"]]


@cache
def _search(order: TaskOrder, filters: frozenset[str], *, is_first: bool) -> Statement:
    query = sa.select(tasks).where(*(tasks.c[name] == bindparam(name) for name in sorted(filters)))
    place = (tasks.c.position, tasks.c.spec_name, tasks.c.task_id)
    if not is_first:
        priority = bindparam("priority", type_=sa.Integer)
        texts = (bindparam("last_spec", type_=sa.Text), bindparam("last_task", type_=sa.Text))
        last = (bindparam("position", type_=sa.BigInteger), *texts)
        is_behind = sa.tuple_(*place) > sa.tuple_(*last)
        if order == "priority":  # the first condition is what an index can begin with
            is_behind = (tasks.c.priority <= priority) & ((tasks.c.priority < priority) | is_behind)
        query = query.where(is_behind)
    by = (tasks.c.priority.desc(), *place) if order == "priority" else place
    return query.order_by(*by).limit(bindparam("limit", type_=sa.Integer))


def to_cursor(key: object) -> str:
    """An opaque text for where a page ended."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def from_cursor(cursor: str, kinds: tuple[type, ...]) -> list[Any]:
    """What :func:`to_cursor` was given, a list of these types; ``ServiceError`` (status 400) for anything else."""
    try:
        key = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        key = None
    fits = isinstance(key, list) and [type(part) for part in key] == list(kinds)
    if not fits or any(isinstance(part, int) and abs(part) >= 2**62 for part in key):
        raise ServiceError("The cursor is not one that this service gave out.", status_code=400)
    found: list[Any] = key
    return found
