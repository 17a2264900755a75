"""A spec and all its tasks, put in and read in one transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from necrocode.agent_runner.clients._registry_sql import insert_row
from necrocode.agent_runner.clients._registry_tasks import (
    DEFINITION,
    NO_LEASE,
    at_spec,
    new_values,
    refuse_cycle,
    set_columns,
)
from necrocode.agent_runner.clients.registry_schema import dependencies, specs, tasks
from necrocode.agent_runner.errors import TaskContextValidationError, TaskNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from necrocode.agent_runner.clients._registry_sql import Row, Transaction
    from necrocode.agent_runner.records import TaskDefinition, TaskSet

_spec = sa.select(specs).where(specs.c.spec_name == at_spec)
_insert_spec = insert_row(specs)
_update_spec = (
    sa.update(specs)
    .where(specs.c.spec_name == at_spec)
    .values({specs.c[name]: bindparam(f"new_{name}") for name in ("description", "metadata", "updated_at")})
)
_tasks_of_spec = sa.select(tasks).where(tasks.c.spec_name == at_spec).order_by(tasks.c.position, tasks.c.task_id)
_tasks_locked = (
    sa.select(tasks.c.task_id, tasks.c.status, tasks.c.attempt)
    .where(tasks.c.spec_name == at_spec)
    .order_by(tasks.c.task_id)
    .with_for_update(key_share=True)
)
_last_position = sa.select(sa.func.coalesce(sa.func.max(tasks.c.position), 0).label("position"))
_insert_task = insert_row(tasks)
_redefine = set_columns(*DEFINITION, "priority", "status", "updated_at")
_drop = sa.delete(tasks).where((tasks.c.spec_name == at_spec) & (tasks.c.task_id == bindparam("at_task")))
_cancel = set_columns("status", "updated_at")
_forget_dependencies = sa.delete(dependencies).where(dependencies.c.spec_name == at_spec)
_insert_dependency = insert_row(dependencies)


def check_taskset(taskset: TaskSet) -> None:
    """Raise ``TaskContextValidationError`` for an id given twice, an unknown dependency or a cycle."""
    twice = [task_id for task_id, count in Counter(task.task_id for task in taskset.tasks).items() if count > 1]
    if twice:
        raise TaskContextValidationError(
            f"The spec {taskset.spec_name} has more than one task {twice[0]}.", status_code=422
        )
    known = {task.task_id for task in taskset.tasks}
    for task in taskset.tasks:
        for dependency in task.dependencies:
            if dependency not in known:
                raise TaskContextValidationError(
                    f"Task {task.task_id} depends on {dependency}, which is no task of the spec {taskset.spec_name}.",
                    status_code=422,
                )
    refuse_cycle({task.task_id: task.dependencies for task in taskset.tasks})


def create(transaction: Transaction, now: datetime, taskset: TaskSet) -> None:
    """Put a checked spec and its tasks in, or bring them up to date.

    What has been worked on stays: a running, done, failed or cancelled task keeps its state and history, only its
    definition changes. Others are ``ready`` or ``blocked`` by the new dependencies. A task that the spec no longer has
    is taken out when nobody ever worked on it; else it stays on record, ``cancelled`` if it was waiting.
    """
    transaction.lock("spec", taskset.spec_name)
    _put_spec(transaction, now, taskset)
    found = {row["task_id"]: row for row in transaction.rows(_tasks_locked, at_spec=taskset.spec_name)}
    done = {task_id for task_id, row in found.items() if row["status"] == "done"}
    _redefine_known(transaction, now, taskset, found, done)
    _insert_new(transaction, now, taskset, found, done)
    _remove_others(transaction, now, taskset, found)
    transaction.run(_forget_dependencies, at_spec=taskset.spec_name)
    transaction.run_many(
        _insert_dependency,
        [
            {"spec_name": taskset.spec_name, "task_id": task.task_id, "depends_on": dependency}
            for task in taskset.tasks
            for dependency in dict.fromkeys(task.dependencies)
        ],
    )


def _put_spec(transaction: Transaction, now: datetime, taskset: TaskSet) -> None:
    values: dict[str, Any] = {"description": taskset.description, "metadata": taskset.metadata, "updated_at": now}
    if not transaction.run(_update_spec, at_spec=taskset.spec_name, **new_values(values)):
        transaction.run(_insert_spec, spec_name=taskset.spec_name, created_at=now, **values)


def _redefine_known(
    transaction: Transaction, now: datetime, taskset: TaskSet, found: Mapping[str, Row], done: set[str]
) -> None:
    rows = []
    for task in taskset.tasks:
        if task.task_id in found:
            status = found[task.task_id]["status"]
            status = _first_status(task, done) if status in {"blocked", "ready"} else status
            place = {"at_spec": taskset.spec_name, "at_task": task.task_id}
            rows.append(place | new_values({**definition_of(task), "status": status, "updated_at": now}))
    transaction.run_many(_redefine, rows)


def _insert_new(
    transaction: Transaction, now: datetime, taskset: TaskSet, found: Mapping[str, Row], done: set[str]
) -> None:
    last = transaction.row(_last_position)
    position = last["position"] if last else 0
    fresh = {"attempt": 0, "epoch": 0, "cancel_requested": False, "created_at": now, "updated_at": now, **NO_LEASE}
    new = [task for task in taskset.tasks if task.task_id not in found]
    transaction.run_many(
        _insert_task,
        [
            fresh
            | definition_of(task)
            | {
                "spec_name": taskset.spec_name,
                "task_id": task.task_id,
                "status": _first_status(task, done),
                "position": position + number,
            }
            for number, task in enumerate(new, start=1)
        ],
    )


def _remove_others(transaction: Transaction, now: datetime, taskset: TaskSet, found: Mapping[str, Row]) -> None:
    kept = {task.task_id for task in taskset.tasks}
    waiting = [row for row in found.values() if row["task_id"] not in kept and row["status"] in {"blocked", "ready"}]
    for row in waiting:
        place = {"at_spec": taskset.spec_name, "at_task": row["task_id"]}
        if row["attempt"]:
            transaction.run(_cancel, **place, new_status="cancelled", new_updated_at=now)
        else:
            transaction.run(_drop, **place)


def _first_status(task: TaskDefinition, done: set[str]) -> str:
    return "ready" if done.issuperset(task.dependencies) else "blocked"


def definition_of(task: TaskDefinition) -> Row:
    """The columns that a definition fills."""
    return {
        "title": task.title,
        "description": task.description,
        "acceptance_criteria": list(task.acceptance_criteria),
        "dependencies": list(task.dependencies),
        "required_skill": task.required_skill,
        "metadata": task.metadata,
        "priority": task.priority,
    }


def read(transaction: Transaction, spec_name: str) -> tuple[Row, list[Row]]:
    """The spec's row and those of its tasks; ``TaskNotFoundError`` where there is neither.

    A spec whose tasks were only ever registered one by one has a row without description.
    """
    spec = transaction.row(_spec, at_spec=spec_name)
    rows = transaction.rows(_tasks_of_spec, at_spec=spec_name)
    if spec is None and not rows:
        raise TaskNotFoundError(f"The task registry has no spec {spec_name}.", status_code=404)
    return spec or {"spec_name": spec_name}, rows
