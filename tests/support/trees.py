"""Trees that nobody makes by accident."""

from __future__ import annotations

import os
from pathlib import Path

_LEVELS = 1500


def make_deep(folder: Path) -> None:
    """Folders in folders, far beyond both the recursion limit and the longest path."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(_LEVELS):
        os.mkdir("q" * 50, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("q" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
