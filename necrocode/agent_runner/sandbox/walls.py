"""What confines a command from within its namespaces: sandlock, or bwrap."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from necrocode.agent_runner.sandbox.request import Request

_SHELL_SIGNAL = 128  # bwrap, as shells do, tells a signal as 128 and its number
_WRITABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")
_READABLE_DEVICES = ("/dev/random", "/dev/urandom")


def start_sandlock(request: Request) -> int:
    """Run the command under sandlock; its exit code, negative for a signal."""
    from sandlock import ExitReason, Protection, Sandbox, StdioMode  # noqa: PLC0415  the launcher has loaded it before

    devices = _WRITABLE_DEVICES
    if request.has_own_root:
        devices = (*devices, "/dev/shm", "/dev/pts")  # noqa: S108  of the command's own
        readable: tuple[str, ...] = ("/",)
    else:
        readable = (*request.readable, "/proc", *_READABLE_DEVICES)
    # What an older kernel cannot hold back is held by the namespaces, if there are any.
    spared = (Protection.SIGNAL_SCOPE, Protection.ABSTRACT_UNIX_SOCKET_SCOPE, Protection.NET_TCP)
    has_any_network = request.has_network or request.has_own_root
    sandbox = Sandbox(
        fs_readable=[path for path in readable if os.path.exists(path)],
        fs_writable=[*request.writable, *(request.temporary and ("/tmp", "/var/tmp")), *(path for path in devices if os.path.exists(path))],
        net_deny=["0.0.0.0/32:1"] if has_any_network else [],
        net_allow_bind=["*"] if has_any_network else [],
        cwd=request.folder,
        allow_degraded=list(spared) if request.has_own_root else [],
    )
    with sandbox.popen(request.argv, StdioMode.INHERIT, StdioMode.INHERIT, StdioMode.INHERIT) as process:
        result = process.wait()
    if result.error is not None:
        raise OSError(f"sandlock: {result.error}")
    if result.reason is ExitReason.KILLED:
        return -signal.SIGKILL
    return -result.signal if result.reason is ExitReason.SIGNALED else result.exit_code


def start_bwrap(request: Request) -> int:
    """Run the command under bwrap; its exit code, negative for a signal."""
    process = os.posix_spawn(request.bwrap, [request.bwrap, *bwrap_options(request), "--", *request.argv], os.environ)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    return _SHELL_SIGNAL - code if _SHELL_SIGNAL < code <= _SHELL_SIGNAL + signal.SIGRTMAX else code


def bwrap_options(request: Request) -> list[str]:
    """All that bwrap is told of a request."""
    options = [
        "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        *(() if request.has_network else ("--unshare-net",)),
        "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox",
    ]  # fmt: skip
    for path in request.temporary and ("/tmp", "/var/tmp"):  # noqa: S108  they are the command's own
        options += ["--bind", request.temporary, path]
    for path in request.writable:
        options += ["--bind", path, path]
    for path in request.readable:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    for path, source in request.replaced.items():
        options += ["--ro-bind", path if request.has_own_root else source, path]
    options += ["--proc", "/proc", "--dev", "/dev", "--size", str(request.shared_memory_bytes), "--tmpfs", "/dev/shm"]  # noqa: S108
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", request.folder]
