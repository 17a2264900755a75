"""Bounds on one exchange with a server: the time of all of it, and the size of what comes back.

The timeouts of HTTP libraries count from one byte to the next, so an answer that drips, in its headers or in its body,
would never be late; and a few kilobytes of gzip can inflate to gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import zlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextvars import Token
    from types import TracebackType

    from necrocode.agent_runner._cancellation import Cancellation

_PIECE_BYTES = 1 << 16
_EITHER_HEADER = zlib.MAX_WBITS + 32  # zlib's manual: inflateInit2 finds out by itself whether it is gzip or zlib
_NO_HEADER = -zlib.MAX_WBITS
ACCEPTED_ENCODINGS = "gzip, deflate"
"""What is asked for: the encodings that :func:`inflated` knows."""


class AnswerTooLargeError(Exception):
    """A body went over its limit; reading was given up there."""


class UnreadableBodyError(Exception):
    """A body is not what its Content-Encoding says."""


class Exchange:
    """A time limit on everything that this thread does with the sockets it holds: when it is over, they are hung up on.

    Sockets know real time only, hence no passed-in clock here. The limit counts from :meth:`start`. Those who call
    :meth:`beat` may pause for no longer than ``idle_seconds`` from then on; None: as long as they like. It is over as
    soon as ``cancellation`` is requested, too.
    """

    def __init__(
        self, limit_seconds: float, *, idle_seconds: float | None = None, cancellation: Cancellation | None = None
    ) -> None:
        self._limit_seconds = limit_seconds
        self._idle_seconds = idle_seconds
        self._calling = contextlib.ExitStack()
        self._cancellation = cancellation
        self._ends_at = 0.0
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._token: Token[Exchange | None] | None = None
        self._is_started = self._is_left = False
        self.is_over = False
        self.was_idle = False
        """Whether a pause ended it, and not the limit on all of it."""

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        if self._cancellation is not None:
            self._calling.enter_context(self._cancellation.calling(self._hang_up))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        self._calling.close()
        _watch.leave(self)
        with self._lock:
            self._is_left = True
            while self._held:
                os.close(self._held.pop())

    def start(self) -> None:
        """Let the time run; nothing where it runs already."""
        if not self._is_started:
            self._is_started = True
            self._ends_at = time.monotonic() + self._limit_seconds
            _watch.enter(self, self._ends_at)

    def beat(self) -> None:
        """Something came: the time of a pause counts anew."""
        if self._idle_seconds is not None:
            _watch.enter(self, min(self._ends_at, time.monotonic() + self._idle_seconds))

    def hold(self, connection: socket.socket) -> None:
        """Hang up on this connection too when the time is over."""
        # A duplicate is hung up on, not the connection's own socket: that one may since have become part of a TLS
        # socket, whose shutdown would drop the state that the reading thread is using.
        handle = os.dup(connection.fileno())
        with self._lock:
            self._held.append(handle)
            if self.is_over:
                _hang_up(handle)

    def end(self) -> None:
        """The time is over, which means nothing any more to an exchange that has been left."""
        self._hang_up()
        self.was_idle = self.is_over and time.monotonic() < self._ends_at

    def _hang_up(self) -> None:
        with self._lock:
            self.is_over = not self._is_left
            for handle in self._held:
                _hang_up(handle)


class _Watch:
    """One thread that ends every exchange in its time: a timer for each would cost more than a small exchange does.

    The thread is there while it has something to wait for.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be as new, in a child process too, which has no thread of its parent's."""
        self._changed = threading.Condition(threading.Lock())
        self._ends: dict[Exchange, float] = {}
        self._wakes_at = 0.0
        self._is_awake = False

    def enter(self, exchange: Exchange, ends_at: float) -> None:
        """End the exchange at this time, and not at one that was said before."""
        with self._changed:
            self._ends[exchange] = ends_at
            if not self._is_awake:
                self._is_awake = True
                threading.Thread(target=self._run, name="necrocode-exchanges", daemon=True).start()
            elif ends_at < self._wakes_at:
                self._changed.notify()

    def leave(self, exchange: Exchange) -> None:
        """Do not end it any more. The thread is not woken for that, and finds out when it would have."""
        with self._changed:
            self._ends.pop(exchange, None)

    def _run(self) -> None:
        while (overdue := self._next()) is not None:
            for exchange in overdue:
                exchange.end()

    def _next(self) -> list[Exchange] | None:
        """The exchanges whose time is over, after waiting for the first; None when there are none left at all."""
        with self._changed:
            if not self._ends:
                self._is_awake = False
                return None
            self._wakes_at = min(self._ends.values())
            self._changed.wait(min(max(0.0, self._wakes_at - time.monotonic()), threading.TIMEOUT_MAX))
            now = time.monotonic()
            overdue = [exchange for exchange, ends_at in self._ends.items() if ends_at <= now]
            for exchange in overdue:
                del self._ends[exchange]
            return overdue


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.forget)
_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """The exchange that this thread is in."""
    return _current.get()


def _hang_up(handle: int) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself just now
        connection = socket.socket(fileno=handle)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()  # the handle is closed when the exchange is left


def inflated(chunks: Iterable[bytes], encoding: str, *, limit_bytes: int) -> Iterator[bytes]:
    """A body's pieces with its Content-Encoding undone, never more than a piece beyond the limit in memory.

    Raises :class:`AnswerTooLargeError` as soon as the body, as it comes or inflated, is larger than ``limit_bytes``,
    and :class:`UnreadableBodyError` for one that cannot be inflated.
    """
    named = encoding.strip().lower()
    within = limited(chunks, limit_bytes)
    if named in {"", "identity"}:
        yield from within
    elif named in {"gzip", "x-gzip", "deflate"}:
        yield from limited(_inflate(within), limit_bytes)
    else:
        raise UnreadableBodyError(f"the encoding {named[:40]!r} was not asked for")


def limited(chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    """The pieces as they come; :class:`AnswerTooLargeError` as soon as they are more than ``limit_bytes`` together."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit_bytes:
            raise AnswerTooLargeError(f"more than {limit_bytes} bytes")
        yield chunk


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The text of a gzip file of one or more members, or of a zlib stream with or without its header (RFC 9110)."""
    engine = zlib.decompressobj(_EITHER_HEADER)
    is_begun = is_whole = False
    for chunk in chunks:
        rest = chunk.lstrip(b"\0") if is_whole else chunk  # zeros may follow the last member
        while rest:
            try:
                piece = engine.decompress(rest, _PIECE_BYTES)
            except zlib.error as error:
                if is_begun:
                    raise UnreadableBodyError(str(error)) from error
                engine, is_begun = zlib.decompressobj(_NO_HEADER), True
                continue
            is_begun = True
            yield piece
            rest, is_whole = engine.unconsumed_tail, engine.eof
            if is_whole:
                rest, engine = engine.unused_data.lstrip(b"\0"), zlib.decompressobj(_EITHER_HEADER)
    if is_begun and not is_whole:
        raise UnreadableBodyError("it ends too early")
