"""What of the machine a confined command may read: the system's programs, and the tools that the runner finds."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# No passwords, no keys, no addresses of the machine. passwd and group are made for each command.
_ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version", "fonts",
    "gai.conf", "host.conf", "inputrc", "java-11-openjdk", "java-17-openjdk", "java-21-openjdk", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "lsb-release", "magic", "magic.mime",
    "mime.types", "nsswitch.conf", "os-release", "pki/ca-trust", "pki/tls/certs", "protocols", "python3",
    "python3.11", "python3.12", "python3.13", "services", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "timezone",
)  # fmt: skip
_MAX_LINKS = 40  # as the kernel follows
_HOSTS = Path("/etc/hosts")
_RESOLVER = Path("/etc/resolv.conf")
HOST_NAME = "sandbox"
"""What the machine is called, as commands see it."""
USERS = "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nrunner:x:{user}:{group}:runner:{home}:/bin/sh\n"
GROUP = "root:x:0:\nrunner:x:{group}:\n"


def readable_paths(extra: Sequence[str], *, hidden: Sequence[Path]) -> tuple[str, ...]:
    """Files and folders in the order in which they are to be shown, one inside another after it.

    ``extra`` are the operator's own; one that would show all of a ``hidden`` folder is a ``ConfigurationError``, and a
    folder on the PATH that would is left out.
    """
    shown = [*_SYSTEM, *(f"/etc/{name}" for name in _ETC)]
    for path in shown:
        if _shows(path, hidden):
            raise ConfigurationError(
                f"Tests are shown all of {path}, and {_shows(path, hidden)} lies in it.",
                hint="Set state_dir to another folder.",
            )
    shown += _without(hidden, [*_python_folders(), *_tool_folders(), *_folders_on_path()])
    for path in extra:
        if _shows(path, hidden):
            raise ConfigurationError(
                f"sandbox_read_paths: {path} would show tests what they are not to see ({_shows(path, hidden)}).",
                hint="Name the folders inside it that tests need.",
            )
    ordered = _in_order([*shown, *extra])
    return tuple(path for path in ordered if os.path.islink(path) or not _shows(path, hidden))


def network_files() -> dict[str, str]:
    """What is needed to ask for hosts by name, where there is a network: path as shown, and the file itself."""
    return {str(_RESOLVER): str(_RESOLVER.resolve())} if _RESOLVER.exists() else {}


def hosts(*, has_network: bool) -> str:
    """The hosts that are known by name: the command's own, and with a network those that the machine knows."""
    known = "127.0.0.1 localhost\n::1 localhost\n"
    if has_network:
        with suppress(OSError):
            known = _HOSTS.read_text(errors="replace").rstrip("\n") + "\n"
    return f"{known}127.0.0.1 {HOST_NAME}\n::1 {HOST_NAME}\n"


def refused_hooks() -> list[str]:
    """Files of pyenv's that make it write among its own after each pip install, and fail: commands may not write there.

    Without them it does not try.
    """
    shims = [Path(folder) for folder in _folders_on_path() if Path(folder).name == "shims"]
    found = [shim.parent / "pyenv.d/exec/pip-rehash.bash" for shim in shims]
    return [os.path.realpath(path) for path in found if os.path.isfile(path)]


def make_rustup_home(folder: Path) -> bool:
    """Make a folder that rustup takes for its own, with the runner's toolchains; False: there are none.

    It wants to write there, and is the ``cargo`` and ``rustc`` on the PATH of those who use it.
    """
    toolchains, settings = _rustup_folder() / "toolchains", _rustup_folder() / "settings.toml"
    if not (toolchains.is_dir() and settings.is_file()):
        return False
    folder.mkdir()
    (folder / "toolchains").symlink_to(toolchains)
    (folder / "settings.toml").write_bytes(settings.read_bytes())
    return True


def home_folders() -> list[Path]:
    """The user's home folder; none: a user without an entry in passwd may have no such thing."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def _rustup_folder() -> Path:
    named = os.environ.get("RUSTUP_HOME")
    return Path(named) if named else next(iter(home_folders()), Path("/nonexistent")) / ".rustup"


def _python_folders() -> list[str]:
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).parent)]


def _tool_folders() -> list[str]:
    """The toolchains of rustup, and what version managers installed: node, and those that put shims on the PATH."""
    found = [str(_rustup_folder() / "toolchains")]
    for folder in map(os.path.normpath, _folders_on_path()):  # os.path: what cannot be looked into is no error
        real = os.path.realpath(folder)
        place, name = os.path.split(real)
        is_node = name == "bin" and os.path.exists(f"{real}/node") and os.path.isdir(f"{place}/lib/node_modules")
        if is_node or (os.path.basename(folder) == "shims" and os.path.isdir(f"{os.path.dirname(folder)}/libexec")):
            found.append(place)
    return found


def _folders_on_path() -> list[str]:
    return [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(folder)]


def _without(hidden: Sequence[Path], paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not _shows(path, hidden)]


def _shows(path: str, hidden: Sequence[Path]) -> str:
    """Which of the hidden folders the path holds; empty: none."""
    real = Path(path).resolve()
    return next((str(folder) for folder in hidden if folder.resolve().is_relative_to(real)), "")


def _in_order(paths: Iterable[str]) -> tuple[str, ...]:
    """Those that exist, with the symlinks on the way to them, and without those inside another one."""
    kept: dict[str, bool] = {}
    existing = [os.path.normpath(path) for path in paths if os.path.lexists(path)]
    for path in sorted({step for whole in existing for step in _steps(whole)}):
        if not any(path.startswith(f"{other}/") for other, is_link in kept.items() if not is_link):
            kept[path] = os.path.islink(path)
    return tuple(kept)


def _steps(path: str) -> list[str]:
    """The symlinks that the path leads over, and at last the file or folder itself."""
    steps: list[str] = []
    for _ in range(_MAX_LINKS):
        link = next((str(part) for part in [*reversed(Path(path).parents), Path(path)] if part.is_symlink()), None)
        if link is None:
            return [*steps, path]
        steps.append(link)
        goal = os.path.join(os.path.dirname(link), os.readlink(link))
        path = os.path.normpath(goal + path.removeprefix(link))
    return []
