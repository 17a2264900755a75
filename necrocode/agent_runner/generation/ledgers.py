"""The books of a budget: what is spent, what is reserved, and whether a question still fits in.

A book is kept in memory for a run and for a process, and in the task registry for a spec.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import in_time
from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._clock import pause
from necrocode.agent_runner.errors import BudgetExhaustedError, RunnerError, ServiceError
from necrocode.agent_runner.spending import MICRO, NOTHING, LimitName, ModelPrice, Spending, SpendingLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._clock import Clock, Deadline
    from necrocode.agent_runner.protocols import SpecBudgets
    from necrocode.agent_runner.spending import BudgetReservation, BudgetUsage

LEAST_COMPLETION_TOKENS = 512
"""A question is not asked for the sake of a shorter answer than this, unless it wants no longer one."""
POLL_SECONDS = 1.0
"""How often it is looked whether others have given something back in the registry."""
_LOOK_SECONDS = 0.2
_LONGEST_QUESTION_SECONDS = 8 * 86_400.0
_USUAL_QUESTION_SECONDS = 3600.0
_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Need:
    """What a question to the model may come to; the prompt's tokens are an estimate."""

    prompt_tokens: int
    completion_tokens: int
    """The longest answer that is asked for."""
    price: ModelPrice | None

    @property
    def least_completion_tokens(self) -> int:
        """The longest answer that must be possible at the least."""
        return min(LEAST_COMPLETION_TOKENS, self.completion_tokens)

    def spending(self, completion_tokens: int) -> Spending:
        """What it uses and costs with an answer of this length."""
        price = self.price
        return Spending(
            calls=1,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion_tokens,
            cost_micro_usd=0 if price is None else price.cost_micro_usd(self.prompt_tokens, completion_tokens),
            unpriced_calls=int(price is None),
            estimated_calls=1,
        )


@dataclass(frozen=True)
class Scope:
    """Whose limits they are: how errors call it, and where its settings are."""

    name: str
    settings: str
    hint: str = ""
    """What else helps than to raise a limit."""

    def exhausted(self, told: str, *, limit: LimitName, left: float = 0, needed: float = 0) -> BudgetExhaustedError:
        """The error that says that one of the limits is met."""
        setting = f"{self.settings}.{limit}"
        return BudgetExhaustedError(
            f"The budget of {self.name} is used up: {told}.",
            hint=f"Raise {setting}{self.hint}.",
            limit=setting,
            left=left,
            needed=needed,
        )


@dataclass(frozen=True)
class Book:
    """What is known of one group of calls at one moment."""

    scope: Scope
    limits: SpendingLimits
    spent: Spending
    reserved: Spending
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """Of the wall time; None where that is not limited."""
        return None if self.limits.max_seconds is None else max(0.0, self.limits.max_seconds - self.seconds)

    def answer_room(self, need: Need, taken: Spending) -> tuple[int, LimitName | None]:
        """The longest answer that fits where this much is taken, and the limit that it meets; None: no limit.

        -1 where not even the prompt fits.
        """
        limits, cost = self.limits, self.limits.max_cost_micro_usd
        rooms: list[tuple[int, LimitName]] = []
        if limits.max_calls is not None:
            rooms.append((need.completion_tokens if taken.calls < limits.max_calls else -1, "max_calls"))
        if limits.max_tokens is not None:
            rooms.append((limits.max_tokens - taken.tokens - need.prompt_tokens, "max_tokens"))
        if cost is not None:
            left = cost - taken.cost_micro_usd
            free = need.completion_tokens if left >= 0 else -1
            price = need.price
            room = free if price is None else price.completion_tokens_for(left, need.prompt_tokens)
            rooms.append((room, "max_cost_usd"))
        if limits.max_seconds is not None:
            rooms.append((need.completion_tokens if self.seconds < limits.max_seconds else -1, "max_seconds"))
        return min(rooms, default=(need.completion_tokens, None))

    def check_room(self, price: ModelPrice | None) -> None:
        """Return when the shortest question would fit in with what is spent; else ``BudgetExhaustedError``."""
        replace(self, reserved=NOTHING).granted(Need(0, LEAST_COMPLETION_TOKENS, price), None)

    def granted(self, need: Need, deadline: Deadline | None) -> tuple[int, LimitName | None] | None:
        """How long an answer may be asked for, and the limit that makes it shorter than it was wanted.

        None: wait, for what others have reserved may come back.

        Without a deadline nobody waits. ``BudgetExhaustedError`` where the least answer does not fit, whatever comes
        back; ``RunnerTimeoutError`` when the deadline ends the wait.
        """
        room, limit = self.answer_room(need, self.spent.plus(self.reserved))
        if limit is None or room >= need.completion_tokens:
            return need.completion_tokens, None
        if self.reserved.calls and deadline is not None:
            best, _ = self.answer_room(need, self.spent)
            if best > room and best >= need.least_completion_tokens:
                deadline.check("ask the model: others have reserved what is left of the budget")
                return None
        if room >= need.least_completion_tokens:
            return room, limit
        raise self._exhausted(need, limit)

    def _exhausted(self, need: Need, limit: LimitName) -> BudgetExhaustedError:
        taken, least = self.spent.plus(self.reserved), need.spending(need.least_completion_tokens)
        limits = self.limits
        figures: dict[LimitName, tuple[float | None, float, float, str]] = {
            "max_calls": (limits.max_calls, taken.calls, 1, "calls"),
            "max_tokens": (limits.max_tokens, taken.tokens, least.tokens, "tokens"),
            "max_cost_usd": (
                (limits.max_cost_micro_usd or 0) / MICRO,
                taken.cost_micro_usd / MICRO,
                least.cost_micro_usd / MICRO,
                "US dollars",
            ),
            "max_seconds": (limits.max_seconds, self.seconds, 0, "seconds"),
        }
        top, used, needed, unit = figures[limit]
        left = max(0.0, (top or 0) - used)
        told = f"the next question needs {_written(needed)} {unit} at least"
        if limit in {"max_calls", "max_seconds"}:
            told = "the next question is one call more" if needed else "its time is over"
        under_way = f", with {self.reserved.calls} under way" if self.reserved.calls else ""
        return self.scope.exhausted(
            f"{told}, and {_written(left)} of {_written(top or 0)} are left{under_way}",
            limit=limit,
            left=left,
            needed=needed,
        )


def _written(number: float) -> str:
    return f"{number:,.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Held:
    """What is reserved in one book."""

    scope: Scope
    amount: Spending
    seconds_left: float | None
    """Of the book's wall time; None: it is not limited."""
    lowered_by: LimitName | None = None
    """The limit for the sake of which the answer may not be as long as it was wanted."""
    reservation_id: str = ""
    """In the registry."""


class Ledger:
    """A book in memory. Safe for threads: what is spent and reserved never passes a limit, but by wrong estimates."""

    def __init__(self, scope: Scope, limits: SpendingLimits, clock: Clock) -> None:
        self.limits = limits
        self._scope = scope
        self._clock = clock
        self._began: float | None = None
        self._spent = self._reserved = NOTHING
        self._changed = threading.Condition()

    def begin(self) -> None:
        """Let the time of ``max_seconds`` run from now on, unless it does so already."""
        with self._changed:
            self._began = self._clock.monotonic() if self._began is None else self._began

    @property
    def spent(self) -> Spending:
        """What was settled."""
        return self._spent

    def check_room(self, price: ModelPrice | None) -> None:
        """As :meth:`Book.check_room`."""
        with self._changed:
            book = Book(self._scope, self.limits, self._spent, self._reserved, self._seconds())
        book.check_room(price)

    def reserve(self, need: Need, deadline: Deadline | None) -> Held:
        """Set aside what the question may come to, with a shorter answer where there is no room for a long one.

        Waits until the deadline for what others have reserved; see :meth:`Book.granted` for what is raised.
        """
        with self._changed:
            while True:
                book = Book(self._scope, self.limits, self._spent, self._reserved, self._seconds())
                granted = book.granted(need, deadline)
                if granted is not None:
                    length, limit = granted
                    amount = need.spending(length)
                    self._reserved = self._reserved.plus(amount)
                    return Held(self._scope, amount, book.seconds_left, limit)
                self._changed.wait(_LOOK_SECONDS)  # for the time may be over meanwhile, or the run asked to stop

    def shrink(self, held: Held, amount: Spending) -> Held:
        """The reservation with less in it; the rest is given back."""
        with self._changed:
            self._reserved = self._reserved.minus(held.amount).plus(amount)
            self._changed.notify_all()
        return replace(held, amount=amount)

    def settle(self, held: Held, spent: Spending) -> None:
        """Put what was really spent in the place of what was reserved."""
        with self._changed:
            self._reserved = self._reserved.minus(held.amount)
            self._spent = self._spent.plus(spent)
            self._changed.notify_all()

    def _seconds(self) -> float:
        return 0.0 if self._began is None else self._clock.monotonic() - self._began


class SpecLedger:
    """A spec's book in the task registry, shared by all who work on the spec. Safe for threads.

    What cannot be told to the registry is kept and told later; until then it counts there as it was reserved.
    """

    def __init__(
        self,
        registry: SpecBudgets,
        spec_name: str,
        run_id: str,
        limits: SpendingLimits,
        *,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        hint = f", or reset it: necrocode registry budget {spec_name} --reset (with the same --config, or --registry)"
        self._scope = Scope(f"the spec {spec_name}", "budget.spec", hint)
        self._registry = registry
        self._spec_name = spec_name
        self._run_id = run_id
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._untold: dict[str, Spending] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Return when the registry keeps the spec's book; else its error."""
        self._usage()

    def _usage(self) -> BudgetUsage:
        return in_time(partial(self._registry.budget_usage, self._spec_name), doing="read the spec's budget")

    def check_room(self, price: ModelPrice | None) -> None:
        """As :meth:`Book.check_room`, by what the registry says; else its error."""
        usage = self._usage()
        Book(self._scope, self._limits, usage.spent, usage.reserved, usage.seconds).check_room(price)

    def reserve(self, need: Need, deadline: Deadline | None) -> Held:
        """As :meth:`Ledger.reserve`. A registry that does not answer is an error: nothing may be asked then."""
        reservation_id = self._new_id()
        length, limit = need.completion_tokens, None
        while True:
            amount = need.spending(length)
            answer = self._asked(reservation_id, amount, deadline)
            usage = answer.usage
            book = Book(self._scope, self._limits, usage.spent, usage.reserved, usage.seconds)
            if answer.granted:
                return Held(self._scope, amount, book.seconds_left, limit, reservation_id)
            granted = book.granted(need, deadline)
            if granted is None:
                pause(self._clock, POLL_SECONDS, Cancellation() if deadline is None else deadline.cancellation)
            elif granted[0] >= length:
                raise ServiceError(f"The task registry refused what the budget of {self._scope.name} has room for.")
            length, limit = granted or (need.completion_tokens, None)

    def _asked(self, reservation_id: str, need: Spending, deadline: Deadline | None) -> BudgetReservation:
        left = _USUAL_QUESTION_SECONDS if deadline is None else deadline.remaining_seconds()
        reserve = partial(
            self._registry.reserve_budget,
            self._spec_name,
            reservation_id,
            run_id=self._run_id,
            need=need,
            limits=self._limits,
            ttl_seconds=min(_LONGEST_QUESTION_SECONDS, left + _GRACE_SECONDS),
        )
        try:
            return in_time(reserve, doing="reserve a part of the spec's budget")
        except RunnerError:
            with self._lock:
                self._untold[reservation_id] = NOTHING  # it may have been reserved all the same
            raise

    def settle(self, held: Held, spent: Spending) -> None:
        """Tell the registry what the question came to; never raises."""
        with self._lock:
            self._untold[held.reservation_id] = spent
        self.tell()

    def tell(self) -> RunnerError | None:
        """Tell the registry all that it was not told yet; the error that keeps it from hearing, where there is one."""
        with self._lock:
            waiting = dict(self._untold)
        for reservation_id, spent in waiting.items():
            try:
                settle = partial(self._registry.settle_budget, self._spec_name, reservation_id, spent)
                in_time(settle, doing="tell what was spent of the spec's budget")
            except RunnerError as error:
                return error
            with self._lock:
                self._untold.pop(reservation_id, None)
        return None
