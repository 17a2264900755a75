"""Looking after a store as a whole: what is in it, what is too old, what is damaged."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.errors import ArtifactDamagedError, ArtifactNotFoundError
from necrocode.agent_runner.records import (
    ArtifactFilter,
    DeletedArtifacts,
    StorageUsage,
    StoredArtifact,
    SweepReport,
    UsageShare,
    VerifyReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from necrocode.agent_runner.clients._artifact_blobs import Blob, Blobs

    Contents = Callable[[StoredArtifact], Iterator[bytes]]

LEFTOVER_AGE = timedelta(days=1)
"""No upload takes this long; what is still unfinished then belongs to nobody."""


def stored_bytes(blobs: Blobs) -> int:
    """What all artifacts take up, without their descriptions."""
    return sum(blob.size_bytes for blob in blobs.walk("", "") if names.is_key(blob.key))


def described_keys(blobs: Blobs, wanted: ArtifactFilter, after: str = "") -> Iterator[str]:
    """The keys of artifacts that have a description and lie where a filter points."""
    for blob in blobs.walk(_prefix(wanted), after):
        key = names.described_by(blob.key)
        if key is not None and names.is_key(key):
            yield key


def usage(artifacts: Iterable[StoredArtifact], quota_bytes: int | None) -> StorageUsage:
    """Sums, overall and by spec and type."""
    specs: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    types: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in artifacts:
        for sums in (specs[one.spec_name or ""], types[one.type]):
            for number, amount in enumerate((1, one.size_bytes, one.stored_bytes)):
                sums[number] += amount
    totals = [sum(column) for column in zip(*types.values(), strict=True)] or [0, 0, 0]
    return StorageUsage(
        count=totals[0],
        size_bytes=totals[1],
        stored_bytes=totals[2],
        quota_bytes=quota_bytes,
        by_spec={name: _share(sums) for name, sums in specs.items()},
        by_type={name: _share(sums) for name, sums in types.items()},
    )


def is_expired(artifact: StoredArtifact, days: Mapping[str, float], keep_tag: str, now: datetime) -> bool:
    """Whether an artifact is older than its type is kept."""
    kept_days = days.get(artifact.type)
    return (
        kept_days is not None
        and keep_tag not in artifact.tags
        and artifact.created_at <= now - timedelta(days=kept_days)
    )


def swept(blobs: Blobs, deleted: DeletedArtifacts, now: datetime) -> SweepReport:
    """Remove leftovers too: drafts, and bytes without a description."""
    before = (now - LEFTOVER_AGE).timestamp()
    leftovers = blobs.clear_drafts(before=before)
    for orphan in _orphans(blobs, ""):
        if orphan.modified_at < before and blobs.read_small(names.sidecar_of(orphan.key)) is None:
            blobs.delete(orphan.key)
            leftovers += 1
    return SweepReport(deleted=deleted.deleted, freed_bytes=deleted.freed_bytes, leftovers=leftovers)


def verify(
    blobs: Blobs,
    wanted: ArtifactFilter,
    described: Callable[[str], StoredArtifact | None],
    contents: Contents,
) -> VerifyReport:
    """Read everything that fits."""
    checked = checked_bytes = 0
    damaged: list[str] = []
    missing: list[str] = []
    for key in described_keys(blobs, wanted):
        artifact = described(key)
        if artifact is None:
            if blobs.read_small(names.sidecar_of(key)) is not None:  # there is one, but it says nothing
                damaged.append(names.id_of(key))
        elif wanted.fits(artifact):
            checked += 1
            try:
                checked_bytes += sum(map(len, contents(artifact)))
            except ArtifactNotFoundError as error:
                if described(key) is not None:  # else it was deleted meanwhile
                    is_damaged = isinstance(error, ArtifactDamagedError)
                    (damaged if is_damaged else missing).append(artifact.artifact_id)
    orphans = tuple(blob.key for blob in _orphans(blobs, _prefix(wanted)))
    return VerifyReport(
        checked=checked, checked_bytes=checked_bytes, damaged=tuple(damaged), missing=tuple(missing), orphans=orphans
    )


def _share(sums: list[int]) -> UsageShare:
    return UsageShare(count=sums[0], size_bytes=sums[1], stored_bytes=sums[2])


def _prefix(wanted: ArtifactFilter) -> str:
    """The deepest folder that holds all that a filter can mean."""
    prefix = ""
    for name in names.PLACE:
        value = getattr(wanted, name)
        if value is None:
            break
        prefix += f"{names.part(value, name)}/"
    return prefix


def _orphans(blobs: Blobs, prefix: str) -> Iterator[Blob]:
    """Bytes at artifacts' keys without a description, which would come after them, with others in between."""
    waiting: dict[str, Blob] = {}
    folder = ""
    for blob in blobs.walk(prefix, ""):
        described = names.described_by(blob.key)
        key = described or blob.key
        if not names.is_key(key):
            continue
        if (here := key.rpartition("/")[0]) != folder:
            yield from waiting.values()
            waiting, folder = {}, here
        if described is None:
            waiting[key] = blob
        else:
            waiting.pop(key, None)
    yield from waiting.values()
