"""Time enters as a passed-in clock, so that no test has to wait for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner.errors import RunnerTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """What the package asks of time; thread-safe.

    A method ``wait(seconds, cancellation)``, where there is one, is called in the place of ``sleep`` where a run may be
    asked to stop: it returns as soon as somebody asks.
    """

    def now(self) -> datetime:
        """The wall clock, in UTC: for records that people read."""

    def monotonic(self) -> float:
        """Seconds that only ever grow, while the machine sleeps too: for durations, deadlines and leases."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The present moment, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since the machine's start, those included in which it was suspended: leases end in them too."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Wait for real."""
        time.sleep(seconds)

    def wait(self, seconds: float, cancellation: Cancellation) -> None:
        """Wait for real, until somebody asks to stop."""
        cancellation.wait(seconds)


def pause(clock: Clock, seconds: float, cancellation: Cancellation) -> None:
    """Wait so long; :class:`RunCancelledError` as soon as somebody asks to stop."""
    cancellation.check()
    wait: Callable[[float, Cancellation], None] | None = getattr(clock, "wait", None)
    if wait is None:
        clock.sleep(seconds)
    else:
        wait(seconds, cancellation)
    cancellation.check()


SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True)
class Deadline:
    """The moment by which a task must be through; every blocking call of a run is given what is left of it.

    It also carries the run's ``cancellation``, by which such a call can be ended before that.
    """

    total_seconds: float
    clock: Clock = SYSTEM_CLOCK
    cancellation: Cancellation = field(default_factory=Cancellation, compare=False)
    _started: float = field(default=-1.0)

    def __post_init__(self) -> None:
        if self._started < 0:
            object.__setattr__(self, "_started", self.clock.monotonic())

    def remaining_seconds(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._started + self.total_seconds - self.clock.monotonic())

    def sooner(self, seconds: float) -> Deadline:
        """One that ends after so many seconds, and not after this one; the cancellation is the same."""
        return Deadline(min(seconds, self.remaining_seconds()), self.clock, self.cancellation)

    def pause(self, seconds: float) -> None:
        """Wait so long; :class:`RunCancelledError` as soon as the run is asked to stop."""
        pause(self.clock, seconds, self.cancellation)

    def check(self, doing: str) -> float:
        """Seconds left; raises :class:`RunnerTimeoutError` saying what was about to be done when none are.

        :class:`RunCancelledError` once the run was asked to stop.
        """
        self.cancellation.check()
        left = self.remaining_seconds()
        if left <= 0:
            raise RunnerTimeoutError(
                f"The task's {self.total_seconds:g} seconds are used up, before it could {doing}.",
                hint="Give the task a larger timeout_seconds.",
            )
        return left
