"""What the repo pool does with files: locks that end with their process, and trees that are taken out of the way."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from necrocode.agent_runner._trees import remove_tree
from necrocode.agent_runner.errors import PoolNotFoundError, RunnerError, WorkspacePreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline

logger = logging.getLogger(__name__)

# flock has no time limit, and other processes cannot wake us: locks that may be held for long are looked at this often.
# Real time even where the pool is given another clock, for the other holder's work takes real time.
_LOOK_SECONDS = 0.01
_TREES_AT_ONCE = 200


def try_lock(file: Path) -> IO[str] | None:
    """The file, open and exclusively locked until it is closed; None when somebody else holds it.

    The system gives the lock back when this process dies, and the git processes that were handed the file too.
    """
    stream = file.open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    if not _is_still(file, stream):  # whoever held it before removed the whole pool
        stream.close()
        return None
    return stream


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that nobody holds for longer than it takes to rewrite a small file."""
    while True:
        with file.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if _is_still(file, stream):
                yield
                return


@contextmanager
def locked_within(
    file: Path, deadline: Deadline, *, doing: str, is_done: Callable[[], bool] = lambda: False
) -> Iterator[IO[str] | None]:
    """Hold a lock that others may hold for long; ``WorkspacePreparationError`` when it is not to be had in time.

    ``RunCancelledError`` once the deadline's run is asked to stop.

    None as soon as ``is_done`` says that the lock is no longer needed.
    """
    pause = threading.Event()
    while not is_done():
        stream = try_lock(file)
        if stream is not None:
            with stream:
                yield None if is_done() else stream
            return
        if deadline.remaining_seconds() <= 0:
            raise WorkspacePreparationError(
                f"Another process held {file} for {deadline.total_seconds:g} seconds, so this one could not {doing}.",
                hint="Try again, or with a larger timeout.",
                retryable=True,
            )
        deadline.cancellation.check()
        pause.wait(_LOOK_SECONDS)
    yield None


def _is_still(file: Path, stream: IO[str]) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def removal_told(folder: Path) -> Iterator[None]:
    """``PoolNotFoundError`` instead of whatever fails inside because somebody removes the pool in ``folder``.

    Git, locks and files each say that in another way, and the next caller may have made another pool in its place.
    """
    gone = f"The repo pool {folder.name} was removed meanwhile."
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # while it is open, no other folder gets its number
    except FileNotFoundError as error:
        raise PoolNotFoundError(gone, status_code=404) from error
    try:
        yield
    except (RunnerError, OSError) as error:
        with suppress(FileNotFoundError):
            if os.path.samestat(folder.stat(), os.fstat(handle)):
                raise
        raise PoolNotFoundError(gone, hint="Ask again.", status_code=404) from error
    finally:
        os.close(handle)


def write_whole(file: Path, content: bytes) -> None:
    """Replace a file's content; a reader, or a death in between, sees the old one or the new."""
    draft = file.with_suffix(".tmp")
    draft.write_bytes(content)
    draft.replace(file)


def write_again(file: Path, content: bytes) -> None:
    """Replace a file that may be missing: a reader, or a death in between, sees the new one or none.

    Several times faster than :func:`write_whole` on ext4, which writes a file to the disk when it takes the place of
    another (ext4(5), ``auto_da_alloc``).
    """
    draft = file.with_suffix(".tmp")
    draft.write_bytes(content)
    file.unlink(missing_ok=True)
    draft.rename(file)


class Trash:
    """Where trees go that must be out of the way at once: renamed now, deleted later and elsewhere.

    Deleting a tree takes as long as its size wants, and on ext4 slows down the making of the next one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._emptying = threading.Lock()

    def take(self, path: Path) -> None:
        """Move a file, a folder of any mode, or a symlink (never what it points to) out of the way."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o700 != 0o700:  # noqa: PLR2004
            path.chmod(0o700)  # moving a folder writes its ".."
        path.rename(self._folder / secrets.token_hex(8))

    def empty(self) -> int:
        """Delete what has been taken, at most two hundred trees; how many of them are gone."""
        if not self._emptying.acquire(blocking=False):
            return 0
        try:
            return sum(map(_is_deleted, self._trees()[:_TREES_AT_ONCE]))
        finally:
            self._emptying.release()

    def empty_later(self) -> None:
        """Delete what has been taken, on a thread that holds up nobody."""
        if self._trees():
            with suppress(RuntimeError):  # no thread to be had: what is there goes the next time
                threading.Thread(target=self.empty, name="necrocode-pool-trash", daemon=True).start()

    def _trees(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("%s cannot be emptied: %s", self._folder, error.strerror)
            return []


def _is_deleted(path: Path) -> bool:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    if os.path.lexists(path):
        logger.warning("%s cannot be deleted; it is left there.", path)
        return False
    return True
