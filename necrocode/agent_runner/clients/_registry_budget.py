"""What the registry does with the budgets of specs: reserve, settle, count, forget.

The sum of what was settled is kept for each spec; open reservations are added up anew, for they are few: as many as
there are questions under way, and those that nobody ever settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from necrocode.agent_runner.clients._registry_call import Call
from necrocode.agent_runner.clients._registry_sql import insert_row
from necrocode.agent_runner.clients._registry_tasks import at_spec
from necrocode.agent_runner.clients.registry_schema import budget_reservations as reservations
from necrocode.agent_runner.clients.registry_schema import budgets
from necrocode.agent_runner.errors import ServiceError
from necrocode.agent_runner.spending import MOST_SPENT, NOTHING, BudgetReservation, BudgetUsage, Spending

if TYPE_CHECKING:
    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.clients._registry_sql import Row, Transaction
    from necrocode.agent_runner.spending import SpendingLimits

LONGEST_TTL_SECONDS = 8 * 86_400
"""The longest that a question may be under way: a task has seven days."""
SETTLED_KEPT_SECONDS = 24 * 3600.0
"""How long settling a reservation again is known to be nothing new."""
_SECONDS_BETWEEN_SWEEPS = 600.0
_LARGEST_SUM = 2**62
_COUNTS = tuple(Spending.model_fields)

_at_id = bindparam("at_id", type_=sa.Text)
_at_time = bindparam("at_time", type_=reservations.c.expires_at.type)
_this = (reservations.c.spec_name == at_spec) & (reservations.c.reservation_id == _at_id)
_is_open = (reservations.c.spec_name == at_spec) & reservations.c.settled_at.is_(None)
_reservation = sa.select(reservations).where(_this)
_insert_reservation = insert_row(reservations)
_settle = (
    sa.update(reservations)
    .where(_this)
    .values({reservations.c[name]: bindparam(f"new_{name}") for name in (*_COUNTS, "settled_at")})
)
_book = sa.select(budgets).where(budgets.c.spec_name == at_spec)
_insert_book = insert_row(budgets)
_update_book = (
    sa.update(budgets)
    .where(budgets.c.spec_name == at_spec)
    .values({budgets.c[name]: bindparam(f"new_{name}") for name in _COUNTS})
)
_delete_book = sa.delete(budgets).where(budgets.c.spec_name == at_spec)
_delete_ended = sa.delete(reservations).where(
    (reservations.c.spec_name == at_spec)
    & (reservations.c.settled_at.is_not(None) | (reservations.c.expires_at <= _at_time))
)
_sweep = sa.delete(reservations).where(reservations.c.settled_at < _at_time)


def _sums(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    # PostgreSQL adds BIGINTs up to a NUMERIC.
    sums = {name: sa.func.coalesce(sa.func.sum(reservations.c[name]), 0) for name in _COUNTS}
    columns: list[sa.ColumnElement[Any]] = [sa.cast(one, sa.BigInteger).label(name) for name, one in sums.items()]
    return sa.select(*columns).where(_is_open & condition)


_under_way = _sums(reservations.c.expires_at > _at_time)
_given_up = _sums(reservations.c.expires_at <= _at_time)


@dataclass(frozen=True)
class Reserve:
    """What is asked for; see ``SpecBudgets.reserve_budget``."""

    spec_name: str
    reservation_id: str
    run_id: str
    need: Spending
    limits: SpendingLimits
    ttl_seconds: float


class BudgetCalls:
    """Makes the calls, as ``RegistryCalls`` makes those on tasks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_sweep = clock.monotonic()

    def reserve(self, asked: Reserve) -> Call[BudgetReservation]:
        """Set something aside, or say what it would pass."""
        _check(asked.need)
        if not 0 < asked.ttl_seconds <= LONGEST_TTL_SECONDS:
            raise ServiceError(
                f"A reservation is kept for more than 0 and at most {LONGEST_TTL_SECONDS} seconds.", status_code=400
            )
        return Call(
            lambda transaction: _reserved(transaction, self._clock.now(), asked), BudgetReservation.model_validate
        )

    def settle(self, spec_name: str, reservation_id: str, spent: Spending) -> Call[BudgetUsage]:
        """Tell what a question came to."""
        _check(spent)

        def run(transaction: Transaction) -> BudgetUsage:
            now = self._clock.now()
            usage = _settled(transaction, now, spec_name, reservation_id, spent)
            if self._clock.monotonic() >= self._next_sweep:
                self._next_sweep = self._clock.monotonic() + _SECONDS_BETWEEN_SWEEPS
                transaction.run(_sweep, at_time=now - timedelta(seconds=SETTLED_KEPT_SECONDS))
            return usage

        return Call(run, BudgetUsage.model_validate)

    def usage(self, spec_name: str) -> Call[BudgetUsage]:
        """What a spec has spent."""
        return Call(
            lambda transaction: _usage(transaction, self._clock.now(), spec_name),
            BudgetUsage.model_validate,
            changes=False,
        )

    def reset(self, spec_name: str) -> Call[BudgetUsage]:
        """Forget what a spec has spent; what is under way still counts."""
        return Call(lambda transaction: _reset(transaction, self._clock.now(), spec_name), BudgetUsage.model_validate)


def _check(spending: Spending) -> None:
    if not all(0 <= value <= MOST_SPENT for _, value in spending):
        raise ServiceError(f"One question cannot spend less than 0 or more than {MOST_SPENT}.", status_code=400)


def _reserved(transaction: Transaction, now: datetime, asked: Reserve) -> BudgetReservation:
    transaction.lock("budget", asked.spec_name)
    usage = _usage(transaction, now, asked.spec_name)
    if transaction.row(_reservation, at_spec=asked.spec_name, at_id=asked.reservation_id) is not None:
        return BudgetReservation(granted=True, usage=usage)
    taken = usage.spent.plus(usage.reserved).plus(asked.need)
    exceeded = asked.limits.exceeded(taken, usage.seconds)
    if exceeded is not None:
        return BudgetReservation(granted=False, exceeded=exceeded, usage=usage)
    transaction.run(
        _insert_reservation,
        spec_name=asked.spec_name,
        reservation_id=asked.reservation_id,
        run_id=asked.run_id,
        created_at=now,
        expires_at=now + timedelta(seconds=asked.ttl_seconds),
        settled_at=None,
        **dict(asked.need),
    )
    began_at = _opened_book(transaction, now, asked.spec_name)["began_at"]
    with_it = {"since": began_at, "reserved": usage.reserved.plus(asked.need)}
    return BudgetReservation(granted=True, usage=usage.model_copy(update=with_it))


def _opened_book(transaction: Transaction, now: datetime, spec_name: str) -> Row:
    found = transaction.row(_book, at_spec=spec_name)
    if found is not None:
        return found
    row = {"spec_name": spec_name, "began_at": now, **dict(NOTHING)}
    transaction.run(_insert_book, **row)
    return row


def _settled(
    transaction: Transaction, now: datetime, spec_name: str, reservation_id: str, spent: Spending
) -> BudgetUsage:
    transaction.lock("budget", spec_name)
    place = {"at_spec": spec_name, "at_id": reservation_id}
    found = transaction.row(_reservation, **place)
    if found is None or found["settled_at"] is None:
        if found is None:  # forgotten by an operator meanwhile: it was spent all the same
            times = {"created_at": now, "expires_at": now, "settled_at": now}
            row = {"spec_name": spec_name, "reservation_id": reservation_id, "run_id": "", **dict(spent), **times}
            transaction.run(_insert_reservation, **row)
        else:
            told = {f"new_{name}": value for name, value in spent}
            transaction.run(_settle, **place, **told, new_settled_at=now)
        book = _opened_book(transaction, now, spec_name)
        sums = {f"new_{name}": min(_LARGEST_SUM, book[name] + value) for name, value in spent}
        transaction.run(_update_book, at_spec=spec_name, **sums)
    return _usage(transaction, now, spec_name)


def _usage(transaction: Transaction, now: datetime, spec_name: str) -> BudgetUsage:
    book = transaction.row(_book, at_spec=spec_name)
    open_ones = {"at_spec": spec_name, "at_time": now}
    reserved = Spending.model_validate(transaction.row(_under_way, **open_ones))
    unsettled = Spending.model_validate(transaction.row(_given_up, **open_ones))
    settled = NOTHING if book is None else Spending.model_validate(book)
    since: datetime | None = None if book is None else book["began_at"]
    return BudgetUsage(
        spec_name=spec_name,
        since=since,
        seconds=0.0 if since is None else max(0.0, (now - since).total_seconds()),
        spent=settled.plus(unsettled),
        reserved=reserved,
        unsettled=unsettled,
    )


def _reset(transaction: Transaction, now: datetime, spec_name: str) -> BudgetUsage:
    transaction.lock("budget", spec_name)
    transaction.run(_delete_book, at_spec=spec_name)
    transaction.run(_delete_ended, at_spec=spec_name, at_time=now)
    usage = _usage(transaction, now, spec_name)
    if usage.reserved.calls:
        _opened_book(transaction, now, spec_name)
        usage = _usage(transaction, now, spec_name)
    return usage
