"""The messages that a model is sent: a question, and for every answer that did not do, what was wrong with it.

The list only ever grows at its end, so that an endpoint which caches prompts reads the beginning once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from necrocode.agent_runner.models import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_ANSWER = "(no usable answer)"
"""Stands for an answer that never came whole: chat templates want the roles to alternate."""


@dataclass(frozen=True)
class Exchange:
    """An answer, and what the model was told of it."""

    answer: str
    reply: str


@dataclass(frozen=True)
class Conversation:
    """A question and the exchanges that followed."""

    opening: tuple[Message, ...]
    exchanges: tuple[Exchange, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is sent."""
        return (*self.opening, *_as_messages(self.exchanges))

    def continued(self, answer: str, reply: str) -> Conversation:
        """The conversation with one exchange more."""
        return replace(self, exchanges=(*self.exchanges, Exchange(answer or _NO_ANSWER, reply)))

    def shortened(self) -> Conversation | None:
        """The question and the last exchange alone, for a prompt that has outgrown the window; None if it is that."""
        return replace(self, exchanges=self.exchanges[-1:]) if len(self.exchanges) > 1 else None


def _as_messages(exchanges: Sequence[Exchange]) -> list[Message]:
    return [
        message
        for exchange in exchanges
        for message in (
            Message(role="assistant", content=exchange.answer),
            Message(role="user", content=exchange.reply),
        )
    ]
