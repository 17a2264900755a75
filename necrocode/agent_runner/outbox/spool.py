"""A file that only grows: records of JSON, each with bytes of any kind, and each with a checksum.

Whoever has it open holds its lock, which the system gives back when that process dies. A record that a death cut off is
cut away when the file is next opened; one that is damaged, and all behind it, is never trusted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from necrocode.agent_runner import _durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_MARK = b"\nN1 "
_HEAD = re.compile(rb"N1 (\d{1,8}) (\d{1,15}) ([0-9a-f]{64})\n")
_LONGEST_HEAD = 128
_MOST_JSON_BYTES = 32_000_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """One record: its JSON, and where in the file its bytes are."""

    fields: dict[str, Any]
    offset: int = 0
    size: int = 0


class Spool:
    """One open and locked file. ``records`` is what it held when it was opened; ``damaged_at`` where trust ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.records: list[Record] = []
        self.damaged_at: int | None = None
        self.size = 0
        self._is_named = False
        """Whether its name was made to last."""

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Self | None:
        """The file; None where another process or thread has it, or there is none and it is not to be made.

        Raises :class:`OSError`.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        if create:
            _durable.make_folder(path.parent)
        while True:
            try:
                spool = cls(path, os.open(path, flags, 0o600))
            except FileNotFoundError:
                return None
            try:
                if spool.is_ours():
                    return spool
            except BlockingIOError:
                spool.close()
                return None
            except BaseException:
                spool.close()
                raise
            spool.close()  # its last holder has removed it

    def is_ours(self) -> bool:
        """Take the lock, and read; False when the file was removed meanwhile. ``BlockingIOError``: it is another's."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not self._is_still_there():
            return False
        self._read()
        return True

    def _is_still_there(self) -> bool:
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    # --- writing

    def append(self, records: Iterable[tuple[dict[str, Any], bytes]]) -> list[Record]:
        """Add records that survive a crash; raises :class:`OSError`, and then nothing was added."""
        return self._add(records, is_durable=True)

    def note(self, records: Iterable[tuple[dict[str, Any], bytes]]) -> list[Record]:
        """Add records that the death of this process leaves there, but a power failure may take away again.

        Raises :class:`OSError`, and then nothing was added.
        """
        return self._add(records, is_durable=False)

    def sync(self) -> None:
        """Make all that was noted survive a power failure too; raises :class:`OSError`."""
        self._append(b"")

    def _add(self, records: Iterable[tuple[dict[str, Any], bytes]], *, is_durable: bool) -> list[Record]:
        content, added = bytearray(), []
        for fields, blob in records:
            frame = framed(fields, blob)
            content += frame
            added.append(Record(fields, self.size + len(content) - len(blob) - 1, len(blob)))
        try:
            if is_durable:
                self._append(bytes(content))
            else:
                self._write(content)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(content)
        return added

    def _append(self, content: bytes) -> None:
        _durable.append(self._descriptor, content)
        if not self._is_named:
            _durable.sync_folder(self.path.parent)
            self._is_named = True

    def _write(self, content: bytes | bytearray) -> None:
        if os.write(self._descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # --- reading

    def blob(self, record: Record) -> bytes:
        """A record's bytes."""
        return b"".join(self._pieces(record.offset, record.size))

    def _read(self) -> None:
        end, position = os.fstat(self._descriptor).st_size, 0
        while position < end:
            record = self._record(position, end)
            if record is None:
                break
            self.records.append(record)
            position = record.offset + record.size + 1
        self.size = end
        if position == end:
            return
        if self._has_more_records(position + 1, end):
            self.damaged_at = position
            return
        logger.warning("%s: its last %d bytes were cut off by a crash, and are dropped.", self.path, end - position)
        os.ftruncate(self._descriptor, position)
        self.size = position

    def _record(self, position: int, end: int) -> Record | None:
        """The record there; None for what is none, or is not as it was written."""
        head = _HEAD.match(os.pread(self._descriptor, _LONGEST_HEAD, position))
        if head is None:
            return None
        json_size, size = int(head[1]), int(head[2])
        start = position + head.end()
        if json_size > _MOST_JSON_BYTES or start + json_size + size + 1 > end:
            return None
        digest = hashlib.sha256()
        text = b"".join(self._pieces(start, json_size))
        digest.update(text)
        for piece in self._pieces(start + json_size, size + 1):
            digest.update(piece)
        if digest.hexdigest().encode() != head[3]:
            return None
        with suppress(ValueError, RecursionError):
            fields = json.loads(text)
            if isinstance(fields, dict):
                return Record(fields, start + json_size, size)
        return None

    def _has_more_records(self, position: int, end: int) -> bool:
        """Whether there seem to be records further on, so that no crash has cut the file here."""
        before = b""
        for piece in self._pieces(position, end - position):
            if _MARK in before + piece:
                return True
            before = piece[-len(_MARK) :]
        return False

    def _pieces(self, start: int, size: int) -> Iterator[bytes]:
        end = start + size
        while start < end and (piece := os.pread(self._descriptor, min(_CHUNK_BYTES, end - start), start)):
            yield piece
            start += len(piece)

    # --- ending

    def close(self) -> None:
        """Let others have it; harmless when that was done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file and close it; raises :class:`OSError`. If it comes back, all is sent under its old keys."""
        self.path.unlink(missing_ok=True)
        self.close()

    def move(self, target: Path) -> None:
        """Put the file, as it is, elsewhere and close it; raises :class:`OSError`."""
        _durable.make_folder(target.parent)
        self.path.rename(target)
        _durable.sync_folder(target.parent)
        _durable.sync_folder(self.path.parent)
        self.close()


def framed(fields: dict[str, Any], blob: bytes = b"") -> bytes:
    """A record as it stands in the file."""
    text = json.dumps(fields, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    digest = hashlib.sha256(text)
    digest.update(blob)
    digest.update(b"\n")
    return b"N1 %d %d %s\n%s%s\n" % (len(text), len(blob), digest.hexdigest().encode(), text, blob)
