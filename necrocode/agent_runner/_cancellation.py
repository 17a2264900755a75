"""Asking a run to stop: one token that every blocking call of the run can see."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunCancelledError, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancellation:
    """Whether a run is to stop, and who asked for it. The first request counts; thread-safe, but not signal-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._asked = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._reason = ""
        self._kind: type[RunnerError] = RunCancelledError

    @property
    def is_requested(self) -> bool:
        """Whether the run is to stop."""
        return self._asked.is_set()

    @property
    def reason(self) -> str:
        """Who asked for it, as a sentence; empty while nobody did."""
        return self._reason

    def request(self, reason: str, *, kind: type[RunnerError] = RunCancelledError) -> None:
        """Ask the run to stop. Whoever waits under :meth:`calling` is woken, here, before this returns.

        ``kind`` is what the run ends with: another one than the default makes it ``failed`` and not ``cancelled``.
        """
        with self._lock:
            if self._asked.is_set():
                return
            self._reason, self._kind = reason, kind
            self._asked.set()
            for callback in list(self._callbacks):
                callback()

    def take_over(self, other: Cancellation) -> None:
        """Ask for the reason that ``other`` was asked for."""
        self.request(other._reason, kind=other._kind)

    def error(self) -> RunnerError:
        """What the run ends with; to be asked for once somebody has."""
        return self._kind(self._reason)

    def check(self) -> None:
        """Return while nobody has asked; else raise :class:`RunCancelledError`, or what was asked for instead."""
        if self._asked.is_set():
            raise self.error()

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks, at most so long; whether somebody has."""
        return self._asked.wait(min(seconds, threading.TIMEOUT_MAX))

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` once somebody asks, from that one's thread; at once where somebody already has.

        It must be quick and raise nothing: closing a socket, writing to a pipe, killing a process. When the block is
        left, it is not being called and never will be: what it uses may go.
        """
        with self._lock:
            if self._asked.is_set():
                callback()
            else:
                self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)
