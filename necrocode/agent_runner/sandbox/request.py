"""What the launcher is asked to start: one JSON object, sent from the runner to a process of its own making."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

Wall = Literal["sandlock", "bwrap"]


@dataclass(frozen=True)
class Overlay:
    """A copy-on-write layer to mount: ``lowers`` from top to bottom, below the folders ``upper`` and ``work``."""

    target: str
    lowers: tuple[str, ...]
    owners: tuple[tuple[int, int], ...]
    """User and group of each of ``lowers``; their files show as owned by whoever runs the command."""
    upper: str
    work: str
    empty: str = ""
    """An empty folder, shown in place of ``.git``; empty: nothing is."""


@dataclass(frozen=True)
class Request:
    """One command, and all that it may see and do."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    wall: Wall
    layer: str
    """The folder of the layer."""
    folder: str
    """Where the command starts: the top of the layer, as it sees it."""
    readable: tuple[str, ...]
    """Files and folders it may read; a symlink is shown as one."""
    writable: tuple[str, ...]
    seen_at: dict[str, str] = field(default_factory=dict)
    """Those of ``writable`` that the command sees at another path."""
    replaced: dict[str, str] = field(default_factory=dict)
    """Files shown under another path."""
    temporary: str = ""
    """The folder that ``/tmp`` and ``/var/tmp`` are; empty: they are not to be seen."""
    overlays: tuple[Overlay, ...] = ()
    """What to mount first; none: the layer is a copy."""
    has_own_root: bool = True
    """Whether there are namespaces to be had: a root of its own, processes of its own, a network of its own."""
    has_network: bool = False
    user: tuple[int, int] | None = None
    """User and group to become; None: stay who one is."""
    max_processes: int = 0
    max_file_bytes: int = 0
    shared_memory_bytes: int = 0
    bwrap: str = "bwrap"

    @property
    def seen_writable(self) -> tuple[str, ...]:
        """What it may write to, as it sees it."""
        return tuple(self.seen_at.get(path, path) for path in self.writable)

    def to_json(self) -> bytes:
        """As the launcher reads it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Request:
        """As the runner wrote it."""
        values = json.loads(text)
        for name in ("argv", "readable", "writable"):
            values[name] = tuple(values[name])
        for one in values["overlays"]:
            one["lowers"] = tuple(one["lowers"])
            one["owners"] = tuple((user, group) for user, group in one["owners"])
        overlays, user = tuple(Overlay(**one) for one in values["overlays"]), values["user"]
        return cls(**values | {"overlays": overlays, "user": None if user is None else (user[0], user[1])})
