"""A root folder with nothing in it but what a command may see, in namespaces of the calling process."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner.sandbox import kernel
from necrocode.agent_runner.sandbox.visible import HOST_NAME

if TYPE_CHECKING:
    from necrocode.agent_runner.sandbox.request import Overlay, Request

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_READ_ONLY = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV
_OWN_USE = kernel.ATTR_NOSUID | kernel.ATTR_NODEV
_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV


def leave_namespaces(request: Request) -> None:
    """Take new namespaces of mounts, with the layer in it, of messages, and of the network if there is to be none.

    For sandlock, of processes and names too; bwrap makes these itself. Processes that this one starts afterwards are in
    the new process namespace, the first one at its top.
    """
    if request.user is None:
        kernel.unshare_as_self("mount")
    else:
        kernel.unshare("mount")
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    for overlay in request.overlays:
        _mount_overlay(overlay, request)
    own = ("pid", "uts") if request.wall == "sandlock" else ()
    kernel.unshare("ipc", *own, *(() if request.has_network else ("net",)))
    if not request.has_network:
        kernel.start_loopback()
    if request.wall == "sandlock":
        socket.sethostname(HOST_NAME)


def enter_room(request: Request) -> None:
    """Mount a root that shows the request's paths alone, and make it this process's root.

    For sandlock the process must be the first in its process namespace: it gets a ``/proc`` of that.
    """
    room = f"{request.layer}/room"
    kernel.mount("tmpfs", room, "tmpfs", _SAFE, "mode=755,size=16m")
    for path in request.temporary and ("/tmp", "/var/tmp"):  # noqa: S108  they are the command's own
        _show(request.temporary, room + path, _OWN_USE)
    for path in request.writable:
        _show(path, room + request.seen_at.get(path, path), _OWN_USE)
    for path in request.readable:
        _show(path, room + path, _READ_ONLY)
    for path, source in request.replaced.items():
        _show(source, room + path, _READ_ONLY, replaces=True)
    _make_devices(f"{room}/dev", request.shared_memory_bytes)
    _make_folder(f"{room}/proc")
    if request.wall == "sandlock":
        kernel.mount("proc", f"{room}/proc", "proc", _SAFE | kernel.MS_NOEXEC)
    else:  # bwrap needs one to begin with, and mounts its own
        kernel.mount("/proc", f"{room}/proc", flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(room, _READ_ONLY, is_whole_tree=False)
    os.chdir(room)
    kernel.mount(room, "/", flags=kernel.MS_MOVE)
    os.chroot(".")
    os.chdir(request.folder)


def _mount_overlay(overlay: Overlay, request: Request) -> None:
    lowers, options = list(overlay.lowers), ",userxattr"
    if request.user is not None:
        options = ""
        for number, (lower, owner) in enumerate(zip(overlay.lowers, overlay.owners, strict=True)):
            lowers[number] = f"{request.layer}/shown/{Path(overlay.target).name}-{number}"
            _make_folder(lowers[number])
            kernel.bind_with_owner(lower, lowers[number], owner, request.user)
    where = f"lowerdir={':'.join(lowers)},upperdir={overlay.upper},workdir={overlay.work}{options}"
    kernel.mount("overlay", overlay.target, "overlay", _SAFE, where)
    git = Path(overlay.target, ".git")
    if overlay.empty and (git.is_symlink() or git.is_file()):
        git.unlink()
    elif overlay.empty and git.is_dir():
        kernel.mount(overlay.empty, str(git), flags=kernel.MS_BIND)


def _show(source: str, target: str, attributes: int, *, replaces: bool = False) -> None:
    """Bind a file or folder to a place in the room, or make the symlink that it is; what is missing is left out.

    A file that is shown there already stays, unless this one ``replaces`` it.
    """
    try:
        mode = os.lstat(source).st_mode
    except OSError:
        return
    if os.path.lexists(target) and not stat.S_ISDIR(mode) and not replaces:
        return
    if stat.S_ISLNK(mode):
        _make_folder(os.path.dirname(target))
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(mode):
        _make_folder(target)
    elif not os.path.lexists(target):
        _make_folder(os.path.dirname(target))
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(target, attributes, is_whole_tree=True)


def _make_devices(folder: str, shared_memory_bytes: int) -> None:
    _make_folder(folder)
    kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID, "mode=755,size=64k")
    for name in _DEVICES:
        target = f"{folder}/{name}"
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        kernel.mount(f"/dev/{name}", target, flags=kernel.MS_BIND)
    for name, goal in _LINKS.items():
        os.symlink(goal, f"{folder}/{name}")
    for name, kind, options in (
        ("shm", "tmpfs", f"mode=1777,size={shared_memory_bytes}"),
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"),
    ):
        _make_folder(f"{folder}/{name}")
        kernel.mount(kind, f"{folder}/{name}", kind, kernel.MS_NOSUID, options)
    kernel.restrict_mount(folder, kernel.ATTR_RDONLY, is_whole_tree=False)


def _make_folder(path: str) -> None:
    os.makedirs(path, mode=0o755, exist_ok=True)
