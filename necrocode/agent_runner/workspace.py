"""The workspace of a run: what allocate makes and the later steps work in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import StaleLeaseError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner._git import ObjectReader, Repository

_COMMIT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass
class Hold:
    """How surely a slot is still ours: by the pool's word, and by the time since that was last heard.

    The time is monotonic and counts from before the pool was asked, so a runner that was asleep knows at once, without
    the pool, that its lease may have been given away.
    """

    slot_id: str
    clock: Clock
    lease_seconds: float
    renewed_at: float
    """By the monotonic clock: when the renewal that worked was asked for."""
    is_lost: bool = False

    def check(self) -> None:
        """Return while the slot is ours; ``StaleLeaseError`` once it may be another's."""
        if self.is_lost or self.clock.monotonic() - self.renewed_at >= self.lease_seconds:
            raise StaleLeaseError(
                f"The lease on slot {self.slot_id} is over, and the slot may be another runner's by now.",
                hint="Run the task again; if the machine was not asleep, raise lease_seconds.",
            )


@dataclass(frozen=True)
class StartPoint:
    """Where an interrupted run started from, so that it goes on from there however its branch has moved since."""

    base_commit: str
    head: str | None
    """Of a brought checkout: where its HEAD was."""

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> StartPoint | None:
        """The one in a journal's entry; None where there is none."""
        values = {} if data is None else data
        base, head = values.get("base_commit"), values.get("head")
        is_commit = isinstance(base, str) and _COMMIT_ID.fullmatch(base) is not None
        return cls(str(base), head if isinstance(head, str) else None) if is_commit else None


@dataclass(frozen=True)
class Workspace:
    """A clean checkout, with the commit that the task starts from."""

    repository: Repository
    objects: ObjectReader
    """Open as long as the workspace is."""
    slot_id: str
    base_commit: str
    remote: str | None
    """Where the branch is pushed to: a URL, a path or a remote's name. None: nowhere."""
    epoch: int | None = None
    is_brought: bool = False
    """Whether the caller brought it: then its files and its HEAD are the caller's."""
    head: str | None = None
    """Of a brought checkout: the branch or commit that its HEAD was at, to be put back there."""
    hold: Hold | None = field(default=None, compare=False)
    """None: nobody else is given the checkout, or the pool knows no leases."""

    def check_hold(self) -> None:
        """Return while the checkout is ours to write to; ``StaleLeaseError`` when it may no longer be."""
        if self.hold is not None:
            self.hold.check()

    @property
    def path(self) -> Path:
        """The checkout's top folder."""
        return self.repository.path
