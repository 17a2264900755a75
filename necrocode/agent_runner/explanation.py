"""What a run would show the model, piece by piece, without asking it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline
from necrocode.agent_runner.generation.pieces import estimate_tokens
from necrocode.agent_runner.playbook import load_playbook, with_playbook
from necrocode.agent_runner.shown_task import masked, readable
from necrocode.agent_runner.spending import price_of
from necrocode.agent_runner.steps.apply import with_protection
from necrocode.agent_runner.steps.context import choose_context
from necrocode.agent_runner.steps.generate import compose
from necrocode.agent_runner.verdict.feedback import MAX_FEEDBACK_TOKENS
from necrocode.agent_runner.wiring import build_services
from necrocode.agent_runner.work_places import workspace_for

if TYPE_CHECKING:
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.generation.pieces import Context
    from necrocode.agent_runner.models import Message, TaskContext
    from necrocode.agent_runner.protocols import RepoPool
    from necrocode.agent_runner.spending import ModelPrice

_REPLY_TOKENS = MAX_FEEDBACK_TOKENS + 100
"""About what a model is told of an answer that did not do, at the most."""
_HOLDER = "necrocode-explain"


@dataclass(frozen=True)
class Explanation:
    """What the model would be shown, and about what that costs."""

    base_commit: str
    model: str
    budget_tokens: int
    """How many tokens of repository text the configuration allows."""
    context: Context
    messages: tuple[Message, ...]
    """The prompt as a run would send it, secrets masked, but for how the tests fail before the change."""
    max_answer_tokens: int
    """How long the answer may be."""
    price: ModelPrice | None
    """What the model's tokens cost. None: ``llm.prices`` does not say."""
    warnings: tuple[str, ...]
    candidates: int = 1
    """How often the first question is asked."""
    repair_rounds: int = 0
    """How often a run may ask again, at the most."""

    @property
    def prompt_leaves_out(self) -> str:
        """What a run's prompt has besides: no test is run here."""
        return f"how the tests fail before the change, which a run adds (at most about {MAX_FEEDBACK_TOKENS} tokens)"

    @property
    def most_calls(self) -> int:
        """How many questions a run asks at the most."""
        return self.candidates + self.repair_rounds

    @property
    def most_cost_micro_usd(self) -> int | None:
        """About what a run costs at the most, in millionths of a dollar: all rounds, each with the longest answer.

        Every round's prompt holds the answers before it, and what was said of them.
        """
        if self.price is None:
            return None
        prompt, answer = self.prompt_tokens, self.max_answer_tokens
        first = self.candidates * self.price.cost_micro_usd(prompt, answer)
        grown = (prompt + number * (answer + _REPLY_TOKENS) for number in range(1, self.repair_rounds + 1))
        return first + sum(self.price.cost_micro_usd(tokens, answer) for tokens in grown)

    @property
    def cost_micro_usd(self) -> tuple[int, int] | None:
        """About what one call costs, in millionths of a dollar: without an answer, and with the longest; or None."""
        if self.price is None:
            return None
        prompt, answer = self.prompt_tokens, self.max_answer_tokens
        return self.price.cost_micro_usd(prompt, 0), self.price.cost_micro_usd(prompt, answer)

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the whole prompt has."""
        return sum(estimate_tokens(message.content) for message in self.messages)


def explain(
    task: TaskContext, config: RunnerConfig, *, repo_pool: RepoPool | None = None, clock: Clock = SYSTEM_CLOCK
) -> Explanation:
    """What a run of the task would show the model. No model is called, and no registry and no store are told of it.

    A slot is taken from the pool, as a run does, and given back; a brought checkout is only read, and one with
    uncommitted changes is warned of. Raises ``RunnerError`` as a run would fail.
    """
    services = build_services(config, clock, repo_pool=repo_pool)
    warnings: list[str] = []
    try:
        playbook = load_playbook(task)
        task, playbook, hidden = readable(with_playbook(task, playbook), playbook)
        task = masked(task, services.redactor)
        warnings += hidden
        deadline = Deadline(task.timeout_seconds, clock)
        llm = config.llm_config
        with workspace_for(
            task, services, config, holder=_HOLDER, deadline=deadline, on_trouble=warnings.append, only_reads=True
        ) as workspace:
            context = choose_context(
                task,
                workspace.repository,
                workspace.objects,
                workspace.base_commit,
                budget_tokens=llm.context_tokens,
                deadline=deadline,
                cache=services.contexts,
            )
            base = workspace.base_commit
        question = compose(
            task,
            context,
            llm=llm,
            instructions=with_protection(playbook.instructions, config),
            test_commands=task.test_commands,
            failing="",  # no tests are run here
            redactor=services.redactor,
        )
        warnings += context.warnings
        return Explanation(
            base_commit=base,
            model=llm.model,
            budget_tokens=llm.context_tokens,
            context=context,
            messages=question.opening.messages,
            max_answer_tokens=task.max_tokens or llm.max_tokens,
            price=price_of(llm.prices, llm.model),
            warnings=tuple(warnings),
            candidates=llm.candidates,
            repair_rounds=config.max_repair_rounds,
        )
    finally:
        services.close()
