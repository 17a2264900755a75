"""The file of a journal: lines, ``{length} {digest} {JSON}``, each on the disk before the run goes on.

A digest covers the line and all lines before it: one that was changed, lost or moved ends what is believed. It finds
damage, no forgery.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner import _durable

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""Goes up when an older version could not go on from what is written; what it does not know, a version ignores."""
MAX_BYTES = 256 * 1024 * 1024
_DIGEST_CHARACTERS = 32
_LINE = re.compile(rb"([0-9]{1,10}) ([0-9a-f]{32}) (.*)", re.DOTALL)

Fields = dict[str, Any]
"""What JSON can hold."""


@dataclass(frozen=True)
class Entry:
    """One line of a journal."""

    kind: str
    """``run``, ``claim``, ``workspace``, ``plan``, ``answer``, ``commit``, ``committed``, ``tests``, ``delivered``,
    ``result``, ``told`` or ``ended``."""
    key: str
    """Which of its kind: the number of the question, of the answer, or the tree that was tested."""
    basis: str
    """What it depends on, as a digest; empty: on nothing besides."""
    data: Fields


@dataclass(frozen=True)
class Reading:
    """What a journal's bytes hold."""

    entries: tuple[Entry, ...]
    good_bytes: int
    """Where what is believed ends."""
    digest: str
    """Of all that is believed."""
    is_torn: bool = False
    """Whether the last line was cut short, as by a crash in the middle of writing it."""
    is_damaged: bool = False
    """Whether a line was changed, lost or moved; it and all that follows is not believed."""

    @property
    def header(self) -> Fields:
        """What the run began with; empty where that cannot be read."""
        first = self.entries[0] if self.entries else None
        return first.data if first is not None and first.kind == "run" else {}

    def tests(self, tree: str) -> object:
        """What the tests said of a tree; None where that is not there."""
        found = (entry for entry in reversed(self.entries) if entry.kind == "tests" and entry.key == tree)
        return next((entry.data.get("result") for entry in found), None)

    @property
    def ended(self) -> str:
        """How the run ended, by the last thing it says: ``done``, ``failed``…; empty while it has not."""
        last = self.entries[-1] if self.entries else None
        return str(last.data.get("status", "")) if last is not None and last.kind == "ended" else ""


def read_journal(content: bytes) -> Reading:
    """The entries in these bytes, up to the first that cannot be believed. Raises nothing, whatever the bytes are."""
    entries: list[Entry] = []
    position, digest = 0, ""
    while position < len(content):
        end = content.find(b"\n", position)
        if end < 0:
            return Reading(tuple(entries), position, digest, is_torn=True)
        entry, digest_here = _entry(content[position:end], digest)
        if entry is None:
            return Reading(tuple(entries), position, digest, is_damaged=True)
        entries.append(entry)
        position, digest = end + 1, digest_here
    return Reading(tuple(entries), position, digest)


def _entry(line: bytes, digest_before: str) -> tuple[Entry | None, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        return None, ""
    length, told, body = found.groups()
    digest = _digest(digest_before, body)
    if int(length) != len(body) or digest.encode() != told:
        return None, ""
    try:
        values = json.loads(body)
        kind, key, basis, data = (values.get(name) for name in ("kind", "key", "basis", "data"))
    except (ValueError, RecursionError, AttributeError):
        return None, ""
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(basis, str) and isinstance(data, dict)):
        return None, ""
    return Entry(kind, key, basis, data), digest


def line_of(entry: Entry, digest_before: str) -> tuple[bytes, str]:
    body = json.dumps({"kind": entry.kind, "key": entry.key, "basis": entry.basis, "data": entry.data}).encode()
    digest = _digest(digest_before, body)
    return b"%d %s %s\n" % (len(body), digest.encode(), body), digest


def _digest(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:_DIGEST_CHARACTERS]


def basis_of(*parts: Any) -> str:  # noqa: ANN401  whatever JSON can hold
    """A digest of what an entry depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST_CHARACTERS]


class JournalFile:
    """The file of a journal, locked for as long as it is open: the kernel gives the lock back when a process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._file = os.fstat(descriptor)
        self._digest = ""
        self._end = 0

    @classmethod
    def opened(cls, path: Path, *, is_new: bool = False) -> JournalFile | None:
        """The file, which is this process's alone until it is closed; None where another one has it.

        Raises :class:`OSError`. One that ``is_new`` must not be there yet.
        """
        if not is_new:
            _make_writable(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if is_new else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            _check_ordinary(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new:
                _durable.sync_folder(path.parent)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def read(self) -> Reading:
        """What is in it. A torn end is cut off; a damaged file is kept aside whole, and cut where it is damaged."""
        content = _read_all(self._descriptor)
        reading = read_journal(content)
        if reading.is_damaged:
            _durable.write_file(self.path.with_name("journal.damaged"), content)
        if reading.is_damaged or reading.is_torn:
            os.ftruncate(self._descriptor, reading.good_bytes)
            os.fsync(self._descriptor)
        self._end, self._digest = reading.good_bytes, reading.digest
        if reading.ended:
            self.mark_ended()
        return reading

    def append(self, entry: Entry) -> None:
        """Add an entry; it is on the disk when this returns. Raises :class:`OSError`; then it is as if never there."""
        line, digest = line_of(entry, self._digest)
        if self._end + len(line) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it would grow beyond {MAX_BYTES} bytes")
        try:
            _durable.append(self._descriptor, line)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(line)
        self._digest = digest

    def mark_ended(self) -> None:
        """Let the file's mode tell, without a look into it, that the run has ended."""
        self._set_mode(0o400)

    def mark_open(self) -> None:
        """The other way round."""
        self._set_mode(0o600)

    def _set_mode(self, mode: int) -> None:
        """Not of another file, where somebody in this process has put one on the descriptor's number."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._file):
                os.fchmod(self._descriptor, mode)

    def close(self) -> None:
        """Give the file back; harmless when that is done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _check_ordinary(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")


def _make_writable(path: Path) -> None:
    """One that has ended cannot be opened for writing."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_ordinary(descriptor)
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES} bytes")
    return os.pread(descriptor, size, 0)
