"""Signals that end a command: the first one in order, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from necrocode.agent_runner import Cancellation

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
_LAST_SECONDS = 0.5
_END = 0


@contextmanager
def cancelled_by_signals(cancellation: Cancellation) -> Iterator[list[signal.Signals]]:
    """Request the cancellation at the first Ctrl-C, SIGTERM or SIGHUP; at a second one the process ends at once.

    The signals that came are in the list. Those that are ignored stay so (nohup). To be used in the main thread.
    """
    caught: list[signal.Signals] = []
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    numbers = [number for number in _NAMES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    woken_before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    # A thread: the main one may be in the middle of anything, holding any lock, or wait for a service that hangs.
    thread = threading.Thread(target=_listen, args=(reads, cancellation, caught), name="necrocode-signals", daemon=True)
    thread.start()
    try:
        yield caught
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writes, bytes([_END]))
        thread.join()
        os.close(reads)
        os.close(writes)


def _listen(reads: int, cancellation: Cancellation, caught: list[signal.Signals]) -> None:
    while (number := os.read(reads, 1)[0]) != _END:
        if number not in _NAMES:
            continue
        caught.append(signal.Signals(number))
        if len(caught) > 1:
            _end_at_once(caught[-1])
        cancellation.request(f"{_NAMES[caught[0]]} asked the run to stop.")


def _end_at_once(number: signal.Signals) -> None:
    from necrocode.agent_runner._process import kill_living  # noqa: PLC0415  loaded, where there is anything to kill

    told = f"\nnecrocode: {_NAMES[number]} came twice: ended at once. The slot is free again when its lease ends.\n"
    with suppress(OSError):
        os.write(2, told.encode())
    kill_living(_LAST_SECONDS)
    os._exit(code_of_signal(number))


def code_of_signal(number: signal.Signals) -> int:
    """What a command exits with that a signal has ended: as shells tell it."""
    return 128 + number
