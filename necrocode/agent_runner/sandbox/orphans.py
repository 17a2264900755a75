"""Processes of test commands whose runner has died: found by the layer that they were started in, which is no other's.

A confined command ends with its runner; a plain process does not.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_ROUNDS = 5  # one that is about to be ended may still start others


def end_processes_in(layer: Path) -> int:
    """Kill every process of this user that was started in the layer, or works in it; how many.

    The layer's path is in the environment that its commands were given, and nobody else's.
    """
    ended = 0
    if not hasattr(os, "pidfd_open"):  # not Linux: there is no /proc either
        return ended
    for _ in range(_ROUNDS):
        found = sum(_is_ended(int(name), layer) for name in os.listdir("/proc") if name.isdecimal())
        ended += found
        if not found:
            break
    return ended


def _is_ended(pid: int, layer: Path) -> bool:
    """Whether the process was the layer's, and is ended. The handle stays that process's, whoever gets its number."""
    if pid == os.getpid():
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _belongs(pid, layer):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _belongs(pid: int, layer: Path) -> bool:
    here = os.fsencode(layer)
    with suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if any(one.startswith(b"NECROCODE_REPORTS=" + here + b"/") for one in variables):
            return True
    with suppress(OSError):
        folder = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
        return folder == here or folder.startswith(here + b"/")
    return False
