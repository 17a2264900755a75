"""Artifacts as a zip archive that is made while it is sent."""

from __future__ import annotations

import json
import tempfile
import zipfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.errors import ArtifactNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from necrocode.agent_runner.records import StoredArtifact

_SPOOLED_BYTES = 1 << 20
_EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)  # that a zip archive can say
_LATEST = datetime(2107, 12, 31, tzinfo=UTC)


def zipped(
    artifacts: Iterable[StoredArtifact], contents: Callable[[StoredArtifact], Iterator[bytes]], now: datetime
) -> Iterator[bytes]:
    """A zip archive, piece by piece: the artifacts under their keys, and ``metadata.json``, which comes last.

    An artifact that is damaged is marked so there, and its entry is incomplete. Nothing grows with the archive but its
    table of contents.
    """
    sink = _Sink()
    with (
        tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as listing,
        zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive,
    ):
        separator = b'{"artifacts": ['
        for artifact in artifacts:
            name = names.key_of_id(artifact.artifact_id) or artifact.artifact_id
            told = artifact.model_dump(mode="json") | {"file": name}
            with archive.open(_entry(name, artifact.created_at), "w", force_zip64=True) as entry:
                try:
                    for chunk in contents(artifact):
                        entry.write(chunk)
                        yield from sink.taken()
                except ArtifactNotFoundError as error:
                    told["damaged"] = str(error)
            listing.write(separator + b"\n" + json.dumps(told, ensure_ascii=False).encode())
            separator = b","
            yield from sink.taken()
        listing.write((separator if separator != b"," else b"") + b"\n]}\n")
        listing.seek(0)
        with archive.open(_entry("metadata.json", now), "w", force_zip64=True) as entry:
            while chunk := listing.read(_SPOOLED_BYTES):
                entry.write(chunk)
                yield from sink.taken()
    yield from sink.taken()


class _Sink:
    """A file that can only be written to, emptied again and again."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes, /) -> int:
        """Take the chunk."""
        self._chunks.append(bytes(chunk))
        return len(chunk)

    def close(self) -> None:
        """There is nothing to close."""

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> Iterator[bytes]:
        """What was written since the last time, if anything."""
        chunks, self._chunks = self._chunks, []
        if chunks:
            yield b"".join(chunks)


def _entry(name: str, moment: datetime) -> zipfile.ZipInfo:
    shown = min(max(moment.astimezone(UTC), _EARLIEST), _LATEST)
    entry = zipfile.ZipInfo(name, shown.timetuple()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
