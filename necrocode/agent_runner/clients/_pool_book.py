"""Who holds which slot of one repository: ``pool.json``, read and written under ``pool.lock``."""

from __future__ import annotations

import json
import logging
import re
import secrets
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, get_args

from necrocode.agent_runner.clients._pool_files import locked, try_lock, write_whole
from necrocode.agent_runner.errors import (
    PoolInUseError,
    PoolNotFoundError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.records import PoolUse, SlotEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path
    from types import UnionType

    from necrocode.agent_runner.clients._pool_files import Trash

logger = logging.getLogger(__name__)

_STATES = frozenset({"warming", "available", "allocated", "cleaning", "quarantined"})
_IN_PREPARATION = frozenset({"warming", "cleaning"})


@dataclass(frozen=True)
class Slot:
    """One slot as the file holds it; times are ISO 8601 in UTC, and empty where there is none."""

    slot_id: str
    state: str
    epoch: int = 0
    holder: str = ""
    lease_token: str = ""
    expires_at: str = ""
    last_used_at: str = ""
    allocated_at: str = ""
    trouble: str = ""
    """Why it is quarantined."""
    last_end: str = ""
    """How the last lease ended: ``released``, ``forced`` (by an operator), ``expired``."""
    last_end_at: str = ""
    last_holder: str = ""
    last_end_by: str = ""
    """Who forced it, where that was said."""

    @property
    def number(self) -> int:
        """Its number within the pool."""
        return int(self.slot_id.rpartition("-")[2])

    @property
    def is_idle(self) -> bool:
        """Whether nobody has it, and nobody prepares it."""
        return self.state in {"available", "quarantined"}

    def is_expired(self, now: datetime) -> bool:
        """Whether it is leased, and the lease is over."""
        return self.state == "allocated" and datetime.fromisoformat(self.expires_at) <= now


@dataclass
class Page:
    """The content of the file. ``pool_size`` None: the size that pools have where nobody chose one."""

    slots: dict[str, Slot] = field(default_factory=dict)
    name: str = ""
    repo_url: str = ""
    pool_size: int | None = None
    use: dict[str, Any] = field(default_factory=dict)
    is_removed: bool = False
    """Set when the whole pool was removed: nothing is written any more."""

    def count(self, **amounts: float) -> None:
        """Add to the use statistics."""
        for name, amount in amounts.items():
            self.use[name] = self.use.get(name, 0) + amount

    def as_json(self) -> bytes:
        """The file's bytes."""
        data = {name: value for name, value in vars(self).items() if name != "is_removed"}
        return json.dumps(data | {"slots": [asdict(slot) for slot in self.slots.values()]}, indent=1).encode()


@dataclass(frozen=True)
class Taken:
    """A slot in preparation; nobody else touches it until ``lock`` is closed."""

    slot: Slot
    lock: IO[str]


class PoolBook:
    """The slots of the pool in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "pool.json"

    def read(self) -> Page:
        """What the file says now; ``PoolNotFoundError`` when there is no such pool any more."""
        return self._parsed(self._content())

    @contextmanager
    def open(self) -> Iterator[Page]:
        """The file's content, under its lock; written back when it was changed."""
        try:
            with locked(self.folder / "pool.lock"):
                before = self._content() if self.file.exists() else None
                page = Page() if before is None else self._parsed(before)
                yield page
                after = page.as_json()
                if after != before and not page.is_removed:
                    self._write(after)
        except FileNotFoundError as error:
            raise PoolNotFoundError(f"The repo pool {self.folder.name} is not there (any more).") from error

    def _write(self, content: bytes) -> None:
        try:
            write_whole(self.file, content)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise WorkspacePreparationError(f"The repo pool cannot write {self.file}: {error.strerror}.") from error

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            raise PoolNotFoundError(f"The repo pool {self.folder.name} is not there (any more).") from None
        except OSError as error:
            raise self._damaged(error) from error

    def _parsed(self, content: bytes) -> Page:
        try:
            data = json.loads(content)
            fields = {"slots": data} if isinstance(data, list) else data  # a list: as version 0.1 wrote it
            slots = [Slot(**item) for item in fields["slots"]]
            page = Page(**{**fields, "slots": {slot.slot_id: slot for slot in slots}})
            _check(page)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(error) from error
        return page

    def _damaged(self, error: Exception) -> WorkspacePreparationError:
        return WorkspacePreparationError(
            f"The list of slots in {self.file} is damaged ({type(error).__name__}: {error}).",
            hint="Remove that file when no run is under way: all slots are free then.",
        )

    # --- taking and giving back ---

    def take(
        self, holder: str, default_size: int, now: datetime, expires_at: str, *, not_these: Collection[str] = ()
    ) -> Taken | None:
        """A slot to prepare: of the free ones that used last, else a new one, else a quarantined one; None for none."""
        with self.open() as page:
            for slot in self._candidates(page, default_size, now):
                lock = self._try(slot) if slot.slot_id not in not_these else None
                if lock is None:
                    continue
                if slot.is_expired(now):
                    self._end(page, slot, "expired", now)
                taken = replace(
                    page.slots.get(slot.slot_id, slot),
                    state="warming" if slot.state in {"warming", "quarantined"} else "cleaning",
                    holder=holder,
                    epoch=slot.epoch + 1,
                    lease_token=secrets.token_urlsafe(16),
                    expires_at=expires_at,
                    last_used_at=now.isoformat(),
                    trouble="",
                )
                page.slots[slot.slot_id] = taken
                return Taken(taken, lock)
            return None

    def has_free(self, default_size: int, now: datetime, *, not_these: Collection[str]) -> bool:
        """Whether :meth:`take` has more to choose from."""
        candidates = self._candidates(self.read(), default_size, now)
        return any(slot.slot_id not in not_these for slot in candidates)

    def add(self, holder: str, default_size: int, expires_at: str) -> Taken | None:
        """A new slot to prepare ahead; None when the pool is full."""
        with self.open() as page:
            if len(page.slots) >= (page.pool_size or default_size):
                return None
            slot = replace(self._new(page), holder=holder, lease_token=secrets.token_urlsafe(16), expires_at=expires_at)
            lock = self._try(slot)
            if lock is None:  # a removed slot of this number is still being prepared
                return None
            page.slots[slot.slot_id] = slot
            return Taken(slot, lock)

    def retake(self, slot_id: str) -> Taken | None:
        """A quarantined slot, or one whose preparer has died, to prepare again; None when it is neither."""
        with self.open() as page:
            slot = page.slots.get(slot_id)
            if slot is None or slot.state not in _IN_PREPARATION | {"quarantined"}:
                return None
            lock = self._try(slot)
            if lock is None:
                return None
            state = "warming" if slot.state == "quarantined" else slot.state
            page.slots[slot_id] = slot = replace(slot, state=state, lease_token=secrets.token_urlsafe(16))
            return Taken(slot, lock)

    def _candidates(self, page: Page, default_size: int, now: datetime) -> Iterator[Slot]:
        def newest_first(slots: list[Slot]) -> list[Slot]:
            return sorted(slots, key=lambda slot: slot.last_used_at, reverse=True)

        slots = list(page.slots.values())
        yield from newest_first([slot for slot in slots if slot.state == "available" or slot.is_expired(now)])
        yield from newest_first([slot for slot in slots if slot.state in _IN_PREPARATION])  # if the preparer died
        if len(slots) < (page.pool_size or default_size):
            yield self._new(page)
        yield from newest_first([slot for slot in slots if slot.state == "quarantined"])

    def _new(self, page: Page) -> Slot:
        numbers = {slot.number for slot in page.slots.values()}
        number = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
        return Slot(f"{self.folder.name}-slot-{number}", "warming")

    def _try(self, slot: Slot) -> IO[str] | None:
        file = self.lock_file(slot.slot_id)
        file.parent.mkdir(exist_ok=True)
        lock = try_lock(file)
        if lock is not None:
            file.touch()  # its time says since when the slot has been held, on the clock of its file system
        return lock

    def lock_file(self, slot_id: str) -> Path:
        """Held while the slot is prepared."""
        return self.folder / "locks" / f"{slot_id}.lock"

    def others_held(self, slot_id: str) -> list[Path]:
        """The lock files of the other slots that somebody has now."""
        slots = self.read().slots.values()
        held = (slot for slot in slots if not slot.is_idle and slot.slot_id != slot_id)
        return [self.lock_file(slot.slot_id) for slot in held]

    def confirm(
        self, taken: Slot, now: datetime, expires_at: str, *, seconds: float, fetches: int, state: str = "allocated"
    ) -> Slot:
        """The prepared slot goes to its holder; ``StaleLeaseError`` when it was taken away meanwhile."""
        with self.open() as page:
            slot = page.slots.get(taken.slot_id)
            if slot is None or slot.lease_token != taken.lease_token or slot.state not in _IN_PREPARATION:
                raise StaleLeaseError(f"Slot {taken.slot_id} was taken away while it was prepared.", status_code=409)
            if state == "allocated":
                slot = replace(slot, state=state, expires_at=expires_at, allocated_at=now.isoformat())
                page.count(allocations=1, allocation_seconds=seconds, fetches=fetches)
                page.use["last_allocation_seconds"] = seconds
            else:
                slot = replace(slot, state=state, holder="", expires_at="")
                page.count(fetches=fetches)
            page.slots[slot.slot_id] = slot
            return slot

    def give_up(self, taken: Slot, *, trouble: str = "") -> None:
        """A slot that could not be prepared: quarantined when there is ``trouble`` with it, else free again."""
        with self.open() as page:
            slot = page.slots.get(taken.slot_id)
            if slot is not None and slot.lease_token == taken.lease_token and slot.state in _IN_PREPARATION:
                state = "quarantined" if trouble else "available"
                page.slots[slot.slot_id] = replace(slot, state=state, holder="", expires_at="", trouble=trouble)

    # --- leases ---

    def renew(self, slot_id: str, lease_token: str, expires_at: str) -> Slot:
        """Keep the slot; ``StaleLeaseError`` when the lease is over."""
        with self.open() as page:
            slot = self._held(page, slot_id, lease_token)
            page.slots[slot_id] = slot = replace(slot, expires_at=expires_at)
            return slot

    def release(self, slot_id: str, lease_token: str | None, now: datetime, *, by: str) -> None:
        """Give the slot back; without a token it is taken from its holder, and ``by`` says by whom."""
        with self.open() as page:
            slot = _known(page, slot_id)
            if slot.is_idle and lease_token in {None, slot.lease_token}:
                return
            if lease_token is not None:
                self._held(page, slot_id, lease_token)
            self._end(page, slot, "released" if lease_token is not None else "forced", now, by=by)

    def release_all(self, holder: str, now: datetime) -> list[str]:
        """Free the slots of a holder that has died; their ids."""
        with self.open() as page:
            its = [slot for slot in page.slots.values() if slot.holder == holder and slot.state == "allocated"]
            for slot in its:
                self._end(page, slot, "released", now)
            return [slot.slot_id for slot in its]

    def reclaim_expired(self, now: datetime) -> list[str]:
        """Free the slots whose leases are over; their ids."""
        with self.open() as page:
            expired = [slot for slot in page.slots.values() if slot.is_expired(now)]
            for slot in expired:
                self._end(page, slot, "expired", now)
            return [slot.slot_id for slot in expired]

    @staticmethod
    def _end(page: Page, slot: Slot, end: SlotEnd, now: datetime, *, by: str = "") -> None:
        page.slots[slot.slot_id] = replace(
            slot,
            state="available",
            holder="",
            expires_at="",
            last_used_at=now.isoformat(),
            last_end=end,
            last_end_at=now.isoformat(),
            last_holder=slot.holder,
            last_end_by=by,
        )
        page.count(**{end: 1})
        if slot.allocated_at and slot.state == "allocated":
            held = max(timedelta(), now - datetime.fromisoformat(slot.allocated_at))
            page.count(held=1, held_seconds=held.total_seconds())
        if end != "released":
            logger.warning("The lease of %r on slot %s was ended: %s %s", slot.holder, slot.slot_id, end, by)

    @staticmethod
    def _held(page: Page, slot_id: str, lease_token: str) -> Slot:
        slot = _known(page, slot_id)
        is_theirs = secrets.compare_digest(slot.lease_token.encode(), lease_token.encode(errors="replace"))
        if slot.state != "allocated" or not is_theirs:
            raise StaleLeaseError(
                f"The lease on slot {slot_id} is over: it was released or given to another holder.", status_code=409
            )
        return slot

    # --- size ---

    def drop_surplus(self, default_size: int, remove: Callable[[str], None]) -> None:
        """Take free slots that are too many off the list, those used longest ago first, and ``remove`` each.

        Under the list's lock, for another process could make a slot of the same name as soon as it is off the list.
        """
        with self.open() as page:
            surplus = len(page.slots) - (page.pool_size or default_size)
            if surplus > 0:
                free = [slot for slot in page.slots.values() if slot.is_idle]
                free.sort(key=lambda slot: (slot.state == "available", slot.last_used_at))
                for slot in free[:surplus]:
                    remove(slot.slot_id)
                    del page.slots[slot.slot_id]

    def remove(self, trash: Trash) -> None:
        """Take the whole pool away; ``PoolInUseError`` when somebody has a slot."""
        with self.open() as page:
            held = sorted(slot.slot_id for slot in page.slots.values() if not slot.is_idle)
            if held:
                raise PoolInUseError(
                    f"The repo pool {page.name or self.folder.name} is in use: {', '.join(held)}.",
                    hint="Release these slots first.",
                )
            trash.take(self.folder)
            page.is_removed = True


def _check(page: Page) -> None:
    """``ValueError`` or ``TypeError`` for what no pool writes, before it makes trouble elsewhere."""
    PoolUse.model_validate(page.use)
    _check_kinds(page, {"name": str, "repo_url": str, "pool_size": int | None})
    for slot in page.slots.values():
        _check_slot(slot)


def _check_slot(slot: Slot) -> None:
    if slot.state not in _STATES or slot.number < 1:
        raise ValueError(f"{slot.slot_id} is {slot.state!r}, which is no state of a slot")
    _check_kinds(slot, {name: int if name == "epoch" else str for name in vars(slot)})
    if slot.last_end not in {"", *get_args(SlotEnd)} or (slot.state == "allocated" and not slot.expires_at):
        raise ValueError(f"{slot.slot_id} does not say how or when its lease ends")
    for time in filter(None, (slot.expires_at, slot.last_used_at, slot.allocated_at, slot.last_end_at)):
        if datetime.fromisoformat(time).tzinfo is None:
            raise ValueError(f"{slot.slot_id} has a time without a zone")


def _check_kinds(holder: Page | Slot, kinds: Mapping[str, type | UnionType]) -> None:
    for name, kind in kinds.items():
        if not isinstance(getattr(holder, name), kind):
            raise TypeError(f"{name} is {getattr(holder, name)!r}")


def _known(page: Page, slot_id: str) -> Slot:
    slot = page.slots.get(slot_id)
    if slot is None:
        raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
    return slot


def key_of(slot_id: str) -> str | None:
    """The name of the folder of the slot's pool; None for what is no slot's id."""
    key, _, number = slot_id.rpartition("-slot-")
    is_id = re.fullmatch(r"[A-Za-z0-9._-]+", key) and re.fullmatch(r"[1-9][0-9]{0,8}", number)
    return key if is_id and key not in {".", ".."} else None
