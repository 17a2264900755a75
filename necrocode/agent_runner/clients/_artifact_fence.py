"""Refusing what an overtaken runner uploads: a store remembers the newest epoch that it has seen for each task.

A claim of a task that has uploaded something has a marker of its own. Markers are made and never changed, so nobody's
can be lost by another's, and no lock is needed: whoever puts theirs first, and then looks for newer ones, sees them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.errors import ArtifactUploadError, StaleLeaseError
from necrocode.agent_runner.fencing import Fence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from necrocode.agent_runner.clients._artifact_blobs import Blobs

_MARKERS = "+epochs"  # a part of an artifact's key never holds a plus
_DIGITS = 19  # of the largest epoch: so their names come in their order


def refuse_overtaken(blobs: Blobs, metadata: Mapping[str, Any]) -> None:
    """Raise ``StaleLeaseError`` when a later claim of the same task has uploaded something; else remember this one.

    Metadata without ``lease_epoch``, or without a task, is of nobody's claim. ``ArtifactUploadError`` (400) when it
    names an epoch that can be none.
    """
    fence = _fence(metadata)
    if fence is None:
        return
    task = "/".join(names.part(metadata[name], name) for name in ("spec_name", "task_id"))
    folder = f"{_MARKERS}/{task}/{fence.lineage or '-'}/"
    ours = f"{folder}{fence.epoch:0{_DIGITS}d}"
    _refuse_older(blobs, folder, ours, metadata)
    if blobs.read_small(ours) is None:
        blobs.write_small(ours, b"{}")
        _refuse_older(blobs, folder, ours, metadata)  # one that was put there meanwhile
        for older in [blob.key for blob in blobs.walk(folder, "") if blob.key < ours]:
            blobs.delete(older)


def _refuse_older(blobs: Blobs, folder: str, ours: str, metadata: Mapping[str, Any]) -> None:
    if any(True for _ in blobs.walk(folder, ours)):
        raise StaleLeaseError(
            f"Task {metadata['task_id']} of spec {metadata['spec_name']} has a newer run, which has uploaded something:"
            f" what a run of epoch {metadata['lease_epoch']} uploads is refused.",
            status_code=409,
        )


def _fence(metadata: Mapping[str, Any]) -> Fence | None:
    told = metadata.get("lease_epoch")
    if told is None or not all(metadata.get(name) for name in ("spec_name", "task_id")):
        return None
    try:
        return Fence.model_validate({"epoch": told, "lineage": metadata.get("lease_lineage") or ""}, strict=True)
    except ValidationError as error:
        raise ArtifactUploadError(
            "The metadata of the artifact name a lease_epoch or lease_lineage that can be none.", status_code=400
        ) from error
