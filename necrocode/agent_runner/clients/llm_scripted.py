"""A model that says what it was told to say: for tests, demos and replays."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from necrocode.agent_runner.clients._token_usage import token_usage
from necrocode.agent_runner.errors import EmptyAnswerError, MalformedAnswerError
from necrocode.agent_runner.generation.edit_formats import read_answer
from necrocode.agent_runner.generation.prompt import free_messages
from necrocode.agent_runner.models import LLMResponse, Message, ModelAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.protocols import AnswerFormat


class ScriptedLLM:
    """Gives the answers in order; the Protocol is ``LanguageModel``. Safe for several threads.

    An answer is a text in any answer format, a whole ``ModelAnswer``, an exception to raise, or a function from the
    messages to a text. A question too many raises ``MalformedAnswerError``. ``calls`` has the messages of every call.
    """

    def __init__(
        self,
        answers: Iterable[str | ModelAnswer | BaseException | Callable[[Sequence[Message]], str]],
        *,
        model: str = "scripted",
    ) -> None:
        self.calls: list[tuple[Message, ...]] = []
        self._answers = list(answers)
        self._model = model
        self._lock = threading.Lock()

    def complete(
        self,
        messages: Sequence[Message],
        *,
        answer_format: AnswerFormat = "text",  # noqa: ARG002  the script decides
        max_tokens: int | None = None,  # noqa: ARG002
        deadline: Deadline | None = None,
        temperature: float | None = None,  # noqa: ARG002
    ) -> ModelAnswer:
        """The next answer of the script, its tokens estimated; ``EmptyAnswerError`` for a text of nothing."""
        if deadline is not None:
            deadline.check("ask the model")
        with self._lock:
            self.calls.append(tuple(messages))
            if len(self.calls) > len(self._answers):
                raise MalformedAnswerError(f"The script holds {len(self._answers)} answers; this is one question more.")
            answer = self._answers[len(self.calls) - 1]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, ModelAnswer):
            return answer
        text = answer if isinstance(answer, str) else answer(messages)
        if not text.strip():
            raise EmptyAnswerError("The script's answer is empty.")
        usage = token_usage(None, prompt=(message.content for message in messages), answer=text)
        return ModelAnswer(text=text, model=self._model, finish_reason="stop", **usage)

    def generate_code(
        self, prompt: str, workspace_path: Path | None = None, max_tokens: int | None = None
    ) -> LLMResponse:
        """The change set in the next answer of the script."""
        messages = free_messages(prompt, workspace_path, edit_format="files")
        return read_answer(self.complete(messages, max_tokens=max_tokens))
