"""The model client over real sockets, against a server that says what a test wrote down."""

from __future__ import annotations

import gc
import gzip
import json
import os
import socket
import threading
import time
import traceback
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from necrocode.agent_runner import (
    AuthenticationError,
    ConfigurationError,
    ContentFilterError,
    ContextOverflowError,
    EmptyAnswerError,
    LLMClient,
    LLMConfig,
    MalformedAnswerError,
    Message,
    ModelRefusalError,
    RateLimitError,
    RunnerError,
    RunnerTimeoutError,
    ServiceConnectionError,
    ServiceError,
    TruncatedAnswerError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.clients import llm_openai
from necrocode.agent_runner.generation.answer_forms import system_prompt
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.model_server import completion as whole_completion

KEY = "sk-test-0123456789abcdef"
MESSAGES = (Message(role="system", content=system_prompt("json")), Message(role="user", content="Do it."))


def completion(content: Any = "hello", finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return whole_completion(content, finish_reason, **message)


def refusal(status: int, message: str = "no", code: Any = None, **headers: str) -> Answer:
    return Answer(status, {"error": {"message": message, "type": "x", "code": code}}, headers=headers)


def client(server: ScriptedServer | str, clock: FakeClock | None = None, **settings: Any) -> LLMClient:
    url = server if isinstance(server, str) else f"{server.url}/v1"
    return LLMClient(
        LLMConfig(**({"endpoint": url, "api_key": KEY, "model": "m"} | settings)), clock=clock or FakeClock()
    )


def bodies(server: ScriptedServer) -> list[dict[str, Any]]:
    return [request.json for request in server.requests]


# --- one question, one answer


def test_a_question_is_asked_as_configured_and_the_answer_read_whole() -> None:
    with serving([Answer(200, completion(), headers={"x-request-id": "req-7"})]) as server:
        answer = client(server, max_tokens=99, temperature=0.5).complete(MESSAGES)
        (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json == {
        "model": "m",
        "messages": [{"role": message.role, "content": message.content} for message in MESSAGES],
        "max_tokens": 99,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert answer.model_dump() == {
        "text": "hello",
        "model": "scripted",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_prompt_tokens": 0,
        "reasoning_tokens": 0,
        "usage_is_estimated": False,
        "request_id": "req-7",
        "attempts": 1,
        "latency_seconds": 0.0,
        "finish_reason": "stop",
        "asked_format": "text",
        "is_streamed": False,
        "left_out": (),
    }


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": "many"}, [], {"prompt_tokens": -1}, {"prompt_tokens": 0, "completion_tokens": 0},
     {"prompt_tokens": True, "completion_tokens": 1e3}, {"prompt_tokens": 10**12}],
)  # fmt: skip
def test_usage_that_is_missing_or_odd_is_estimated(usage: Any) -> None:
    with serving([Answer(200, {**completion("hello"), "usage": usage, "id": None, "model": None})]) as server:
        answer = client(server).complete([Message(role="user", content="x" * 400)])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (104, 2, True)
    assert (answer.model, answer.request_id) == ("m", None)


def test_half_of_a_usage_is_estimated() -> None:
    with serving([Answer(200, {**completion("hello"), "usage": {"prompt_tokens": 7}})]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (7, 2, True)


@pytest.mark.parametrize(
    ("told", "cached", "reasoning"),
    [
        (
            {"prompt_tokens_details": {"cached_tokens": 90}, "completion_tokens_details": {"reasoning_tokens": 30}},
            90,
            30,
        ),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, 0, 0),
        (
            {"prompt_tokens_details": {"cached_tokens": 900}, "completion_tokens_details": {"reasoning_tokens": 99}},
            100,
            50,
        ),
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36}, 64, 0),
        ({"cache_read_input_tokens": 12}, 12, 0),
    ],
)
def test_cached_and_reasoning_tokens_are_told_where_the_endpoint_tells_them(
    told: dict[str, Any], cached: int, reasoning: int
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 50, **told}
    with serving([Answer(200, {**completion(), "usage": usage})]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.cached_prompt_tokens, answer.reasoning_tokens, answer.usage_is_estimated) == (
        cached,
        reasoning,
        False,
    )


def test_tries_and_forms_that_were_refused_are_counted(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        if "response_format" in request.json:
            return refusal(400, "response_format is not supported")
        return refusal(503) if len(server.requests) == 3 else Answer(200, completion())

    with serving(script) as server:
        answer = client(server, clock).complete(MESSAGES, answer_format="json")
        assert len(server.requests) == answer.attempts == 4


def test_a_question_may_have_a_temperature_of_its_own() -> None:
    with serving([Answer(200, completion())]) as server:
        asking = client(server, temperature=0.2)
        for temperature in (None, 0.0, 1.1):
            asking.complete(MESSAGES, temperature=temperature)
        client(server).complete(MESSAGES, temperature=0.7)
        assert [body["temperature"] for body in bodies(server)] == [0.2, 0.0, 1.1, 0.7]


def test_the_id_of_the_completion_stands_in_for_the_request_id() -> None:
    with serving([Answer(200, completion())]) as server:
        assert client(server).complete(MESSAGES).request_id == "chatcmpl-1"


@pytest.mark.parametrize(
    ("model", "parameter"),
    [("m", "max_tokens"), ("gpt-4.1", "max_tokens"), ("o3-mini", "max_completion_tokens"),
     ("gpt-5-mini", "max_completion_tokens"), ("gpt-6.2-sol", "max_completion_tokens"),
     ("gpt-10", "max_completion_tokens"), ("gpt-1-clone", "max_tokens")],
)  # fmt: skip
def test_the_token_limit_goes_by_the_name_that_the_model_knows(model: str, parameter: str) -> None:
    with serving([Answer(200, completion())]) as server:
        client(server, model=model).complete(MESSAGES, max_tokens=5)
        assert bodies(server)[0][parameter] == 5


@pytest.mark.parametrize(
    ("first", "second", "model"),
    [("max_tokens", "max_completion_tokens", "m"), ("max_completion_tokens", "max_tokens", "o9")],
)
def test_the_other_name_is_used_when_the_endpoint_asks_for_it_and_remembered(
    first: str, second: str, model: str
) -> None:
    def script(request: Request) -> Answer:
        said = f"Unsupported parameter: '{first}' is not supported. Use 'max_completion_tokens' or 'max_tokens'."
        return refusal(400, said, "unsupported_parameter") if first in request.json else Answer(200, completion())

    with serving(script) as server:
        client(server, model=model).complete(MESSAGES)
        client(server, model=model).complete(MESSAGES)
        assert [next(key for key in body if key.startswith("max_")) for body in bodies(server)] == [
            first,
            second,
            second,
        ]


def test_a_temperature_that_is_not_supported_is_left_out_and_that_is_remembered() -> None:
    def script(request: Request) -> Answer:
        said = "Unsupported value: 'temperature' does not support 0 with this model."
        return refusal(400, said) if "temperature" in request.json else Answer(200, completion())

    with serving(script) as server:
        asking = client(server, temperature=0)
        asking.complete(MESSAGES)
        asking.complete(MESSAGES)
        assert ["temperature" in body for body in bodies(server)] == [True, False, False]
        assert asking.complete(MESSAGES).left_out == ("temperature",)
        assert client(server).complete(MESSAGES).left_out == ()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("temperature must be between 0 and 1", ServiceError),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 4096",
            ContextOverflowError,
        ),
    ],
)
def test_naming_a_parameter_is_not_refusing_it(said: str, error: type[Exception]) -> None:
    with serving([refusal(400, said)]) as server:
        with pytest.raises(error, match=said[:20]):
            client(server, temperature=1.5).complete(MESSAGES)
        assert len(server.requests) == 1


def test_other_bad_requests_are_told_and_not_tried_again() -> None:
    with serving([refusal(400, "messages: too many roles")]) as server:
        with pytest.raises(ServiceError, match="answered 400: x: messages: too many roles"):
            client(server, temperature=0).complete(MESSAGES)
        assert len(server.requests) == 1


# --- structured output


def formats(server: ScriptedServer) -> list[str]:
    return [(body.get("response_format") or {"type": "text"})["type"] for body in bodies(server)]


def test_json_is_asked_for_by_a_strict_schema() -> None:
    with serving([Answer(200, completion())]) as server:
        answer = client(server).complete(MESSAGES, answer_format="json")
        sent = bodies(server)[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert sent["json_schema"]["schema"]["additionalProperties"] is False
    assert answer.asked_format == "json_schema"


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_an_endpoint_without_structured_output_is_asked_for_less_and_remembered(status: int, clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        asked = request.json.get("response_format", {}).get("type")
        return refusal(status, f"response_format {asked} is not supported") if asked else Answer(200, completion())

    with serving(script) as server:
        answer = client(server, clock).complete(MESSAGES, answer_format="json")
        client(server, clock).complete(MESSAGES, answer_format="json")
        assert formats(server) == ["json_schema", "json_object", "text", "text"]
        systems = [body["messages"][0]["content"] for body in bodies(server)]
    assert systems == [system_prompt("json"), system_prompt("json"), system_prompt("files"), system_prompt("files")]
    assert answer.asked_format == "text"
    assert clock.sleeps == []


def test_a_request_that_is_only_called_unsupported_is_made_simpler() -> None:
    def script(request: Request) -> Answer:
        return refusal(400, "Unsupported request") if "response_format" in request.json else Answer(200, completion())

    with serving(script) as server:
        assert client(server).complete(MESSAGES, answer_format="json").asked_format == "text"


def test_a_parameter_that_is_not_supported_costs_no_structured_output() -> None:
    def script(request: Request) -> Answer:
        said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return refusal(400, said) if "max_tokens" in request.json else Answer(200, completion())

    with serving(script) as server:
        assert client(server).complete(MESSAGES, answer_format="json").asked_format == "json_schema"


def test_json_that_is_insisted_on_is_asked_for_in_words() -> None:
    def script(request: Request) -> Answer:
        return refusal(400, "response_format") if "response_format" in request.json else Answer(200, completion())

    with serving(script) as server:
        client(server, edit_format="json").complete(MESSAGES, answer_format="json")
        assert bodies(server)[-1]["messages"][0]["content"] == system_prompt("json")


def test_llama_cpp_pythons_form_of_the_schema_is_tried_where_its_error_shows() -> None:
    said = "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text'\"}]"

    def script(request: Request) -> Answer:
        kind = request.json["response_format"]
        return refusal(500, said) if kind["type"] == "json_schema" else Answer(200, completion())

    with serving(script) as server:
        answer = client(server).complete(MESSAGES, answer_format="json")
        assert "schema" in bodies(server)[1]["response_format"]
    assert answer.asked_format == "json_object_with_schema"


def test_that_form_falls_back_too() -> None:
    def script(request: Request) -> Answer:
        kind = request.json.get("response_format", {})
        if kind.get("type") == "json_schema":
            return refusal(500, "literal_error in response_format")
        return refusal(400, "response_format: extra keys") if "schema" in kind else Answer(200, completion())

    with serving(script) as server:
        client(server).complete(MESSAGES, answer_format="json")
        assert formats(server) == ["json_schema", "json_object", "json_object"]


def test_an_outage_while_asking_for_json_is_an_outage(clock: FakeClock) -> None:
    with serving([refusal(500, "boom"), Answer(200, completion())]) as server:
        client(server, clock).complete(MESSAGES, answer_format="json")
        assert formats(server) == ["json_schema", "json_schema"]


def test_what_led_to_no_answer_is_not_remembered(clock: FakeClock) -> None:
    with serving([refusal(500, "json_schema worker crashed")]) as server, pytest.raises(ServiceError):
        client(server, clock, retry_count=0).complete(MESSAGES, answer_format="json")
    assert llm_openai._manners == {}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [("Do it.", "Do it.\n\nAnswer with one JSON object."), ("As JSON, please.", "As JSON, please.")],
)
def test_json_objects_are_asked_for_by_name(asked: str, sent: str) -> None:
    def script(request: Request) -> Answer:
        is_schema = request.json["response_format"]["type"] == "json_schema"
        return refusal(400, "response_format") if is_schema else Answer(200, completion())

    with serving(script) as server:
        client(server).complete([Message(role="user", content=asked)], answer_format="json")
        first, second = (body["messages"][0]["content"] for body in bodies(server))
    assert (first, second) == (asked, sent)


def test_an_endpoint_that_never_stops_complaining_is_left_after_a_few_forms() -> None:
    with serving([refusal(400, "temperature max_completion_tokens max_tokens response_format")]) as server:
        with pytest.raises(ServiceError):
            client(server, temperature=1).complete(MESSAGES, answer_format="json")
        assert len(server.requests) <= 8


# --- answers that are none


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (completion('{"changes": [', "length"), TruncatedAnswerError),
        (completion("x", "max_tokens"), TruncatedAnswerError),
        (completion("", "content_filter"), ContentFilterError),
        (completion(None, "stop", refusal="I can't help with that."), ModelRefusalError),
        (completion(None, "tool_calls", tool_calls=[{"id": "1"}]), MalformedAnswerError),
        (completion("text", "stop", tool_calls=[{"id": "1"}]), MalformedAnswerError),
        (completion(""), EmptyAnswerError),
        (completion("  \n"), EmptyAnswerError),
        (completion(None), EmptyAnswerError),
        (completion([{"type": "text"}, "x"]), EmptyAnswerError),
        (completion("", {"odd": 1}), EmptyAnswerError),
        (completion("half \ud800"), MalformedAnswerError),
        ({**completion(), "choices": []}, EmptyAnswerError),
        ({**completion(), "choices": None}, EmptyAnswerError),
        ({**completion(), "choices": [{"message": None}]}, EmptyAnswerError),
    ],
)
def test_each_way_of_not_answering_is_its_own_error_and_is_not_tried_again(answer: Any, error: type[Exception]) -> None:
    with serving([Answer(200, answer)]) as server:
        with pytest.raises(error) as caught:
            client(server).complete(MESSAGES)
        assert len(server.requests) == 1
    assert type(caught.value) is error


def test_text_in_parts_is_put_together_and_odd_names_are_made_writable() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with serving([Answer(200, {**completion(parts), "model": "m\udc00", "id": "\udc00"})]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.text, answer.model, answer.request_id) == ("ab", "m\ufffd", "\ufffd")


@pytest.mark.parametrize("finish_reason", ["stop", None, "eos", "end_turn", {"type": "stop"}])
def test_every_servers_word_for_done_is_taken(finish_reason: Any) -> None:
    with serving([Answer(200, completion("x", finish_reason))]) as server:
        assert client(server).complete(MESSAGES).text == "x"


# --- refusals


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), AuthenticationError, "^Invalid API key for "),
        (refusal(403, "forbidden"), AuthenticationError, "^Invalid API key"),
        (refusal(400, "Authentication Error, Invalid proxy server token passed"), AuthenticationError, "^Invalid"),
        (refusal(400, "No connected db.", "no_db_connection"), AuthenticationError, "^Invalid API key"),
        (Answer(400, [{"error": {"message": "API key not valid."}}]), AuthenticationError, "^Invalid API key"),
        (refusal(404, "model `m` does not exist", "model_not_found"), ServiceError, "serve the model 'm'"),
        (refusal(400, "The model `m` does not exist", "model_not_found"), ServiceError, "serve the model 'm'"),
        (refusal(400, "This model's maximum context length is 8192 tokens", "context_length_exceeded"),
         ContextOverflowError, "context_tokens"),
        (refusal(400, "Requested tokens (9000) exceed context window of 8192"), ContextOverflowError, "9000"),
        (refusal(500, "the request exceeds the available context size"), ContextOverflowError, "context"),
        (refusal(429, "You exceeded your current quota", "insufficient_quota"), RateLimitError, "quota"),
        (Answer(422, "plain text"), ServiceError, "plain text"),
        (Answer(400, "<html><body>nginx</body></html>"), ServiceError, "an HTML page"),
        (Answer(400, b""), ServiceError, "no reason given"),
        (Answer(400, {"detail": "not allowed"}), ServiceError, "not allowed"),
    ],
)  # fmt: skip
def test_a_refusal_is_typed_told_and_not_tried_again(answer: Answer, error: type[Exception], words: str) -> None:
    with serving([answer]) as server:
        with pytest.raises(error, match=words) as caught:
            client(server).complete(MESSAGES)
        assert len(server.requests) == 1
    assert type(caught.value) is error
    assert caught.value.retryable is False  # type: ignore[attr-defined]
    assert caught.value.status_code == answer.status  # type: ignore[attr-defined]
    assert KEY not in str(caught.value)
    assert server.url in str(caught.value)


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(408), refusal(409), refusal(500), refusal(502), refusal(503, "loading model"), refusal(529),
        Answer(500, "Internal Server Error"), refusal(429, code="429"), refusal(429, code="rate_limit_exceeded"),
        Answer(200, "<html>a login page</html>", headers={"Content-Type": "text/html"}), Answer(200, "{"),
        refusal(503, "billing is down"), refusal(429, "You exceeded your current quota, check billing", "429"),
        Answer(200, "[" * 100_000), Answer(200, completion("half", "error")),
        Answer(200, completion("half", "insufficient_system_resource")),
        Answer(200, "[]"), Answer(200, '{"choices": 3}'), Answer(200, completion(), cut=40), Answer(drop=True),
    ],
)  # fmt: skip
def test_passing_trouble_is_tried_again_after_a_growing_pause(trouble: Answer, clock: FakeClock) -> None:
    with serving([trouble, trouble, Answer(200, completion())]) as server:
        assert client(server, clock).complete(MESSAGES).text == "hello"
        assert len(server.requests) == 3
    first, second = clock.sleeps
    assert 0.5 <= first <= 1.0 <= second <= 2.0


@pytest.mark.parametrize("count", [0, 2])
def test_lasting_trouble_is_an_error_after_the_configured_tries(count: int, clock: FakeClock) -> None:
    with serving([refusal(500, "boom")]) as server:
        with pytest.raises(ServiceError, match="answered 500: x: boom") as caught:
            client(server, clock, retry_count=count).complete(MESSAGES)
        assert len(server.requests) == count + 1
    assert caught.value.retryable


def test_lasting_nonsense_is_an_error(clock: FakeClock) -> None:
    with serving([Answer(200, "<html>")]) as server, pytest.raises(ServiceError, match="no chat completion: '<html>'"):
        client(server, clock).complete(MESSAGES)


def test_an_answer_that_always_breaks_off_is_a_connection_error(clock: FakeClock) -> None:
    broken = Answer(200, completion(), cut=10)
    with serving([broken]) as server, pytest.raises(ServiceConnectionError, match="broke off its answer"):
        client(server, clock).complete(MESSAGES)


# --- waiting


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "DATE+20"}, 20.0),
        ({"Retry-After": "DATE-20"}, 0.0),
    ],
)
def test_the_wait_that_is_asked_for_is_kept(headers: dict[str, str], waited: float, clock: FakeClock) -> None:
    dates = {"DATE+20": timedelta(seconds=20), "DATE-20": timedelta(seconds=-20)}
    headers = {
        name: format_datetime(clock.now() + dates[value], usegmt=True) if value in dates else value
        for name, value in headers.items()
    }
    with serving([refusal(429, **headers), Answer(200, completion())]) as server:
        client(server, clock).complete(MESSAGES)
    assert clock.sleeps == [waited]


def test_a_date_without_a_time_zone_is_utc(clock: FakeClock) -> None:
    when = (clock.now() + timedelta(seconds=5)).strftime("%a, %d %b %Y %H:%M:%S -0000")
    with serving([refusal(503, **{"Retry-After": when}), Answer(200, completion())]) as server:
        client(server, clock).complete(MESSAGES)
    assert clock.sleeps == [5.0]


@pytest.mark.parametrize(("asked", "left"), [("100000", 1e9), ("60", 30.0)])
def test_a_wait_past_the_deadline_is_not_begun(asked: str, left: float, clock: FakeClock) -> None:
    with serving([refusal(429, "slow down", **{"Retry-After": asked})]) as server:
        with pytest.raises(RateLimitError) as caught:
            client(server, clock).complete(MESSAGES, deadline=Deadline(left, clock))
        assert len(server.requests) == 1
    assert caught.value.retryable
    assert caught.value.hint == f"It asks to be tried again in {asked} seconds."
    assert clock.sleeps == []


@pytest.mark.parametrize(
    ("said", "words"),
    [("slow down", "Try again later"), ("insufficient_quota", "Add credit to the account")],
)
def test_a_rate_limit_and_a_quota_say_what_to_do(said: str, words: str, clock: FakeClock) -> None:
    with serving([refusal(429, "no", said)]) as server, pytest.raises(RateLimitError, match=words):
        client(server, clock, retry_count=0).complete(MESSAGES)


def test_nothing_is_asked_once_the_time_is_used_up(clock: FakeClock) -> None:
    deadline = Deadline(1, clock)
    clock.sleep(2)
    with serving([Answer(200, completion())]) as server:
        with pytest.raises(RunnerTimeoutError, match="before it could ask the model"):
            client(server, clock).complete(MESSAGES, deadline=deadline)
        assert server.requests == []


def test_an_answer_that_does_not_come_is_a_connection_error(clock: FakeClock) -> None:
    release = threading.Event()
    with serving([Answer(wait=release)]) as server:
        with pytest.raises(ServiceConnectionError, match=r"did not answer within 0\.1 seconds"):
            client(server, clock, timeout_seconds=0.1, retry_count=0).complete(MESSAGES)
        release.set()


def test_the_tasks_time_ends_a_question_too() -> None:
    release = threading.Event()
    with serving([Answer(wait=release)]) as server:
        asking = LLMClient(LLMConfig(endpoint=server.url, api_key=KEY, model="m"))
        with pytest.raises(RunnerTimeoutError, match="while the model was answering"):
            asking.complete(MESSAGES, deadline=Deadline(0.2))
        release.set()


@contextmanager
def trickling(beginning: bytes, trickle: bytes) -> Iterator[str]:
    """An endpoint whose answer begins with these bytes and then goes on, a little at a time, for 5 seconds."""

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + beginning)
            for _ in range(100):
                try:
                    connection.sendall(trickle)
                except OSError:
                    return
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


@pytest.mark.parametrize("length", [b"Content-Length: 100000\r\n\r\n", b"\r\n"])
def test_an_answer_that_trickles_is_hung_up_on_when_its_time_is_over(length: bytes, clock: FakeClock) -> None:
    started = time.monotonic()
    with trickling(length + json.dumps(completion()).encode(), b"\n") as url:
        with pytest.raises(ServiceConnectionError, match=r"did not answer within 0\.2 seconds"):
            client(url, clock, timeout_seconds=0.2, retry_count=0).complete(MESSAGES)
        assert time.monotonic() - started < 3


def test_the_tasks_time_ends_a_trickling_answer_too() -> None:
    with trickling(b"Content-Length: 100000\r\n\r\n", b" ") as url:
        asking = LLMClient(LLMConfig(endpoint=url, api_key=KEY, model="m"))
        with pytest.raises(RunnerTimeoutError):
            asking.complete(MESSAGES, deadline=Deadline(0.2))


@pytest.mark.parametrize(("beginning", "trickle"), [(b"X-Slow: ", b"a"), (b"", b"X: y\r\n"), (b"X: y\r\n\r\n", b"{")])
def test_an_answer_that_never_gets_done_with_its_headers_is_hung_up_on_too(
    beginning: bytes, trickle: bytes, clock: FakeClock
) -> None:
    started = time.monotonic()
    with trickling(beginning, trickle) as url:
        with pytest.raises(ServiceConnectionError, match=r"did not answer within 0\.2 seconds"):
            client(url, clock, timeout_seconds=0.2, retry_count=0).complete(MESSAGES)
        assert time.monotonic() - started < 3


def test_the_tasks_time_ends_trickling_headers_too() -> None:
    with trickling(b"X-Slow: ", b"a") as url:
        asking = LLMClient(LLMConfig(endpoint=url, api_key=KEY, model="m"))
        with pytest.raises(RunnerTimeoutError):
            asking.complete(MESSAGES, deadline=Deadline(0.2))


def test_a_server_that_never_gets_done_with_its_tls_greeting_is_hung_up_on(clock: FakeClock) -> None:
    started = time.monotonic()
    with trickling(b"", b"\x16") as url:
        with pytest.raises(ServiceConnectionError):
            client(url.replace("http:", "https:"), clock, timeout_seconds=0.3, retry_count=0).complete(MESSAGES)
        assert time.monotonic() - started < 3


# --- the size of an answer


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate", "identity"])
def test_an_answer_is_read_in_each_encoding_that_is_asked_for(encoding: str) -> None:
    body = json.dumps(completion("日本" * 50_000), ensure_ascii=False).encode()
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "raw deflate": raw_deflate, "identity": bytes}[encoding]
    headers = {"Content-Encoding": encoding.removeprefix("raw ")}
    with serving([Answer(200, packed(body), headers=headers)]) as server:
        assert client(server).complete(MESSAGES).text == "日本" * 50_000
    assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"


def raw_deflate(content: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(content) + engine.flush()


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_an_answer_that_is_too_large_is_given_up_at_the_limit_and_not_asked_for_again(
    encoding: str, status: int, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_openai, "MAX_ANSWER_BYTES", 1_000_000)
    body = b" " * 5_000_000
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(body)
    with serving([Answer(status, packed, headers={"Content-Encoding": encoding})]) as server:
        with pytest.raises(ServiceError, match="too large") as caught:
            client(server, clock).complete(MESSAGES)
        assert len(server.requests) == 1
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", b"no gzip"), ("gzip", gzip.compress(b"x" * 999, mtime=0)[:-9]), ("br", b"x")]
)
def test_an_answer_that_is_not_as_encoded_as_it_says_is_one_that_broke_off(
    encoding: str, body: bytes, clock: FakeClock
) -> None:
    answers = [Answer(200, body, headers={"Content-Encoding": encoding}), Answer(200, completion())]
    with serving(answers) as server:
        assert client(server, clock).complete(MESSAGES).text == "hello"
        answers = [Answer(200, body, headers={"Content-Encoding": encoding})]
    with serving(answers) as server, pytest.raises(ServiceConnectionError, match="broke off its answer"):
        client(server, clock, retry_count=0).complete(MESSAGES)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"choices":' * 100_000])
def test_json_that_is_nested_without_end_is_no_completion(body: bytes, clock: FakeClock) -> None:
    with serving([Answer(200, body)]) as server, pytest.raises(ServiceError, match="no chat completion"):
        client(server, clock, retry_count=0).complete(MESSAGES)
    with serving([Answer(400, body)]) as server, pytest.raises(ServiceError, match="answered 400"):
        client(server, clock, retry_count=0).complete(MESSAGES)


@pytest.mark.parametrize("status", [400, 401, 429])
def test_what_an_endpoint_says_is_told_without_escapes(status: int, clock: FakeClock) -> None:
    with serving([refusal(status, "\x1b[31m\u202ered\ud800")]) as server, pytest.raises(RunnerError) as caught:
        client(server, clock, retry_count=0).complete(MESSAGES)
    assert "\\x1b[31m\\u202ered\\ud800" in str(caught.value)
    str(caught.value).encode()


# --- endpoints and keys


def test_a_refused_connection_says_what_to_try(clock: FakeClock) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServiceConnectionError) as caught:
            client(url, clock, retry_count=1).complete(MESSAGES)
    assert str(caught.value) == (f"Failed to connect to {url} (model endpoint): is it running? try: curl {url}/models")
    assert len(clock.sleeps) == 1


def test_a_connection_that_is_not_taken_up_is_one_that_failed(clock: FakeClock) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        with pytest.raises(ServiceConnectionError, match=r"^Failed to connect to"):
            client(url, clock, retry_count=0, timeout_seconds=0.3).complete(MESSAGES)


def test_the_endpoint_comes_from_the_environment_where_none_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Answer(200, completion())]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1/")
        asking = LLMClient(LLMConfig(api_key=KEY, model="m"))
        assert asking.complete(MESSAGES).text == "hello"


@pytest.mark.parametrize("url", ["http://user:hunter2@host/v1", "ftp://host", "http://[", "localhost:8080"])
def test_an_endpoint_in_the_environment_that_is_none_is_refused_unshown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"^OPENAI_BASE_URL must be a URL") as caught:
        LLMClient(LLMConfig(api_key=KEY))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_server_of_ones_own_needs_no_key() -> None:
    with serving([Answer(200, completion())]) as server:
        client(server, api_key=None).complete(MESSAGES)
        assert server.requests[0].headers["authorization"] == "Bearer unused"


def test_openai_itself_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match="Set OPENAI_API_KEY"):
        LLMClient(LLMConfig()).complete(MESSAGES)


@pytest.mark.parametrize("key", ["schlüssel-0123456789", "two words", "line\nbreak"])
def test_a_key_that_no_header_can_hold_is_refused_unshown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key: must be one word of printable ASCII") as caught:
        LLMConfig(api_key=key)
    assert key not in str(caught.value)


def test_a_key_read_with_its_line_break_is_sent_without() -> None:
    with serving([Answer(200, completion())]) as server:
        config = LLMConfig(endpoint=server.url, model="m").model_copy(update={"api_key": SecretStr(f"{KEY}\n")})
        LLMClient(config, clock=FakeClock()).complete(MESSAGES)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "echo",
    [
        refusal(401, f"Incorrect API key provided: {KEY}"),
        refusal(400, f"{'x' * 380} {KEY}"),
        Answer(400, f"{'x' * 380} {KEY}"),
        Answer(200, f"<html>Authorization: Bearer {KEY}"),
        Answer(200, completion(None, refusal=f"I was given {KEY}")),
        Answer(200, completion(None, KEY)),
    ],
)
def test_nothing_shows_a_key_that_the_endpoint_repeats(echo: Answer) -> None:
    with serving([echo]) as server, pytest.raises(RunnerError) as caught:
        client(server, retry_count=0).complete(MESSAGES)
    assert KEY[:8] not in "".join(traceback.format_exception(caught.value))


def test_a_forked_process_does_not_share_connections() -> None:
    asking = client("http://127.0.0.1:9/v1")
    parents = asking._client()
    child = os.fork()
    if child == 0:
        os._exit(0 if asking._client() is not parents else 1)
    assert os.waitpid(child, 0) == (child, 0)
    assert asking._client() is parents


def test_threads_that_ask_first_at_once_share_one_client() -> None:
    asking = client("http://127.0.0.1:9/fresh")
    clients: list[object] = []
    run_all([lambda: clients.append(asking._client())] * 16)
    assert len(clients) == 16
    assert len(set(map(id, clients))) == 1


def test_clients_of_endpoints_that_were_not_asked_for_long_are_let_go() -> None:
    first = weakref.ref(client("http://127.0.0.1:9/0")._client())
    for number in range(1, 33):
        client(f"http://127.0.0.1:9/{number}")._client()
    gc.collect()
    assert first() is None


def test_clients_of_one_endpoint_and_key_share_their_connections() -> None:
    with serving([Answer(200, completion())]) as server:
        one, other = client(server), client(server, timeout_seconds=5)
        assert one._client() is other._client()
        assert one._client() is not client(server, api_key="another-key-123")._client()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_does_not_carry_key_and_question_away(status: int, clock: FakeClock) -> None:
    with serving([Answer(200, completion())]) as other:
        with serving([Answer(status, headers={"Location": f"{other.url}/v1/chat/completions"})]) as server:
            with pytest.raises(ServiceError, match=r"set llm\.endpoint to the final URL"):
                client(server, clock).complete(MESSAGES)
            assert len(server.requests) == 1
        assert other.requests == []


AZURE = "/openai/deployments/gpt-4o"


@pytest.mark.parametrize("path", [AZURE, f"{AZURE}/", f"{AZURE}/chat/completions"])
def test_an_azure_deployment_is_asked_at_its_path_with_its_version_and_its_header(path: str) -> None:
    with serving([Answer(200, completion())]) as server:
        client(f"{server.url}{path}?api-version=2024-10-21").complete(MESSAGES)
        (request,) = server.requests
    assert request.path == f"{AZURE}/chat/completions?api-version=2024-10-21"
    assert request.headers["api-key"] == KEY
    assert "authorization" not in request.headers


def test_the_query_of_an_endpoint_is_sent_and_not_shown(clock: FakeClock) -> None:
    with serving([refusal(400, "no")]) as server:
        with pytest.raises(ServiceError) as caught:
            client(f"{server.url}/v1?tenant=a%20b&empty=", clock).complete(MESSAGES)
        assert server.requests[0].path == "/v1/chat/completions?tenant=a+b&empty="
    assert "tenant" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"api_key_header": "X-Key"}, {"x-key": KEY, "authorization": None}),
        ({"api_key_header": "authorization"}, {"authorization": f"Bearer {KEY}"}),
        ({"headers": {"X-Title": "me"}}, {"authorization": f"Bearer {KEY}", "x-title": "me"}),
        ({"headers": {"Authorization": "Bearer other-token"}}, {"authorization": "Bearer other-token"}),
        (
            {"headers": {"Authorization": "Bearer other-token"}, "api_key": None},
            {"authorization": "Bearer other-token"},
        ),
        ({"headers": {"X-Title": "me"}, "api_key": None}, {"authorization": None, "x-title": "me"}),
    ],
)
def test_key_and_headers_are_sent_as_configured(settings: dict[str, Any], sent: dict[str, str | None]) -> None:
    with serving([Answer(200, completion())]) as server:
        client(server, **settings).complete(MESSAGES)
        headers = server.requests[0].headers
    assert {name: headers.get(name) for name in sent} == sent


def test_a_secret_header_that_the_endpoint_repeats_is_masked(clock: FakeClock) -> None:
    headers = {"X-Gateway-Token": "gateway-secret-1", "X-Title": "my-title"}
    echo = refusal(400, "gateway-secret-1 of my-title is no good")
    with serving([echo]) as server, pytest.raises(ServiceError, match="of my-title is no good") as caught:
        client(server, clock, headers=headers).complete(MESSAGES)
    assert "gateway-secret-1" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("in_header", [True, False])
def test_a_key_that_the_endpoint_repeats_beside_its_answer_is_masked(in_header: bool) -> None:
    key = "a-key-that-nobody-may-see"
    body = {**completion(f"the key is {key}", f"stop {key}"), "model": f"m {key}", "id": f"id {key}"}
    padding = "x" * 190
    with serving([Answer(200, body, headers={"x-request-id": padding + key} if in_header else {})]) as server:
        answer = client(server, api_key=key).complete(MESSAGES)
    assert answer.text == f"the key is {key}"
    assert (answer.model, answer.finish_reason) == ("m ***", "stop ***")
    assert answer.request_id == (f"{padding}***" if in_header else "id ***")


@pytest.mark.parametrize("header", ["x-request-id", "apim-request-id", "request-id"])
def test_the_request_id_of_a_refusal_is_told(header: str, clock: FakeClock) -> None:
    answer = refusal(400, "no", **{header: "req-9"})
    with serving([answer]) as server, pytest.raises(ServiceError, match=r"answered 400: x: no \(request req-9\)"):
        client(server, clock).complete(MESSAGES)


# --- generate_code


@pytest.mark.parametrize(
    ("edit_format", "content"),
    [
        ("auto", '{"explanation": "e", "changes": [{"operation": "create", "file_path": "a.py", "content": "x\\n"}]}'),
        ("files", "a.py\n```\nx\n```\n"),
    ],
)
def test_generate_code_reads_the_change_set(tmp_path: Path, edit_format: Any, content: str) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/mod.py").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("")
    with serving([Answer(200, completion(content))]) as server:
        response = client(server, edit_format=edit_format).generate_code(
            prompt="Create a User model", workspace_path=tmp_path, max_tokens=4000
        )
        (body,) = bodies(server)
    assert [(change.file_path, change.content) for change in response.code_changes] == [("a.py", "x\n")]
    assert (response.tokens_used, response.model) == (15, "scripted")
    assert body["max_tokens"] == 4000
    assert body["messages"][1]["content"] == "Create a User model\n\n# Files of the workspace\n\npkg/mod.py"
    assert ("response_format" in body) is (edit_format == "auto")


def test_generate_code_does_without_a_workspace_and_lists_a_large_one_in_part(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"f{number:03}.txt").write_text("")
    with serving([Answer(200, completion("a.py\n```\nx\n```\n"))]) as server:
        client(server).generate_code("P", Path("/does/not/exist"))
        client(server).generate_code("P", tmp_path)
        first, second = (body["messages"][1]["content"] for body in bodies(server))
    assert first == "P"
    assert second.endswith("f199.txt")


def test_generate_code_says_when_there_is_no_change_in_the_answer() -> None:
    with serving([Answer(200, completion("I would rather not."))]) as server, pytest.raises(MalformedAnswerError):
        client(server).generate_code("P")


def test_many_threads_ask_at_once() -> None:
    with serving(lambda request: Answer(200, completion(request.json["messages"][0]["content"]))) as server:
        asking = client(server)
        answers: dict[int, str] = {}

        def ask(number: int) -> None:
            answers[number] = asking.complete([Message(role="user", content=str(number))]).text

        run_all([lambda n=number: ask(n) for number in range(16)])  # type: ignore[misc]
    assert answers == {number: str(number) for number in range(16)}


def run_all(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_pauses_grow_and_differ(clock: FakeClock) -> None:
    with serving([refusal(500)]) as server, pytest.raises(ServiceError):
        client(server, clock, retry_count=6).complete(MESSAGES)
    assert all(later > earlier for earlier, later in pairwise(clock.sleeps[:5]))
    assert max(clock.sleeps) <= 30
    assert json.dumps(clock.sleeps) != json.dumps([0.5 * 2**n for n in range(6)])
