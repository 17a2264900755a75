"""Generate: show the model the task and the repository, and read its answer as a change set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.generation.answer_forms import ShownFile, answer_format_of, choose_format
from necrocode.agent_runner.generation.context import Context, estimate_tokens, select_context
from necrocode.agent_runner.generation.edit_formats import read_answer
from necrocode.agent_runner.generation.prompt import task_messages
from necrocode.agent_runner.generation.stand_ins import StandIns

if TYPE_CHECKING:
    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.config import LLMConfig
    from necrocode.agent_runner.models import LLMResponse, Message, ModelAnswer, TaskContext
    from necrocode.agent_runner.protocols import LanguageModel


@dataclass
class Transcript:
    """The conversation with the model, growing as it happens, so that a failed run has it too."""

    messages: tuple[Message, ...] = ()
    answer: ModelAnswer | None = None

    def to_data(self) -> dict[str, Any]:
        """The conversation as JSON can hold it."""
        answer = None if self.answer is None else self.answer.model_dump()
        return {"messages": [message.model_dump() for message in self.messages], "answer": answer}


def choose_context(
    task: TaskContext,
    repository: Repository,
    objects: ObjectReader,
    base: str,
    *,
    budget_tokens: int,
    deadline: Deadline,
) -> Context:
    """The part of the base commit's tree that the model is shown; no file of a checkout is read."""
    files = repository.files(base, deadline=deadline)
    sizes = {path: size for path, (entry, size) in files.items() if entry.is_file and _is_text(path)}

    def read(path: str) -> bytes:
        return objects.blob(files[path][0].oid)

    return select_context(task, sizes, read, budget_tokens=budget_tokens)


def _is_text(name: str) -> bool:
    """Whether a file's name is text at all: git keeps any bytes, and a prompt does not."""
    return not any("\udc80" <= char <= "\udcff" for char in name)


def generate(
    task: TaskContext,
    context: Context,
    model: LanguageModel,
    *,
    llm: LLMConfig,
    instructions: str,
    transcript: Transcript,
    redactor: Redactor,
    deadline: Deadline,
) -> LLMResponse:
    """Ask the model for the task's change set. Raises ``ImplementationError``, ``ServiceError`` and their kin."""
    files = [ShownFile(piece.path, estimate_tokens(piece.text), is_whole=True) for piece in context.pieces]
    max_tokens = task.max_tokens or llm.max_tokens
    edit_format = choose_format(llm.edit_format, shown=files, max_tokens=max_tokens)
    nameable = (piece for piece in context.pieces if redactor.text(piece.path) == piece.path)
    stand_ins = StandIns(nameable, redactor.replaced)
    shown = replace(context, paths=tuple(map(redactor.text, context.paths)), pieces=stand_ins.pieces)
    transcript.messages = task_messages(
        task,
        shown,
        instructions="\n\n".join(filter(None, [redactor.text(instructions).strip(), stand_ins.note])),
        test_commands=tuple(map(redactor.text, task.test_commands)),
        edit_format=edit_format,
    )
    answer = model.complete(
        transcript.messages,
        answer_format=answer_format_of(edit_format),
        max_tokens=task.max_tokens,
        deadline=deadline,
    )
    transcript.answer = answer
    response = read_answer(answer)
    return response.model_copy(
        update={
            "code_changes": tuple(map(stand_ins.restored, response.code_changes)),
            "model": redactor.text(response.model),  # endpoints echo keys
            "explanation": redactor.text(response.explanation),
        }
    )
