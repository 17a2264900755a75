"""Test commands behind sandlock or bwrap, in a root of their own where the machine allows it."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from necrocode.agent_runner._process import ProcessResult, supervise
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.sandbox import visible
from necrocode.agent_runner.sandbox.launching import LAUNCHER
from necrocode.agent_runner.sandbox.layer import Layer, LayerKind, can_be_named, open_layer
from necrocode.agent_runner.sandbox.layered import LayeredSandbox
from necrocode.agent_runner.sandbox.limits import Limits, LimitWatch
from necrocode.agent_runner.sandbox.plain import command_environment
from necrocode.agent_runner.sandbox.request import Overlay, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.sandbox.request import Wall

_RUSTUP = "rustup"
# What systemd gives to services without an account of their own: on no machine does a person have such a number.
_FIRST_USER, _LAST_USER = 61184, 65519


@dataclass(frozen=True)
class Policy:
    """What confined commands may see and use, besides the layer."""

    state_dir: Path
    """Never shown, nor is the home folder."""
    limits: Limits
    read_paths: tuple[str, ...] = ()
    has_network: bool = False

    def readable(self) -> tuple[str, ...]:
        """The paths that they see."""
        return visible.readable_paths(self.read_paths, hidden=[self.state_dir, *visible.home_folders()])


@dataclass(frozen=True)
class Confinement:
    """One way to confine that works on this machine, or is to be tried."""

    wall: Wall
    layer: LayerKind
    has_own_root: bool


class ConfinedSandbox(LayeredSandbox):
    """The :class:`~necrocode.agent_runner.Sandbox` for hostile commands; layers are made below ``root``."""

    def __init__(self, root: Path, confinement: Confinement, policy: Policy) -> None:
        self.name = confinement.wall
        self._root = root
        self._confinement = confinement
        self._policy = policy

    def ensure_available(self) -> None:
        """Return when the paths that commands are to see can be shown; else ``ConfigurationError``."""
        _ = self._readable

    @cached_property
    def _readable(self) -> tuple[str, ...]:
        return self._policy.readable()

    @property
    def identity(self) -> str:
        """What of it a result depends on."""
        return f"{self.name} {self._confinement!r} {self._root} {self._policy!r}"

    @contextmanager
    def _open(
        self, checkout: Path, below: Path | None, *, has_network: bool | None, deadline: Deadline
    ) -> Iterator[Layer]:
        has_network = self._policy.has_network if has_network is None else has_network
        how = self._confinement
        kind = how.layer if can_be_named(checkout, self._root, below) else "copy"
        shows = how.has_own_root or how.wall == "bwrap"
        with open_layer(
            checkout,
            self._root,
            kind=kind,
            below=below,
            shows_copies=shows,
            has_network=has_network,
            deadline=deadline,
        ) as layer:
            visible.make_rustup_home(layer.folder / _RUSTUP)
            if os.getuid() == 0:
                give_away(layer, checkout)
            yield layer

    def _execute(
        self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str], deadline: Deadline
    ) -> ProcessResult:
        limits, started, seconds = self._policy.limits, time.monotonic(), deadline.remaining_seconds()
        owner = hand_over(reports, layer)
        request = self._request(command, layer, reports, environment, owner)
        watch = LimitWatch(limits, layer.written_folders, reports.stat().st_mtime_ns)
        with LAUNCHER.start(request) as running:
            running.wait_for_start(deadline.cancellation)
            watch.processor_seconds = running.processor_seconds
            done = supervise(
                running,
                started=started,
                timeout_seconds=seconds,
                max_output_bytes=limits.kept_output_bytes,
                cancellation=deadline.cancellation,
                watch=watch,
            )
        if done.stopped_by is None:
            running.check_confined()
        return done

    def _request(
        self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str], owner: tuple[int, int]
    ) -> Request:
        policy, how = self._policy, self._confinement
        has_temporary = how.has_own_root or how.wall == "bwrap"
        temporary = {"TMPDIR": "/tmp"} if has_temporary else {}  # noqa: S108  a fresh folder of the command's own
        rustup = layer.folder / _RUSTUP
        tools = {"RUSTUP_HOME": str(rustup)} if rustup.exists() else {}
        folders = [layer.temporary, layer.top, layer.home, reports, *([rustup] if tools else [])]
        seen = {str(layer.top): str(layer.start_folder), str(layer.home): str(layer.seen_home)}
        return Request(
            argv=("sh", "-c", command),
            environment=command_environment(layer, tools | temporary | dict(environment)),
            wall=how.wall,
            layer=str(layer.folder),
            folder=str(layer.start_folder),
            readable=self._readable,
            writable=tuple(map(str, folders)),
            seen_at=seen,
            replaced=own_files(layer, owner, has_network=layer.has_network),
            temporary=str(layer.temporary) if has_temporary else "",
            overlays=_overlays(layer) if layer.kind == "overlay" else (),
            has_own_root=how.has_own_root,
            has_network=layer.has_network,
            user=owner if os.getuid() == 0 else None,
            max_processes=policy.limits.processes,
            max_file_bytes=policy.limits.file_bytes,
            shared_memory_bytes=policy.limits.shared_memory_bytes,
            bwrap=shutil.which("bwrap") or "bwrap",
        )


def give_away(layer: Layer, checkout: Path) -> None:
    """As root: let another user own what commands write, one that owns nothing else on this machine."""
    user = _FIRST_USER + secrets.randbelow(_LAST_USER - _FIRST_USER + 1)
    layer.folder.chmod(0o711)
    given = [layer.folder / name for name in ("upper", "work", "top", "home", "home-upper", "home-work", "tmp")]
    given[0].chmod(checkout.stat().st_mode & 0o7777)  # the overlay's top has the mode of its upper folder
    given += [path for path in (layer.folder / _RUSTUP, layer.folder / _RUSTUP / "settings.toml") if path.exists()]
    if layer.kind == "copy":
        given += [*layer.top.rglob("*"), *layer.home.rglob("*")]
    try:
        for path in given:
            os.lchown(path, user, user)
    except OSError as error:
        raise ConfigurationError(
            f"Tests cannot be run as another user than root: {error}.",
            hint="Run necrocode as an ordinary user, or say sandbox: none.",
        ) from error


def _overlays(layer: Layer) -> tuple[Overlay, ...]:
    """The copy, and the home folder where there is something to lie below it."""
    found, own = layer.checkout.stat(), (os.getuid(), os.getgid())
    lowers = [(str(layer.checkout.resolve()), (found.st_uid, found.st_gid))]
    lowers += [] if layer.below is None else [(str(layer.below / "files"), own)]
    paths, owners = zip(*lowers, strict=True)
    upper, work, empty = (str(layer.folder / name) for name in ("upper", "work", "empty"))
    top = Overlay(str(layer.top), paths, owners, upper, work, empty)
    if layer.below is None:
        return (top,)
    upper, work = str(layer.written_home), str(layer.folder / "home-work")
    return (top, Overlay(str(layer.home), (str(layer.below / "home"),), (own,), upper, work))


def hand_over(reports: Path, layer: Layer) -> tuple[int, int]:
    """User and group that commands in the layer run as; as root, the folder of reports becomes theirs."""
    owner = layer.home.stat()
    if os.getuid() == 0:
        os.chown(reports, owner.st_uid, owner.st_gid)
    return owner.st_uid, owner.st_gid


def own_files(layer: Layer, owner: tuple[int, int], *, has_network: bool) -> dict[str, str]:
    """Files under ``/etc`` that are the command's own, written into the layer's folder."""
    values = {"user": owner[0], "group": owner[1], "home": layer.seen_home}
    texts = {"passwd": visible.USERS.format(**values), "group": visible.GROUP.format(**values)}
    texts["hosts"] = visible.hosts(has_network=has_network)
    replaced = visible.network_files() if has_network else {}
    for name, text in texts.items():
        path = layer.folder / "etc" / name
        path.write_text(text)
        replaced[f"/etc/{name}"] = str(path)
    nothing = layer.folder / "etc/nothing"
    nothing.touch()
    return replaced | dict.fromkeys(visible.refused_hooks(), str(nothing))
