"""Services that fail where and when a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from necrocode.agent_runner import ServiceConnectionError


class Failing:
    """An object whose named methods raise, and whose other methods are another's."""

    def __init__(self, inner: Any, error: Callable[[], BaseException], *names: str, after: int = 0) -> None:
        self._inner, self._error, self._names, self._after = inner, error, names, after

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            return getattr(self._inner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._after -= 1
            if self._after < 0:
                raise self._error()
            return getattr(self._inner, name)(*arguments, **options)

        return call


def down() -> ServiceConnectionError:
    return ServiceConnectionError("Failed to connect to http://localhost:1 (test): is it running?")
