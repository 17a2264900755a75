"""What every ``RepoPool`` does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner import (
    RepoPool,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocation,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import CALC_FILES, commit_files, git, make_repository

OpenPool = Callable[[Clock, int], RepoPool]
SLOTS = 3
UNKNOWN_SLOTS = ["none", "..", "a/b", "", "スロット", "../../pool-slot-1", "x-slot-1", "x-slot-", "\0"]


def head(slot: SlotAllocation) -> str:
    return git(slot.slot_path, "rev-parse", "HEAD")


def token(slot: SlotAllocation) -> str:
    assert slot.lease_token is not None
    return slot.lease_token


class RepoPoolContract:
    """Inherit it, and say how the pool under test is opened: on which clock, and with how many slots a repository."""

    @pytest.fixture
    def open_pool(self) -> OpenPool:
        raise NotImplementedError

    @pytest.fixture
    def unusable(self) -> RepoPool:
        """A pool that cannot work where it is, or that is not there."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def pool(self, open_pool: OpenPool, clock: FakeClock) -> RepoPool:
        return open_pool(clock, SLOTS)

    # --- what a slot is

    def test_a_slot_is_a_clean_checkout_of_the_default_branch(self, pool: RepoPool, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        assert head(slot) == git(repository, "rev-parse", "main")
        assert slot.base_commit in {None, head(slot)}
        assert git(slot.slot_path, "status", "--porcelain", "--ignored") == ""
        found = {path.name: path.read_text() for path in slot.slot_path.iterdir() if path.name != ".git"}
        assert found == CALC_FILES

    def test_what_a_holder_left_behind_is_gone_for_the_next(self, pool: RepoPool, repository: Path) -> None:
        commit_files(repository, {".gitignore": "*.log\n", "sub/a.txt": "a"})
        slot = pool.allocate_slot(str(repository), "me")
        folder = slot.slot_path
        (folder / "untracked.txt").write_text("x")
        (folder / "ignored.log").write_text("x")
        (folder / "sub/a.txt").unlink()
        (folder / "calc.py").chmod(0o755)
        (folder / "test_calc.py").write_text("changed")
        make_repository(folder / "nested")
        (folder / "staged.txt").write_text("x")
        git(folder, "add", "staged.txt")
        git(folder, "checkout", "--quiet", "-b", "mine")
        git(folder, "commit", "--quiet", "-m", "mine")
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        again = [pool.allocate_slot(str(repository), "you") for _ in range(SLOTS)]
        for one in again:
            assert head(one) == git(repository, "rev-parse", "main")
            assert git(one.slot_path, "status", "--porcelain", "--ignored") == ""
            assert not (one.slot_path / "nested").exists()
            assert (one.slot_path / "sub/a.txt").read_text() == "a"

    def test_a_slot_starts_from_the_newest_commit(self, pool: RepoPool, repository: Path) -> None:
        for number in range(3):
            commit = commit_files(repository, {"n.txt": str(number)})
            slot = pool.allocate_slot(str(repository), "me")
            assert head(slot) == commit
            pool.release_slot(slot.slot_id)

    def test_a_branch_that_was_rewritten_is_followed(self, pool: RepoPool, repository: Path) -> None:
        commit_files(repository, {"n.txt": "1"})
        pool.release_slot(pool.allocate_slot(str(repository), "me").slot_id)
        git(repository, "reset", "--quiet", "--hard", "HEAD^")
        commit = commit_files(repository, {"n.txt": "2"})
        assert head(pool.allocate_slot(str(repository), "me")) == commit

    def test_base_ref_may_be_a_branch_a_tag_or_a_commit(self, pool: RepoPool, repository: Path) -> None:
        first = git(repository, "rev-parse", "HEAD")
        git(repository, "checkout", "--quiet", "-b", "機能/一")
        on_branch = commit_files(repository, {"b.txt": "b"})
        git(repository, "tag", "-a", "v1", "-m", "v1")
        git(repository, "checkout", "--quiet", "main")
        commit_files(repository, {"m.txt": "m"})
        for base_ref, commit in (("機能/一", on_branch), ("v1", on_branch), (first, first)):
            slot = pool.allocate_slot(str(repository), "me", base_ref=base_ref)
            assert head(slot) == commit
            pool.release_slot(slot.slot_id)

    def test_a_repository_with_a_japanese_name_works(self, pool: RepoPool, tmp_path: Path) -> None:
        repository = make_repository(tmp_path / "リポジトリ 1", {"ファイル.txt": "内容"})
        slot = pool.allocate_slot(str(repository), "ランナー")
        assert (slot.slot_path / "ファイル.txt").read_text() == "内容"
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)

    # --- one holder at a time

    def test_two_allocations_never_share_a_slot(self, pool: RepoPool, repository: Path) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        assert len({slot.slot_id for slot in slots}) == SLOTS
        assert len({slot.slot_path for slot in slots}) == SLOTS
        assert len({slot.lease_token for slot in slots}) == SLOTS

    def test_none_free_is_told_and_may_be_tried_later(self, pool: RepoPool, repository: Path) -> None:
        for _ in range(SLOTS):
            pool.allocate_slot(str(repository), "me")
        with pytest.raises(SlotAllocationError, match=r"^No available slots") as caught:
            pool.allocate_slot(str(repository), "me", timeout_seconds=0)
        assert caught.value.retryable

    def test_a_released_slot_is_free(self, pool: RepoPool, repository: Path) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        pool.release_slot(slots[1].slot_id, lease_token=slots[1].lease_token)
        again = pool.allocate_slot(str(repository), "you")
        assert again.slot_id == slots[1].slot_id
        assert again.lease_token != slots[1].lease_token

    def test_each_allocation_has_a_higher_epoch(self, pool: RepoPool, repository: Path) -> None:
        epochs = []
        for _ in range(3):
            slot = pool.allocate_slot(str(repository), "me")
            epochs.append(slot.epoch or 0)
            pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        assert epochs == sorted(set(epochs))

    def test_repositories_do_not_wait_for_each_other(self, pool: RepoPool, repository: Path, tmp_path: Path) -> None:
        other = make_repository(tmp_path / "other" / "repo")
        slots = [pool.allocate_slot(str(place), "me") for place in (repository, other) for _ in range(SLOTS)]
        assert len({slot.slot_id for slot in slots}) == 2 * SLOTS

    def test_releasing_twice_is_harmless(self, pool: RepoPool, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        for lease_token in (slot.lease_token, slot.lease_token, None):
            pool.release_slot(slot.slot_id, lease_token=lease_token)
        assert len({pool.allocate_slot(str(repository), "me").slot_id for _ in range(SLOTS)}) == SLOTS

    def test_a_late_release_does_not_free_the_next_holders_slot(self, pool: RepoPool, repository: Path) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        pool.release_slot(slots[0].slot_id, lease_token=slots[0].lease_token)
        pool.allocate_slot(str(repository), "you")
        with pytest.raises(StaleLeaseError):
            pool.release_slot(slots[0].slot_id, lease_token=slots[0].lease_token)
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_a_wrong_token_frees_nothing(self, pool: RepoPool, repository: Path) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        with pytest.raises(StaleLeaseError) as caught:
            pool.release_slot(slots[0].slot_id, lease_token="wrong")
        assert caught.value.retryable is False
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_an_operator_can_free_a_slot_without_its_token(
        self, open_pool: OpenPool, pool: RepoPool, repository: Path, clock: FakeClock
    ) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        operator = open_pool(clock, SLOTS)
        operator.release_slot(slots[2].slot_id)
        assert pool.allocate_slot(str(repository), "you").slot_id == slots[2].slot_id

    def test_another_client_of_the_pool_sees_the_same_slots(
        self, open_pool: OpenPool, pool: RepoPool, repository: Path, clock: FakeClock
    ) -> None:
        for _ in range(SLOTS):
            pool.allocate_slot(str(repository), "me")
        with pytest.raises(SlotAllocationError):
            open_pool(clock, SLOTS).allocate_slot(str(repository), "you")

    # --- leases

    def test_a_lease_that_ends_frees_the_slot(self, pool: RepoPool, repository: Path, clock: FakeClock) -> None:
        old = [pool.allocate_slot(str(repository), "me", lease_seconds=60) for _ in range(SLOTS)]
        (old[0].slot_path / "left.txt").write_text("x")
        clock.sleep(61)
        new = [pool.allocate_slot(str(repository), "you", lease_seconds=60) for _ in range(SLOTS)]
        assert {slot.slot_id for slot in new} == {slot.slot_id for slot in old}
        assert not any((slot.slot_path / "left.txt").exists() for slot in new)
        for slot in old:
            with pytest.raises(StaleLeaseError):
                pool.renew_lease(slot.slot_id, token(slot))
            with pytest.raises(StaleLeaseError):
                pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_a_heartbeat_keeps_the_slot(self, pool: RepoPool, repository: Path, clock: FakeClock) -> None:
        slots = [pool.allocate_slot(str(repository), "me", lease_seconds=60) for _ in range(SLOTS)]
        for _ in range(5):
            clock.sleep(40)
            for slot in slots:
                pool.renew_lease(slot.slot_id, token(slot), lease_seconds=60)
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "you", timeout_seconds=10)

    def test_waiting_outlasts_a_lease(self, pool: RepoPool, repository: Path) -> None:
        for _ in range(SLOTS):
            pool.allocate_slot(str(repository), "me", lease_seconds=60)
        assert pool.allocate_slot(str(repository), "you", timeout_seconds=90).slot_path.is_dir()

    def test_a_released_slot_cannot_be_renewed(self, pool: RepoPool, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        with pytest.raises(StaleLeaseError):
            pool.renew_lease(slot.slot_id, token(slot))

    def test_a_wrong_token_renews_nothing(self, pool: RepoPool, repository: Path, clock: FakeClock) -> None:
        slots = [pool.allocate_slot(str(repository), "me", lease_seconds=60) for _ in range(SLOTS)]
        with pytest.raises(StaleLeaseError):
            pool.renew_lease(slots[0].slot_id, "wrong", lease_seconds=1000)
        clock.sleep(61)
        pool.allocate_slot(str(repository), "you")

    # --- what is not there

    def test_an_unknown_slot_is_told(self, pool: RepoPool, repository: Path) -> None:
        pool.allocate_slot(str(repository), "me")
        for slot_id in UNKNOWN_SLOTS:
            with pytest.raises(SlotNotFoundError):
                pool.release_slot(slot_id)
            with pytest.raises(SlotNotFoundError):
                pool.renew_lease(slot_id, "token")

    @pytest.mark.parametrize(
        "repo_url",
        ["/none/here", "", "file:///none/here.git", "ext::sh -c id", "--upload-pack=id", "https://u:p@host/r", "a\nb"],
    )
    def test_a_repository_that_is_not_there_is_told(self, pool: RepoPool, repo_url: str) -> None:
        with pytest.raises(RepositoryNotFoundError) as caught:
            pool.allocate_slot(repo_url, "me")
        assert caught.value.retryable is False
        assert "u:p" not in str(caught.value)

    def test_a_folder_that_is_no_repository_is_told(self, pool: RepoPool, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(RepositoryNotFoundError):
            pool.allocate_slot(str(tmp_path / "folder"), "me")

    def test_a_repository_without_a_commit_is_told(self, pool: RepoPool, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        git(tmp_path / "empty", "init", "--quiet")
        with pytest.raises(RepositoryNotFoundError):
            pool.allocate_slot(str(tmp_path / "empty"), "me")

    def test_a_damaged_repository_is_told(self, pool: RepoPool, repository: Path) -> None:
        for file in (repository / ".git/objects").rglob("*"):
            if file.is_file():
                file.chmod(0o600)
                file.write_bytes(b"damaged")
        with pytest.raises(WorkspacePreparationError):
            pool.allocate_slot(str(repository), "me")

    def test_a_base_that_is_not_there_is_told_and_holds_no_slot(self, pool: RepoPool, repository: Path) -> None:
        for base_ref in ("none", "0" * 40, "main~1", "--all", "refs/../x", "*", "main:refs/heads/x", "枝"):
            with pytest.raises(RepositoryNotFoundError) as caught:
                pool.allocate_slot(str(repository), "me", base_ref=base_ref)
            assert caught.value.retryable is False
        assert len({pool.allocate_slot(str(repository), "me").slot_id for _ in range(SLOTS)}) == SLOTS

    def test_a_pool_that_cannot_work_says_so(self, unusable: RepoPool, repository: Path) -> None:
        with pytest.raises(RunnerError):
            unusable.allocate_slot(str(repository), "me")

    # --- many at once

    def test_24_threads_share_few_slots(self, open_pool: OpenPool, repository: Path) -> None:
        pool = open_pool(SYSTEM_CLOCK, SLOTS)
        base = git(repository, "rev-parse", "HEAD")
        lock = threading.Lock()
        held: set[str] = set()

        def work(number: int) -> str:
            slot = pool.allocate_slot(str(repository), f"runner-{number}", timeout_seconds=60)
            with lock:
                assert slot.slot_id not in held
                held.add(slot.slot_id)
            assert [path.name for path in sorted(slot.slot_path.iterdir())] == [".git", *sorted(CALC_FILES)]
            (slot.slot_path / "mine.txt").write_text(str(number))
            assert head(slot) == base
            assert (slot.slot_path / "mine.txt").read_text() == str(number)
            with lock:
                held.remove(slot.slot_id)
            pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
            return slot.slot_id

        used = at_once(work, range(24))
        assert all(isinstance(slot_id, str) for slot_id in used), used
        assert len(set(used)) <= SLOTS
