"""Sending what earlier runs have left, beside a run that must not wait for it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner.outbox.folder import FlushReport, Outbox

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 5.0
"""How long the end of a run waits at most; what is not sent by then is sent by the next run."""


class BackgroundFlush:
    """One thread that empties the outbox; started anew whenever there is something. ``flush`` does the work."""

    def __init__(self, outbox: Outbox, flush: Callable[[Callable[[], bool]], FlushReport]) -> None:
        self._outbox = outbox
        self._flush = flush
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def start(self, *, own_run: str) -> None:
        """Begin, if there is something of other runs to send and nobody is at it."""
        with self._lock:
            is_busy = self._thread is not None and self._thread.is_alive()
            if is_busy or not self._outbox.has_waiting(but=own_run):
                return
            self._is_over.clear()
            self._thread = threading.Thread(target=self._run, name="necrocode-outbox", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Give it time to end, but not for long."""
        if (thread := self._thread) is not None:
            thread.join(LONGEST_WAIT_SECONDS)

    def close(self) -> None:
        """Have it end after what it is sending right now, and wait for that, but not for long either."""
        self._is_over.set()
        self.wait()

    def _run(self) -> None:
        try:
            report = self._flush(self._is_over.is_set)
        except Exception:
            logger.exception("The outbox was not flushed.")
            return
        if report.delivered or report.rejected or report.troubles:
            logger.info("outbox: %d delivered, %d waiting, %d rejected %s", report.delivered, report.waiting,
                        report.rejected, "; ".join(report.troubles))  # fmt: skip
