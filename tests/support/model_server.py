"""A model endpoint on loopback that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.http_server import Answer, Request, ScriptedServer, serving


def completion(content: Any, finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion with this text, ended for this reason."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def event(data: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


DONE = event(b"[DONE]")


def chunk(content: Any = None, finish_reason: Any = None, **more: Any) -> bytes:
    """The event of one chunk; ``more`` are further fields of its delta."""
    delta = ({} if content is None else {"content": content}) | more
    return event(chunk_of([{"index": 0, "delta": delta, "finish_reason": finish_reason}]))


def chunk_of(choices: Any, **more: Any) -> dict[str, Any]:
    """One chunk with these choices."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": choices,
        **more,
    }


def streamed(whole: dict[str, Any], *, size: int = 1000) -> list[bytes]:
    """A chat completion as OpenAI streams it: a role, text by the piece, the reason of the end, the usage, the end."""
    pieces = [chunk("", role="assistant")]
    choices = whole["choices"] or []
    for choice in choices[:1]:
        message = choice.get("message") or {}
        pieces += [chunk(part) for part in _parts(message.get("content"), size)]
        rest = {name: value for name, value in message.items() if name not in {"role", "content"} and value}
        pieces += [chunk(None, **rest)] if rest else []
        pieces.append(chunk(None, choice.get("finish_reason")))
    pieces.append(event(chunk_of([], usage=whole.get("usage"))))
    return [*(pieces if choices else pieces[-1:]), DONE]


def _parts(content: Any, size: int) -> list[Any]:
    if not isinstance(content, str):
        return [] if content is None else [content]
    return [content[at : at + size] for at in range(0, len(content), size)]


def streaming(pieces: Iterable[bytes | threading.Event], *, ends: bool = True, **headers: str) -> Answer:
    """These events, as a stream."""
    return Answer(200, pieces=pieces, ends=ends, headers={"Content-Type": "text/event-stream", **headers})


def as_asked(request: Request, whole: dict[str, Any]) -> Answer:
    """The chat completion as a stream where the request asks for one, else in one piece."""
    return streaming(streamed(whole)) if request.json.get("stream") else Answer(200, whole)


@contextmanager
def model_server(answer: str | Callable[[], str]) -> Iterator[ScriptedServer]:
    """A server whose every completion is ``answer``; its base URL for clients is ``server.url + "/v1"``."""

    def script(request: Request) -> Answer:
        return as_asked(request, completion(answer if isinstance(answer, str) else answer()))

    with serving(script) as server:
        yield server


def as_json(files: dict[str, str]) -> str:
    """A change set in the JSON format."""
    changes = [{"operation": "modify", "file_path": path, "content": text} for path, text in files.items()]
    return json.dumps({"explanation": "done", "changes": changes}, ensure_ascii=False)


def as_files(files: dict[str, str]) -> str:
    """A change set as fenced files."""
    blocks = []
    for path, text in files.items():
        ending = "" if text.endswith("\n") or not text else "\n\\ No newline at end of file\n"
        blocks.append(f"{path}\n````\n{text}{ending}````\n")
    return "\n".join(blocks)
