"""Writes that survive a crash: whole or not at all, and on the disk when they return.

Everything that a runner must find again after it was killed is written through here, so that the tests which kill it
around every such write miss none.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Put the file there, in place of an older one; readers see the old one or the new one. Folders are made.

    Raises :class:`OSError`; then the old one is still there.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append(descriptor: int, content: bytes) -> None:
    """Add to a file that was opened for appending. Raises :class:`OSError`; then a part of it may be there."""
    _write_all(descriptor, content)
    os.fsync(descriptor)


def remove_file(path: Path) -> None:
    """Remove the file for good; harmless when it is gone."""
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """The folder and its parents, for this user alone where they are new."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Make the names in the folder last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
