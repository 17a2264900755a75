"""A throw-away copy of a checkout: tests write into it, and it is dropped.

``overlay``: the kernel lays a writable layer over the checkout, in a user and mount namespace of the command's own;
milliseconds, whatever the size. ``copy``: a plain copy, where the kernel, the file system or a container forbids that.
Either way the checkout is never written to, and ``.git`` is not there to be found.

What set-up commands made can lie below both: under the checkout's files, which hide it, and under the home folder.
Where there are mounts, commands see every layer at one and the same path, so that what names its own path stays true.
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

    from necrocode.agent_runner._clock import Deadline

LayerKind = Literal["overlay", "copy"]

_PROBE_SECONDS = 10
_PREFIX = "layer-"
_DRAFT_MARK = "new-"
_YOUNG_SECONDS = 60.0  # between its making and its lock a folder looks like a dead one
# Arguments: lower folders, layer folder, uid, gid, command, where it is seen, what lies below home (may be empty). The
# mapping makes us root inside, which mounting needs; a second one gives the command its own ids back. "cd" comes after
# the mount: before it, "." would be the empty folder.
_ENTER = """\
mkdir -p "$6/top" "$6/home" || exit 125
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,userxattr" "$6/top" || exit 125
if [ -n "$7" ]; then
    lower="lowerdir=$7,upperdir=$2/home-upper,workdir=$2/home-work,userxattr"
    mount -t overlay overlay -o "$lower" "$6/home" || exit 125
else
    mount --bind "$2/home" "$6/home" || exit 125
fi
cd "$6/top" || exit 125
if [ -d .git ]; then mount --bind "$2/empty" .git || exit 125; else rm -f .git; fi
: >"$2/entered" || exit 125
if [ "$3" = 0 ]; then exec sh -c "$5"; fi
exec unshare --user --map-user="$3" --map-group="$4" -- sh -c "$5"
"""
_FOLDERS = (
    "upper", "work", "top", "empty", "home", "home-upper", "home-work", "tmp", "shown", "room", "etc",
)  # fmt: skip
_MOUNTED = "layer-mounted"  # beside the folder of layers: in there it would be taken for one
_UNSAFE_IN_MOUNT_OPTIONS = frozenset(',:\\"\n')


@dataclass(frozen=True)
class Layer:
    """An open layer. ``home`` and ``temporary`` are fresh folders outside of it, dropped with it."""

    kind: LayerKind
    folder: Path
    checkout: Path
    below: Path | None = None
    """What set-up commands made: its folders ``files`` and ``home``. None: there is nothing of the kind."""
    mounted: Path | None = None
    """The folder in which commands see the copy and their home; None: where they are."""
    has_network: bool = False
    """Whether commands may use the network, as far as the sandbox holds them."""
    brought_back: dict[str, tuple[int, int, int]] = field(default_factory=dict, compare=False)
    """What an earlier command's reports were, by their paths: see ``reports.Collection``."""

    @property
    def top(self) -> Path:
        """Where the copy is, or is mounted in namespaces of the commands' own."""
        return self.folder / "top"

    @property
    def home(self) -> Path:
        """A fresh home folder."""
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        """A fresh folder for temporary files."""
        return self.folder / "tmp"

    @property
    def start_folder(self) -> Path:
        """The top of the copy, as commands see it."""
        return (self.mounted or self.folder) / "top"

    @property
    def seen_home(self) -> Path:
        """The home folder, as commands see it."""
        return (self.mounted or self.folder) / "home"

    def new_reports_folder(self) -> Path:
        """A fresh folder for one command's reports, under a name that no earlier command could take."""
        return Path(tempfile.mkdtemp(prefix="reports-", dir=self.folder))

    @property
    def written(self) -> Path:
        """Where files that commands write below the top end up: of an overlay those alone, of a copy all."""
        return self.folder / ("upper" if self.kind == "overlay" else "top")

    @property
    def written_home(self) -> Path:
        """The same for the home folder."""
        return self.folder / ("home-upper" if self.kind == "overlay" and self.below is not None else "home")

    @property
    def written_folders(self) -> tuple[Path, ...]:
        """All that commands write to, the reports of earlier ones included."""
        return (self.written, self.written_home, self.temporary, *self.folder.glob("reports-*"))

    @property
    def entered(self) -> Path:
        """A file that the overlay's script makes when it hands over to the command."""
        return self.folder / "entered"

    def argv(self, command: str) -> list[str]:
        """The process to start for a shell command that is to run at the top of the layer."""
        if self.kind == "copy":
            return ["sh", "-c", command]
        lowers = [str(self.checkout), *([] if self.below is None else [f"{self.below}/files"])]
        home = "" if self.below is None else f"{self.below}/home"
        namespace = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--")
        arguments = (":".join(lowers), str(self.folder), str(os.getuid()), str(os.getgid()), command)
        return [*namespace, "sh", "-c", _ENTER, "sh", *arguments, str(self.mounted or self.folder), home]


@contextmanager
def open_layer(
    checkout: Path,
    root: Path,
    *,
    kind: LayerKind | None = None,
    below: Path | None = None,
    shows_copies: bool = False,
    has_network: bool = False,
    deadline: Deadline | None = None,
) -> Iterator[Layer]:
    """Lay a layer over ``checkout``, in a new folder under ``root``; raises :class:`OSError`.

    ``kind`` None: ``overlay`` where it works under ``root``, tried out once a process, else ``copy``. That is broken
    off when ``deadline`` is over, for commands will find no time either; ``RunCancelledError`` once the run is to stop.
    ``shows_copies``: the sandbox can show a copy at another path than where it is.
    """
    root.mkdir(parents=True, exist_ok=True)
    chosen: LayerKind = kind or ("overlay" if can_be_named(checkout, root, below) and overlay_works(root) else "copy")
    # One path for all layers, which each command has its own mount at.
    mounted = root.with_name(_MOUNTED) if chosen == "overlay" or shows_copies else None
    with _folder(root) as folder:
        layer = Layer(chosen, folder, checkout, below, mounted, has_network)
        if chosen == "copy":
            ignore = _not_copied(checkout, root, deadline)
            shutil.copytree(checkout, layer.top, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            if below is not None:
                add_tree(below / "files", layer.top)
                add_tree(below / "home", layer.home)
        yield layer


def add_tree(source: Path, target: Path) -> None:
    """Copy what is in ``source`` into ``target``, where nothing of the name is there; links are copied as links."""
    for entry in os.scandir(source):
        goal = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if not os.path.lexists(goal):
                shutil.copytree(entry.path, goal, symlinks=True)
            elif not goal.is_symlink() and goal.is_dir():
                add_tree(Path(entry.path), goal)
        elif not os.path.lexists(goal):
            shutil.copy2(entry.path, goal, follow_symlinks=False)


def can_be_named(checkout: Path, root: Path, below: Path | None = None) -> bool:
    """Whether the paths can stand in the options of an overlay mount."""
    return not _UNSAFE_IN_MOUNT_OPTIONS.intersection(f"{checkout}{root}{below or ''}")


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
    with held_folder(root, _PREFIX) as folder:
        for name in _FOLDERS:
            (folder / name).mkdir()
        yield folder


@contextmanager
def held_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A new folder below ``root``, removed with all that is in it at the end, or by others should this process die."""
    _sweep_once(root, prefix)
    folder = draft = Path(tempfile.mkdtemp(prefix=prefix + _DRAFT_MARK, dir=root))
    held = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # the system gives it back when this process dies: see sweep_folders
        folder = draft.rename(root / draft.name.replace(_DRAFT_MARK, "", 1))
        yield folder
    finally:
        os.close(held)
        remove_tree(folder)


@cache
def _sweep_once(root: Path, prefix: str) -> None:
    sweep_folders(root, prefix)


def sweep_layers(root: Path) -> list[str]:
    """End what processes that died have left running in their layers, and remove these; what was done, a line each."""
    return sweep_folders(root, _PREFIX)


def sweep_folders(root: Path, prefix: str) -> list[str]:
    """Remove the folders of processes that died, and end what still runs in them; what was done, a line each.

    One that nobody holds is a dead one's. Before it has its name, it is told by its age.
    """
    done = []
    for folder in list(root.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):
            is_draft = folder.name.startswith(prefix + _DRAFT_MARK)
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


def _not_copied(checkout: Path, root: Path, deadline: Deadline | None) -> Callable[[str, list[str]], set[str]]:
    """Git's own folder, and the layers themselves where they lie inside the checkout; all, once the time is over."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        if deadline is not None:
            deadline.cancellation.check()
            if deadline.remaining_seconds() <= 0:
                return set(names)
        return {name for name in names if Path(folder, name) in {checkout / ".git", root}}

    return ignore
