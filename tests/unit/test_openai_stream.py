"""Server-sent events and the completions they come to, without a socket."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner.clients._exchange import AnswerTooLargeError
from necrocode.agent_runner.clients._openai_stream import MalformedStreamError, StreamedCompletion, begun, events
from tests.support.model_server import chunk, chunk_of, completion, event, streamed
from tests.support.pace import is_in_proportion

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def read(body: bytes, *, size: int = 1 << 16) -> StreamedCompletion:
    reading = StreamedCompletion(max_characters=1_000_000)
    for data in events(cut(body, size)):
        reading.add(data)
    return reading


@given(st.text(max_size=200), st.integers(1, 40), st.integers(1, 9), ENDS)
def test_a_text_comes_out_as_it_went_in_wherever_it_is_cut(text: str, size: int, part: int, end: bytes) -> None:
    whole = completion(text)
    body = b"".join(streamed(whole, size=part)).replace(b"\n", end)
    put_together = read(body, size=size).as_completion()
    assert put_together["choices"][0]["message"]["content"] == text
    assert put_together["choices"][0]["finish_reason"] == "stop"
    assert {key: put_together[key] for key in ("id", "model", "usage")} == {
        key: whole[key] for key in ("id", "model", "usage")
    }


@given(st.text(max_size=50), st.integers(1, 5))
def test_characters_may_be_cut_into_bytes(text: str, size: int) -> None:
    data = json.dumps(chunk_of([{"delta": {"content": text}}]), ensure_ascii=False).encode()
    assert read(event(data), size=size).as_completion()["choices"][0]["message"]["content"] == text


@given(st.binary(max_size=300), st.integers(1, 20))
def test_any_bytes_are_read_or_malformed(body: bytes, size: int) -> None:
    begun(iter(cut(body, size)))
    with suppress(MalformedStreamError):
        read(body, size=size).as_completion()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["choices", "delta", "content", "error", "usage", "index", "finish_reason", "message", "type", "text", "id", "model", "tool_calls", "x_groq"]), inner), max_leaves=20))  # fmt: skip  # noqa: E501
def test_any_json_is_read_or_malformed(value: Any) -> None:
    try:
        put_together = read(event(value)).as_completion()
    except MalformedStreamError:
        assert not isinstance(value, dict)
    else:
        json.dumps(put_together)


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"data: 1\n\n", [b"1"]),
        (b"data:1\n\n", [b"1"]),
        (b"data:  1 \n\n", [b" 1 "]),
        (b"data: 1", [b"1"]),
        (b"data: 1\n", [b"1"]),
        (b": ping\n\n:\n\ndata: 1\n\n: OPENROUTER PROCESSING\n\n", [b"1"]),
        (b"event: message\nid: 7\nretry: 10\ndata: 1\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data\n\ndata:\n\ndata: 1\n\n", [b"1"]),
        (b"data: 1\n\ndata: [DONE]\n\ndata: 2\n\n", [b"1", b"[DONE]"]),
        (b"data: 1\ndata:[DONE] \n", [b"1", b"[DONE]"]),
        (b'error: {"code": 500}\n\n', [b'{"error":{"code": 500}}']),
        (b"nothing of the kind\n\n", []),
        (b"", []),
    ],
)
def test_events_are_told_from_comments_and_other_fields(body: bytes, data: list[bytes]) -> None:
    assert list(events([body])) == data
    assert list(events(cut(body, 1))) == data


@pytest.mark.parametrize(
    ("pieces", "beginning", "is_stream"),
    [
        ([b"data: 1\n\n"], b"data: 1\n\n", True),
        ([b"", b" \r\n", b"\xef\xbb\xbf", b"\n: ping"], b": ping", True),
        ([b"e", b"vent: x"], b"e", True),
        ([b"\n\n", b' {"choices": []}'], b'{"choices": []}', False),
        ([b"<html>"], b"<html>", False),
        ([b"[]"], b"[]", False),
        ([b"", b"  "], b"", False),
        ([], b"", False),
    ],
)
def test_a_stream_is_known_by_how_it_begins(pieces: list[bytes], beginning: bytes, is_stream: bool) -> None:
    assert begun(iter(pieces)) == (beginning, is_stream)


def test_one_line_in_a_million_pieces_takes_linear_time() -> None:
    def read(count: int) -> None:
        assert len(list(events([b"data: ", *[b"x"] * count]))) == 1

    assert is_in_proportion(read, 100_000, 400_000)


def test_a_text_over_its_limit_is_given_up() -> None:
    reading = StreamedCompletion(max_characters=100)
    for _ in range(100):
        reading.add(chunk_data("x"))
    with pytest.raises(AnswerTooLargeError):
        reading.add(chunk_data("x"))


def chunk_data(content: str) -> bytes:
    (data,) = events([chunk(content)])
    return data


def test_thoughts_count_towards_the_limit() -> None:
    reading = StreamedCompletion(max_characters=100)
    with pytest.raises(AnswerTooLargeError):
        reading.add(next(events([chunk(None, reasoning_content="x" * 101)])))


def test_choices_besides_the_first_take_no_room() -> None:
    reading = StreamedCompletion(max_characters=10)
    for index in (5, 3, 7, 0, 1, 3):
        delta = {"index": index, "delta": {"content": f"{index}" * 8}, "finish_reason": "stop"}
        reading.add(json.dumps(chunk_of([delta])).encode())
    assert reading.as_completion()["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"content": "00000000", "refusal": "", "reasoning_content": "", "tool_calls": None},
        }
    ]
