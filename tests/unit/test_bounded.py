"""Calls that end when their run does."""

from __future__ import annotations

import threading
import time

import pytest

from necrocode.agent_runner import (
    RunCancelledError,
    RunnerTimeoutError,
    ServiceConnectionError,
    StaleLeaseError,
    _bounded,
)
from necrocode.agent_runner._bounded import closing, current_deadline, in_time, outrun, within
from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._clock import Deadline, pause
from tests.support.clocks import FakeClock

SOON_SECONDS = 5.0


def waits_for(release: threading.Event, answer: str = "late") -> str:
    release.wait(60)
    return answer


def test_a_call_gives_what_the_work_gives() -> None:
    assert outrun(Deadline(60), lambda: "answer", doing="ask") == "answer"
    with pytest.raises(ZeroDivisionError):
        outrun(Deadline(60), lambda: 1 / 0, doing="ask")
    with pytest.raises(KeyboardInterrupt):  # what code in tests, or a signal handler of the caller's, raises there
        outrun(Deadline(60), interrupting, doing="ask")


def interrupting() -> None:
    raise KeyboardInterrupt


def test_the_work_is_under_a_deadline_that_ends_with_the_callers() -> None:
    deadline = Deadline(60)
    with within(deadline):
        inner = in_time(current_deadline, doing="look")
    assert inner is not None
    assert inner is not deadline
    assert 50 < inner.remaining_seconds() <= 60
    assert in_time(current_deadline, doing="look") is None


def test_what_comes_too_late_is_undone() -> None:
    release, undone, deadline = threading.Event(), threading.Event(), Deadline(60)
    seen: list[object] = []

    def undo(answer: str) -> None:
        seen.extend([answer, current_deadline() is not None])
        undone.set()

    threading.Timer(0.05, deadline.cancellation.request, ["Somebody asked."]).start()
    began = time.monotonic()
    with pytest.raises(RunCancelledError, match="Somebody asked"):
        outrun(deadline, lambda: waits_for(release), doing="ask", undo=undo)
    assert time.monotonic() - began < SOON_SECONDS
    assert not undone.is_set()
    release.set()
    assert undone.wait(60)
    assert seen == ["late", True]


def test_what_comes_in_time_is_taken_even_if_the_run_is_to_stop() -> None:
    deadline = Deadline(60)

    def work() -> str:
        deadline.cancellation.request("Somebody asked.")
        return "answer"

    assert outrun(deadline, work, doing="ask") == "answer"


def test_an_error_that_the_end_has_caused_tells_of_the_end() -> None:
    deadline = Deadline(60)

    def broken() -> None:
        deadline.cancellation.request("The lease is lost.", kind=StaleLeaseError)
        raise ServiceConnectionError("the connection broke")

    with pytest.raises(StaleLeaseError, match="The lease is lost") as caught:
        outrun(deadline, broken, doing="ask")
    assert isinstance(caught.value.__cause__, ServiceConnectionError)


def test_at_the_deadline_the_work_is_left_behind() -> None:
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(RunnerTimeoutError, match=r"0\.1 seconds"):
        outrun(Deadline(0.1), lambda: waits_for(release), doing="ask")
    assert time.monotonic() - began < SOON_SECONDS
    release.set()


def test_a_clean_up_has_no_end_while_the_run_goes_well_and_one_once_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_bounded, "CLEAN_UP_SECONDS", 0.1)
    release, deadline = threading.Event(), Deadline(60)
    with closing(deadline) as end:
        assert current_deadline() is end
        assert not end.cancellation.wait(0.3)
        deadline.cancellation.request("Somebody asked.")
        assert not end.cancellation.is_requested
        with pytest.raises(RunnerTimeoutError, match="given up"):
            in_time(lambda: waits_for(release), doing="store")
    release.set()
    with closing(Deadline(0)) as end:
        assert end.cancellation.wait(60)


def test_a_callback_is_called_once_and_never_after_its_block() -> None:
    token, calls = Cancellation(), []
    with token.calling(lambda: calls.append("left")):
        pass
    with token.calling(lambda: calls.append("waiting")):
        token.request("First.")
        token.request("Second.")
    with token.calling(lambda: calls.append("late")):
        pass
    assert calls == ["waiting", "late"]
    assert token.reason == "First."


def test_a_block_is_not_left_while_its_callback_is_being_called() -> None:
    """What the callback uses is closed after the block."""
    token, is_called, go_on = Cancellation(), threading.Event(), threading.Event()
    order: list[str] = []

    def callback() -> None:
        is_called.set()
        go_on.wait(60)
        order.append("called")

    asking = threading.Thread(target=token.request, args=("Somebody asked.",))
    with token.calling(callback):
        asking.start()
        assert is_called.wait(60)
        threading.Timer(0.05, go_on.set).start()
    order.append("left")
    asking.join()
    assert order == ["called", "left"]


def test_a_pause_ends_when_somebody_asks_and_a_clock_without_one_sleeps_it_out() -> None:
    deadline, clock = Deadline(60), FakeClock()
    threading.Timer(0.05, deadline.cancellation.request, ["Somebody asked."]).start()
    began = time.monotonic()
    with pytest.raises(RunCancelledError):
        deadline.pause(60)
    assert time.monotonic() - began < SOON_SECONDS
    pause(clock, 3.0, Cancellation())
    assert clock.sleeps == [3.0]


def test_a_sooner_deadline_ends_with_the_later_one_and_its_cancellation() -> None:
    clock = FakeClock()
    deadline = Deadline(10, clock)
    assert (deadline.sooner(3).remaining_seconds(), deadline.sooner(30).remaining_seconds()) == (3, 10)
    assert deadline.sooner(3).cancellation is deadline.cancellation
