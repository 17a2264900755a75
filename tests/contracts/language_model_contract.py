"""What every ``LanguageModel`` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    ContentFilterError,
    ContextOverflowError,
    EmptyAnswerError,
    LanguageModel,
    Message,
    ModelAnswer,
    ModelRefusalError,
    RunCancelledError,
    RunnerError,
    RunnerTimeoutError,
    ServiceConnectionError,
    ServiceError,
    TruncatedAnswerError,
)
from necrocode.agent_runner._clock import Deadline
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.model_server import as_json

Says = str | Callable[[Sequence[Message]], str]
ModelSaying = Callable[[Sequence[Says]], LanguageModel]
Trouble = Literal["cut", "refused", "filtered", "empty", "overflow", "wrong key", "failing", "not there"]
ModelInTrouble = Callable[[Trouble], LanguageModel]

QUESTION = (
    Message(role="system", content="Be brief. 日本語で。"),
    Message(role="user", content='Why?\n\U0001f600 \\ "'),
)
TEXTS = ["yes", " spaced \n\n", "日本語\r\n\U0001f600", "a\tb \\n \"q\" {'x'} </html>", "x" * 1_000_000, '{"a": 1}']


def repeat(messages: Sequence[Message]) -> str:
    return "|".join(f"{message.role}:{message.content}" for message in messages)


class LanguageModelContract:
    """Inherit it, and say how a model that answers so, or fails so, is made."""

    @pytest.fixture
    def model_saying(self) -> ModelSaying:
        """A model that gives these answers in order; a function is told the conversation."""
        raise NotImplementedError

    @pytest.fixture
    def model_in(self) -> ModelInTrouble:
        """A model whose every answer goes wrong like this."""
        raise NotImplementedError

    @pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:20]))
    def test_the_whole_answer_comes_back_as_it_is(self, model_saying: ModelSaying, text: str) -> None:
        answer = model_saying([text]).complete(QUESTION)
        assert answer.text == text
        assert answer.model
        assert answer.prompt_tokens > 0
        assert answer.completion_tokens > 0

    def test_an_answer_tells_of_its_call_what_a_transcript_keeps(self, model_saying: ModelSaying) -> None:
        answer = model_saying(["yes"]).complete(QUESTION)
        assert answer.attempts == 1
        assert answer.latency_seconds >= 0
        assert answer.finish_reason == "stop"
        assert ModelAnswer(**json.loads(json.dumps(answer.model_dump()))) == answer

    def test_a_question_may_have_its_own_temperature(self, model_saying: ModelSaying) -> None:
        model = model_saying(["one", "two", "three"])
        texts = [model.complete(QUESTION, temperature=temperature).text for temperature in (None, 0.0, 1.5)]
        assert texts == ["one", "two", "three"]

    def test_the_whole_conversation_reaches_the_model(self, model_saying: ModelSaying) -> None:
        conversation = (
            *QUESTION,
            Message(role="assistant", content="Because."),
            Message(role="user", content="x" * 9999),
        )
        assert model_saying([repeat]).complete(conversation).text == repeat(conversation)

    def test_answers_come_in_the_order_of_the_questions(self, model_saying: ModelSaying) -> None:
        model = model_saying(["one", repeat, "three"])
        assert [model.complete(QUESTION).text for _ in range(3)] == ["one", repeat(QUESTION), "three"]

    @pytest.mark.parametrize("answer_format", ["json", "text"])
    def test_either_format_may_be_asked_for(
        self, model_saying: ModelSaying, answer_format: Literal["json", "text"]
    ) -> None:
        text = as_json({"a.py": "x = '日本語'\n"})
        answer = model_saying([text]).complete(QUESTION, answer_format=answer_format, max_tokens=100)
        assert answer.text == text

    def test_a_question_leaves_the_messages_as_they_were(self, model_saying: ModelSaying) -> None:
        messages = list(QUESTION)
        model_saying(["one"]).complete(messages, answer_format="json")
        assert messages == list(QUESTION)

    def test_time_that_is_left_is_no_hindrance(self, model_saying: ModelSaying) -> None:
        assert model_saying(["yes"]).complete(QUESTION, deadline=Deadline(60)).text == "yes"

    def test_nothing_is_answered_when_the_time_is_used_up(self, model_saying: ModelSaying) -> None:
        clock = FakeClock()
        deadline = Deadline(1, clock)
        clock.sleep(2)
        with pytest.raises(RunnerTimeoutError):
            model_saying(["yes"]).complete(QUESTION, deadline=deadline)

    def test_nothing_is_answered_once_the_run_is_asked_to_stop(self, model_saying: ModelSaying) -> None:
        deadline = Deadline(60)
        deadline.cancellation.request("Somebody asked.")
        with pytest.raises(RunCancelledError, match="Somebody asked"):
            model_saying(["yes"]).complete(QUESTION, deadline=deadline)

    @pytest.mark.parametrize(
        ("trouble", "error"),
        [
            ("cut", TruncatedAnswerError),
            ("refused", ModelRefusalError),
            ("filtered", ContentFilterError),
            ("empty", EmptyAnswerError),
            ("overflow", ContextOverflowError),
            ("wrong key", AuthenticationError),
            ("failing", ServiceError),
            ("not there", ServiceConnectionError),
        ],
    )
    def test_what_is_no_answer_is_told_by_its_type(
        self, model_in: ModelInTrouble, trouble: Trouble, error: type[RunnerError]
    ) -> None:
        model = model_in(trouble)
        for _ in range(2):
            with pytest.raises(error) as caught:
                model.complete(QUESTION)
            assert type(caught.value) is error

    @pytest.mark.parametrize("text", ["", " ", "\n\t\r\n"])
    def test_an_answer_of_nothing_is_empty(self, model_saying: ModelSaying, text: str) -> None:
        with pytest.raises(EmptyAnswerError):
            model_saying([text, text]).complete(QUESTION)

    def test_eight_threads_get_their_own_answers(self, model_saying: ModelSaying) -> None:
        model = model_saying([repeat] * 8)
        answers = at_once(lambda number: model.complete([Message(role="user", content=str(number))]), range(8))
        assert [getattr(answer, "text", answer) for answer in answers] == [f"user:{number}" for number in range(8)]
