"""The Linux calls that Python has no function for: namespaces, mounts, process controls.

Numbers and structures: Linux 5.12 and later, ``include/uapi/linux/{mount,sched,prctl}.h``. The system call numbers used
here are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_NAMESPACES = {
    "mount": 0x00020000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 4096, 8192, 16384, 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_IDMAP = 0x1, 0x2, 0x4, 0x00100000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_RULESET_VERSION, _SCOPE_ABSTRACT_UNIX_SOCKET, _FIRST_WITH_SCOPES = 1, 1, 6

_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _LandlockRules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def unshare(*kinds: str) -> None:
    """Leave these namespaces for new ones; ``pid`` holds for later children alone."""
    flags = 0
    for kind in kinds:
        flags |= NEW_NAMESPACES[kind]
    _checked(_libc.unshare(flags), f"making namespaces ({', '.join(kinds)})")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """``mount(2)``."""
    encoded = (os.fsencode(source), os.fsencode(target), os.fsencode(kind) or None)
    result = _libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options) or None)
    _checked(result, f"mounting {kind or source} at {target}")


def restrict_mount(path: str, attributes: int, *, is_whole_tree: bool) -> None:
    """Add ``ATTR_...`` to the mount at ``path``, and to those below it if asked."""
    _set_attributes(_AT_FDCWD, path, _MountAttr(attributes, 0, 0, 0), _AT_RECURSIVE if is_whole_tree else 0)


def bind_with_owner(source: str, target: str, owner: tuple[int, int], new_owner: tuple[int, int]) -> None:
    """Bind ``source`` to ``target``, where what ``owner`` (user, group) owns shows as owned by ``new_owner``."""
    tree = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    _checked(tree, f"cloning the mount of {source}")
    try:
        with _user_namespace(owner, new_owner) as namespace:
            attributes = _MountAttr(ATTR_IDMAP, 0, 0, namespace)
            _set_attributes(tree, "", attributes, _AT_EMPTY_PATH)
        moved = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(moved, f"mounting {source} at {target}")
    finally:
        os.close(tree)


@contextmanager
def _user_namespace(inside: tuple[int, int], outside: tuple[int, int]) -> Iterator[int]:
    """An open user namespace that maps one user and one group; the child that makes it ends with it."""
    ready, told = os.pipe()
    waits, holds = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            os.close(holds)
            unshare("user")
            os.write(told, b".")
            os.read(waits, 1)  # until the parent closes its end, or dies
        os._exit(0)
    os.close(told)
    os.close(waits)
    try:
        if not os.read(ready, 1):
            raise OSError("no user namespace can be made")
        for name, within, without in zip(("uid_map", "gid_map"), inside, outside, strict=True):
            Path(f"/proc/{child}/{name}").write_text(f"{within} {without} 1\n")
        handle = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield handle
        finally:
            os.close(handle)
    finally:
        os.close(ready)
        os.close(holds)
        os.waitpid(child, 0)


def unshare_as_self(*kinds: str) -> None:
    """Leave these namespaces and the user namespace, and keep one's user and group id, with all rights in there."""
    ids = (os.getuid(), os.getgid())
    unshare("user", *kinds)
    _map_ids(*ids)


def _map_ids(user: int, group: int) -> None:
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1\n")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1\n")
    except OSError as error:
        raise OSError(error.errno, f"the ids of the new user namespace cannot be set: {error.strerror}") from error


def forbid_user_namespaces() -> None:
    """Let this process and its children make no user namespaces, in which they would have rights again.

    For that it moves to one itself, unless it has one already. Where it may not, its children may not either.
    """
    if not _has_all_rights():
        ids = (os.getuid(), os.getgid())
        try:
            unshare("user")
        except OSError:
            return
        _map_ids(*ids)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def _has_all_rights() -> bool:
    """Whether this process has capabilities, which it then has in a user namespace of its own."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16) != 0


def become(user: int, group: int) -> None:
    """Be another user for good, in no group but ``group``; what root could do is lost."""
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def start_loopback() -> None:
    """Bring up the loopback device of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def adopt_orphans() -> None:
    """Become the parent of those among one's descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "adopting orphans")


def die_with_parent() -> None:
    """Be killed when the thread that made this process ends; undone by a change of user."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "being ended with the parent")


def set_openness(*, is_open: bool) -> None:
    """Whether processes of the same user may look into this one and its later children; reset by a change of user."""
    _prctl(_PR_SET_DUMPABLE, int(is_open), "hiding")


def give_up_gains() -> None:
    """Let no program that is executed give more rights than this process has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "giving up setuid programs")


def filter_calls(program: bytes) -> None:
    """Put a filter, in the words of BPF, before all further system calls; needs :func:`give_up_gains`."""
    filters = _FilterProgram(len(program) // 8, program)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(filters), 0, 0), "filtering system calls")


def can_leave_abstract_sockets() -> bool:
    """Whether Landlock is there, and new enough for it."""
    version: int = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    return version >= _FIRST_WITH_SCOPES


def leave_abstract_sockets() -> None:
    """Connect to no abstract Unix socket but those made from here on; Linux 6.12 or later, before it does nothing.

    Needs :func:`give_up_gains`. It forbids nothing else: mounts are still possible.
    """
    if not can_leave_abstract_sockets():
        return
    rules = _LandlockRules(0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET)
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    handle = call(_LANDLOCK_CREATE_RULESET, ctypes.byref(rules), size, 0, what="making rules of Landlock")
    try:
        call(_LANDLOCK_RESTRICT_SELF, handle, 0, what="leaving abstract sockets")
    finally:
        os.close(handle)


def bound_messages_and_segments(most_bytes: int) -> bool:
    """Limit System V's shared memory, queues and semaphores of this process's own namespace; whether it may."""
    try:
        for name, value in (("shmall", str(most_bytes // _PAGE)), ("msgmni", "64"), ("sem", "250 32000 500 128")):
            Path("/proc/sys/kernel", name).write_text(value)
    except OSError:
        return False
    return True


def call(number: int, *arguments: object, what: str) -> int:
    """A system call by its number, which may differ between architectures; :class:`OSError` says ``what`` failed."""
    result: int = _libc.syscall(number, *arguments)
    _checked(result, what)
    return result


def sync_file_system(path: str) -> None:
    """``syncfs(2)``: everything that was written to the file system of ``path`` is on its disk; raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.syncfs(handle), f"writing the file system of {path} to its disk")
    finally:
        os.close(handle)


def _prctl(option: int, value: int, what: str) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), what)


def _set_attributes(folder: int, path: str, attributes: _MountAttr, flags: int) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(_MOUNT_SETATTR, folder, os.fsencode(path), flags, ctypes.byref(attributes), size)
    _checked(result, f"restricting the mount {path}")


def _checked(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
