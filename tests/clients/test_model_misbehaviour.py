"""Every way in which models and their endpoints misbehave, each on the wire, streamed and in one piece.

What is no answer never becomes a change: it is asked for again where that may help, and else is an error of its own.
"""

from __future__ import annotations

import traceback
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    ContentFilterError,
    EmptyAnswerError,
    LLMClient,
    LLMConfig,
    MalformedAnswerError,
    ModelRefusalError,
    RateLimitError,
    RunnerError,
    ServiceError,
    TruncatedAnswerError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.models import LLMResponse, Message
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.model_server import DONE, as_asked, as_files, as_json, chunk, completion, event, streamed, streaming

KEY = "sk-proj-misbehaving0123456789"
GOOD = as_json({"a.py": "x = 1\n"})


class Misbehaviour:
    """The cases; ``stream`` says how answers are asked for, and ``client`` and ``generate`` ask so."""

    stream: bool

    def client(self, server: ScriptedServer, clock: FakeClock) -> LLMClient:
        config = LLMConfig(endpoint=f"{server.url}/v1", api_key=KEY, model="m", stream=self.stream)
        return LLMClient(config, clock=clock)

    def generate(self, server: ScriptedServer, clock: FakeClock) -> LLMResponse:
        return self.client(server, clock).generate_code("P")

    def told(self, clock: FakeClock, *answers: dict[str, Any] | Answer) -> tuple[Any, int]:
        """What comes of these answers in turn, and how many questions were asked."""
        waiting = list(answers)

        def script(request: Request) -> Answer:
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return answer if isinstance(answer, Answer) else as_asked(request, answer)

        with serving(script) as server:
            try:
                return self.generate(server, clock), len(server.requests)
            except RunnerError as error:
                return error, len(server.requests)

    def assert_final(self, clock: FakeClock, answer: dict[str, Any] | Answer, error: type[RunnerError]) -> RunnerError:
        """One question, one error of this very type, which no other try would mend."""
        told, count = self.told(clock, answer)
        assert type(told) is error
        assert count == 1
        assert not told.retryable
        assert clock.sleeps == []
        return told  # type: ignore[no-any-return]

    def assert_overcome(self, clock: FakeClock, answer: dict[str, Any] | Answer) -> None:
        """Asked for again, and nothing of it kept."""
        told, count = self.told(clock, answer, completion(GOOD))
        assert [change.content for change in told.code_changes] == ["x = 1\n"]
        assert count == 2
        assert len(clock.sleeps) == 1

    # --- what the model says

    def test_invalid_json(self, clock: FakeClock) -> None:
        self.assert_final(clock, completion('{"changes": [{"operation": "create", "file_path"'), MalformedAnswerError)

    def test_nothing(self, clock: FakeClock) -> None:
        self.assert_final(clock, completion(""), EmptyAnswerError)

    @pytest.mark.parametrize("content", ["  \n\t", None, []])
    def test_nothing_that_can_be_seen(self, clock: FakeClock, content: Any) -> None:
        self.assert_final(clock, completion(content), EmptyAnswerError)

    def test_prose_around_a_fence(self, clock: FakeClock) -> None:
        text = f"Sure! Here you are:\n\n{as_files({'a.py': 'x = 1'})}\nI hope this helps."
        told, _ = self.told(clock, completion(text))
        assert [change.file_path for change in told.code_changes] == ["a.py"]

    def test_prose_around_json(self, clock: FakeClock) -> None:
        told, _ = self.told(clock, completion(f"Sure!\n```json\n{GOOD}\n```\nDone."))
        assert [change.file_path for change in told.code_changes] == ["a.py"]

    def test_prose_alone(self, clock: FakeClock) -> None:
        self.assert_final(clock, completion("I would rather talk about it."), MalformedAnswerError)

    def test_duplicate_keys(self, clock: FakeClock) -> None:
        twice = GOOD.replace('"content":', '"content": "y", "content":')
        error = self.assert_final(clock, completion(twice), MalformedAnswerError)
        assert "content" in str(error)

    def test_half_a_character(self, clock: FakeClock) -> None:
        self.assert_final(clock, completion("half \ud800"), MalformedAnswerError)

    # --- how the answer ends

    @pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length"])
    def test_an_answer_cut_at_the_token_limit_is_never_applied_however_whole_it_looks(
        self, clock: FakeClock, reason: str
    ) -> None:
        self.assert_final(clock, completion(GOOD, reason), TruncatedAnswerError)

    def test_a_refusal(self, clock: FakeClock) -> None:
        error = self.assert_final(clock, completion(None, refusal="I can't help with that."), ModelRefusalError)
        assert "I can't help with that." in str(error)

    def test_a_refusal_besides_a_text(self, clock: FakeClock) -> None:
        self.assert_final(clock, completion(GOOD, refusal="No."), ModelRefusalError)

    @pytest.mark.parametrize("content", ["", GOOD])
    def test_a_content_filter(self, clock: FakeClock, content: str) -> None:
        self.assert_final(clock, completion(content, "content_filter"), ContentFilterError)

    @pytest.mark.parametrize("content", [None, GOOD])
    @pytest.mark.parametrize("call", [{"tool_calls": [{"index": 0, "id": "1"}]}, {"function_call": {"name": "x"}}])
    def test_a_tool_call_that_was_not_asked_for(self, clock: FakeClock, content: Any, call: dict[str, Any]) -> None:
        self.assert_final(clock, completion(content, "tool_calls", **call), MalformedAnswerError)

    @pytest.mark.parametrize("choices", [[], None])
    def test_no_choices(self, clock: FakeClock, choices: Any) -> None:
        self.assert_final(clock, {**completion(""), "choices": choices}, EmptyAnswerError)

    @pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
    def test_an_answer_that_the_server_broke_off(self, clock: FakeClock, reason: str) -> None:
        self.assert_overcome(clock, completion(GOOD, reason))

    # --- what the endpoint says instead

    def test_a_wrong_key(self, clock: FakeClock) -> None:
        self.assert_final(clock, refusal(401, "Incorrect API key provided"), AuthenticationError)

    def test_a_quota_that_is_used_up(self, clock: FakeClock) -> None:
        self.assert_final(clock, refusal(429, "You exceeded your quota", "insufficient_quota"), RateLimitError)

    def test_a_rate_limit_in_seconds(self, clock: FakeClock) -> None:
        self.assert_overcome(clock, refusal(429, "slow down", **{"Retry-After": "7"}))
        assert clock.sleeps == [7.0]

    def test_a_rate_limit_as_a_date(self, clock: FakeClock) -> None:
        when = format_datetime(clock.now() + timedelta(seconds=20), usegmt=True)
        self.assert_overcome(clock, refusal(429, "slow down", **{"Retry-After": when}))
        assert clock.sleeps == [20.0]

    @pytest.mark.parametrize("wait", ["100000", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
    def test_a_huge_wait_is_not_begun(self, clock: FakeClock, wait: str) -> None:
        told, count = self.told(clock, refusal(429, "slow down", **{"Retry-After": wait}))
        assert type(told) is RateLimitError
        assert told.retryable
        assert (count, clock.sleeps) == (1, [])

    def test_a_wait_past_the_deadline_is_not_begun(self, clock: FakeClock) -> None:
        with serving([refusal(429, "slow down", **{"Retry-After": "60"})]) as server:
            asking = self.client(server, clock)
            with pytest.raises(RateLimitError):
                asking.complete([Message(role="user", content="P")], deadline=Deadline(30, clock))
        assert clock.sleeps == []

    @pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-stream"])
    def test_a_page_in_the_place_of_an_answer(self, clock: FakeClock, kind: str) -> None:
        self.assert_overcome(clock, Answer(200, "<html>please log in</html>", headers={"Content-Type": kind}))

    def test_an_error_with_the_status_of_an_answer(self, clock: FakeClock) -> None:
        self.assert_overcome(clock, Answer(200, {"error": {"message": "overloaded", "code": 503}}))

    @pytest.mark.parametrize(
        ("said", "error"),
        [
            ({"message": "bad key", "code": 401}, AuthenticationError),
            ({"message": "bad key", "code": "invalid_api_key"}, AuthenticationError),
            ({"message": "quota", "code": "insufficient_quota"}, RateLimitError),
            ({"message": "bad request", "type": "invalid_request_error"}, ServiceError),
        ],
    )
    def test_a_lasting_error_with_the_status_of_an_answer(
        self, clock: FakeClock, said: dict[str, Any], error: type[RunnerError]
    ) -> None:
        self.assert_final(clock, Answer(200, {"error": said}), error)
        self.assert_final(clock, streaming([event({"error": said}), DONE]), error)

    def test_an_answer_cut_in_its_middle(self, clock: FakeClock) -> None:
        self.assert_overcome(clock, Answer(200, completion(GOOD), cut=150))

    def test_an_answer_that_is_dropped(self, clock: FakeClock) -> None:
        self.assert_overcome(clock, Answer(drop=True))

    @pytest.mark.parametrize("ends", [True, False])
    @pytest.mark.parametrize("left", [2, 3, 4])
    def test_a_stream_cut_midway(self, clock: FakeClock, left: int, ends: bool) -> None:
        pieces = streamed(completion(GOOD))  # the role, the whole text, the reason of the end, the usage, the end
        told, _ = self.told(clock, streaming(pieces[:-left], ends=ends), completion(as_json({"b.py": "y = 2\n"})))
        assert [change.file_path for change in told.code_changes] == (["a.py"] if left < 3 else ["b.py"])

    # --- secrets

    @pytest.mark.parametrize(
        "echo",
        [
            Answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            Answer(400, f"no: {KEY}"),
            Answer(200, f"<html>{KEY}</html>"),
            Answer(200, {"error": {"message": KEY}}),
            streaming([chunk("x"), event({"error": {"message": KEY}}), DONE]),
            streaming([chunk("x"), event(f"not json {KEY}".encode()), DONE]),
            completion(None, refusal=f"You gave me {KEY}"),
            completion("", KEY),
        ],
    )
    def test_a_key_inside_an_exception_is_masked(self, clock: FakeClock, echo: dict[str, Any] | Answer) -> None:
        told, _ = self.told(clock, echo)
        assert KEY[:12] not in "".join(traceback.format_exception(told))


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    return Answer(status, {"error": {"message": message, "type": "x", "code": code}}, headers=headers)


class TestMisbehaviourInStreams(Misbehaviour):
    stream = True


class TestMisbehaviourInOnePiece(Misbehaviour):
    stream = False
