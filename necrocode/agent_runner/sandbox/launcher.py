"""The process that starts confined commands: small, with an empty environment, and forking a child for each.

The runner cannot do this itself: it has threads, and secrets in its memory and environment. The runner starts this
one with a socket, and sends over it, for each command, a socket of the command's own and the pipe for its output. On
its own socket a command's child says, a JSON object a line, ``pid`` (the top of the process tree) and then either
``exit`` or ``error``, and hands over a clock of its processor time where there is one; when it closes the socket, no
process of the command is left. The runner ends a command by closing its side, which happens too when the runner dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from necrocode.agent_runner.sandbox import kernel, syscalls
from necrocode.agent_runner.sandbox.request import Request
from necrocode.agent_runner.sandbox.room import enter_room, leave_namespaces
from necrocode.agent_runner.sandbox.walls import exec_bwrap, exec_landlocked, exit_code_of, run_supervised

if TYPE_CHECKING:
    from collections.abc import Callable

OWN_PROCESSES = 32
"""How many processes and threads the confinement itself may need besides the command's."""
_MAX_REQUEST_BYTES = 4 * 1024 * 1024


def serve(control: socket.socket) -> None:
    """Start commands until the runner closes its side."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    syscalls.leave_keyring()
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        for handle in handles:  # a command that got the socket could tell an exit code of its own choice
            os.set_inheritable(handle, False)
        if os.fork() == 0:
            control.close()
            with socket.socket(fileno=handles[0]) as told:
                _start(told, handles[1])
            os._exit(0)
        for handle in handles:
            os.close(handle)


def _start(told: socket.socket, output: int) -> None:
    """In the command's own child: prepare, start, wait, and leave nothing behind."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        kernel.adopt_orphans()
        request = Request.from_json(_received(told))
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        if request.has_own_root:
            leave_namespaces(request)
        first = os.fork()
        if first == 0:
            _guarded(told, lambda: _first_process(request, told))
        _tell(told, pid=first)
        for handle in (1, 2):
            os.dup2(0, handle)
        _wait(first, told)
    except Exception as error:  # noqa: BLE001  whatever it is, the runner has to hear of it
        _tell(told, error=_text(error))


def _first_process(request: Request, told: socket.socket) -> None:
    """The top of the command's process tree: in its process namespace it has the number 1, and reaps what is left."""
    kernel.die_with_parent()
    has_segments = False
    if request.has_own_root:
        enter_room(request)
        has_segments = kernel.bound_messages_and_segments(request.shared_memory_bytes)
    else:
        os.chdir(request.layer)
    if request.user is not None:
        kernel.become(*request.user)
        kernel.die_with_parent()
    kernel.set_openness(is_open=True)  # sandlock's supervisor takes a handle out of its child
    if request.has_own_root and request.wall == "sandlock":
        kernel.forbid_user_namespaces()
    kernel.give_up_gains()
    _limit(request)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request.environment)
    _hand_over_clock(told)
    command = os.fork()
    if command == 0:
        _guarded(told, lambda: _become_command(request, told, has_segments=has_segments))
    kernel.set_openness(is_open=False)
    while True:
        ended, status = os.wait()
        if ended == command:
            if request.has_own_root or request.wall == "bwrap":
                _tell(told, exit=exit_code_of(status, request))
            os._exit(0)


def _become_command(request: Request, told: socket.socket, *, has_segments: bool) -> None:
    if request.has_own_root or request.wall == "bwrap":  # sandlock's supervisor refuses the like itself
        syscalls.refuse_calls(has_segments=has_segments)
    if request.wall == "bwrap":
        kernel.leave_abstract_sockets()
        exec_bwrap(request)
    if request.has_own_root:
        exec_landlocked(request)
    _tell(told, exit=run_supervised(request))


def _hand_over_clock(told: socket.socket) -> None:
    clock = syscalls.count_processor_time()
    if clock is not None:
        with suppress(OSError):  # the runner has gone
            socket.send_fds(told, [b"{}\n"], [clock])
        os.close(clock)


def _limit(request: Request) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, request.max_processes + OWN_PROCESSES),
        (resource.RLIMIT_FSIZE, request.max_file_bytes),
    ):
        _, hard = resource.getrlimit(kind)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lower, lower))


def _wait(first: int, told: socket.socket) -> None:
    """Until the tree's top has ended, or the runner wants it to end; then nothing below is left either."""
    handle = os.pidfd_open(first)
    try:
        watch = select.poll()
        watch.register(handle, select.POLLIN)
        watch.register(told, select.POLLIN | select.POLLRDHUP)
        watch.poll()
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
    while True:
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _guarded(told: socket.socket, work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked child, and never return into its parent's code."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001
        _tell(told, error=_text(error))
    finally:
        os._exit(0)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _tell(told: socket.socket, **what: object) -> None:
    with suppress(OSError):  # the runner has gone
        told.sendall(json.dumps(what).encode() + b"\n")


def _received(told: socket.socket) -> bytes:
    content = bytearray()
    while not content.endswith(b"\n"):
        chunk = told.recv(65_536)
        if not chunk or len(content) > _MAX_REQUEST_BYTES:
            raise OSError("the request is not whole")
        content += chunk
    return bytes(content)


if __name__ == "__main__":
    ctypes.CDLL(None)
    serve(socket.socket(fileno=int(sys.argv[1])))
