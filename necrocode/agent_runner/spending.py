"""What calls of a model use and cost, what may be spent on them, and the prices.

Money is counted in whole micro-dollars (a millionth of a US dollar), so that sums are exact. The cost of a call is
rounded up to the next one.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from necrocode.agent_runner._strict import StrictModel, Value

if TYPE_CHECKING:
    from collections.abc import Mapping

MICRO = 1_000_000
"""Micro-dollars in a dollar, and the tokens that a price is for."""
MOST_SPENT = 10**12
"""The most of anything that one call may use, and a limit may name: tokens, or micro-dollars."""

Usd = Annotated[Decimal, Field(ge=0, le=MICRO, decimal_places=6)]
LimitName = Literal["max_calls", "max_tokens", "max_cost_usd", "max_seconds"]


class ModelPrice(StrictModel):
    """What a model's tokens cost, in US dollars for a million of them; at most six decimal places."""

    what: ClassVar[str] = "price"

    prompt_usd: Usd
    """For prompt tokens. 0: they cost nothing."""
    completion_usd: Usd
    """For the answer's tokens, hidden reasoning included."""
    cached_prompt_usd: Usd | None = None
    """For those prompt tokens that the endpoint had in its cache. None: as much as for the others."""

    def cost_micro_usd(self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> int:
        """What a call costs, rounded up; the cached tokens are a part of ``prompt_tokens``."""
        cached = min(cached_prompt_tokens, prompt_tokens)
        cached_usd = self.prompt_usd if self.cached_prompt_usd is None else self.cached_prompt_usd
        cost = (
            (prompt_tokens - cached) * in_micro_usd(self.prompt_usd)
            + cached * in_micro_usd(cached_usd)
            + completion_tokens * in_micro_usd(self.completion_usd)
        )
        return -(-cost // MICRO)

    def completion_tokens_for(self, micro_usd: int, prompt_tokens: int) -> int:
        """How long an answer the money pays for after the prompt; -1 where it does not even pay for that."""
        rest = micro_usd * MICRO - prompt_tokens * in_micro_usd(self.prompt_usd)
        if rest < 0:
            return -1
        each = in_micro_usd(self.completion_usd)
        return rest // each if each else MOST_SPENT


def in_micro_usd(dollars: Decimal) -> int:
    """Dollars of at most six decimal places in micro-dollars."""
    return int(dollars * MICRO)


def price_of(prices: Mapping[str, ModelPrice], model: str) -> ModelPrice | None:
    """The price of a model: of its very name, else of the first pattern (``*``, ``?``, ``[…]``) that fits; or None."""
    if model in prices:
        return prices[model]
    return next((price for pattern, price in prices.items() if fnmatchcase(model, pattern)), None)


class SpendingLimits(StrictModel):
    """What a group of calls may spend together. None: no such limit; 0: nothing at all of it."""

    what: ClassVar[str] = "budget"

    max_tokens: int | None = Field(default=None, ge=0, le=MOST_SPENT)
    """Tokens of prompts and answers together, cached ones included."""
    max_calls: int | None = Field(default=None, ge=0, le=MOST_SPENT)
    """Questions to the model. What the client tries again by itself, after a 429 say, is part of one question."""
    max_cost_usd: Usd | None = None
    """US dollars, at the prices of ``llm.prices``."""
    max_seconds: float | None = Field(default=None, ge=0, le=10 * 365 * 86_400, allow_inf_nan=False)
    """Wall time, from the group's beginning; a question under way is cut then."""

    @property
    def max_cost_micro_usd(self) -> int | None:
        """The limit on money in micro-dollars."""
        return None if self.max_cost_usd is None else in_micro_usd(self.max_cost_usd)

    def exceeded(self, taken: Spending, seconds: float) -> LimitName | None:
        """Which limit is passed where this much is taken, ``seconds`` after the beginning; None: all are kept."""
        tops: tuple[tuple[LimitName, float, float | None], ...] = (
            ("max_calls", taken.calls, self.max_calls),
            ("max_tokens", taken.tokens, self.max_tokens),
            ("max_cost_usd", taken.cost_micro_usd, self.max_cost_micro_usd),
        )
        for name, value, top in tops:
            if top is not None and value > top:
                return name
        return "max_seconds" if self.max_seconds is not None and seconds >= self.max_seconds else None


class BudgetConfig(SpendingLimits):
    """What may be spent on the model: by each run, by all runs of a process, by all runs of a spec."""

    process: SpendingLimits | None = None
    """For all runs of one ``RunnerOrchestrator`` together. None: no limits."""
    spec: SpendingLimits | None = None
    """For all runs of a spec together, whichever process and machine they are in: kept in the task registry.

    None: the registry is not told. A mapping without limits: it is told, and nothing is limited.
    """


class Spending(Value):
    """Some calls, what they used, and what that costs."""

    calls: int = 0
    prompt_tokens: int = 0
    """Cached ones included."""
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_micro_usd: int = 0
    """Calls whose price is not known add nothing."""
    unpriced_calls: int = 0
    """Those of the calls whose price is not known."""
    estimated_calls: int = 0
    """Those of the calls whose tokens are not as the endpoint counted them."""

    @property
    def tokens(self) -> int:
        """Of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Spending) -> Spending:
        """Both together."""
        return Spending.model_construct(**{name: value + getattr(other, name) for name, value in self})

    def minus(self, other: Spending) -> Spending:
        """Without a part."""
        return Spending.model_construct(**{name: value - getattr(other, name) for name, value in self})


class BudgetUsage(Value):
    """What the runs of a spec have spent on the model, as the registry knows it."""

    spec_name: str
    since: datetime | None = None
    """When the first question was reserved, or the budget was reset with questions under way. None: never."""
    seconds: float = 0.0
    """Since then."""
    spent: Spending = Field(default_factory=Spending)
    """All but what is reserved, by questions that were settled or whose time to be settled is over."""
    reserved: Spending = Field(default_factory=Spending)
    """By questions under way, at the most they may come to."""
    unsettled: Spending = Field(default_factory=Spending)
    """The part of ``spent`` of which nobody told what it came to: it counts as much as was reserved."""


class BudgetReservation(Value):
    """Whether a question to the model may be asked."""

    granted: bool
    exceeded: LimitName | None = None
    """The limit that it would pass; None where it is granted."""
    usage: BudgetUsage
    """With the reservation, where it is granted."""


NOTHING = Spending()
