"""Budgets of runs and processes, and of specs as far as their runs see them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    BudgetConfig,
    BudgetExhaustedError,
    BudgetReservation,
    BudgetUsage,
    ConfigurationError,
    ContextOverflowError,
    LLMClient,
    LLMConfig,
    LocalTaskRegistry,
    Message,
    ModelAnswer,
    ModelPrice,
    ModelRefusalError,
    RateLimitError,
    RunnerError,
    RunnerTimeoutError,
    RunUsage,
    ScriptedLLM,
    ServiceConnectionError,
    ServiceError,
    Spending,
    SpendingLimits,
    TruncatedAnswerError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.generation.budget import ProcessBudget, RunBudget
from necrocode.agent_runner.generation.budgeted_model import BudgetedModel, estimate_prompt_tokens
from necrocode.agent_runner.generation.ledgers import LEAST_COMPLETION_TOKENS, POLL_SECONDS
from necrocode.agent_runner.spending import MOST_SPENT, NOTHING
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, serving

PRICE = ModelPrice(prompt_usd=Decimal(2), completion_usd=Decimal(8), cached_prompt_usd=Decimal("0.5"))
PRICED = LLMConfig(model="m-1", prices={"m-*": PRICE})
UNPRICED = LLMConfig(model="m-1")
ASKED = (Message(role="user", content="x" * 320),)
PROMPT = estimate_prompt_tokens(ASKED)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry(tmp_path: Path, clock: FakeClock) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(f"sqlite:///{tmp_path / 'registry.db'}", clock=clock) as registry:
        yield registry


class Desk:
    """Makes budgets and keeps what they complain of."""

    def __init__(self, clock: FakeClock, *, registry: object = None, llm: LLMConfig = PRICED, **tops: Any) -> None:
        self.clock = clock
        self.registry = registry
        self.llm = llm
        self.troubles: list[str] = []
        self.process = ProcessBudget(BudgetConfig(**tops), clock)

    def budget(self, run_id: str = "run-1") -> RunBudget:
        return self.process.of_run(
            spec_name="chat", run_id=run_id, registry=self.registry, llm=self.llm, on_trouble=self.troubles.append
        )


def answer(prompt: int = 100, completion: int = 10, text: str = "yes") -> ModelAnswer:
    return ModelAnswer(text=text, model="m", prompt_tokens=prompt, completion_tokens=completion)


def ask(
    budget: RunBudget, said: ModelAnswer | str | BaseException, *, max_tokens: int = 1000, **options: Any
) -> ModelAnswer:
    return BudgetedModel(ScriptedLLM([said]), budget, max_tokens=max_tokens).complete(ASKED, **options)


class Overheard:
    """A model that keeps what it was asked, and does as it is told."""

    def __init__(self, does: Callable[[], ModelAnswer] = answer) -> None:
        self.does = does
        self.max_tokens: list[int | None] = []
        self.deadlines: list[Deadline | None] = []
        self.temperatures: list[float | None] = []

    def complete(
        self,
        messages: Sequence[Message],  # noqa: ARG002
        *,
        answer_format: str = "text",  # noqa: ARG002
        max_tokens: int | None = None,
        deadline: Deadline | None = None,
        temperature: float | None = None,
    ) -> ModelAnswer:
        self.max_tokens.append(max_tokens)
        self.deadlines.append(deadline)
        self.temperatures.append(temperature)
        return self.does()


# --- prices


def test_a_price_is_found_by_name_before_patterns_and_by_the_first_pattern_that_fits() -> None:
    prices = {
        name: ModelPrice(prompt_usd=Decimal(number), completion_usd=Decimal(0))
        for number, name in enumerate(["gpt-*", "*", "gpt-4.1-mini", "gpt-4.1*"])
    }
    config = LLMConfig(prices=prices)

    def found(model: str) -> int:
        desk = Desk(FakeClock(), llm=config.model_copy(update={"model": model}))
        ask(budget := desk.budget(), answer(1_000_000, 1))
        assert budget.usage.cost_usd is not None
        return int(budget.usage.cost_usd)

    assert [found(model) for model in ("gpt-4.1-mini", "gpt-4.1", "other")] == [2, 0, 1]


def test_money_is_exact_and_each_call_rounded_up_to_a_micro_dollar() -> None:
    price = ModelPrice(prompt_usd=Decimal("0.1"), completion_usd=Decimal("0.4"))
    assert [price.cost_micro_usd(*tokens) for tokens in ((0, 0), (1, 0), (10, 0), (10, 1), (10**6, 10**6))] == [
        0, 1, 1, 2, 500_000,
    ]  # fmt: skip
    assert PRICE.cost_micro_usd(1000, 0, 1000) == 500
    assert PRICE.cost_micro_usd(1000, 0, 5000) == 500, "no more can be cached than there is"
    free = ModelPrice(prompt_usd=Decimal(0), completion_usd=Decimal(0))
    assert (free.cost_micro_usd(10**9, 10**9), free.completion_tokens_for(0, 10**9)) == (0, MOST_SPENT)


def test_ten_thousand_cents_are_a_hundred_dollars(clock: FakeClock) -> None:
    budget = Desk(clock, llm=LLMConfig(prices={"*": PRICE})).budget()
    for _ in range(10_000):
        budget.reserve(1, 1).settle(answer(1000, 1000))
    assert budget.usage.cost_usd == Decimal(100)
    assert '"cost_usd":100.0' in budget.usage.model_dump_json()
    assert RunUsage.model_validate_json(budget.usage.model_dump_json()) == budget.usage


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ({"prompt_usd": -1, "completion_usd": 1}, "prompt_usd"),
        ({"prompt_usd": "0.0000001", "completion_usd": 1}, "6 decimal places"),
        ({"prompt_usd": 1}, "completion_usd is missing"),
        ({"prompt_usd": 1, "completion_usd": "nan"}, "completion_usd"),
        ({"prompt_usd": 1, "completion_usd": 1, "cached_usd": 1}, "did you mean 'cached_prompt_usd'"),
    ],
)
def test_a_price_that_can_be_none_is_refused(text: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        LLMConfig(prices={"m": text})


@pytest.mark.parametrize(
    "tops", [{"max_tokens": -1}, {"max_seconds": float("inf")}, {"process": {"max_cost": 1}}, {"max_calls": 0.5}]
)
def test_limits_that_can_be_none_are_refused(tops: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        BudgetConfig(**tops)


# --- one question


def test_what_the_endpoint_counted_takes_the_place_of_what_was_reserved(clock: FakeClock) -> None:
    budget = Desk(clock, max_tokens=10_000).budget()
    assert ask(budget, answer(100, 10)).text == "yes"
    assert budget.usage == RunUsage(
        calls=1, prompt_tokens=100, completion_tokens=10, cost_usd=Decimal("0.00028"), price_known=True
    )
    assert budget.reserve(0, 9_890).max_tokens == 9_890


def test_an_answer_without_usage_counts_as_estimated(clock: FakeClock) -> None:
    budget = Desk(clock).budget()
    ask(budget, ModelAnswer(text="日本語の答え!!!!", model="m"))
    assert budget.usage == RunUsage(
        calls=1,
        prompt_tokens=PROMPT,
        completion_tokens=7,
        cost_usd=Decimal(PRICE.cost_micro_usd(PROMPT, 7)) / 10**6,
        is_estimated=True,
        price_known=True,
    )


def test_numbers_that_no_endpoint_can_mean_are_bounded(clock: FakeClock) -> None:
    budget = Desk(clock).budget()
    ask(budget, answer(10**30, -5, text="four"))
    assert (budget.usage.prompt_tokens, budget.usage.completion_tokens) == (MOST_SPENT, 1)


def test_without_a_price_there_is_no_cost(clock: FakeClock) -> None:
    budget = Desk(clock, llm=UNPRICED).budget()
    ask(budget, answer())
    assert (budget.usage.cost_usd, budget.usage.price_known, budget.usage.calls) == (None, False, 1)


def test_without_limits_questions_pass_as_they_are(clock: FakeClock) -> None:
    model = Overheard()
    deadline = Deadline(60, clock)
    budgeted = BudgetedModel(model, Desk(clock).budget(), max_tokens=1000)
    budgeted.complete(ASKED, deadline=deadline, temperature=0.5)
    budgeted.complete(ASKED, max_tokens=50)
    assert (model.max_tokens, model.deadlines, model.temperatures) == ([None, 50], [deadline, None], [0.5, None])


@pytest.mark.parametrize(
    ("tops", "limit", "left", "needed"),
    [
        ({"max_tokens": 1000}, "budget.max_tokens", 1000 - 600, PROMPT + LEAST_COMPLETION_TOKENS),
        ({"max_calls": 1}, "budget.max_calls", 0, 1),
        ({"max_cost_usd": Decimal("0.005")}, "budget.max_cost_usd", 0.001, (PROMPT * 2 + 512 * 8) / 10**6),
        ({"process": {"max_tokens": 1000}}, "budget.process.max_tokens", 400, PROMPT + LEAST_COMPLETION_TOKENS),
        ({"process": {"max_calls": 1}}, "budget.process.max_calls", 0, 1),
    ],
)
def test_a_question_for_which_there_is_no_room_is_not_asked(
    clock: FakeClock, tops: dict[str, Any], limit: str, left: float, needed: float
) -> None:
    budget = Desk(clock, **tops).budget()
    budget.reserve(0, 1).settle(answer(200, 400) if "cost" not in limit else answer(400, 400))
    model = Overheard()
    with pytest.raises(BudgetExhaustedError) as caught:
        BudgetedModel(model, budget, max_tokens=1000).complete(ASKED)
    error = caught.value
    assert model.max_tokens == []
    assert (error.limit, error.needed, error.retryable) == (limit, pytest.approx(needed), False)
    assert error.left == pytest.approx(left)
    assert f"Raise {limit}" in str(error)
    assert budget.usage.calls == 1


def test_tokens_that_the_endpoint_had_in_its_cache_cost_less(clock: FakeClock) -> None:
    budget = Desk(clock, max_tokens=10_000).budget()
    told = ModelAnswer(text="yes", model="m", prompt_tokens=1000, completion_tokens=10, cached_prompt_tokens=800)
    budget.reserve(1000, 100).settle(told)
    usage = budget.usage
    assert usage.cached_prompt_tokens == 800
    assert usage.cost_usd == Decimal(200 * 2 + 800 // 2 + 10 * 8) / 10**6
    assert not usage.is_estimated


def test_usage_that_the_client_had_to_estimate_is_told_as_such(clock: FakeClock) -> None:
    budget = Desk(clock, max_tokens=10_000).budget()
    told = ModelAnswer(text="yes", model="m", prompt_tokens=9, completion_tokens=9, usage_is_estimated=True)
    budget.reserve(100, 100).settle(told)
    assert budget.usage.is_estimated


def test_the_error_says_what_is_needed_and_what_is_left(clock: FakeClock) -> None:
    budget = Desk(clock, max_tokens=2_000).budget()
    budget.reserve(1_000, 600)
    with pytest.raises(BudgetExhaustedError) as caught:
        budget.reserve(1_000, 600)
    assert str(caught.value) == (
        "The budget of the run is used up: the next question needs 1,512 tokens at least, and 400 of 2,000 are left,"
        " with 1 under way. Raise budget.max_tokens."
    )


@pytest.mark.parametrize("limit", ["max_tokens", "max_calls", "max_cost_usd", "max_seconds"])
@pytest.mark.parametrize("level", ["run", "process"])
def test_a_limit_of_zero_lets_no_question_pass(clock: FakeClock, level: str, limit: str) -> None:
    tops: dict[str, Any] = {limit: 0}
    budget = Desk(clock, **(tops if level == "run" else {"process": tops})).budget()
    with pytest.raises(BudgetExhaustedError):
        ask(budget, answer())


def test_an_answer_is_asked_for_as_long_as_there_is_room(clock: FakeClock) -> None:
    desk = Desk(clock, max_tokens=PROMPT + 700, max_cost_usd=Decimal(1))
    model = Overheard()
    BudgetedModel(model, desk.budget(), max_tokens=1000).complete(ASKED)
    BudgetedModel(model, desk.budget(), max_tokens=1000).complete(ASKED, max_tokens=600)
    assert model.max_tokens == [700, 600]
    with pytest.raises(BudgetExhaustedError):
        Desk(clock, max_tokens=PROMPT + LEAST_COMPLETION_TOKENS - 1).budget().reserve(PROMPT, 1000)
    assert Desk(clock, max_tokens=PROMPT + 20).budget().reserve(PROMPT, 20).max_tokens == 20


def test_money_shortens_an_answer_too(clock: FakeClock) -> None:
    budget = Desk(clock, max_cost_usd=Decimal("0.006")).budget()
    reservation = budget.reserve(500, 1000)
    assert (reservation.max_tokens, reservation.amount.cost_micro_usd) == (625, 6000)
    with pytest.raises(BudgetExhaustedError, match=r"0 of 0\.006 are left"):
        budget.reserve(500, 1000)


def test_an_answer_that_the_budget_cut_is_told_so(clock: FakeClock) -> None:
    cut = TruncatedAnswerError("The model's answer was cut at the token limit.")
    budget = Desk(clock, max_tokens=PROMPT + 700).budget()
    with pytest.raises(BudgetExhaustedError, match=r"cut at 700 tokens.*Raise budget\.max_tokens") as caught:
        ask(budget, cut)
    assert caught.value.__cause__ is cut
    assert (budget.usage.completion_tokens, budget.usage.is_estimated) == (700, True)
    with pytest.raises(TruncatedAnswerError):
        ask(Desk(clock, max_tokens=PROMPT + 1000).budget(), cut)


# --- questions that bring no answer


def connection_error(cause: BaseException | None) -> ServiceConnectionError:
    error = ServiceConnectionError("Failed to connect.")
    error.__cause__ = cause
    return error


class ConnectError(Exception):
    """As the HTTP library calls it."""


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("no"),
        RateLimitError("later"),
        ContextOverflowError("too long"),
        ConfigurationError("no key"),
        ServiceError("bad request", status_code=400),
        ServiceError("moved", status_code=302),
        connection_error(ConnectError()),
        connection_error(ConnectionRefusedError()),
        connection_error(connection_error(ConnectError())),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_was_refused_or_never_sent_costs_nothing(clock: FakeClock, error: Exception) -> None:
    desk = Desk(clock, max_tokens=PROMPT + 1000)
    budget = desk.budget()
    with pytest.raises(type(error)):
        ask(budget, error)
    assert (budget.usage.calls, desk.troubles) == (0, [])
    assert budget.reserve(PROMPT, 1000).max_tokens == 1000


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (ServiceError("broken", status_code=500), True),
        (connection_error(None), True),
        (connection_error(ConnectionResetError()), True),
        (RunnerTimeoutError("late"), True),
        (KeyboardInterrupt(), True),
        (TypeError("a defect"), True),
        (ModelRefusalError("no"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_have_been_paid_for_counts_as_reserved(clock: FakeClock, error: BaseException, is_told: bool) -> None:
    desk = Desk(clock)
    budget = desk.budget()
    with pytest.raises(type(error)):
        ask(budget, error)
    usage = budget.usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (1, PROMPT, 1000)
    assert usage.is_estimated
    assert bool(desk.troubles) == is_told
    assert all(f"counts as {PROMPT + 1000} tokens" in trouble for trouble in desk.troubles)


def completion_of(reason: str, text: str, usage: dict[str, int] | None) -> Answer:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    return Answer(200, {"id": "1", "model": "m", "choices": [choice], "usage": usage})


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        (completion_of("length", "abc", {"prompt_tokens": 300, "completion_tokens": 40}), (1, 300, 40, False)),
        (completion_of("stop", "", {"prompt_tokens": 300, "completion_tokens": 0}), (1, 300, 0, False)),
        (completion_of("length", "abc", {"prompt_tokens": 300}), (1, 300, 1000, True)),
        (completion_of("length", "abc", None), (1, PROMPT, 1000, True)),
        (Answer(302, "", headers={"Location": "/elsewhere"}), (0, 0, 0, False)),
        (Answer(200, "<!DOCTYPE html><p>log in"), (0, 0, 0, False)),
        (Answer(200, "{}"), (1, PROMPT, 1000, True)),
    ],
)
def test_an_answer_that_will_not_do_counts_as_the_endpoint_says(
    clock: FakeClock, said: Answer, counted: tuple[int, int, int, bool]
) -> None:
    budget = Desk(clock).budget()
    with serving([said]) as server:
        client = LLMClient(LLMConfig(endpoint=f"{server.url}/v1", retry_count=0, stream=False), clock=clock)
        with pytest.raises(RunnerError):
            BudgetedModel(client, budget, max_tokens=1000).complete(ASKED)
    usage = budget.usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens, usage.is_estimated) == counted


def test_an_answer_says_of_its_tokens_what_the_budget_counts(clock: FakeClock) -> None:
    budget = Desk(clock).budget()
    got = ask(budget, "yes")
    assert got.usage_is_estimated
    assert (got.prompt_tokens, got.completion_tokens) == (budget.usage.prompt_tokens, budget.usage.completion_tokens)


def test_an_endpoint_that_is_not_there_costs_nothing(clock: FakeClock) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        config = LLMConfig(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", retry_count=1)
        desk = Desk(clock, max_calls=1)
        budget = desk.budget()
        with pytest.raises(ServiceConnectionError):
            BudgetedModel(LLMClient(config, clock=clock), budget, max_tokens=10).complete(ASKED)
    assert (budget.usage.calls, desk.troubles) == (0, [])


@pytest.mark.parametrize(("status", "calls"), [(400, 0), (429, 0), (500, 1)])
def test_an_endpoint_that_refuses_costs_nothing_and_one_that_breaks_may(
    clock: FakeClock, status: int, calls: int
) -> None:
    refusal = Answer(status, {"error": {"message": "no", "type": "x", "code": None}})
    with serving([refusal]) as server:
        config = LLMConfig(endpoint=f"{server.url}/v1", retry_count=0)
        budget = Desk(clock).budget()
        with pytest.raises(ServiceError):
            BudgetedModel(LLMClient(config, clock=clock), budget, max_tokens=10).complete(ASKED)
    assert budget.usage.calls == calls


def test_a_reservation_ends_once(clock: FakeClock) -> None:
    budget = Desk(clock).budget()
    reservation = budget.reserve(10, 10)
    reservation.settle(answer())
    reservation.end(reservation.amount)
    reservation.end(NOTHING)
    assert budget.usage.calls == 1


# --- time


def test_a_run_is_given_no_more_time_than_it_has(clock: FakeClock) -> None:
    desk = Desk(clock, max_seconds=100, process={"max_seconds": 1000})
    budget = desk.budget()
    model = Overheard()
    budgeted = BudgetedModel(model, budget, max_tokens=10)
    clock.sleep(40)
    budgeted.complete(ASKED, deadline=Deadline(500, clock))
    budgeted.complete(ASKED, deadline=Deadline(20, clock))
    budgeted.complete(ASKED)
    assert [deadline and deadline.remaining_seconds() for deadline in model.deadlines] == [60, 20, 60]
    clock.sleep(60)
    with pytest.raises(BudgetExhaustedError, match=r"its time is over.*Raise budget\.max_seconds") as caught:
        budgeted.complete(ASKED)
    assert (caught.value.limit, caught.value.left) == ("budget.max_seconds", 0)
    BudgetedModel(model, desk.budget("run-2"), max_tokens=10).complete(ASKED)
    clock.sleep(950)
    with pytest.raises(BudgetExhaustedError, match=r"Raise budget\.process\.max_seconds"):
        desk.budget("run-3").reserve(1, 1)


def test_an_answer_that_the_budgets_time_cut_is_told_so(clock: FakeClock) -> None:
    def late() -> ModelAnswer:
        clock.sleep(100)
        raise RunnerTimeoutError("The task's time ran out while the model was answering.")

    budget = Desk(clock, max_seconds=100).budget()
    with pytest.raises(BudgetExhaustedError, match=r"before the model had answered. Raise budget\.max_seconds"):
        BudgetedModel(Overheard(late), budget, max_tokens=10).complete(ASKED, deadline=Deadline(500, clock))
    budget = Desk(clock, max_seconds=500).budget()
    with pytest.raises(RunnerTimeoutError):
        BudgetedModel(Overheard(late), budget, max_tokens=10).complete(ASKED, deadline=Deadline(100, clock))


def test_after_the_deadline_nothing_is_reserved_or_asked(clock: FakeClock) -> None:
    budget = Desk(clock).budget()
    deadline = Deadline(1, clock)
    clock.sleep(1)
    with pytest.raises(RunnerTimeoutError):
        ask(budget, answer(), deadline=deadline)
    assert budget.usage.calls == 0


# --- many at once


def test_two_hundred_threads_never_pass_a_limit(clock: FakeClock) -> None:
    desk = Desk(clock, process={"max_tokens": 50_000, "max_calls": 60, "max_cost_usd": Decimal("0.2")})
    lock = threading.Lock()
    under_way = most = 0

    def work(number: int) -> int:
        nonlocal under_way, most
        budget = desk.budget(f"run-{number}")
        spent = 0
        for _ in range(5):
            reservation = budget.reserve(300, 700)
            with lock:
                under_way += reservation.amount.tokens
                most = max(most, under_way)
            used = answer(300, reservation.max_tokens - number % 3)
            with lock:
                under_way -= reservation.amount.tokens - used.prompt_tokens - used.completion_tokens
            reservation.settle(used)
            spent += 1
        return spent

    outcomes = at_once(work, range(200))
    spent = desk.process._ledger.spent
    assert all(isinstance(one, (int, BudgetExhaustedError)) for one in outcomes)
    assert most <= 50_000
    assert (spent.tokens <= 50_000, spent.calls <= 60, spent.cost_micro_usd <= 200_000) == (True, True, True)
    assert spent.cost_micro_usd > 200_000 - PRICE.cost_micro_usd(300, LEAST_COMPLETION_TOKENS) - 600 * 8
    assert desk.process._ledger._reserved == Spending()


def test_who_has_time_waits_for_what_others_give_back(clock: FakeClock) -> None:
    desk = Desk(clock, process={"max_tokens": 1500})
    first = desk.budget().reserve(500, 1000)
    got: list[int] = []

    def second() -> None:
        got.append(desk.budget("run-2").reserve(100, 1000, deadline=Deadline(60, clock)).max_tokens)

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(BudgetExhaustedError):
        desk.budget("run-3").reserve(100, 1000)  # without a deadline nobody waits
    first.settle(answer(300, 100))
    thread.join(30)
    assert got == [1000]


def test_nobody_waits_for_what_cannot_come_back(clock: FakeClock) -> None:
    desk = Desk(clock, process={"max_tokens": 2000})
    desk.budget().reserve(1, 1).settle(answer(1000, 400))
    desk.budget().reserve(10, 10)
    with pytest.raises(BudgetExhaustedError):
        desk.budget().reserve(100, 1000, deadline=Deadline(60, clock))


def test_a_wait_ends_with_the_deadline(clock: FakeClock) -> None:
    desk = Desk(clock, process={"max_tokens": 1500})
    desk.budget().reserve(500, 1000)
    clock.seconds += 1
    deadline = Deadline(0, clock)
    with pytest.raises(RunnerTimeoutError, match="others have reserved what is left of the budget"):
        desk.budget().reserve(100, 1000, deadline=deadline)


def test_what_a_wider_book_has_no_room_for_is_given_back_to_the_narrower(clock: FakeClock) -> None:
    desk = Desk(clock, max_tokens=2_000, process={"max_tokens": 1_200})
    budget = desk.budget()
    assert budget.reserve(200, 1_800).max_tokens == 1_000
    other = desk.budget()
    with pytest.raises(BudgetExhaustedError):
        other.reserve(200, 1_800)
    assert other._ledgers[0]._reserved == Spending()
    assert budget._ledgers[0]._reserved.tokens == 1_200


# --- prices that are not known


@pytest.mark.parametrize("level", ["budget", "budget.process", "budget.spec"])
def test_a_limit_on_money_without_a_price_needs_another_limit(
    clock: FakeClock, registry: LocalTaskRegistry, level: str
) -> None:
    def desk(**tops: Any) -> Desk:
        name = level.partition(".")[2]
        return Desk(clock, registry=registry, llm=UNPRICED, **({name: tops} if name else tops))

    with pytest.raises(ConfigurationError, match=rf"{level}\.max_cost_usd.*m-1.*{level}\.max_tokens"):
        desk(max_cost_usd=1, max_seconds=5).budget()
    for other in ("max_tokens", "max_calls"):
        bench = desk(max_cost_usd=1, **{other: 5000})
        ask(bench.budget(), answer())
        assert bench.troubles == [
            f"{level}.max_cost_usd cannot be kept: llm.prices has no price for the model m-1; the other limits hold."
        ]


def test_a_price_of_zero_is_a_price(clock: FakeClock) -> None:
    free = {"m-1": ModelPrice(prompt_usd=Decimal(0), completion_usd=Decimal(0))}
    budget = Desk(clock, llm=LLMConfig(model="m-1", prices=free), max_cost_usd=0).budget()
    ask(budget, answer())
    assert (budget.usage.cost_usd, budget.usage.price_known) == (0, True)


# --- specs


def test_runs_of_a_spec_share_what_the_registry_counts(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    tops: dict[str, Any] = {"spec": {"max_tokens": 3_000}}
    here, there = Desk(clock, registry=registry, **tops), Desk(clock, registry=registry, **tops)
    here.budget().check()
    ask(here.budget("a"), answer(800, 700))
    ask(there.budget("b"), answer(300, 100))
    usage = registry.budget_usage("chat")
    assert (usage.spent.calls, usage.spent.tokens, usage.reserved) == (2, 1_900, Spending())
    assert there.budget().reserve(500, 1_000).max_tokens == 600
    with pytest.raises(BudgetExhaustedError, match="necrocode registry budget chat --reset") as caught:
        ask(here.budget("c"), answer())
    assert (caught.value.limit, caught.value.left) == ("budget.spec.max_tokens", 0)


def test_runners_with_a_registry_each_never_pass_the_limit_of_their_spec(tmp_path: Path, clock: FakeClock) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"

    def work(number: int) -> int:
        with LocalTaskRegistry(url, clock=clock) as own:
            desk = Desk(clock, registry=own, spec={"max_tokens": 6_500, "max_cost_usd": Decimal("0.045")})
            asked = 0
            try:
                while True:
                    ask(desk.budget(f"run-{number}"), answer(100, 900), max_tokens=900)
                    asked += 1
            except BudgetExhaustedError:
                return asked

    asked = at_once(work, range(6))
    with LocalTaskRegistry(url) as registry:
        spent = registry.budget_usage("chat").spent
    assert spent.calls == sum(one for one in asked if isinstance(one, int)) == 6
    assert spent.cost_micro_usd == 6 * PRICE.cost_micro_usd(100, 900)


def test_a_spec_without_limits_is_counted(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    desk = Desk(clock, registry=registry, spec={})
    ask(desk.budget(), answer())
    with pytest.raises(ServiceConnectionError):
        ask(desk.budget(), connection_error(None))
    usage = registry.budget_usage("chat")
    assert (usage.spent.calls, usage.spent.estimated_calls) == (2, 1)


def test_the_time_of_a_spec_counts_too(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    desk = Desk(clock, registry=registry, spec={"max_seconds": 100})
    ask(desk.budget(), answer())
    clock.sleep(70)
    model = Overheard()
    BudgetedModel(model, desk.budget(), max_tokens=10).complete(ASKED, deadline=Deadline(500, clock))
    assert model.deadlines[0] is not None
    assert model.deadlines[0].remaining_seconds() == 30
    clock.sleep(30)
    with pytest.raises(BudgetExhaustedError, match=r"Raise budget\.spec\.max_seconds"):
        ask(desk.budget(), answer())


def test_whoever_has_time_waits_for_others_of_the_spec(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    desk = Desk(clock, registry=registry, spec={"max_tokens": 1_500})
    first = desk.budget("a").reserve(500, 1_000)
    sleep = clock.sleep

    def sleep_and_settle(seconds: float) -> None:
        sleep(seconds)
        first.settle(answer(100, 100))

    clock.sleep = sleep_and_settle  # type: ignore[method-assign]
    assert desk.budget("b").reserve(100, 1_000, deadline=Deadline(60, clock)).max_tokens == 1_000
    assert clock.sleeps == [POLL_SECONDS]


def test_the_reservation_of_a_dead_runner_counts_as_spent(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    desk = Desk(clock, registry=registry, spec={"max_tokens": 1_500})
    desk.budget("dies").reserve(500, 700, deadline=Deadline(600, clock))
    clock.sleep(661)
    with pytest.raises(BudgetExhaustedError, match="300 of 1,500 are left"):  # at once: nothing will come back
        desk.budget("b").reserve(100, 1_000, deadline=Deadline(60, clock))
    assert registry.budget_usage("chat").unsettled.tokens == 1_200


class Deaf:
    """A registry whose answers can be taken away."""

    def __init__(self, registry: LocalTaskRegistry) -> None:
        self.registry = registry
        self.is_down = False
        self.loses_answers = False

    def _passed(self, act: Callable[[], Any]) -> Any:
        if self.is_down:
            raise ServiceConnectionError("Failed to connect to the task registry.")
        result = act()
        if self.loses_answers:
            raise ServiceConnectionError("The answer was lost.")
        return result

    def reserve_budget(self, *names: str, **asked: Any) -> BudgetReservation:
        done: BudgetReservation = self._passed(lambda: self.registry.reserve_budget(*names, **asked))
        return done

    def settle_budget(self, spec_name: str, reservation_id: str, spent: Spending) -> BudgetUsage:
        done: BudgetUsage = self._passed(lambda: self.registry.settle_budget(spec_name, reservation_id, spent))
        return done

    def budget_usage(self, spec_name: str) -> BudgetUsage:
        done: BudgetUsage = self._passed(lambda: self.registry.budget_usage(spec_name))
        return done


def test_without_the_registry_no_question_is_asked(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    deaf = Deaf(registry)
    budget = Desk(clock, registry=deaf, max_tokens=5_000, spec={"max_tokens": 5_000}).budget()
    deaf.is_down = True
    model = Overheard()
    with pytest.raises(ServiceConnectionError) as caught:
        BudgetedModel(model, budget, max_tokens=1000).complete(ASKED)
    with pytest.raises(ServiceConnectionError):
        budget.check()
    assert (caught.value.retryable, model.max_tokens) == (True, [])
    assert budget._ledgers[0]._reserved == Spending()


def test_a_reservation_whose_answer_was_lost_is_given_back_later(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    deaf = Deaf(registry)
    desk = Desk(clock, registry=deaf, spec={"max_tokens": 5_000})
    budget = desk.budget()
    deaf.loses_answers = True
    with pytest.raises(ServiceConnectionError):
        ask(budget, answer())
    assert registry.budget_usage("chat").reserved.calls == 1
    deaf.loses_answers = False
    budget.close()
    assert registry.budget_usage("chat").reserved.calls == 0
    assert desk.troubles == []


def test_what_the_registry_could_not_hear_is_told_with_the_next_question(
    clock: FakeClock, registry: LocalTaskRegistry
) -> None:
    deaf = Deaf(registry)
    desk = Desk(clock, registry=deaf, spec={"max_tokens": 5_000})
    budget = desk.budget()
    reservation = budget.reserve(100, 100)
    deaf.is_down = True
    reservation.settle(answer(50, 5))
    assert registry.budget_usage("chat").reserved.tokens == 200
    deaf.is_down = False
    ask(budget, answer(100, 10))
    assert registry.budget_usage("chat").spent.tokens == 165


def test_what_the_registry_never_heard_counts_as_reserved_and_is_told(
    clock: FakeClock, registry: LocalTaskRegistry
) -> None:
    deaf = Deaf(registry)
    desk = Desk(clock, registry=deaf, spec={"max_tokens": 5_000})
    budget = desk.budget()
    reservation = budget.reserve(100, 100)
    deaf.is_down = True
    reservation.settle(answer(50, 5))
    budget.close()
    assert len(desk.troubles) == 1
    assert "count as reserved" in desk.troubles[0]
    assert budget.usage.prompt_tokens == 50
    assert registry.budget_usage("chat").reserved.tokens == 200


def test_a_registry_that_keeps_no_books_is_refused_at_the_start(clock: FakeClock) -> None:
    class Plain:
        def budget_usage(self, spec_name: str) -> BudgetUsage:
            raise AssertionError(spec_name)

    for registry in (None, object(), Plain()):
        with pytest.raises(ConfigurationError, match=r"budget\.spec cannot be kept.*leave budget\.spec out"):
            Desk(clock, registry=registry, spec={}).budget()


def test_a_registry_that_says_it_cannot_is_refused_at_the_start(clock: FakeClock, registry: LocalTaskRegistry) -> None:
    class Older(Deaf):
        def budget_usage(self, spec_name: str) -> BudgetUsage:
            raise ServiceError(f"answered 404 to GET /specs/{spec_name}/budget.", status_code=404)

    with pytest.raises(ConfigurationError, match=r"budget\.spec cannot be kept: answered 404.*'budgets'"):
        Desk(clock, registry=Older(registry), spec={}).budget().check()
    Desk(clock).budget().check()


def test_a_registry_that_contradicts_itself_does_not_make_a_run_spin(
    clock: FakeClock, registry: LocalTaskRegistry
) -> None:
    class Contrary(Deaf):
        def reserve_budget(self, *names: str, **asked: Any) -> BudgetReservation:  # noqa: ARG002
            return BudgetReservation(granted=False, exceeded="max_tokens", usage=BudgetUsage(spec_name="chat"))

    with pytest.raises(ServiceError, match="refused what the budget"):
        Desk(clock, registry=Contrary(registry), spec={"max_tokens": 10_000}).budget().reserve(1, 1)


def test_limits_say_which_is_passed() -> None:
    limits = SpendingLimits(max_tokens=10, max_calls=1, max_cost_usd=Decimal("0.01"), max_seconds=5)
    assert limits.exceeded(Spending(calls=1, prompt_tokens=10, cost_micro_usd=10_000), 4.9) is None
    assert limits.exceeded(Spending(calls=2), 0) == "max_calls"
    assert limits.exceeded(Spending(prompt_tokens=6, completion_tokens=5), 0) == "max_tokens"
    assert limits.exceeded(Spending(cost_micro_usd=10_001), 0) == "max_cost_usd"
    assert limits.exceeded(Spending(), 5) == "max_seconds"
