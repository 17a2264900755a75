"""The workspace of a run: what allocate makes and the later steps work in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner.heartbeat import Hold

_COMMIT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
    """Where the branch is pushed to: a URL or a path. None: nowhere."""
    epoch: int | None = None
    is_brought: bool = False
    """Whether the caller brought it: then its files and its HEAD are the caller's."""
    head: str | None = None
    """Of a brought checkout: the branch or commit that its HEAD was at, to be put back there."""
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
