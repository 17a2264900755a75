"""Keeping a lease: a heartbeat renews it, and whoever works under it is stopped before it can be another's."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunnerError, StaleLeaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner._clock import Clock

_LAST_BEAT_SECONDS = 1.0  # a service that does not answer must not keep a finished run from ending
_LONGEST_STOP_SECONDS = 1.0  # every step ends within it, once it is asked to


@dataclass
class Hold:
    """How surely something leased is still ours: by its service's word, and by the time since that was last heard.

    The time is monotonic and counts from before the service was asked, so a runner that was asleep knows at once,
    without the service, that its lease may have been given away.
    """

    what: str
    """The thing held, as a sentence names it: ``slot s-1``."""
    clock: Clock
    lease_seconds: float
    renewed_at: float
    """By the monotonic clock: when the renewal that worked was asked for."""
    cancellation: Cancellation
    """Of the run that works under the lease: asked to stop once that is lost."""
    is_lost: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def seconds_left(self) -> float:
        """How long the lease surely lasts; not above 0 once it may be over."""
        return self.renewed_at + self.lease_seconds - self.clock.monotonic()

    def check(self) -> None:
        """Return while the lease is ours; ``StaleLeaseError`` once it may be another's."""
        if self.seconds_left <= 0:
            self.lose()
        if self.is_lost:
            raise StaleLeaseError(self._told)

    def lose(self) -> None:
        """The lease is, or may be, another's: every step of the run is to stop."""
        with self._lock:
            if self.is_lost:
                return
            self.is_lost = True
        self.cancellation.request(self._told, kind=StaleLeaseError)

    @property
    def _told(self) -> str:
        return (
            f"The lease on {self.what} is over, and it may be another runner's by now. Run the task again; if the"
            " machine was not asleep, raise lease_seconds."
        )


@contextmanager
def kept(hold: Hold, renew: Callable[[], object], on_trouble: Callable[[str], None]) -> Iterator[Hold]:
    """Keep the lease: renewed before the work begins, then three times per its length on a thread of its own.

    ``renew`` raises ``StaleLeaseError`` when the lease is another's, and another ``RunnerError`` when it could not ask:
    the first one is raised here, later ones are told to ``on_trouble``. A second thread ends the work in time when
    renewals hang.
    """
    asked_at = hold.clock.monotonic()
    renew()
    hold.renewed_at = asked_at
    stop = threading.Event()
    beating = _started(f"necrocode-heartbeat-{hold.what}", _beat, hold, renew, stop, on_trouble)
    watching = _started(f"necrocode-lease-{hold.what}", _watch, hold, stop)
    try:
        yield hold
    finally:
        stop.set()
        watching.join()
        beating.join(_LAST_BEAT_SECONDS)


def _started(name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def _beat(hold: Hold, renew: Callable[[], object], stop: threading.Event, on_trouble: Callable[[str], None]) -> None:
    is_worth_it = True
    while is_worth_it and not stop.wait(hold.lease_seconds / 3):
        asked_at = hold.clock.monotonic()
        try:
            renew()
        except RunnerError as error:
            if stop.is_set():  # what is given back cannot be renewed
                return
            on_trouble(f"The lease on {hold.what} was not renewed: {error}")
            is_worth_it = error.retryable
            if isinstance(error, StaleLeaseError):
                hold.lose()
        else:
            hold.renewed_at = asked_at


def _watch(hold: Hold, stop: threading.Event) -> None:
    """Ask the work to stop while there is still time for it to do so."""
    margin = min(_LONGEST_STOP_SECONDS, hold.lease_seconds / 10)
    while (left := hold.seconds_left - margin) > 0:
        if stop.wait(left):
            return
    if not stop.is_set():
        hold.lose()
