"""Deliver: move the task's branch to the commit by compare-and-swap, where the slot came from.

A branch that is there already is replaced only while every commit on it, beyond the base, was made by this runner's
own committer: an earlier attempt. Anything else on it is somebody's work, and the delivery is refused. So it is where
one of them was made under a newer claim on the task: then this runner was overtaken.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing
from necrocode.agent_runner._git import RECEIVE_PACK, REMOTE_HEAD, UPLOAD_PACK, GitError
from necrocode.agent_runner._names import mask_users
from necrocode.agent_runner.errors import PushError, RunnerError, StaleLeaseError
from necrocode.agent_runner.fencing import LOG_FORMAT, fence_in
from necrocode.agent_runner.results import PushResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner.fencing import Fence
    from necrocode.agent_runner.results import ImplementationResult
    from necrocode.agent_runner.workspace import Workspace

# Why git push refused a ref, by the lines of --porcelain: "!<tab>from:to<tab>[rejected] (stale info)". What a hook of
# the remote prints is no such line.
_OTHER_TIP = re.compile(
    r"^!\t\S+\t\[(?:remote )?rejected\] \((?:stale info|already exists|fetch first|non-fast-forward|"
    r"(?:cannot lock ref|failed to update ref|reference already exists).*)",
    re.MULTILINE,
)
_MOST_PUSHES = 4
_MOST_LOOK_SECONDS = 2.0


def deliver(
    workspace: Workspace,
    implementation: ImplementationResult,
    branch: str,
    *,
    push: bool,
    committer_email: str,
    deadline: Deadline,
    fence: Fence | None = None,
    check_hold: Callable[[], None] = lambda: None,
) -> PushResult:
    """Put the commit on the branch. :class:`PushError` says why not; delivering the same commit again is harmless.

    ``StaleLeaseError`` when the branch is of a newer claim than ``fence``, or by ``check_hold``, which is asked before
    anything is moved.
    """

    def check() -> None:
        workspace.check_hold()
        check_hold()

    repository, commit = workspace.repository, implementation.commit
    remote = workspace.remote if push else None
    delivery = _Delivery(repository, workspace.objects, branch, implementation, committer_email, deadline, fence, check)
    stays_here = workspace.is_brought or remote is None
    try:
        tip = delivery.local_tip() if stays_here else None
        if workspace.is_brought:
            delivery.refuse_branch_of_another_worktree()
            deadline.check("move the checkout")
            with closing(deadline) as end:  # cut in the middle, it would leave the caller's files half changed
                repository.check_out(commit, deadline=end)
        check()
        if remote is not None:  # first of all: what was not pushed must not look delivered here
            delivery.push(remote)
            if not stays_here:
                delivery.note_pushed()
        if stays_here:
            repository.move_ref(delivery.ref, commit, expected=tip, deadline=deadline)
        if workspace.is_brought:
            repository.run("symbolic-ref", "HEAD", delivery.ref, deadline=deadline)
    except GitError as error:
        raise PushError(
            f"Cannot deliver branch {branch} to {mask_users(remote or str(workspace.path))}: {error}",
            hint=error.hint or _hint(error.output),
        ) from error
    place = str(workspace.path) if remote is None else mask_users(remote)
    return PushResult(branch=branch, commit=commit, repository=place, pushed=remote is not None)


def has_arrived(
    workspace: Workspace, implementation: ImplementationResult, branch: str, *, push: bool, deadline: Deadline
) -> bool:
    """Whether the branch is at the commit over there, although the push was cut off; False where nobody can tell.

    It takes two seconds at most.
    """
    remote = workspace.remote if push else None
    if remote is None:
        return False
    ref = f"refs/heads/{branch}"
    try:
        seen = workspace.repository.run(
            "ls-remote",
            "--quiet",
            UPLOAD_PACK,
            "--",
            remote,
            ref,
            network=True,
            deadline=deadline.sooner(_MOST_LOOK_SECONDS),
        )
    except RunnerError:
        return False
    return seen.decode(errors="replace").split() == [implementation.commit, ref]


@dataclass(frozen=True)
class _Delivery:
    repository: Repository
    objects: ObjectReader
    branch: str
    implementation: ImplementationResult
    committer_email: str
    deadline: Deadline
    fence: Fence | None
    check_hold: Callable[[], None]

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"

    def local_tip(self) -> str | None:
        """Where the branch is now in this repository; ``PushError`` when it may not be moved from there."""
        tip = self.objects.resolve(self.ref)
        if tip is not None:
            self._check_replaceable(tip)
        return tip

    def refuse_branch_of_another_worktree(self) -> None:
        """``PushError`` when a linked worktree has the branch checked out: its files would be left behind."""
        listing = self.repository.run("worktree", "list", "--porcelain", "-z", deadline=self.deadline)
        for record in listing.decode(errors="surrogateescape").split("\0\0"):
            place, *lines = record.split("\0")
            path = Path(place.removeprefix("worktree "))
            if f"branch {self.ref}" in lines and path.resolve() != self.repository.path.resolve():
                raise PushError(
                    f"Branch {self.branch} is checked out in {path}.",
                    hint="Give the task another branch_name, or check something else out there.",
                )

    def push(self, remote: str) -> None:
        """Push expecting no such branch; where there is one, look at it and push again expecting just that one."""
        expected = ""
        for count in range(_MOST_PUSHES):
            try:
                self._push_expecting(remote, expected)
            except GitError as error:
                if count == _MOST_PUSHES - 1 or _OTHER_TIP.search(error.output) is None:
                    raise
            else:
                return
            expected = self._remote_tip(remote)
            if expected:
                self._check_replaceable(expected)
            self.check_hold()

    def note_pushed(self) -> None:
        """Have the mirror know at once, as its next fetch would, where the branch is: `necrocode recover` tells it."""
        with suppress(RunnerError):  # it is delivered all the same
            tracking = f"refs/remotes/origin/{self.branch}"
            self.repository.run("update-ref", tracking, self.implementation.commit, deadline=self.deadline)

    def _remote_tip(self, remote: str) -> str:
        """The commit that the branch is at over there, with its history fetched; empty where it is not there."""
        known = (self.implementation.commit,)
        try:
            return self.repository.fetch_commit(remote, self.ref, known=known, deadline=self.deadline)
        except GitError as error:
            if "couldn't find remote ref" in error.output:
                return ""
            raise

    def _push_expecting(self, remote: str, expected: str) -> None:
        lease = f"--force-with-lease={self.ref}:{expected}"
        options = ("--porcelain", "--no-verify", "--no-follow-tags", "--recurse-submodules=no", RECEIVE_PACK, lease)
        refspec = f"{self.implementation.commit}:{self.ref}"
        self.repository.run("push", *options, "--", remote, refspec, network=True, deadline=self.deadline)

    def _check_replaceable(self, tip: str) -> None:
        known = [self.implementation.base_commit, self.implementation.commit]
        if (default_branch := self.objects.resolve(REMOTE_HEAD)) is not None:
            known.append(default_branch)  # a later attempt may start from an older commit
        log = self.repository.run("log", f"--format={LOG_FORMAT}", tip, "--not", *known, "--", deadline=self.deadline)
        commits = [line.split("\0") for line in log.decode(errors="replace").split("\n") if line]
        others = sorted({email for email, *_ in commits} - {self.committer_email, ""})
        if others:
            raise PushError(
                f"Branch {self.branch} exists with commits that this runner did not make (by {', '.join(others[:3])});"
                " it was left as it is.",
                hint="Give the task another branch_name, or delete that branch."
                f" The commit is kept under {self.implementation.ref}.",
            )
        for _, epochs, lineages in commits:
            self._refuse_newer(fence_in(epochs, lineages))

    def _refuse_newer(self, theirs: Fence | None) -> None:
        ours = self.fence
        if ours is not None and theirs is not None and ours.is_older_than(theirs):
            raise StaleLeaseError(
                f"Branch {self.branch} was delivered by a newer run of the task (epoch {theirs.epoch}; this run has"
                f" {ours.epoch}); it was left as it is.",
                hint=f"The commit is kept under {self.implementation.ref}.",
            )


def _hint(output: str) -> str:
    if "checked out branch" in output:
        return "That branch is checked out there: use another branch_name, or a bare repository."
    if "would be overwritten by checkout" in output:
        return "Move those files away and run the task again: the runner never overwrites what git does not track."
    if "Authentication failed" in output or "could not read Username" in output or "403" in output:
        return "Is GIT_TOKEN set, and may it write to this repository?"
    return "The commit is kept; run the task again once this is mended."
