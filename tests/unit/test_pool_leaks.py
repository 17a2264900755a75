"""Nothing that the last holder of a slot did reaches the next one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner import LocalRepoPool, SlotAllocation
from necrocode.agent_runner._git import Author, FileChange, Git, Repository
from tests.support.clocks import FakeClock
from tests.support.repositories import commit_files, git, make_repository

FILES: dict[str, str | bytes] = {
    "a.txt": "same\n",
    "deep/er/b.txt": "b\n",
    "run.sh": "#!/bin/sh\n",
    ".gitignore": "*.log\n",
}


class Bench:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.remote = make_repository(place / "remote" / "repo", FILES)
        self.pool = LocalRepoPool(place / "pool", Git(place / "git"), pool_size=1, clock=FakeClock())

    @property
    def mirror(self) -> Path:
        (mirror,) = (self.place / "pool").glob("[!.]*/mirror.git")
        return mirror

    def take(self) -> SlotAllocation:
        return self.pool.allocate_slot(str(self.remote), "me")

    def give_back(self, slot: SlotAllocation) -> None:
        self.pool.release_slot(slot.slot_id, lease_token=slot.lease_token)

    def admin(self, slot: SlotAllocation) -> Path:
        return self.mirror / "worktrees" / slot.slot_id

    def assert_pristine(self, slot: SlotAllocation) -> None:
        folder = slot.slot_path
        head = git(self.remote, "rev-parse", "main")
        files = git(self.remote, "ls-tree", "-r", "--name-only", "main").splitlines()
        found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())
        assert found == sorted([".git", *files])
        for name in files:
            assert (folder / name).read_bytes() == (self.remote / name).read_bytes(), name
            assert not (folder / name).is_symlink()
            assert (folder / name).stat().st_mode == (self.remote / name).stat().st_mode, name
            assert (folder / name).stat().st_nlink == 1
        for path in folder.rglob("*"):
            if path.is_dir():
                assert path.stat().st_mode & 0o7777 == 0o755, path
        assert (self.admin(slot) / "HEAD").read_text() == f"{head}\n"
        assert {file.name for file in self.admin(slot).iterdir()} == {"HEAD", "commondir", "gitdir", "index"}
        assert not [line for line in git(folder, "ls-files", "-v").splitlines() if not line.startswith("H ")]
        assert git(folder, "status", "--porcelain", "--ignored") == ""
        assert git(folder, "stash", "list") == ""
        assert git(folder, "config", "--show-scope", "--list").count("worktree\t") == 0
        refs = git(folder, "for-each-ref", "--format=%(refname)").splitlines()
        assert [ref for ref in refs if not ref.startswith(("refs/remotes/origin/", "refs/necrocode/"))] == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


Deed = Callable[[Path, Bench], object]
DEEDS: dict[str, Deed] = {}


def deed(do: Deed) -> Deed:
    DEEDS[do.__name__.replace("_", " ")] = do
    return do


@deed
def untracked_and_ignored_files(slot: Path, _: Bench) -> None:
    (slot / "untracked").write_text("x")
    (slot / "x.log").write_text("x")
    (slot / "build/deep").mkdir(parents=True)
    (slot / "build/deep/x.log").write_text("x")
    os.mkfifo(slot / "deep/fifo")
    (slot / "only").mkdir()
    os.mkfifo(slot / "only/fifo")
    (slot / "link").symlink_to("/")


@deed
def nested_repositories(slot: Path, _: Bench) -> None:
    make_repository(slot / "nested")
    git(slot, "init", "--quiet", "--bare", str(slot / "deep/bare"))
    (slot / "nested/.git/config").write_text('[filter "x"]\n\tclean = touch /tmp/never\n')


@deed
def changed_files(slot: Path, _: Bench) -> None:
    (slot / "a.txt").write_text("changed")
    (slot / "deep/er/b.txt").unlink()
    shutil.rmtree(slot / "deep")
    (slot / "deep").write_text("a file where a folder was")
    (slot / "run.sh").unlink()
    (slot / "run.sh").mkdir()
    (slot / "run.sh/x").write_text("x")


@deed
def a_change_with_the_old_size_and_time(slot: Path, _: Bench) -> None:
    before = (slot / "a.txt").stat()
    (slot / "a.txt").write_text("SAME\n")
    os.utime(slot / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


@deed
def a_replaced_file_with_the_old_size_and_time(slot: Path, _: Bench) -> None:
    before = (slot / "a.txt").stat()
    (slot / "new").write_text("SAME\n")
    os.utime(slot / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (slot / "new").replace(slot / "a.txt")


@deed
def assume_unchanged(slot: Path, _: Bench) -> None:
    git(slot, "update-index", "--assume-unchanged", "a.txt")
    (slot / "a.txt").write_text("hidden")


@deed
def skip_worktree(slot: Path, _: Bench) -> None:
    git(slot, "update-index", "--skip-worktree", "a.txt", "deep/er/b.txt")
    (slot / "a.txt").write_text("hidden")
    (slot / "deep/er/b.txt").unlink()


@deed
def a_sparse_checkout(slot: Path, _: Bench) -> None:
    git(slot, "sparse-checkout", "set", "--no-cone", "/a.txt")
    assert not (slot / "run.sh").exists()


@deed
def configuration_of_the_worktree(slot: Path, bench: Bench) -> None:
    git(slot, "config", "extensions.worktreeConfig", "true")
    git(slot, "config", "--worktree", "core.fileMode", "false")
    git(slot, "config", "--worktree", "core.worktree", str(bench.place))


@deed
def an_index_that_lies(slot: Path, _: Bench) -> None:
    (slot / "a.txt").write_text("SAME\n")
    git(slot, "add", "a.txt")
    oid = git(slot, "rev-parse", "HEAD:a.txt")
    index = Path(git(slot, "rev-parse", "--absolute-git-dir")) / "index"
    staged = bytes.fromhex(git(slot, "rev-parse", ":a.txt"))
    content = index.read_bytes()[:-20].replace(staged, bytes.fromhex(oid))
    before = index.stat()
    index.write_bytes(content + hashlib.sha1(content, usedforsecurity=False).digest())
    os.utime(index, ns=(before.st_atime_ns, before.st_mtime_ns + 5 * 10**9))  # nothing in it looks fresh
    assert git(slot, "status", "--porcelain") == ""


@deed
def a_branch_with_commits(slot: Path, _: Bench) -> None:
    git(slot, "checkout", "--quiet", "-b", "mine/own")
    commit_files(slot, {"mine": "x"})
    git(slot, "tag", "v9")
    git(slot, "tag", "-a", "v10", "-m", "x")
    git(slot, "update-ref", "refs/notes/x", "HEAD")
    git(slot, "replace", "HEAD", "HEAD^")


@deed
def packed_refs(slot: Path, _: Bench) -> None:
    git(slot, "branch", "mine")
    git(slot, "tag", "v9")
    git(slot, "pack-refs", "--all")


@deed
def a_stash(slot: Path, _: Bench) -> None:
    (slot / "a.txt").write_text("stashed")
    git(slot, "stash")
    (slot / "a.txt").write_text("stashed")
    git(slot, "stash", "--include-untracked")


def diverged(slot: Path) -> None:
    git(slot, "checkout", "--quiet", "-b", "one")
    commit_files(slot, {"a.txt": "one"})
    git(slot, "checkout", "--quiet", "-b", "two", "HEAD^")
    commit_files(slot, {"a.txt": "two"})


@deed
def a_merge_under_way(slot: Path, _: Bench) -> None:
    diverged(slot)
    with pytest.raises(Exception, match="merge"):
        git(slot, "merge", "one")


@deed
def a_rebase_under_way(slot: Path, _: Bench) -> None:
    diverged(slot)
    with pytest.raises(Exception, match="rebase"):
        git(slot, "rebase", "one")


@deed
def a_bisection_under_way(slot: Path, _: Bench) -> None:
    git(slot, "bisect", "start")
    git(slot, "bisect", "bad")


@deed
def lock_files(slot: Path, bench: Bench) -> None:
    admin = Path(git(slot, "rev-parse", "--absolute-git-dir"))
    for name in ("index.lock", "HEAD.lock", "config.worktree.lock", "locked"):
        (admin / name).write_text("")
    for name in ("config.lock", "packed-refs.lock", "refs/heads/x.lock", "refs/remotes/origin/main.lock"):
        (bench.mirror / name).parent.mkdir(exist_ok=True)
        (bench.mirror / name).write_text("")


@deed
def modes(slot: Path, _: Bench) -> None:
    (slot / "a.txt").chmod(0o666)
    (slot / "run.sh").chmod(0o4777)
    (slot / "deep/er").chmod(0o777)
    (slot / "deep").chmod(0o000)
    (slot / "hidden/x").mkdir(parents=True)
    (slot / "hidden").chmod(0o000)


@deed
def links_to_elsewhere(slot: Path, bench: Bench) -> None:
    outside = bench.place / "outside"
    (outside / "er").mkdir(parents=True)
    (outside / "er/b.txt").write_text("outside")
    (outside / "er").chmod(0o700)
    shutil.rmtree(slot / "deep")
    (slot / "deep").symlink_to(outside)
    (slot / "a.txt").unlink()
    (slot / "a.txt").symlink_to(outside / "er/b.txt")
    (slot / "run.sh").unlink()
    os.link(outside / "er/b.txt", slot / "run.sh")


@deed
def a_hard_link_from_elsewhere(slot: Path, bench: Bench) -> None:
    os.link(slot / "a.txt", bench.place / "mine")


@deed
def another_pointer(slot: Path, bench: Bench) -> None:
    other = make_repository(bench.place / "evil")
    (slot / ".git").write_text(f"gitdir: {other}/.git\n")


@deed
def a_pointer_that_is_a_link(slot: Path, bench: Bench) -> None:
    (slot / ".git").rename(bench.place / "pointer")
    (slot / ".git").symlink_to(bench.place / "pointer")


@deed
def a_repository_in_place_of_the_pointer(slot: Path, _: Bench) -> None:
    (slot / ".git").unlink()
    git(slot, "init", "--quiet")


@deed
def another_common_folder(slot: Path, bench: Bench) -> None:
    make_repository(bench.place / "evil")
    admin = Path(git(slot, "rev-parse", "--absolute-git-dir"))
    (admin / "commondir").write_text(f"{bench.place}/evil/.git\n")


@deed
def a_link_in_place_of_the_slot(slot: Path, bench: Bench) -> None:
    slot.rename(bench.place / "moved")
    slot.symlink_to(bench.place / "moved")


@deed
def settings_of_the_mirror(slot: Path, bench: Bench) -> None:
    marker = bench.place / "ran"
    for name, value in (
        ("core.fsmonitor", f"touch {marker}"),
        ("core.hooksPath", str(bench.place)),
        ("filter.x.smudge", f"touch {marker}"),
        ("core.trustctime", "false"),
        ("core.checkStat", "minimal"),
        ("core.excludesFile", "/etc/passwd"),
        ("remote.origin.uploadpack", f"touch {marker};git-upload-pack"),
        ("remote.origin.url", "/nowhere"),
        ("diff.external", f"touch {marker}"),
    ):
        git(bench.mirror, "config", name, value)
    hooks = bench.mirror / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (hooks / name).chmod(0o755)
    (bench.mirror / "info").mkdir()
    (bench.mirror / "info/attributes").write_text("* filter=x\n")
    (bench.mirror / "info/exclude").write_text("*\n")
    (bench.mirror / "info/grafts").write_text("")
    (bench.mirror / "objects/info").mkdir(exist_ok=True)
    (bench.mirror / "objects/info/alternates").write_text("/nowhere\n")
    (bench.mirror / "shallow").write_text(f"{git(slot, 'rev-parse', 'HEAD')}\n")


@pytest.mark.parametrize("moves_on", [False, True], ids=["same base", "new base"])
@pytest.mark.parametrize("name", DEEDS)
def test_the_next_holder_gets_a_pristine_slot(bench: Bench, name: str, moves_on: bool) -> None:
    slot = bench.take()
    DEEDS[name](slot.slot_path, bench)
    bench.give_back(slot)
    if moves_on:
        commit_files(bench.remote, {"a.txt": "moved\n", "deep/er/c.txt": "c\n"})
    again = bench.take()
    assert again.slot_id == slot.slot_id
    bench.assert_pristine(again)
    assert not (bench.place / "ran").exists()
    if (bench.place / "outside").exists():
        assert (bench.place / "outside/er/b.txt").read_text() == "outside"
        assert (bench.place / "outside/er").stat().st_mode & 0o777 == 0o700


def test_a_settled_slot_that_nobody_changed_is_not_read_again(bench: Bench) -> None:
    slot = bench.take()
    bench.give_back(slot)
    times = {file: file.stat().st_ctime_ns for file in slot.slot_path.rglob("*.txt")}
    again = bench.take()
    assert {file: file.stat().st_ctime_ns for file in again.slot_path.rglob("*.txt")} == times


def test_what_lies_in_a_submodules_folder_is_gone(bench: Bench) -> None:
    oid = git(bench.remote, "rev-parse", "HEAD")
    git(bench.remote, "update-index", "--add", "--cacheinfo", f"160000,{oid},sub")
    git(bench.remote, "commit", "--quiet", "-m", "submodule")
    slot = bench.take()
    assert list((slot.slot_path / "sub").iterdir()) == []
    make_repository(slot.slot_path / "sub" / "x")
    (slot.slot_path / "sub" / "left").write_text("x")
    bench.give_back(slot)
    assert list((bench.take().slot_path / "sub").iterdir()) == []


def test_names_that_are_no_utf8_are_kept(bench: Bench) -> None:
    folder = bench.remote / os.fsdecode(b"d\xff\xfe")
    folder.mkdir()
    (folder / "x").write_text("x")
    git(bench.remote, "add", ".")
    git(bench.remote, "commit", "--quiet", "-m", "bytes")
    for _ in range(2):
        slot = bench.take()
        assert (slot.slot_path / folder.name / "x").read_text() == "x"
        bench.give_back(slot)


def test_what_runs_have_made_stays(bench: Bench) -> None:
    slot = bench.take()
    repository = Repository(Git(bench.place / "git"), slot.slot_path)
    author = Author("a", "a@localhost", 1)
    run = "refs/necrocode/runs/r1/1"
    commit = repository.write_commit(
        str(slot.base_commit), [FileChange("new", content=b"x")], ref=run, message="m", author=author
    )
    repository.move_ref("refs/heads/feature/delivered", commit, expected=None)
    git(slot.slot_path, "branch", "by-hand")
    bench.give_back(slot)
    again = bench.take()
    assert git(again.slot_path, "rev-parse", run, "feature/delivered").split() == [commit, commit]
    assert "by-hand" not in git(again.slot_path, "for-each-ref")


def test_a_present_holders_branch_and_stash_stay_until_it_is_gone(bench: Bench) -> None:
    bench.pool = LocalRepoPool(bench.place / "pool", Git(bench.place / "git"), pool_size=2, clock=FakeClock())
    stays, goes = bench.take(), bench.take()
    git(stays.slot_path, "branch", "theirs")
    (stays.slot_path / "a.txt").write_text("stashed")
    git(stays.slot_path, "stash")
    bench.give_back(goes)
    goes = bench.take()
    assert git(stays.slot_path, "rev-parse", "theirs")
    assert git(stays.slot_path, "stash", "list")
    bench.give_back(stays)
    bench.give_back(goes)
    bench.assert_pristine(bench.take())


def test_a_tag_made_by_hand_is_no_base(bench: Bench) -> None:
    first = git(bench.remote, "rev-parse", "HEAD")
    git(bench.remote, "tag", "v1")
    slot = bench.take()
    commit_files(slot.slot_path, {"evil": "x"})
    git(slot.slot_path, "tag", "-f", "v1")
    bench.give_back(slot)
    again = bench.pool.allocate_slot(str(bench.remote), "me", base_ref="v1")
    assert again.base_commit == first
    bench.give_back(again)
    git(bench.remote, "tag", "-f", "v1", commit_files(bench.remote, {"moved": "x"}))
    assert (bench.pool.allocate_slot(str(bench.remote), "me", base_ref="v1").slot_path / "moved").exists()


def test_slots_of_version_0_1_are_taken_over(bench: Bench) -> None:
    slot = bench.take()
    file = bench.mirror.parent / "pool.json"
    old = ("slot_id", "state", "epoch", "holder", "lease_token", "expires_at", "last_used_at")
    slots = json.loads(file.read_text())["slots"]
    file.write_text(json.dumps([{name: one[name] for name in old} for one in slots]))
    shutil.rmtree(bench.mirror.parent / "known")
    (bench.mirror / "config").write_text(
        f'[core]\n\trepositoryformatversion = 0\n\tbare = true\n[remote "origin"]\n\turl = {bench.remote}\n'
    )
    (shown,) = bench.pool.pools_status()
    assert (shown.repo_url, shown.slots[0].holder, shown.slots[0].state) == (str(bench.remote), "me", "allocated")
    bench.pool.renew_lease(slot.slot_id, slot.lease_token or "")
    (slot.slot_path / "left").write_text("x")
    bench.give_back(slot)
    again = bench.take()
    assert (again.slot_id, again.epoch) == (slot.slot_id, (slot.epoch or 0) + 1)
    bench.assert_pristine(again)


def test_a_tree_is_deleted_behind_the_scenes(bench: Bench) -> None:
    slot = bench.take()
    (slot.slot_path / ".git").unlink()
    (slot.slot_path / "deep").chmod(0)
    bench.give_back(slot)
    bench.assert_pristine(bench.take())
    until = time.monotonic() + 30
    while list((bench.place / "pool/.trash").iterdir()) and time.monotonic() < until:
        bench.pool.reclaim_expired()
    assert list((bench.place / "pool/.trash").iterdir()) == []
