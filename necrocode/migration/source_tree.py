"""The Python files below a folder that a person wrote: no links, no environments, no repositories' insides."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "build", "dist"})
_ENDINGS = (".py", ".pyi")


def python_files(paths: list[Path]) -> Iterator[Path]:
    """The files that are named, and those below the folders that are, each once and in order of their names.

    Links and hidden folders are not followed, nor is a folder that holds ``pyvenv.cfg``. Raises
    :class:`ConfigurationError` for a path that is not there, before the first file.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise ConfigurationError(f"There is no {path}.")
    seen: set[Path] = set()
    for path in paths:
        for file in _below(path) if path.is_dir() else [path]:
            place = Path(os.path.realpath(file))
            if place not in seen:
                seen.add(place)
                yield file


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):  # a folder that cannot be listed holds nothing to be rewritten
        folders[:] = sorted(name for name in folders if not _is_skipped(Path(place, name)))
        for name in sorted(names):
            file = Path(place, name)
            if name.endswith(_ENDINGS) and _is_regular(file):
                yield file


def _is_skipped(folder: Path) -> bool:
    return folder.name in _SKIPPED or folder.name.startswith(".") or (folder / "pyvenv.cfg").exists()


def _is_regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except OSError:
        return False
