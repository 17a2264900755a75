"""An artifact on its way in: hashed, compressed where that helps, counted against the quota, and seen by nobody."""

from __future__ import annotations

import hashlib
import zlib
from threading import Lock, Thread
from typing import IO, TYPE_CHECKING, Literal, Self

from necrocode.agent_runner.clients._artifact_blobs import CHUNK_BYTES
from necrocode.agent_runner.errors import ArtifactUploadError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.clients._artifact_blobs import Draft
    from necrocode.agent_runner.records import StoredArtifact

    Finish = Callable[["IncomingArtifact", str, Mapping[str, Any] | None, str | None, int | None], StoredArtifact]

_LEVEL = 3
_GZIP = 31  # zlib's window bits for the gzip format
_WORTH_IT = 0.9
_RECOUNT_SECONDS = 60.0


class IncomingArtifact:
    """Takes an artifact's bytes in order, then ``finish`` makes it visible. Leaving it unfinished leaves nothing."""

    def __init__(self, draft: Draft, quota: Quota, finish: Finish, *, compress: bool) -> None:
        self._draft = draft
        self._quota = quota
        self._finish = finish
        self._hash = hashlib.sha256()
        self._sample = bytearray() if compress else None
        self._encoder: Any = None
        self._is_kept = False
        self._reader: Thread | None = None
        self._trouble: Exception | None = None
        self._is_given_up = False
        self.size_bytes = 0
        """Bytes taken so far."""
        self.stored_bytes = 0
        """What they take up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def sha256(self) -> str:
        """Of the bytes taken so far; of a whole source, once it has been read, or ``ArtifactUploadError``."""
        if self._reader is not None:
            self._reader.join()
            if self._trouble is not None:
                raise ArtifactUploadError(f"The artifact cannot be read: {self._trouble}.") from self._trouble
        return self._hash.hexdigest()

    @property
    def is_being_read(self) -> bool:
        """Whether the hash will be known only later."""
        return self._reader is not None

    @property
    def encoding(self) -> Literal["gzip"] | None:
        """How the bytes are kept."""
        return "gzip" if self._encoder is not None else None

    @property
    def draft(self) -> Draft:
        """The bytes as they are kept."""
        return self._draft

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes; ``StorageFullError``, ``ArtifactUploadError``, ``ServiceError``."""
        self._hash.update(chunk)
        self.size_bytes += len(chunk)
        if self._sample is None:
            self._put(self._encoder.compress(chunk) if self._encoder is not None else chunk)
            return
        self._sample += chunk
        if len(self._sample) >= CHUNK_BYTES:
            self._decide()

    def take(self, source: IO[bytes]) -> None:
        """Take all that a file holds; where the draft reads the file by itself, it is hashed at the same time."""
        size = self._draft.source_bytes
        if size is None:
            while chunk := source.read(CHUNK_BYTES):
                self.write(chunk)
            return
        self._quota.reserve(size)
        self.size_bytes = self.stored_bytes = size
        self._reader = Thread(target=self._read, args=(source, size), name="artifact-hash")
        self._reader.start()

    def _read(self, source: IO[bytes], size: int) -> None:
        left = size
        try:
            while left and not self._is_given_up and (chunk := source.read(min(CHUNK_BYTES, left))):
                self._hash.update(chunk)
                left -= len(chunk)
        except (OSError, ValueError) as error:
            self._trouble = error
        else:
            self._trouble = EOFError("it became shorter") if left else None

    def finish(
        self,
        artifact_type: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        sha256: str | None = None,
        size_bytes: int | None = None,
    ) -> StoredArtifact:
        """Make it visible. Where the given hash or size differs, ``ArtifactUploadError`` (422), and nothing is stored.

        The same bytes under the same type and metadata are the artifact that is there already.
        """
        return self._finish(self, artifact_type, metadata, sha256, size_bytes)

    def close_input(self) -> None:
        """Put away what is still in the compressor."""
        if self._reader is not None:
            return
        if self._sample is not None:
            self._decide()
        if self._encoder is not None:
            self._put(self._encoder.flush())

    def keep(self) -> None:
        """What was reserved stays counted."""
        self._is_kept = True

    def discard(self) -> None:
        """Give up what was not finished; nothing is done after that."""
        self._is_given_up = True
        if self._reader is not None:
            self._reader.join()
        self._draft.discard()
        if not self._is_kept:
            self._quota.give_back(self.stored_bytes)
            self.stored_bytes = 0
        self._is_kept = True

    def _decide(self) -> None:
        """Compress if the start of the artifact shrinks; what is compressed already, or tiny, is kept as it is."""
        sample, self._sample = bytes(self._sample or b""), None
        if len(zlib.compress(sample[:CHUNK_BYTES], _LEVEL)) < len(sample[:CHUNK_BYTES]) * _WORTH_IT:
            self._encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
            self._put(self._encoder.compress(sample))
        else:
            self._put(sample)

    def _put(self, chunk: bytes | memoryview) -> None:
        if chunk:
            self._quota.reserve(len(chunk))
            self.stored_bytes += len(chunk)
            self._draft.write(chunk)


class Quota:
    """The room that a store has. Room is reserved before it is written to, so uploads at once never overshoot.

    What other processes store is seen when the artifacts are counted again, at most once a minute.
    """

    def __init__(self, limit_bytes: int | None, count: Callable[[], int], clock: Clock) -> None:
        self.limit_bytes = limit_bytes
        self._count = count
        self._clock = clock
        self._lock = Lock()
        self._used: int | None = None
        self._writing = 0
        self._counted_at = 0.0

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written; ``StorageFullError`` when there is no room."""
        if self.limit_bytes is None:
            return
        with self._lock:
            if self._used is None or (self._used + self._writing + size > self.limit_bytes and self._is_stale()):
                self._used = self._count()
                self._counted_at = self._clock.monotonic()
            if self._used + self._writing + size > self.limit_bytes:
                raise StorageFullError(
                    f"The artifact store's quota of {self.limit_bytes} bytes is used up"
                    f" ({self._used + self._writing} bytes).",
                    hint="Delete artifacts, sweep old ones, or raise the quota.",
                    status_code=507,
                )
            self._writing += size

    def give_back(self, size: int) -> None:
        """Bytes that were reserved are not stored."""
        with self._lock:
            self._writing -= size if self.limit_bytes is not None else 0

    def stored(self, size: int) -> None:
        """Bytes that were reserved are stored."""
        with self._lock:
            if self._used is not None:
                self._used += size
                self._writing -= size

    def freed(self, size: int) -> None:
        """Bytes that were stored are deleted."""
        with self._lock:
            if self._used is not None:
                self._used -= size

    def _is_stale(self) -> bool:
        return self._clock.monotonic() - self._counted_at > _RECOUNT_SECONDS
