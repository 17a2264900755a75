"""What set-up commands made, kept on disk for later runs: a folder for each key, made whole before it can be found.

Of several runs that want the same key one makes it, and the others wait for that. Who uses a folder holds a shared lock
on it; nobody removes it meanwhile. The locks are the kernel's, so those of a process that died are gone.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from necrocode.agent_runner import _durable
from necrocode.agent_runner._trees import remove_tree
from necrocode.agent_runner.sandbox.kernel import sync_file_system
from necrocode.agent_runner.sandbox.layer import held_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from necrocode.agent_runner._clock import Clock, Deadline

    Fill = Callable[[Path], int]
    """Puts what is to be kept into an empty folder, and says how many bytes that takes up; or raises."""

MAX_AGE = timedelta(days=7)
"""How long a folder is believed: what is on the network may change. What nobody used for so long is removed."""
_DRAFT = "draft-"
_ENTRY = "entry.json"
_LOOK_SECONDS = 0.05  # flock has no time limit: it is looked at this often, in real time, for so is the other's work


@dataclass(frozen=True)
class SetupCache:
    """The kept folders below ``folder``; together they take up ``max_bytes`` at the most, apart from those in use."""

    folder: Path
    clock: Clock
    max_bytes: int

    @contextmanager
    def kept(self, key: str, fill: Fill, deadline: Deadline) -> Iterator[Path]:
        """The folder of the key, made by ``fill`` where there is none; it stays as long as the context lasts.

        One that is larger than ``max_bytes`` is not kept for others. With ``max_bytes`` 0 nothing that is there is
        used, and all that nobody uses is removed. Raises what ``fill`` raises, ``OSError``, and what
        :meth:`Deadline.check` raises where another run is still at it when the time is up.
        """
        key = f"{key}-{int(self.clock.now().timestamp() // MAX_AGE.total_seconds())}"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as stack:
            if self.max_bytes:
                yield self._found(key, fill, deadline, stack)
            else:
                self._sweep()
                yield stack.enter_context(self.scratch(fill))

    @contextmanager
    def scratch(self, fill: Fill) -> Iterator[Path]:
        """A folder made by ``fill`` that nobody else is shown, removed at the end."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with held_folder(self.folder, _DRAFT) as draft:
            fill(draft)
            yield draft

    def _found(self, key: str, fill: Fill, deadline: Deadline, stack: ExitStack) -> Path:
        while True:
            lock = stack.enter_context(_Lock(self.folder / f"{key}.lock"))
            while lock.is_current():
                if lock.take(fcntl.LOCK_SH) and self._is_there(key):
                    return self.folder / key
                if lock.take(fcntl.LOCK_EX):
                    if not self._is_there(key) and (draft := self._filled(key, fill, stack)) is not None:
                        lock.give_back()
                        return draft
                    continue
                deadline.check("set up what its tests need, as another run is doing already")
                deadline.cancellation.wait(_LOOK_SECONDS)

    def _is_there(self, key: str) -> bool:
        """Whether it is; then it is known to be used now."""
        now = self.clock.now().timestamp()
        try:
            os.utime(self.folder / key / _ENTRY, (now, now))
        except OSError:
            return False
        return True

    def _filled(self, key: str, fill: Fill, stack: ExitStack) -> Path | None:
        """Make the key's folder; where it is too large to be kept, its draft, which ends with the stack."""
        with ExitStack() as drafts:
            draft = drafts.enter_context(held_folder(self.folder, _DRAFT))
            size = fill(draft)
            if size > self.max_bytes:
                stack.push(drafts.pop_all())
                return draft
            sync_file_system(str(draft))
            _durable.write_file(draft / _ENTRY, json.dumps({"bytes": size}).encode())
            remove_tree(self.folder / key)  # without its entry it is what is left of one whose removal was cut short
            draft.rename(self.folder / key)
        self._is_there(key)
        self._sweep()
        return None

    def _sweep(self) -> None:
        """Remove what was not used for long, and then what was not used for longest, until the rest is small enough."""
        now, taken = self.clock.now().timestamp(), 0
        for used_at, size, key in sorted(self._entries(), reverse=True):
            taken += size
            if taken > self.max_bytes or not self.max_bytes or now - used_at > MAX_AGE.total_seconds():
                taken -= size if self._is_removed(key) else 0

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        """When each was last used, how large it is, and its key; never used: what is left of one that is not whole."""
        for folder in self.folder.iterdir():
            if folder.name.startswith(_DRAFT) or not folder.is_dir():
                continue
            try:
                entry = folder / _ENTRY
                yield entry.stat().st_mtime, int(json.loads(entry.read_bytes())["bytes"]), folder.name
            except (OSError, ValueError, LookupError, TypeError):
                yield 0.0, 0, folder.name

    def _is_removed(self, key: str) -> bool:
        """Remove it unless it is in use."""
        with _Lock(self.folder / f"{key}.lock") as lock:
            if not lock.take(fcntl.LOCK_EX):
                return False
            with suppress(OSError):
                (self.folder / key / _ENTRY).unlink()  # from here on it counts as not there
            remove_tree(self.folder / key)
            (self.folder / f"{key}.lock").unlink(missing_ok=True)
            return True


class _Lock:
    """An open lock file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._handle)

    def is_current(self) -> bool:
        """Whether the file still has its name: the lock on one that was removed is nobody's concern."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    def take(self, kind: int) -> bool:
        """Have it shared or alone instead of what was had before; False: another has it, and this one nothing."""
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give_back(self) -> None:
        """Have nothing any more."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)
