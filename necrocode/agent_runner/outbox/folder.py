"""The outbox of a state folder: one file for each run that has something left to tell."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner._strict import Value
from necrocode.agent_runner.errors import ConfigurationError, RunnerError
from necrocode.agent_runner.outbox.book import RunBook, RunIdentity
from necrocode.agent_runner.outbox.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from necrocode.agent_runner.outbox.book import Entry
    from necrocode.agent_runner.outbox.delivery import Sender

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ENDING = ".spool"
_OPEN_SECONDS = 2.0  # of another process that looks at the same file
_LOOK_SECONDS = 0.01
_OVERTAKEN = "A later run of the task had begun before this could be told."


class OutboxEntry(Value):
    """One thing that a run has to tell."""

    kind: Literal["upload", "manifest", "record", "event", "status"]
    what: str
    """The artifact's type, the event's type or the status."""
    size_bytes: int = 0
    """Of an upload."""
    reason: str | None = None
    """Why it was refused for good. None: it waits."""


class OutboxRun(Value):
    """A run that has something left to tell."""

    run_id: str
    task_id: str = ""
    spec_name: str = ""
    state: Literal["waiting", "rejected", "in progress", "damaged"]
    """``waiting``: to be sent; ``rejected``: refused for good, kept until it is dropped; ``in progress``: another
    process runs it, or sends it, right now; ``damaged``: the file cannot be read (any further)."""
    entries: tuple[OutboxEntry, ...] = ()


class FlushReport(Value):
    """What came of sending what was kept."""

    delivered: int = 0
    """Entries that have arrived."""
    waiting: int = 0
    """Entries that have not."""
    rejected: int = 0
    """Entries that were refused for good now."""
    troubles: tuple[str, ...] = ()
    """What held entries up, a line each."""


def nothing_found(_book: RunBook) -> bytes:
    """No patch of a dead run."""
    return b""


class Outbox:
    """Everything that runs with this state folder have to tell. Safe for several threads and processes.

    ``max_bytes``: how large the files may get together; 0: nothing is kept. ``clean_up`` puts right what a run has left
    that is found dead, once, and tells what it did, a line each.
    """

    def __init__(
        self, folder: Path, max_bytes: int, clean_up: Callable[[RunIdentity], Sequence[str]] = lambda _run: ()
    ) -> None:
        self._folder = folder
        self._clean_up = clean_up
        self._rejected = folder / "rejected"
        self.max_bytes = max_bytes

    # --- one run's own

    def open_book(self, run: RunIdentity) -> RunBook:
        """The run's book: a new one, or that which it had before it died; raises :class:`OSError` without a file.

        The caller closes it.
        """
        if self.max_bytes == 0:
            return RunBook(run)
        until = time.monotonic() + _OPEN_SECONDS
        pause = threading.Event()
        while (spool := Spool.open(self._file(run.run_id), create=True)) is None:
            if time.monotonic() >= until:
                raise BlockingIOError(f"another process has {self._file(run.run_id)}")
            pause.wait(_LOOK_SECONDS)
        book = RunBook.read(spool, run) if spool.damaged_at is None else None
        if book is None:
            self._put_aside(spool)
            return self.open_book(run)
        return book

    def close_book(self, book: RunBook) -> None:
        """Keep what is left to tell, put refused entries aside, and remove the file when nothing is left."""
        spool = book.spool
        if spool is None:
            return
        try:
            if book.is_complete and not any(entry.record is not None for entry in book.waiting()):
                self._finish(book, spool)
        except OSError as error:
            logger.warning("The outbox could not put away %s: %s", spool.path, error)
        finally:
            spool.close()

    def _finish(self, book: RunBook, spool: Spool) -> None:
        if book.refused and not self._is_aside(book, spool):
            return
        if spool.damaged_at is None:
            spool.remove()
        else:
            self._put_aside(spool)

    def _is_aside(self, book: RunBook, spool: Spool) -> bool:
        """Put refused entries aside; whether they are there now. While somebody looks at them, they are not."""
        target = Spool.open(self._rejected / spool.path.name, create=True)
        if target is None:
            return False
        try:
            aside = RunBook.read(target, book.run)
            if aside is not None:
                _copy(book.refused, book, aside)
            return aside is not None
        finally:
            target.close()

    def room(self) -> int:
        """How many more bytes may be kept."""
        used = 0
        for file in self._files():
            with suppress(FileNotFoundError):
                used += file.stat().st_size
        return self.max_bytes - used

    def has_book(self, run_id: str) -> bool:
        """Whether the run has a book here: something to tell, or a process that is at it."""
        return self._file(run_id).exists()

    # --- all runs

    def has_waiting(self, *, but: str) -> bool:
        """Whether there are other runs that may have something to tell."""
        return any(file != self._file(but) for file in self._spools())

    def flush(
        self,
        sender: Sender,
        *,
        chosen: Callable[[RunBook], bool] = lambda _book: True,
        find_work: Callable[[RunBook], bytes] = nothing_found,
        is_over: Callable[[], bool] = lambda: False,
    ) -> FlushReport:
        """Send what is kept, the oldest run first; runs of living processes are left to these.

        A run that died without a word is cleaned up after, and owes its newest patch, which ``find_work`` may have.
        """
        counts = {"delivered": 0, "waiting": 0, "rejected": 0}
        troubles: dict[str, None] = {}
        for file in self._spools():
            if is_over():
                break
            with self._opened(file) as book:
                if book is None or not chosen(book):
                    continue
                for line in self._put_right(book):
                    logger.info("reconciled: %s", line)
                try:
                    trouble = self._send(book, sender, find_work, counts)
                except (OSError, RunnerError) as error:
                    trouble = str(error)
                self.close_book(book)
                if trouble is not None:
                    troubles[f"{book.run.run_id}: {trouble}"] = None
        return FlushReport(**counts, troubles=tuple(troubles))

    def _send(
        self, book: RunBook, sender: Sender, find_work: Callable[[RunBook], bytes], counts: dict[str, int]
    ) -> str | None:
        if not book.is_sealed:
            book.keep(book.save_work(find_work))
        waited, refused = len(book.waiting()), len(book.refused)
        try:
            trouble = sender.send(book)
        finally:
            left, rejected = len(book.waiting()), len(book.refused) - refused
            counts["delivered"] += waited - left - rejected
            counts["waiting"] += left
            counts["rejected"] += rejected
        return None if trouble is None else str(trouble)

    def clean_up_after_the_dead(self) -> list[str]:
        """Clean up after each run whose process died before it had come to an end, once; what was done, a line each."""
        done = []
        for file in self._spools():
            with self._opened(file) as book:
                done += [] if book is None else self._put_right(book)
        return done

    def _put_right(self, book: RunBook) -> list[str]:
        if book.is_sealed or book.is_reconciled:
            return []
        done = [*self._clean_up(book.run), f"run {book.run.run_id}: died, cleaned up after"]
        book.reconciled()
        return done

    def send_of_task(self, spec_name: str, task_id: str, sender: Sender) -> None:
        """Send what runs of a task have to tell that is about to be run again."""
        self.flush(sender, chosen=lambda book: _is_of(book, spec_name, task_id))

    def overtake(self, spec_name: str, task_id: str) -> None:
        """The task runs anew: give up how its earlier runs ended, which would be taken for how this one does."""
        for file in self._spools():
            with self._opened(file) as book:
                if book is not None and _is_of(book, spec_name, task_id) and book.waiting("status"):
                    for entry in book.waiting("status"):
                        book.refuse(entry, _OVERTAKEN)
                    self.close_book(book)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[RunBook | None]:
        """The book in a file; None where somebody has it, or nothing in it can be read."""
        spool = book = None
        try:
            spool = Spool.open(file)
            book = RunBook.read(spool) if spool is not None else None
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("The outbox cannot read %s: %s", file, error)
        try:
            if spool is not None and book is None:
                self._put_away_unreadable(spool)
            yield book
        finally:
            if spool is not None:
                spool.close()

    def _put_away_unreadable(self, spool: Spool) -> None:
        try:
            if spool.size == 0:  # its run died before it had anything to tell
                spool.remove()
            else:
                self._put_aside(spool)
        except OSError as error:
            logger.warning("The outbox could not put away %s: %s", spool.path, error)

    def _put_aside(self, spool: Spool) -> None:
        target = self._rejected / f"{spool.path.stem}.damaged"
        logger.warning("The outbox cannot read %s from byte %d on: it is kept as %s", spool.path,
                       spool.damaged_at or 0, target)  # fmt: skip
        spool.move(target)

    # --- looking and dropping

    def runs(self) -> tuple[OutboxRun, ...]:
        """The runs that have something left to tell, the oldest first; then what was refused."""
        found = [self._shown(file, "waiting") for file in self._spools()]
        found += [self._shown(file, "rejected") for file in sorted(self._rejected.glob(f"*{_ENDING}"))]
        damaged = sorted(self._rejected.glob("*.damaged"))
        return (*filter(None, found), *(OutboxRun(run_id=file.stem, state="damaged") for file in damaged))

    def _shown(self, file: Path, state: Literal["waiting", "rejected"]) -> OutboxRun | None:
        spool = None
        try:
            spool = Spool.open(file)
            if spool is None:
                return OutboxRun(run_id=file.stem, state="in progress") if file.exists() else None
            book = RunBook.read(spool)
            if book is None:
                return OutboxRun(run_id=file.stem, state="damaged") if spool.size else None
            entries = tuple(map(_entry_shown, (*book.refused, *book.waiting())))
        except (OSError, KeyError, TypeError, ValueError):
            return OutboxRun(run_id=file.stem, state="damaged")
        finally:
            if spool is not None:
                spool.close()
        run = book.run
        return OutboxRun(run_id=run.run_id, task_id=run.task_id, spec_name=run.spec_name, state=state, entries=entries)

    def drop(self, run_id: str) -> None:
        """Forget what a run has to tell, refused or not; ``ConfigurationError`` when there is nothing of it.

        What a living process is at work on is not dropped.
        """
        files = [] if _NAME.fullmatch(run_id) is None else [
            self._file(run_id), self._rejected / f"{run_id}{_ENDING}", self._rejected / f"{run_id}.damaged",
        ]  # fmt: skip
        dropped = False
        for file in files:
            try:
                spool = Spool.open(file)
                if spool is None and file.exists():
                    raise ConfigurationError(f"The run {run_id} is at work, and tells what it has to tell itself.")
                if spool is not None:
                    spool.remove()
                    dropped = True
            except OSError as error:
                raise ConfigurationError(f"Cannot drop {file}: {error.strerror}.") from error
        if not dropped:
            raise ConfigurationError(
                f"The outbox {self._folder} holds nothing of a run {run_id!r}.", hint="try: necrocode outbox list"
            )

    def take_back(self, run_id: str) -> None:
        """Have what was refused sent once more, with the next flush; ``ConfigurationError`` when nothing was."""
        source = Spool.open(self._rejected / f"{run_id}{_ENDING}") if _NAME.fullmatch(run_id) else None
        aside = RunBook.read(source) if source is not None else None
        if source is None or aside is None:
            raise ConfigurationError(f"Nothing of a run {run_id!r} was refused.", hint="try: necrocode outbox list")
        try:
            book = self.open_book(aside.run)
            try:
                _copy(aside.refused, aside, book, is_refused=False)
            finally:
                if book.spool is not None:
                    book.spool.close()
            source.remove()
        except OSError as error:
            raise ConfigurationError(f"Cannot take back {source.path}: {error}.") from error
        finally:
            source.close()

    # --- files

    def _file(self, run_id: str) -> Path:
        return self._folder / f"{run_id}{_ENDING}"

    def _spools(self) -> Iterator[Path]:
        return iter(sorted(self._folder.glob(f"*{_ENDING}")))

    def _files(self) -> Iterator[Path]:
        for folder in (self._folder, self._rejected):
            with suppress(FileNotFoundError):
                yield from (file for file in folder.iterdir() if file.is_file())


def _is_of(book: RunBook, spec_name: str, task_id: str) -> bool:
    return (book.run.spec_name, book.run.task_id) == (spec_name, task_id)


def _copy(entries: list[Entry], source: RunBook, target: RunBook, *, is_refused: bool = True) -> None:
    """Write entries of one book into another, whose numbers may be taken."""
    known = {entry.key for entry in target.entries.values()}
    numbers: dict[int, int] = {}
    for entry in entries:
        if entry.key in known:
            continue
        numbers[entry.number] = number = 1 + max(target.entries, default=0)
        body = entry.body
        if entry.kind == "record":
            body = body | {"of": numbers.get(body["of"], 0), **source.told_of(entry)}
        copied = replace(entry, number=number, body=body, content=source.content_of(entry), record=None)
        copied.state = "refused" if is_refused else "waiting"
        target.entries[number] = copied
        target.keep([copied])
        if is_refused:
            target.refuse(copied, entry.reason)


def _entry_shown(entry: Entry) -> OutboxEntry:
    what = entry.body.get("type") or entry.body.get("event_type") or entry.body.get("status") or ""
    size = entry.body.get("size_bytes", 0) if entry.kind == "upload" else 0
    reason = entry.reason if entry.state == "refused" else None
    return OutboxEntry.model_validate({"kind": entry.kind, "what": what, "size_bytes": size, "reason": reason})
