"""A model whose every question is paid for out of a budget."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.generation.budget import Reservation, RunBudget
    from necrocode.agent_runner.models import Message, ModelAnswer
    from necrocode.agent_runner.protocols import AnswerFormat, LanguageModel

_PROMPT_MARGIN = 1.25
_TOKENS_PER_MESSAGE = 8
# What the HTTP libraries and Python raise before a request is on its way.
_NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ConnectionRefusedError", "gaierror"}
_REFUSALS = range(300, 500)  # a redirect is not followed


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
    ) -> ModelAnswer:
        """The model's answer, which may be shorter than asked for where the budget has no room for more.

        Where the endpoint does not tell its tokens, the answer has them as the budget counts them, on the safe side.

        ``BudgetExhaustedError`` before anything is asked, or where the answer was cut by the budget.
        """
        if deadline is not None:
            deadline.check("ask the model")
        reservation = self._budget.reserve(
            estimate_prompt_tokens(messages), max_tokens or self._max_tokens, deadline=deadline
        )
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
            self._end(reservation, error)
            _raise_as_exhausted(error, reservation, deadline)
            raise
        spent = reservation.settle(answer)
        if not spent.estimated_calls:
            return answer
        counted = {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
        return answer.model_copy(update=counted | {"usage_is_estimated": True})

    def _shortened(self, deadline: Deadline | None, reservation: Reservation) -> Deadline | None:
        """The earlier of the deadline and the end of the budget's wall time."""
        left = None if reservation.timed is None else reservation.timed.seconds_left
        if left is None or (deadline is not None and deadline.remaining_seconds() <= left):
            return deadline
        return Deadline(left, self._budget.clock) if deadline is None else deadline.sooner(left)

    def _end(self, reservation: Reservation, error: BaseException) -> None:
        """Count a question that brought no answer by what it may have cost."""
        if _is_free(error):
            reservation.release()
            return
        if isinstance(error, ImplementationError) and error.prompt_tokens is not None:
            reservation.settle_told(error)
            return
        reservation.forfeit()
        if not isinstance(error, ImplementationError):  # with such a one the endpoint did answer
            self._budget.on_trouble(
                f"A question to the model broke off ({type(error).__name__}) and may have been charged for: it counts"
                f" as {reservation.amount.tokens} tokens."
            )


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


def _raise_as_exhausted(error: BaseException, reservation: Reservation, deadline: Deadline | None) -> None:
    """Say so where it was the budget that cut the answer."""
    lowered, timed = reservation.lowered, reservation.timed
    if isinstance(error, TruncatedAnswerError) and lowered is not None and lowered.lowered_by is not None:
        raise lowered.scope.exhausted(
            f"the answer was cut at {reservation.max_tokens} tokens, for there was no room for a longer one",
            limit=lowered.lowered_by,
        ) from error
    is_late = isinstance(error, RunnerTimeoutError) and (deadline is None or deadline.remaining_seconds() > 0)
    if is_late and timed is not None:
        raise timed.scope.exhausted("its time was over before the model had answered", limit="max_seconds") from error
