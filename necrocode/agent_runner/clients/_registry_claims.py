"""Who works on a task: claims, leases, and asking a task to stop or to be run again.

A claim gives the task a new epoch. Until the next claim the old epoch stays good, even when its lease has run out: what
a slow runner did is accepted while nobody else has begun.
"""

from __future__ import annotations

import hmac
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy import bindparam

from necrocode.agent_runner.clients._registry_tasks import (
    NO_LEASE,
    check_epoch,
    check_move,
    find,
    new_values,
    set_columns,
    unfinished_dependencies,
)
from necrocode.agent_runner.clients.registry_schema import tasks
from necrocode.agent_runner.errors import IllegalTransitionError, StaleLeaseError, TaskLeasedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from necrocode.agent_runner.clients._registry_sql import Row, Transaction

_now = bindparam("now", type_=tasks.c.updated_at.type)
_has_run_out = tasks.c.lease_expires_at <= _now  # none but running tasks have a lease
_end_abandoned = (
    sa.update(tasks)
    .where(_has_run_out & tasks.c.cancel_requested)
    .values(status="cancelled", cancel_requested=False, updated_at=_now, **NO_LEASE)
)
_hold = set_columns("status", "attempt", "epoch", "cancel_requested", "updated_at", *NO_LEASE)
_renew = set_columns("lease_expires_at")
_free = set_columns("status", "cancel_requested", "updated_at", *NO_LEASE)
_ask_to_stop = set_columns("cancel_requested", "updated_at")
_put_back = set_columns("status", "epoch", "cancel_requested", "updated_at", *NO_LEASE)


class _Queue(NamedTuple):
    """Tasks among which the one with the highest priority is next, then the oldest; an index knows each queue's head.

    One per skill: a single query over all would read past every task that wants another skill.
    """

    state: Literal["ready", "expired"]
    wants: Literal["anything", "no skill", "a skill"]
    is_in_spec: bool
    skill: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {} if self.skill is None else {"skill": self.skill}


class Claim(NamedTuple):
    """What came of a claim."""

    row: Row | None
    """The task that is held now; None when there is none to be had."""
    was_expired: bool = False
    """Whether its last holder's lease had run out: then others' may have too."""


def claim(
    transaction: Transaction,
    now: datetime,
    claimant: Row,
    *,
    required_skills: Sequence[str] | None,
    spec_name: str | None,
    look_for_expired: bool,
) -> Claim:
    """Hold the next task.

    The highest priority goes first, then the oldest. With ``required_skills`` only tasks that want one of these, or
    none. ``look_for_expired``: whether tasks whose lease has run out are compared with the ready ones; they are looked
    for anyway before the answer is None. ``claimant``: ``runner_id``, ``token``, ``lease_seconds``.
    """
    given: dict[str, Any] = {"now": now} | ({} if spec_name is None else {"at_spec": spec_name})
    queues = _queues(required_skills, spec_name is not None)
    if look_for_expired:
        transaction.run(_end_abandoned, now=now)
        queues += [queue._replace(state="expired") for queue in queues]
    lease = {
        "new_token": claimant["token"],
        "new_holder": claimant["runner_id"],
        "new_expiry": now + timedelta(seconds=claimant["lease_seconds"]),
    }
    for queue in queues if len(queues) == 1 else _best_first(transaction, queues, given):
        row = transaction.row(_take(queue._replace(skill=None)), **given, **lease, **queue.parameters)
        if row is not None:
            return Claim(row, was_expired=queue.state == "expired")
    if look_for_expired:
        return Claim(None)
    return claim(
        transaction, now, claimant, required_skills=required_skills, spec_name=spec_name, look_for_expired=True
    )


def _queues(required_skills: Sequence[str] | None, is_in_spec: bool) -> list[_Queue]:  # noqa: FBT001  said by the name
    if required_skills is None:
        return [_Queue("ready", "anything", is_in_spec)]
    skilled = [_Queue("ready", "a skill", is_in_spec, skill) for skill in dict.fromkeys(required_skills)]
    return [_Queue("ready", "no skill", is_in_spec), *skilled]


def _best_first(transaction: Transaction, queues: Sequence[_Queue], given: dict[str, Any]) -> list[_Queue]:
    """The queues that are not empty, the best head first. Heads are looked at, not locked, so that nobody passes by."""
    heads = []
    for queue in queues:
        head = transaction.row(_head(queue._replace(skill=None)), **given, **queue.parameters)
        if head is not None:
            heads.append(((-head["priority"], head["position"]), queue))
    return [queue for _, queue in sorted(heads, key=lambda item: item[0])]


def _first_of(queue: _Queue, *columns: sa.Column[Any]) -> sa.Select[Any]:
    state = tasks.c.status == sa.literal_column("'ready'") if queue.state == "ready" else _has_run_out
    query = sa.select(*columns).where(state)
    if queue.is_in_spec:
        # Those whose lease ran out are few: an index on the spec, which may be large, shall not be preferred.
        name = tasks.c.spec_name if queue.state == "ready" else tasks.c.spec_name.concat("")
        query = query.where(name == bindparam("at_spec", type_=sa.Text))
    if queue.wants == "no skill":
        query = query.where(tasks.c.required_skill.is_(None))
    if queue.wants == "a skill":
        query = query.where(tasks.c.required_skill == bindparam("skill"))
    return query.order_by(tasks.c.priority.desc(), tasks.c.position).limit(sa.literal_column("1"))


@cache
def _head(queue: _Queue) -> sa.Select[Any]:
    return _first_of(queue, tasks.c.priority, tasks.c.position)


@cache
def _take(queue: _Queue) -> sa.Update:
    """Take the first task that no other transaction is taking; ``MATERIALIZED``, so that it is picked once."""
    first = _first_of(queue, tasks.c.spec_name, tasks.c.task_id).with_for_update(key_share=True, skip_locked=True)
    picked = first.cte("picked")
    return (
        sa.update(tasks)
        .where((tasks.c.spec_name == picked.c.spec_name) & (tasks.c.task_id == picked.c.task_id))
        .values(
            status="running",
            attempt=tasks.c.attempt + 1,
            epoch=tasks.c.epoch + 1,
            cancel_requested=False,
            lease_token=bindparam("new_token"),
            lease_holder=bindparam("new_holder"),
            lease_expires_at=bindparam("new_expiry"),
            updated_at=_now,
        )
        .returning(*tasks.c)
    )


def claim_this(transaction: Transaction, now: datetime, task_id: str, spec_name: str | None, claimant: Row) -> Row:
    """Hold one task; ``TaskLeasedError`` while another runner does, ``IllegalTransitionError`` where it cannot be run.

    A lease that ran out, or that the runner itself holds from before, is taken over. If the task was asked to stop
    meanwhile, it still is.
    """
    row = find(transaction, task_id, spec_name, lock=True)
    is_running = row["status"] == "running"
    if is_running and row["lease_token"] is not None and row["lease_holder"] != claimant["runner_id"]:
        _refuse_live_lease(row, now)
    check_move(transaction, row, "running", is_leased=True)
    changed = {
        "status": "running",
        "attempt": row["attempt"] + 1,
        "epoch": row["epoch"] + 1,
        "cancel_requested": is_running and row["cancel_requested"],
        "lease_token": claimant["token"],
        "lease_holder": claimant["runner_id"],
        "lease_expires_at": now + timedelta(seconds=claimant["lease_seconds"]),
        "updated_at": now,
    }
    transaction.run(_hold, **_place(row), **new_values(changed))
    return row | changed


def _refuse_live_lease(row: Row, now: datetime) -> None:
    if row["lease_expires_at"] > now:
        raise TaskLeasedError(
            f"Task {row['task_id']} of spec {row['spec_name']} is held by {row['lease_holder']} until"
            f" {row['lease_expires_at']:%Y-%m-%dT%H:%M:%SZ}, or longer if that run goes on.",
            hint="Run it again later, or with the lease of whoever has claimed it, or cancel the task first.",
            status_code=409,
        )


def renew(  # noqa: PLR0917  what the call says
    transaction: Transaction, now: datetime, task_id: str, spec_name: str | None, token: str, lease_seconds: float
) -> Row:
    """Hold the task for longer; ``StaleLeaseError`` when it is no longer the token's."""
    row = find(transaction, task_id, spec_name, lock=True)
    if row["status"] != "running" or not _is_held_with(row, token):
        raise _lost_lease(row)
    changed = {"lease_expires_at": now + timedelta(seconds=lease_seconds)}
    transaction.run(_renew, **_place(row), **new_values(changed))
    return row | changed


def give_back(transaction: Transaction, now: datetime, task_id: str, spec_name: str | None, token: str) -> Row:
    """Let others have the task: ``ready``, or ``cancelled`` where that was asked for. Nobody's task stays as it is.

    Its new epoch refuses what its holder had sent and what arrives only now.
    """
    row = find(transaction, task_id, spec_name, lock=True)
    if row["lease_token"] is None:
        return row
    if not _is_held_with(row, token):
        raise _lost_lease(row)
    status = "cancelled" if row["cancel_requested"] else "ready"
    epoch = row["epoch"] + 1
    changed = {"status": status, "epoch": epoch, "cancel_requested": False, "updated_at": now, **NO_LEASE}
    transaction.run(_put_back, **_place(row), **new_values(changed))
    return row | changed | {"cancel_requested": row["cancel_requested"]}


def cancel(
    transaction: Transaction, now: datetime, task_id: str, spec_name: str | None, lease_epoch: int | None
) -> Row:
    """Ask the runner of a running task to stop; one that does not run is ``cancelled`` at once."""
    row = find(transaction, task_id, spec_name, lock=True)
    check_epoch(row, lease_epoch)
    if row["status"] == "running":
        changed: dict[str, Any] = {"cancel_requested": True, "updated_at": now}
        transaction.run(_ask_to_stop, **_place(row), **new_values(changed))
        return row | changed
    if row["status"] == "cancelled":
        return row
    if row["status"] not in {"blocked", "ready"}:
        raise _refused(row, "cancelled", "blocked, ready or running")
    changed = {"status": "cancelled", "cancel_requested": False, "updated_at": now, **NO_LEASE}
    transaction.run(_free, **_place(row), **new_values(changed))
    return row | changed


def retry(transaction: Transaction, now: datetime, task_id: str, spec_name: str | None) -> Row:
    """Put a failed or cancelled task back; its new epoch refuses whatever its last runner still writes."""
    found = find(transaction, task_id, spec_name)
    transaction.lock("spec", found["spec_name"])  # against a dependency that becomes done meanwhile
    row = find(transaction, task_id, found["spec_name"], lock=True)
    if row["status"] not in {"failed", "cancelled"}:
        raise _refused(row, "ready", "failed or cancelled")
    waits = unfinished_dependencies(transaction, row["spec_name"], task_id)
    changed = {
        "status": "blocked" if waits else "ready",
        "epoch": row["epoch"] + 1,
        "cancel_requested": False,
        "updated_at": now,
        **NO_LEASE,
    }
    transaction.run(_put_back, **_place(row), **new_values(changed))
    return row | changed


def _place(row: Row) -> dict[str, Any]:
    return {"at_spec": row["spec_name"], "at_task": row["task_id"]}


def _is_held_with(row: Row, token: str) -> bool:
    return row["lease_token"] is not None and hmac.compare_digest(row["lease_token"].encode(), token.encode())


def _lost_lease(row: Row) -> StaleLeaseError:
    holder = row["lease_holder"]
    now_is = f"it is {row['status']}" + (f", held by {holder}" if holder else "")
    return StaleLeaseError(f"The lease of task {row['task_id']} is not this runner's: {now_is}.", status_code=409)


def _refused(row: Row, wanted: str, needed: str) -> IllegalTransitionError:
    return IllegalTransitionError(
        f"Task {row['task_id']} is {row['status']} and cannot become {wanted}: it must be {needed}.", status_code=409
    )
