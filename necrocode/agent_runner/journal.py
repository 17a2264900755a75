"""One run's journal: what it has done and paid for, so that it can go on after its process has died.

A file of lines, ``{length} {digest} {JSON}``, each on the disk before the run goes on. A digest covers the line and all
lines before it: one that was changed, lost or moved ends what is believed. It finds damage, no forgery.

A run that goes on is run anew from its beginning, and whatever is journalled is taken from here and not done again. So
nothing has to be known of where it was.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner import _durable
from necrocode.agent_runner._error_data import error_from
from necrocode.agent_runner.errors import ImplementationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FORMAT = 1
"""Goes up when an older version could not go on from what is written; what it does not know, a version ignores."""
MAX_BYTES = 256 * 1024 * 1024
_DIGEST_CHARACTERS = 32
_LINE = re.compile(rb"([0-9]{1,10}) ([0-9a-f]{32}) (.*)", re.DOTALL)

Fields = dict[str, Any]
"""What JSON can hold."""


@dataclass(frozen=True)
class Entry:
    """One line of a journal."""

    kind: str
    """``run``, ``claim``, ``workspace``, ``plan``, ``answer``, ``commit``, ``committed``, ``tests``, ``delivered``,
    ``result`` or ``ended``."""
    key: str
    """Which of its kind: the number of the question, of the answer, or the tree that was tested."""
    basis: str
    """What it depends on, as a digest; empty: on nothing besides."""
    data: Fields


@dataclass(frozen=True)
class Reading:
    """What a journal's bytes hold."""

    entries: tuple[Entry, ...]
    good_bytes: int
    """Where what is believed ends."""
    digest: str
    """Of all that is believed."""
    is_torn: bool = False
    """Whether the last line was cut short, as by a crash in the middle of writing it."""
    is_damaged: bool = False
    """Whether a line was changed, lost or moved; it and all that follows is not believed."""

    @property
    def header(self) -> Fields:
        """What the run began with; empty where that cannot be read."""
        first = self.entries[0] if self.entries else None
        return first.data if first is not None and first.kind == "run" else {}

    def tests(self, tree: str) -> object:
        """What the tests said of a tree; None where that is not there."""
        found = (entry for entry in reversed(self.entries) if entry.kind == "tests" and entry.key == tree)
        return next((entry.data.get("result") for entry in found), None)

    @property
    def ended(self) -> str:
        """How the run ended, by the last thing it says: ``done``, ``failed``…; empty while it has not."""
        last = self.entries[-1] if self.entries else None
        return str(last.data.get("status", "")) if last is not None and last.kind == "ended" else ""


def read_journal(content: bytes) -> Reading:
    """The entries in these bytes, up to the first that cannot be believed. Raises nothing, whatever the bytes are."""
    entries: list[Entry] = []
    position, digest = 0, ""
    while position < len(content):
        end = content.find(b"\n", position)
        if end < 0:
            return Reading(tuple(entries), position, digest, is_torn=True)
        entry, digest_here = _entry(content[position:end], digest)
        if entry is None:
            return Reading(tuple(entries), position, digest, is_damaged=True)
        entries.append(entry)
        position, digest = end + 1, digest_here
    return Reading(tuple(entries), position, digest)


def _entry(line: bytes, digest_before: str) -> tuple[Entry | None, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        return None, ""
    length, told, body = found.groups()
    digest = _digest(digest_before, body)
    if int(length) != len(body) or digest.encode() != told:
        return None, ""
    try:
        values = json.loads(body)
        kind, key, basis, data = (values.get(name) for name in ("kind", "key", "basis", "data"))
    except (ValueError, RecursionError, AttributeError):
        return None, ""
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(basis, str) and isinstance(data, dict)):
        return None, ""
    return Entry(kind, key, basis, data), digest


def _line(entry: Entry, digest_before: str) -> tuple[bytes, str]:
    body = json.dumps({"kind": entry.kind, "key": entry.key, "basis": entry.basis, "data": entry.data}).encode()
    digest = _digest(digest_before, body)
    return b"%d %s %s\n" % (len(body), digest.encode(), body), digest


def _digest(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:_DIGEST_CHARACTERS]


def basis_of(*parts: Any) -> str:  # noqa: ANN401  whatever JSON can hold
    """A digest of what an entry depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST_CHARACTERS]


class JournalFile:
    """The file of a journal, locked for as long as it is open: the kernel gives the lock back when a process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._digest = ""
        self._end = 0

    @classmethod
    def opened(cls, path: Path, *, is_new: bool = False) -> JournalFile | None:
        """The file, which is this process's alone until it is closed; None where another one has it.

        Raises :class:`OSError`. One that ``is_new`` must not be there yet.
        """
        if not is_new:
            _make_writable(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if is_new else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            _check_ordinary(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new:
                _durable.sync_folder(path.parent)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def read(self) -> Reading:
        """What is in it. A torn end is cut off; a damaged file is kept aside whole, and cut where it is damaged."""
        content = _read_all(self._descriptor)
        reading = read_journal(content)
        if reading.is_damaged:
            _durable.write_file(self.path.with_name("journal.damaged"), content)
        if reading.is_damaged or reading.is_torn:
            os.ftruncate(self._descriptor, reading.good_bytes)
            os.fsync(self._descriptor)
        self._end, self._digest = reading.good_bytes, reading.digest
        if reading.ended:
            self.mark_ended()
        return reading

    def append(self, entry: Entry) -> None:
        """Add an entry; it is on the disk when this returns. Raises :class:`OSError`; then it is as if never there."""
        line, digest = _line(entry, self._digest)
        if self._end + len(line) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it would grow beyond {MAX_BYTES} bytes")
        try:
            _durable.append(self._descriptor, line)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(line)
        self._digest = digest

    def mark_ended(self) -> None:
        """Let the file's mode tell, without a look into it, that the run has ended."""
        with suppress(OSError):
            os.fchmod(self._descriptor, 0o400)

    def mark_open(self) -> None:
        """The other way round."""
        with suppress(OSError):
            os.fchmod(self._descriptor, 0o600)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)


def _check_ordinary(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")


def _make_writable(path: Path) -> None:
    """One that has ended cannot be opened for writing."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_ordinary(descriptor)
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES} bytes")
    return os.pread(descriptor, size, 0)


@dataclass
class Journal:
    """What a run asks its journal, and tells it. Thread-safe; nothing raises: a run goes on without its journal.

    ``file`` None: nothing is kept, as where the disk is full from the start.
    """

    run_id: str
    file: JournalFile | None = None
    reading: Reading = field(default_factory=lambda: Reading((), 0, ""))

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._known = _believable(self.reading.entries)
        self._has_told_of_trouble = False
        self._troubles: list[str] = []
        self.on_trouble: Callable[[str], None] = self._troubles.append
        """Told of what the result must say."""
        if self.reading.is_damaged:
            self.on_trouble(
                f"The journal of run {self.run_id} was damaged: what follows its entry {len(self.reading.entries)} was"
                " not believed, and is done again. The damaged file is kept beside it, as journal.damaged."
            )

    def tell(self, on_trouble: Callable[[str], None]) -> None:
        """Tell what the result must say to this from now on, and at once what came up before."""
        self.on_trouble = on_trouble
        for trouble in self._troubles:
            on_trouble(trouble)
        self._troubles.clear()

    @property
    def is_resumed(self) -> bool:
        """Whether the run was begun before."""
        return bool(self.reading.entries)

    @property
    def runner_id(self) -> str:
        """Of the runner that had begun the run; empty for one that has not."""
        return str(self.reading.header.get("runner_id") or "")

    @property
    def result(self) -> Fields | None:
        """The run's result, where all that was left to be done is to report it."""
        last = self.reading.entries[-1] if self.reading.entries else None
        return last.data if last is not None and last.kind == "result" else None

    @property
    def count_of_answers(self) -> int:
        """How many questions to the model need not be asked again."""
        return sum(kind == "answer" for kind, _ in self._known)

    def recorded(
        self,
        kind: str,
        key: str = "",
        basis: str = "",
        *,
        parts: Sequence[str] = (),  # noqa: ARG002  for a replay, which tells what differs
    ) -> Fields | None:
        """What an earlier process of this run has journalled, where it still holds; None: it is to be done.

        A question to the model that differs from the journalled one ends the trust in all that followed from answers.
        """
        with self._lock:
            entry = self._known.get((kind, key))
            if entry is None or entry.basis == basis:
                return None if entry is None else entry.data
            if kind == "answer":
                self.forget(
                    f"question {key} is no longer the one that was asked before the interruption (the task, the"
                    " settings or the version of necrocode has changed): the model is asked anew from there"
                )
            return None

    def record(self, kind: str, key: str = "", basis: str = "", **data: Any) -> None:  # noqa: ANN401  as JSON has it
        """Journal that something was done; what is journalled already is not written twice."""
        entry = Entry(kind, key, basis, data)
        with self._lock:
            if self._known.get((kind, key)) == entry:
                return
            self._append(entry)
            if kind == "tests":  # what was said of a tree is said once: so it is the same when the run is done again
                self._known[kind, key] = entry

    def forget(self, why: str) -> None:
        """Believe nothing any more of what followed from the model's answers; results of tests hold all the same."""
        with self._lock:
            if any(kind in _FROM_ANSWERS for kind, _ in self._known):
                self.on_trouble(f"The run could not simply go on where it was: {why}.")
            self._known = {place: entry for place, entry in self._known.items() if place[0] not in _FROM_ANSWERS}

    def forget_all(self, why: str) -> None:
        """The same, and nothing of the workspace and its tests either."""
        with self._lock:
            self.forget(why)
            self._known = {}

    def end(self, status: str) -> None:
        """Nothing is left to be done: the run is over, and will not go on by itself."""
        with self._lock:
            self._append(Entry("ended", "", "", {"status": status}))
            if self.file is not None:
                self.file.mark_ended()

    def reopen(self) -> None:
        """The run goes on, though it had ended before."""
        if self.file is not None and self.reading.ended:
            self.file.mark_open()

    def close(self) -> None:
        """Let other processes have the journal; harmless when it is closed."""
        with self._lock:
            file, self.file = self.file, None
            if file is not None:
                file.close()

    def _append(self, entry: Entry) -> None:
        if self.file is None:
            return
        try:
            self.file.append(entry)
        except (OSError, ValueError) as error:
            if not self._has_told_of_trouble:
                self._has_told_of_trouble = True
                why = getattr(error, "strerror", None) or str(error)
                self.on_trouble(
                    f"The run's journal cannot be written ({why}): if it is interrupted now, it cannot go on from here."
                )


_FROM_ANSWERS = {"answer", "commit", "committed", "delivered", "result"}


def _believable(entries: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    """The entries that hold, the latest of each kind and key, by these.

    A question that brought no answer, and cost none, is asked again, unless the run went on from that. Where a question
    was answered anew, what had followed from the older answer holds no more.
    """
    known: dict[tuple[str, str], Entry] = {}
    places: dict[tuple[str, str], int] = {}
    latest_use = max((place for place, entry in enumerate(entries) if entry.kind in {"commit", "tests"}), default=-1)
    for place, entry in enumerate(entries):
        name = (entry.kind, entry.key)
        if entry.kind == "answer":
            if not _is_settled(entry, is_used=place < latest_use):
                continue
            if name in known:
                known = {
                    one: was for one, was in known.items() if one[0] not in _FROM_ANSWERS or places[one] < places[name]
                }
        known[name], places[name] = entry, place
    return known


def _is_settled(entry: Entry, *, is_used: bool) -> bool:
    """Whether an answer is one that the run goes on from."""
    if (error := entry.data.get("error")) is None:
        return not entry.data.get("masked")
    known = error_from(error)
    return known is not None and (isinstance(known, ImplementationError) or is_used)
