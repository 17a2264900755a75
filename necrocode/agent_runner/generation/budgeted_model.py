"""A model whose every question is paid for out of a budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import outrun
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.errors import (
    AuthenticationError,
    BudgetExhaustedError,
    ConfigurationError,
    ContextOverflowError,
    ImplementationError,
    RateLimitError,
    RunnerTimeoutError,
    ServiceError,
    TruncatedAnswerError,
)
from necrocode.agent_runner.generation.pieces import estimate_tokens
from necrocode.agent_runner.models import ModelAnswer
from necrocode.agent_runner.spending import NOTHING, Spending

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.generation.budget import Reservation, RunBudget
    from necrocode.agent_runner.models import Message
    from necrocode.agent_runner.protocols import AnswerFormat, LanguageModel

_PROMPT_MARGIN = 1.25
_TOKENS_PER_MESSAGE = 8
# What the HTTP libraries and Python raise before a request is on its way.
_NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ConnectionRefusedError", "gaierror"}
_REFUSALS = range(300, 500)  # a redirect is not followed

OnOutcome = Callable[[ModelAnswer | BaseException, Spending], None]
"""Told what a question brought, and what it counts as."""


def _tell_nobody(_outcome: ModelAnswer | BaseException, _spent: Spending) -> None:
    pass


def estimate_prompt_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens the messages cost, rather too many: 1 for 3.2 ASCII characters, 1.25 for any other."""
    text = sum(estimate_tokens(message.content) for message in messages)
    return int(text * _PROMPT_MARGIN) + _TOKENS_PER_MESSAGE * len(messages)


class BudgetedModel:
    """Asks a model within a budget; the Protocol is ``LanguageModel``. Safe for several threads if the model is.

    ``max_tokens`` is the longest answer of a question that does not say how long its answer may be.
    """

    def __init__(self, model: LanguageModel, budget: RunBudget, *, max_tokens: int) -> None:
        self._model = model
        self._budget = budget
        self._max_tokens = max_tokens

    def complete(
        self,
        messages: Sequence[Message],
        *,
        answer_format: AnswerFormat = "text",
        max_tokens: int | None = None,
        deadline: Deadline | None = None,
        temperature: float | None = None,
        on_outcome: OnOutcome = _tell_nobody,
    ) -> ModelAnswer:
        """The model's answer, which may be shorter than asked for where the budget has no room for more.

        Where the endpoint does not tell its tokens, the answer has them as the budget counts them, on the safe side.
        ``on_outcome`` is told of the answer, or of the error that is raised, and what it counts as, first of all.

        ``BudgetExhaustedError`` before anything is asked, or where the answer was cut by the budget.
        """
        if deadline is not None:
            deadline.check("ask the model")
        try:
            reservation = self._budget.reserve(
                estimate_prompt_tokens(messages), max_tokens or self._max_tokens, deadline=deadline
            )
        except BudgetExhaustedError as error:
            on_outcome(error, NOTHING)
            raise
        ask = partial(
            self._model.complete,
            messages,
            answer_format=answer_format,
            max_tokens=reservation.max_tokens if self._budget.is_limited else max_tokens,
            deadline=(shortened := self._shortened(deadline, reservation)),
            temperature=temperature,
        )
        try:
            answer = ask() if shortened is None else outrun(shortened, ask, doing="ask the model")
        except BaseException as error:
            exhausted = _as_exhausted(error, reservation, deadline)
            spent = self._cost_of_none(reservation, error)
            on_outcome(exhausted or error, spent)
            reservation.end(spent)
            if exhausted is not None:
                raise exhausted from error
            raise
        spent = reservation.worth(answer)
        counted = {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
        told = answer.model_copy(update=counted | {"usage_is_estimated": True}) if spent.estimated_calls else answer
        on_outcome(told, spent)
        reservation.settle(answer)
        return told

    def _shortened(self, deadline: Deadline | None, reservation: Reservation) -> Deadline | None:
        """The earlier of the deadline and the end of the budget's wall time."""
        left = None if reservation.timed is None else reservation.timed.seconds_left
        if left is None or (deadline is not None and deadline.remaining_seconds() <= left):
            return deadline
        return Deadline(left, self._budget.clock) if deadline is None else deadline.sooner(left)

    def _cost_of_none(self, reservation: Reservation, error: BaseException) -> Spending:
        """What a question that brought no answer counts as, by what it may have cost."""
        if _is_free(error):
            return NOTHING
        if isinstance(error, ImplementationError) and error.prompt_tokens is not None:
            return reservation.worth_told(error)
        if not isinstance(error, ImplementationError):  # with such a one the endpoint did answer
            self._budget.on_trouble(
                f"A question to the model broke off ({type(error).__name__}) and may have been charged for: it counts"
                f" as {reservation.amount.tokens} tokens."
            )
        return reservation.amount


def _is_free(error: BaseException) -> bool:
    """Whether nothing is charged for a question that ended so: it was not sent, or refused before any work."""
    if isinstance(
        error,
        (AuthenticationError, BudgetExhaustedError, ConfigurationError, ContextOverflowError, RateLimitError),
    ):
        return True
    if not isinstance(error, ServiceError):
        return False
    if error.is_free or error.status_code in _REFUSALS:
        return True
    return any(type(cause).__name__ in _NEVER_SENT for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _as_exhausted(
    error: BaseException, reservation: Reservation, deadline: Deadline | None
) -> BudgetExhaustedError | None:
    """The error that says so where it was the budget that cut the answer."""
    lowered, timed = reservation.lowered, reservation.timed
    if isinstance(error, TruncatedAnswerError) and lowered is not None and lowered.lowered_by is not None:
        return lowered.scope.exhausted(
            f"the answer was cut at {reservation.max_tokens} tokens, for there was no room for a longer one",
            limit=lowered.lowered_by,
        )
    is_late = isinstance(error, RunnerTimeoutError) and (deadline is None or deadline.remaining_seconds() > 0)
    if is_late and timed is not None:
        return timed.scope.exhausted("its time was over before the model had answered", limit="max_seconds")
    return None
