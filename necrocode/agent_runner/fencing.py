"""What the writes of a run carry, so that those of a runner that was overtaken are known and refused."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, SecretStr

from necrocode.agent_runner._strict import Value

_LARGEST_EPOCH = 2**62
_EPOCH, _LINEAGE, _RUN = "Necrocode-Epoch", "Necrocode-Lineage", "Necrocode-Run"
_TRAILERS = re.compile(r"(?:[A-Za-z0-9-]+: .*\n?)+")
_OURS = re.compile(r"^(?=\s*necrocode-(?:epoch|lineage|run)\s*:)", re.IGNORECASE | re.MULTILINE)


def _format(key: str) -> str:
    return f"%(trailers:key={key},valueonly,separator=%x2C)"


LOG_FORMAT = f"%ce%x00{_format(_EPOCH)}%x00{_format(_LINEAGE)}"
"""For ``git log``: the committer's address, and what :func:`fence_in` reads, parted by NULs."""


class Fence(Value):
    """The number of a run's claim on its task; it grows with every claim, and older ones lose."""

    epoch: int = Field(ge=0, le=_LARGEST_EPOCH)
    lineage: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9_-]*$")
    """Which count the number is of: another registry, or one that was made anew, counts anew. Empty: not known.

    Numbers of different counts say nothing of each other, and are not compared.
    """

    def is_older_than(self, other: Fence) -> bool:
        """Whether the other is of a later claim on the same task."""
        return self.lineage == other.lineage and self.epoch < other.epoch

    def metadata(self) -> dict[str, Any]:
        """The same in an artifact's metadata."""
        return {"lease_epoch": self.epoch} | ({"lease_lineage": self.lineage} if self.lineage else {})


class HandedLease(Fence):
    """A hold on a task that somebody else has claimed for this run."""

    token: SecretStr = Field(min_length=1, max_length=200)
    """What renews the lease and gives it back: whoever has it can do both."""

    @property
    def fence(self) -> Fence:
        """The lease without its secret."""
        return Fence(epoch=self.epoch, lineage=self.lineage)


def signed(message: str, run_id: str, fence: Fence | None) -> str:
    """A commit message with trailers (``git interpret-trailers``) that say which run made it, and under which epoch."""
    text = _OURS.sub("> ", message).rstrip()  # what a task's text says of itself is no trailer
    trailers = [] if run_id in text else [f"{_RUN}: {run_id}"]
    if fence is not None:
        trailers.append(f"{_EPOCH}: {fence.epoch}")
        trailers += [f"{_LINEAGE}: {fence.lineage}"] if fence.lineage else []
    _, is_parted, last = text.rpartition("\n\n")
    gap = "\n" if is_parted and _TRAILERS.fullmatch(last) else "\n\n"
    return text + gap + "\n".join(trailers) + "\n" if trailers else text


def fence_in(epochs: str, lineages: str) -> Fence | None:
    """The fence that a commit's trailers name; None where there is none, or none that can be one."""
    epoch, lineage = epochs.rpartition(",")[2], lineages.rpartition(",")[2]
    try:
        return Fence(epoch=int(epoch), lineage=lineage) if epoch.isascii() and epoch.isdigit() else None
    except ValueError:
        return None
