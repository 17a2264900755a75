"""Errors of questions to the model as JSON, so that a journal can hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from necrocode.agent_runner import errors
from necrocode.agent_runner.errors import BudgetExhaustedError, ChangeRejectedError, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable

_FROM_OUTSIDE = {"RunCancelledError", "RunnerTimeoutError", "InternalError"}
"""What a question ended with because of something outside of it: it is asked again."""
_ERROR_FIELDS: dict[str, Any] = {
    "hint": str, "status_code": int, "retryable": bool, "is_free": bool, "prompt_tokens": int,
    "completion_tokens": int, "cached_prompt_tokens": int, "limit": str, "left": (int, float), "needed": (int, float),
}  # fmt: skip


def error_data(error: BaseException, redact: Callable[[str], str]) -> dict[str, Any] | None:
    """An error of a question to the model as a journal keeps it; None for one that says nothing of the question."""
    name = type(error).__name__
    if _error_type(name) is not type(error):
        return None
    assert isinstance(error, RunnerError)  # noqa: S101  all in that module are
    data: dict[str, Any] = {
        name: getattr(error, name) for name in _ERROR_FIELDS if getattr(error, name, None) is not None
    }
    texts = {key: redact(value) for key, value in data.items() if isinstance(value, str)}
    return {"type": name, "message": redact(str(error)), **data, **texts}


def error_from(data: object) -> RunnerError | None:
    """The error again; None for what is none of a question."""
    kind = _error_type(data.get("type")) if isinstance(data, dict) else None
    if kind is None or not isinstance(data, dict) or not isinstance(data.get("message"), str):
        return None
    if issubclass(kind, ChangeRejectedError) or (issubclass(kind, BudgetExhaustedError) and "needed" not in data):
        return None
    error = kind.__new__(kind)
    RunnerError.__init__(error, data["message"])
    for name, types in _ERROR_FIELDS.items():
        if isinstance(data.get(name), types):
            setattr(error, name, data[name])
    return error


def _error_type(name: object) -> type[RunnerError] | None:
    found = getattr(errors, name, None) if isinstance(name, str) and name not in _FROM_OUTSIDE else None
    return found if isinstance(found, type) and issubclass(found, RunnerError) else None
