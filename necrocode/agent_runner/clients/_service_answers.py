"""Reading what a service answers, however much that is and whatever it holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.clients._exchange import AnswerTooLargeError

if TYPE_CHECKING:
    import requests

LONGEST_DETAIL = 500
_PIECE_BYTES = 1 << 16
_LONGEST_PROBLEM_BYTES = 1_000_000
_MOST_BYTES_OF_CHARACTER = 4


def read_whole(answer: requests.Response, *, limit_bytes: int) -> requests.Response:
    """The answer with its body in memory, inflated; :class:`AnswerTooLargeError` for one over the limit."""
    body = bytearray()
    with answer:
        for piece in answer.iter_content(_PIECE_BYTES):
            body += piece
            if len(body) > limit_bytes:
                raise AnswerTooLargeError(f"more than {limit_bytes} bytes")
    answer._content = bytes(body)  # noqa: SLF001  as requests does; a second Response would cost more than the reading
    return answer


def read_problem(answer: requests.Response) -> dict[str, Any]:
    """The RFC 9457 problem in an answer; for any other body its first text."""
    try:
        value = json.loads(answer.content[:_LONGEST_PROBLEM_BYTES])
    except (ValueError, RecursionError):
        is_html = "html" in answer.headers.get("Content-Type", "")
        return {} if is_html else {"detail": beginning(answer, LONGEST_DETAIL)}
    return value if isinstance(value, dict) else {"detail": str(value)}


def beginning(answer: requests.Response, length: int) -> str:
    """How a body begins, as UTF-8: finding out its encoding would mean to go through all of it."""
    return answer.content[: length * _MOST_BYTES_OF_CHARACTER].decode(errors="replace")[:length]
