"""Bytes on their way to S3: in memory, in a temporary file, or in the caller's own file."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from typing import IO, TYPE_CHECKING, Any, Literal

from s3transfer.utils import ReadFileChunk

from necrocode.agent_runner.errors import ArtifactUploadError, RunnerError, StorageFullError

if TYPE_CHECKING:
    from pathlib import Path

    from necrocode.agent_runner.clients._artifact_s3 import S3Blobs

PART_BYTES = 8 << 20
_KEPT_IN_MEMORY_BYTES = 1 << 20


class OpenFile:
    """A stretch of an open file whose parts can be read side by side."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self.size = size

    def part(self, offset: int, length: int) -> Any:  # noqa: ANN401  s3transfer has no types
        """A part as a file of its own, read from where it is on disk. Through /proc, for the file may have no name."""
        return ReadFileChunk.from_filename(
            f"/proc/self/fd/{self._descriptor}",
            start_byte=self._start + offset,
            chunk_size=min(length, self.size - offset),
        )

    def version(self) -> tuple[int, int]:
        """Differs when the file has been written to."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


class S3Draft:
    """An object on its way. A ``source`` that is a file on disk is uploaded from there, not kept twice."""

    def __init__(self, blobs: S3Blobs, spool_dir: Path, source: IO[bytes] | None) -> None:
        self._blobs = blobs
        self._spool_dir = spool_dir
        self._start = bytearray()
        self._spool: IO[bytes] | None = None
        self._source = _file_on_disk(source) if source is not None else None
        self._source_version = self._source.version() if self._source is not None else None
        self.source_bytes = self._source.size if self._source is not None else None
        self._size = self.source_bytes or 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Append."""
        self._size += len(chunk)
        if self._spool is None and self._size <= _KEPT_IN_MEMORY_BYTES:
            self._start += chunk
            return
        try:
            if self._spool is None:
                self._spool_dir.mkdir(parents=True, exist_ok=True)
                self._spool = tempfile.TemporaryFile(dir=self._spool_dir)  # noqa: SIM115  discard closes it
                self._spool.write(self._start)
                self._start.clear()
            self._spool.write(chunk)
        except OSError as error:
            raise StorageFullError(f"Cannot spool an upload in {self._spool_dir}: {error.strerror}.") from error

    def publish(self, key: str, encoding: Literal["gzip"] | None) -> bool:
        """Upload, if the key is free. Others who read the object are told its encoding (RFC 9110, section 8.4)."""
        headers: dict[str, str] = {"ContentEncoding": encoding} if encoding is not None else {}
        try:
            file = self._file()
            if file is None:
                content = bytes(self._start)
                return self._blobs.put_new(
                    key, self._size, lambda name, condition: self._blobs.put(name, content, headers | condition)
                )
            is_new = self._blobs.put_new(
                key, self._size, lambda name, condition: self._send(file, name, headers, condition)
            )
        except RunnerError:
            raise
        except (OSError, ValueError) as error:
            raise ArtifactUploadError(f"The artifact cannot be read a second time: {error}.") from error
        if self._source is not None and self._source.version() != self._source_version:
            if is_new:
                self._blobs.delete(key)
            raise ArtifactUploadError("The file was changed while it was uploaded; nothing was stored.")
        return is_new

    def discard(self) -> None:
        """Give the file's room back."""
        if self._spool is not None:
            self._spool.close()

    def _file(self) -> OpenFile | None:
        if self._source is not None:
            return self._source
        if self._spool is None:
            return None
        self._spool.flush()
        return OpenFile(self._spool.fileno(), 0, self._size)

    def _send(self, file: OpenFile, name: str, headers: dict[str, str], condition: dict[str, str]) -> None:
        if file.size > PART_BYTES:
            self._blobs.put_parts(name, file, headers, condition)
        else:
            with file.part(0, file.size) as body:
                self._blobs.put(name, body, headers | condition)


def _file_on_disk(source: IO[bytes]) -> OpenFile | None:
    """The rest of the source, where it is a large regular file; else None."""
    raw = source.raw if isinstance(source, (io.BufferedReader, io.BufferedRandom)) else source
    if not isinstance(raw, io.FileIO):  # a gzip.GzipFile has a file number too, but that file holds other bytes
        return None
    try:
        source.flush()
        start, status = source.tell(), os.fstat(raw.fileno())
    except (OSError, ValueError):  # a pipe, or closed
        return None
    size = status.st_size - start
    is_worth_it = stat.S_ISREG(status.st_mode) and size > _KEPT_IN_MEMORY_BYTES
    return OpenFile(raw.fileno(), start, size) if is_worth_it else None
