"""What every ``SpecBudgets`` does."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from necrocode.agent_runner import (
    BudgetReservation,
    BudgetUsage,
    LocalTaskRegistry,
    ServiceError,
    SpecBudgets,
    Spending,
    SpendingLimits,
)
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock

NOTHING = Spending()
QUESTION = Spending(calls=1, prompt_tokens=600, completion_tokens=400, cost_micro_usd=50)
ANSWER = Spending(
    calls=1, prompt_tokens=500, cached_prompt_tokens=100, completion_tokens=20, cost_micro_usd=7, estimated_calls=1
)


def reserve(
    budgets: SpecBudgets, name: str, need: Spending = QUESTION, *, spec_name: str = "chat", ttl: float = 60, **tops: Any
) -> BudgetReservation:
    limits = SpendingLimits(**tops)
    return budgets.reserve_budget(spec_name, name, run_id="run-1", need=need, limits=limits, ttl_seconds=ttl)


def counts(usage: BudgetUsage) -> tuple[Spending, Spending, Spending]:
    return usage.spent, usage.reserved, usage.unsettled


class SpecBudgetsContract:
    """Inherit it, and say what the registry under test is; ``clock`` is the registry's own."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def registry(self) -> LocalTaskRegistry:
        """An empty registry."""
        raise NotImplementedError

    def test_a_spec_that_is_not_known_has_spent_nothing(self, registry: LocalTaskRegistry) -> None:
        assert isinstance(registry, SpecBudgets)
        usage = registry.budget_usage("仕様")
        assert usage == BudgetUsage(spec_name="仕様")

    def test_what_is_reserved_counts_and_what_is_settled_takes_its_place(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        first = reserve(registry, "a")
        assert (first.granted, first.exceeded, first.usage.since) == (True, None, clock.now())
        clock.sleep(5)
        second = reserve(registry, "b")
        assert counts(second.usage) == (NOTHING, QUESTION.plus(QUESTION), NOTHING)
        assert second.usage.seconds == 5
        settled = registry.settle_budget("chat", "a", ANSWER)
        assert counts(settled) == (ANSWER, QUESTION, NOTHING)
        assert registry.settle_budget("chat", "b", NOTHING).spent == ANSWER
        assert counts(registry.budget_usage("chat")) == (ANSWER, NOTHING, NOTHING)

    def test_specs_are_apart(self, registry: LocalTaskRegistry) -> None:
        reserve(registry, "a")
        reserve(registry, "a", spec_name="仕様")
        registry.settle_budget("仕様", "a", ANSWER)
        assert counts(registry.budget_usage("chat")) == (NOTHING, QUESTION, NOTHING)
        assert counts(registry.budget_usage("仕様")) == (ANSWER, NOTHING, NOTHING)

    def test_a_question_that_would_pass_a_limit_is_refused_and_leaves_nothing(
        self, registry: LocalTaskRegistry
    ) -> None:
        for limit, top in {"max_tokens": 1999, "max_calls": 1, "max_cost_usd": Decimal("0.000099")}.items():
            asked: dict[str, Any] = {"spec_name": limit, limit: top}
            assert reserve(registry, "a", **asked).granted
            refused = reserve(registry, "b", **asked)
            assert (refused.granted, refused.exceeded) == (False, limit)
            assert counts(refused.usage) == (NOTHING, QUESTION, NOTHING)
            registry.settle_budget(limit, "a", NOTHING)
            assert reserve(registry, "b", **asked).granted, "the same question again, once there is room"

    def test_a_limit_of_nothing_is_no_question(self, registry: LocalTaskRegistry) -> None:
        for limit in ("max_tokens", "max_calls", "max_cost_usd", "max_seconds"):
            asked: dict[str, Any] = {limit: 0}
            assert reserve(registry, "a", **asked).exceeded == limit

    def test_a_limit_may_be_met_exactly(self, registry: LocalTaskRegistry) -> None:
        tops = {"max_tokens": 2000, "max_calls": 2, "max_cost_usd": Decimal("0.0001")}
        assert reserve(registry, "a", **tops).granted
        assert reserve(registry, "b", **tops).granted
        assert reserve(registry, "c", Spending(), **tops).granted

    def test_time_counts_from_the_first_question(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        clock.sleep(1000)
        assert reserve(registry, "a", max_seconds=60).granted
        clock.sleep(59)
        assert reserve(registry, "b", max_seconds=60).granted
        clock.sleep(1)
        assert reserve(registry, "c", max_seconds=60).exceeded == "max_seconds"

    def test_reserving_again_is_one_reservation(self, registry: LocalTaskRegistry) -> None:
        for _ in range(3):
            assert reserve(registry, "a", max_calls=1).granted
        assert registry.budget_usage("chat").reserved == QUESTION

    def test_settling_again_changes_nothing(self, registry: LocalTaskRegistry) -> None:
        reserve(registry, "a")
        registry.settle_budget("chat", "a", ANSWER)
        for spent in (ANSWER, QUESTION, NOTHING):
            assert registry.settle_budget("chat", "a", spent).spent == ANSWER

    def test_what_nobody_settles_counts_as_spent_until_it_is_settled(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        reserve(registry, "a", ttl=30)
        clock.sleep(29)
        assert counts(registry.budget_usage("chat")) == (NOTHING, QUESTION, NOTHING)
        clock.sleep(1)
        assert counts(registry.budget_usage("chat")) == (QUESTION, NOTHING, QUESTION)
        assert reserve(registry, "b", max_calls=1).exceeded == "max_calls"
        clock.sleep(7 * 86_400)
        assert counts(registry.settle_budget("chat", "a", ANSWER)) == (ANSWER, NOTHING, NOTHING)

    def test_what_was_spent_without_being_known_counts(self, registry: LocalTaskRegistry) -> None:
        usage = registry.settle_budget("chat", "never-heard-of", ANSWER)
        assert counts(usage) == (ANSWER, NOTHING, NOTHING)
        assert registry.settle_budget("chat", "never-heard-of", ANSWER).spent == ANSWER

    def test_a_day_of_questions_is_counted_whole(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        for number in range(30):
            reserve(registry, f"q{number}")
            registry.settle_budget("chat", f"q{number}", ANSWER)
            clock.sleep(3600)
        assert registry.budget_usage("chat").spent.calls == 30
        assert registry.budget_usage("chat").spent.tokens == 30 * ANSWER.tokens

    def test_a_reset_forgets_all_but_what_is_under_way(self, registry: LocalTaskRegistry, clock: FakeClock) -> None:
        reserve(registry, "lost", ttl=1)
        registry.settle_budget("chat", "done", ANSWER)
        clock.sleep(10)
        reserve(registry, "open")
        usage = registry.reset_budget("chat")
        assert counts(usage) == (NOTHING, QUESTION, NOTHING)
        assert (usage.since, usage.seconds) == (clock.now(), 0)
        assert counts(registry.settle_budget("chat", "open", ANSWER)) == (ANSWER, NOTHING, NOTHING)
        assert registry.reset_budget("chat") == BudgetUsage(spec_name="chat")

    def test_a_question_that_was_forgotten_by_a_reset_still_counts_when_it_is_settled(
        self, registry: LocalTaskRegistry, clock: FakeClock
    ) -> None:
        reserve(registry, "slow", ttl=1)
        clock.sleep(2)
        registry.reset_budget("chat")
        assert registry.settle_budget("chat", "slow", ANSWER).spent == ANSWER

    def test_numbers_that_can_be_none_are_refused_for_good(self, registry: LocalTaskRegistry) -> None:
        wrong = (Spending(calls=1, completion_tokens=-1), Spending(calls=1, cost_micro_usd=10**12 + 1))
        for tell in (
            *(partial(reserve, registry, "a", need) for need in wrong),
            *(partial(registry.settle_budget, "chat", "a", need) for need in wrong),
            *(partial(reserve, registry, "a", ttl=ttl) for ttl in (0, -1, 8 * 86_400 + 1)),
        ):
            with pytest.raises(ServiceError) as caught:
                tell()
            assert caught.value.retryable is False
        assert registry.budget_usage("chat") == BudgetUsage(spec_name="chat")

    def test_the_largest_numbers_are_kept(self, registry: LocalTaskRegistry) -> None:
        large = Spending(**dict.fromkeys(Spending.model_fields, 10**12))
        reserve(registry, "a", large)
        reserve(registry, "b", large)
        assert registry.settle_budget("chat", "a", large).reserved == large
        assert registry.settle_budget("chat", "b", large).spent == large.plus(large)

    def test_two_hundred_at_once_stay_below_the_limit(self, registry: LocalTaskRegistry) -> None:
        got = at_once(lambda number: reserve(registry, f"q{number}", max_tokens=7_500), range(200))
        granted = [one for one in got if isinstance(one, BudgetReservation) and one.granted]
        refused = [one for one in got if isinstance(one, BudgetReservation) and not one.granted]
        assert (len(granted), len(refused)) == (7, 193)
        assert {one.exceeded for one in refused} == {"max_tokens"}
        assert registry.budget_usage("chat").reserved.tokens == 7_000

    def test_many_that_reserve_and_settle_at_once_lose_nothing(self, registry: LocalTaskRegistry) -> None:
        def ask(number: int) -> None:
            for part in range(3):
                reserve(registry, f"q{number}-{part}")
                registry.settle_budget("chat", f"q{number}-{part}", ANSWER)

        assert at_once(ask, range(8)) == [None] * 8
        usage = registry.budget_usage("chat")
        assert (usage.spent.calls, usage.spent.tokens, usage.reserved) == (24, 24 * ANSWER.tokens, NOTHING)
