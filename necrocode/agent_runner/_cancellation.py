"""Asking a run to stop: one token that every blocking call of the run can see."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunCancelledError, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancellation:
    """Whether a run is to stop, and who asked for it. The first request counts; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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

        ``kind`` is the error that ends the run, where nobody wished it to end but it must.
        """
        with self._lock:
            if self._asked.is_set():
                return
            self._reason, self._kind = reason, kind
            self._asked.set()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Return while nobody has asked; else raise :class:`RunCancelledError`, or what was asked for."""
        if self._asked.is_set():
            raise self._kind(self._reason)

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks, at most so long; whether somebody has."""
        return self._asked.wait(seconds)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` once somebody asks, from that one's thread; at once where somebody already has.

        It must be quick and raise nothing: closing a socket, writing to a pipe, killing a process.
        """
        with self._lock:
            is_late = self._asked.is_set()
            if not is_late:
                self._callbacks.append(callback)
        if is_late:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)
