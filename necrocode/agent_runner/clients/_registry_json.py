"""What a registry keeps as JSON: checked before it is written, and read in a form that can always be answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._strict import check_json
from necrocode.agent_runner._text import writable
from necrocode.agent_runner.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEEPEST_ANSWERED = 128
"""Pydantic writes out values that are at most 255 deep, those around them counted."""


def checked_json(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """The mapping, for later; ``ServiceError`` (status 400) for what could be stored but not be answered again."""
    try:
        return check_json(dict(value or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise ServiceError(
            f"The task registry cannot keep something that is no JSON: {name} {error}.", status_code=400
        ) from error


def to_json(value: object) -> str:
    """The text that is stored."""
    return json.dumps(value, allow_nan=False)  # NaN is no JSON: no other reader could read it


def from_json(text: str | bytes) -> Any:  # noqa: ANN401  any JSON
    """What is stored. Older releases took in what no answer can hold; that is made fit, so that the rest is answered.

    Half a character becomes U+FFFD, and what is nested too deep its own JSON text.
    """
    stored = text if isinstance(text, str) else text.decode()
    value = json.loads(stored)
    is_fit = "\\ud" not in stored.lower() and stored.count("{") + stored.count("[") <= _DEEPEST_ANSWERED
    return value if is_fit else _fit(value, _DEEPEST_ANSWERED)


def _fit(value: Any, depth: int) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, str):
        return writable(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        return json.dumps(value)
    if isinstance(value, list):
        return [_fit(item, depth - 1) for item in value]
    return {writable(name): _fit(item, depth - 1) for name, item in value.items()}
