"""An artifact store service in a process of its own, which tests may kill."""

from __future__ import annotations

import sys
from pathlib import Path

from necrocode.agent_runner import LocalArtifactStore, S3ArtifactStore
from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore
from necrocode.services import _serving
from necrocode.services.artifact_store import artifact_store_service


def main(place: str, folder: str) -> None:
    store: SidecarArtifactStore
    if place.startswith("s3://"):
        store = S3ArtifactStore(place, spool_dir=Path(folder) / "spool")
    else:
        store = LocalArtifactStore(Path(place), compress=True)
    service = artifact_store_service(store, answers_file=Path(folder) / "answers.db")
    serving = _serving.Serving(service, "127.0.0.1", 0)
    _serving.serve([serving], on_ready=lambda _, url: print(url, flush=True))  # noqa: T201  who started it reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
