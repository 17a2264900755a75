"""One repository: a checkout or a bare one, and what is done in it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import current_deadline
from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git.apart import apart
from necrocode.agent_runner._git.door import DEFAULT_TIMEOUT_SECONDS, Git, end_process
from necrocode.agent_runner._git.failures import GitError, RemoteRefusedError, last_words
from necrocode.agent_runner._git.objects import ObjectReader, TreeEntry, commit_stream
from necrocode.agent_runner._git.pipes import OutputTooLongError, communicate
from necrocode.agent_runner._git.sizes import NAMES, NAMES_AND_SIZES, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from necrocode.agent_runner._git.objects import Author, FileChange

REMOTE_HEAD = "refs/necrocode/remote-head"
"""In a pool's mirror: where the remote's default branch was at the last fetch."""
# Said outright, or a remote's own settings could name other programs.
UPLOAD_PACK, RECEIVE_PACK = "--upload-pack=git-upload-pack", "--receive-pack=git-receive-pack"
_READS_OR_WRITES_FILES = frozenset(
    {"status", "reset", "checkout", "checkout-index", "add", "diff", "diff-index", "diff-files"}
)
_MOST_FILTER_BYTES = 100_000


@dataclass(frozen=True)
class Repository:
    """A git repository: a checkout at ``path``, or a bare one (then ``bare``)."""

    git: Git
    path: Path
    bare: bool = False

    @property
    def _where(self) -> list[str]:
        """Named outright: nothing is looked for further up, and ``core.worktree`` leads nowhere else."""
        return [f"--git-dir={self.path}"] if self.bare else ["-C", str(self.path), "--git-dir=.git", "--work-tree=."]

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        network: bool = False,
        deadline: Deadline | None = None,
        pass_fds: Sequence[int] = (),
    ) -> bytes:
        """Standard output of a git command in this repository.

        A command that uses the ``network`` names its remote after ``--``; :class:`RemoteRefusedError` if it may not.
        It has this repository's objects, but not its configuration, nor, unless it is ``bare``, its refs.
        """
        if network and not self.bare:
            return self._run_apart(argv, deadline, pass_fds)
        return self.git.run(
            [*self._where, *argv],
            stdin=stdin,
            address=self._own_address(argv, deadline) if network else None,
            config=self._no_filters(deadline) if argv[0] in _READS_OR_WRITES_FILES and not self.bare else {},
            deadline=deadline,
            pass_fds=pass_fds,
        )

    def fetch_commit(self, remote: str, ref: str, *, known: Sequence[str], deadline: Deadline | None = None) -> str:
        """Fetch what one ``ref`` of a remote is at, with its history; its id. No ref is written.

        ``known``: commits that are here with all their history.
        """
        seen = "refs/necrocode/seen"
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", UPLOAD_PACK)
        address = self.address(remote, deadline=deadline)
        with self._apart(deadline, known) as folder:
            where = _where_bare(folder)
            argv = [*where, "fetch", *options, "--", address, f"+{ref}:{seen}"]
            self.git.run(argv, address=address, deadline=deadline)
            return self.git.run([*where, "rev-parse", "--verify", seen], deadline=deadline).decode().strip()

    def check_remote(self, remote: str, *, deadline: Deadline | None = None) -> str:
        """The one URL or path that a push to this remote goes to, if it is allowed. Nothing is sent.

        :class:`RemoteRefusedError` if it is not.
        """
        address = self.address(remote, push=True, deadline=deadline)
        self.git.remotes.check(address)
        return address

    def address(self, remote: str, *, push: bool = False, deadline: Deadline | None = None) -> str:
        """What a remote's name stands for in the configuration, rewritten as git would; a URL or path is itself.

        ``RemoteRefusedError`` where a push would go to more than one place.
        """
        if set(":/") & set(remote):
            found = remote
        else:
            told = ("--push", "--all") if push else ()
            argv = [*self._where, "remote", "get-url", *told, "--", remote]
            found, *others = self.git.run(argv, deadline=deadline).decode(errors="replace").splitlines() or [""]
            if others:
                raise RemoteRefusedError(
                    f"The remote {remote} has several URLs to push to, and a branch is delivered to one place.",
                    hint="Give repo_url, or leave that remote one URL.",
                )
        is_relative = not found.startswith("/") and "://" not in found and self.git.remotes.check(found).is_local
        return str(self.path.absolute() / found) if is_relative else found

    def _run_apart(self, argv: Sequence[str], deadline: Deadline | None, pass_fds: Sequence[int]) -> bytes:
        place = argv.index("--") + 1
        address = self.address(argv[place], push=argv[0] == "push", deadline=deadline)
        with self._apart(deadline) as folder:
            command = [*_where_bare(folder), *argv[:place], address, *argv[place + 1 :]]
            return self.git.run(command, address=address, deadline=deadline, pass_fds=pass_fds)

    @contextmanager
    def _apart(self, deadline: Deadline | None, known: Sequence[str] = ()) -> Iterator[Path]:
        argv = [*self._where, "rev-parse", "--show-object-format", "--git-path", "objects"]
        told = self.git.run(argv, deadline=deadline).decode(errors="surrogateescape").removesuffix("\n")
        object_format, _, objects = told.partition("\n")
        top = (Path() if self.bare else self.path).absolute()
        with apart(self.git.home, top / objects, object_format, known) as folder:
            yield folder

    def _own_address(self, argv: Sequence[str], deadline: Deadline | None) -> str:
        """The URL or path that a command of a bare repository will talk to, its own rewriting of URLs included."""
        told = ("ls-remote", "--get-url", "--", argv[argv.index("--") + 1])
        return self.git.run([*self._where, *told], deadline=deadline).decode(errors="replace").strip()

    def _no_filters(self, deadline: Deadline | None) -> dict[str, str]:
        """Settings that turn off every filter driver which this repository's configuration has."""
        deadline = deadline or current_deadline() or Deadline(DEFAULT_TIMEOUT_SECONDS)
        found, is_cut = self.first_output(
            "config", "--null", "--name-only", "--get-regexp", r"^filter\.",
            limit_bytes=_MOST_FILTER_BYTES,
            seconds=deadline.check("look for filters"),
            cancellation=deadline.cancellation,
        )  # fmt: skip
        if is_cut:
            deadline.check("look for filters")
            raise GitError(f"The configuration of {self.path} names too many filters.", hint="Remove them.")
        keys = found.decode(errors="surrogateescape").split("\0")
        drivers = {key.partition(".")[2].rpartition(".")[0] for key in keys if key.count(".") > 1}
        return {
            f"filter.{driver}.{key}": value
            for driver in sorted(drivers)
            for key, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
        }

    def first_output(
        self, *argv: str, limit_bytes: int, seconds: float, cancellation: Cancellation | None = None
    ) -> tuple[bytes, bool]:
        """What a command prints at first, and whether it was stopped there: at the limit, or when its time was over.

        Exit code 1 without a word is no error: so ``grep`` says that there is nothing.
        """
        process = self.git.start([*self._where, *argv])
        output = bytearray()

        def take(piece: bytes) -> None:
            output.extend(piece)
            if len(output) >= limit_bytes:
                raise OutputTooLongError

        try:
            _, errors = communicate(process, b"", seconds, cancellation or Cancellation(), take)
        except (OutputTooLongError, TimeoutError):
            return bytes(output[:limit_bytes]), True
        finally:
            end_process(process)
        if process.returncode > 1 or errors:
            text = errors.decode(errors="replace").strip()
            raise GitError(f"git {argv[0]} failed: {last_words(text)}", output=text)
        return bytes(output), False

    def objects(self) -> ObjectReader:
        """A reader of this repository's objects: one git process, started at the first read."""
        return ObjectReader(str(self.path), lambda argv: self.git.start([*self._where, *argv]))

    def files(self, tree: str, *, deadline: Deadline | None = None) -> dict[str, tuple[TreeEntry, int]]:
        """Every file below a tree: path → (entry, size in bytes); symlinks included, submodules not."""
        listing = self.run("ls-tree", "-r", "-l", "-z", "--full-tree", tree, deadline=deadline)
        found: dict[str, tuple[TreeEntry, int]] = {}
        for record in filter(None, listing.split(b"\0")):
            header, _, path = record.partition(b"\t")
            mode, kind, oid, size = header.decode().split()
            if kind == "blob":
                found[path.decode(errors="surrogateescape")] = (TreeEntry(mode, oid), int(size))
        return found

    def check_size(self, commit: str, *, room_bytes: int | None = None, deadline: Deadline | None = None) -> None:
        """Return if the commit's files may be checked out, where there is room for so much; ``TreeTooLargeError``."""
        tally = Tally(commit, room_bytes)
        for argv, take in ((NAMES, tally.take_names), (NAMES_AND_SIZES, tally.take_sizes)):
            self.git.run([*self._where, *argv, commit], take=take, deadline=deadline)

    def write_commit(
        self,
        base: str,
        changes: Iterable[FileChange],
        *,
        ref: str,
        message: str,
        author: Author,
        deadline: Deadline | None = None,
    ) -> str:
        """Make a commit on top of ``base`` in the object store and point the new ``ref`` at it; its id.

        No file of any checkout is touched. The paths must have been checked: fast-import takes any.
        """
        stream = commit_stream(base, changes, ref=ref, message=message, author=author)
        argv = ("fast-import", "--quiet", "--date-format=raw")
        return self.run(*argv, stdin=stream, deadline=deadline).decode().strip()

    def diff(self, base: str, commit: str, *, deadline: Deadline | None = None) -> bytes:
        """The patch from one commit to another, which ``git apply`` takes; renames are shown as such."""
        options = (
            "-p",
            "-r",
            "-M",
            "--binary",
            "--full-index",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
        )
        return self.run("diff-tree", *options, base, commit, deadline=deadline)

    def move_ref(self, ref: str, commit: str, *, expected: str | None, deadline: Deadline | None = None) -> None:
        """Compare-and-swap: point ``ref`` at ``commit`` if it is now at ``expected`` (None: if it does not exist)."""
        old = expected if expected is not None else "0" * len(commit)
        self.run("update-ref", "--no-deref", ref, commit, old, deadline=deadline)

    def reset_hard(self, commit: str, *, deadline: Deadline | None = None) -> None:
        """Move a detached HEAD, index and files to ``commit``."""
        self.run("reset", "--hard", "--quiet", commit, deadline=deadline)

    def check_out(self, commit: str, *, deadline: Deadline | None = None) -> None:
        """Move HEAD, detached, index and files to ``commit``; a file that git does not track, ignored or not, stays.

        :class:`GitError` names the ones that are in the way; nothing has moved then.
        """
        self.run("checkout", "--quiet", "--no-overwrite-ignore", "--detach", commit, "--", deadline=deadline)

    def remove_untracked(self, *, deadline: Deadline | None = None) -> None:
        """Remove everything git does not track, ignored files and nested repositories included."""
        self.run("clean", "-ffdxq", deadline=deadline)


def _where_bare(folder: Path) -> list[str]:
    return ["-C", str(folder), "--git-dir=."]
