"""What a running git is given and what it prints, in bounded time and memory: a remote can speak without end."""

from __future__ import annotations

import os
import selectors
import time
from typing import TYPE_CHECKING

from necrocode.agent_runner._process import HeadAndTail, ends_within

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from necrocode.agent_runner._cancellation import Cancellation

LOOK_SECONDS = 0.1
"""How often it is looked whether a running git is to stop."""
MOST_OUTPUT_BYTES = 512 << 20
"""The patch of a change, or the list of a tree's files, is far smaller."""
MOST_MESSAGE_BYTES = 1 << 18
_PIECE_BYTES = 1 << 16


class OutputTooLongError(Exception):
    """The process printed more than is taken."""


def communicate(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    seconds: float,
    cancellation: Cancellation,
    take: Callable[[bytes], None] | None = None,
) -> tuple[bytes, bytes]:
    """Standard output and error of the process, once it has ended; of the latter, the beginning and the end.

    Where ``take`` is given, each piece of output is handed to it instead of being kept.

    ``TimeoutError`` when the time is over, :class:`OutputTooLongError`, and ``RunCancelledError``.
    """
    end = time.monotonic() + seconds
    pipes = _Pipes(process, stdin, take)
    with selectors.DefaultSelector() as selector:
        pipes.register(selector)
        while selector.get_map():
            for key, _ in selector.select(_pause(end, cancellation)):
                if not pipes.serve(key.fd):
                    selector.unregister(key.fd)
                    pipes.end(key.fd)
    while not ends_within(process, _pause(end, cancellation)):
        pass
    return bytes(pipes.output), pipes.messages.content()


def _pause(end: float, cancellation: Cancellation) -> float:
    cancellation.check()
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, LOOK_SECONDS)


class _Pipes:
    """The three streams of a process."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, take: Callable[[bytes], None] | None) -> None:
        assert process.stdin is not None  # noqa: S101  start() asks for pipes
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._in, self._out, self._err = process.stdin.fileno(), process.stdout.fileno(), process.stderr.fileno()
        self._close_input = process.stdin.close
        self._left = memoryview(stdin)
        self._take = take or self._keep
        self.output = bytearray()
        self.messages = HeadAndTail(MOST_MESSAGE_BYTES)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have the selector tell what can be served."""
        if self._left:
            os.set_blocking(self._in, False)
            selector.register(self._in, selectors.EVENT_WRITE)
        else:
            self.end(self._in)
        selector.register(self._out, selectors.EVENT_READ)
        selector.register(self._err, selectors.EVENT_READ)

    def serve(self, descriptor: int) -> bool:
        """Read or write a piece; whether there may be more."""
        if descriptor == self._in:
            return self._write()
        piece = os.read(descriptor, _PIECE_BYTES)
        if descriptor == self._err:
            self.messages.write(piece)
        else:
            self._take(piece)
        return bool(piece)

    def _keep(self, piece: bytes) -> None:
        self.output += piece
        if len(self.output) > MOST_OUTPUT_BYTES:
            raise OutputTooLongError(f"it printed more than {MOST_OUTPUT_BYTES} bytes.")

    def _write(self) -> bool:
        try:
            self._left = self._left[os.write(self._in, self._left[:_PIECE_BYTES]) :]
        except BrokenPipeError:  # it has heard enough
            self._left = self._left[:0]
        return bool(self._left)

    def end(self, descriptor: int) -> None:
        """Nothing more is read or written there; the process is told of the end of its input."""
        if descriptor == self._in:
            self._close_input()
