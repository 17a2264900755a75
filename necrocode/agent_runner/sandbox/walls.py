"""What confines a command from within its namespaces: sandlock, or bwrap."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from necrocode.agent_runner.sandbox.visible import HOST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from necrocode.agent_runner.sandbox.request import Request

_SHELL_SIGNAL = 128
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom")
_OWN_DEVICES = ("/dev/shm", "/dev/pts")  # noqa: S108  mounted for the command


def run_supervised(request: Request) -> int:
    """Run the command under sandlock's supervisor, which sees its system calls; the exit code, negative for a signal.

    For machines without namespaces: the supervisor holds what these would. It costs a tenth of a millisecond or so for
    every file that is looked at, and no local socket can be connected to.
    """
    from sandlock import ExitReason, Sandbox, StdioMode  # noqa: PLC0415  the launcher has loaded it before

    sandbox = Sandbox(
        fs_readable=_existing((*request.readable, *_DEVICES, "/proc")),
        fs_writable=_existing((*request.writable, *_DEVICES)),
        net_allow=["*:*"] if request.has_network else [],
        net_allow_bind=["*"] if request.has_network else [],
        cwd=request.folder,
    )
    with sandbox.popen(request.argv, StdioMode.INHERIT, StdioMode.INHERIT, StdioMode.INHERIT) as process:
        result = process.wait()
    if result.error is not None:
        raise OSError(f"sandlock: {result.error}")
    if result.reason is ExitReason.KILLED:
        return -signal.SIGKILL
    code: int = -result.signal if result.reason is ExitReason.SIGNALED else result.exit_code
    return code


def exec_landlocked(request: Request) -> NoReturn:
    """Become the command, held by Landlock to the room's writable folders; the room's namespaces hold the rest."""
    from sandlock import Protection, Sandbox, confine  # noqa: PLC0415  the launcher has loaded it before

    temporary = request.temporary and ("/tmp", "/var/tmp")  # noqa: S108  they are the command's own
    # What an older kernel's Landlock cannot hold, the namespaces do.
    spared = (Protection.SIGNAL_SCOPE, Protection.ABSTRACT_UNIX_SOCKET_SCOPE, Protection.NET_TCP)
    confine(
        Sandbox(
            fs_readable=["/"],
            fs_writable=_existing((*request.seen_writable, *temporary, *_DEVICES, *_OWN_DEVICES)),
            allow_degraded=[*spared, Protection.FS_IOCTL_DEV, Protection.FS_TRUNCATE, Protection.FS_REFER],
        )
    )
    os.execvp(request.argv[0], request.argv)  # noqa: S606  the command, in its confinement


def exec_bwrap(request: Request) -> NoReturn:
    """Become bwrap, which runs the command."""
    os.execv(request.bwrap, [request.bwrap, *bwrap_options(request), "--", *request.argv])  # noqa: S606  as above


def exit_code_of(status: int, request: Request) -> int:
    """From what the system says of the process that was made for a command; negative for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code_without_shell(code) if request.wall == "bwrap" else code


def code_without_shell(code: int) -> int:
    """Negative for a signal that a shell, or who does as shells do, tells as 128 and its number."""
    return _SHELL_SIGNAL - code if _SHELL_SIGNAL < code <= _SHELL_SIGNAL + signal.SIGRTMAX else code


def _existing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]


def bwrap_options(request: Request) -> list[str]:
    """All that bwrap is told of a request."""
    options = [
        "--unshare-user", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try",
        *(() if request.has_own_root else ("--unshare-ipc",)),  # who has a root has left it before
        *(() if request.has_own_root or request.has_network else ("--unshare-net",)),
        "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", HOST_NAME,
    ]  # fmt: skip
    # A room shows what it should already, and as it should; without one bwrap makes it.
    options += ["--bind", "/", "/"] if request.has_own_root else _shown(request)
    options += ["--proc", "/proc", "--dev", "/dev", "--size", str(request.shared_memory_bytes), "--tmpfs", "/dev/shm"]  # noqa: S108
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", request.folder]


def _shown(request: Request) -> list[str]:
    options: list[str] = []
    for path in request.temporary and ("/tmp", "/var/tmp"):  # noqa: S108  they are the command's own
        options += ["--bind", request.temporary, path]
    for path, seen in zip(request.writable, request.seen_writable, strict=True):
        options += ["--bind", path, seen]
    for path in request.readable:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    for path, source in request.replaced.items():
        options += ["--ro-bind", source, path]
    return options
