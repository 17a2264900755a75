"""The workspace of a run: what allocate makes and the later steps work in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner.heartbeat import Hold


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
    hold: Hold | None = field(default=None, compare=False)
    """On the checkout. None: nobody else is given it, or the pool knows no leases."""

    def check_hold(self) -> None:
        """Return while the checkout is ours to write to; ``StaleLeaseError`` when it may no longer be."""
        if self.hold is not None:
            self.hold.check()

    @property
    def path(self) -> Path:
        """The checkout's top folder."""
        return self.repository.path
