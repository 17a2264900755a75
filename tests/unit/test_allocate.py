from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    LocalRepoPool,
    RepositoryNotFoundError,
    RunnerError,
    RunnerTimeoutError,
    ServiceConnectionError,
    SlotAllocation,
    SlotAllocationError,
    StaleLeaseError,
    TaskContext,
    WorkspacePreparationError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.steps.allocate import brought_workspace, leased_workspace
from necrocode.agent_runner.workspace import Workspace
from tests.support.clocks import FakeClock
from tests.support.repositories import commit_files, git, make_repository

WAIT_SECONDS = 20  # for what comes in a moment


class Pool:
    """A pool of one slot that tells what was asked of it, and does what a test says."""

    def __init__(self, slot_path: Path, **fields: Any) -> None:
        values = {"slot_id": "slot-1", "slot_path": slot_path, "lease_token": "token"} | fields
        self.allocation = SlotAllocation(**values)
        self.asked: dict[str, Any] = {}
        self.released: list[tuple[str, str | None]] = []
        self.renewed: list[tuple[str, str, float | None]] = []
        self.renewals = threading.Semaphore(0)
        self.renewal_errors: list[RunnerError] = []
        self.release_error: RunnerError | None = None

    def allocate_slot(self, repo_url: str, required_by: str, **options: Any) -> SlotAllocation:
        self.asked = {"repo_url": repo_url, "required_by": required_by, **options}
        return self.allocation

    def renew_lease(self, slot_id: str, lease_token: str, *, lease_seconds: float | None = None) -> None:
        self.renewed.append((slot_id, lease_token, lease_seconds))
        self.renewals.release()
        if self.renewal_errors:
            raise self.renewal_errors.pop(0)

    def release_slot(self, slot_id: str, *, lease_token: str | None = None) -> None:
        self.released.append((slot_id, lease_token))
        if self.release_error is not None:
            raise self.release_error

    def wait_for_renewals(self, count: int) -> None:
        for _ in range(count):
            assert self.renewals.acquire(timeout=WAIT_SECONDS), f"{len(self.renewed)} renewals came"


class Bench:
    def __init__(self, repository: Path, door: Git) -> None:
        self.repository = repository
        self.pool = Pool(repository)
        self.trouble: list[str] = []
        self.door = door

    def task(self, **changes: Any) -> TaskContext:
        values = {"task_id": "1", "spec_name": "s", "title": "t", "description": "d", "repo_url": str(self.repository)}
        return TaskContext(**(values | changes))

    def lease(
        self, pool: Any = None, *, lease_seconds: float = 60, deadline: Deadline | None = None, **changes: Any
    ) -> AbstractContextManager[Workspace]:
        return leased_workspace(
            self.task(**changes),
            pool or self.pool,
            self.door,
            holder="me",
            lease_seconds=lease_seconds,
            slot_timeout_seconds=60,
            deadline=deadline or Deadline(600),
            on_trouble=self.trouble.append,
        )

    def bring(self, path: Path | None = None, **changes: Any) -> AbstractContextManager[Workspace]:
        task = self.task(**({"repo_url": None, "slot_path": path or self.repository} | changes))
        return brought_workspace(task, self.door, deadline=Deadline(600), on_trouble=self.trouble.append)


@pytest.fixture
def bench(repository: Path, tmp_path: Path) -> Bench:
    return Bench(repository, Git(tmp_path / "git"))


@pytest.fixture(autouse=True)
def _no_heartbeat_outlives_its_lease() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("necrocode-heartbeat")]


def fail(context: AbstractContextManager[Workspace], inside: Callable[[Workspace], None]) -> None:
    with context as workspace:
        inside(workspace)


# --- a leased slot


def test_the_pool_is_asked_for_what_the_task_names(bench: Bench) -> None:
    clock = FakeClock()
    with bench.lease(base_ref="main", lease_seconds=30, deadline=Deadline(20, clock)) as workspace:
        assert bench.pool.asked == {
            "repo_url": str(bench.repository), "required_by": "me", "base_ref": "main", "timeout_seconds": 20,
            "lease_seconds": 30,
        }  # fmt: skip
        assert (workspace.path, workspace.slot_id, workspace.is_brought) == (bench.repository, "slot-1", False)
        assert bench.pool.released == []
    assert bench.pool.released == [("slot-1", "token")]
    assert bench.trouble == []


def test_what_the_pool_says_goes_before_what_the_slot_shows(bench: Bench) -> None:
    first = git(bench.repository, "rev-parse", "HEAD")
    second = commit_files(bench.repository, {"a": "a"})
    with bench.lease(Pool(bench.repository)) as workspace:
        assert (workspace.base_commit, workspace.remote, workspace.epoch) == (second, str(bench.repository), None)
    told = Pool(bench.repository, base_commit=first, repo_url="https://host/r", epoch=7)
    with bench.lease(told) as workspace:
        assert (workspace.base_commit, workspace.remote, workspace.epoch) == (first, "https://host/r", 7)


def test_the_slot_is_given_back_when_the_run_fails(bench: Bench) -> None:
    def broken(_workspace: Workspace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(bench.lease(), broken)
    assert bench.pool.released == [("slot-1", "token")]


def test_a_release_that_fails_is_told_and_hides_no_error(bench: Bench) -> None:
    def broken(_workspace: Workspace) -> None:
        raise ZeroDivisionError

    bench.pool.release_error = ServiceConnectionError("the pool is away")
    with pytest.raises(ZeroDivisionError):
        fail(bench.lease(), broken)
    assert bench.trouble == ["The slot slot-1 was not released: the pool is away"]


def test_no_time_left_asks_for_no_slot(bench: Bench) -> None:
    clock = FakeClock()
    deadline = Deadline(10, clock)
    clock.sleep(11)
    with pytest.raises(RunnerTimeoutError, match="get a slot"), bench.lease(deadline=deadline):
        pass
    assert bench.pool.asked == {}


@pytest.mark.parametrize("make", ["nothing", "no commit"])
def test_a_slot_that_cannot_be_used_is_told_and_given_back(bench: Bench, tmp_path: Path, make: str) -> None:
    (tmp_path / "slot").mkdir()
    if make == "no commit":
        git(tmp_path / "slot", "init", "--quiet")
    pool = Pool(tmp_path / "slot")
    with pytest.raises(WorkspacePreparationError, match=str(tmp_path / "slot")), bench.lease(pool):
        pass
    assert pool.released == [("slot-1", "token")]


# --- the heartbeat


def test_the_heartbeat_renews_the_lease_until_the_end(bench: Bench) -> None:
    with bench.lease(lease_seconds=0.03):
        bench.pool.wait_for_renewals(3)
    assert set(bench.pool.renewed) == {("slot-1", "token", 0.03)}
    assert bench.trouble == []


def test_a_renewal_that_fails_for_now_is_told_and_tried_again(bench: Bench) -> None:
    with bench.lease(lease_seconds=0.3):
        bench.pool.renewal_errors = [ServiceConnectionError("away"), ServiceConnectionError("away still")]
        bench.pool.wait_for_renewals(4)
    assert bench.trouble == [
        "The lease on slot slot-1 was not renewed: away",
        "The lease on slot slot-1 was not renewed: away still",
    ]


def test_a_lease_that_is_lost_is_told_once_and_no_longer_asked_for(bench: Bench) -> None:
    with bench.lease(lease_seconds=0.03) as workspace:
        bench.pool.wait_for_renewals(1)
        bench.pool.renewal_errors = [StaleLeaseError("given to another")] * 5
        for thread in threading.enumerate():
            if thread.name == "necrocode-heartbeat-slot slot-1":
                thread.join(WAIT_SECONDS)
                assert not thread.is_alive()
        with pytest.raises(StaleLeaseError, match="may be another runner's"):
            workspace.check_hold()
    assert bench.trouble == ["The lease on slot slot-1 was not renewed: given to another"]


def test_no_work_begins_on_a_slot_that_is_lost_already(bench: Bench) -> None:
    bench.pool.renewal_errors = [StaleLeaseError("given to another")]
    with pytest.raises(StaleLeaseError), bench.lease():
        pass
    assert bench.pool.released == [("slot-1", "token")]


def test_a_runner_that_was_asleep_longer_than_its_lease_knows_it_at_once(bench: Bench) -> None:
    clock = FakeClock()
    with bench.lease(lease_seconds=60, deadline=Deadline(600, clock)) as workspace:
        clock.sleep(59)
        workspace.check_hold()
        clock.sleep(1)
        with pytest.raises(StaleLeaseError):
            workspace.check_hold()


def test_a_renewal_that_is_never_answered_does_not_keep_the_run_from_ending(bench: Bench) -> None:
    release = threading.Event()

    class Silent(Pool):
        def renew_lease(self, *_arguments: Any, **_more: Any) -> None:
            super().renew_lease("slot-1", "token")
            if len(self.renewed) > 1:
                release.wait(WAIT_SECONDS)

    pool = Silent(bench.repository)
    with bench.lease(pool, lease_seconds=0.03):
        pool.wait_for_renewals(2)
    assert pool.released == [("slot-1", "token")]
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("necrocode-heartbeat"):
            thread.join(WAIT_SECONDS)


def test_a_pool_without_leases_gets_no_heartbeat(bench: Bench) -> None:
    pool = Pool(bench.repository, lease_token=None)
    with bench.lease(pool, lease_seconds=0.001):
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("necrocode-heartbeat")]
    assert pool.renewed == []
    assert pool.released == [("slot-1", None)]


def test_a_busy_pool_is_told(bench: Bench, tmp_path: Path) -> None:
    clock = FakeClock()
    pool = LocalRepoPool(tmp_path / "pool", bench.door, pool_size=1, clock=clock)
    pool.allocate_slot(str(bench.repository), "you", lease_seconds=1000)
    with pytest.raises(SlotAllocationError), bench.lease(pool):
        pass


# --- a checkout that is brought


def test_a_brought_checkout_starts_at_its_head(bench: Bench) -> None:
    (bench.repository / "untracked").write_text("mine")
    with bench.bring(slot_id="my-slot") as workspace:
        assert (workspace.slot_id, workspace.is_brought, workspace.epoch) == ("my-slot", True, None)
        assert workspace.base_commit == git(bench.repository, "rev-parse", "HEAD")
        assert workspace.remote is None
    assert git(bench.repository, "symbolic-ref", "--short", "HEAD") == "main"
    assert (bench.repository / "untracked").read_text() == "mine"
    with bench.bring() as workspace:
        assert workspace.slot_id == str(bench.repository)


def test_where_it_is_pushed_to(bench: Bench) -> None:
    with bench.bring(repo_url="https://host/r") as workspace:
        assert workspace.remote == "https://host/r"
    git(bench.repository, "remote", "add", "origin", "https://host/origin")
    with bench.bring() as workspace:
        assert workspace.remote == "origin"


def test_base_ref_may_be_local_or_the_origins(bench: Bench, tmp_path: Path) -> None:
    git(bench.repository, "branch", "local")
    only_there = commit_files(make_repository(tmp_path / "there"), {"b": "b"})
    git(tmp_path / "there", "branch", "remote")
    git(bench.repository, "remote", "add", "origin", str(tmp_path / "there"))
    git(bench.repository, "fetch", "--quiet", "origin")
    with bench.bring(base_ref="local") as workspace:
        assert workspace.base_commit == git(bench.repository, "rev-parse", "local")
    with bench.bring(base_ref="remote") as workspace:
        assert workspace.base_commit == only_there
    with pytest.raises(RepositoryNotFoundError, match="no branch, tag or commit 'none'"), bench.bring(base_ref="none"):
        pass


@pytest.mark.parametrize("detached", [False, True])
def test_the_head_is_put_back_where_it_was(bench: Bench, detached: bool) -> None:
    start = git(bench.repository, "rev-parse", "HEAD")
    if detached:
        git(bench.repository, "checkout", "--quiet", "--detach")
    commit = commit_files(make_repository(bench.repository.parent / "other"), {"x": "x"})
    git(bench.repository, "fetch", "--quiet", str(bench.repository.parent / "other"), commit)

    def elsewhere(workspace: Workspace) -> None:
        workspace.repository.run("checkout", "--quiet", "--detach", commit)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(bench.bring(), elsewhere)
    assert git(bench.repository, "rev-parse", "HEAD") == start
    assert git(bench.repository, "rev-parse", "--abbrev-ref", "HEAD") == ("HEAD" if detached else "main")
    assert bench.trouble == []


def test_the_head_stays_on_the_delivered_branch(bench: Bench) -> None:
    with bench.bring(branch_name="delivered") as workspace:
        workspace.repository.run("checkout", "--quiet", "-b", "delivered")
    assert git(bench.repository, "symbolic-ref", "--short", "HEAD") == "delivered"


def test_a_head_that_cannot_be_put_back_is_told_and_hides_no_error(bench: Bench) -> None:
    def broken(workspace: Workspace) -> None:
        workspace.repository.run("checkout", "--quiet", "--detach")
        (bench.repository / ".git/index.lock").write_text("")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(bench.bring(), broken)
    (trouble,) = bench.trouble
    assert trouble.startswith(f"The HEAD of {bench.repository} was not put back to main: ")


@pytest.mark.parametrize("staged", [False, True])
def test_uncommitted_work_is_refused_and_left(bench: Bench, staged: bool) -> None:
    (bench.repository / "calc.py").write_text("work")
    if staged:
        git(bench.repository, "add", "calc.py")
    with pytest.raises(WorkspacePreparationError, match=r"uncommitted changes: M +calc\.py"), bench.bring():
        pass
    assert (bench.repository / "calc.py").read_text() == "work"


def test_a_checkout_without_a_commit_is_told(bench: Bench, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "empty")
    with pytest.raises(WorkspacePreparationError, match="no commit yet"), bench.bring(tmp_path / "empty"):
        pass


def test_a_base_ref_that_stands_for_too_much_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    git(bench.repository, "branch", "old")
    commit_files(bench.repository, {"a": "1"})
    monkeypatch.setattr("necrocode.agent_runner._git.sizes.MOST_ENTRIES", 0)
    with pytest.raises(WorkspacePreparationError, match="more than 0 files"), bench.bring(base_ref="old"):
        pytest.fail("not reached")


def test_a_worktree_can_be_brought(bench: Bench, tmp_path: Path) -> None:
    git(bench.repository, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    with bench.bring(tmp_path / "side") as workspace:
        assert workspace.path == tmp_path / "side"
        assert workspace.base_commit == git(bench.repository, "rev-parse", "main")
    assert git(tmp_path / "side", "symbolic-ref", "--short", "HEAD") == "side"
