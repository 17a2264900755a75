"""A chat completion that comes as a stream of server-sent events, put together while it comes.

Not the openai package's own reader, which makes typed objects of chunks that are none and knows no end but the
connection's; nor httpx2's, which replaces bytes that are no UTF-8, insists on the content type and drops a last event
without its blank line.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.clients._exchange import AnswerTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DONE = b"[DONE]"
# What the fields of server-sent events begin with, and their comments; JSON, HTML and most prose begin with none.
_FIRST_BYTES = b"deir:"
_BLANK = b" \t\r\n\xef\xbb\xbf"


class MalformedStreamError(ValueError):
    """An event of the stream, its ``data``, is no chunk of a chat completion."""

    def __init__(self, data: bytes) -> None:
        super().__init__("an event of the stream is no chunk of a chat completion")  # the data may repeat the key
        self.data = data


def begun(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """The beginning of a body, blanks left out, and whether it is that of a stream, whatever its content type says."""
    beginning = b""
    for piece in pieces:
        beginning = (beginning + piece).lstrip(_BLANK)
        if beginning:
            break
    return beginning, beginning[:1] in _FIRST_BYTES and beginning != b""


def events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event, as far as ``[DONE]``, as soon as it is there (WHATWG HTML, "Server-sent events").

    An event that the end of the stream leaves without its blank line counts. The field ``error``, which older servers
    of llama.cpp write their errors in, is read as data.
    """
    data = bytearray()
    for line in _lines(pieces):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"error":
            data += b'{"error":%b}\n' % value
        elif field == b"data" and value.strip() == _DONE:
            yield from _event(data)
            yield _DONE
            return
        elif field == b"data" and value.strip():
            data += value + b"\n"
        elif not line:
            yield from _event(data)
    yield from _event(data)


def _event(data: bytearray) -> Iterator[bytes]:
    """The lines of data as one, where there are any; they are taken out."""
    if data:
        yield bytes(data[:-1])
        data.clear()


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, LF, CRLF or CR, wherever the pieces are cut; linear in time and room."""
    line = bytearray()
    was_return = False
    for cut in pieces:
        piece = cut.removeprefix(b"\n") if was_return else cut
        was_return = cut.endswith(b"\r") or (was_return and not cut)
        for part in piece.splitlines(keepends=True):
            line += part
            if part.endswith((b"\n", b"\r")):
                yield bytes(line).rstrip(b"\r\n")
                line.clear()
    if line:
        yield bytes(line)


class StreamedCompletion:
    """What the chunks of a stream come to (OpenAI API reference, "The chat completion chunk object").

    Of several choices the one with the lowest index is kept. ``is_done`` once the stream has said so, by ``[DONE]`` or
    by an error (``is_error``). At most ``max_characters`` of text, thoughts included, else ``AnswerTooLargeError``.
    """

    def __init__(self, *, max_characters: int) -> None:
        self._max_characters = max_characters
        self.is_done = False
        self.is_error = False
        self._about: dict[str, Any] = {}
        self._usage: object = None
        self._choice: _Choice | None = None

    @property
    def is_explained(self) -> bool:
        """Whether it is known why the answer ended; no text comes after that."""
        return self._choice is not None and bool(self._choice.finish_reason)

    @property
    def is_begun(self) -> bool:
        """Whether there is a choice at all."""
        return self._choice is not None

    def add(self, data: bytes) -> None:
        """Take in the data of one event; :class:`MalformedStreamError` where it is no chunk."""
        if data == _DONE:
            self.is_done = True
            return
        chunk = _chunk(data)
        if error := error_in(chunk):
            self._about["error"] = error
            self.is_done = self.is_error = True
            return
        for key in ("id", "model"):
            self._about[key] = self._about.get(key) or chunk.get(key)
        self._usage = chunk.get("usage") or _mapping(chunk.get("x_groq")).get("usage") or self._usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            self._add_choice(_mapping(choice))

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        if self._choice is None or index < self._choice.index:
            self._choice = _Choice(index)
        if index == self._choice.index:
            self._choice.add(choice)
            if self._choice.size > self._max_characters:
                raise AnswerTooLargeError(f"more than {self._max_characters} characters")

    def as_completion(self) -> dict[str, Any]:
        """What an endpoint would have answered in one piece."""
        choices = [] if self._choice is None else [self._choice.as_choice()]
        return {**self._about, "choices": choices, "usage": self._usage}


class _Choice:
    """One choice, growing. Its texts are kept as text and not as lists of pieces, each of which weighs fifty bytes."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.finish_reason: object = None
        self._texts = {"content": StringIO(), "refusal": StringIO(), "reasoning_content": StringIO()}
        self._calls_tool = False

    def add(self, choice: dict[str, Any]) -> None:
        """Take in what one chunk says of it."""
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        delta = _mapping(choice.get("delta") or choice.get("message"))
        self._write("content", delta.get("content"))
        self._write("refusal", delta.get("refusal"))
        self._write("reasoning_content", delta.get("reasoning_content") or delta.get("reasoning"))
        self._calls_tool = self._calls_tool or bool(delta.get("tool_calls") or delta.get("function_call"))

    def _write(self, name: str, content: object) -> None:
        self.size += self._texts[name].write(text_of(content))

    def as_choice(self) -> dict[str, Any]:
        """It as a choice of a chat completion."""
        message: dict[str, Any] = {name: text.getvalue() for name, text in self._texts.items()}
        return {
            "index": self.index,
            "finish_reason": self.finish_reason,
            "message": message | {"tool_calls": [{}] if self._calls_tool else None},
        }


def error_in(body: dict[str, Any]) -> object:
    """The error that stands in the place of a chunk or completion; older vLLM's is not wrapped in another object."""
    return body if body.get("object") == "error" else body.get("error")


def text_of(content: object) -> str:
    """The text of a message; some servers send it in parts, of which those of other types are thoughts or images."""
    if isinstance(content, list):
        parts = (_mapping(part) for part in content)
        texts = (part.get("text") for part in parts if part.get("type", "text") in {"text", "output_text"})
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedStreamError(data) from error
    if not isinstance(chunk, dict):
        raise MalformedStreamError(data)
    return chunk


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
