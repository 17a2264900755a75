"""The bare mirror behind the slots of one repository: made once, fetched into, and kept free of what holders leave."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._git import REMOTE_HEAD, UPLOAD_PACK, GitError, RemoteRefusedError, Repository
from necrocode.agent_runner.clients._pool_fetch import SharedFetches
from necrocode.agent_runner.clients._pool_files import locked_within, write_whole
from necrocode.agent_runner.errors import (
    AuthenticationError,
    RepositoryNotFoundError,
    RunnerError,
    RunnerTimeoutError,
    WorkspacePreparationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import Git
    from necrocode.agent_runner.clients._pool_files import Trash

logger = logging.getLogger(__name__)

_COMMIT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFUSED = re.compile(
    r"Authentication failed|could not read (?:Username|Password)|returned error: 40[13]|Permission denied \(publickey"
)
_NOT_THERE = re.compile(
    r"not found|does not exist|does not appear to be a git repository|repository '.*' not", re.IGNORECASE
)
# What git and libcurl say of a URL that they do not even try.
_BAD_URL = re.compile(
    r"transport '.*' not allowed|protocol '.*' is not supported|[Uu]nsupported protocol|Protocol .* not supported|"
    r"URL using bad/illegal format|strange \w+ '.*' blocked|unable to find remote helper|no path specified"
)
_UNREACHABLE = re.compile(
    r"Could not resolve|unable to (?:look ?up|connect)|[Cc]ould(?: not|n't) connect|Failed to connect|"
    r"Connection (?:refused|reset|timed out|closed)|timed? ?out|No route to host|is unreachable|returned error: 5\d\d|"
    r"early EOF|remote end hung up|Could not read from remote repository|Empty reply|Temporary failure in name"
)
_NO_SUCH_REF = re.compile(r"couldn't find remote ref|not our ref")
# What steers git, and what holders' commands leave in the common folder of all worktrees (gitrepository-layout). A
# mirror needs none of it.
_NOT_IN_A_MIRROR = (
    "hooks", "info", "branches", "remotes", "rr-cache", "modules", "lost-found", "shallow", "commondir",
    "gitdir", "config.worktree", "objects/info/alternates", "objects/info/http-alternates", "gc.pid", "gc.log",
    "FETCH_HEAD", "ORIG_HEAD", "MERGE_HEAD",
)  # fmt: skip
_OURS = ("refs/remotes/origin/", "refs/necrocode/")
_RUNS = "refs/necrocode/runs/"


class Mirror:
    """``mirror.git`` in a pool's folder. ``url`` is what it mirrors."""

    def __init__(self, folder: Path, url: str, git: Git, trash: Trash) -> None:
        self._folder = folder
        self._url = url
        self._trash = trash
        self._fetches = SharedFetches(folder)
        self.repository = Repository(git, folder / "mirror.git", bare=True)

    @property
    def path(self) -> Path:
        """The bare repository."""
        return self.repository.path

    # --- fetching ---

    def fetch(self, base_ref: str | None, deadline: Deadline) -> tuple[str, int]:
        """The commit that ``base_ref`` (None: the remote's HEAD) is at now, and how many fetches this caller made."""
        try:
            self._ensure(deadline)
            fetches = self._fetch(("+refs/heads/*:refs/remotes/origin/*", f"+HEAD:{REMOTE_HEAD}"), deadline)
            base = self._commit(REMOTE_HEAD if base_ref is None else f"refs/remotes/origin/{base_ref}")
            if base is None and base_ref is not None:
                base, more = self._fetch_one(base_ref, deadline)
                fetches += more
        except GitError as error:
            raise self._explained(error) from error
        except RunnerTimeoutError as error:
            raise WorkspacePreparationError(
                f"Fetching {self._url} took longer than {deadline.total_seconds:g} seconds.",
                hint="Is it reachable? Else try again with a larger timeout.",
                status_code=503,
                retryable=True,
            ) from error
        if base is None:
            raise RepositoryNotFoundError(
                f"{self._url} has no branch, tag or commit {base_ref!r}.", hint="Check base_ref."
            )
        return base, fetches

    def known_head(self) -> str | None:
        """The commit that the remote's HEAD was at when it was last fetched."""
        return self._commit(REMOTE_HEAD) if self.path.is_dir() else None

    def _ensure(self, deadline: Deadline) -> None:
        if (self.path / "HEAD").exists():
            self.tend()
            return
        with locked_within(self._folder / "mirror.lock", deadline, doing="make a mirror"):
            if not (self.path / "HEAD").exists():
                self._create()

    def _create(self) -> None:
        # A name of its own: who holds the lock of a pool that was removed makes one here too, beside the new lock's.
        draft = self._folder / f"mirror-{secrets.token_hex(8)}.tmp"
        self.repository.git.run(["init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(draft)])
        write_whole(draft / "config", self._config())
        try:
            draft.rename(self.path)
        except OSError as error:
            self._trash.take(draft)
            if (self.path / "HEAD").exists():
                return
            raise WorkspacePreparationError(
                f"The mirror {self.path} is damaged and in the way of a new one ({error.strerror}).",
                hint="Move that folder away when no run is under way.",
            ) from error

    def _config(self) -> bytes:
        """The mirror's whole configuration (git-config(1), "Syntax": inside quotes only these two are escaped)."""
        url = self._url.replace("\\", "\\\\").replace('"', '\\"')
        core = "\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\tlogallrefupdates = false\n"
        return f'[core]\n{core}[remote "origin"]\n\turl = "{url}"\n'.encode()

    def _fetch(self, refspecs: tuple[str, ...], deadline: Deadline) -> int:
        options = ("--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", UPLOAD_PACK)
        argv = ("fetch", *options, "--", "origin", *refspecs)

        def fetch(lock: int) -> None:
            try:
                self.repository.run(*argv, network=True, deadline=deadline, pass_fds=(lock,))
            except GitError as error:
                if ".lock': File exists" not in error.output:
                    raise
                self.remove_stale_locks()
                self.repository.run(*argv, network=True, deadline=deadline, pass_fds=(lock,))

        return int(self._fetches.fetch(" ".join(refspecs), deadline, fetch))

    def remove_stale_locks(self) -> None:
        """What a killed fetch left behind; under ``fetch.lock`` nobody else writes these refs."""
        for pattern in ("*.lock", "refs/remotes/**/*.lock", "refs/necrocode/commits/*.lock",
                        "refs/necrocode/tags/**/*.lock", "refs/necrocode/*.lock"):  # fmt: skip
            for lock in self.path.glob(pattern):
                lock.unlink(missing_ok=True)

    def _fetch_one(self, base_ref: str, deadline: Deadline) -> tuple[str | None, int]:
        """A tag, or a commit that no branch reaches, by name. Tags are asked for anew each time, for they move."""
        if _COMMIT_ID.fullmatch(base_ref):
            found = self._commit(base_ref)
            if found is not None:
                return found, 0
            source, target = base_ref, f"refs/necrocode/commits/{base_ref}"
        else:
            # Not refs/tags: those could be a holder's own.
            source, target = f"refs/tags/{base_ref}", f"refs/necrocode/tags/{base_ref}"
        try:
            fetches = self._fetch((f"+{source}:{target}",), deadline)
        except GitError as error:
            if _NO_SUCH_REF.search(error.output):
                return None, 1
            raise
        return self._commit(target), fetches

    def _commit(self, name: str) -> str | None:
        """The commit that a ref or id means. A loose branch is read from its file, which spares a git process."""
        if name.startswith("refs/") and "/tags/" not in name:
            value = _read_text(self.path / name)
            if value is not None and _COMMIT_ID.fullmatch(value.strip()):
                return value.strip()
        with self.repository.objects() as objects:
            return objects.resolve(name)

    def _explained(self, error: GitError) -> RunnerError:
        if isinstance(error, RemoteRefusedError):
            return RepositoryNotFoundError(f"Cannot use {self._url}: {error}", hint=error.hint)
        if "couldn't find remote ref HEAD" in error.output:
            return RepositoryNotFoundError(f"{self._url} has no commit yet.", hint="Make a first commit there.")
        if _BAD_URL.search(error.output):
            return RepositoryNotFoundError(f"git cannot use the URL {self._url!r}: {error}", hint="Check repo_url.")
        if _NOT_THERE.search(error.output):
            return RepositoryNotFoundError(f"There is no repository at {self._url}: {error}", hint="Check repo_url.")
        if _REFUSED.search(error.output):
            return AuthenticationError(
                f"Cannot fetch {self._url}: {error}",
                hint=error.hint
                or "For https set GIT_TOKEN (it is sent over nothing else), for ssh a key that git finds.",
            )
        return WorkspacePreparationError(
            f"Cannot fetch {self._url}: {error}",
            hint=error.hint or "Is the host reachable from here?",
            status_code=503 if _UNREACHABLE.search(error.output) else None,
            retryable=True,
        )

    # --- worktrees ---

    def admin_folder(self, slot_id: str) -> Path:
        """Where git keeps HEAD and index of a slot's worktree."""
        return self.path / "worktrees" / slot_id

    def add_worktree(self, path: Path, base: str) -> None:
        """A worktree without files at ``path``, where nothing may be; HEAD is detached at ``base``.

        These are the files that "git worktree add" makes (gitrepository-layout, "worktrees"). That command fails when
        several run at once (on commondir, git 2.39), and shows a fetch that runs meanwhile a HEAD of zeros; here the
        whole folder appears at once.
        """
        admin, draft = self.admin_folder(path.name), self._folder / "drafts" / path.name
        for old in (draft, admin):
            self._trash.take(old)
        draft.mkdir(parents=True)
        (draft / "HEAD").write_text(f"{base}\n")
        (draft / "commondir").write_text("../..\n")
        (draft / "gitdir").write_text(f"{os.path.realpath(path.parent)}/{path.name}/.git\n")
        path.mkdir(parents=True)
        (path / ".git").write_text(f"gitdir: {os.path.realpath(self.path)}/worktrees/{path.name}\n")
        admin.parent.mkdir(exist_ok=True)
        draft.rename(admin)

    def prune_worktrees(self, deadline: Deadline) -> None:
        """Forget worktrees whose folders are gone, and what killed git processes left."""
        with locked_within(self._folder / "mirror.lock", deadline, doing="tidy up the mirror"):
            for draft in self._folder.glob("mirror*.tmp"):
                self._trash.take(draft)
            if self.path.is_dir():
                self.repository.run("worktree", "prune")

    # --- hygiene ---

    def tend(self) -> None:
        """Put back what steers git to what it was when the mirror was made."""
        expected = self._config()
        if _read_regular(self.path / "config") != expected:
            logger.warning("The configuration of %s was not ours; it is written anew.", self.path)
            self._trash.take(self.path / "config.tmp")
            if (self.path / "config").is_dir():
                self._trash.take(self.path / "config")
            write_whole(self.path / "config", expected)
        for name in _NOT_IN_A_MIRROR:
            if os.path.lexists(self.path / name):
                self._trash.take(self.path / name)

    def sweep(self, own_mark: Path, other_marks: Iterable[Path]) -> None:
        """Remove branches, tags, stashes and other refs that earlier holders made by hand.

        All worktrees share them. Whose one is cannot be told, so one written since a present holder came (the times of
        ``other_marks``) stays until that holder is gone. Branches that stand at the commit of a run stay for good:
        they are what runs without a push deliver.
        """
        others = [found.st_mtime_ns for mark in other_marks if (found := _lstat(mark)) is not None]
        before = min([own_mark.stat().st_mtime_ns + 1, *others])
        packed = _lstat(self.path / "packed-refs")
        strays = {name for name, written in self._loose_refs() if written < before}
        if packed is not None and packed.st_mtime_ns < before:
            strays |= {name for name in self._packed_refs() if not name.startswith(_OURS)}
        if strays and any(name.startswith("refs/heads/") for name in strays):
            strays -= self._delivered()
        for name in sorted(strays):
            (self.path / name).unlink(missing_ok=True)
        still = strays & self._packed_refs().keys() if packed is not None else set[str]()
        if still:
            self.repository.run("update-ref", "--stdin", stdin="".join(f"delete {ref}\n" for ref in still).encode())
        if not others:
            self._trash.take(self.path / "logs")  # a stash is there too
        if strays:
            logger.warning("Removed from %s what holders had left: %s", self.path, ", ".join(sorted(strays)[:20]))

    def _loose_refs(self) -> Iterator[tuple[str, int]]:
        """Files below ``refs`` that are not ours, lock files among them; and when each was written."""
        for parent, folders, files in os.walk(self.path / "refs"):
            place = f"{Path(parent).relative_to(self.path).as_posix()}/"
            folders[:] = [name for name in folders if not f"{place}{name}/".startswith(_OURS)]
            for name in (*files, *(name for name in folders if Path(parent, name).is_symlink())):
                found = _lstat(Path(parent, name))
                if found is not None:
                    yield f"{place}{name}", found.st_mtime_ns

    def _packed_refs(self) -> dict[str, str]:
        lines = (_read_text(self.path / "packed-refs") or "").splitlines()
        pairs = (line.split(" ", 1) for line in lines if line and line[0] not in "#^")
        return {pair[1]: pair[0] for pair in pairs if len(pair) > 1}

    def _delivered(self) -> set[str]:
        """Branches at a commit that a run has made."""
        listing = self.repository.run("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", _RUNS)
        refs = [line.split(" ", 1) for line in listing.decode(errors="surrogateescape").splitlines()]
        made = {oid for oid, name in refs if name.startswith(_RUNS)}
        return {name for oid, name in refs if oid in made}


def _read_regular(file: Path) -> bytes | None:
    """A file's bytes; None for what is none, links included."""
    found = _lstat(file)
    return file.read_bytes() if found is not None and stat.S_ISREG(found.st_mode) else None


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return None


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
