"""The messages that a model is sent: a question, and for every answer that did not do, what was wrong with it.

The list only ever grows at its end, so that an endpoint which caches prompts reads the beginning once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from necrocode.agent_runner.models import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.fresh_start import LeftOut

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
    left_out: LeftOut | None = None
    """The function whose inside the question does not show, for it to be written anew."""

    def with_more_asked(self, text: str) -> Conversation:
        """The same question, with a paragraph more."""
        *first, last = self.opening
        asked = last.model_copy(update={"content": f"{last.content}\n\n{text}"})
        return replace(self, opening=(*first, asked))

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is sent."""
        return (*self.opening, *_as_messages(self.exchanges))

    def continued(self, answer: str, reply: str) -> Conversation:
        """The conversation with one exchange more."""
        return replace(self, exchanges=(*self.exchanges, Exchange(answer or _NO_ANSWER, reply)))

    def with_another_reply(self, reply: str) -> Conversation | None:
        """The conversation with another reply to its last answer; None where there is no answer in it yet."""
        if not self.exchanges:
            return None
        last = replace(self.exchanges[-1], reply=reply)
        return replace(self, exchanges=(*self.exchanges[:-1], last))

    @property
    def last_reply(self) -> str:
        """What the model was last told; empty where that is the question."""
        return self.exchanges[-1].reply if self.exchanges else ""

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
