"""Removing a tree that others have made: of any depth, with any modes and links, longer than a path may be."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ALL_MODES = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it; symlinks are removed, never followed. What cannot be removed stays.

    A folder inside a folder is moved up to the top before it is emptied. So no path is longer than three names, and
    three folders are open at most, however deep the tree is; shutil.rmtree gives up at Python's recursion limit.
    """
    with suppress(OSError), _opened(str(folder)) as top:
        waiting = list(_left_in(top))
        while waiting:
            name = waiting.pop()
            with suppress(OSError):
                waiting += _emptied(name, top)
                os.rmdir(name, dir_fd=top)
    with suppress(OSError):
        folder.rmdir()


def _emptied(name: str, top: int) -> list[str]:
    """Empty a folder of ``top``; the folders that were in it lie in ``top`` now, under these names."""
    moved: list[str] = []
    with _opened(name, top) as folder:
        for inner in _left_in(folder):
            new_name = secrets.token_hex(16)
            with suppress(OSError):
                _move(inner, folder, new_name, top)
                moved.append(new_name)
    return moved


def _left_in(folder: int) -> list[str]:
    """Remove whatever is no folder, or an empty one; the names of the others."""
    with os.scandir(folder) as entries:
        # In the order in which they lie on the disk: many times faster where there are thousands.
        listed = sorted(entries, key=lambda entry: entry.inode())
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listed]
    left = []
    for name, is_folder in found:
        try:
            if is_folder:
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        except OSError:
            if is_folder:
                left.append(name)
    return left


def _move(name: str, source: int, new_name: str, target: int) -> None:
    try:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        _permit(name, source)  # moving a folder writes its ".."
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)


@contextmanager
def _opened(name: str, parent: int | None = None) -> Iterator[int]:
    """The folder, open, and with all rights for its owner."""
    try:
        handle = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        _permit(name, parent)
        handle = os.open(name, _FOLDER, dir_fd=parent)
    try:
        with suppress(PermissionError):  # of another user; we may still be allowed to write in there
            os.fchmod(handle, _ALL_MODES)
        yield handle
    finally:
        os.close(handle)


def _permit(name: str, parent: int | None) -> None:
    """Give the owner all rights, through a handle: the name could become a link, which chmod would follow."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", _ALL_MODES)  # noqa: PTH101  fchmod refuses such a handle
    finally:
        os.close(handle)
