"""Shared fetches, slots that cannot be mended, and what the dead leave behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    LocalRepoPool,
    PoolInUseError,
    PoolNotFoundError,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocation,
    SlotAllocationError,
    StaleLeaseError,
    WorkspacePreparationError,
)
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.clients import _pool_files, repo_pool_local
from necrocode.agent_runner.clients._pool_book import PoolBook
from necrocode.agent_runner.clients._pool_checkout import SlotCheckout
from necrocode.agent_runner.clients._pool_fetch import SharedFetches
from necrocode.agent_runner.clients._pool_files import Trash, try_lock
from necrocode.agent_runner.clients._pool_mirror import Mirror
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import commit_files, git

ROOT = Path(__file__).resolve().parents[2]
WITHIN_SECONDS = 30
# Counts what it is asked to do; while there is a gate for it, it waits there until the test opens it.
WRAPPER = """#!/bin/sh
for verb in fetch reset; do
  case " $* " in *" $verb "*)
    echo x >>"{place}/$verb.count"
    if [ -e "{place}/$verb.gate" ]; then read -r _ <"{place}/$verb.gate"; fi ;;
  esac
done
exec {git} "$@"
"""
ALLOCATE = """
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from necrocode.agent_runner import LocalRepoPool
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.clients._pool_fetch import SharedFetches

place, repository, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
pool = LocalRepoPool(place / "pool", Git(place / "git"), pool_size=count * 4)

served = SharedFetches._served
came = set()

def tell(self, *arguments):
    if threading.get_ident() not in came:
        came.add(threading.get_ident())
        os.write(1, b"calling\\n")  # one write, so that threads do not mix their lines
    return served(self, *arguments)

SharedFetches._served = tell

def allocate(number):
    return pool.allocate_slot(repository, str(number)).slot_id

with ThreadPoolExecutor(count) as threads:
    print(*threads.map(allocate, range(count)), flush=True)
"""


class Bench:
    def __init__(self, place: Path, repository: Path) -> None:
        self.place = place
        self.repository = repository
        self.clock = FakeClock()

    def pool(self, slots: int = 2, clock: Clock | None = None) -> LocalRepoPool:
        return LocalRepoPool(self.place / "pool", Git(self.place / "git"), pool_size=slots, clock=clock or self.clock)

    @property
    def folder(self) -> Path:
        (folder,) = (self.place / "pool").glob("[!.]*")
        return folder

    def count(self, verb: str) -> int:
        file = self.place / f"{verb}.count"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def close_gate(self, verb: str) -> None:
        os.mkfifo(self.place / f"{verb}.gate")

    def open_gate(self, verb: str) -> None:
        """Whoever waits goes on, and nobody waits any more."""
        gate = self.place / f"{verb}.gate"
        with gate.open("w") as stream:
            gate.unlink()
            stream.write("go\n" * 50)

    def start(self, threads: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", ALLOCATE, str(self.place), str(self.repository), str(threads)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def assert_usable(self, slot: SlotAllocation) -> None:
        assert git(slot.slot_path, "rev-parse", "HEAD") == git(self.repository, "rev-parse", "main")
        assert git(slot.slot_path, "status", "--porcelain", "--ignored") == ""


@pytest.fixture
def bench(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(place=tmp_path, git=shutil.which("git")))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    return Bench(tmp_path, repository)


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + WITHIN_SECONDS
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.01)


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start the work on a thread; call what is returned for its result."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(work())
        except RunnerError as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(WITHIN_SECONDS)
        return got[0]

    return result


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that have come for a fetch, each from the moment on at which a fetch that starts serves it."""
    seen: set[int] = set()
    served = SharedFetches._served

    def noted(self: SharedFetches, *arguments: Any) -> Any:
        seen.add(threading.get_ident())
        return served(self, *arguments)

    monkeypatch.setattr(SharedFetches, "_served", noted)
    return seen


# --- one fetch for many


def test_24_callers_during_a_fetch_share_the_next_one(bench: Bench, came: set[int]) -> None:
    pool = bench.pool(25, SYSTEM_CLOCK)
    bench.close_gate("fetch")
    first = in_background(lambda: pool.allocate_slot(str(bench.repository), "first"))
    until(lambda: bench.count("fetch") == 1)
    newer = commit_files(bench.repository, {"newer": "x"})
    others = in_background(
        lambda: at_once(lambda number: pool.allocate_slot(str(bench.repository), f"{number}"), range(24))
    )
    until(lambda: len(came) == 25)
    assert bench.count("fetch") == 1
    bench.open_gate("fetch")
    slots = others()
    assert {slot.base_commit for slot in slots} == {newer}
    assert len({slot.slot_id for slot in (*slots, first())}) == 25
    assert bench.count("fetch") == 2
    assert pool.pools_status()[0].use.fetches == 2


def test_processes_share_fetches_too(bench: Bench) -> None:
    bench.close_gate("fetch")
    running = [bench.start(6) for _ in range(4)]
    for process in running:
        assert process.stdout is not None
        for _ in range(6):
            assert process.stdout.readline() == "calling\n"
    until(lambda: bench.count("fetch") == 1)
    bench.open_gate("fetch")
    made: list[str] = []
    for process in running:
        with process:
            said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        made += said.split()
    assert len(set(made)) == 24
    assert bench.count("fetch") <= 2


def test_a_failed_fetch_fails_for_all_whom_it_was_to_serve(bench: Bench, came: set[int]) -> None:
    pool = bench.pool(25, SYSTEM_CLOCK)
    pool.allocate_slot(str(bench.repository), "me")
    came.clear()
    bench.close_gate("fetch")
    first = in_background(lambda: pool.allocate_slot(str(bench.repository), "first"))
    until(lambda: bench.count("fetch") == 2)
    others = in_background(
        lambda: at_once(lambda _: pool.allocate_slot(str(bench.repository), "me", base_ref="main"), range(12))
    )
    until(lambda: len(came) == 13)
    shutil.rmtree(bench.repository / ".git")
    bench.open_gate("fetch")
    failures = [first(), *others()]
    assert all(isinstance(failure, RepositoryNotFoundError) for failure in failures), failures
    assert bench.count("fetch") == 3


def test_a_fetch_that_takes_too_long_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo_pool_local, "_LEAST_WORK_SECONDS", 0.5)
    pool = bench.pool(2, SYSTEM_CLOCK)
    bench.close_gate("fetch")
    with pytest.raises(WorkspacePreparationError, match=r"took longer than 0\.5 seconds") as caught:
        pool.allocate_slot(str(bench.repository), "me", timeout_seconds=0.1)
    assert caught.value.retryable
    (bench.place / "fetch.gate").unlink()
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


@pytest.mark.parametrize("lock", ["fetch.lock", "mirror.lock"])
def test_a_lock_that_is_not_to_be_had_in_time_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    monkeypatch.setattr(repo_pool_local, "_LEAST_WORK_SECONDS", 0.2)
    pool = bench.pool(2, SYSTEM_CLOCK)
    pool.create_pool(str(bench.repository), name="mine")
    stream = try_lock(bench.folder / lock)
    assert stream is not None
    with stream, pytest.raises(WorkspacePreparationError, match="Another process held"):
        pool.allocate_slot(str(bench.repository), "me", timeout_seconds=0.1)
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot": 1, "fetches": {}}', '{"boot": "x"}'])
def test_a_damaged_record_of_fetches_is_no_obstacle(bench: Bench, content: str) -> None:
    pool = bench.pool()
    pool.create_pool(str(bench.repository))
    (bench.folder / "fetches.json").write_text(content)
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_the_record_of_fetches_stays_small(bench: Bench) -> None:
    pool = bench.pool()
    git(bench.repository, "tag", "v1")
    for number in range(60):
        SharedFetches(bench.place).fetch(f"{number}", repo_pool_local.Deadline(10), lambda _: None)
    assert len(json.loads((bench.place / "fetches.json").read_text())["fetches"]) == 50
    assert pool.pools_status() == ()


def test_no_machine_id_is_no_obstacle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.clients._pool_fetch._BOOT_ID", bench.place / "none")
    bench.assert_usable(bench.pool().allocate_slot(str(bench.repository), "me"))


# --- the dead, and their children that live on


def test_the_fetch_of_a_killed_process_is_waited_for(bench: Bench) -> None:
    bench.close_gate("fetch")
    process = bench.start(1)
    until(lambda: bench.count("fetch") == 1)
    process.send_signal(signal.SIGKILL)
    with process:
        process.wait(WITHIN_SECONDS)
    assert try_lock(bench.folder / "fetch.lock") is None  # its git still writes to the mirror
    pool = bench.pool(2, SYSTEM_CLOCK)
    slot = in_background(lambda: pool.allocate_slot(str(bench.repository), "me"))
    bench.open_gate("fetch")
    bench.assert_usable(slot())
    assert bench.count("fetch") == 2


def test_a_slot_is_free_as_soon_as_the_git_of_its_killed_preparer_has_ended(bench: Bench) -> None:
    bench.close_gate("reset")
    process = bench.start(1)
    until(lambda: bench.count("reset") == 1)
    process.send_signal(signal.SIGKILL)
    with process:
        process.wait(WITHIN_SECONDS)
    pool = bench.pool(1)
    (shown,) = pool.pools_status()
    assert [slot.state for slot in shown.slots] == ["warming"]
    with pytest.raises(SlotAllocationError):
        pool.allocate_slot(str(bench.repository), "me")
    bench.open_gate("reset")

    def is_allocated() -> bool:
        try:
            bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))
        except SlotAllocationError:
            return False
        return True

    until(is_allocated)


def test_reconciling_makes_the_slot_of_a_dead_preparer_ready(bench: Bench) -> None:
    bench.close_gate("reset")
    process = bench.start(1)
    until(lambda: bench.count("reset") == 1)
    process.kill()
    with process:
        process.wait(WITHIN_SECONDS)
    pool = bench.pool(1)
    assert pool.reconcile() == []  # somebody still works on it
    bench.open_gate("reset")
    done: list[str] = []
    until(lambda: done.extend(pool.reconcile()) or done)
    assert done[0].endswith("was warming, is ready")
    assert pool.pools_status()[0].counts["available"] == 1


def test_reconciling_removes_what_is_left_over(bench: Bench) -> None:
    pool = bench.pool(2)
    expired = pool.allocate_slot(str(bench.repository), "gone", lease_seconds=60)
    bench.clock.sleep(61)
    kept = pool.allocate_slot(str(bench.repository), "stays", lease_seconds=600, base_ref="main")
    assert kept.slot_id == expired.slot_id
    folder = bench.folder
    orphan = folder / "slots" / f"{folder.name}-slot-9"
    orphan.mkdir()
    (orphan / "big").write_text("x")
    (folder / "mirror.tmp").mkdir()
    (folder / "mirror.git/refs/remotes/origin/main.lock").touch()
    (folder / "mirror.git/worktrees/gone").mkdir()
    (folder / "mirror.git/worktrees/gone/gitdir").write_text("/none/.git\n")
    (bench.place / "pool/.trash").mkdir(exist_ok=True)
    (bench.place / "pool/.trash/old").write_text("x")
    done = pool.reconcile()
    assert done == [f"{orphan.name}: a folder of no slot, removed"]
    for leftover in (orphan, folder / "mirror.tmp", folder / "mirror.git/refs/remotes/origin/main.lock",
                     folder / "mirror.git/worktrees/gone"):  # fmt: skip
        assert not leftover.exists()
    until(lambda: pool.reconcile() == [] and not list((bench.place / "pool/.trash").iterdir()))
    bench.assert_usable(kept)


def test_reconciling_ends_leases_that_are_over(bench: Bench) -> None:
    pool = bench.pool()
    slot = pool.allocate_slot(str(bench.repository), "gone", lease_seconds=60)
    bench.clock.sleep(61)
    assert pool.reconcile() == [f"{slot.slot_id}: its lease had ended"]
    with pytest.raises(StaleLeaseError):
        pool.renew_lease(slot.slot_id, slot.lease_token or "")


def test_a_pool_that_cannot_be_put_right_does_not_keep_others_from_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    pool = bench.pool()
    broken = bench.place / "pool" / "aaa"
    broken.mkdir(parents=True)
    (broken / "pool.json").write_text("[]")
    slot = pool.allocate_slot(str(bench.repository), "me", lease_seconds=60)
    bench.clock.sleep(61)
    with caplog.at_level(logging.WARNING):
        assert pool.reconcile() == [f"{slot.slot_id}: its lease had ended"]
    assert "aaa cannot be put right" in caplog.text


def test_a_release_that_dies_leaves_the_lease(bench: Bench) -> None:
    slot = bench.pool(1).allocate_slot(str(bench.repository), "me", lease_seconds=60)
    script = f"""
import os, signal, sys
from pathlib import Path
from necrocode.agent_runner import LocalRepoPool
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.clients import _pool_book
_pool_book.write_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
place = Path(sys.argv[1])
LocalRepoPool(place / "pool", Git(place / "git")).release_slot({slot.slot_id!r}, lease_token={slot.lease_token!r})
"""
    done = subprocess.run([sys.executable, "-c", script, str(bench.place)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    bench.pool(1).renew_lease(slot.slot_id, slot.lease_token or "")
    bench.pool(1).release_slot(slot.slot_id, lease_token=slot.lease_token)
    bench.assert_usable(bench.pool(1).allocate_slot(str(bench.repository), "me"))


# --- quarantine


@pytest.fixture
def broken_slots(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Slots of these numbers cannot be made ready."""
    broken: set[str] = set()
    make_ready = SlotCheckout.make_ready

    def maybe(self: SlotCheckout, base: str) -> None:
        if self._path.name.rpartition("-")[2] in broken:
            raise OSError(5, "Input/output error")
        make_ready(self, base)

    monkeypatch.setattr(SlotCheckout, "make_ready", maybe)
    return broken


def test_a_slot_that_cannot_be_mended_is_set_aside_and_another_taken(bench: Bench, broken_slots: set[str]) -> None:
    pool = bench.pool(2)
    broken_slots.add("1")
    slot = pool.allocate_slot(str(bench.repository), "me")
    assert slot.slot_id.endswith("-slot-2")
    shown = {one.slot_id[-1]: one for one in pool.pools_status()[0].slots}
    assert shown["1"].state == "quarantined"
    assert "Input/output error" in (shown["1"].trouble or "")
    assert pool.reconcile()[0].startswith(f"{shown['1'].slot_id}: was quarantined, cannot be made ready")
    broken_slots.clear()
    assert pool.reconcile() == [f"{shown['1'].slot_id}: was quarantined, is ready"]
    assert pool.pools_status()[0].counts["quarantined"] == 0
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_a_commit_that_is_too_large_ends_the_allocation_and_no_slot_is_set_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = bench.pool(1)
    slot = pool.allocate_slot(str(bench.repository), "me")
    pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
    commit_files(bench.repository, {"more": "x" * 1000})
    with monkeypatch.context() as patch:
        patch.setattr("necrocode.agent_runner._git.sizes.MOST_BYTES", 1000)
        with pytest.raises(WorkspacePreparationError, match=r"cannot be checked out: .* more than 1000 bytes"):
            pool.allocate_slot(str(bench.repository), "me")
    assert pool.pools_status()[0].counts["quarantined"] == 0
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_quarantined_slots_are_tried_again_before_there_is_none(bench: Bench, broken_slots: set[str]) -> None:
    pool = bench.pool(2)
    broken_slots.update("12")
    with pytest.raises(WorkspacePreparationError, match="cannot be made ready"):
        pool.allocate_slot(str(bench.repository), "me")
    assert pool.pools_status()[0].counts["quarantined"] == 2
    broken_slots.clear()
    for _ in range(2):
        bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_a_quarantined_slot_goes_first_when_the_pool_shrinks(bench: Bench, broken_slots: set[str]) -> None:
    pool = bench.pool(2)
    broken_slots.add("1")
    slot = pool.allocate_slot(str(bench.repository), "me")
    pool.release_slot(slot.slot_id)
    pool.release_slot(slot.slot_id.replace("-slot-2", "-slot-1"))  # harmless
    (shown,) = pool.pools_status()
    assert [one.slot_id for one in pool.resize_pool(shown.name, 1).slots] == [slot.slot_id]


def test_warming_tells_of_a_slot_that_cannot_be_made(bench: Bench, broken_slots: set[str]) -> None:
    pool = bench.pool(2)
    pool.create_pool(str(bench.repository), name="mine", pool_size=2)
    broken_slots.add("2")
    with pytest.raises(WorkspacePreparationError, match="slot-2 cannot be made ready"):
        pool.warm("mine")
    assert (pool.pools_status()[0].counts["available"], pool.pools_status()[0].counts["quarantined"]) == (1, 1)


def test_a_slot_whose_mirror_is_gone_is_mended_later(bench: Bench, broken_slots: set[str]) -> None:
    pool = bench.pool(1)
    broken_slots.add("1")
    with pytest.raises(WorkspacePreparationError):
        pool.allocate_slot(str(bench.repository), "me")
    shutil.rmtree(bench.folder / "mirror.git")
    broken_slots.clear()
    assert pool.reconcile()[0].endswith("was quarantined, is free")
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


# --- at the same moment


def while_preparing(monkeypatch: pytest.MonkeyPatch, do: Callable[[str], object]) -> None:
    make_ready = SlotCheckout.make_ready

    def interrupted(self: SlotCheckout, base: str) -> None:
        make_ready(self, base)
        do(self._path.name)

    monkeypatch.setattr(SlotCheckout, "make_ready", interrupted)


def test_a_slot_that_an_operator_frees_while_it_is_prepared_is_not_handed_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = bench.pool(1)
    with monkeypatch.context() as patch:
        while_preparing(patch, pool.release_slot)
        with pytest.raises(SlotAllocationError, match="taken away while it was prepared"):
            pool.allocate_slot(str(bench.repository), "me")
        pool.create_pool(str(bench.repository), name="mine", pool_size=2)
        with pytest.raises(WorkspacePreparationError, match="taken away"):
            pool.warm("mine")
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


def test_a_slot_in_preparation_is_left_alone_by_everybody_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, seen = bench.pool(1), []

    def look(_: str) -> None:
        (shown,) = bench.pool(1).pools_status()
        seen.append(shown.slots[0].state)
        assert bench.pool(1).reconcile() == []
        bench.clock.sleep(10_000)
        with pytest.raises(SlotAllocationError):
            bench.pool(1).allocate_slot(str(bench.repository), "other")
        with pytest.raises(RunnerError):
            bench.pool(1).remove_pool(shown.name)

    with monkeypatch.context() as patch:
        while_preparing(patch, look)
        for _ in range(2):
            pool.release_slot(pool.allocate_slot(str(bench.repository), "me").slot_id)
    assert seen == ["warming", "cleaning"]


def test_an_interrupted_preparation_leaves_the_slot_free(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bench.pool(1)
    pool.create_pool(str(bench.repository), name="mine", pool_size=1)
    with monkeypatch.context() as patch:

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        while_preparing(patch, interrupt)
        for use in (lambda: pool.warm("mine"), lambda: pool.allocate_slot(str(bench.repository), "me")):
            with pytest.raises(KeyboardInterrupt):
                use()
    assert pool.pools_status()[0].counts["available"] == 1


def test_a_pool_that_is_removed_meanwhile_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bench.pool(1)
    pool.allocate_slot(str(bench.repository), "me")
    with monkeypatch.context() as patch:
        while_preparing(patch, lambda _: shutil.rmtree(bench.folder))
        bench.clock.sleep(10_000)
        with pytest.raises(PoolNotFoundError):
            pool.allocate_slot(str(bench.repository), "me")
    bench.assert_usable(pool.allocate_slot(str(bench.repository), "me"))


# --- trash


def test_trash_takes_anything_and_follows_no_link(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    for name in ("folder", "shut", "deep"):
        (tmp_path / name / "a").mkdir(parents=True)
    (tmp_path / "deep/a/link").symlink_to(outside)
    (tmp_path / "deep/a").chmod(0)
    (tmp_path / "shut").chmod(0)
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "file").write_text("x")
    for name in ("folder", "shut", "deep", "link", "file", "none"):
        trash.take(tmp_path / name)
        assert not os.path.lexists(tmp_path / name)
    assert trash.empty() == 5
    assert list((tmp_path / "trash").iterdir()) == []
    assert (outside / "kept").read_text() == "x"


def test_trash_that_cannot_be_deleted_is_told_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trash = Trash(tmp_path / "trash")
    (tmp_path / "folder").mkdir()
    trash.take(tmp_path / "folder")
    monkeypatch.setattr(_pool_files, "remove_tree", lambda _: None)
    assert trash.empty() == 0
    assert "cannot be deleted" in caplog.text


def test_trash_is_emptied_by_one_at_a_time(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    (tmp_path / "folder").mkdir()
    trash.take(tmp_path / "folder")
    with trash._emptying:
        assert trash.empty() == 0
    assert trash.empty() == 1


def test_a_lock_file_that_was_moved_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_pool_files.fcntl, "flock", lambda *_: (tmp_path / "lock").unlink())
        assert try_lock(tmp_path / "lock") is None
    stream = try_lock(tmp_path / "lock")
    assert stream is not None
    stream.close()


# --- pools that are removed while somebody wants a slot


@pytest.mark.parametrize("at", ["fetch", "take", "_ensure"])
def test_a_pool_that_is_removed_under_an_allocation_is_made_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=1)
    pool.create_pool(str(repository), name="mine")
    owner = PoolBook if at == "take" else Mirror
    real = getattr(owner, at)
    times = {"left": 1}

    def remove_first(self: Any, *arguments: Any, **options: Any) -> Any:
        if times["left"]:
            times["left"] -= 1
            if at == "take":
                pool.remove_pool("mine")
                return real(self, *arguments, **options)
            result = real(self, *arguments, **options) if at == "_ensure" else None
            pool.remove_pool("mine")
            return real(self, *arguments, **options) if at == "fetch" else result
        return real(self, *arguments, **options)

    monkeypatch.setattr(owner, at, remove_first)
    assert (pool.allocate_slot(str(repository), "me").slot_path / ".git").is_file()
    assert [one.counts["allocated"] for one in pool.pools_status()] == [1]


def test_a_pool_that_is_removed_again_and_again_is_not_found(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=1)
    real = Mirror._ensure

    def remove_after(self: Mirror, *arguments: Any) -> None:
        real(self, *arguments)
        pool.remove_pool(pool.pools_status()[0].name)

    monkeypatch.setattr(Mirror, "_ensure", remove_after)
    with pytest.raises(PoolNotFoundError, match="removed meanwhile"):
        pool.allocate_slot(str(repository), "me")
    pool.create_pool(str(repository), name="mine")
    with pytest.raises(PoolNotFoundError, match="removed meanwhile"):
        pool.warm("mine")
    assert pool.pools_status() == ()


def test_removals_and_allocations_at_once_are_slots_or_no_pool(tmp_path: Path, repository: Path) -> None:
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=2)

    def allocate() -> None:
        try:
            slot = pool.allocate_slot(str(repository), "me", timeout_seconds=30)
        except PoolNotFoundError:
            return
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)

    def remove() -> None:
        for _ in range(20):
            for shown in pool.pools_status():
                with suppress(PoolNotFoundError, PoolInUseError):
                    pool.remove_pool(shown.name)

    assert at_once(lambda work: work(), [*[allocate] * 6, remove, remove]) == [None] * 8
