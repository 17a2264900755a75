"""Calls that end when their run does.

The Protocols of services say nothing of deadlines. So the deadline of a run is known to all that its threads call, and
what must not hold it up is done on a thread that can be left behind.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Generic, TypeVar

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Deadline
from necrocode.agent_runner.errors import (
    RunnerError,
    RunnerTimeoutError,
    ServiceError,
    SlotAllocationError,
    WorkspacePreparationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

logger = logging.getLogger(__name__)

CLEAN_UP_SECONDS = 10.0
"""How long giving the slot back, storing the outputs and reporting may each take once a run was told to stop."""
GRACE_SECONDS = 0.5
"""How long what was told to stop is waited for; then it is left behind."""
_LONGEST_WAIT_SECONDS = 3600.0
_FOR_GOOD_SECONDS = 1e9
_WAITED_FOR = (ServiceError, SlotAllocationError, WorkspacePreparationError)

_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current_deadline() -> Deadline | None:
    """The deadline that this thread works under; None: nobody has set one."""
    return _current.get()


def is_over() -> bool:
    """Whether the time that this thread works under is over, or it is to stop."""
    deadline = current_deadline()
    return deadline is not None and (deadline.cancellation.is_requested or deadline.remaining_seconds() <= 0)


@contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Work under this deadline: services and git processes of this thread end with it, and with its cancellation."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def closing(deadline: Deadline) -> Iterator[Deadline]:
    """Work under another deadline than the run's, for what has to be done at its end however it ends.

    It has no end of its own while the run goes well. Once that is asked to stop, or its time is over, there are
    ``CLEAN_UP_SECONDS`` left: then what is under way ends with ``RunnerTimeoutError``.
    """
    own = Deadline(_FOR_GOOD_SECONDS, deadline.clock)
    told = f"The clean-up was given up after {CLEAN_UP_SECONDS:g} seconds."
    timer = threading.Timer(CLEAN_UP_SECONDS, own.cancellation.request, [told], {"kind": RunnerTimeoutError})
    timer.daemon = True

    def start() -> None:
        with suppress(RuntimeError):  # it runs already
            timer.start()

    with deadline.cancellation.calling(start), within(own):
        if deadline.remaining_seconds() <= 0:
            start()
        try:
            yield own
        finally:
            timer.cancel()


def outrun(deadline: Deadline, work: Callable[[], T], *, doing: str, undo: Callable[[T], None] | None = None) -> T:
    """What ``work`` returns or raises; but once the deadline is over, or the run asked to stop, it is not waited for.

    It is done on a thread of its own, within a deadline and a cancellation that end with these, and half a second later
    left behind: then ``RunCancelledError``, or ``RunnerTimeoutError``. ``undo`` is given what came too late.
    """
    inner = Deadline(deadline.check(doing), deadline.clock)
    call = _Call(work, undo)
    thread = threading.Thread(
        target=copy_context().run, args=(call.run, inner), name=f"necrocode-{doing.partition(' ')[0]}", daemon=True
    )

    def stop() -> None:
        inner.cancellation.take_over(deadline.cancellation)
        call.news.set()

    try:
        with deadline.cancellation.calling(stop):
            thread.start()
            call.wait_until_told(deadline)
            call.ended.wait(GRACE_SECONDS)
    except BaseException:  # Ctrl-C, in the caller's thread
        inner.cancellation.request("The call was interrupted.")
        call.ended.wait(GRACE_SECONDS)
        call.leave()
        raise
    if not call.ended.is_set():
        inner.cancellation.request("The call was given up.")
        call.leave()
        deadline.check(doing)
        raise RunnerTimeoutError(f"The task's {deadline.total_seconds:g} seconds were over before it could {doing}.")
    return call.outcome(deadline, doing)


def in_time(work: Callable[[], T], *, doing: str) -> T:
    """:func:`outrun` the deadline that this thread works under; without one, just ``work``."""
    deadline = current_deadline()
    return work() if deadline is None else outrun(deadline, work, doing=doing)


class _Call(Generic[T]):
    """One call on its own thread."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], None] | None) -> None:
        self._work = work
        self._undo = undo
        self._lock = threading.Lock()
        self._is_left = False
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.news = threading.Event()
        """It has ended, or is to end."""
        self.ended = threading.Event()

    def run(self, deadline: Deadline) -> None:
        """Do it, on the thread."""
        try:
            with within(deadline):
                result = self._work()
        except BaseException as error:  # noqa: BLE001  raised again where the call is waited for
            self._error = error
        else:
            with self._lock:
                self._results.append(result)
                is_late = self._is_left
            if is_late:
                self._undo_late()
        finally:
            self.ended.set()
            self.news.set()

    def wait_until_told(self, deadline: Deadline) -> None:
        """Until it has ended, or is to end, or the time is over."""
        left = deadline.remaining_seconds()
        while not self.news.wait(min(left, _LONGEST_WAIT_SECONDS)) and left > 0:
            left = deadline.remaining_seconds()

    def leave(self) -> None:
        """Nobody waits for the result any more."""
        with self._lock:
            self._is_left = True
            is_there = bool(self._results)
        if is_there:
            self._undo_late()

    def outcome(self, deadline: Deadline, doing: str) -> T:
        """The result, or what was raised; where the end of the run has caused that, this is said."""
        if self._error is None:
            return self._results[0]
        if isinstance(self._error, RunnerError):
            try:
                if isinstance(self._error, _WAITED_FOR):
                    deadline.check(doing)
                deadline.cancellation.check()
            except RunnerError as stop:
                raise stop from self._error
        raise self._error

    def _undo_late(self) -> None:
        if self._undo is None or not self._results:
            return
        late = Deadline(0.0, SYSTEM_CLOCK)
        try:
            with closing(late):
                self._undo(self._results.pop())
        except RunnerError as error:
            logger.warning("What came too late could not be undone: %s", error)
