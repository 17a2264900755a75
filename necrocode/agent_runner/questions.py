"""A run's question to the model: made once, and asked so that it fits the model's window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import BudgetExhaustedError, ContextOverflowError
from necrocode.agent_runner.steps.context import choose_context
from necrocode.agent_runner.steps.generate import Asker, Question, compose
from necrocode.agent_runner.verdict.feedback import failure_feedback, tracebacks

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.attempts import Attempt
    from necrocode.agent_runner.generation.conversation import Conversation
    from necrocode.agent_runner.llm_config import LLMConfig
    from necrocode.agent_runner.models import ModelAnswer, TaskContext
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.run_tests import TestPlan
    from necrocode.agent_runner.wiring import Services
    from necrocode.agent_runner.workspace import Workspace

_SMALLEST_CONTEXT_TOKENS = 500


@dataclass
class Questions:
    """What one run asks the model. ``plan`` says, when the question is made, which tests judge the change."""

    record: RunRecord
    llm: LLMConfig
    services: Services
    task: TaskContext
    instructions: str
    workspace: Workspace
    deadline: Deadline
    asker: Asker
    count: int
    """How many answers the first question asks for."""
    plan: Callable[[], TestPlan]
    _question: Question | None = None
    _candidates: list[Future[ModelAnswer]] = field(default_factory=list)

    def asked(self) -> Question:
        """The question, made when it is first needed."""
        if self._question is None:
            self._question = self._compose(self.llm.context_tokens)
        return self._question

    def _compose(self, budget_tokens: int) -> Question:
        workspace, record = self.workspace, self.record
        context = choose_context(
            self.task,
            workspace.repository,
            workspace.objects,
            workspace.base_commit,
            budget_tokens=budget_tokens,
            deadline=self.deadline,
            cache=self.services.contexts,
        )
        for warning in context.warnings:
            record.warn(warning)
        for piece in context.pieces:
            record.log(f"shown to the model: {piece.place} ({piece.why})")
        plan = self.plan()
        return compose(
            self.task,
            context,
            llm=self.llm,
            instructions=self.instructions,
            test_commands=plan.commands,
            failing="" if plan.base is None else failure_feedback(plan.base, None),
            tracebacks=() if plan.base is None or not plan.must_pass else tracebacks(plan.base),
            redactor=self.services.redactor,
        )

    def anew(self, attempt: Attempt) -> Conversation | None:
        """The question once more, without the code that fails; None where nobody knows which that is."""
        changes = () if attempt.response is None else attempt.response.code_changes
        paths = {change.file_path.removeprefix("./") for change in changes}
        return self.asked().anew(paths | {change.path for change in attempt.changes})

    def answer(self, attempt: Attempt) -> ModelAnswer:
        """The answer to try: one of the first question's candidates, or one to what went wrong."""
        if attempt.round or self.count == 1:
            return self._ask_within_window(attempt)
        if not self._candidates:
            self._candidates = self._ask_for_candidates(attempt)
            self._tell_left_out()
        return self._candidates[attempt.candidate - 1].result()

    def _ask_for_candidates(self, attempt: Attempt) -> list[Future[ModelAnswer]]:
        """All answers to the first question, asked for within the model's window."""
        while True:
            question = self.asked()
            openings = [question.opening_for(number) for number in range(1, self.count + 1)]
            answers = self.asker.ask_for_several(openings, question.answer_format)
            overflows = all(isinstance(answer.exception(), ContextOverflowError) for answer in answers)
            shorter = self._with_half_the_context() if overflows else None
            if shorter is None:
                return answers
            attempt.conversation = shorter

    def _tell_left_out(self) -> None:
        """Say of how many candidates the budget took the place; where it is all of them, that is the run's error."""
        errors = [answer.exception() for answer in self._candidates]
        exhausted = [error for error in errors if isinstance(error, BudgetExhaustedError)]
        if 0 < len(exhausted) < len(errors):
            self.record.warn(f"Of {len(errors)} candidates the budget left out {len(exhausted)}: {exhausted[0]}")

    def _ask_within_window(self, attempt: Attempt) -> ModelAnswer:
        """One answer; a prompt that the endpoint finds too long is made shorter and sent again: a refusal is free."""
        while True:
            try:
                form = self.asked().answer_format
                return self.asker.ask(attempt.conversation, form, is_varied=attempt.is_varied)
            except ContextOverflowError:
                shorter = attempt.conversation.shortened() if attempt.round else self._with_half_the_context()
                if shorter is None:
                    raise
                self.record.log("the prompt does not fit the model's window: asking again with less")
                attempt.conversation = shorter

    def _with_half_the_context(self) -> Conversation | None:
        """The question with half as much of the repository as it had; None where that would be hardly anything."""
        had = min(self.asked().context.tokens, self.llm.context_tokens)
        if had // 2 < _SMALLEST_CONTEXT_TOKENS:
            return None
        self.record.warn(
            f"The prompt does not fit the model's window: only about {had // 2} tokens of the repository were shown."
            " Set llm.context_tokens to what fits."
        )
        self._question = self._compose(had // 2)
        return self._question.opening
