"""The checkout of one slot: made once, and from then on put back to how it was.

After each preparation the index is kept in a place of our own. It knows every file's size, inode and times as they were
when the slot was handed out; git, given that index instead of the one that the holder leaves, finds whatever has
changed since without reading the rest: content, mode, links, and whatever the holder's own index was told to overlook.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._bounded import is_over
from necrocode.agent_runner._git import MODE_SUBMODULE, GitError, Repository
from necrocode.agent_runner.clients._pool_files import write_again, write_whole
from necrocode.agent_runner.clients._pool_index import without_touched

if TYPE_CHECKING:
    from pathlib import Path

    from necrocode.agent_runner.clients._pool_files import Trash
    from necrocode.agent_runner.clients._pool_mirror import Mirror

logger = logging.getLogger(__name__)

_KEPT_BY_GIT = frozenset({"HEAD", "commondir", "gitdir", "index"})


@dataclass(frozen=True)
class _Known:
    """What a slot was when it was last handed out."""

    commit: str
    folders: dict[str, int]
    """Every folder of the commit, parents first, and its mode."""
    submodules: list[str]
    at_ns: int
    """When it was handed out, on the clock of its file system."""
    index: bytes


class SlotCheckout:
    """The files of one slot. Whoever calls holds the slot's lock, ``lock``."""

    def __init__(self, mirror: Mirror, path: Path, known_file: Path, trash: Trash, *, lock: int) -> None:
        self._mirror = mirror
        self._path = path
        self._admin = mirror.admin_folder(path.name)
        self._known_file = known_file
        self._trash = trash
        self._lock = lock
        self._repository = Repository(mirror.repository.git, path)

    def make_ready(self, base: str) -> None:
        """Exactly the files of ``base``, HEAD detached there; raises ``GitError`` and ``OSError``.

        ``TreeTooLargeError`` when they are too many, or too large. What cannot be cleaned, or was altered by something
        else than git, is moved aside and made anew.
        """
        known = self._read_known()
        if known is None or known.commit != base:
            room = shutil.disk_usage(self._path.parent.parent).free if known is None else None
            self._mirror.repository.check_size(base, room_bytes=room)
        trouble = "it is not known how it was" if known is None else self._alteration()
        if known is not None and trouble is None:
            try:
                self._clean(base, known)
            except (GitError, OSError) as error:
                if is_over():  # the files are not to blame
                    raise
                trouble = str(error)
            else:
                return
        if os.path.lexists(self._path):
            logger.warning("The slot %s is made anew: %s.", self._path.name, trouble)
        self._rebuild(base)

    def _rebuild(self, base: str) -> None:
        self._known_file.unlink(missing_ok=True)
        self._trash.take(self._path)
        self._mirror.add_worktree(self._path, base)
        self._run("reset", "--hard", "--quiet", base)
        self._keep(base, None)

    def _alteration(self) -> str | None:
        """What was changed that git itself never changes; None when nothing was."""
        if not _is_folder(self._path) or not _is_folder(self._admin):
            return "its folder, or git's folder for it, is not there"
        expected = {
            self._path / ".git": f"gitdir: {os.path.realpath(self._admin)}\n",
            self._admin / "gitdir": f"{os.path.realpath(self._path)}/.git\n",
            self._admin / "commondir": "../..\n",
        }
        wrong = [file for file, content in expected.items() if not _holds(file, content.encode())]
        return f"{wrong[0]} does not say what it should" if wrong else None

    def _clean(self, base: str, known: _Known) -> None:
        for file in list(self._admin.iterdir()):  # merges and rebases under way, locks, reflogs, configuration, refs
            if file.name not in _KEPT_BY_GIT or not stat.S_ISREG(file.lstat().st_mode):
                self._trash.take(file)
        if not _holds(self._admin / "HEAD", f"{base}\n".encode()):
            write_whole(self._admin / "HEAD", f"{base}\n".encode())
        settled = without_touched(known.index, self._path, known.at_ns)
        write_again(self._admin / "index", known.index if settled is None else settled)
        if settled is None:
            os.utime(self._admin / "index", ns=(known.at_ns, known.at_ns))
        self._restore_modes(known)
        self._run("checkout-index", "--all", "--force", "--index", "--quiet")
        if known.commit != base:
            self._run("reset", "--hard", "--quiet", base)
        self._run("clean", "-ffdxq")
        self._keep(base, known)

    def _restore_modes(self, known: _Known) -> None:
        """Folders' modes, which git does not know. Below a link nothing is touched: it may lead anywhere."""
        passed_over: tuple[str, ...] = ()
        for name, mode in known.folders.items():
            path = self._path / name
            if name.startswith(passed_over):
                continue
            if not _is_folder(path):
                passed_over += (f"{name}/",)
            elif stat.S_IMODE(path.lstat().st_mode) != mode:
                path.chmod(mode)

    def _keep(self, base: str, known: _Known | None) -> None:
        """Remember how the slot is now, which is how it is handed out."""
        (self._admin / "ORIG_HEAD").unlink(missing_ok=True)  # where the last holder's HEAD was; "reset" writes it
        if known is not None and known.commit == base:
            folders, submodules = known.folders, known.submodules
        else:
            folders, submodules = self._layout(base)
        self._remove_hidden(folders, submodules)
        for name in submodules:  # git leaves alone what is in there
            if list((self._path / name).iterdir()):
                self._trash.take(self._path / name)
                (self._path / name).mkdir()
        # git compares times by the second, and looks twice at files that are as new as the index. Nobody has touched
        # the files since: as of now, only what changes in this second or later needs a second look.
        os.utime(self._admin / "index")
        content = (self._admin / "index").read_bytes()
        at_ns = (self._admin / "index").stat().st_mtime_ns
        head = {"commit": base, "folders": folders, "submodules": submodules, "at_ns": at_ns, "size": len(content)}
        self._known_file.parent.mkdir(exist_ok=True)
        write_again(self._known_file, json.dumps(head).encode() + b"\n" + content)

    def _remove_hidden(self, folders: dict[str, int], submodules: list[str]) -> None:
        """What "git clean" does not see: FIFOs, sockets, devices, and folders that hold nothing else."""
        known = {*folders, *submodules}
        for name in folders:
            with os.scandir(self._path / name) as entries:
                odd = [
                    entry.name
                    for entry in entries
                    if not entry.is_file(follow_symlinks=False)
                    and not entry.is_symlink()
                    and not (entry.is_dir(follow_symlinks=False) and f"{name}/{entry.name}".lstrip("/") in known)
                ]
            for entry_name in odd:
                self._trash.take(self._path / name / entry_name)

    def _layout(self, base: str) -> tuple[dict[str, int], list[str]]:
        folders: list[str] = [""]
        submodules: list[str] = []
        for record in filter(None, self._run("ls-tree", "-r", "-d", "-z", "--full-tree", base).split(b"\0")):
            header, _, name = record.decode(errors="surrogateescape").partition("\t")
            (submodules if header.startswith(MODE_SUBMODULE) else folders).append(name)
        return {name: stat.S_IMODE((self._path / name).lstat().st_mode) for name in folders}, submodules

    def _read_known(self) -> _Known | None:
        try:
            head, _, index = self._known_file.read_bytes().partition(b"\n")
            data: dict[str, Any] = json.loads(head)
            known = _Known(index=index, **{name: data[name] for name in ("commit", "folders", "submodules", "at_ns")})
            return known if data["size"] == len(index) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _run(self, *argv: str) -> bytes:
        return self._repository.run(*argv, pass_fds=(self._lock,))


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _holds(file: Path, content: bytes) -> bool:
    """Whether it is a file, no link, with this content."""
    try:
        found = file.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size == len(content) and file.read_bytes() == content
    except OSError:
        return False
