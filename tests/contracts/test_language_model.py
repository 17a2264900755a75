from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    BudgetConfig,
    ContentFilterError,
    ContextOverflowError,
    EmptyAnswerError,
    LanguageModel,
    LLMClient,
    LLMConfig,
    Message,
    ModelRefusalError,
    RunnerError,
    ScriptedLLM,
    ServiceConnectionError,
    ServiceError,
    SpendingLimits,
    TruncatedAnswerError,
)
from necrocode.agent_runner.clients import llm_openai
from necrocode.agent_runner.generation.budget import ProcessBudget
from necrocode.agent_runner.generation.budgeted_model import BudgetedModel
from tests.contracts.language_model_contract import (
    LanguageModelContract,
    ModelInTrouble,
    ModelSaying,
    Says,
    Trouble,
)
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, Script, serving
from tests.support.model_server import as_asked, completion

SCRIPTED_ERRORS: dict[Trouble, RunnerError] = {
    "cut": TruncatedAnswerError("cut"),
    "refused": ModelRefusalError("no"),
    "filtered": ContentFilterError("no"),
    "empty": EmptyAnswerError("nothing"),
    "overflow": ContextOverflowError("too long"),
    "wrong key": AuthenticationError("who?"),
    "failing": ServiceError("500"),
    "not there": ServiceConnectionError("nobody"),
}


class TestScriptedLLM(LanguageModelContract):
    @pytest.fixture
    def model_saying(self) -> ModelSaying:
        return ScriptedLLM

    @pytest.fixture
    def model_in(self) -> ModelInTrouble:
        return lambda trouble: ScriptedLLM([SCRIPTED_ERRORS[trouble]] * 2)


class TestBudgetedModel(TestScriptedLLM):
    """With more room than it needs."""

    @pytest.fixture
    def budgeted(self) -> Callable[[LanguageModel], LanguageModel]:
        config = BudgetConfig(max_tokens=10**9, max_seconds=10**6, process=SpendingLimits(max_calls=10**6))
        budget = ProcessBudget(config, FakeClock()).of_run(
            spec_name="s", run_id="r", registry=None, llm=LLMConfig(), on_trouble=lambda _text: None
        )
        return lambda model: BudgetedModel(model, budget, max_tokens=1000)

    @pytest.fixture
    def model_saying(self, budgeted: Callable[[LanguageModel], LanguageModel]) -> ModelSaying:  # type: ignore[override]
        return lambda answers: budgeted(ScriptedLLM(answers))

    @pytest.fixture
    def model_in(self, budgeted: Callable[[LanguageModel], LanguageModel]) -> ModelInTrouble:  # type: ignore[override]
        return lambda trouble: budgeted(ScriptedLLM([SCRIPTED_ERRORS[trouble]] * 2))


def refusal(status: int, text: str) -> Answer:
    return Answer(status, {"error": {"message": text, "type": "x", "code": None}})


TROUBLES: dict[Trouble, Answer | dict[str, Any]] = {
    "cut": completion("half an answ", "length"),
    "refused": completion("half an answ", "stop", refusal="I cannot help with that."),
    "filtered": completion("half an answ", "content_filter"),
    "empty": completion(""),
    "overflow": refusal(400, "This model's maximum context length is 4096 tokens."),
    "wrong key": refusal(401, "Incorrect API key provided."),
    "failing": refusal(500, "out of order"),
}


class TestLLMClient(LanguageModelContract):
    stream = True

    @pytest.fixture(autouse=True)
    def _no_memory(self) -> Iterator[None]:
        llm_openai._manners.clear()
        yield
        llm_openai._manners.clear()

    @pytest.fixture
    def client_of(self) -> Iterator[Callable[[Script], LLMClient]]:
        with ExitStack() as stack:
            yield lambda script: client(stack.enter_context(serving(script)).url, stream=self.stream)

    @pytest.fixture
    def model_saying(self, client_of: Callable[[Script], LLMClient]) -> ModelSaying:
        def make(answers: Sequence[Says]) -> LLMClient:
            waiting = iter(answers)

            def script(request: Request) -> Answer:
                says = next(waiting)
                asked = [Message(**message) for message in request.json["messages"]]
                return as_asked(request, completion(says if isinstance(says, str) else says(asked)))

            return client_of(script)

        return make

    @pytest.fixture
    def model_in(self, client_of: Callable[[Script], LLMClient]) -> Iterator[ModelInTrouble]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
            yield lambda trouble: client(nobody) if trouble == "not there" else client_of(in_trouble(trouble))


class TestLLMClientWithoutStreams(TestLLMClient):
    stream = False


def in_trouble(trouble: Trouble) -> Script:
    answer = TROUBLES[trouble]
    return lambda request: answer if isinstance(answer, Answer) else as_asked(request, answer)


def client(url: str, **settings: Any) -> LLMClient:
    return LLMClient(LLMConfig(endpoint=f"{url}/v1", model="m", retry_count=1, **settings), clock=FakeClock())
