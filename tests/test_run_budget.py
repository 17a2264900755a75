"""Budgets in whole runs."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    LLMConfig,
    LocalTaskRegistry,
    ModelAnswer,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    TaskContext,
)
from necrocode.cli.run import exit_code
from tests.support.model_server import as_files
from tests.support.repositories import FIXED_CALC

ANSWER = as_files({"calc.py": FIXED_CALC})
GOOD = ModelAnswer(text=ANSWER, model="m", prompt_tokens=1_000, completion_tokens=100)
PRICES: dict[str, Any] = {"gpt-4.1": {"prompt_usd": 2, "completion_usd": 8}}


def run(repository: Path, state_dir: Path, answers: list[Any], number: int = 1, **settings: Any) -> RunnerResult:
    config = RunnerConfig(state_dir=state_dir, llm_config=LLMConfig(prices=PRICES), push=False, **settings)
    task = TaskContext(
        task_id=f"1.{number}", spec_name="shop", title="Mend it", description="Mend add.", repo_url=str(repository)
    )
    with RunnerOrchestrator(config, llm=ScriptedLLM(answers)) as orchestrator:
        return orchestrator.run(task)


def test_a_result_says_what_was_used(repository: Path, state_dir: Path) -> None:
    result = run(repository, state_dir, [GOOD])
    assert result.status == "done", result.error
    usage = result.usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (1, 1_000, 100)
    assert (usage.cost_usd, usage.price_known, usage.is_estimated) == (Decimal("0.0028"), True, False)


def test_a_run_whose_budget_is_used_up_fails_and_says_why(repository: Path, state_dir: Path) -> None:
    result = run(repository, state_dir, [GOOD], budget={"max_cost_usd": 0.001})
    assert result.error_details is not None
    assert (result.status, result.error_details.type, result.error_details.retryable) == (
        "failed", "BudgetExhaustedError", False,
    )  # fmt: skip
    assert "Raise budget.max_cost_usd" in str(result.error)
    assert (exit_code(result), result.usage.calls, result.reported) == (1, 0, "yes")


@pytest.mark.parametrize("budget", [{"max_calls": 0}, {"process": {"max_seconds": 0}}, {"spec": {"max_tokens": 100}}])
def test_a_budget_without_room_for_a_question_ends_the_run_before_anything_is_done(
    repository: Path, state_dir: Path, budget: dict[str, Any]
) -> None:
    result = run(repository, state_dir, [GOOD], budget=budget)
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("BudgetExhaustedError", "prepare")
    assert (result.reported, "allocate" in result.timings) == ("yes", False)


def test_a_call_too_many_is_told_plainly(repository: Path, state_dir: Path) -> None:
    result = run(repository, state_dir, [GOOD], budget={"max_calls": 0})
    assert "the next question is one call more, and 0 of 0 are left" in str(result.error)


def test_candidates_that_the_budget_has_no_room_for_are_told(repository: Path, state_dir: Path) -> None:
    config = RunnerConfig(state_dir=state_dir, llm_config=LLMConfig(candidates=4), push=False, budget={"max_calls": 2})  # type: ignore[arg-type]
    task = TaskContext(task_id="1", spec_name="s", title="t", description="d", repo_url=str(repository))
    with RunnerOrchestrator(config, llm=ScriptedLLM([GOOD] * 4)) as orchestrator:
        result = orchestrator.run(task)
    assert (result.success, result.usage.calls) == (True, 2)
    (warning,) = (one for one in result.warnings if "candidates" in one)
    assert warning.startswith("Of 4 candidates the budget left out 2: The budget of the run is used up")


def test_runs_of_a_spec_share_a_budget_by_the_registry(repository: Path, state_dir: Path) -> None:
    budget = {"spec": {"max_calls": 2}}
    results = [run(repository, state_dir, [GOOD], number, budget=budget) for number in range(3)]
    assert [result.status for result in results] == ["done", "done", "failed"]
    assert "necrocode registry budget shop --reset" in str(results[2].error)
    with LocalTaskRegistry(f"sqlite:///{state_dir / 'registry.db'}") as registry:
        assert registry.budget_usage("shop").spent.tokens == 2_200


@pytest.mark.parametrize("level", ["run", "spec"])
def test_a_price_that_is_not_known_is_refused_or_told(repository: Path, state_dir: Path, level: str) -> None:
    def limited(**tops: Any) -> RunnerResult:
        config = RunnerConfig(
            state_dir=state_dir,
            push=False,
            budget={level: tops} if level == "spec" else tops,  # type: ignore[arg-type]
        )
        task = TaskContext(task_id="1", spec_name="s", title="t", description="d", repo_url=str(repository))
        with RunnerOrchestrator(config, llm=ScriptedLLM([GOOD])) as orchestrator:
            return orchestrator.run(task)

    refused = limited(max_cost_usd=1)
    assert refused.error_details is not None
    assert (refused.error_details.type, exit_code(refused)) == ("ConfigurationError", 2)
    told = limited(max_cost_usd=1, max_tokens=100_000)
    assert (told.status, told.usage.cost_usd) == ("done", None)
    assert any("max_cost_usd cannot be kept" in warning for warning in told.warnings)
