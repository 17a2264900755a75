from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from necrocode.agent_runner import ServiceConnectionError, StaleLeaseError
from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.heartbeat import Hold, kept
from tests.support.clocks import FakeClock

WAIT_SECONDS = 30


class JumpingClock:
    """Both clocks stand still until somebody moves them: the wall's, or with a suspended machine, the monotonic one."""

    def __init__(self) -> None:
        self.wall, self.skipped = SYSTEM_CLOCK.now(), 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.skipped

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


def held(clock: Clock, seconds: float = 60) -> Hold:
    return Hold("task 1", clock, seconds, clock.monotonic(), Cancellation())


def asked_to_stop(hold: Hold) -> bool:
    return hold.cancellation.wait(WAIT_SECONDS)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-task 1")]


def renewing(*errors: Exception) -> tuple[Callable[[], None], threading.Semaphore]:
    waiting, asked = list(errors), threading.Semaphore(0)

    def renew() -> None:
        asked.release()
        if waiting and threading.current_thread().name.startswith("necrocode-heartbeat"):
            raise waiting.pop(0)

    return renew, asked


def test_nothing_begins_before_the_first_renewal() -> None:
    def refused() -> None:
        raise StaleLeaseError("given away")

    with pytest.raises(StaleLeaseError, match="given away"), kept(held(FakeClock()), refused, print):
        pytest.fail("it began")
    assert threads() == []


def test_a_lease_that_was_given_away_stops_the_run_as_failed() -> None:
    renew, _ = renewing(StaleLeaseError("given away"))
    trouble: list[str] = []
    with kept(held(SYSTEM_CLOCK, 0.3), renew, trouble.append) as hold:
        assert asked_to_stop(hold)
        with pytest.raises(StaleLeaseError, match="lease on task 1 is over"):
            hold.cancellation.check()
        with pytest.raises(StaleLeaseError):
            hold.check()
    assert trouble == ["The lease on task 1 was not renewed: given away"]
    assert threads() == []


def test_renewals_that_fail_stop_the_run_before_the_lease_is_over() -> None:
    renew, _ = renewing(*[ServiceConnectionError("away")] * 1000)
    with kept(held(SYSTEM_CLOCK, 0.5), renew, lambda _: None) as hold:
        assert asked_to_stop(hold)
        with pytest.raises(StaleLeaseError):
            hold.check()


def test_a_renewal_that_hangs_stops_the_run_too() -> None:
    answered = threading.Event()

    def renew() -> None:
        if threading.current_thread().name.startswith("necrocode-heartbeat"):
            answered.wait(WAIT_SECONDS)

    with kept(held(SYSTEM_CLOCK, 0.3), renew, print) as hold:
        assert asked_to_stop(hold)
    answered.set()
    for thread in threading.enumerate():
        if thread.name.startswith("necrocode-heartbeat"):
            thread.join(WAIT_SECONDS)


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    clock = FakeClock()

    def slow() -> None:
        clock.sleep(20)

    with kept(held(clock), slow, print) as hold:
        assert hold.seconds_left == 40


def test_a_machine_that_was_suspended_longer_than_the_lease_knows_it_by_itself() -> None:
    clock = JumpingClock()
    with kept(held(clock), lambda: None, print) as hold:
        clock.skipped += 61
        with pytest.raises(StaleLeaseError):
            hold.check()
        assert hold.cancellation.is_requested


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wall_clock_that_is_set_changes_nothing(hours: int) -> None:
    clock = JumpingClock()
    renew, asked = renewing()
    with kept(held(clock, 0.15), renew, print) as hold:
        clock.wall += timedelta(hours=hours)
        for _ in range(4):
            assert asked.acquire(timeout=WAIT_SECONDS)
        hold.check()
        assert not hold.cancellation.is_requested


def test_a_run_that_ends_is_not_told_that_its_lease_is_gone() -> None:
    begun, ended = threading.Event(), threading.Event()
    trouble: list[str] = []

    def renew() -> None:
        if threading.current_thread().name.startswith("necrocode-heartbeat"):
            begun.set()
            ended.wait(WAIT_SECONDS)
            raise StaleLeaseError("the task has ended")

    with kept(held(SYSTEM_CLOCK, 0.3), renew, trouble.append):
        begun.wait(WAIT_SECONDS)
    ended.set()
    for thread in threading.enumerate():
        if thread.name.startswith("necrocode-heartbeat"):
            thread.join(WAIT_SECONDS)
    assert trouble == []


def test_the_machines_monotonic_clock_goes_on_while_it_is_suspended() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= SYSTEM_CLOCK.monotonic() <= time.clock_gettime(time.CLOCK_BOOTTIME)
