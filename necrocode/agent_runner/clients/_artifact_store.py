"""What an artifact store does, wherever its bytes lie: on a folder and on S3 it is this one."""

from __future__ import annotations

import hashlib
import io
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients import _artifact_archive as archive
from necrocode.agent_runner.clients import _artifact_care as care
from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.clients import _artifact_sidecar as sidecar
from necrocode.agent_runner.clients._artifact_blobs import CHUNK_BYTES, Blobs
from necrocode.agent_runner.clients._artifact_fence import refuse_overtaken
from necrocode.agent_runner.clients._artifact_incoming import IncomingArtifact, Quota
from necrocode.agent_runner.errors import (
    ArtifactDamagedError,
    ArtifactNotFoundError,
    ArtifactUploadError,
    RunnerError,
    ServiceError,
)
from necrocode.agent_runner.records import ArtifactFilter, ArtifactPage, DeletedArtifacts, StoredArtifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from necrocode.agent_runner.records import StorageUsage, SweepReport, VerifyReport

DEFAULT_RETENTION_DAYS = {"diff": 30.0, "log": 7.0, "test": 14.0}
"""Types that are not named are kept."""
KEEP_TAG = "keep"
"""What is tagged with it, no sweep deletes."""
MAX_PAGE = 1000
_ALL = ArtifactFilter()


@dataclass(frozen=True)
class ArtifactContent:
    """An artifact that is being read."""

    artifact: StoredArtifact
    chunks: Iterator[bytes]
    """Its bytes, or the part that was asked for. Read to the end, a whole artifact has been checked against its
    sha256; the last piece is held back until then."""


class SidecarArtifactStore:
    """Artifacts in a folder or bucket, each with its description beside it. Safe for several threads.

    An artifact is visible only when it is whole and durable. ``reference`` is an id or a URI of this store.

    ``compress``: keep as gzip what gets smaller that way. ``quota_bytes``: the most that is stored (None: no limit).
    ``retention_days`` by type: what ``sweep`` deletes.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        compress: bool = False,
        quota_bytes: int | None = None,
        retention_days: Mapping[str, float] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._blobs = blobs
        self._compress = compress
        self._quota = Quota(quota_bytes, lambda: care.stored_bytes(blobs), clock)
        self._retention_days = dict(DEFAULT_RETENTION_DAYS if retention_days is None else retention_days)
        self._clock = clock

    def ensure_available(self) -> None:
        """Return when an upload can be expected to work; ``ArtifactUploadError`` or ``ServiceError`` when not."""
        self._blobs.ensure_available()

    # --- in

    def upload(self, artifact_type: str, content: bytes, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the bytes and get their URI; ``ArtifactUploadError``, with ``StorageFullError`` when there is no room.

        The same content under the same type and metadata gets the URI it already has; other content a further one.
        """
        return self.upload_stream(artifact_type, io.BytesIO(content), metadata).uri

    def upload_stream(
        self,
        artifact_type: str,
        source: IO[bytes],
        metadata: Mapping[str, Any] | None = None,
        *,
        sha256: str | None = None,
        size_bytes: int | None = None,
    ) -> StoredArtifact:
        """Store what a binary file holds from where it stands, without ever holding all of it in memory.

        A ``sha256`` or ``size_bytes`` that turns out otherwise: ``ArtifactUploadError``, and nothing is stored. Nor is
        it under a ``lease_epoch`` that is older than one which the task has uploads of: ``StaleLeaseError``.
        """
        _key_for(artifact_type, sidecar.as_json(metadata))
        with self._receive(None if self._compress else source) as incoming:
            incoming.take(source)
            return incoming.finish(artifact_type, metadata, sha256=sha256, size_bytes=size_bytes)

    def receive(self) -> IncomingArtifact:
        """An artifact that is written piece by piece. Its maker leaves its ``with`` block, or discards it."""
        return self._receive(None)

    def _receive(self, source: IO[bytes] | None) -> IncomingArtifact:
        return IncomingArtifact(self._blobs.draft(source), self._quota, self._finish, compress=self._compress)

    def _finish(
        self,
        incoming: IncomingArtifact,
        artifact_type: str,
        metadata: Mapping[str, Any] | None,
        sha256: str | None,
        size_bytes: int | None,
    ) -> StoredArtifact:
        details = sidecar.as_json(metadata)
        first = _key_for(artifact_type, details)
        now = self._clock.now()

        @cache
        def artifact() -> StoredArtifact:
            """The record; waits for the hash, and is refused when it is not the one that was announced."""
            _check_given(incoming, sha256, size_bytes)
            return sidecar.describe(first, self._blobs.uri(first), artifact_type, details, incoming=incoming, now=now)

        incoming.close_input()
        if not incoming.is_being_read:
            artifact()
        with self._blobs.exclusive(names.task_of(first)):
            refuse_overtaken(self._blobs, details)
            return self._place(artifact, incoming, first)

    def _place(self, artifact: Callable[[], StoredArtifact], incoming: IncomingArtifact, first: str) -> StoredArtifact:
        """Put the artifact at the first key that is free, or find it where it is already.

        Bytes without a description are never taken over: their uploader, or a deletion, may be at work on them.
        """
        for key in names.versions(first):
            there = self._described(key)
            if there is not None and not _is_same(there, artifact()):
                continue
            if incoming.draft.publish(key, incoming.encoding):
                placed = self._describe(key, artifact, there)
                self._quota.stored(incoming.stored_bytes)
                incoming.keep()
                return placed
            if there is not None:
                return there
        raise ArtifactUploadError(f"{self._blobs.named()} holds {names.MOST_VERSIONS} versions of {first}.")

    def _describe(
        self, key: str, artifact: Callable[[], StoredArtifact], before: StoredArtifact | None
    ) -> StoredArtifact:
        """Write the description of bytes that were just published; they go again when that cannot be done."""
        here = {"artifact_id": names.id_of(key), "uri": self._blobs.uri(key)}
        kept = {"tags": before.tags, "created_at": before.created_at} if before is not None else {}
        try:
            placed = artifact().model_copy(update=here | kept)
            self._blobs.write_small(names.sidecar_of(key), sidecar.written(placed))
        except RunnerError:
            with suppress(RunnerError):  # bytes without a description are swept later
                self._blobs.delete(names.sidecar_of(key))
                self._blobs.delete(key)
            raise
        return placed

    # --- out

    def get(self, reference: str) -> StoredArtifact:
        """An artifact's record; ``ArtifactNotFoundError``."""
        artifact = self._described(self._key(reference))
        if artifact is None:
            raise _not_found(reference)
        return artifact

    def download(self, reference: str) -> bytes:
        """An artifact's bytes, checked against the sha256 that they were stored with; ``ArtifactNotFoundError``."""
        return b"".join(self.read(reference).chunks)

    def download_to(self, reference: str, target: IO[bytes]) -> None:
        """Write an artifact's bytes to a binary file; after an error the file holds only a part of them."""
        for chunk in self.read(reference).chunks:
            target.write(chunk)

    def read(self, reference: str, start: int = 0, stop: int | None = None) -> ArtifactContent:
        """An artifact's bytes from ``start`` up to ``stop`` (None: the end), to be taken piece by piece."""
        artifact = self.get(reference)
        end = artifact.size_bytes if stop is None else min(stop, artifact.size_bytes)
        if start == 0 and end == artifact.size_bytes:
            return ArtifactContent(artifact, _checked(artifact, self._decoded(artifact, 0, None)))
        return ArtifactContent(artifact, self._decoded(artifact, start, max(start, end)))

    def _decoded(self, artifact: StoredArtifact, start: int, stop: int | None) -> Iterator[bytes]:
        key = self._key(artifact.artifact_id)
        try:
            if artifact.encoding is None:
                yield from self._blobs.chunks(key, start, stop)
            else:
                yield from _part(_unzipped(self._blobs.chunks(key, 0, None)), start, stop)
        except KeyError as error:
            raise _not_found(artifact.uri) from error
        except zlib.error as error:
            raise _damaged(artifact) from error

    # --- finding, tagging, deleting

    def find(self, wanted: ArtifactFilter = _ALL, *, limit: int = 100, cursor: str | None = None) -> ArtifactPage:
        """The artifacts that fit, in a stable order, at most ``limit`` (1 to 1000) of them from ``cursor`` on."""
        if not 1 <= limit <= MAX_PAGE:
            raise ServiceError(f"limit must be from 1 to {MAX_PAGE}, not {limit}.", status_code=400)
        found: list[StoredArtifact] = []
        for artifact in self.walk(wanted, after=_after(cursor)):
            if len(found) == limit:
                return ArtifactPage(items=tuple(found), next_cursor=found[-1].artifact_id)
            found.append(artifact)
        return ArtifactPage(items=tuple(found))

    def walk(self, wanted: ArtifactFilter = _ALL, *, after: str = "") -> Iterator[StoredArtifact]:
        """All artifacts that fit, in the order of their keys; those stored or deleted meanwhile may be among them."""
        for key in care.described_keys(self._blobs, wanted, after):
            artifact = self._described(key)
            if artifact is not None and wanted.fits(artifact):
                yield artifact

    def tag(self, reference: str, tags: Sequence[str]) -> StoredArtifact:
        """Replace an artifact's tags; ``keep`` keeps it from being swept."""
        try:
            checked = sidecar.check_tags(tags)
        except ValueError as error:
            raise ServiceError(f"The tags cannot be set: {error}.", status_code=400) from error
        key = self._key(reference)
        with self._blobs.exclusive(names.task_of(key)):
            artifact = self.get(reference).model_copy(update={"tags": checked})
            self._blobs.write_small(names.sidecar_of(key), sidecar.written(artifact))
        return artifact

    def delete(self, reference: str) -> DeletedArtifacts:
        """Delete one artifact; ``ArtifactNotFoundError``."""
        return self._delete(reference, _ALL.fits)

    def delete_matching(self, wanted: ArtifactFilter) -> DeletedArtifacts:
        """Delete the artifacts that fit. A filter that says nothing is refused: it would mean all of them."""
        if not wanted.model_dump(exclude_none=True):
            raise ServiceError(
                "A deletion needs a filter: without one it would delete everything.",
                hint="Give spec_name, task_id, run_id, type, tag, since or until.",
                status_code=400,
            )
        return self._delete_all(wanted, wanted.fits)

    def _delete_all(self, wanted: ArtifactFilter, is_meant: Callable[[StoredArtifact], bool]) -> DeletedArtifacts:
        count = freed = 0
        for artifact in self.walk(wanted):
            if is_meant(artifact):
                with suppress(ArtifactNotFoundError):  # somebody else was faster
                    deleted = self._delete(artifact.artifact_id, is_meant)
                    count, freed = count + deleted.deleted, freed + deleted.freed_bytes
        return DeletedArtifacts(deleted=count, freed_bytes=freed)

    def _delete(self, reference: str, is_meant: Callable[[StoredArtifact], bool]) -> DeletedArtifacts:
        """Delete an artifact if it is still meant: somebody may have tagged it since it was found."""
        key = self._key(reference)
        with self._blobs.exclusive(names.task_of(key)):
            artifact = self.get(reference)
            if not is_meant(artifact):
                return DeletedArtifacts(deleted=0, freed_bytes=0)
            self._blobs.delete(names.sidecar_of(key))
            self._blobs.delete(key)
        self._quota.freed(artifact.stored_bytes)
        return DeletedArtifacts(deleted=1, freed_bytes=artifact.stored_bytes)

    # --- care

    def usage(self) -> StorageUsage:
        """What is stored, by spec and by type, and the quota."""
        return care.usage(self.walk(), self._quota.limit_bytes)

    def sweep(self) -> SweepReport:
        """Delete what is older than ``retention_days`` for its type, and leftovers of uploads dead for a day."""
        now = self._clock.now()
        deleted = self._delete_all(_ALL, lambda one: care.is_expired(one, self._retention_days, KEEP_TAG, now))
        return care.swept(self._blobs, deleted, now)

    def verify(self, wanted: ArtifactFilter = _ALL) -> VerifyReport:
        """Read and re-hash the artifacts that fit; orphans are looked for with them. Nothing is changed."""
        return care.verify(self._blobs, wanted, self._described, lambda one: self.read(one.artifact_id).chunks)

    def export(self, target: IO[bytes], wanted: ArtifactFilter = _ALL) -> None:
        """Write a zip archive of the artifacts that fit to a binary file, with ``metadata.json``, which lists them."""
        for chunk in self.export_chunks(wanted):
            target.write(chunk)

    def export_chunks(
        self, wanted: ArtifactFilter = _ALL, *, shown: Callable[[StoredArtifact], StoredArtifact] | None = None
    ) -> Iterator[bytes]:
        """The archive of ``export``, piece by piece; ``shown`` may word the records of its list in another way."""
        artifacts = self.walk(wanted) if shown is None else map(shown, self.walk(wanted))
        return archive.zipped(artifacts, lambda one: self.read(one.artifact_id).chunks, self._clock.now())

    def _described(self, key: str) -> StoredArtifact | None:
        content = self._blobs.read_small(names.sidecar_of(key))
        return sidecar.read(key, self._blobs.uri(key), content) if content is not None else None

    def _key(self, reference: str) -> str:
        key = self._blobs.key_of(reference) if "://" in reference else names.key_of_id(reference)
        if key is None or not names.is_key(key):
            raise ArtifactNotFoundError(f"{reference!r} is no artifact of this store.", status_code=404)
        return key


def _key_for(artifact_type: str, metadata: Mapping[str, Any]) -> str:
    """The key for an artifact; ``ArtifactUploadError`` (400) when its names are no text that can be written down."""
    try:
        return names.key_for(artifact_type, metadata)
    except ValueError as error:
        raise ArtifactUploadError(f"The artifact cannot be named: {error}.", status_code=400) from error


def _check_given(incoming: IncomingArtifact, sha256: str | None, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes != incoming.size_bytes:
        raise ArtifactUploadError(
            f"{incoming.size_bytes} bytes came in where {size_bytes} were announced; nothing was stored.",
            status_code=422,
        )
    if sha256 is not None and sha256.lower() != incoming.sha256:
        raise ArtifactUploadError(
            f"The bytes that came in have the sha256 {incoming.sha256}, not {sha256}; nothing was stored.",
            status_code=422,
        )


def _is_same(one: StoredArtifact, other: StoredArtifact) -> bool:
    return (one.type, one.sha256, one.metadata) == (other.type, other.sha256, other.metadata)


def _after(cursor: str | None) -> str:
    if cursor is None:
        return ""
    key = names.key_of_id(cursor)
    if key is None:
        raise ServiceError("The cursor is not one that this store gave out.", status_code=400)
    return names.sidecar_of(key)


def _checked(artifact: StoredArtifact, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, the last one held back until all are known to be right."""
    digest, held = hashlib.sha256(), b""
    for chunk in chunks:
        digest.update(chunk)
        if held:
            yield held
        held = chunk
    if digest.hexdigest() != artifact.sha256:
        raise _damaged(artifact)
    if held:
        yield held


def _unzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(31)  # gzip
    for chunk in chunks:
        rest = chunk
        while rest:
            yield decoder.decompress(rest, CHUNK_BYTES)
            rest = decoder.unconsumed_tail
    yield decoder.flush()
    if not decoder.eof:
        raise zlib.error("the end is missing")


def _part(chunks: Iterator[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    position = 0
    for chunk in chunks:
        wanted = chunk[max(0, start - position) : None if stop is None else max(0, stop - position)]
        position += len(chunk)
        if wanted:
            yield wanted
        if stop is not None and position >= stop:
            return


def _not_found(reference: str) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(f"The artifact store has no artifact {reference}.", status_code=404)


def _damaged(artifact: StoredArtifact) -> ArtifactDamagedError:
    return ArtifactDamagedError(f"The artifact {artifact.artifact_id} is damaged: its sha256 differs.", status_code=410)
