"""Bounds on one exchange with a server: the time of all of it, and the size of what comes back.

The timeouts of HTTP libraries count from one byte to the next, so an answer that drips, in its headers or in its body,
would never be late; and a few kilobytes of gzip can inflate to gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import zlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextvars import Token
    from types import TracebackType

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

    Sockets know real time only, hence no passed-in clock here. The limit counts from :meth:`start`.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._watch = threading.Timer(limit_seconds, self._end)
        self._watch.daemon = True
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []
        self._token: Token[Exchange | None] | None = None
        self._is_left = False
        self.is_over = False

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        self._watch.cancel()
        with self._lock:
            self._is_left = True
            while self._held:
                self._held.pop().close()

    def start(self) -> None:
        """Let the time run; nothing where it runs already."""
        if self._watch.ident is None:
            self._watch.start()

    def hold(self, connection: socket.socket) -> None:
        """Hang up on this connection too when the time is over."""
        # A duplicate is hung up on, not the connection's own socket: that one may since have become part of a TLS
        # socket, whose shutdown would drop the state that the reading thread is using.
        handle = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._held.append(handle)
            if self.is_over:
                _hang_up(handle)

    def _end(self) -> None:
        with self._lock:
            self.is_over = not self._is_left
            for handle in self._held:
                _hang_up(handle)


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """The exchange that this thread is in."""
    return _current.get()


def _hang_up(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself just now
        handle.shutdown(socket.SHUT_RDWR)


def inflated(chunks: Iterable[bytes], encoding: str, *, limit_bytes: int) -> Iterator[bytes]:
    """A body's pieces with its Content-Encoding undone, never more than a piece beyond the limit in memory.

    Raises :class:`AnswerTooLargeError` as soon as the body, as it comes or inflated, is larger than ``limit_bytes``,
    and :class:`UnreadableBodyError` for one that cannot be inflated.
    """
    named = encoding.strip().lower()
    limited = _limited(chunks, limit_bytes)
    if named in {"", "identity"}:
        yield from limited
    elif named in {"gzip", "x-gzip", "deflate"}:
        yield from _limited(_inflate(limited), limit_bytes)
    else:
        raise UnreadableBodyError(f"the encoding {named[:40]!r} was not asked for")


def _limited(chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
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
