"""A model endpoint on loopback that answers what a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.http_server import Answer, Request, ScriptedServer, serving


def completion(content: str) -> dict[str, Any]:
    """A chat completion with this text."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


@contextmanager
def model_server(answer: str | Callable[[], str]) -> Iterator[ScriptedServer]:
    """A server whose every completion is ``answer``; its base URL for clients is ``server.url + "/v1"``."""

    def script(_request: Request) -> Answer:
        return Answer(200, completion(answer if isinstance(answer, str) else answer()))

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
