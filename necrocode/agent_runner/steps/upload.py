"""Upload: store what came of the run, whether it went well or not."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.models import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner.protocols import ArtifactStore

MANIFEST_SCHEMA_VERSION = 1


def upload(
    store: ArtifactStore,
    outputs: Iterable[tuple[str, bytes]],
    metadata: dict[str, Any],
    *,
    on_trouble: Callable[[str], None],
) -> tuple[Artifact, ...]:
    """Store each (type, content); one that cannot be stored is told to ``on_trouble``, and the others still are."""
    stored: list[Artifact] = []
    for artifact_type, content in outputs:
        try:
            uri = store.upload(artifact_type, content, metadata)
        except RunnerError as error:
            on_trouble(f"The {artifact_type} artifact was not stored: {error}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        stored.append(Artifact(type=artifact_type, uri=uri, size_bytes=len(content), sha256=digest))
    return tuple(stored)


def manifest(metadata: Mapping[str, Any], outputs: Sequence[tuple[str, bytes]], stored: Sequence[Artifact]) -> bytes:
    """What a run has uploaded, as JSON: stored last of all, so that whoever finds it knows that the rest is there."""
    types = {artifact.type for artifact in stored}
    listing = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        **metadata,
        "artifacts": [artifact.model_dump() for artifact in stored],
        "missing": [artifact_type for artifact_type, _ in outputs if artifact_type not in types],
    }
    return json.dumps(listing, ensure_ascii=False, indent=1).encode(errors="backslashreplace")
