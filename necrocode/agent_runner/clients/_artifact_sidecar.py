"""The description of an artifact, a JSON file beside it. It is the truth: there is no database to lose.

An artifact exists while its description does. Descriptions are written after the bytes and deleted before them, so
that a death in between leaves bytes that nobody sees, and that a sweep removes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from necrocode.agent_runner._strict import check_json
from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.errors import ArtifactUploadError
from necrocode.agent_runner.records import StoredArtifact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from necrocode.agent_runner.clients._artifact_incoming import IncomingArtifact

MAX_METADATA_BYTES = 1_000_000
_MOST_TAGS = 50
_LONGEST_TAG = 100


def as_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as it will be read back; ``ArtifactUploadError`` (400) when it cannot be written as JSON."""
    try:
        text = json.dumps(dict(metadata or {}), ensure_ascii=False, allow_nan=False, default=str)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactUploadError(
            f"The metadata of the artifact cannot be written as JSON: {error}.", status_code=400
        ) from error
    if size > MAX_METADATA_BYTES:
        raise ArtifactUploadError(
            f"The metadata of the artifact are {size} bytes of JSON; {MAX_METADATA_BYTES} are the most.",
            hint="Store large data as an artifact of its own.",
            status_code=400,
        )
    value: dict[str, Any] = json.loads(text)
    try:
        return check_json(value)
    except ValueError as error:
        raise ArtifactUploadError(f"The metadata of the artifact {error}.", status_code=400) from error


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags in order, each once; ``ValueError`` naming the rule."""
    kept = tuple(sorted(set(tags)))
    if len(kept) > _MOST_TAGS:
        raise ValueError(f"there may be {_MOST_TAGS} tags, not {len(kept)}")
    for tag in kept:
        if not 1 <= len(tag) <= _LONGEST_TAG or not tag.isprintable() or tag != tag.strip():
            raise ValueError(f"a tag is 1 to {_LONGEST_TAG} printable characters without spaces around it, not {tag!r}")
    return kept


def describe(
    key: str, uri: str, artifact_type: str, metadata: dict[str, Any], *, incoming: IncomingArtifact, now: datetime
) -> StoredArtifact:
    """The record of an artifact that has come in whole."""
    return StoredArtifact(
        artifact_id=names.id_of(key),
        uri=uri,
        type=artifact_type,
        sha256=incoming.sha256,
        size_bytes=incoming.size_bytes,
        stored_bytes=incoming.stored_bytes,
        encoding=incoming.encoding,
        metadata=metadata,
        created_at=now,
        **_place(metadata),
    )


def written(artifact: StoredArtifact) -> bytes:
    """A record as the file beside the artifact; the place is read from the metadata."""
    described: dict[str, Any] = {
        "type": artifact.type,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "created_at": artifact.created_at.isoformat(),
        "metadata": artifact.metadata,
    }
    if artifact.encoding is not None:
        described |= {"encoding": artifact.encoding, "stored_bytes": artifact.stored_bytes}
    if artifact.tags:
        described["tags"] = list(artifact.tags)
    return json.dumps(described, ensure_ascii=False, indent=1).encode()


def read(key: str, uri: str, content: bytes) -> StoredArtifact | None:
    """The record in a file beside an artifact; None when it cannot be read as one."""
    try:
        described = json.loads(content)
        return StoredArtifact.model_validate(
            {
                "stored_bytes": described["size_bytes"],
                **described,
                "artifact_id": names.id_of(key),
                "uri": uri,
                **_place(described["metadata"]),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _place(metadata: Mapping[str, Any]) -> dict[str, str | None]:
    values = {name: metadata.get(name) for name in names.PLACE}
    return {name: None if value is None or value == "" else str(value) for name, value in values.items()}
