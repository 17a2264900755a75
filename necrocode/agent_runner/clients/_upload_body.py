"""A multipart form whose file is read while it is sent, as often as it is tried; requests' own would hold all of it."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from typing import IO, TYPE_CHECKING

from necrocode.agent_runner.errors import ArtifactUploadError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CHUNK_BYTES = 1 << 20
_DIGEST_CHARACTERS = 64
_SENT_AS_ONE_BYTES = 8 << 20


class UploadBody:
    """The body of an upload: fields, then the file from where it stands, then its ``sha256``.

    The hash comes last because it is known only when all has been read; ``sha256`` is sent instead where it is given. A
    source that cannot be read twice (a pipe) is put into a temporary file first. ``close`` removes that.
    """

    def __init__(self, fields: Mapping[str, bytes], source: IO[bytes], sha256: str | None = None) -> None:
        self._given = sha256
        self._boundary = secrets.token_hex(16).encode()
        self._spool: IO[bytes] | None = None
        self._source = source if source.seekable() else self._spooled(source)
        self._start = self._source.tell()
        self.size_bytes = self._source.seek(0, os.SEEK_END) - self._start
        """Of the file."""
        self.sha256 = ""
        """Of the file as it was last sent."""
        self._head = b"".join(self._part(name, value) for name, value in fields.items()) + self._opening(
            b'name="file"; filename="artifact"\r\nContent-Type: application/octet-stream'
        )
        self._length = len(self._head) + self.size_bytes + len(self._tail(self._given or "0" * _DIGEST_CHARACTERS))
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={self._boundary.decode()}",
        }

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """All of it, from the start; ``ArtifactUploadError`` when the file cannot be read to its end."""
        yield self._head
        self._source.seek(self._start)
        digest, left = hashlib.sha256(), self.size_bytes
        while left:
            chunk = self._read(min(_CHUNK_BYTES, left))
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        self.sha256 = digest.hexdigest()
        yield self._tail(self._given or self.sha256)

    def data(self) -> bytes | UploadBody:
        """What to hand to requests: a small form as one piece, which is sent at once, a large one as itself."""
        return b"".join(self) if len(self) <= _SENT_AS_ONE_BYTES else self

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._spool is not None:
            self._spool.close()

    def _read(self, size: int) -> bytes:
        try:
            chunk = self._source.read(size)
        except OSError as error:  # requests would take it for a broken connection
            raise ArtifactUploadError(f"The artifact cannot be read: {error.strerror or error}.") from error
        if not chunk:
            raise ArtifactUploadError("The artifact became shorter while it was sent.")
        return chunk

    def _spooled(self, source: IO[bytes]) -> IO[bytes]:
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115  close closes it
        shutil.copyfileobj(source, self._spool, _CHUNK_BYTES)
        self._spool.seek(0)
        return self._spool

    def _opening(self, disposition: bytes) -> bytes:
        return b"--" + self._boundary + b"\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n"

    def _part(self, name: str, value: bytes) -> bytes:
        return self._opening(f'name="{name}"'.encode()) + value + b"\r\n"

    def _tail(self, digest: str) -> bytes:
        return b"\r\n" + self._part("sha256", digest.encode()) + b"--" + self._boundary + b"--\r\n"


class RewoundFile:
    """A binary file that is written again from the same place at every try."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._start = target.tell() if target.seekable() else None
        self._is_written_to = False
        self.sha256 = ""
        """Of what was last written."""

    def take(self, chunks: Iterator[bytes]) -> None:
        """Write the chunks. ``ServiceError`` when the file refuses, or cannot be written a second time."""
        digest = hashlib.sha256()
        self._rewind()
        for chunk in chunks:
            digest.update(chunk)
            self._is_written_to = True
            try:
                self._target.write(chunk)
            except OSError as error:
                raise ServiceError(f"What was downloaded cannot be written: {error.strerror or error}.") from error
        self.sha256 = digest.hexdigest()

    def _rewind(self) -> None:
        if not self._is_written_to:
            return
        if self._start is None:
            raise ServiceError(
                "The download broke off, and what it is written to cannot be rewound.", hint="Download to a file."
            )
        self._target.seek(self._start)
        self._target.truncate()
