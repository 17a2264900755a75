"""What the registry does with one task: find it, register it, move it from state to state.

Every operation is a function of an open transaction, the time, and its arguments; it gives rows as dictionaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from necrocode.agent_runner.clients._registry_sql import insert_row
from necrocode.agent_runner.clients._task_states import FINISHED, canonical_status, check_transition
from necrocode.agent_runner.clients.registry_schema import dependencies, tasks
from necrocode.agent_runner.errors import (
    AmbiguousTaskError,
    IllegalTransitionError,
    StaleLeaseError,
    TaskContextValidationError,
    TaskNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from necrocode.agent_runner.clients._registry_sql import Row, Transaction

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_holder": None, "lease_expires_at": None}
DEFINITION = ("title", "description", "acceptance_criteria", "dependencies", "required_skill", "metadata")
_MOST_SPECS_NAMED = 10

at_spec, at_task = bindparam("at_spec", type_=sa.Text), bindparam("at_task", type_=sa.Text)
this_task = (tasks.c.spec_name == at_spec) & (tasks.c.task_id == at_task)
_specs_of = (
    sa.select(tasks.c.spec_name).where(tasks.c.task_id == at_task).order_by(tasks.c.spec_name).limit(_MOST_SPECS_NAMED)
)
_in_spec = sa.select(tasks).where(this_task)
_identity = sa.select(tasks.c.spec_name, tasks.c.task_id, tasks.c.epoch).where(this_task)
_in_spec_locked = _in_spec.with_for_update(key_share=True)


def set_columns(*names: str) -> sa.Update:
    """An update of one task (``at_spec``, ``at_task``) that sets these columns from ``new_…``."""
    return sa.update(tasks).where(this_task).values({tasks.c[name]: bindparam(f"new_{name}") for name in names})


def new_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters for :func:`set_columns`."""
    return {f"new_{name}": value for name, value in values.items()}


_insert = insert_row(tasks)
_last_position = sa.select(sa.func.coalesce(sa.func.max(tasks.c.position), 0).label("position"))
_redefine = set_columns(*DEFINITION, "status", "updated_at")
_redefine_with_priority = set_columns(*DEFINITION, "priority", "status", "updated_at")
_set_status = set_columns("status", "updated_at")
_move = set_columns("status", "attempt", "metadata", "updated_at")
_move_and_free = set_columns(
    "status", "attempt", "metadata", "updated_at", "cancel_requested", "lease_token", "lease_holder", "lease_expires_at"
)

_forget_dependencies = sa.delete(dependencies).where(
    (dependencies.c.spec_name == at_spec) & (dependencies.c.task_id == at_task)
)
_insert_dependency = insert_row(dependencies)
_waits_for = sa.and_(dependencies.c.spec_name == tasks.c.spec_name, dependencies.c.depends_on == tasks.c.task_id)
_unfinished = (
    sa.select(tasks.c.task_id, tasks.c.status)
    .join_from(dependencies, tasks, _waits_for)
    .where((dependencies.c.spec_name == at_spec) & (dependencies.c.task_id == at_task) & (tasks.c.status != "done"))
    .order_by(dependencies.c.depends_on)
    .limit(_MOST_SPECS_NAMED)
)
_dependants = sa.select(dependencies.c.task_id).where(
    (dependencies.c.spec_name == at_spec) & (dependencies.c.depends_on == at_task)
)
_blocked_dependants = (
    sa.select(tasks.c.task_id)
    .where((tasks.c.spec_name == at_spec) & (tasks.c.status == "blocked") & tasks.c.task_id.in_(_dependants))
    .order_by(tasks.c.task_id)
    .with_for_update(key_share=True)
)
_awaited = tasks.alias("awaited")
_is_held_up = (
    sa.select(sa.literal(1))
    .select_from(
        sa.join(
            dependencies,
            _awaited,
            (_awaited.c.spec_name == dependencies.c.spec_name) & (_awaited.c.task_id == dependencies.c.depends_on),
        )
    )
    .where(
        (dependencies.c.spec_name == tasks.c.spec_name)
        & (dependencies.c.task_id == tasks.c.task_id)
        & (_awaited.c.status != "done")
    )
    .correlate(tasks)
    .exists()
)
_unblock = (
    sa.update(tasks)
    .where(
        (tasks.c.spec_name == at_spec)
        & (tasks.c.status.concat("") == "blocked")  # so that no index on states is preferred to the tasks' own
        & tasks.c.task_id.in_(_dependants)
        & sa.not_(_is_held_up)
    )
    .values(status="ready", updated_at=bindparam("new_updated_at"))
)
_reached = sa.select(at_task.label("task_id")).cte("reached", recursive=True)
_reached = _reached.union(
    sa.select(dependencies.c.depends_on).where(
        (dependencies.c.spec_name == at_spec) & (dependencies.c.task_id == _reached.c.task_id)
    )
)
_dependencies_reached = sa.select(dependencies.c.task_id, dependencies.c.depends_on).where(
    (dependencies.c.spec_name == at_spec) & dependencies.c.task_id.in_(sa.select(_reached.c.task_id))
)


def find(transaction: Transaction, task_id: str, spec_name: str | None, *, lock: bool = False) -> Row:
    """The task's row, with ``lock`` held till the end of the transaction.

    ``TaskNotFoundError``; ``AmbiguousTaskError`` for a bare id that names tasks of several specs.
    """
    return _found(transaction, _in_spec_locked if lock else _in_spec, task_id, spec_name)


def identify(transaction: Transaction, task_id: str, spec_name: str | None) -> Row:
    """The task's ``spec_name``, ``task_id`` and ``epoch`` alone; otherwise as :func:`find`."""
    return _found(transaction, _identity, task_id, spec_name)


def _found(transaction: Transaction, query: sa.Select[Any], task_id: str, spec_name: str | None) -> Row:
    if spec_name is None:
        spec_name = _only_spec_of(transaction, task_id)
    row = None
    if not _is_no_name(task_id + spec_name):
        row = transaction.row(query, at_spec=spec_name, at_task=task_id)
    if row is None:
        raise TaskNotFoundError(f"The task registry has no task {task_id} of spec {spec_name}.", status_code=404)
    return row


def _only_spec_of(transaction: Transaction, task_id: str) -> str:
    rows = [] if _is_no_name(task_id) else transaction.rows(_specs_of, at_task=task_id)
    if not rows:
        raise TaskNotFoundError(f"The task registry has no task {task_id}.", status_code=404)
    if len(rows) > 1:
        specs = ", ".join(row["spec_name"] for row in rows)
        raise AmbiguousTaskError(
            f"The task id {task_id} names a task in each of the specs {specs}.",
            hint="Pass spec_name.",
            status_code=409,
        )
    spec_name: str = rows[0]["spec_name"]
    return spec_name


def _is_no_name(text: str) -> bool:
    """Whether nothing can be called that: PostgreSQL refuses to be asked for it."""
    return "\0" in text


def check_epoch(row: Row, lease_epoch: int | None) -> None:
    """Raise ``StaleLeaseError`` when the writer's lease is older than the task's present one."""
    if lease_epoch is not None and lease_epoch < row["epoch"]:
        raise StaleLeaseError(
            f"Task {row['task_id']} has the epoch {row['epoch']} by now: what a runner of epoch {lease_epoch} writes is"
            " refused.",
            status_code=409,
        )


def register(transaction: Transaction, now: datetime, spec_name: str, task_id: str, definition: Row) -> Row:
    """Make a task, or bring its definition up to date; a finished one can be run again.

    It is ``blocked`` while a task that it depends on is known and not done; a running one is not disturbed.
    ``definition`` holds the columns of :data:`DEFINITION`, and ``priority`` where that shall change.
    """
    transaction.lock("spec", spec_name)  # a dependency that becomes done meanwhile would not see this task waiting
    found = transaction.row(_in_spec_locked, at_spec=spec_name, at_task=task_id)
    place = {"at_spec": spec_name, "at_task": task_id}
    if found is None:
        insert_task(transaction, now, spec_name, task_id, {"priority": 0, **definition, "status": "ready"})
        status = "ready"
    else:
        status = "running" if found["status"] == "running" else "ready"
        values = new_values({**definition, "status": status, "updated_at": now})
        transaction.run(_redefine_with_priority if "priority" in definition else _redefine, **place, **values)
    if definition["dependencies"] or (found is not None and found["dependencies"]):
        replace_dependencies(transaction, spec_name, task_id, definition["dependencies"])
        if status == "ready" and unfinished_dependencies(transaction, spec_name, task_id):
            transaction.run(_set_status, **place, new_status="blocked", new_updated_at=now)
    return find(transaction, task_id, spec_name)


def insert_task(transaction: Transaction, now: datetime, spec_name: str, task_id: str, values: Row) -> None:
    """Make a task, behind all others."""
    last = transaction.row(_last_position)
    row = {
        "spec_name": spec_name,
        "task_id": task_id,
        "attempt": 0,
        "epoch": 0,
        "cancel_requested": False,
        "position": 1 + (last["position"] if last else 0),
        "created_at": now,
        "updated_at": now,
    }
    transaction.run(_insert, **row, **NO_LEASE, **values)


def replace_dependencies(
    transaction: Transaction, spec_name: str, task_id: str, depends_on: Iterable[str], *, check: bool = True
) -> None:
    """Record what a task waits for; ``TaskContextValidationError`` naming the path when it would wait for itself."""
    transaction.run(_forget_dependencies, at_spec=spec_name, at_task=task_id)
    rows = [
        {"spec_name": spec_name, "task_id": task_id, "depends_on": dependency}
        for dependency in dict.fromkeys(depends_on)
    ]
    transaction.run_many(_insert_dependency, rows)
    if check and rows:
        _check_no_cycle(transaction, spec_name, task_id)


def _check_no_cycle(transaction: Transaction, spec_name: str, task_id: str) -> None:
    graph: dict[str, list[str]] = {task_id: []}
    for row in transaction.rows(_dependencies_reached, at_spec=spec_name, at_task=task_id):
        graph.setdefault(row["task_id"], []).append(row["depends_on"])
    refuse_cycle(graph)


def refuse_cycle(graph: Mapping[str, Iterable[str]]) -> None:
    """Raise ``TaskContextValidationError`` when tasks wait for each other, naming the path."""
    from necrocode.agent_runner.task_graph import find_cycle  # noqa: PLC0415  only tasks with dependencies need it

    path = find_cycle(graph)
    if path is not None:
        raise TaskContextValidationError(
            f"The tasks wait for each other: {' -> '.join(path)}.",
            hint="Take one of these dependencies away.",
            status_code=422,
        )


def unfinished_dependencies(transaction: Transaction, spec_name: str, task_id: str) -> list[Row]:
    """Ids and states of the known tasks that the task still waits for, ten at most."""
    return transaction.rows(_unfinished, at_spec=spec_name, at_task=task_id)


def update_status(  # noqa: PLR0917  what the call says
    transaction: Transaction,
    now: datetime,
    task_id: str,
    status: str,
    metadata: Mapping[str, Any] | None,
    spec_name: str | None,
    lease_epoch: int | None,
) -> Row:
    """Move the task to a state; a task that becomes done frees those which waited for it alone.

    Under a lease (``lease_epoch``) a finished task is finished for good; without one it may be started anew.
    """
    new = canonical_status(status)
    if new == "done":
        spec_name = spec_name if spec_name is not None else _only_spec_of(transaction, task_id)
        transaction.lock("spec", spec_name, shared=True)
    row = find(transaction, task_id, spec_name, lock=True)
    old = row["status"]
    check_epoch(row, lease_epoch)
    check_move(transaction, row, new, is_leased=lease_epoch is not None)
    changed = {
        "status": new,
        "attempt": row["attempt"] + (new == "running" and old != "running"),
        "metadata": {**row["metadata"], **(metadata or {})},
        "updated_at": now,
    }
    place = {"at_spec": row["spec_name"], "at_task": task_id}
    if new == "running":
        transaction.run(_move, **place, **new_values(changed))
    else:
        changed |= {"cancel_requested": False, **NO_LEASE}
        transaction.run(_move_and_free, **place, **new_values(changed))
    if new == "done" and old != "done":
        unblock_dependants(transaction, now, row["spec_name"], task_id)
    return row | changed


def check_move(transaction: Transaction, row: Row, new: str, *, is_leased: bool) -> None:
    """Raise ``IllegalTransitionError`` unless the task may go to a state; ``is_leased``: none follows an end."""
    old, task_id = row["status"], row["task_id"]
    if is_leased and old in FINISHED and new != old:
        raise IllegalTransitionError(
            f"Task {task_id} is {old} and cannot become {new}: it has ended.",
            hint="Retry the task to run it anew.",
            status_code=409,
        )
    try:
        check_transition(task_id, old, new)
    except IllegalTransitionError as error:
        waiting = unfinished_dependencies(transaction, row["spec_name"], task_id) if old == "blocked" else []
        if not waiting:
            raise
        named = ", ".join(f"{one['task_id']} ({one['status']})" for one in waiting)
        raise IllegalTransitionError(str(error), hint=f"It waits for {named}.", status_code=409) from error


def unblock_dependants(transaction: Transaction, now: datetime, spec_name: str, task_id: str) -> None:
    """Make ``ready`` what waited for this task, now done, and for no other.

    The waiting tasks are locked first: when two dependencies of a task become done at once, the second then sees the
    first (PostgreSQL, "Read Committed Isolation Level": each statement has a snapshot of its own).
    """
    place = {"at_spec": spec_name, "at_task": task_id}
    if transaction.rows(_blocked_dependants, **place):
        transaction.run(_unblock, **place, new_updated_at=now)
