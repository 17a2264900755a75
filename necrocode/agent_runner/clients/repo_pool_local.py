"""The embedded repo pool: one bare mirror per repository, and warm worktrees ("slots") leased from it.

Layout: ``{root}/{name}-{hash}/mirror.git``, ``…/slots/{slot_id}``, ``…/pool.json`` (who holds which slot), and two
lock files: ``pool.lock`` for that list, ``mirror.lock`` for what git cannot do twice at once in one mirror. Safe for
many threads and processes of one machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline
from necrocode.agent_runner._git import REMOTE_HEAD, Git, GitError, Repository
from necrocode.agent_runner._names import check_branch_name, check_repository_url, expand_home
from necrocode.agent_runner.errors import (
    RepositoryNotFoundError,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.records import SlotAllocation

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_POOL_SIZE = 5
DEFAULT_LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.2
_PREPARATION_SECONDS = 900.0  # a first checkout of a large repository takes minutes, and no heartbeat runs yet
_NOT_THERE = re.compile(
    r"not found|does not exist|does not appear to be a git repository|repository '.*' not", re.IGNORECASE
)


@dataclass(frozen=True)
class _Slot:
    slot_id: str
    state: str
    """``available``, ``allocated``."""
    epoch: int = 0
    holder: str = ""
    lease_token: str = ""
    expires_at: str = ""
    last_used_at: str = ""

    def is_free(self, now: datetime) -> bool:
        return self.state == "available" or datetime.fromisoformat(self.expires_at) <= now


class LocalRepoPool:
    """Slots on this machine; the Protocol is :class:`~necrocode.agent_runner.RepoPool`.

    A slot is cleaned and reset when it is handed out, and reused, never deleted and made anew: that is up to 14 times
    slower on ext4. An expired lease makes a slot free.
    """

    def __init__(
        self, root: Path, git: Git, *, pool_size: int = DEFAULT_POOL_SIZE, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._root = Path(root).absolute()
        self._git = git
        self._pool_size = pool_size
        self._clock = clock

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

        ``RepositoryNotFoundError`` for a repository or ref that is not there, ``SlotAllocationError`` when every slot
        stays in use, ``WorkspacePreparationError`` when git fails.
        """
        pool = self._pool_of(repo_url)
        lease = lease_seconds or DEFAULT_LEASE_SECONDS
        self._make_folders(pool)
        base = pool.fetch(_checked_ref(base_ref))
        slot = self._wait_for_slot(pool, required_by, timeout_seconds or 0.0)
        try:
            pool.make_ready(slot.slot_id, base)
            slot = pool.renew(slot.slot_id, slot.lease_token, self._expiry(lease))
        except BaseException:
            pool.release(slot.slot_id, slot.lease_token, self._clock.now())
            raise
        return SlotAllocation(
            slot_id=slot.slot_id,
            slot_path=pool.slot_path(slot.slot_id),
            repo_url=pool.url,
            base_commit=base,
            epoch=slot.epoch,
            lease_token=slot.lease_token,
            expires_at=datetime.fromisoformat(slot.expires_at),
        )

    def renew_lease(self, slot_id: str, lease_token: str, *, lease_seconds: float | None = None) -> None:
        """Keep the slot; ``StaleLeaseError`` when the lease is over and the slot another's."""
        self._pool_with(slot_id).renew(slot_id, lease_token, self._expiry(lease_seconds or DEFAULT_LEASE_SECONDS))

    def release_slot(self, slot_id: str, *, lease_token: str | None = None) -> None:
        """Give the slot back; its files stay, for the next holder starts from them."""
        self._pool_with(slot_id).release(slot_id, lease_token, self._clock.now())

    def _make_folders(self, pool: _Pool) -> None:
        try:
            pool.folder.mkdir(parents=True, exist_ok=True)
            self._git.prepare()
        except OSError as error:
            raise WorkspacePreparationError(f"The repo pool cannot use {pool.folder}: {error.strerror}.") from error

    def _expiry(self, lease_seconds: float) -> str:
        return (self._clock.now() + timedelta(seconds=lease_seconds)).isoformat()

    def _wait_for_slot(self, pool: _Pool, holder: str, timeout_seconds: float) -> _Slot:
        deadline = Deadline(timeout_seconds, self._clock)
        while True:
            now = self._clock.now()
            slot = pool.take(holder, self._pool_size, now, self._expiry(_PREPARATION_SECONDS))
            if slot is not None:
                return slot
            if deadline.remaining_seconds() <= 0:
                raise SlotAllocationError(
                    f"No available slots for {pool.url}: all {self._pool_size} in use for {timeout_seconds:g} seconds.",
                    hint="Wait for a run to end, or raise pool_size.",
                )
            self._clock.sleep(min(_POLL_SECONDS, deadline.remaining_seconds()))

    def _pool_of(self, repo_url: str) -> _Pool:
        try:
            url = check_repository_url(repo_url)
            is_path = "://" not in url and not _is_scp_like(url)
            path = expand_home(Path(url)).absolute() if is_path else None
        except ValueError as error:
            raise RepositoryNotFoundError(f"Cannot use the repository URL: {error}.") from error
        if path is not None:
            if not path.is_dir():
                raise RepositoryNotFoundError(f"There is no repository at {path}.", hint="Check repo_url.")
            url = str(path)
        name = re.sub(r"[^A-Za-z0-9._]+", "-", url.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1]).strip("-.")
        key = f"{name[:40] or 'repo'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return _Pool(self._root / key, url, self._git)

    def _pool_with(self, slot_id: str) -> _Pool:
        key, _, number = slot_id.rpartition("-slot-")
        folder = self._root / key
        if not re.fullmatch(r"[A-Za-z0-9._-]+", key) or not number.isdigit() or not (folder / "pool.json").is_file():
            raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
        return _Pool(folder, "", self._git)


@dataclass(frozen=True)
class _Pool:
    """The slots of one repository."""

    folder: Path
    url: str
    git: Git

    def slot_path(self, slot_id: str) -> Path:
        return self.folder / "slots" / slot_id

    @property
    def mirror(self) -> Repository:
        return Repository(self.git, self.folder / "mirror.git", bare=True)

    # --- who holds what ---

    def take(self, holder: str, pool_size: int, now: datetime, expires_at: str) -> _Slot | None:
        """Lease the slot that was used last of the free ones, or a new one; None when all are in use."""
        with self._slots() as slots:
            free = sorted(
                (slot for slot in slots.values() if slot.is_free(now)), key=lambda slot: slot.last_used_at, reverse=True
            )
            if free:
                slot = free[0]
            elif len(slots) < pool_size:
                slot = _Slot(f"{self.folder.name}-slot-{len(slots) + 1}", "available")
            else:
                return None
            slots[slot.slot_id] = slot = replace(
                slot,
                state="allocated",
                holder=holder,
                epoch=slot.epoch + 1,
                lease_token=secrets.token_urlsafe(16),
                expires_at=expires_at,
                last_used_at=now.isoformat(),
            )
            return slot

    def renew(self, slot_id: str, lease_token: str, expires_at: str) -> _Slot:
        with self._slots() as slots:
            slot = self._held(slots, slot_id, lease_token)
            slots[slot_id] = slot = replace(slot, expires_at=expires_at)
            return slot

    def release(self, slot_id: str, lease_token: str | None, now: datetime) -> None:
        with self._slots() as slots:
            slot = slots.get(slot_id)
            if slot is None:
                raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
            if slot.state == "available" and lease_token in {None, slot.lease_token}:
                return
            if lease_token is not None:
                self._held(slots, slot_id, lease_token)
            slots[slot_id] = replace(slot, state="available", holder="", last_used_at=now.isoformat())

    @staticmethod
    def _held(slots: dict[str, _Slot], slot_id: str, lease_token: str) -> _Slot:
        slot = slots.get(slot_id)
        if slot is None:
            raise SlotNotFoundError(f"The repo pool has no slot {slot_id!r}.", status_code=404)
        if slot.state != "allocated" or not secrets.compare_digest(slot.lease_token, lease_token):
            raise StaleLeaseError(
                f"The lease on slot {slot_id} is over: it was released or given to another holder.", status_code=409
            )
        return slot

    @contextmanager
    def _slots(self) -> Iterator[dict[str, _Slot]]:
        """The list of slots, under its lock; written back when it was changed."""
        file = self.folder / "pool.json"
        with _locked(self.folder / "pool.lock"):
            before, slots = _read_slots(file)
            yield slots
            after = json.dumps([asdict(slot) for slot in slots.values()], indent=1).encode()
            if after != before:
                draft = file.with_suffix(".tmp")
                draft.write_bytes(after)
                draft.replace(file)

    # --- git ---

    def fetch(self, base_ref: str | None) -> str:
        """Bring the mirror up to date; the commit that ``base_ref`` (None: the remote's HEAD) is at."""
        with _locked(self.folder / "mirror.lock"):
            try:
                if not (self.mirror.path / "HEAD").exists():
                    self._create_mirror()
                self._fetch("+refs/heads/*:refs/remotes/origin/*", f"+HEAD:{REMOTE_HEAD}")
                base = self._resolve(base_ref)
                if base is None and base_ref is not None:
                    base = self._fetch_one(base_ref)
            except GitError as error:
                raise self._explained(error) from error
        if base is None:
            raise RepositoryNotFoundError(
                f"{self.url} has no branch, tag or commit {base_ref!r}.", hint="Check base_ref."
            )
        return base

    def _create_mirror(self) -> None:
        draft = self.folder / "mirror.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        self.git.run(["init", "--quiet", "--bare", str(draft)])
        Repository(self.git, draft, bare=True).run("config", "remote.origin.url", self.url)
        try:
            draft.rename(self.mirror.path)
        except OSError as error:
            raise WorkspacePreparationError(
                f"The mirror {self.mirror.path} is damaged and in the way of a new one ({error.strerror}).",
                hint="Move that folder away when no run is under way.",
            ) from error

    def _fetch(self, *refspecs: str) -> None:
        options = ("--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        argv = ("fetch", *options, "--", "origin", *refspecs)
        try:
            self.mirror.run(*argv, network=True)
        except GitError as error:
            if ".lock': File exists" not in error.output:
                raise
            self._remove_stale_locks()
            self.mirror.run(*argv, network=True)

    def _remove_stale_locks(self) -> None:
        """What a killed fetch left behind; under ``mirror.lock`` nobody else writes these refs."""
        for pattern in ("*.lock", "refs/remotes/**/*.lock", "refs/tags/**/*.lock", "refs/necrocode/commits/*.lock",
                        "refs/necrocode/*.lock"):  # fmt: skip
            for lock in self.mirror.path.glob(pattern):
                lock.unlink(missing_ok=True)

    def _resolve(self, base_ref: str | None) -> str | None:
        names = [REMOTE_HEAD] if base_ref is None else [f"refs/remotes/origin/{base_ref}", f"refs/tags/{base_ref}"]
        if base_ref is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", base_ref):
            names.append(base_ref)
        with self.mirror.objects() as objects:
            return next((commit for name in names if (commit := objects.resolve(name)) is not None), None)

    def _fetch_one(self, base_ref: str) -> str | None:
        """A tag, or a commit that no branch reaches, is fetched by name."""
        is_commit = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", base_ref) is not None
        source = base_ref if is_commit else f"refs/tags/{base_ref}"
        target = f"refs/necrocode/commits/{base_ref}" if is_commit else f"refs/tags/{base_ref}"
        try:
            self._fetch(f"+{source}:{target}")
        except GitError as error:
            if "couldn't find remote ref" in error.output or "not our ref" in error.output:
                return None
            raise
        return self._resolve(base_ref)

    def _explained(self, error: GitError) -> WorkspacePreparationError:
        if "couldn't find remote ref HEAD" in error.output:
            return RepositoryNotFoundError(f"{self.url} has no commit yet.", hint="Make a first commit there.")
        if _NOT_THERE.search(error.output):
            return RepositoryNotFoundError(f"There is no repository at {self.url}: {error}", hint="Check repo_url.")
        return WorkspacePreparationError(
            f"Cannot fetch {self.url}: {error}",
            hint="Is it reachable, and is GIT_TOKEN set if it is private?",
            retryable=True,
        )

    def make_ready(self, slot_id: str, base: str) -> None:
        """The slot's checkout, clean and at ``base``; a broken one is made anew once."""
        path = self.slot_path(slot_id)
        slot = Repository(self.git, path)
        try:
            if not (path / ".git").is_file():
                self._add_worktree(path, base)
            self._reset(slot, base)
        except (GitError, OSError):
            try:
                self._add_worktree(path, base)
                self._reset(slot, base)
            except (GitError, OSError) as error:
                raise WorkspacePreparationError(f"The slot {path} cannot be made ready: {error}") from error

    @staticmethod
    def _reset(slot: Repository, base: str) -> None:
        slot.reset_hard(base)
        slot.remove_untracked()

    def _add_worktree(self, path: Path, base: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "mirror.lock"):  # parallel "worktree add" fails on commondir (git 2.39)
            self.mirror.run("worktree", "prune")
            self.mirror.run("worktree", "add", "--quiet", "--force", "--no-checkout", "--detach", "--", str(path), base)


def _read_slots(file: Path) -> tuple[bytes, dict[str, _Slot]]:
    """The list of slots as it stands in the file, and read."""
    try:
        content = file.read_bytes() if file.exists() else b"[]"
        return content, {item["slot_id"]: _Slot(**item) for item in json.loads(content)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WorkspacePreparationError(
            f"The list of slots in {file} is damaged ({type(error).__name__}: {error}).",
            hint="Remove that file when no run is under way: all slots are free then.",
        ) from error


def _checked_ref(base_ref: str | None) -> str | None:
    """The ref, which goes into git's refspecs: ``*`` or ``:`` would mean something else there."""
    try:
        return None if base_ref is None else check_branch_name(base_ref)
    except ValueError as error:
        raise RepositoryNotFoundError(f"Cannot use the base ref: {error}.", hint="Check base_ref.") from error


def _is_scp_like(url: str) -> bool:
    """Whether git reads the text as ``host:path`` (connect.c: a colon before the first slash)."""
    return ":" in url.split("/", 1)[0]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system gives it back when this process dies."""
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
