"""A throw-away copy of a checkout: tests write into it, and it is dropped.

``overlay``: the kernel lays a writable layer over the checkout, in a user and mount namespace of the command's own;
milliseconds, whatever the size. ``copy``: a plain copy, where the kernel, the file system or a container forbids that.
Either way the checkout is never written to, and ``.git`` is not there to be found.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner._trees import remove_tree
from necrocode.agent_runner.sandbox.orphans import end_processes_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LayerKind = Literal["overlay", "copy"]

_PROBE_SECONDS = 10
_PREFIX = "layer-"
_DRAFT_PREFIX = "new-"
_YOUNG_SECONDS = 60.0  # between its making and its lock a folder looks like a dead one
# Arguments: lower folder, layer folder, uid, gid, command. The mapping makes us root inside, which mounting needs; a
# second one gives the command its own ids back. "cd" comes after the mount: before it, "." would be the empty folder.
_ENTER = """\
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,userxattr" "$2/top" || exit 125
cd "$2/top" || exit 125
if [ -d .git ]; then mount --bind "$2/empty" .git || exit 125; else rm -f .git; fi
: >"$2/entered" || exit 125
if [ "$3" = 0 ]; then exec sh -c "$5"; fi
exec unshare --user --map-user="$3" --map-group="$4" -- sh -c "$5"
"""
_FOLDERS = ("upper", "work", "top", "empty", "home", "tmp", "shown", "room", "etc")
_UNSAFE_IN_MOUNT_OPTIONS = frozenset(',:\\"\n')


@dataclass(frozen=True)
class Layer:
    """An open layer. ``home`` and ``temporary`` are fresh folders outside of it, dropped with it."""

    kind: LayerKind
    folder: Path
    checkout: Path
    brought_back: dict[str, tuple[int, int, int]] = field(default_factory=dict, compare=False)
    """What an earlier command's reports were, by their paths: see ``reports.Collection``."""

    @property
    def home(self) -> Path:
        """A fresh home folder."""
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        """A fresh folder for temporary files."""
        return self.folder / "tmp"

    def new_reports_folder(self) -> Path:
        """A fresh folder for one command's reports, under a name that no earlier command could take."""
        return Path(tempfile.mkdtemp(prefix="reports-", dir=self.folder))

    @property
    def written_folders(self) -> tuple[Path, ...]:
        """Where commands' files end up: of an overlay those that were written, of a copy all."""
        return (self.folder / ("upper" if self.kind == "overlay" else "top"), self.home, self.temporary)

    @property
    def start_folder(self) -> Path:
        """Where to start the command of :meth:`argv`."""
        return self.folder / "top"

    @property
    def entered(self) -> Path:
        """A file that the overlay's script makes when it hands over to the command."""
        return self.folder / "entered"

    def argv(self, command: str) -> list[str]:
        """The process to start for a shell command that is to run at the top of the layer."""
        if self.kind == "copy":
            return ["sh", "-c", command]
        ids = (str(os.getuid()), str(os.getgid()))
        namespace = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--")
        return [*namespace, "sh", "-c", _ENTER, "sh", str(self.checkout), str(self.folder), *ids, command]


@contextmanager
def open_layer(checkout: Path, root: Path, *, kind: LayerKind | None = None) -> Iterator[Layer]:
    """Lay a layer over ``checkout``, in a new folder under ``root``; raises :class:`OSError`.

    ``kind`` None: ``overlay`` where it works under ``root``, tried out once a process, else ``copy``.
    """
    root.mkdir(parents=True, exist_ok=True)
    chosen: LayerKind = kind or ("overlay" if can_be_named(checkout, root) and overlay_works(root) else "copy")
    with _folder(root) as folder:
        layer = Layer(chosen, folder, checkout)
        if chosen == "copy":
            ignore = _not_copied(checkout, root)
            shutil.copytree(checkout, folder / "top", symlinks=True, dirs_exist_ok=True, ignore=ignore)
        yield layer


def can_be_named(checkout: Path, root: Path) -> bool:
    """Whether the paths can stand in the options of an overlay mount."""
    return not _UNSAFE_IN_MOUNT_OPTIONS.intersection(f"{checkout}{root}")


@cache
def overlay_works(root: Path) -> bool:
    """Whether an overlay can be mounted under ``root`` by this user, found out by doing it."""
    with _folder(root) as folder:
        lower = folder / "lower"
        lower.mkdir()
        (lower / "below").write_text("below")
        layer = Layer("overlay", folder, lower)
        script = "cat below && echo above > above && rm below"
        try:
            done = subprocess.run(  # noqa: S603  our own command
                layer.argv(script), capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        kept_below = (lower / "below").exists() and not (lower / "above").exists()
        return done.returncode == 0 and done.stdout == b"below" and kept_below


@contextmanager
def _folder(root: Path) -> Iterator[Path]:
    _sweep_once(root)
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=root))
    held = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    folder = draft
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # the system gives it back when this process dies: see sweep_layers
        folder = draft.rename(root / draft.name.replace(_DRAFT_PREFIX, _PREFIX, 1))
        for name in _FOLDERS:
            (folder / name).mkdir()
        yield folder
    finally:
        os.close(held)
        remove_tree(folder)


@cache
def _sweep_once(root: Path) -> None:
    sweep_layers(root)


def sweep_layers(root: Path) -> list[str]:
    """End what processes that died have left running in their layers, and remove these; what was done, a line each.

    A layer that nobody holds is a dead one's. Before it has its name, it is told by its age.
    """
    done = []
    for folder in (*root.glob(f"{_PREFIX}*"), *root.glob(f"{_DRAFT_PREFIX}*")):
        with contextlib.suppress(OSError):
            is_draft = folder.name.startswith(_DRAFT_PREFIX)
            if is_draft and time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ended = end_processes_in(folder)
                remove_tree(folder)
            finally:
                os.close(handle)
            done.append(f"{folder.name}: removed" + (f", {ended} processes ended" if ended else ""))
    return done


def _not_copied(checkout: Path, root: Path) -> Callable[[str, list[str]], set[str]]:
    """Git's own folder, and the layers themselves where they lie inside the checkout."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(folder, name) in {checkout / ".git", root}}

    return ignore
