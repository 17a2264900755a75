"""The embedded pool under threads, processes and deaths."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    LocalRepoPool,
    RepositoryNotFoundError,
    SlotAllocation,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.clients._pool_checkout import SlotCheckout
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import commit_files, git, make_repository

ROOT = Path(__file__).resolve().parents[2]
OPEN_POOL = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from necrocode.agent_runner import LocalRepoPool
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.clients import _pool_checkout, _pool_files, _pool_mirror, _pool_place
from tests.support.clocks import FakeClock

place, repository = Path(sys.argv[1]), sys.argv[2]

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

def open_pool(**options):
    return LocalRepoPool(place / "pool", Git(place / "git"), **options)
"""


class Bench:
    def __init__(self, place: Path, repository: Path) -> None:
        self.place = place
        self.repository = repository
        self.clock = FakeClock()

    def pool(self, slots: int = 2, clock: Clock | None = None) -> LocalRepoPool:
        return LocalRepoPool(self.place / "pool", Git(self.place / "git"), pool_size=slots, clock=clock or self.clock)

    def start(self, script: str) -> subprocess.Popen[str]:
        """A Python of its own, with ``open_pool()``, ``repository``, ``place`` and ``die()`` at hand."""
        return subprocess.Popen(
            [sys.executable, "-c", OPEN_POOL + script, str(self.place), str(self.repository)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def killed(self, script: str) -> str:
        """What the script said before it killed itself."""
        with self.start(script) as process:
            said, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        return said.strip()

    @property
    def folder(self) -> Path:
        (folder,) = (self.place / "pool").glob("[!.]*")
        return folder

    def assert_usable(self, slot: SlotAllocation) -> None:
        assert git(slot.slot_path, "rev-parse", "HEAD") == git(self.repository, "rev-parse", "main")
        assert git(slot.slot_path, "status", "--porcelain", "--ignored") == ""


@pytest.fixture
def bench(tmp_path: Path, repository: Path) -> Bench:
    return Bench(tmp_path, repository)


def record(slots: Any) -> dict[str, Any]:
    return {slot["slot_id"]: slot for slot in json.loads(slots.read_text())["slots"]}


# --- many at once


def test_24_threads_with_pools_of_their_own_make_24_slots_of_a_new_repository(bench: Bench) -> None:
    slots = at_once(
        lambda number: bench.pool(24, SYSTEM_CLOCK).allocate_slot(str(bench.repository), f"runner-{number}"), range(24)
    )
    made = [slot for slot in slots if isinstance(slot, SlotAllocation)]
    assert len(made) == 24, slots
    assert len({slot.slot_id for slot in made}) == len({slot.lease_token for slot in made}) == 24
    for slot in made:
        bench.assert_usable(slot)


def test_24_threads_on_several_repositories_do_not_meet(bench: Bench, tmp_path: Path) -> None:
    places = [make_repository(tmp_path / f"{number}/repo", {"name": str(number)}) for number in range(4)]
    pool = bench.pool(2, SYSTEM_CLOCK)

    def work(number: int) -> str:
        slot = pool.allocate_slot(str(places[number % 4]), "me", timeout_seconds=60)
        name = (slot.slot_path / "name").read_text()
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        return name

    assert at_once(work, range(24)) == [str(number % 4) for number in range(24)]


def test_one_of_24_gets_the_only_slot(bench: Bench) -> None:
    pool = bench.pool(1, SYSTEM_CLOCK)
    got = at_once(lambda _: pool.allocate_slot(str(bench.repository), "me", timeout_seconds=0), range(24))
    assert sum(isinstance(one, SlotAllocation) for one in got) == 1
    assert sum(isinstance(one, SlotAllocationError) for one in got) == 23


def test_one_of_24_gets_an_expired_slot_and_the_old_holder_is_told(bench: Bench) -> None:
    old = bench.pool(1).allocate_slot(str(bench.repository), "old", lease_seconds=60)
    bench.clock.sleep(61)
    got = at_once(lambda _: bench.pool(1).allocate_slot(str(bench.repository), "new", timeout_seconds=0), range(24))
    (new,) = [one for one in got if isinstance(one, SlotAllocation)]
    assert (new.slot_id, new.epoch) == (old.slot_id, (old.epoch or 0) + 1)
    for late in (
        lambda: bench.pool().renew_lease(old.slot_id, old.lease_token or ""),
        lambda: bench.pool().release_slot(old.slot_id, lease_token=old.lease_token),
    ):
        with pytest.raises(StaleLeaseError):
            late()
    bench.pool().renew_lease(new.slot_id, new.lease_token or "")


def test_renewals_and_releases_from_everywhere_keep_the_list_whole(bench: Bench) -> None:
    slots = [bench.pool(4).allocate_slot(str(bench.repository), "me") for _ in range(4)]

    def work(number: int) -> None:
        slot = slots[number % 4]
        if number < 20:
            bench.pool().renew_lease(slot.slot_id, slot.lease_token or "", lease_seconds=100 + number)
        else:
            bench.pool().release_slot("no-such-slot-1")

    outcomes = at_once(work, range(24))
    assert outcomes[:20] == [None] * 20
    assert all(isinstance(outcome, SlotNotFoundError) for outcome in outcomes[20:])
    kept = record(bench.folder / "pool.json")
    assert {slot_id: slot["lease_token"] for slot_id, slot in kept.items()} == {
        slot.slot_id: slot.lease_token for slot in slots
    }
    assert {slot["state"] for slot in kept.values()} == {"allocated"}


def test_three_processes_of_four_threads_never_share_a_slot(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    script = """
def work(number):
    pool = open_pool(pool_size=2)
    for _ in range(2):
        slot = pool.allocate_slot(repository, f"{os.getpid()}-{number}", timeout_seconds=60)
        held = place / "held" / slot.slot_id
        held.touch(exist_ok=False)
        mine = slot.slot_path / "mine.txt"
        assert not mine.exists()
        mine.write_text(str(number))
        assert {file.name for file in slot.slot_path.iterdir()} == {".git", "calc.py", "test_calc.py", "mine.txt"}
        held.unlink()
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)

with ThreadPoolExecutor(4) as threads:
    print(len(list(threads.map(work, range(4)))))
"""
    running = [bench.start(script) for _ in range(3)]
    for process in running:
        with process:
            said, errors = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "4\n"), errors
    kept = record(bench.folder / "pool.json")
    assert len(kept) == 2
    assert {slot["state"] for slot in kept.values()} == {"available"}
    assert sum(slot["epoch"] for slot in kept.values()) == 24


# --- holders that die


def test_the_slot_of_a_killed_holder_is_free_when_its_lease_ends(bench: Bench) -> None:
    slot_id = bench.killed("""
slot = open_pool(pool_size=1, clock=FakeClock()).allocate_slot(repository, "victim", lease_seconds=60)
(slot.slot_path / "half-done").write_text("x")
(slot.slot_path / "calc.py").unlink()
print(slot.slot_id, flush=True)
die()
""")
    with pytest.raises(SlotAllocationError):
        bench.pool(1).allocate_slot(str(bench.repository), "me")
    bench.clock.sleep(61)
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me")
    assert (slot.slot_id, slot.epoch) == (slot_id, 2)
    bench.assert_usable(slot)


@pytest.mark.parametrize(
    "deadly",
    [
        "_pool_place.PoolPlace.make_ready = die",
        "_pool_checkout.SlotCheckout._run = die",
        "_pool_mirror.Mirror.add_worktree = die",
        "Path.replace = lambda *_: None if _[0].name != 'pool.tmp' else die()",
        "_pool_mirror.Mirror._fetch = die",
        "Path.rename = die",
    ],
    ids=["before it is ready", "before the reset", "before the worktree", "writing the list", "fetching", "mirroring"],
)
def test_a_death_while_a_slot_is_made_harms_nobody(bench: Bench, deadly: str) -> None:
    bench.killed(f"{deadly}\nopen_pool(pool_size=1, clock=FakeClock()).allocate_slot(repository, 'victim')\n")
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me", timeout_seconds=1000)
    bench.assert_usable(slot)


def test_a_death_with_the_lock_in_hand_gives_the_lock_back(bench: Bench) -> None:
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me")
    bench.killed(f"""
with _pool_files.locked(place / "pool" / {bench.folder.name!r} / "pool.lock"):
    die()
""")
    bench.pool(1).renew_lease(slot.slot_id, slot.lease_token or "")


@pytest.mark.parametrize(
    "lock",
    ["refs/remotes/origin/main.lock", "refs/remotes/origin/deep/er.lock", "refs/necrocode/remote-head.lock",
     "packed-refs.lock", "config.lock"],
)  # fmt: skip
def test_locks_of_a_killed_fetch_are_no_obstacle(bench: Bench, lock: str) -> None:
    git(bench.repository, "branch", "gone")
    bench.pool().allocate_slot(str(bench.repository), "me")
    git(bench.repository, "branch", "-D", "gone")
    git(bench.repository, "branch", "deep/er")
    commit_files(bench.repository, {"new": "new"})
    file = bench.folder / "mirror.git" / lock
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    bench.assert_usable(bench.pool().allocate_slot(str(bench.repository), "me"))


def test_locks_of_running_tasks_are_left_alone(bench: Bench) -> None:
    bench.pool().allocate_slot(str(bench.repository), "me")
    commit_files(bench.repository, {"new": "new"})
    mirror = bench.folder / "mirror.git"
    theirs = mirror / "refs/necrocode/runs/r/1.lock"
    theirs.parent.mkdir(parents=True)
    for file in (theirs, mirror / "refs/heads/mine.lock", mirror / "refs/remotes/origin/main.lock"):
        file.touch()
    bench.pool().allocate_slot(str(bench.repository), "me")
    assert theirs.exists()
    assert (mirror / "refs/heads/mine.lock").exists()


@pytest.mark.parametrize(
    "damage",
    ["index.lock", "index", "HEAD", "HEAD.lock", "gitdir", "commondir"],
)  # fmt: skip
def test_a_damaged_checkout_is_made_anew(bench: Bench, damage: str) -> None:
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me")
    (bench.folder / "mirror.git/worktrees" / slot.slot_id / damage).write_text("damaged")
    bench.pool(1).release_slot(slot.slot_id)
    bench.assert_usable(bench.pool(1).allocate_slot(str(bench.repository), "me"))


@pytest.mark.parametrize("damage", ["gone", "pointer", "no pointer"])
def test_a_damaged_slot_folder_is_made_anew(bench: Bench, damage: str) -> None:
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me")
    path = slot.slot_path
    if damage == "pointer":
        (path / ".git").write_text("gitdir: /nowhere\n")
    elif damage == "no pointer":
        (path / ".git").unlink()
    else:
        path.rename(bench.place / "away")
    bench.pool(1).release_slot(slot.slot_id)
    bench.assert_usable(bench.pool(1).allocate_slot(str(bench.repository), "me"))


# --- what cannot be mended is told


@pytest.mark.parametrize("content", ["", "{", "[{}]", "[1]", '[{"slot_id": "a", "state": "x", "new": 1}]', "\udcff"])
def test_a_damaged_list_of_slots_is_told_with_what_to_do(bench: Bench, content: str) -> None:
    slot = bench.pool().allocate_slot(str(bench.repository), "me")
    (bench.folder / "pool.json").write_bytes(content.encode(errors="surrogateescape"))
    for use in (
        lambda: bench.pool().allocate_slot(str(bench.repository), "me"),
        lambda: bench.pool().renew_lease(slot.slot_id, "token"),
        lambda: bench.pool().release_slot(slot.slot_id),
    ):
        with pytest.raises(WorkspacePreparationError, match=r"pool\.json is damaged .*Remove that file"):
            use()
    (bench.folder / "pool.json").unlink()
    bench.assert_usable(bench.pool().allocate_slot(str(bench.repository), "me"))


def test_a_damaged_mirror_is_told_with_what_to_do(bench: Bench) -> None:
    bench.pool().allocate_slot(str(bench.repository), "me")
    (bench.folder / "mirror.git/HEAD").unlink()
    with pytest.raises(WorkspacePreparationError, match="Move that folder away"):
        bench.pool().allocate_slot(str(bench.repository), "me")
    (bench.folder / "mirror.git").rename(bench.place / "away")
    bench.assert_usable(bench.pool().allocate_slot(str(bench.repository), "me"))


def test_a_slot_that_cannot_be_made_is_tried_again_by_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bench.pool(1)
    with monkeypatch.context() as broken:
        broken.setattr(SlotCheckout, "make_ready", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(WorkspacePreparationError, match=r"cannot be made ready: .*No space left"):
            pool.allocate_slot(str(bench.repository), "me")
    (record,) = pool.pools_status()
    assert (record.slots[0].state, record.slots[0].holder) == ("quarantined", None)
    assert "No space left" in (record.slots[0].trouble or "")
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_a_home_of_nobody_is_no_repository(bench: Bench) -> None:
    with pytest.raises(RepositoryNotFoundError, match="no home folder"):
        bench.pool().allocate_slot("~no-such-user/repo", "me")


def test_waiting_ends_when_a_slot_is_released(bench: Bench) -> None:
    class Releasing(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if len(self.sleeps) == 3:
                first.release_slot(held.slot_id)

    first = bench.pool(1)
    held = first.allocate_slot(str(bench.repository), "me", lease_seconds=1000)
    clock = Releasing()
    slot = bench.pool(1, clock).allocate_slot(str(bench.repository), "you", timeout_seconds=60)
    assert (slot.slot_id, len(clock.sleeps)) == (held.slot_id, 3)
