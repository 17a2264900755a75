"""The runner's side of the launcher: one process of it for this one, started at first use and whenever it is gone."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from necrocode.agent_runner.errors import TestExecutionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner.sandbox.request import Request

_START_SECONDS = 20.0  # of a machine under load; it takes milliseconds
_END_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_LAST_WORDS_BYTES = 500
# sandlock looks for a home folder while it is loaded: a user without an entry in passwd has none but by the variable.
_MAIN = """\
import os, socket, sys
sys.path += sys.argv[2:]
os.environ["HOME"] = "/"
if sys.argv[3:]:
    import sandlock
from necrocode.agent_runner.sandbox.launcher import serve
serve(socket.socket(fileno=int(sys.argv[1])))
"""


class Started:
    """A confined command that runs. ``ended`` becomes readable when there is news of it."""

    pid = 0
    """The top of the command's process tree, once it has started."""

    def __init__(self, told: socket.socket, output: IO[bytes], launcher_said: IO[bytes]) -> None:
        self._told = told
        self._launcher_said = launcher_said
        self._received = b""
        self._news: dict[str, Any] = {}
        self._is_over = False
        self._clock: int | None = None
        self.output = output

        self.ended: int | None = told.fileno()

    @property
    def exit_code(self) -> int | None:
        """Once it has ended: the command's; None when it was stopped before it had one."""
        return self._news.get("exit")

    def processor_seconds(self) -> float:
        """What all its processes have used, those too that nobody waited for; 0 where the machine does not tell."""
        return 0.0 if self._clock is None else int.from_bytes(os.read(self._clock, 8), sys.byteorder) / 1e9

    def close(self) -> None:
        """Give back what it holds."""
        if self._clock is not None:
            os.close(self._clock)
            self._clock = None

    def wait_for_start(self, cancellation: Cancellation) -> None:
        """Wait until it has a process; ``TestExecutionError`` if there is none, ``RunCancelledError``."""
        until = time.monotonic() + _START_SECONDS
        while "pid" not in self._news:
            left = until - time.monotonic()
            if left <= 0 or self._is_over:
                raise TestExecutionError(self._trouble("it does not start"))
            self._listen(min(left, _LOOK_SECONDS))
            cancellation.check()
        self.pid = self._news["pid"]

    def has_ended(self) -> bool:
        """Whether it has, and nothing of it is left."""
        self._listen(0)
        return self._is_over

    def stop(self) -> None:
        """End it and all that belongs to it; harmless when it has ended. ``TestExecutionError`` when it goes on."""
        self.kill()
        until = time.monotonic() + _END_SECONDS
        while not self._is_over:
            left = until - time.monotonic()
            if left <= 0:
                raise TestExecutionError("A confined test command cannot be stopped: its processes go on.")
            self._listen(left)

    def kill(self) -> None:
        """Have it end, from any thread: the launcher sees to it."""
        with suppress(OSError):
            self._told.shutdown(socket.SHUT_WR)

    def check_confined(self) -> None:
        """``TestExecutionError`` unless the command ended as one that had been confined and started."""
        if "error" in self._news or "exit" not in self._news:
            raise TestExecutionError(self._trouble("it ended without an exit code"))

    def _trouble(self, otherwise: str) -> str:
        why = self._news.get("error") or f"{otherwise}{_last_words(self._launcher_said)}"
        return f"The test command cannot be confined: {why}."

    def _listen(self, seconds: float) -> None:
        """Take in what has been said."""
        if self._is_over or not select.select([self._told], [], [], seconds)[0]:
            return
        try:
            chunk, clocks, _, _ = socket.recv_fds(self._told, 65_536, 1)
        except ConnectionError:
            chunk, clocks = b"", []
        for clock in clocks:
            os.set_inheritable(clock, False)
            self._clock = clock
        self._is_over = not chunk
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            self._news |= json.loads(line)


class Launcher:
    """Starts confined commands; several threads may do so at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._owner = 0
        self._with_sandlock = False
        atexit.register(self.close)

    @contextmanager
    def start(self, request: Request) -> Iterator[Started]:
        """Start a command; at the end of the block it has ended. Raises ``TestExecutionError``."""
        ours, theirs = socket.socketpair()
        reads, writes = os.pipe()
        with ours, open(reads, "rb", buffering=0) as output:
            try:
                said = self._send([theirs.fileno(), writes], needs_sandlock=request.wall == "sandlock")
            finally:
                theirs.close()
                os.close(writes)
            started = Started(ours, output, said)
            try:
                ours.sendall(request.to_json() + b"\n")
                yield started
            except (BrokenPipeError, ConnectionResetError) as error:
                reason = f"{error}{_last_words(said)}"
                raise TestExecutionError(f"The test command cannot be confined: {reason}.") from error
            finally:
                with closing(started):
                    started.stop()

    def close(self) -> None:
        """End the launcher, and with it whatever still runs."""
        with self._lock:
            control, process, said = self._control, self._process, self._said
            is_ours = self._owner == os.getpid()
            self._control = self._process = self._said = None
            self._with_sandlock = False  # one that could not load it is of no use to bwrap either
            for opened in (control, said):
                if opened is not None:
                    opened.close()
            if process is not None and is_ours:
                process.wait()

    def _send(self, handles: list[int], *, needs_sandlock: bool) -> IO[bytes]:
        """Hand them to the launcher; where it says what goes wrong with itself."""
        try:
            return self._sent(handles, needs_sandlock=needs_sandlock)
        except TestExecutionError:
            self.close()  # it was killed: another is started
            return self._sent(handles, needs_sandlock=needs_sandlock)

    def _sent(self, handles: list[int], *, needs_sandlock: bool) -> IO[bytes]:
        control, said = self._opened(needs_sandlock=needs_sandlock)
        try:
            socket.send_fds(control, [b"."], handles)
        except OSError as error:
            reason = f"{error}{_last_words(said)}"
            raise TestExecutionError(f"Test commands cannot be started: {reason}.") from error
        return said

    def _opened(self, *, needs_sandlock: bool) -> tuple[socket.socket, IO[bytes]]:
        if self._owner != os.getpid() or (needs_sandlock and not self._with_sandlock):
            self.close()
        with self._lock:
            if self._control is None or self._said is None:
                self._with_sandlock = needs_sandlock
                self._control, self._process, self._said = _start_launcher(with_sandlock=self._with_sandlock)
                self._owner = os.getpid()
            return self._control, self._said


LAUNCHER = Launcher()
"""The one of this process."""


def _last_words(said: IO[bytes]) -> str:
    """The last line that a launcher said before it ended, with a colon before it; empty: it said nothing."""
    with suppress(OSError, ValueError):  # another thread has closed it
        size = os.fstat(said.fileno()).st_size
        text = os.pread(said.fileno(), _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f": {lines[-1].removesuffix('.')}" if lines else ""
    return ""


def _start_launcher(*, with_sandlock: bool) -> tuple[socket.socket, subprocess.Popen[bytes], IO[bytes]]:
    folders = [str(Path(__file__).parents[3])]
    if with_sandlock:
        found = find_spec("sandlock")
        if found is None or found.origin is None:
            raise TestExecutionError("sandlock is not installed any more.")
        folders.append(str(Path(found.origin).parents[1]))
    said = open(os.memfd_create("said"), "rb", buffering=0)  # noqa: SIM115  the launcher's own lifetime
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-I", "-S", "-c", _MAIN, str(theirs.fileno()), *folders],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            cwd="/",
        )
    return ours, process, said
