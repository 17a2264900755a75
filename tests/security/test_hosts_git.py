"""What hostile code leaves for the host's git: none of it runs, whatever the repository's own configuration says.

The door is taken over a worktree that was prepared against it. That a pool's next holder gets a pristine slot, and the
mirror back as it was, is shown for each deed in ``tests/unit/test_pool_leaks.py``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner import LocalRepoPool
from necrocode.agent_runner._git import FileChange, Git, GitError, Repository
from tests.security.boxes import snapshot
from tests.support.repositories import commit_files, git, make_repository
from tests.unit.test_git import AUTHOR, script


class Trap:
    """A worktree, and programs that leave a trace when they are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder / "trace"
        self.program = script(folder / "program", self.trace)
        main = make_repository(folder / "main", {"a.txt": "a\n", "b.txt": "b\n"})
        git(main, "worktree", "add", "--quiet", "--detach", str(folder / "work"))
        self.main, self.work = main, folder / "work"

    def configure(self, repository: Path, settings: dict[str, str]) -> None:
        for name, value in settings.items():
            git(repository, "config", name, value)

    def assert_it_springs(self) -> None:
        """git as anybody would start it runs what was laid."""
        environment = {name: os.environ[name] for name in ("PATH", "HOME")}
        for verb in (["status"], ["checkout", "--detach"]):
            subprocess.run(
                ["git", "-C", self.work, *verb], capture_output=True, check=False, env=environment, timeout=30
            )
        assert self.trace.exists()
        self.trace.unlink()

    def use(self, work: Path | None = None) -> int:
        """All that the door does in a worktree; how much of it worked, for git may well fail."""
        door = Git(self.folder / "home")
        door.prepare()
        place = Repository(door, work or self.work)
        head, worked = "HEAD", 0
        for action in (
            lambda: place.run("status", "--porcelain"),
            lambda: place.run("diff", "--quiet"),
            lambda: place.write_commit(head, [FileChange("n", content=b"n")], ref="refs/x", message="m", author=AUTHOR),
            lambda: place.diff(head, "refs/x"),
            lambda: place.check_out("refs/x"),
            lambda: place.move_ref("refs/heads/y", place.run("rev-parse", head).decode().strip(), expected=None),
            lambda: place.reset_hard(head),
            lambda: place.run("checkout-index", "--all", "--force", "--index", "--quiet"),
            lambda: place.run("log", "--format=%ce", head),
            lambda: place.run("fetch", "--", "origin", head, network=True),
            lambda: place.run("push", "--", "origin", f"{head}:refs/heads/z", network=True),
            place.remove_untracked,
        ):
            try:
                action()
            except GitError:
                continue
            worked += 1
        return worked

    def hooks(self, folder: Path) -> None:
        for name in ("post-checkout", "reference-transaction", "post-index-change", "pre-push", "pre-commit"):
            script(folder / name, self.trace)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


def of_config(trap: Trap) -> None:
    """Programs that a configuration can name."""
    (trap.work / ".gitattributes").write_text("* filter=evil.one diff=evil\n")
    trap.configure(
        trap.main,
        {
            "core.fsmonitor": trap.program,
            "core.sshCommand": trap.program,
            "core.askPass": trap.program,
            "core.gitProxy": trap.program,
            "core.alternateRefsCommand": trap.program,
            "core.pager": trap.program,
            "credential.helper": f"!{trap.program}",
            "filter.evil.one.clean": trap.program,
            "filter.evil.one.smudge": trap.program,
            "filter.evil.one.process": trap.program,
            "filter.evil.one.required": "true",
            "diff.external": trap.program,
            "diff.evil.command": trap.program,
            "diff.evil.textconv": trap.program,
            "gpg.program": trap.program,
            "log.showSignature": "true",
            "push.gpgSign": "true",
            "remote.origin.url": f"ssh://127.0.0.1:1{trap.folder}/x",
            "remote.origin.uploadpack": trap.program,
            "remote.origin.receivepack": trap.program,
            "protocol.ext.allow": "always",
            "alias.status": f"!{trap.program}",
        },
    )


def of_hooks(trap: Trap) -> None:
    """Hooks, in their own folder and in one that is configured."""
    trap.hooks(trap.main / ".git/hooks")
    trap.hooks(trap.folder / "hooks")
    trap.configure(trap.main, {"core.hooksPath": str(trap.folder / "hooks")})


def of_pointer(trap: Trap) -> None:
    """The worktree's pointer leads to a repository of the attacker's."""
    evil = make_repository(trap.folder / "evil", {"a.txt": "evil\n", ".gitattributes": "* filter=f\n"})
    trap.configure(
        evil,
        {
            "filter.f.clean": trap.program, "filter.f.smudge": trap.program, "core.fsmonitor": trap.program,
            "core.worktree": str(trap.folder / "host"),
        },
    )  # fmt: skip
    trap.hooks(evil / ".git/hooks")
    (trap.work / ".git").write_text(f"gitdir: {evil}/.git\n")


def of_nested(trap: Trap) -> None:
    """A repository inside, as a folder and as a submodule, with a filter and a monitor of its own."""
    nested = make_repository(trap.work / "nested", {"f": "x\n", ".gitattributes": "* filter=f\n"})
    git(trap.work, "update-index", "--add", "--cacheinfo", f"160000,{git(nested, 'rev-parse', 'HEAD')},nested")
    trap.configure(nested, {"filter.f.clean": trap.program, "core.fsmonitor": trap.program})
    (nested / "f").write_text("changed\n")


def of_bare(trap: Trap) -> None:
    """The folder itself looks like a bare repository, and its pointer is gone."""
    bare = make_repository(trap.folder / "evil", {"a.txt": "evil\n"}) / ".git"
    trap.configure(trap.folder / "evil", {"core.fsmonitor": trap.program, "core.worktree": str(trap.folder / "host")})
    trap.hooks(bare / "hooks")
    (trap.work / ".git").unlink()
    for entry in bare.iterdir():
        entry.rename(trap.work / entry.name)


@pytest.mark.parametrize("lay", [of_config, of_hooks, of_pointer, of_bare], ids=lambda lay: lay.__name__)
def test_what_a_worktree_was_prepared_with_does_not_run(trap: Trap, lay: Callable[[Trap], None]) -> None:
    (trap.folder / "host").mkdir()
    (trap.folder / "host/file").write_text("host")
    lay(trap)
    trap.assert_it_springs()
    worked = trap.use()
    assert worked == 0 if lay is of_bare else worked > 8
    assert not trap.trace.exists()
    assert [path.name for path in (trap.folder / "host").iterdir()] == ["file"]


def test_a_nested_repository_with_a_filter_does_not_run_when_a_checkout_is_looked_at(trap: Trap) -> None:
    of_nested(trap)
    trap.assert_it_springs()
    door = Git(trap.folder / "home")
    door.prepare()
    Repository(door, trap.work).run("status", "--porcelain", "--ignore-submodules=dirty")
    Repository(door, trap.work).reset_hard("HEAD")
    Repository(door, trap.work).remove_untracked()
    assert not trap.trace.exists()


def test_a_worktree_without_its_pointer_is_not_looked_for_further_up(trap: Trap) -> None:
    inner = trap.main / "inner"
    inner.mkdir()
    (inner / "mine").write_text("mine")
    trap.use(inner)
    assert (inner / "mine").exists()
    assert git(trap.main, "status", "--porcelain") == "?? inner/"


def test_cleaning_up_follows_no_link_to_the_host_and_takes_folders_of_mode_000(tmp_path: Path) -> None:
    remote = make_repository(tmp_path / "remote", {"dir/a": "a\n"})
    host = tmp_path / "host"
    (host / "folder").mkdir(parents=True)
    (host / "folder/file").write_text("host")
    before = snapshot(host)
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=1)
    slot = pool.allocate_slot(str(remote), "me")
    work = slot.slot_path
    (work / "root").symlink_to("/")
    (work / "dir/a").unlink()
    (work / "dir").rmdir()
    (work / "dir").symlink_to(host / "folder")
    (work / "shut/deep").mkdir(parents=True)
    (work / "shut/deep/x").symlink_to(host)
    (work / "shut/deep").chmod(0)
    (work / "shut").chmod(0)
    pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
    commit_files(remote, {"dir/a": "b\n"})
    again = pool.allocate_slot(str(remote), "me")
    assert sorted(path.name for path in again.slot_path.iterdir()) == [".git", "dir"]
    assert (again.slot_path / "dir/a").read_text() == "b\n"
    assert snapshot(host) == before
