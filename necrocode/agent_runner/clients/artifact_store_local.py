"""The embedded artifact store: a folder, ``{spec}/{task}/{run_id}/{name}``, with a ``.json`` beside each artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._artifact_folder import FolderBlobs
from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class LocalArtifactStore(SidecarArtifactStore):
    """Artifacts as files; the Protocol is :class:`~necrocode.agent_runner.ArtifactStore`. Safe for many processes.

    URIs are ``file:///…``. ``compress`` is off, so that people can open the files.
    """

    def __init__(
        self,
        root: Path,
        *,
        compress: bool = False,
        quota_bytes: int | None = None,
        retention_days: Mapping[str, float] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            FolderBlobs(root),
            compress=compress,
            quota_bytes=quota_bytes,
            retention_days=retention_days,
            clock=clock,
        )
