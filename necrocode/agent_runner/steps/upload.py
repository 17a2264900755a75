"""Upload: store what came of the run, whether it went well or not."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._bounded import in_time
from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.models import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from necrocode.agent_runner.protocols import ArtifactStore


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
            work = partial(store.upload, artifact_type, content, metadata)
            uri = in_time(work, doing=f"store the {artifact_type} artifact")
        except RunnerError as error:
            on_trouble(f"The {artifact_type} artifact was not stored: {error}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        stored.append(Artifact(type=artifact_type, uri=uri, size_bytes=len(content), sha256=digest))
    return tuple(stored)
