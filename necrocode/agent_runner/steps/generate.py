"""Generate: show the model the task and the repository, and read its answers as change sets."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from necrocode.agent_runner._error_data import error_data, error_from
from necrocode.agent_runner._invisible import visible
from necrocode.agent_runner._journal_file import basis_of
from necrocode.agent_runner.generation.answer_forms import (
    ShownFile,
    answer_format_of,
    choose_format,
    reminder,
)
from necrocode.agent_runner.generation.conversation import Conversation
from necrocode.agent_runner.generation.edit_formats import read_answer
from necrocode.agent_runner.generation.fresh_start import is_to_mend, without_blamed
from necrocode.agent_runner.generation.pieces import estimate_tokens
from necrocode.agent_runner.generation.prompt import task_messages
from necrocode.agent_runner.generation.ranking import is_test
from necrocode.agent_runner.generation.repair import anew, thinking_first
from necrocode.agent_runner.generation.stand_ins import StandIns
from necrocode.agent_runner.models import ModelAnswer
from necrocode.agent_runner.spending import NOTHING, Spending

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import FileChange
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.generation.answer_forms import EditFormat
    from necrocode.agent_runner.generation.budgeted_model import BudgetedModel
    from necrocode.agent_runner.generation.fresh_start import LeftOut
    from necrocode.agent_runner.generation.pieces import Context, Piece
    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.llm_config import LLMConfig
    from necrocode.agent_runner.models import LLMResponse, Message, TaskContext

_ANEW_EVERY = 3
_VARIED_TEMPERATURE = 0.8
"""For answers that are wanted to differ, where the configuration asks for less."""


@dataclass
class Call:
    """One question to the model, and what came back."""

    messages: tuple[Message, ...]
    answer: ModelAnswer | None = None
    error: str | None = None

    def to_data(self) -> dict[str, Any]:
        """The call as JSON can hold it."""
        return {
            "messages": [message.model_dump() for message in self.messages],
            "answer": None if self.answer is None else self.answer.model_dump(),
            "error": self.error,
        }


@dataclass
class Transcript:
    """Every call of the model, growing as they happen, so that a failed run has them too."""

    calls: list[Call] = field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        """The calls as JSON can hold them."""
        return {"schema_version": 2, "calls": [call.to_data() for call in self.calls]}


@dataclass(frozen=True)
class Question:
    """What a task's model is asked: how to begin, how to answer, and how its answers are read."""

    messages: Callable[..., tuple[Message, ...]]
    """``task_messages`` of this task, without ``context``, ``failing``, ``edit_format`` and ``closing``."""
    context: Context
    """What the model sees of the repository, without its secrets."""
    edit_format: EditFormat
    most_tokens: int
    """The longest answer that the model may give."""
    failing: str
    """What it tells of tests that fail before the change; empty where there are none."""
    tracebacks: tuple[str, ...]
    """What each case says that fails before the change; empty where the task is not to mend that, or nobody knows."""
    stand_ins: StandIns
    redactor: Redactor

    @cached_property
    def opening(self) -> Conversation:
        """The question as it is asked first."""
        return Conversation(self.messages(self.context, failing=self.failing, edit_format=self.edit_format))

    @property
    def answer_format(self) -> Literal["json", "text"]:
        """What the endpoint is asked for."""
        return answer_format_of(self.edit_format)

    def opening_for(self, candidate: int) -> Conversation:
        """The question for a candidate, counted from 1: all but the first are to think before they write.

        Structured output has its explanation before the changes anyway. Every third one is to write anew what fails.
        """
        if candidate % _ANEW_EVERY == 0 and self._anew_from_the_start is not None:
            return self._anew_from_the_start
        if candidate == 1 or self.answer_format == "json":
            return self.opening
        return self.opening.with_more_asked(thinking_first(self.form(), is_failing=bool(self.failing)))

    @cached_property
    def _anew_from_the_start(self) -> Conversation | None:
        """As before any answer; looked for once, however many candidates are asked so."""
        return self.anew(())

    def anew(self, changed: Collection[str]) -> Conversation | None:
        """The question without the code that is wrong: the inside of the function that the failing tests are about.

        ``changed`` are the files that answers have changed. None where it is not known which function it is, or where
        its file was not shown whole, or is neither what they changed alone nor, without them, what the task points at.
        """
        pieces = {one.path: one for one in self.context.pieces if one.is_whole}
        sources = {path for path in changed if not is_test(path)} or {
            path for path, piece in pieces.items() if piece.is_meant and not is_test(path)
        }
        piece = pieces.get(next(iter(sources))) if len(sources) == 1 else None
        if piece is None or not self._can_be_written_whole(piece) or self.stand_ins.has_names(piece.text):
            return None
        left_out = without_blamed({path: one.text for path, one in pieces.items()}, piece.path, self.tracebacks)
        if left_out is None:
            return None
        shown = tuple(one.renewed(left_out.text) if one is piece else one for one in self.context.pieces)
        messages = self.messages(
            replace(self.context, pieces=shown),
            edit_format=self._whole_format,
            closing=anew(left_out, reminder(self._whole_format, piece.path)),
        )
        return Conversation(messages, left_out=left_out)

    def form(self, path: str = "") -> str:
        """How to answer, for the model to read again; ``path`` is a file that it has changed, if any.

        A file that was shown whole, and is short, is asked for whole: that is what models find the easiest.
        """
        pieces = self.stand_ins.pieces
        piece = next((one for one in pieces if one.path and path in {one.path, ""}), None)
        is_easy = piece is not None and self._can_be_written_whole(piece)
        return reminder(
            self._whole_format if is_easy else self.edit_format,
            path or ("path/of/the/file" if piece is None else piece.path),
        )

    @property
    def _whole_format(self) -> EditFormat:
        return "json" if self.edit_format == "json" else "files"

    def _can_be_written_whole(self, piece: Piece) -> bool:
        return piece.is_whole and estimate_tokens(piece.text) <= self.most_tokens // 2

    def read(
        self, answer: ModelAnswer, before: Sequence[FileChange] = (), left_out: LeftOut | None = None
    ) -> LLMResponse:
        """The change set of an answer; raises ``MalformedAnswerError`` and its kin.

        ``before`` is what earlier answers have changed, ``left_out`` what the question did not show: the model knows
        these files as they are with it.
        """
        files = {piece.path: piece.text for piece in self.stand_ins.pieces if piece.is_whole}
        if left_out is not None:
            files[left_out.path] = left_out.stub
        for change in before:
            files.pop(change.path, None)
            if change.content is not None:
                files[change.path] = self.stand_ins.hidden(change.content.decode(errors="replace"))
        response = read_answer(answer, files)
        return response.model_copy(
            update={
                "code_changes": tuple(map(self.stand_ins.restored, response.code_changes)),
                "model": self.redactor.text(response.model),  # endpoints echo keys
                "explanation": self.redactor.text(response.explanation),
            }
        )


def compose(
    task: TaskContext,
    context: Context,
    *,
    llm: LLMConfig,
    instructions: str,
    test_commands: Sequence[str],
    failing: str,
    tracebacks: Sequence[str] = (),
    redactor: Redactor,
) -> Question:
    """The question for a task; ``failing`` says how tests fail before the change, ``tracebacks`` what each case says.

    Nothing in it holds a secret: those of the files have names instead.
    """
    files = [
        ShownFile(piece.path, estimate_tokens(piece.text), is_whole=piece.is_whole, is_meant=piece.is_meant)
        for piece in context.pieces
        if piece.path
    ]
    max_tokens = task.max_tokens or llm.max_tokens
    edit_format = choose_format(llm.edit_format, shown=files, max_tokens=max_tokens)
    failing = redactor.text(failing)
    nameable = (piece for piece in context.pieces if redactor.text(piece.path) == piece.path)
    stand_ins = StandIns(nameable, redactor.replaced)
    shown = replace(context, paths=tuple(map(redactor.text, context.paths)), pieces=stand_ins.pieces)
    messages = partial(
        task_messages,
        task,
        instructions="\n\n".join(filter(None, [redactor.text(instructions).strip(), stand_ins.note])),
        test_commands=tuple(redactor.text(visible(command)) for command in test_commands),
    )
    of_fault = tuple(tracebacks) if is_to_mend(f"{task.title}\n{task.description}") else ()
    return Question(messages, shown, edit_format, max_tokens, failing, of_fault, stand_ins, redactor)


@dataclass
class Asker:
    """Asks one run's model, and keeps what was said. What the journal has is not asked again."""

    model: BudgetedModel
    llm: LLMConfig
    max_tokens: int | None
    deadline: Deadline
    redactor: Redactor
    journal: Journal
    transcript: Transcript = field(default_factory=Transcript)
    _asked: int = 0

    def ask(
        self, conversation: Conversation, answer_format: Literal["json", "text"], *, is_varied: bool = False
    ) -> ModelAnswer:
        """One answer, ``is_varied`` warm enough to be another one. Raises ``ImplementationError`` and their kin."""
        self._asked += 1
        return self._call(str(self._asked), conversation, answer_format, self._warm if is_varied else None)

    def ask_for_several(
        self, conversations: Sequence[Conversation], answer_format: Literal["json", "text"]
    ) -> list[Future[ModelAnswer]]:
        """An answer to each, asked for at once; the first as configured, the others warm enough to differ."""
        answers: list[Future[ModelAnswer]] = [Future() for _ in conversations]
        self._asked += 1
        question = self._asked

        def answer(number: int) -> None:
            key, temperature = f"{question}.{number + 1}", self._warm if number else None
            try:
                answers[number].set_result(self._call(key, conversations[number], answer_format, temperature))
            except BaseException as error:  # noqa: BLE001  raised again where the answer is looked at
                answers[number].set_exception(error)

        for number in range(len(conversations)):  # threads that an interrupted run need not wait for
            name = f"necrocode-candidate-{number + 1}"
            threading.Thread(target=copy_context().run, args=(answer, number), name=name, daemon=True).start()
        wait(answers)
        return answers

    @property
    def _warm(self) -> float | None:
        """None where the configuration leaves the temperature to the endpoint: some models accept no other."""
        configured = self.llm.temperature
        return None if configured is None else max(configured, _VARIED_TEMPERATURE)

    def _call(
        self,
        key: str,
        conversation: Conversation,
        answer_format: Literal["json", "text"],
        temperature: float | None = None,
    ) -> ModelAnswer:
        call = Call(conversation.messages)
        self.transcript.calls.append(call)
        kept = KeptAnswers(self.journal, self.redactor, key, self._basis(call.messages, answer_format, temperature))
        try:
            call.answer = kept.answer() or self.model.complete(
                call.messages,
                answer_format=answer_format,
                max_tokens=self.max_tokens,
                deadline=self.deadline,
                temperature=temperature,
                on_outcome=kept.keep,
            )
        except BaseException as error:
            call.error = f"{type(error).__name__}: {error}"
            raise
        return call.answer

    def _basis(
        self, messages: Sequence[Message], answer_format: Literal["json", "text"], temperature: float | None
    ) -> tuple[str, ...]:
        """All that an answer depends on: a digest of the settings, and one of each message."""
        llm = self.llm
        settings = (llm.model, self.max_tokens or llm.max_tokens, llm.temperature, temperature, answer_format)
        return (basis_of(*settings), *(basis_of(message.role, message.content) for message in messages))


@dataclass(frozen=True)
class KeptAnswers:
    """The answer to one question, in the journal."""

    journal: Journal
    redactor: Redactor
    key: str
    parts: tuple[str, ...]
    """Digests of what the question consists of."""

    def answer(self) -> ModelAnswer | None:
        """The answer that was journalled; one that was an error is raised. None: the model is to be asked."""
        data = self.journal.recorded("answer", self.key, basis_of(*self.parts), parts=self.parts)
        if data is None:
            return None
        if (error := error_from(data.get("error"))) is not None:
            raise error
        try:
            return ModelAnswer.model_validate(data.get("answer"))
        except ValueError:
            self.journal.forget(f"the journalled answer {self.key} cannot be read: the model is asked anew from there")
            return None

    def keep(self, outcome: ModelAnswer | BaseException, spent: Spending) -> None:
        """Journal what the question brought.

        An answer that holds one of the runner's own secrets is kept masked, as a record; it is asked for again.
        """
        data: dict[str, Any] = {"parts": list(self.parts), "spent": spent.model_dump()}
        if isinstance(outcome, ModelAnswer):
            shown = self.redactor.data(outcome.model_dump(mode="json"))
            is_masked = bool(self.redactor.secrets_in(outcome.text))
            data |= {"answer": shown if is_masked else shown | {"text": outcome.text}, "masked": is_masked}
        else:
            error = error_data(outcome, self.redactor.text)
            if error is None and spent == NOTHING:
                return
            data["error"] = error or {"type": type(outcome).__name__, "message": self.redactor.text(str(outcome))}
        self.journal.record("answer", self.key, basis_of(*self.parts), **data)


def spent_before(journal: Journal) -> Spending:
    """What the run has spent on the model before it was interrupted."""
    spent = NOTHING
    for entry in journal.reading.entries:
        if entry.kind == "answer":
            with suppress(ValueError):
                spent = spent.plus(Spending.model_validate(entry.data.get("spent")))
    return spent
