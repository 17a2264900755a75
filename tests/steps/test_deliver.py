from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner import ImplementationResult, PushError, PushResult, StaleLeaseError
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Author, FileChange, Git, Repository
from necrocode.agent_runner.fencing import Fence, signed
from necrocode.agent_runner.steps.deliver import _Delivery, deliver
from necrocode.agent_runner.workspace import Workspace
from tests.support.repositories import commit_files, git, make_repository

OURS = "necrocode@localhost"
BRANCH = "feature/task-1"


class Bench:
    """A remote repository and a workspace cloned from it."""

    def __init__(self, folder: Path) -> None:
        self.remote = make_repository(folder / "remote")
        git(folder, "clone", "--quiet", str(self.remote), str(folder / "clone"))
        home = Git(folder / "git-home")
        home.prepare()
        self.repository = Repository(home, folder / "clone")
        self.base = git(self.remote, "rev-parse", "HEAD")
        self._count = 0

    def commit(self, content: str = "x", fence: Fence | None = None) -> ImplementationResult:
        self._count += 1
        ref = f"refs/necrocode/runs/{self._count}/1"
        change = FileChange("new.txt", content=content.encode())
        author = Author("necrocode", OURS, 1_700_000_000 + self._count)
        commit = self.repository.write_commit(
            self.base, [change], ref=ref, message=signed("m", ref, fence), author=author
        )
        return ImplementationResult(base_commit=self.base, commit=commit, ref=ref, tree="", files=("new.txt",))

    def deliver(
        self,
        made: ImplementationResult,
        *,
        push: bool = True,
        brought: bool = False,
        fence: Fence | None = None,
        check_hold: Callable[[], None] = lambda: None,
    ) -> PushResult:
        with self.repository.objects() as objects:
            workspace = Workspace(self.repository, objects, "slot-1", self.base, str(self.remote), is_brought=brought)
            return deliver(
                workspace, made, BRANCH, push=push, committer_email=OURS, deadline=Deadline(60), fence=fence,
                check_hold=check_hold,
            )  # fmt: skip

    def tip(self, where: Path | None = None) -> str:
        return git(where or self.remote, "rev-parse", f"refs/heads/{BRANCH}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_new_branch_is_pushed(bench: Bench) -> None:
    made = bench.commit()
    pushed = bench.deliver(made)
    assert bench.tip() == made.commit
    assert (pushed.pushed, pushed.branch, pushed.repository) == (True, BRANCH, str(bench.remote))


def test_delivering_the_same_commit_again_is_harmless(bench: Bench) -> None:
    made = bench.commit()
    bench.deliver(made)
    bench.deliver(made)
    assert bench.tip() == made.commit


def test_a_later_attempt_replaces_an_earlier_one(bench: Bench) -> None:
    bench.deliver(bench.commit("first"))
    second = bench.commit("second")
    bench.deliver(second)
    assert bench.tip() == second.commit


def test_a_branch_that_another_worktree_has_checked_out_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    git(bench.repository.path, "worktree", "add", "--quiet", "-b", BRANCH, str(tmp_path / "other"))
    before = bench.tip(bench.repository.path)
    with pytest.raises(PushError, match=r"is checked out in .*other"):
        bench.deliver(bench.commit(), push=False, brought=True)
    assert bench.tip(bench.repository.path) == before
    assert git(tmp_path / "other", "status", "--porcelain") == ""


@pytest.mark.parametrize("times", [1, 2])
def test_a_branch_that_others_move_meanwhile_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    looked = _Delivery._remote_tip
    waiting = [bench.commit(f"other {number}") for number in range(times)]

    def overtaken(self: _Delivery, remote: str) -> str:
        tip = looked(self, remote)
        if waiting:
            git(bench.repository.path, "push", "--quiet", "--force", "origin", f"{waiting.pop().commit}:{self.ref}")
        return tip

    bench.deliver(bench.commit("first"))
    monkeypatch.setattr(_Delivery, "_remote_tip", overtaken)
    last = bench.commit("last")
    bench.deliver(last)
    assert bench.tip() == last.commit


def test_a_hook_that_speaks_like_git_is_not_mistaken_for_it(bench: Bench) -> None:
    hook = bench.remote / ".git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'the branch already exists (stale info)' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(PushError, match="pre-receive hook declined"):
        bench.deliver(bench.commit())


def test_a_later_attempt_may_start_from_an_older_commit(bench: Bench) -> None:
    older = bench.base
    bench.base = commit_files(bench.remote, {"b": "by somebody else"})
    git(bench.repository.path, "fetch", "--quiet", "origin", "+HEAD:refs/necrocode/remote-head")
    bench.deliver(bench.commit("first"))
    bench.base = older
    second = bench.commit("second")
    bench.deliver(second)
    assert bench.tip() == second.commit


def test_a_token_as_the_user_of_the_remote_is_not_told(bench: Bench) -> None:
    made = bench.commit()
    with bench.repository.objects() as objects:
        workspace = Workspace(bench.repository, objects, "slot-1", bench.base, "http://t0ken-of-a-host@127.0.0.1:1/r")
        with pytest.raises(PushError, match=r"to http://\*\*\*@127\.0\.0\.1:1/r: git push failed") as caught:
            deliver(workspace, made, BRANCH, push=True, committer_email=OURS, deadline=Deadline(60))
    assert "t0ken-of-a-host" not in f"{caught.value}{caught.value.hint}"


def test_what_was_not_pushed_does_not_look_delivered_in_a_brought_checkout(bench: Bench, tmp_path: Path) -> None:
    bench.remote = tmp_path / "gone"
    with pytest.raises(PushError):
        bench.deliver(bench.commit(), brought=True)
    assert git(bench.repository.path, "branch", "--list", BRANCH) == ""


def test_a_branch_that_lags_behind_the_base_is_moved(bench: Bench) -> None:
    git(bench.remote, "branch", BRANCH)
    made = bench.commit()
    bench.deliver(made)
    assert bench.tip() == made.commit


@pytest.mark.parametrize("push", [True, False])
def test_somebody_elses_commits_are_never_replaced(bench: Bench, push: bool) -> None:
    where = bench.remote if push else bench.repository.path
    git(where, "checkout", "--quiet", "-b", BRANCH)
    theirs = commit_files(where, {"theirs.txt": "work"})
    git(where, "checkout", "--quiet", "main")
    made = bench.commit()
    with pytest.raises(PushError, match=r"did not make \(by alice@example\.com\).*kept under refs/necrocode/runs/1/1"):
        bench.deliver(made, push=push)
    assert bench.tip(where) == theirs


def test_a_persons_commit_on_top_of_ours_is_never_replaced(bench: Bench) -> None:
    bench.deliver(bench.commit("first"))
    git(bench.remote, "checkout", "--quiet", BRANCH)
    theirs = commit_files(bench.remote, {"theirs.txt": "work"})
    git(bench.remote, "checkout", "--quiet", "main")
    with pytest.raises(PushError, match="alice@example"):
        bench.deliver(bench.commit("second"))
    assert bench.tip() == theirs


def test_without_push_the_branch_stays_in_the_slots_repository(bench: Bench) -> None:
    made = bench.commit()
    pushed = bench.deliver(made, push=False)
    assert bench.tip(bench.repository.path) == made.commit
    assert git(bench.remote, "branch", "--list", BRANCH) == ""
    assert (pushed.pushed, pushed.repository) == (False, str(bench.repository.path))


def test_a_brought_checkout_ends_on_the_branch_and_the_remote_has_it_too(bench: Bench) -> None:
    made = bench.commit()
    bench.deliver(made, brought=True)
    assert git(bench.repository.path, "rev-parse", "--abbrev-ref", "HEAD") == BRANCH
    assert (bench.repository.path / "new.txt").read_text() == "x"
    assert bench.tip() == made.commit


def test_the_remotes_own_hooks_are_asked(bench: Bench) -> None:
    hook = bench.remote / ".git/hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'no new branches on Fridays' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(PushError, match=r"no new branches on Fridays|pre-receive hook declined"):
        bench.deliver(bench.commit())


def test_a_branch_that_is_checked_out_over_there_is_explained(bench: Bench) -> None:
    git(bench.remote, "checkout", "--quiet", "-b", BRANCH)
    with pytest.raises(PushError, match="checked out there: use another branch_name"):
        bench.deliver(bench.commit())


def test_a_remote_that_is_gone_is_a_push_error(bench: Bench) -> None:
    made = bench.commit()
    bench.remote.rename(bench.remote.with_name("moved"))
    with pytest.raises(PushError, match="Cannot deliver branch feature/task-1 to"):
        bench.deliver(made)


def test_a_branch_below_another_branch_cannot_be_made(bench: Bench) -> None:
    git(bench.remote, "branch", "feature")
    with pytest.raises(PushError, match="feature"):
        bench.deliver(bench.commit())


# --- the epoch of the claim


def fence(epoch: int, lineage: str = "a1") -> Fence:
    return Fence(epoch=epoch, lineage=lineage)


@pytest.mark.parametrize("push", [True, False])
def test_a_branch_of_a_newer_claim_is_left_as_it_is(bench: Bench, push: bool) -> None:
    where = None if push else bench.repository.path
    newer = bench.commit("newer", fence(2))
    bench.deliver(newer, fence=fence(2), push=push)
    with pytest.raises(StaleLeaseError, match=r"newer run of the task \(epoch 2; this run has 1\)"):
        bench.deliver(bench.commit("older", fence(1)), fence=fence(1), push=push)
    assert bench.tip(where) == newer.commit
    again = bench.commit("again", fence(3))
    bench.deliver(again, fence=fence(3), push=push)
    assert bench.tip(where) == again.commit


def test_a_newer_claim_below_the_tip_counts_too(bench: Bench) -> None:
    newer = bench.commit("newer", fence(5))
    author = Author("necrocode", OURS, 1_700_000_900)
    on_top = bench.repository.write_commit(
        newer.commit, [FileChange("top.txt", content=b"t")], ref="refs/heads/top", message="no trailer", author=author
    )
    git(bench.repository.path, "push", "--quiet", "origin", f"{on_top}:refs/heads/{BRANCH}")
    with pytest.raises(StaleLeaseError):
        bench.deliver(bench.commit("older", fence(4)), fence=fence(4))
    assert bench.tip() == on_top


@pytest.mark.parametrize("ours", [None, fence(1, "b2"), fence(1, ""), fence(9)])
def test_what_cannot_be_compared_is_replaced_as_before(bench: Bench, ours: Fence | None) -> None:
    bench.deliver(bench.commit("theirs", fence(9)), fence=fence(9))
    made = bench.commit("ours", ours)
    bench.deliver(made, fence=ours)
    assert bench.tip() == made.commit


def test_a_runner_that_is_overtaken_between_looking_and_pushing_loses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = _Delivery._remote_tip
    waiting = [bench.commit("newer", fence(2))]

    def overtaken(self: _Delivery, remote: str) -> str:
        tip = looked(self, remote)
        if waiting:
            git(bench.repository.path, "push", "--quiet", "--force", "origin", f"{waiting.pop().commit}:{self.ref}")
        return tip

    bench.deliver(bench.commit("first", fence(1)), fence=fence(1))
    newer = waiting[0].commit
    monkeypatch.setattr(_Delivery, "_remote_tip", overtaken)
    with pytest.raises(StaleLeaseError):
        bench.deliver(bench.commit("late", fence(1)), fence=fence(1))
    assert bench.tip() == newer


def test_a_hold_that_is_lost_moves_nothing(bench: Bench) -> None:
    def lost() -> None:
        raise StaleLeaseError("over")

    with pytest.raises(StaleLeaseError):
        bench.deliver(bench.commit(), check_hold=lost)
    with pytest.raises(StaleLeaseError):
        bench.deliver(bench.commit(), push=False, check_hold=lost)
    for where in (bench.remote, bench.repository.path):
        assert git(where, "for-each-ref", f"refs/heads/{BRANCH}") == ""
