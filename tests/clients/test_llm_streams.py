"""Streams over real sockets: what ends them, what cuts them, and what is asked instead where there are none."""

from __future__ import annotations

import gzip
import json
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import trustme

from necrocode.agent_runner import (
    ContextOverflowError,
    LLMClient,
    LLMConfig,
    Message,
    RunnerError,
    RunnerTimeoutError,
    ServiceConnectionError,
    ServiceError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.clients import llm_openai
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.model_server import DONE, as_asked, chunk, chunk_of, completion, event, streamed, streaming

MESSAGES = (Message(role="user", content="Do it."),)
WHOLE = streamed(completion("hello world"), size=3)
PING = b": ping\n\n"


def client(server: ScriptedServer, clock: FakeClock | None = None, **settings: Any) -> LLMClient:
    settings = {"endpoint": f"{server.url}/v1", "api_key": "sk-test-key", "model": "m"} | settings
    return LLMClient(LLMConfig(**settings), clock=clock or FakeClock())


def is_streaming(request: Request) -> bool:
    return request.json.get("stream") is True


# --- whole streams


def test_a_stream_is_asked_for_with_its_usage_and_read_whole() -> None:
    with serving([streaming(WHOLE, **{"x-request-id": "req-1"})]) as server:
        answer = client(server).complete(MESSAGES)
        (request,) = server.requests
    assert (request.json["stream"], request.json["stream_options"]) == (True, {"include_usage": True})
    assert (answer.text, answer.model, answer.prompt_tokens, answer.completion_tokens) == (
        "hello world",
        "scripted",
        10,
        5,
    )
    assert (answer.usage_is_estimated, answer.request_id, answer.finish_reason) == (False, "req-1", "stop")
    assert answer.is_streamed


def test_no_stream_is_asked_for_where_none_is_wanted() -> None:
    with serving([Answer(200, completion("x"))]) as server:
        assert not client(server, stream=False).complete(MESSAGES).is_streamed
        assert not {"stream", "stream_options"} & server.requests[0].json.keys()


@pytest.mark.parametrize(
    "events",
    [
        WHOLE[:-1],  # no [DONE]
        [*WHOLE[:-2]],  # neither [DONE] nor usage
        [event(chunk_of([], prompt_filter_results=[])), *WHOLE],  # Azure's first chunk
        [PING, *WHOLE[:2], b": OPENROUTER PROCESSING\n\n", *WHOLE[2:]],
        [b"\xef\xbb\xbf", *WHOLE],
        [piece.replace(b"\n", b"\r\n") for piece in WHOLE],
        [piece.replace(b"\n", b"\r") for piece in WHOLE],
        [b"event: message\nid: 1\nretry: 5\n" + piece for piece in WHOLE],
        [b"".join(WHOLE)],
        [bytes([byte]) for byte in b"".join(WHOLE)],
        [*WHOLE, b"data: nothing that matters\n\n"],
        [*WHOLE[:-1], DONE.rstrip()],
        [piece.replace(b'"finish_reason": null', b'"finish_reason": ""') for piece in WHOLE],
        [piece.replace(b'"delta": {}', b'"delta": null') for piece in WHOLE],
        [piece.replace(b'"delta"', b'"message"') for piece in WHOLE],
        [piece.replace(b'"index": 0, ', b"") for piece in WHOLE],
    ],
)
def test_a_stream_is_read_however_its_server_writes_it(events: list[bytes]) -> None:
    with serving([streaming(events)]) as server:
        assert client(server).complete(MESSAGES).text == "hello world"
        assert len(server.requests) == 1


def test_text_cut_inside_of_its_characters_comes_whole() -> None:
    body = event(json.dumps(chunk_of([{"delta": {"content": "日本\U0001f600"}}]), ensure_ascii=False).encode())
    pieces = [bytes([byte]) for byte in body]
    with serving([streaming([*pieces, chunk(None, "stop"), DONE])]) as server:
        assert client(server).complete(MESSAGES).text == "日本\U0001f600"


def test_halves_of_a_character_in_two_chunks_are_put_together() -> None:
    with serving([streaming([chunk("a\ud83d"), chunk("\ude00b"), chunk(None, "stop"), DONE])]) as server:
        assert client(server).complete(MESSAGES).text == "a\U0001f600b"


def test_thoughts_are_no_text_but_cost_tokens() -> None:
    thought = [chunk(None, reasoning_content="t" * 40), chunk(None, reasoning="t" * 40)]
    with serving([streaming([*thought, chunk("text"), chunk(None, "stop"), DONE])]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.text, answer.completion_tokens, answer.usage_is_estimated) == ("text", 21, True)


def test_text_in_parts_is_put_together_without_its_thoughts() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    with serving([streaming([chunk(parts), chunk([{"type": "text", "text": "b"}], "stop"), DONE])]) as server:
        assert client(server).complete(MESSAGES).text == "ab"


def test_of_several_choices_the_first_is_taken_whichever_comes_first() -> None:
    def of(index: int, text: str, reason: str | None = None) -> bytes:
        return event(chunk_of([{"index": index, "delta": {"content": text}, "finish_reason": reason}]))

    mixed = [of(1, "other", "length"), of(0, "fi"), of(2, "third", "stop"), of(0, "rst", "stop"), DONE]
    with serving([streaming(mixed)]) as server:
        assert client(server).complete(MESSAGES).text == "first"


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_and_a_body_in_one_piece_are_taken_for_each_other(stream: bool) -> None:
    answer = Answer(200, completion("hello world")) if stream else streaming(WHOLE)
    with serving([answer]) as server:
        answered = client(server, stream=stream).complete(MESSAGES)
    assert (answered.text, answered.is_streamed) == ("hello world", not stream)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_a_stream_is_known_without_its_content_type(content_type: str) -> None:
    with serving([streaming(WHOLE, **{"Content-Type": content_type})]) as server:
        assert client(server).complete(MESSAGES).text == "hello world"


def test_a_compressed_stream_is_read() -> None:
    packed = gzip.compress(b"".join(WHOLE))
    pieces = [packed[:20], packed[20:]]
    with serving([streaming(pieces, **{"Content-Encoding": "gzip"})]) as server:
        assert client(server).complete(MESSAGES).text == "hello world"


def test_nothing_is_waited_for_after_the_end_is_said() -> None:
    held = threading.Event()
    with serving([streaming([*WHOLE, held])]) as server:
        started = time.monotonic()
        assert client(server).complete(MESSAGES).text == "hello world"
        assert time.monotonic() - started < 5
        held.set()


# --- broken streams


@pytest.mark.parametrize(
    "broken",
    [
        streaming(WHOLE[:3]),
        streaming(WHOLE[:3], ends=False),
        streaming([*WHOLE[:3], WHOLE[3][:20]], ends=False),
        streaming([*WHOLE[:3], WHOLE[3][:20]]),
        streaming([*WHOLE[:3], event(b'{"id": ')]),
        streaming([*WHOLE[:3], event(b"[1, 2]")]),
        streaming([*WHOLE[:3], event(b"[" * 100_000)]),
        streaming([*WHOLE[:3], b"data: \xff\xfe\n\n", *WHOLE[3:]]),
        streaming([*WHOLE[:3], event({"error": {"message": "upstream died", "code": 502}}), DONE]),
        streaming([*WHOLE[:3], event({"error": "upstream died"}), DONE]),
        streaming([*WHOLE[:3], b'event: error\ndata: {"error": {"message": "died", "type": "server_error"}}\n\n']),
        streaming([*WHOLE[:3], b'error: {"code": 500, "message": "died", "type": "server_error"}\n\n']),
        streaming([*WHOLE[:3], chunk("half", "error"), DONE]),
    ],
)
def test_a_stream_that_breaks_off_is_asked_for_again_and_none_of_it_kept(broken: Answer, clock: FakeClock) -> None:
    with serving([broken, streaming(WHOLE)]) as server:
        answer = client(server, clock).complete(MESSAGES)
        assert [is_streaming(request) for request in server.requests] == [True, True]
    assert (answer.text, answer.attempts) == ("hello world", 2)
    assert len(clock.sleeps) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_stream_that_always_breaks_off_is_a_connection_error(ends: bool, clock: FakeClock) -> None:
    with serving([streaming(WHOLE[:3], ends=ends)]) as server:
        with pytest.raises(ServiceConnectionError, match="broke off its answer") as caught:
            client(server, clock, retry_count=2).complete(MESSAGES)
        assert len(server.requests) == 3
    assert caught.value.retryable


@pytest.mark.parametrize("rest", [[], [WHOLE[-2][:30]], [event(b'{"usage": ')]])
@pytest.mark.parametrize("ends", [True, False])
def test_what_breaks_after_the_reason_of_the_end_does_not_matter(rest: list[bytes], ends: bool) -> None:
    with serving([streaming([*WHOLE[:-2], *rest], ends=ends)]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.text, answer.attempts, answer.usage_is_estimated) == ("hello world", 1, True)


@pytest.mark.parametrize("empty", [[], [b""], [PING], [event(chunk_of([]))], [b"\n\n"]])
@pytest.mark.parametrize("ends", [True, False])
def test_streams_that_end_before_they_begin_are_asked_for_in_one_piece_at_last(
    empty: list[bytes], ends: bool, clock: FakeClock
) -> None:
    def script(request: Request) -> Answer:
        said = {"error": {"message": "maximum context length is 2048", "code": "context_length_exceeded"}}
        return streaming(empty, ends=ends) if is_streaming(request) else Answer(400, said)

    with serving(script) as server:
        with pytest.raises(ContextOverflowError):
            client(server, clock).complete(MESSAGES)
        assert [is_streaming(request) for request in server.requests] == [True, True, False]


def test_the_only_further_try_is_in_one_piece(clock: FakeClock) -> None:
    with serving([streaming([]), Answer(200, completion("x"))]) as server:
        assert client(server, clock, retry_count=1).complete(MESSAGES).text == "x"
        assert [is_streaming(request) for request in server.requests] == [True, False]


def test_a_stream_that_never_begins_is_a_connection_error(clock: FakeClock) -> None:
    with (
        serving([streaming([])]) as server,
        pytest.raises(ServiceConnectionError, match="broke off its answer before it began"),
    ):
        client(server, clock, retry_count=0).complete(MESSAGES)


def test_such_an_end_is_not_remembered(clock: FakeClock) -> None:
    with serving([*[streaming([])] * 2, Answer(200, completion("x")), streaming(WHOLE)]) as server:
        asking = client(server, clock)
        assert not asking.complete(MESSAGES).is_streamed
        assert asking.complete(MESSAGES).is_streamed


def test_a_stream_that_does_not_say_why_it_ended_is_asked_for_in_one_piece_and_that_is_remembered() -> None:
    unexplained = [piece.replace(b'"stop"', b"null") for piece in WHOLE]

    def script(request: Request) -> Answer:
        return streaming(unexplained) if is_streaming(request) else Answer(200, completion("whole"))

    with serving(script) as server:
        asking = client(server)
        assert [asking.complete(MESSAGES).text for _ in range(2)] == ["whole", "whole"]
        assert [is_streaming(request) for request in server.requests] == [True, False, False]


def test_a_server_that_knows_nothing_else_than_such_streams_is_believed() -> None:
    with serving([streaming([piece.replace(b'"stop"', b"null") for piece in WHOLE])]) as server:
        answer = client(server).complete(MESSAGES)
    assert (answer.text, answer.finish_reason, answer.attempts) == ("hello world", None, 2)


# --- endpoints that do not stream


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Streaming is not supported for this model."),
        (400, "Your organization must be verified to stream this model."),
        (422, "stream: Extra inputs are not permitted"),
        (404, "This deployment does not support stream"),
        (501, "stream is disabled"),
        (500, "streaming unsupported"),
    ],
)
def test_an_endpoint_that_cannot_stream_is_asked_in_one_piece_and_that_is_remembered(
    status: int, said: str, clock: FakeClock
) -> None:
    def script(request: Request) -> Answer:
        return Answer(status, {"error": {"message": said}}) if is_streaming(request) else Answer(200, completion("x"))

    with serving(script) as server:
        for _ in range(2):
            assert client(server, clock).complete(MESSAGES).text == "x"
        assert [is_streaming(request) for request in server.requests] == [True, False, False]
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "Unrecognized request argument supplied: stream_options"}},
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]},
        {"message": "unknown field: include_usage"},
    ],
)
def test_an_endpoint_that_does_not_know_stream_options_streams_without_and_that_is_remembered(said: Any) -> None:
    def script(request: Request) -> Answer:
        return Answer(422, said) if "stream_options" in request.json else streaming(WHOLE)

    with serving(script) as server:
        for _ in range(2):
            assert client(server).complete(MESSAGES).is_streamed
        assert ["stream_options" in request.json for request in server.requests] == [True, False, False]


def test_structured_output_that_cannot_be_streamed_is_kept_and_the_stream_given_up() -> None:
    def script(request: Request) -> Answer:
        said = "response_format `json_schema` does not support streaming"
        return Answer(400, {"error": {"message": said}}) if is_streaming(request) else Answer(200, completion("{}"))

    with serving(script) as server:
        answer = client(server).complete(MESSAGES, answer_format="json")
    assert (answer.asked_format, answer.is_streamed) == ("json_schema", False)


# --- time


def test_a_stream_that_pauses_is_cut_and_asked_for_again(clock: FakeClock) -> None:
    held = threading.Event()
    with serving([streaming([*WHOLE[:3], held, *WHOLE[3:]]), streaming(WHOLE)]) as server:
        started = time.monotonic()
        answer = client(server, clock, idle_timeout_seconds=0.2).complete(MESSAGES)
        assert time.monotonic() - started < 5
        held.set()
    assert (answer.text, answer.attempts) == ("hello world", 2)


def test_one_that_always_pauses_is_a_connection_error_that_says_so(clock: FakeClock) -> None:
    held = threading.Event()
    with serving([streaming([*WHOLE[:3], held])]) as server:
        with pytest.raises(ServiceConnectionError, match=r"sent nothing for 0\.2 seconds in the middle.*idle_timeout"):
            client(server, clock, idle_timeout_seconds=0.2, retry_count=0).complete(MESSAGES)
        held.set()


def slowly(pieces: Iterator[bytes] | list[bytes], seconds: float = 0.05) -> Iterator[bytes]:
    for piece in pieces:
        time.sleep(seconds)
        yield piece


def test_a_slow_stream_is_no_pause_and_keep_alives_are_none_either() -> None:
    mixed = [*WHOLE[:3], *[PING] * 3, *WHOLE[3:]]
    with serving(lambda _: streaming(slowly(mixed, 0.2))) as server:
        assert client(server, idle_timeout_seconds=1.0).complete(MESSAGES).text == "hello world"
        assert len(server.requests) == 1


def test_a_model_may_think_before_it_begins() -> None:
    held = threading.Event()
    threading.Timer(0.5, held.set).start()
    with serving([streaming([held, *WHOLE])]) as server:
        assert client(server, idle_timeout_seconds=0.2).complete(MESSAGES).text == "hello world"


@pytest.mark.parametrize("endless", [PING, chunk("x")])
def test_the_time_for_an_answer_ends_a_stream_without_end(endless: bytes, clock: FakeClock) -> None:
    settings = {"timeout_seconds": 0.4, "retry_count": 0, "idle_timeout_seconds": 0}
    late = pytest.raises(ServiceConnectionError, match=r"did not answer within 0\.4 seconds")
    with serving(lambda _: streaming(slowly(repeat(endless)))) as server, late:
        client(server, clock, **settings).complete(MESSAGES)


def test_the_tasks_time_ends_it_too() -> None:
    with serving(lambda _: streaming(slowly(repeat(chunk("x"))))) as server:
        asking = LLMClient(LLMConfig(endpoint=server.url, model="m"))
        with pytest.raises(RunnerTimeoutError, match="while the model was answering"):
            asking.complete(MESSAGES, deadline=Deadline(0.4))


def test_an_answer_whose_last_words_are_late_is_not_paid_for_twice() -> None:
    held = threading.Event()
    with serving([streaming([*WHOLE[:-2], held])]) as server:
        answer = client(server, idle_timeout_seconds=0.2).complete(MESSAGES)
        held.set()
    assert (answer.text, answer.attempts) == ("hello world", 1)


# --- size


def test_a_stream_without_end_is_given_up_at_its_limit(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_openai, "MAX_ANSWER_BYTES", 100_000)
    for endless in (PING * 100, chunk("x" * 1000), b"data: " + b"x" * 1000, event(chunk_of([])) * 10):
        with serving(lambda _, endless=endless: streaming(repeat(endless))) as server:
            with pytest.raises(ServiceError, match="too large") as caught:
                client(server, clock).complete(MESSAGES)
            assert len(server.requests) == 1
        assert not caught.value.retryable


# --- many at once, and the end of the process


def test_many_threads_stream_at_once_through_one_client() -> None:
    with serving(lambda request: as_asked(request, completion(request.json["messages"][0]["content"]))) as server:
        asking = client(server)
        answers = at_once(lambda number: asking.complete([Message(role="user", content=f"{number}")]), range(16))
    assert [getattr(answer, "text", answer) for answer in answers] == [str(number) for number in range(16)]


PROGRAM = """
import sys, threading
from necrocode.agent_runner import LLMClient, LLMConfig, Message, RunnerError

model = LLMClient(LLMConfig(endpoint=sys.argv[1], model="m", retry_count=0))

def ask(text):
    try:
        model.complete([Message(role="user", content=text)])
    except RunnerError as error:
        print(type(error).__name__)

threads = [threading.Thread(target=ask, args=[text]) for text in ("whole", "half", "late")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_a_process_that_asked_ends_without_a_warning() -> None:
    held = threading.Event()

    def script(request: Request) -> Answer:
        text = request.json["messages"][0]["content"]
        return streaming({"whole": WHOLE, "half": WHOLE[:3], "late": [*WHOLE, held]}[text])

    with serving(script) as server:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        held.set()
    assert (done.stdout, done.stderr, done.returncode) == ("ServiceConnectionError\n", "", 0)


def test_nothing_shows_a_key_that_a_stream_repeats() -> None:
    key = "sk-test-key-0123456789abcdef"
    for echo in (event(b'{"x": ' + key.encode()), event({"error": {"message": key}}), chunk(None, key)):
        with serving([streaming([chunk(" "), echo, DONE])]) as server, pytest.raises(RunnerError) as caught:
            client(server, retry_count=0, api_key=key).complete(MESSAGES)
        assert key not in "".join(traceback.format_exception(caught.value))


def test_streams_over_tls_are_read_and_cut_alike(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    held = threading.Event()
    answers = [streaming([*WHOLE[:3], held]), streaming(WHOLE[:3], ends=False), streaming(WHOLE)]
    with serving(answers, tls=tls) as server:
        answer = client(server, clock, idle_timeout_seconds=0.3).complete(MESSAGES)
        held.set()
    assert (answer.text, answer.attempts) == ("hello world", 3)


@pytest.mark.parametrize("depth", [300, 700, 900, 940, 980])
@pytest.mark.parametrize("form", [b'{"error":%b}', b'{"error":{"message":%b}}', b'{"choices":[%b]}'])
def test_an_error_that_is_nested_deeply_is_one_of_ours(form: bytes, depth: int, clock: FakeClock) -> None:
    body = form % (b'{"x":' * depth + b"1" + b"}" * depth)
    answers = [streaming([event(body)]), Answer(200, body), Answer(500, body)]
    with serving(answers) as server, pytest.raises(RunnerError):
        client(server, clock, retry_count=2).complete(MESSAGES)
