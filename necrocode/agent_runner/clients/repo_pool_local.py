"""The embedded repo pool: one bare mirror per repository, and warm worktrees ("slots") leased from it.

Layout: ``{root}/{name}-{hash}/mirror.git``, ``…/slots/{slot_id}``, ``…/pool.json`` (who holds which slot),
``…/known/{slot_id}.known`` (how each was when it was handed out), and lock files: ``pool.lock`` for that list,
``mirror.lock`` for what git cannot do twice at once in one mirror, ``fetch.lock`` for the network,
``locks/{slot_id}.lock`` for a slot in preparation. ``{root}/.trash`` holds what is being deleted. Safe for many threads
and processes of one machine.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import is_over, own_deadline
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline
from necrocode.agent_runner._git import DEFAULT_TIMEOUT_SECONDS, Git, GitError, RemoteRefusedError, TreeTooLargeError
from necrocode.agent_runner._names import check_branch_name, check_repository_url, expand_home
from necrocode.agent_runner.clients._pool_book import key_of
from necrocode.agent_runner.clients._pool_files import Trash, removal_told
from necrocode.agent_runner.clients._pool_place import PREPARATION_SECONDS, PoolPlace
from necrocode.agent_runner.errors import (
    PoolExistsError,
    PoolNotFoundError,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.records import PoolDefinition, PoolRecord, SlotAllocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner.clients._pool_book import Taken
    from necrocode.agent_runner.records import SlotRecord

logger = logging.getLogger(__name__)

DEFAULT_POOL_SIZE = 5
DEFAULT_LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.2
_LEAST_WORK_SECONDS = 30.0


@dataclass
class _Request:
    """One allocation on its way."""

    place: PoolPlace
    holder: str
    base: str
    fetches: int
    started: float
    lease_seconds: float
    tried: set[str] = field(default_factory=set)


class LocalRepoPool:
    """Slots on this machine; the Protocol is :class:`~necrocode.agent_runner.RepoPool`.

    A repository's pool is made when a slot of it is first asked for, or by :meth:`create_pool`. A slot is cleaned and
    reset when it is handed out, and reused, never deleted and made anew: that is up to 14 times slower on ext4. An
    expired lease makes a slot free.
    """

    def __init__(
        self, root: Path, git: Git, *, pool_size: int = DEFAULT_POOL_SIZE, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._root = Path(root).absolute()
        self._git = git
        self._pool_size = pool_size
        self._clock = clock
        self._trash = Trash(self._root / ".trash")

    @property
    def root(self) -> Path:
        """The folder of all pools."""
        return self._root

    @property
    def pool_size(self) -> int:
        """The size of pools for which nobody chose one."""
        return self._pool_size

    # --- slots ---

    def allocate_slot(
        self,
        repo_url: str,
        required_by: str,
        *,
        base_ref: str | None = None,
        timeout_seconds: float | None = None,
        lease_seconds: float | None = None,
    ) -> SlotAllocation:
        """A clean checkout at the newest ``base_ref``, on a detached HEAD.

        ``timeout_seconds`` limits the waiting for a free slot (None or 0: none), and likewise the fetch, which gets at
        least 30 seconds (None or 0: 10 minutes). ``RepositoryNotFoundError`` for a repository or ref that is not there,
        ``SlotAllocationError`` when every slot stays in use, ``WorkspacePreparationError`` when git fails.
        """
        return self.allocate_slot_while(
            lambda: True,
            repo_url,
            required_by,
            base_ref=base_ref,
            timeout_seconds=timeout_seconds,
            lease_seconds=lease_seconds,
        )

    def allocate_slot_while(
        self,
        is_wanted: Callable[[], bool],
        repo_url: str,
        required_by: str,
        *,
        base_ref: str | None = None,
        timeout_seconds: float | None = None,
        lease_seconds: float | None = None,
    ) -> SlotAllocation:
        """As :meth:`allocate_slot`; given up with ``SlotAllocationError``, no slot held, once it is not wanted."""
        started = self._clock.monotonic()
        place = self._place_of(repo_url)
        ref = _checked_ref(base_ref)
        seconds = max(timeout_seconds, _LEAST_WORK_SECONDS) if timeout_seconds else DEFAULT_TIMEOUT_SECONDS
        lease = lease_seconds or DEFAULT_LEASE_SECONDS
        waiting = own_deadline(timeout_seconds or 0.0, self._clock)

        def allocate() -> SlotAllocation:
            base, fetches = place.mirror().fetch(ref, own_deadline(seconds, self._clock))
            request = _Request(place, required_by, base, fetches, started, lease)
            return self._allocated(request, waiting, is_wanted)

        allocation = place.made_for(allocate)
        self._trash.empty_later()
        if not is_wanted():
            self.release_slot(allocation.slot_id, lease_token=allocation.lease_token)
            raise SlotAllocationError("No available slots are needed: the caller has gone.", retryable=False)
        return allocation

    def _allocated(self, request: _Request, waiting: Deadline, is_wanted: Callable[[], bool]) -> SlotAllocation:
        while True:
            taken = self._wait_for_slot(request, waiting, is_wanted)
            with taken.lock:
                allocation = self._handed_out(request, taken)
            if allocation is not None:
                return allocation

    def _wait_for_slot(self, request: _Request, waiting: Deadline, is_wanted: Callable[[], bool]) -> Taken:
        place = request.place
        while is_wanted():
            expiry = place.expiry(PREPARATION_SECONDS)
            taken = place.book.take(request.holder, self._pool_size, self._clock.now(), expiry, not_these=request.tried)
            if taken is not None:
                return taken
            if waiting.remaining_seconds() <= 0:
                size = place.record().pool_size
                raise SlotAllocationError(
                    f"No available slots for {place.url}: all {size} in use for {waiting.total_seconds:g} seconds.",
                    hint="Wait for a run to end, or raise pool_size.",
                )
            waiting.pause(min(_POLL_SECONDS, waiting.remaining_seconds()))
        raise SlotAllocationError("No available slots are needed: the caller has gone.", retryable=False)

    def _handed_out(self, request: _Request, taken: Taken) -> SlotAllocation | None:
        """The prepared slot; None when it cannot be prepared and another may be tried."""
        place, book = request.place, request.place.book
        try:
            place.make_ready(taken, request.base)
            seconds = max(0.0, self._clock.monotonic() - request.started)
            now, expiry = self._clock.now(), place.expiry(request.lease_seconds)
            slot = book.confirm(taken.slot, now, expiry, seconds=seconds, fetches=request.fetches)
        except TreeTooLargeError as error:  # no slot is to blame
            book.give_up(taken.slot)
            raise WorkspacePreparationError(f"{place.url} cannot be checked out: {error}", hint=error.hint) from error
        except (GitError, OSError) as error:
            if is_over():  # the slot is not to blame
                book.give_up(taken.slot)
                raise
            self._quarantine(request, taken, error)
            return None
        except StaleLeaseError as error:  # an operator has released it meanwhile
            raise SlotAllocationError(f"No available slots for {place.url}: {error}") from error
        except BaseException:
            book.give_up(taken.slot)
            raise
        return SlotAllocation(
            slot_id=slot.slot_id,
            slot_path=place.slot_path(slot.slot_id),
            repo_url=place.url,
            base_commit=request.base,
            epoch=slot.epoch,
            lease_token=slot.lease_token,
            expires_at=datetime.fromisoformat(slot.expires_at),
        )

    def _quarantine(self, request: _Request, taken: Taken, error: Exception) -> None:
        """Set the slot aside; ``WorkspacePreparationError`` when there is no other to try."""
        place = request.place
        path = place.slot_path(taken.slot.slot_id)
        logger.warning("The slot %s is quarantined: %s", taken.slot.slot_id, error)
        place.book.give_up(taken.slot, trouble=str(error))
        request.tried.add(taken.slot.slot_id)
        if not place.book.has_free(self._pool_size, self._clock.now(), not_these=request.tried):
            raise WorkspacePreparationError(f"The slot {path} cannot be made ready: {error}") from error

    def renew_lease(self, slot_id: str, lease_token: str, *, lease_seconds: float | None = None) -> None:
        """Keep the slot; ``StaleLeaseError`` when the lease is over and the slot another's."""
        place = self._place_with(slot_id)
        place.book.renew(slot_id, lease_token, place.expiry(lease_seconds or DEFAULT_LEASE_SECONDS))

    def release_slot(self, slot_id: str, *, lease_token: str | None = None, released_by: str = "") -> None:
        """Give the slot back; its files stay, for the next holder starts from them.

        Without a token it is taken from its holder, and recorded as such; ``released_by`` says by whom.
        """
        place = self._place_with(slot_id)
        place.book.release(slot_id, lease_token, self._clock.now(), by=released_by)
        place.drop_surplus()
        self._trash.empty_later()

    def release_abandoned(self, holder: str) -> list[str]:
        """Give back all slots of a holder that has died; their ids."""
        now = self._clock.now()
        return [slot_id for place in self._places() for slot_id in place.book.release_all(holder, now)]

    def get_slot(self, slot_id: str) -> SlotRecord:
        """State, holder and lease of a slot; ``SlotNotFoundError``."""
        return self._place_with(slot_id).slot_record(slot_id)

    # --- pools ---

    def create_pool(
        self, repo_url: str, *, name: str | None = None, pool_size: int = DEFAULT_POOL_SIZE, resize: bool = False
    ) -> PoolRecord:
        """The pool of a repository, made now; its slots are made when they are needed, or by :meth:`warm`.

        ``resize``: one that is there already gets name and size; else it must have them. ``PoolExistsError`` when it
        has not, or another pool has the name. ``ConfigurationError`` for a name or size that cannot be. Whether the
        repository exists is not asked.
        """
        wanted = PoolDefinition(repo_url=repo_url, name=name, pool_size=pool_size)
        place = self._place_of(repo_url, must_exist=False)
        names = {shown.name for other, shown in self._shown() if other.folder != place.folder}
        place.ensure()
        with place.book.open() as page:
            is_other = page.pool_size not in {None, pool_size} or (name and page.name not in {"", name})
            if (is_other and not resize) or name in names:
                raise PoolExistsError(
                    f"There is another pool for {place.url}, or of the name {name!r}.",
                    hint="Resize that one, or choose another name.",
                    status_code=409,
                )
            page.pool_size, page.name = wanted.pool_size, name or page.name
        place.drop_surplus()
        return place.record()

    def resize_pool(self, name: str, pool_size: int) -> PoolRecord:
        """The pool with another size. Free slots that are too many go at once, those in use when they are released."""
        PoolDefinition(repo_url="-", pool_size=pool_size)
        place = self._place_named(name)
        with place.book.open() as page:
            page.pool_size = pool_size
        place.drop_surplus()
        self._trash.empty_later()
        return place.record()

    def remove_pool(self, name: str) -> None:
        """Delete a pool, with mirror and slots; ``PoolInUseError`` when somebody holds one of them.

        What runs without a push have delivered lies in the mirror, and goes with it.
        """
        place = self._place_named(name)
        place.book.remove(self._trash)
        self._trash.empty_later()

    def pools_status(self) -> tuple[PoolRecord, ...]:
        """All pools with their slots, by name; of one whose list of slots is damaged only its ``trouble``."""
        return tuple(sorted((shown for _, shown in self._shown()), key=lambda pool: pool.name))

    def warm(self, name: str) -> PoolRecord:
        """The pool, with all its slots made ready at the repository's HEAD; those that are there are left alone."""
        place = self._place_named(name)
        with removal_told(place.folder):
            base, fetches = place.mirror().fetch(None, Deadline(DEFAULT_TIMEOUT_SECONDS, self._clock))
            while taken := place.book.add("(warming)", self._pool_size, place.expiry(PREPARATION_SECONDS)):
                trouble = place.prepare(taken, base, fetches=fetches)
                fetches = 0
                if trouble:
                    raise WorkspacePreparationError(f"The slot {taken.slot.slot_id} cannot be made ready: {trouble}")
            return place.record()

    # --- upkeep ---

    def reclaim_expired(self) -> list[str]:
        """Free every slot whose lease is over; their ids. A pool where that fails is told in the log."""
        freed = []
        for place in self._places():
            try:
                freed += place.book.reclaim_expired(self._clock.now())
                place.drop_surplus()
            except (RunnerError, OSError) as error:
                logger.warning("Leases of the pool %s that ended were not reclaimed: %s", place.folder.name, error)
        self._trash.empty_later()
        return freed

    def reconcile(self) -> list[str]:
        """Put right what dead processes have left, try quarantined slots again, delete leftovers; a line for each.

        Slots that somebody holds, or prepares at this moment, are left alone. A pool that cannot be put right is told
        in the log, and does not keep the others from it.
        """
        done = []
        for place in self._places():
            try:
                done += place.reconcile()
            except (RunnerError, OSError) as error:
                logger.warning("The pool %s cannot be put right: %s", place.folder.name, error)
        self._trash.empty()
        for line in done:
            logger.info("%s", line)
        return done

    def check(self) -> None:
        """Return when the folder of the pools can be written to; else ``WorkspacePreparationError``."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            probe = self._root / ".probe"
            probe.touch()
        except OSError as error:
            raise WorkspacePreparationError(f"The repo pool cannot use {self._root}: {error.strerror}.") from error

    # --- places ---

    def _place(self, folder: Path, url: str = "") -> PoolPlace:
        return PoolPlace(folder, url, self._git, self._trash, self._clock, self._pool_size)

    def _places(self) -> list[PoolPlace]:
        return [self._place(file.parent) for file in sorted(self._root.glob("[!.]*/pool.json"))]

    def _shown(self) -> list[tuple[PoolPlace, PoolRecord]]:
        """Every pool and what is shown of it."""
        shown = []
        for place in self._places():
            try:
                shown.append((place, place.record()))
            except PoolNotFoundError:  # removed since
                continue
            except (RunnerError, OSError) as error:
                record = PoolRecord(name=place.folder.name, pool_size=self._pool_size, trouble=str(error))
                shown.append((place, record))
        return shown

    def _place_of(self, repo_url: str, *, must_exist: bool = True) -> PoolPlace:
        try:
            url = check_repository_url(repo_url)
            is_path = "://" not in url and not _is_scp_like(url)
            path = expand_home(Path(url)).absolute() if is_path else None
            if must_exist:
                self._git.remotes.check(url)
        except ValueError as error:
            raise RepositoryNotFoundError(f"Cannot use the repository URL: {error}.") from error
        except RemoteRefusedError as error:
            raise RepositoryNotFoundError(f"Cannot use {repo_url}: {error}", hint=error.hint) from error
        if path is not None:
            if must_exist and not path.is_dir():
                raise RepositoryNotFoundError(f"There is no repository at {path}.", hint="Check repo_url.")
            url = str(path)
        name = re.sub(r"[^A-Za-z0-9._]+", "-", url.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1]).strip("-.")
        key = f"{name[:40] or 'repo'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return self._place(self._root / key, url)

    def _place_with(self, slot_id: str) -> PoolPlace:
        key = key_of(slot_id)
        if key is None or not (self._root / key / "pool.json").is_file():
            raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
        return self._place(self._root / key)

    def _place_named(self, name: str) -> PoolPlace:
        for place, shown in self._shown():
            if name == shown.name:
                return place
        raise PoolNotFoundError(f"There is no pool {name!r}.", hint="GET /pools/status lists them.", status_code=404)


def _checked_ref(base_ref: str | None) -> str | None:
    """The ref, which goes into git's refspecs: ``*`` or ``:`` would mean something else there."""
    try:
        return None if base_ref is None else check_branch_name(base_ref)
    except ValueError as error:
        raise RepositoryNotFoundError(f"Cannot use the base ref: {error}.", hint="Check base_ref.") from error


def _is_scp_like(url: str) -> bool:
    """Whether git reads the text as ``host:path`` (connect.c: a colon before the first slash)."""
    return ":" in url.split("/", 1)[0]
