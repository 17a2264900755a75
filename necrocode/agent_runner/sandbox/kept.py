"""What set-up commands wrote, kept for the tests: moved out of their layer, and made fit to lie below others.

It is hostile as all that comes out of a layer. Only folders, regular files and links stay, without setuid bits, owned
by the runner's user and readable to it; links are never followed. ``files`` lies below a checkout, whose own files hide
it, and ``home`` below a fresh home folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._trees import remove_tree

if TYPE_CHECKING:
    from collections.abc import Container

    from necrocode.agent_runner.sandbox.layer import Layer

MAX_ENTRIES = 2_000_000
"""How many files and folders are kept at the most."""
_FOLDER_MODE, _FILE_MODE, _ALL = 0o700, 0o400, 0o777


def keep_written(layer: Layer, target: Path) -> None:
    """Move what commands wrote in the layer to ``files`` and ``home`` of ``target``; raises :class:`OSError`."""
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for source, name in ((layer.written, "files"), (layer.written_home, "home")):
        source.chmod(_FOLDER_MODE)  # commands may have taken our rights away
        try:
            source.rename(target / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copytree(source, target / name, symlinks=True, ignore=_neither_file_nor_folder)
        source.mkdir(exist_ok=True)


def made_fit(folder: Path, tracked: Container[str]) -> int:
    """Make a folder that :func:`keep_written` filled fit to lie below others; the bytes that it takes up on disk.

    ``tracked`` are the paths of the checkout's own files, and with a slash at their end those of its folders: what
    would stand in their place is removed, as is ``.git``. Raises :class:`OSError`.
    """
    taken, left = 0, MAX_ENTRIES
    for name in ("files", "home"):
        hidden = tracked if name == "files" else frozenset[str]()
        top = os.path.join(folder, name)
        _take_over(top, is_folder=True)
        waiting = [""]
        while waiting:
            path = waiting.pop()
            for child in _listed(os.path.join(top, path)):
                inner = os.path.join(path, child.name)
                left -= 1
                if left < 0:
                    raise OSError(f"more than {MAX_ENTRIES} files were written")
                if not _is_wanted(child, inner, hidden):
                    _remove(child)
                elif child.is_dir(follow_symlinks=False):
                    _take_over(child.path, is_folder=True)
                    waiting.append(inner)
                else:
                    _take_over(child.path, is_folder=False)
                    taken += child.stat(follow_symlinks=False).st_blocks * 512
    return taken


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


def _is_wanted(child: os.DirEntry[str], path: str, hidden: Container[str]) -> bool:
    """Whether it is a folder, a file or a link, and stands in place of nothing that the checkout has."""
    if child.is_dir(follow_symlinks=False):
        return path not in hidden and path != ".git"
    is_kept = child.is_symlink() or child.is_file(follow_symlinks=False)
    return is_kept and path not in hidden and f"{path}/" not in hidden and path != ".git"


def _remove(child: os.DirEntry[str]) -> None:
    if child.is_dir(follow_symlinks=False):
        remove_tree(Path(child.path))
    else:
        os.unlink(child.path)


def _take_over(path: str, *, is_folder: bool) -> None:
    """Make it the runner's own and readable to it, and take away what gives rights to others."""
    found = os.lstat(path)
    own = (os.getuid(), os.getgid())
    if (found.st_uid, found.st_gid) != own:
        os.lchown(path, *own)
    if not stat.S_ISLNK(found.st_mode):
        mode = found.st_mode & _ALL | (_FOLDER_MODE if is_folder else _FILE_MODE)
        if mode != stat.S_IMODE(found.st_mode):
            os.chmod(path, mode)


def _neither_file_nor_folder(folder: str, names: list[str]) -> set[str]:
    modes = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return {
        name for name, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    }
