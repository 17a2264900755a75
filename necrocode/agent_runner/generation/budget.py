"""A run's budget: what a question to the model may come to is reserved before it is asked, and settled after it.

A question has to fit in with the limits of the run, of the process and of the spec, each with all that is spent and
reserved there. What it really came to, as the endpoint counts it, then takes the place of what was reserved.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ConfigurationError, ServiceError
from necrocode.agent_runner.generation.ledgers import Held, Ledger, Need, Scope, SpecLedger
from necrocode.agent_runner.generation.pieces import estimate_tokens
from necrocode.agent_runner.protocols import SpecBudgets
from necrocode.agent_runner.results import RunUsage
from necrocode.agent_runner.spending import (
    MICRO,
    MOST_SPENT,
    NOTHING,
    BudgetConfig,
    ModelPrice,
    Spending,
    SpendingLimits,
    price_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner._clock import Clock, Deadline
    from necrocode.agent_runner.errors import ImplementationError
    from necrocode.agent_runner.llm_config import LLMConfig
    from necrocode.agent_runner.models import ModelAnswer

_NO_LIMITS = SpendingLimits()
_RUN = Scope("the run", "budget")
_PROCESS = Scope("this process", "budget.process")


class Reservation:
    """What is set aside for one question. It is to be ended once; a second end does nothing."""

    def __init__(self, budget: RunBudget, held: Sequence[Held]) -> None:
        self.held = tuple(held)
        """In each of the books, the same amount."""
        self._budget = budget
        self._is_open = True

    @property
    def amount(self) -> Spending:
        """The most that the question may come to."""
        return self.held[-1].amount

    @property
    def max_tokens(self) -> int:
        """The longest answer that may be asked for; shorter than was wanted where there is no room for more."""
        return self.amount.completion_tokens

    @property
    def lowered(self) -> Held | None:
        """In which book there is no room for as long an answer as was wanted."""
        return next((held for held in reversed(self.held) if held.lowered_by is not None), None)

    @property
    def timed(self) -> Held | None:
        """Which book's wall time ends first; None: none is limited."""
        limited = [held for held in self.held if held.seconds_left is not None]
        return min(limited, key=lambda held: held.seconds_left or 0, default=None)

    def worth(self, answer: ModelAnswer) -> Spending:
        """What an answer counts as: as the endpoint says; where it does not say, as estimated."""
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        is_told = prompt > 0 and completion > 0
        if answer.usage_is_estimated:  # by the client, which estimates closer; this counts on the safe side
            prompt = max(prompt, self.amount.prompt_tokens)
        return self._budget.priced(
            min(prompt if prompt > 0 else self.amount.prompt_tokens, MOST_SPENT),
            min(completion if completion > 0 else estimate_tokens(answer.text), MOST_SPENT),
            min(answer.cached_prompt_tokens, prompt),
            is_estimated=answer.usage_is_estimated or not is_told,
        )

    def worth_told(self, error: ImplementationError) -> Spending:
        """What an answer that will not do counts as: as the endpoint says, as far as it does, else as reserved."""
        prompt, completion = error.prompt_tokens, error.completion_tokens
        prompt = self.amount.prompt_tokens if prompt is None else prompt
        return self._budget.priced(
            min(prompt, MOST_SPENT),
            min(self.amount.completion_tokens if completion is None else completion, MOST_SPENT),
            min(error.cached_prompt_tokens, prompt),
            is_estimated=error.prompt_tokens is None or completion is None,
        )

    def settle(self, answer: ModelAnswer) -> None:
        """An answer came."""
        self.end(self.worth(answer))

    def end(self, spent: Spending) -> None:
        """Put what the question came to in the place of what was reserved.

        ``NOTHING``: it was not asked, or nothing is charged for it; ``amount``: it may have been paid for, and nobody
        can tell.
        """
        if self._is_open:
            self._is_open = False
            self._budget.end(self.held, spent)


class RunBudget:
    """What one run may spend on the model, and what it has spent. Safe for threads; made by :class:`ProcessBudget`."""

    def __init__(
        self,
        ledgers: tuple[Ledger, Ledger],
        spec: SpecLedger | None,
        price: ModelPrice | None,
        clock: Clock,
        on_trouble: Callable[[str], None],
    ) -> None:
        self.clock = clock
        self.on_trouble = on_trouble
        self._ledgers = ledgers
        self._spec = spec
        self._books: tuple[Ledger | SpecLedger, ...] = ledgers if spec is None else (*ledgers, spec)
        self._price = price

    @property
    def is_limited(self) -> bool:
        """Whether anything is: without limits and a book of the spec, questions pass as they are."""
        return self._spec is not None or any(ledger.limits != _NO_LIMITS for ledger in self._ledgers)

    @property
    def usage(self) -> RunUsage:
        """What the run has spent so far; what is under way is not in it."""
        spent = self._ledgers[0].spent
        return RunUsage(
            calls=spent.calls,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            cached_prompt_tokens=spent.cached_prompt_tokens,
            cost_usd=None if self._price is None else Decimal(spent.cost_micro_usd) / MICRO,
            is_estimated=spent.estimated_calls > 0,
            price_known=self._price is not None,
        )

    def check(self) -> None:
        """Return when the registry keeps the spec's book, if one is wanted.

        ``ConfigurationError`` when it cannot; ``ServiceConnectionError`` when it does not answer.
        """
        if self._spec is None:
            return
        try:
            self._spec.check()
        except ServiceError as error:
            if error.retryable:
                raise
            raise _without_books(str(error)) from error

    def check_room(self) -> None:
        """Return when there is room for a question at all, whatever others have reserved.

        ``BudgetExhaustedError`` when not even the shortest would be asked: then nothing else needs to be done.
        """
        for book in self._books:
            book.check_room(self._price)

    def reserve(
        self, prompt_tokens: int, max_completion_tokens: int, *, deadline: Deadline | None = None
    ) -> Reservation:
        """Set aside what a question may come to, in all books or in none.

        Where there is no room for the longest answer, a shorter one is granted, of 512 tokens at the least, else
        ``BudgetExhaustedError``. With a deadline, what others have reserved is waited for when it could make more room.
        A registry that does not answer is its error: nothing may be asked then.
        """
        need = Need(prompt_tokens, max_completion_tokens, self._price)
        held: list[Held] = []
        try:
            for book in self._books:
                held.append(book.reserve(need, deadline))
                need = replace(need, completion_tokens=held[-1].amount.completion_tokens)
        except BaseException:
            self.end(held, NOTHING)
            raise
        for place, ledger in enumerate(self._ledgers):
            held[place] = ledger.shrink(held[place], held[-1].amount)
        return Reservation(self, held)

    def priced(
        self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int, *, is_estimated: bool
    ) -> Spending:
        """One call with what it costs."""
        used = (prompt_tokens, completion_tokens, cached_prompt_tokens)
        cost = 0 if self._price is None else self._price.cost_micro_usd(*used)
        return Spending(
            calls=1,
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=cached_prompt_tokens,
            completion_tokens=completion_tokens,
            cost_micro_usd=min(cost, MOST_SPENT),
            unpriced_calls=int(self._price is None),
            estimated_calls=int(is_estimated),
        )

    def end(self, held: Sequence[Held], spent: Spending) -> None:
        """Put what was spent in the place of a reservation, in the books in which it is."""
        for book, one in zip(self._books, held, strict=False):
            book.settle(one, spent)

    def credit(self, spent: Spending) -> None:
        """Count what this run has spent before it was interrupted; process and spec had it counted then."""
        self._ledgers[0].settle(Held(_RUN, NOTHING, None), spent)

    def close(self) -> None:
        """Tell the registry what it was not told yet; what it cannot be told counts there as it was reserved."""
        error = None if self._spec is None else self._spec.tell()
        if error is not None:
            self.on_trouble(
                f"The task registry was not told what some questions came to; they count as reserved there: {error}"
            )


class ProcessBudget:
    """What all runs of a process may spend together: one for all of them, asked for a budget by each."""

    def __init__(self, config: BudgetConfig | None, clock: Clock) -> None:
        self._config = config or BudgetConfig()
        self._clock = clock
        self._ledger = Ledger(_PROCESS, self._config.process or _NO_LIMITS, clock)

    def of_run(
        self,
        *,
        spec_name: str,
        run_id: str,
        registry: object,
        llm: LLMConfig,
        on_trouble: Callable[[str], None],
    ) -> RunBudget:
        """The budget of a run that begins now. ``on_trouble`` is told what does not make it fail.

        ``ConfigurationError`` when a limit cannot be kept: on money without a price and without another limit beside it
        (with one, ``on_trouble`` is told), or on a spec whose registry keeps no books.
        """
        config = self._config
        price = price_of(llm.prices, llm.model)
        if price is None:
            for settings, limits in (
                ("budget", config),
                ("budget.process", config.process),
                ("budget.spec", config.spec),
            ):
                if limits is not None and limits.max_cost_usd is not None:
                    _check_other_limit(settings, limits, llm.model, on_trouble)
        own = Ledger(_RUN, SpendingLimits(**config.model_dump(exclude={"process", "spec"})), self._clock)
        for ledger in (own, self._ledger):
            ledger.begin()
        spec = None if config.spec is None else self._spec_ledger(registry, spec_name, run_id, config.spec)
        return RunBudget((own, self._ledger), spec, price, self._clock, on_trouble)

    def _spec_ledger(self, registry: object, spec_name: str, run_id: str, limits: SpendingLimits) -> SpecLedger:
        if not isinstance(registry, SpecBudgets):
            raise _without_books(
                "the task registry that was passed in has no reserve_budget, settle_budget, budget_usage"
            )
        return SpecLedger(registry, spec_name, run_id, limits, clock=self._clock, new_id=lambda: uuid.uuid4().hex)


def _check_other_limit(settings: str, limits: SpendingLimits, model: str, on_trouble: Callable[[str], None]) -> None:
    told = f"{settings}.max_cost_usd cannot be kept: llm.prices has no price for the model {model}"
    if limits.max_tokens is None and limits.max_calls is None:
        raise ConfigurationError(
            f"{told}.", hint=f"Add its price, or set {settings}.max_tokens or {settings}.max_calls."
        )
    on_trouble(f"{told}; the other limits hold.")


def _without_books(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"budget.spec cannot be kept: {why.rstrip('.')}.",
        hint="Use a task registry with the ability 'budgets', or leave budget.spec out.",
    )
