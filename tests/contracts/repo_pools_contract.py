"""What every pool of pools does that operators can look at and change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    PoolExistsError,
    PoolInUseError,
    PoolNotFoundError,
    PoolRecord,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocationError,
    SlotNotFoundError,
)
from necrocode.agent_runner._clock import Clock
from tests.contracts.repo_pool_contract import SLOTS, UNKNOWN_SLOTS, RepoPoolContract
from tests.support.clocks import FakeClock
from tests.support.repositories import commit_files, git, make_repository


class RepoPoolsContract(RepoPoolContract):
    """Inherit it for a pool that has the operators' calls too."""

    @pytest.fixture
    def pool(self, open_pool: Callable[[Clock, int], Any], clock: FakeClock) -> Any:
        return open_pool(clock, SLOTS)

    # --- looking

    def test_a_slot_shows_who_has_it_and_until_when(self, pool: Any, repository: Path, clock: FakeClock) -> None:
        slot = pool.allocate_slot(str(repository), "runner-7", lease_seconds=60)
        shown = pool.get_slot(slot.slot_id)
        assert (shown.state, shown.holder, shown.epoch) == ("allocated", "runner-7", slot.epoch)
        assert (shown.slot_path, shown.expires_at) == (slot.slot_path, slot.expires_at)
        assert shown.allocated_at == clock.now()
        assert slot.lease_token not in shown.model_dump_json()
        clock.sleep(10)
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        shown = pool.get_slot(slot.slot_id)
        assert (shown.state, shown.holder, shown.expires_at) == ("available", None, None)
        assert (shown.last_end, shown.last_holder, shown.last_end_at) == ("released", "runner-7", clock.now())

    def test_an_unknown_slot_cannot_be_looked_at(self, pool: Any, repository: Path) -> None:
        pool.allocate_slot(str(repository), "me")
        for slot_id in (*UNKNOWN_SLOTS, "repo-000000000000-slot-1"):
            if slot_id not in {"", ".."}:  # another address altogether
                with pytest.raises(SlotNotFoundError):
                    pool.get_slot(slot_id)

    def test_there_are_no_pools_before_the_first(self, pool: Any) -> None:
        assert pool.pools_status() == ()

    def test_the_status_counts_slots_and_use(
        self, open_pool: Callable[[Clock, int], Any], pool: Any, repository: Path, clock: FakeClock
    ) -> None:
        first, second = (pool.allocate_slot(str(repository), "me", lease_seconds=60) for _ in range(2))
        clock.sleep(20)
        pool.release_slot(first.slot_id, lease_token=first.lease_token)
        operator = open_pool(clock, SLOTS)
        operator.release_slot(second.slot_id)
        third = pool.allocate_slot(str(repository), "you", lease_seconds=60)
        (shown,) = pool.pools_status()
        assert (shown.repo_url, shown.pool_size) == (str(repository), SLOTS)
        assert {state: count for state, count in shown.counts.items() if count} == {"available": 1, "allocated": 1}
        assert {slot.slot_id for slot in shown.slots} == {first.slot_id, second.slot_id}
        assert (shown.use.allocations, shown.use.released, shown.use.forced, shown.use.expired) == (3, 1, 1, 0)
        assert (shown.use.held, shown.use.held_seconds, shown.use.average_held_seconds) == (2, 40, 20)
        assert shown.use.last_allocation_seconds is not None
        assert shown.use.average_allocation_seconds is not None
        assert shown.use.fetches == 3
        assert third.lease_token not in shown.model_dump_json()

    def test_a_forced_release_is_recorded(
        self, open_pool: Callable[[Clock, int], Any], pool: Any, repository: Path, clock: FakeClock
    ) -> None:
        slot = pool.allocate_slot(str(repository), "victim")
        clock.sleep(5)
        operator = open_pool(clock, SLOTS)
        operator.release_slot(slot.slot_id)
        shown = pool.get_slot(slot.slot_id)
        assert (shown.last_end, shown.last_holder, shown.last_end_at) == ("forced", "victim", clock.now())

    def test_an_expired_lease_is_recorded(self, pool: Any, repository: Path, clock: FakeClock) -> None:
        slots = [pool.allocate_slot(str(repository), "gone", lease_seconds=60) for _ in range(SLOTS)]
        clock.sleep(61)
        pool.allocate_slot(str(repository), "next")
        (shown,) = pool.pools_status()
        assert shown.use.expired >= 1
        assert {slot.last_end for slot in shown.slots} >= {"expired"}
        assert {slot.last_holder for slot in shown.slots} >= {"gone"}
        assert len(shown.slots) == len(slots)

    # --- pools

    def test_a_pool_is_made_before_it_is_needed(self, pool: Any, repository: Path) -> None:
        made = pool.create_pool(str(repository), name="mine", pool_size=1)
        assert (made.name, made.pool_size, made.repo_url, made.slots) == ("mine", 1, str(repository), ())
        assert pool.pools_status() == (made,)
        slot = pool.allocate_slot(str(repository), "me")
        assert pool.get_slot(slot.slot_id).pool == "mine"
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_making_the_same_pool_again_is_harmless(self, pool: Any, repository: Path) -> None:
        made = pool.create_pool(str(repository), name="mine", pool_size=2)
        assert pool.create_pool(str(repository), name="mine", pool_size=2) == made
        assert pool.create_pool(str(repository), pool_size=2) == made

    def test_another_pool_under_the_same_name_is_refused(self, pool: Any, repository: Path, tmp_path: Path) -> None:
        other = make_repository(tmp_path / "other")
        pool.create_pool(str(repository), name="mine", pool_size=2)
        for wishes in ({"name": "mine", "pool_size": 3}, {"name": "yours", "pool_size": 2}):
            with pytest.raises(PoolExistsError):
                pool.create_pool(str(repository), **wishes)
        with pytest.raises(PoolExistsError):
            pool.create_pool(str(other), name="mine", pool_size=2)

    def test_a_pool_may_be_made_for_a_repository_that_comes_later(self, pool: Any, tmp_path: Path) -> None:
        pool.create_pool(str(tmp_path / "later"), name="later")
        slot_of = make_repository(tmp_path / "later")
        assert pool.allocate_slot(str(slot_of), "me").slot_path.is_dir()

    @pytest.mark.parametrize(
        "wishes", [{"name": "a/b"}, {"name": ""}, {"name": "-"}, {"pool_size": 0}, {"pool_size": -1}]
    )
    def test_a_name_or_size_that_cannot_be_is_refused(self, pool: Any, repository: Path, wishes: Any) -> None:
        with pytest.raises(RunnerError):
            pool.create_pool(str(repository), **wishes)
        assert pool.pools_status() == ()

    def test_a_url_that_cannot_be_makes_no_pool(self, pool: Any) -> None:
        with pytest.raises(RepositoryNotFoundError):
            pool.create_pool("ext::sh -c id")
        assert pool.pools_status() == ()

    def test_a_larger_pool_has_more_slots(self, pool: Any, repository: Path) -> None:
        for _ in range(SLOTS):
            pool.allocate_slot(str(repository), "me")
        (shown,) = pool.pools_status()
        assert pool.resize_pool(shown.name, SLOTS + 1).pool_size == SLOTS + 1
        pool.allocate_slot(str(repository), "me")
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_a_smaller_pool_loses_free_slots_at_once_and_the_others_when_they_are_free(
        self, pool: Any, repository: Path
    ) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        pool.release_slot(slots[0].slot_id, lease_token=slots[0].lease_token)
        (shown,) = pool.pools_status()
        smaller = pool.resize_pool(shown.name, 1)
        assert {slot.slot_id for slot in smaller.slots} == {slot.slot_id for slot in slots[1:]}
        assert not slots[0].slot_path.exists()
        assert slots[1].slot_path.is_dir()
        for slot in slots[1:]:
            pool.renew_lease(slot.slot_id, slot.lease_token)
            pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        (shown,) = pool.pools_status()
        assert len(shown.slots) == 1
        assert pool.allocate_slot(str(repository), "me").slot_path.is_dir()
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_a_pool_that_shrank_and_grew_has_whole_slots(self, pool: Any, repository: Path) -> None:
        for slot in [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]:
            (slot.slot_path / "left").write_text("x")
            pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        (shown,) = pool.pools_status()
        pool.resize_pool(shown.name, 1)
        pool.resize_pool(shown.name, SLOTS)
        for slot in [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]:
            assert git(slot.slot_path, "status", "--porcelain", "--ignored") == ""

    def test_a_pool_is_removed_with_all_its_files(self, pool: Any, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        (shown,) = pool.pools_status()
        pool.remove_pool(shown.name)
        assert pool.pools_status() == ()
        assert not slot.slot_path.exists()
        with pytest.raises(SlotNotFoundError):
            pool.get_slot(slot.slot_id)
        assert pool.allocate_slot(str(repository), "me").slot_path.is_dir()

    def test_a_pool_in_use_is_not_removed(self, pool: Any, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        (shown,) = pool.pools_status()
        with pytest.raises(PoolInUseError, match=slot.slot_id):
            pool.remove_pool(shown.name)
        pool.renew_lease(slot.slot_id, slot.lease_token)
        assert slot.slot_path.is_dir()

    def test_an_unknown_pool_is_told(self, pool: Any) -> None:
        for use in (pool.remove_pool, pool.warm, lambda name: pool.resize_pool(name, 2)):
            with pytest.raises(PoolNotFoundError):
                use("none")

    def test_a_warm_pool_has_all_its_slots(self, pool: Any, repository: Path) -> None:
        pool.create_pool(str(repository), name="mine", pool_size=2)
        warm: PoolRecord = pool.warm("mine")
        assert (warm.counts["available"], len(warm.slots)) == (2, 2)
        assert pool.warm("mine").slots == warm.slots
        commit = commit_files(repository, {"later": "x"})
        slot = pool.allocate_slot(str(repository), "me")
        assert git(slot.slot_path, "rev-parse", "HEAD") == commit
        assert slot.slot_id in {one.slot_id for one in warm.slots}

    def test_putting_right_what_is_right_does_nothing(self, pool: Any, repository: Path) -> None:
        slot = pool.allocate_slot(str(repository), "me")
        assert pool.reconcile() == []
        pool.renew_lease(slot.slot_id, slot.lease_token)
