"""Reading a file within bounds, and putting another in its place in one step."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from necrocode.agent_runner.errors import ConfigurationError


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of the file; :class:`ConfigurationError` when it cannot be read or holds more."""
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigurationError(f"Cannot read {path}: {_why(error)}.") from error
    if len(data) > max_bytes:
        raise ConfigurationError(f"{path} is larger than {max_bytes} bytes, which is the most that is read.")
    return data


def write_atomically(path: Path, data: bytes, *, replace: bool, mode: int) -> None:
    """Write the file whole or not at all; a link is followed, and a file that was there keeps its permissions.

    ``mode`` is what a new one gets. Without ``replace`` a file that is there is left alone, and is a
    :class:`ConfigurationError`, as is everything that hinders the writing.
    """
    target = Path(os.path.realpath(path))
    try:
        if replace and target.exists():
            mode = target.stat().st_mode
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                os.fchmod(stream.fileno(), mode & 0o777)
                stream.flush()
                os.fsync(stream.fileno())
            _put(name, target, replace=replace)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
    except FileExistsError:
        raise ConfigurationError(
            f"{path} is there already, and was left as it is.", hint="--force replaces it."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Cannot write {path}: {_why(error)}.") from error


def _put(name: str, target: Path, *, replace: bool) -> None:
    if replace:
        Path(name).replace(target)
    else:
        os.link(name, target)  # unlike a rename, this fails when there is such a file


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
