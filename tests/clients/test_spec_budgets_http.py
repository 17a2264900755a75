"""Budgets of specs as a Task Registry service that is none of ours may answer them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest

from necrocode.agent_runner import (
    BudgetConfig,
    ConfigurationError,
    LLMConfig,
    ServiceConnectionError,
    ServiceError,
    Spending,
    SpendingLimits,
    TaskNotFoundError,
    TaskRegistryClient,
)
from necrocode.agent_runner.generation.budget import ProcessBudget
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, serving

HEALTH = {"status": "ok", "capabilities": ["budgets"]}
USAGE = {"spec_name": "chat", "spent": {"calls": 2}, "news": 1}
CALLS: list[Callable[[TaskRegistryClient], Any]] = [
    lambda client: client.reserve_budget(
        "chat", "a/b", run_id="r", need=Spending(calls=1), limits=SpendingLimits(max_calls=1), ttl_seconds=5
    ),
    lambda client: client.settle_budget("chat", "a/b", Spending()),
    lambda client: client.budget_usage("chat"),
    lambda client: client.reset_budget("chat"),
]


ClientOf = Callable[[Iterable[Answer] | Callable[[Request], Answer]], TaskRegistryClient]


@pytest.fixture
def client_of() -> Iterator[ClientOf]:
    with ExitStack() as stack:

        def make(answers: Iterable[Answer] | Callable[[Request], Answer]) -> TaskRegistryClient:
            server = stack.enter_context(serving(answers))
            return stack.enter_context(TaskRegistryClient(server.url, network_retry_count=0, clock=FakeClock()))

        yield make


def check(client: TaskRegistryClient) -> None:
    process = ProcessBudget(BudgetConfig(spec=SpendingLimits(max_calls=1)), FakeClock())
    process.of_run(
        spec_name="chat", run_id="r", registry=client, llm=LLMConfig(), on_trouble=lambda _text: None
    ).check()


def test_what_is_sent_is_what_is_documented(client_of: ClientOf) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Answer:
        asked.append(request)
        if request.path == "/health":
            return Answer(200, HEALTH)
        return Answer(200, {"granted": True, "usage": USAGE} if request.method == "POST" else USAGE)

    client = client_of(answer)
    limits = SpendingLimits(max_cost_usd=Decimal("0.000001"), max_seconds=1.5)
    need = Spending(calls=1, prompt_tokens=3)
    got = client.reserve_budget("仕様", "id", run_id="r", need=need, limits=limits, ttl_seconds=5)
    assert (got.granted, got.usage.spent.calls) == (True, 2)
    assert [call(client) for call in CALLS[1:]] == [got.usage] * 3
    assert [(one.method, one.path) for one in asked[1:]] == [
        ("POST", "/specs/%E4%BB%95%E6%A7%98/budget/reservations"),
        ("PUT", "/specs/chat/budget/reservations/a%2Fb"),
        ("GET", "/specs/chat/budget"),
        ("DELETE", "/specs/chat/budget"),
    ]
    assert asked[1].json == {
        "reservation_id": "id",
        "run_id": "r",
        "need": need.model_dump(),
        "limits": {"max_cost_micro_usd": 1, "max_seconds": 1.5},
        "ttl_seconds": 5,
    }


@pytest.mark.parametrize("body", [[], {}, {"granted": 7, "usage": 1}, {"spec_name": 1}, '"text"'], ids=str)
def test_an_answer_that_is_none_is_told(client_of: ClientOf, body: Any) -> None:
    client = client_of(lambda request: Answer(200, HEALTH if request.path == "/health" else body))
    for call in CALLS:
        with pytest.raises(ServiceError, match="answered something that is no"):
            call(client)


@pytest.mark.parametrize(
    "health", [Answer(404, {}), Answer(200, {"status": "ok"}), Answer(200, {"capabilities": ["claims"]})]
)
def test_a_service_without_the_ability_is_refused_at_the_start(client_of: ClientOf, health: Answer) -> None:
    with pytest.raises(ConfigurationError, match=r"budget\.spec cannot be kept: The task registry at http"):
        check(client_of([health]))


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_service_that_promises_too_much_is_refused_at_the_start(client_of: ClientOf, status: int) -> None:
    client = client_of(lambda request: Answer(200, HEALTH) if request.path == "/health" else Answer(status, {}))
    with pytest.raises(ConfigurationError, match=r"budget\.spec cannot be kept"):
        check(client)


def test_a_service_that_is_away_may_be_there_later(client_of: ClientOf) -> None:
    with pytest.raises(ServiceConnectionError) as caught:
        check(client_of([Answer(drop=True)]))
    assert caught.value.retryable


@pytest.mark.parametrize("name", ["", "a/b", "..", "\0"])
def test_a_spec_that_can_be_none_is_not_asked_for(client_of: ClientOf, name: str) -> None:
    client = client_of([Answer(200, HEALTH)])
    with pytest.raises(TaskNotFoundError, match="No spec can be called"):
        client.budget_usage(name)
