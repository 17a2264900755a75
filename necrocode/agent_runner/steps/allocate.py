"""Allocate: a workspace to start from, leased from the pool or brought by the caller."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing, outrun
from necrocode.agent_runner._git import GitError, RemoteRefusedError, Repository, open_checkout
from necrocode.agent_runner.errors import (
    RepositoryNotFoundError,
    RunnerError,
    UnusableCheckoutError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.heartbeat import Hold, kept
from necrocode.agent_runner.workspace import StartPoint, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import Git, ObjectReader
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.protocols import RepoPool
    from necrocode.agent_runner.records import SlotAllocation


@contextmanager
def leased_workspace(
    task: TaskContext,
    pool: RepoPool,
    git: Git,
    *,
    holder: str,
    lease_seconds: float,
    slot_timeout_seconds: float,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
    start: StartPoint | None = None,
) -> Iterator[Workspace]:
    """A slot of the pool for as long as the context lasts; a heartbeat keeps the lease.

    ``start``: where the work starts from, where an interrupted run has said so.

    Trouble with the heartbeat or the release is told to ``on_trouble`` and hides no other error.
    """
    if task.repo_url is None:  # pragma: no cover - TaskContext has seen to it
        raise RepositoryNotFoundError("The task names no repo_url.")
    allocation = outrun(
        deadline,
        partial(
            pool.allocate_slot,
            task.repo_url,
            holder,
            base_ref=task.base_ref if start is None else start.base_commit,
            timeout_seconds=min(slot_timeout_seconds, deadline.check("get a slot")),
            lease_seconds=lease_seconds,
        ),
        doing="get a slot",
        undo=lambda late: pool.release_slot(late.slot_id, lease_token=late.lease_token),
    )
    try:
        with _held(pool, allocation, lease_seconds, deadline, on_trouble) as hold:
            git.prepare()
            repository = Repository(git, allocation.slot_path)
            remote = allocation.repo_url or task.repo_url
            with repository.objects() as objects:
                base = allocation.base_commit or _head(objects, allocation.slot_path)
                yield Workspace(repository, objects, allocation.slot_id, base, remote, allocation.epoch, hold=hold)
    finally:
        release = partial(pool.release_slot, allocation.slot_id, lease_token=allocation.lease_token)
        try:
            with closing(deadline) as end:
                outrun(end, release, doing="give the slot back")
        except RunnerError as error:
            on_trouble(f"The slot {allocation.slot_id} was not released: {error}")


@contextmanager
def brought_workspace(
    task: TaskContext,
    git: Git,
    *,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
    only_reads: bool = False,
    start: StartPoint | None = None,
    pushes: bool = False,
) -> Iterator[Workspace]:
    """The checkout that the caller brings. Its HEAD is put back where it was, unless the branch was delivered there.

    ``start``: where the work starts from, and where HEAD was, before the run was interrupted.

    ``UnusableCheckoutError`` when it is no checkout, or has uncommitted changes; where one ``only_reads``, these are
    told to ``on_trouble``. ``RepositoryNotFoundError`` where one ``pushes`` and its remote is not allowed.
    """
    if task.slot_path is None:  # pragma: no cover - the orchestrator has seen to it
        raise WorkspacePreparationError("The task names no slot_path.")
    git.prepare()
    checkout = open_checkout(git, task.slot_path.expanduser().absolute(), deadline)
    repository = Repository(git, checkout.root)
    changed = (
        repository.run("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty", deadline=deadline)
        .decode()
        .strip()
    )
    if changed:
        told = f"The checkout {checkout.root} has uncommitted changes: {changed.splitlines()[0]}"
        if not only_reads:
            raise UnusableCheckoutError(told, hint="Commit or stash them: the runner moves its HEAD.")
        on_trouble(f"{told}. They are not in what is shown, and a run refuses the checkout.")
    with repository.objects() as objects:
        head = base = _head(objects, checkout.root)
        if start is not None:
            base = objects.resolve(start.base_commit) or ""
        elif task.base_ref is not None:
            base = objects.resolve(task.base_ref) or objects.resolve(f"refs/remotes/origin/{task.base_ref}") or ""
        if not base:
            missing = task.base_ref if start is None else start.base_commit
            raise RepositoryNotFoundError(f"{checkout.root} has no branch, tag or commit {missing!r}.")
        if base != head:
            _refuse_large(repository, base, deadline)
        remote = task.repo_url or ("origin" if checkout.origin_url else None)
        if pushes and remote is not None:
            remote = _allowed_address(repository, remote, deadline)
        place = (start and start.head) or checkout.head_branch or head
        slot_id = task.slot_id or str(checkout.root)
        try:
            yield Workspace(repository, objects, slot_id, base, remote, is_brought=True, head=place)
        finally:
            with closing(deadline):
                _return_head(repository, place, task.branch, on_trouble)


def _refuse_large(repository: Repository, base: str, deadline: Deadline) -> None:
    try:
        repository.check_size(base, room_bytes=shutil.disk_usage(repository.path).free, deadline=deadline)
    except GitError as error:
        raise WorkspacePreparationError(f"The checkout {repository.path} cannot be used: {error}") from error


def _allowed_address(repository: Repository, remote: str, deadline: Deadline) -> str:
    """Looked at before a model is paid for work that could not be delivered, and before any test can change it."""
    try:
        return repository.check_remote(remote, deadline=deadline)
    except RemoteRefusedError as error:
        raise RepositoryNotFoundError(f"Nothing may be pushed to {remote}: {error}", hint=error.hint) from error


def _return_head(repository: Repository, start: str, branch: str, on_trouble: Callable[[str], None]) -> None:
    """Put a brought checkout's HEAD back where it was, unless it is on the delivered branch."""
    try:
        now = repository.run("rev-parse", "--abbrev-ref", "HEAD").decode().strip()
        if now not in {start, branch}:
            repository.run("checkout", "--quiet", "--no-overwrite-ignore", start, "--")
    except RunnerError as error:
        on_trouble(f"The HEAD of {repository.path} was not put back to {start}: {error}")


def _head(objects: ObjectReader, path: Path) -> str:
    try:
        commit = objects.resolve("HEAD")
    except GitError as error:
        raise WorkspacePreparationError(f"The checkout {path} cannot be used: {error}") from error
    if commit is None:
        raise WorkspacePreparationError(f"The checkout {path} has no commit yet.", hint="Make a first commit there.")
    return commit


@contextmanager
def _held(
    pool: RepoPool,
    allocation: SlotAllocation,
    lease_seconds: float,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
) -> Iterator[Hold | None]:
    """Keep the slot's lease; None: a service without leases."""
    token, clock = allocation.lease_token, deadline.clock
    if token is None:
        yield None
        return
    slot_id = allocation.slot_id
    hold = Hold(f"slot {slot_id}", clock, lease_seconds, clock.monotonic(), deadline.cancellation)
    with kept(hold, lambda: pool.renew_lease(slot_id, token, lease_seconds=lease_seconds), on_trouble):
        yield hold
