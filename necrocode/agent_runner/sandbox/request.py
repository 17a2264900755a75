"""What the launcher is asked to start: one JSON object, sent from the runner to a process of its own making."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

Wall = Literal["sandlock", "bwrap"]


@dataclass(frozen=True)
class Overlay:
    """A copy-on-write layer to mount: ``lowers`` from top to bottom, below the folders ``upper`` and ``work``."""

    lowers: tuple[str, ...]
    upper: str
    work: str
    empty: str
    """An empty folder, shown in place of ``.git``."""
    owner: tuple[int, int]
    """User and group of the checkout; its files show as owned by whoever runs the command."""


@dataclass(frozen=True)
class Request:
    """One command, and all that it may see and do."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    wall: Wall
    folder: str
    """Where the command starts: the top of the layer."""
    readable: tuple[str, ...]
    """Files and folders it may read; a symlink is shown as one."""
    writable: tuple[str, ...]
    replaced: dict[str, str] = field(default_factory=dict)
    """Files shown under another path."""
    temporary: str = ""
    """The folder that ``/tmp`` and ``/var/tmp`` are; empty: they are not to be seen."""
    overlay: Overlay | None = None
    """What to mount at ``folder``; None: it holds a copy."""
    has_own_root: bool = True
    """Whether there are namespaces to be had: a root of its own, processes of its own, a network of its own."""
    has_network: bool = False
    user: tuple[int, int] | None = None
    """User and group to become; None: stay who one is."""
    max_processes: int = 0
    max_file_bytes: int = 0
    shared_memory_bytes: int = 0
    bwrap: str = "bwrap"

    def to_json(self) -> bytes:
        """As the launcher reads it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Request:
        """As the runner wrote it."""
        values = json.loads(text)
        for name in ("argv", "readable", "writable"):
            values[name] = tuple(values[name])
        overlay, user = values["overlay"], values["user"]
        if overlay is not None:
            lowers, owner = tuple(overlay["lowers"]), (overlay["owner"][0], overlay["owner"][1])
            overlay = Overlay(**overlay | {"lowers": lowers, "owner": owner})
        return cls(**values | {"overlay": overlay, "user": None if user is None else (user[0], user[1])})
