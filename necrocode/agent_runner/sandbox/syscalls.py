"""System calls that every confined command is refused, whatever else holds it, and some that are used before that.

A filter in the kernel refuses them. They reach what no namespace divides: keyrings of the user, the hypervisor's
sockets, parts of the kernel where flaws were found most often. Numbers: Linux, ``asm/unistd_64.h`` and ``asm-
generic/unistd.h``; the filter's words: ``linux/bpf_common.h``, ``linux/seccomp.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from necrocode.agent_runner.sandbox import kernel

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
# Offsets in seccomp_data, little-endian.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_SECOND_ABI = 0x40000000  # x32: the same calls under other numbers
_UNIX, _INET, _INET6, _NETLINK, _ROUTE = 1, 2, 10, 16, 0
_SMALL_SEGMENT = 65_536  # databases want one of a few bytes; a namespace holds 4096 of them
_IO_URING = (425, 426, 427)  # it makes sockets of any kind past a filter
_JOIN_SESSION_KEYRING = 1
_SOFTWARE, _TASK_CLOCK, _INHERITED, _OF_PROGRAMS, _CLOSE_ON_EXEC = 1, 1, 1 << 1, 3 << 5, 8  # linux/perf_event.h

_Line = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Machine:
    """The numbers of one architecture."""

    audit: int
    keys: tuple[int, int, int]
    """add_key, request_key, keyctl."""
    others: tuple[int, ...]
    """perf_event_open, bpf, userfaultfd."""
    sockets: tuple[int, int]
    """socket, socketpair."""
    segments: int
    """shmget."""


_MACHINES = {
    "x86_64": _Machine(0xC000003E, (248, 249, 250), (298, 321, 323), (41, 53), 29),
    "aarch64": _Machine(0xC00000B7, (217, 218, 219), (241, 280, 282), (198, 199), 194),
}


def refuse_calls(*, has_large_segments: bool) -> None:
    """Refuse this process and its children, for good, all but a few kinds of sockets, keyrings and the like.

    Without ``has_large_segments``, segments of System V over 64 KiB too. Needs ``give_up_gains``; raises
    :class:`OSError`. There is no filter for architectures other than x86_64 and aarch64.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is not None:
        lines = _program(machine, has_large_segments=has_large_segments)
        kernel.filter_calls(b"".join(struct.pack("=HBBI", *line) for line in lines))


def leave_keyring() -> None:
    """Have this process and its children hold a new, empty session keyring instead of the caller's.

    Where the machine has none, or a container forbids them, there is nothing to leave: its children may not either.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return
    try:
        kernel.call(machine.keys[2], _JOIN_SESSION_KEYRING, None, what="taking a session keyring of its own")
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EACCES}:
            raise


def count_processor_time() -> int | None:
    """A handle that tells the processor time of this process and all that it starts from here on, in nanoseconds.

    Of those too that nobody waits for. It is closed by exec. None where the machine or a container forbids it.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return None
    kind = struct.pack("=IIQQQQQIIQ", _SOFTWARE, 64, _TASK_CLOCK, 0, 0, 0, _INHERITED | _OF_PROGRAMS, 0, 0, 0)
    try:
        return kernel.call(machine.others[0], kind, 0, -1, -1, _CLOSE_ON_EXEC, what="counting processor time")
    except OSError:
        return None


def _program(machine: _Machine, *, has_large_segments: bool) -> list[_Line]:
    missing = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    allowed = (_RETURN, 0, 0, _ALLOW)
    refused = (*machine.keys, *machine.others, *_IO_URING)
    socket, pair = machine.sockets
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, machine.audit), missing,
        (_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, _SECOND_ABI), missing,
    ]  # fmt: skip
    for number in refused:
        lines += [(_IF_EQUAL, 0, 1, number), missing]
    if not has_large_segments:
        too_large = (_RETURN, 0, 0, _ERROR | errno.EINVAL)
        lines += [
            (_IF_EQUAL, 0, 7, machine.segments),
            (_LOAD, 0, 0, _SECOND_ARGUMENT + 4), (_IF_EQUAL, 1, 0, 0), too_large,
            (_LOAD, 0, 0, _SECOND_ARGUMENT), (_IF_AT_LEAST, 0, 1, _SMALL_SEGMENT + 1), too_large, allowed,
        ]  # fmt: skip
    lines += [(_IF_EQUAL, 2, 0, socket), (_IF_EQUAL, 1, 0, pair), allowed, (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in (_UNIX, _INET, _INET6):
        lines += [(_IF_EQUAL, 0, 1, family), allowed]
    lines += [(_IF_EQUAL, 0, 3, _NETLINK), (_LOAD, 0, 0, _THIRD_ARGUMENT), (_IF_EQUAL, 0, 1, _ROUTE), allowed]
    return [*lines, (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)]
