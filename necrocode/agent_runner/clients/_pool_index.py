"""Which files of a checkout changed within the very second of their checkout: git's index compares whole seconds.

For such files git reads the content again, each time, and sees no change of mode or links. The index holds their times
by the nanosecond, though, and those say more, and sooner.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# gitformat-index: a header of 12 bytes, then entries of ten 32-bit numbers (ctime and its nanoseconds, mtime and its
# nanoseconds, dev, ino, mode, ...), an object id of 20 bytes, 16 bits of flags, and the name up to a NUL; at the end
# a SHA-1 of it all.
_HEADER = struct.Struct(">4sII")
_TIMES = struct.Struct(">IIII")
_MODE_AT, _FLAGS_AT, _NAME_AT, _CHECKSUM_BYTES = 24, 60, 62, 20
_MODES = frozenset({0o100644, 0o100755, 0o120000})
_EXTENDED = 0x4000


def without_touched(index: bytes, checkout: Path, at_ns: int) -> bytes | None:
    """The index, with files that changed since it was written at ``at_ns``, in the same second, marked as not known.

    None for an index of a form that this does not read: then git's own look must do.
    """
    signature, version, _ = _HEADER.unpack_from(index)
    if signature != b"DIRC" or version not in {2, 3}:
        return None
    touched = [
        start for start, name in _entries_of_second(index, at_ns // 10**9) if _is_touched(index, start, checkout, name)
    ]
    if not touched:
        return index
    marked = bytearray(index)
    for start in touched:
        marked[start : start + _TIMES.size] = bytes(_TIMES.size)
    marked[-_CHECKSUM_BYTES:] = hashlib.sha1(marked[:-_CHECKSUM_BYTES], usedforsecurity=False).digest()
    return bytes(marked)


def _entries_of_second(index: bytes, second: int) -> Iterator[tuple[int, bytes]]:
    """Where entries with this ctime or mtime begin, and their names.

    Found by the bytes of the time, for most have another one, and reading them all would take longer than the rest.
    """
    needle = struct.pack(">I", second & 0xFFFFFFFF)
    place = index.find(needle, _HEADER.size)
    while place >= 0:
        name = None
        for start in (place, place - 8):  # its ctime, or only its mtime
            name = _name(index, start)
            if name is not None:
                yield start, name
                place = start + _NAME_AT + len(name)
                break
        place = index.find(needle, place + 1)


def _name(index: bytes, start: int) -> bytes | None:
    """The name of the entry that begins here; None when none does."""
    if start < _HEADER.size or start + _NAME_AT > len(index) - _CHECKSUM_BYTES:
        return None
    (mode,) = struct.unpack_from(">I", index, start + _MODE_AT)
    (flags,) = struct.unpack_from(">H", index, start + _FLAGS_AT)
    name_at = start + _NAME_AT + (2 if flags & _EXTENDED else 0)
    name = index[name_at : index.find(b"\0", name_at)]
    return name if mode in _MODES and min(len(name), 0xFFF) == flags & 0xFFF else None


def _is_touched(index: bytes, start: int, checkout: Path, name: bytes) -> bool:
    ctime, ctime_ns, mtime, mtime_ns = _TIMES.unpack_from(index, start)
    try:
        found = os.lstat(os.path.join(os.fsencode(checkout), name))  # noqa: PTH118  names are bytes
    except OSError:
        return True
    return (found.st_ctime_ns, found.st_mtime_ns) != (ctime * 10**9 + ctime_ns, mtime * 10**9 + mtime_ns)
