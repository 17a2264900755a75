"""One pool's folder: its book, its mirror and its slots, and how they work together."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import GitError, TreeTooLargeError
from necrocode.agent_runner.clients._pool_book import Page, PoolBook, Slot, Taken
from necrocode.agent_runner.clients._pool_checkout import SlotCheckout
from necrocode.agent_runner.clients._pool_files import removal_told, try_lock
from necrocode.agent_runner.clients._pool_mirror import Mirror
from necrocode.agent_runner.errors import (
    PoolNotFoundError,
    RunnerError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.records import PoolRecord, PoolUse, SlotRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner._git import Git
    from necrocode.agent_runner.clients._pool_files import Trash

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PREPARATION_SECONDS = 900.0
"""How long a slot may be in preparation: a first checkout may take minutes, and nobody renews yet."""
_STATES = ("warming", "available", "allocated", "cleaning", "quarantined")
_CONFIGURED_URL = re.compile(r'^\s*url = "?(.*?)"?$', re.MULTILINE)


@dataclass(frozen=True)
class PoolPlace:
    """The slots of one repository. ``url`` is empty where only the folder is known: then the book says it."""

    folder: Path
    url: str
    git: Git
    trash: Trash
    clock: Clock
    default_size: int

    @property
    def book(self) -> PoolBook:
        """Who holds which slot."""
        return PoolBook(self.folder)

    def mirror(self) -> Mirror:
        """The mirror; ``PoolNotFoundError`` where nothing says of which repository."""
        url = self.url or self._url(self.book.read())
        if not url:
            raise PoolNotFoundError(f"Nothing says which repository {self.folder} is the pool of.")
        return Mirror(self.folder, url, self.git, self.trash)

    def _url(self, page: Page) -> str:
        if page.repo_url:
            return page.repo_url
        with suppress(OSError):  # pools that version 0.1 made: only the mirror knows
            found = _CONFIGURED_URL.search((self.folder / "mirror.git/config").read_text())
            return found.group(1) if found is not None else ""
        return ""

    def slot_path(self, slot_id: str) -> Path:
        """Where the slot's files are."""
        return self.folder / "slots" / slot_id

    def known_file(self, slot_id: str) -> Path:
        """Where is kept how the slot was when it was handed out."""
        return self.folder / "known" / f"{slot_id}.known"

    def ensure(self) -> None:
        """Make the pool where there is none."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.git.prepare()
            with self.book.open() as page:
                page.repo_url = self.url
        except OSError as error:
            raise WorkspacePreparationError(f"The repo pool cannot use {self.folder}: {error.strerror}.") from error

    def made_for(self, work: Callable[[], Answer]) -> Answer:
        """What ``work`` returns in a pool that is made where there is none, and once more if it is removed then."""
        try:
            with suppress(PoolNotFoundError):
                self.ensure()
                with removal_told(self.folder):
                    return work()
            self.ensure()
            with removal_told(self.folder):
                return work()
        except RunnerError:  # some are OSErrors too
            raise
        except OSError as error:
            raise WorkspacePreparationError(f"The repo pool cannot use {self.folder}: {error.strerror}.") from error

    # --- preparing ---

    def make_ready(self, taken: Taken, base: str) -> None:
        """The slot's files at ``base``; raises ``GitError`` and ``OSError``."""
        mirror, slot_id = self.mirror(), taken.slot.slot_id
        mirror.tend()
        mirror.sweep(self.book.lock_file(slot_id), self.book.others_held(slot_id))
        checkout = SlotCheckout(
            mirror, self.slot_path(slot_id), self.known_file(slot_id), self.trash, lock=taken.lock.fileno()
        )
        checkout.make_ready(base)

    def prepare(self, taken: Taken, base: str, *, fetches: int = 0) -> str:
        """Prepare a slot for whoever comes next; the trouble with it, or nothing."""
        with taken.lock:
            try:
                self.make_ready(taken, base)
                self.book.confirm(taken.slot, self.clock.now(), "", seconds=0.0, fetches=fetches, state="available")
            except (GitError, OSError) as error:
                self.book.give_up(taken.slot, trouble="" if isinstance(error, TreeTooLargeError) else str(error))
                return str(error)
            except StaleLeaseError as error:
                return str(error)
            except BaseException:
                self.book.give_up(taken.slot)
                raise
            return ""

    def expiry(self, lease_seconds: float) -> str:
        """When a lease that begins now ends."""
        return (self.clock.now() + timedelta(seconds=lease_seconds)).isoformat()

    # --- size ---

    def drop_surplus(self) -> None:
        """Remove free slots that are too many."""
        self.book.drop_surplus(self.default_size, self._remove_slot)

    def _remove_slot(self, slot_id: str) -> None:
        self.known_file(slot_id).unlink(missing_ok=True)
        self.trash.take(self.slot_path(slot_id))
        self.trash.take(Mirror(self.folder, "", self.git, self.trash).admin_folder(slot_id))

    # --- after a crash ---

    def reconcile(self) -> list[str]:
        """Put right what processes that died have left; what was done, a line each."""
        done = [f"{slot_id}: its lease had ended" for slot_id in self.book.reclaim_expired(self.clock.now())]
        done += self._remove_orphans()
        self._tidy_mirror()
        slots = self.book.read().slots.values()
        for slot in slots:
            if slot.state not in {"available", "allocated"}:
                done += self._mend(slot)
        self.drop_surplus()
        return done

    def _mend(self, slot: Slot) -> list[str]:
        base = self.mirror().known_head()
        taken = self.book.retake(slot.slot_id)
        if taken is None:
            return []
        if base is None:  # nothing was ever fetched: the next holder's allocation will see
            taken.lock.close()
            self.book.give_up(taken.slot)
            return [f"{slot.slot_id}: was {slot.state}, is free"]
        trouble = self.prepare(taken, base)
        return [f"{slot.slot_id}: was {slot.state}, {f'cannot be made ready: {trouble}' if trouble else 'is ready'}"]

    def _remove_orphans(self) -> list[str]:
        """Folders of slots that are on no list."""
        with self.book.open() as page:
            found = list(os.scandir(self.folder / "slots")) if (self.folder / "slots").is_dir() else []
            orphans = [entry for entry in found if entry.name not in page.slots]
            for entry in orphans:
                self.trash.take(Path(entry.path))
                self.known_file(entry.name).unlink(missing_ok=True)
        return [f"{entry.name}: a folder of no slot, removed" for entry in orphans]

    def _tidy_mirror(self) -> None:
        self.mirror().prune_worktrees(Deadline(PREPARATION_SECONDS, self.clock))
        lock = try_lock(self.folder / "fetch.lock")
        if lock is not None:  # else somebody fetches, and will see to it
            with lock:
                self.mirror().remove_stale_locks()

    # --- what is shown ---

    def record(self) -> PoolRecord:
        """The pool with its slots."""
        page = self.book.read()
        slots = tuple(self._slot_record(slot, page) for slot in page.slots.values())
        return PoolRecord(
            name=page.name or self.folder.name,
            repo_url=self._url(page),
            pool_size=page.pool_size or self.default_size,
            counts={state: sum(slot.state == state for slot in slots) for state in _STATES},
            slots=slots,
            use=PoolUse.model_validate(page.use),
        )

    def slot_record(self, slot_id: str) -> SlotRecord:
        """One slot; ``SlotNotFoundError``."""
        page = self.book.read()
        if slot_id not in page.slots:
            raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
        return self._slot_record(page.slots[slot_id], page)

    def _slot_record(self, slot: Slot, page: Page) -> SlotRecord:
        is_held = slot.state == "allocated"
        return SlotRecord.model_validate(
            {
                "slot_id": slot.slot_id,
                "pool": page.name or self.folder.name,
                "state": slot.state,
                "slot_path": self.slot_path(slot.slot_id),
                "epoch": slot.epoch,
                "holder": slot.holder or None,
                "allocated_at": _time(slot.allocated_at) if is_held else None,
                "expires_at": _time(slot.expires_at),
                "last_used_at": _time(slot.last_used_at),
                "last_holder": slot.last_holder or None,
                "last_end": slot.last_end or None,
                "last_end_at": _time(slot.last_end_at),
                "last_end_by": slot.last_end_by or None,
                "trouble": slot.trouble or None,
            }
        )


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
