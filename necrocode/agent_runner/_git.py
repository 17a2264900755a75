"""The only door to git: no other module starts it.

Every git process gets a built-up environment (nothing inherited but what is listed here), a HOME and a global
configuration of our own, no hooks, no prompts, no helper protocols, and a time limit. A token reaches git by askpass,
in the environment of the network commands alone.
"""

from __future__ import annotations

import configparser
import os
import secrets
import selectors
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from necrocode.agent_runner._bounded import current_deadline
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._process import end_group, kill_group, living, signal_group
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.errors import (
    RunnerError,
    RunnerTimeoutError,
    UnusableCheckoutError,
    WorkspacePreparationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    import git

    from necrocode.agent_runner._cancellation import Cancellation

DEFAULT_TIMEOUT_SECONDS = 600.0
_LOOK_SECONDS = 0.1  # how often it is looked whether a running git is to stop
MODE_FILE = "100644"
MODE_EXECUTABLE = "100755"
MODE_SYMLINK = "120000"
MODE_SUBMODULE = "160000"
MODE_TREE = "40000"
REMOTE_HEAD = "refs/necrocode/remote-head"
"""In a pool's mirror: where the remote's default branch was at the last fetch."""

# Variables of the caller that network commands need; all other inherited ones, every GIT_* among them, are dropped.
_NETWORK_VARIABLES = (
    "SSH_AUTH_SOCK", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH",
)  # fmt: skip
# Given by environment, so they outrank a repository's own configuration, and do not reach the far side of a push to a
# local path: that repository's hooks are its owner's business.
_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.attributesFile": os.devnull,
    "core.quotePath": "false",
    # A remote that has gone silent ends a transfer, even one whose starter has died.
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "120",
    "protocol.ext.allow": "never",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "transfer.credentialsInUrl": "die",
    "transfer.fsckObjects": "false",
    "fetch.writeCommitGraph": "false",
    "commit.gpgSign": "false",
    "advice.detachedHead": "false",
}
# A repository may belong to another user (a bind mount, a CI cache); its location was chosen by the operator.
_GLOBAL_CONFIG = "[safe]\n\tdirectory = *\n"
# git asks "Username for 'https://host': "; over plain http the token would go through the network in clear.
_ASKPASS = """#!/bin/sh
case "$1" in
*"'https://"*) ;;
*) exit 1 ;;
esac
case "$1" in
Username*) printf '%s\\n' "x-access-token" ;;
*) printf '%s\\n' "$NECROCODE_GIT_TOKEN" ;;
esac
"""


class GitError(RunnerError):
    """A git command failed; the text holds its last words. Steps translate it into their own error."""

    def __init__(self, message: str, *, output: str = "", retryable: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.output = output


@dataclass(frozen=True)
class Author:
    """Author and committer of a commit; ``when`` in seconds since 1970."""

    name: str
    email: str
    when: int


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a git tree: its mode in git's octal text, and the id of what it names."""

    mode: str
    oid: str

    @property
    def is_file(self) -> bool:
        """Whether it is an ordinary file, executable or not."""
        return self.mode in {MODE_FILE, MODE_EXECUTABLE}


@dataclass(frozen=True)
class FileChange:
    """What a commit does to one path: new bytes, an existing object, or (both None) removal."""

    path: str
    mode: str = MODE_FILE
    content: bytes | None = None
    oid: str | None = None

    @property
    def removes(self) -> bool:
        """Whether the path is gone afterwards."""
        return self.content is None and self.oid is None


@dataclass(frozen=True)
class Git:
    """git as this package starts it. ``home`` is a folder of our own; ``token`` is for https remotes."""

    home: Path
    token: str | None = field(default=None, repr=False)

    def prepare(self) -> None:
        """Lay out the private HOME; harmless when it is there already."""
        self.home.mkdir(parents=True, exist_ok=True)
        for name, content, mode in (("gitconfig", _GLOBAL_CONFIG, 0o600), ("askpass", _ASKPASS, 0o700)):
            file = self.home / name
            if not file.exists() or file.read_text() != content or stat.S_IMODE(file.stat().st_mode) != mode:
                draft = file.with_name(f"{name}.{secrets.token_hex(8)}.tmp")  # threads and processes prepare at once
                draft.write_text(content)
                draft.chmod(mode)
                draft.replace(file)

    def environment(self, *, network: bool) -> dict[str, str]:
        """The whole environment of a git process."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.home / "gitconfig"),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_DEFAULT_REF_FORMAT": "files",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
            "GIT_CONFIG_COUNT": str(len(_CONFIG)),
        }
        for number, (key, value) in enumerate(_CONFIG.items()):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        if network:
            environment |= {name: os.environ[name] for name in _NETWORK_VARIABLES if name in os.environ}
            environment["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes -oServerAliveInterval=30 -oServerAliveCountMax=4"
            if self.token:
                environment |= {"GIT_ASKPASS": str(self.home / "askpass"), "NECROCODE_GIT_TOKEN": self.token}
        return environment

    def start(
        self, argv: Sequence[str], *, network: bool = False, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start git with pipes on all three streams, in a session of its own, with these files left open."""
        try:
            return subprocess.Popen(  # noqa: S603  the door itself
                ["git", *argv],  # noqa: S607  found by PATH, as the user's own git is
                env=self.environment(network=network),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except FileNotFoundError as error:
            raise WorkspacePreparationError("git was not found.", hint="Install git and put it on the PATH.") from error

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        network: bool = False,
        deadline: Deadline | None = None,
        pass_fds: Sequence[int] = (),
    ) -> bytes:
        """Standard output of a git command; :class:`GitError` when it fails.

        ``deadline`` None: the one that this thread works under, or ten minutes. ``pass_fds``: locks that shall last
        until git has ended, should this process die before.
        """
        verb = next((word for word in argv if not word.startswith(("-", "/"))), "git")
        deadline = deadline or current_deadline() or Deadline(DEFAULT_TIMEOUT_SECONDS)
        timeout = deadline.check(f"run git {verb}")
        process = self.start(argv, network=network, pass_fds=pass_fds)
        try:
            with living(partial(signal_group, process, signal.SIGKILL)):
                output, errors = _communicate(process, stdin, timeout, deadline.cancellation)
        except subprocess.TimeoutExpired as error:
            raise RunnerTimeoutError(f"git {verb} was stopped after {timeout:g} seconds.") from error
        finally:
            if process.returncode is None:
                end_group(process)
            _end(process)
        if process.returncode != 0:
            text = Redactor((self.token or "",)).text((errors + output).decode(errors="replace")).strip()
            raise GitError(f"git {verb} failed: {_last_words(text)}", output=text)
        return output


@dataclass(frozen=True)
class Repository:
    """A git repository: a checkout at ``path``, or a bare one (then ``bare``)."""

    git: Git
    path: Path
    bare: bool = False

    @property
    def _where(self) -> list[str]:
        return [f"--git-dir={self.path}"] if self.bare else ["-C", str(self.path)]

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        network: bool = False,
        deadline: Deadline | None = None,
        pass_fds: Sequence[int] = (),
    ) -> bytes:
        """Standard output of a git command in this repository."""
        return self.git.run([*self._where, *argv], stdin=stdin, network=network, deadline=deadline, pass_fds=pass_fds)

    def first_output(
        self, *argv: str, limit_bytes: int, seconds: float, cancellation: Cancellation | None = None
    ) -> tuple[bytes, bool]:
        """What a command prints at first, and whether it was stopped there: at the limit, or when its time was over.

        Exit code 1 without a word is no error: so ``grep`` says that there is nothing.
        """
        process = self.git.start([*self._where, *argv])
        output, is_cut = bytearray(), False
        try:
            is_cut = not _read_until(process, output, limit_bytes, time.monotonic() + seconds, cancellation)
            if not is_cut:
                errors = process.stderr.read() if process.stderr is not None else b""
                if process.wait() > 1 or errors:
                    text = errors.decode(errors="replace").strip()
                    raise GitError(f"git {argv[0]} failed: {_last_words(text)}", output=text)
        finally:
            _end(process)
        return bytes(output), is_cut

    def objects(self) -> ObjectReader:
        """A reader of this repository's objects: one git process, started at the first read."""
        return ObjectReader(self)

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
        signature = f"{author.name} <{author.email}> {author.when} +0000".encode()
        stream = bytearray(b"feature done\n")
        stream += b"commit %s\nmark :1\nauthor %s\ncommitter %s\n" % (ref.encode(), signature, signature)
        stream += _data(message.encode()) + b"from %s\n" % base.encode()
        ordered = sorted(changes, key=lambda change: not change.removes)  # a file may give way to a directory
        for change in ordered:
            stream += _fast_import_command(change)
        stream += b"get-mark :1\ndone\n"
        argv = ("fast-import", "--quiet", "--date-format=raw")
        return self.run(*argv, stdin=bytes(stream), deadline=deadline).decode().strip()

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


class ObjectReader:
    """Objects of one repository by any name git understands, through one long-lived ``cat-file --batch``."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._process: subprocess.Popen[bytes] | None = None
        self._trees: dict[str, dict[str, TreeEntry]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the git process, if one was started."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def read(self, name: str) -> tuple[str, str, bytes] | None:
        """(id, type, content) of the object that ``name`` means; None when there is none."""
        if self._process is None:
            repository = self._repository
            self._process = repository.git.start([*repository._where, "cat-file", "--batch"])  # noqa: SLF001
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  start() asks for pipes
        assert stdout is not None  # noqa: S101
        deadline = current_deadline()
        if deadline is None:
            return self._answer(self._process, name, stdin, stdout)
        with deadline.cancellation.calling(partial(signal_group, self._process, signal.SIGKILL)):
            try:
                return self._answer(self._process, name, stdin, stdout)
            finally:
                if deadline.cancellation.is_requested:
                    self.close()
                    deadline.cancellation.check()

    @staticmethod
    def _answer(
        process: subprocess.Popen[bytes], name: str, stdin: IO[bytes], stdout: IO[bytes]
    ) -> tuple[str, str, bytes] | None:
        try:
            stdin.write(name.encode(errors="surrogateescape") + b"\n")
            stdin.flush()
            header = stdout.readline()
        except BrokenPipeError:
            header = b""
        if not header:
            stderr = process.stderr
            words = stderr.read().decode(errors="replace") if stderr is not None else ""
            raise GitError(f"git cat-file failed: {_last_words(words)}", output=words)
        if header.endswith((b" missing\n", b" ambiguous\n")):
            return None
        oid, kind, size = header.decode().split()
        content = stdout.read(int(size))
        stdout.read(1)
        return oid, kind, content

    def resolve(self, name: str) -> str | None:
        """The id of the commit that ``name`` means, tags followed; None when it means none."""
        found = self.read(f"{name}^{{commit}}")
        return found[0] if found is not None and found[1] == "commit" else None

    def tree_of(self, commit: str) -> str:
        """The id of a commit's tree."""
        found = self.read(f"{commit}^{{tree}}")
        if found is None:
            raise GitError(f"commit {commit} is not in {self._repository.path}")
        return found[0]

    def entries(self, tree: str) -> Mapping[str, TreeEntry]:
        """The direct entries of a tree, by name."""
        if tree not in self._trees:
            found = self.read(tree)
            self._trees[tree] = _parse_tree(found[2], len(tree) // 2) if found is not None else {}
        return self._trees[tree]

    def folder(self, tree: str, path: str) -> Mapping[str, TreeEntry]:
        """The entries of a folder below a tree; empty where there is no such folder."""
        for name in filter(None, path.split("/")):
            entry = self.entries(tree).get(name)
            if entry is None or entry.mode != MODE_TREE:
                return {}
            tree = entry.oid
        return self.entries(tree)

    def blob(self, oid: str) -> bytes:
        """A file's bytes."""
        found = self.read(oid)
        if found is None:
            raise GitError(f"object {oid} is not in {self._repository.path}")
        return found[2]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a git process that may have ended by itself, and close its pipes."""
    if process.returncode is None:
        kill_group(process)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):  # a question that a dead git was not there to read
                stream.close()


@dataclass(frozen=True)
class Checkout:
    """What can be told of a checkout without starting git."""

    root: Path
    origin_url: str | None
    head_branch: str | None


def open_checkout(path: Path) -> Checkout:
    """Look at a checkout that the caller brings; :class:`UnusableCheckoutError` when it is none."""
    import git  # noqa: PLC0415  100 ms, and only runs with a brought checkout need it

    try:
        with git.Repo(path) as repository:
            return _look_at(repository)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        problem = "is not the top of a git checkout" if os.path.isdir(path) else "does not exist"  # noqa: PTH112  Path's raises over a long name
        raise UnusableCheckoutError(
            f"The slot_path {path} {problem}.",
            hint="Name a git checkout, or give repo_url alone to have one made.",
        ) from error
    except (configparser.Error, OSError, ValueError) as error:  # what GitPython lets out over files it cannot read
        raise UnusableCheckoutError(
            f"The slot_path {path} cannot be read as a git checkout: {_one_line(error)}.",
            hint=f"try: git -C {path} status",
        ) from error


def _look_at(repository: git.Repo) -> Checkout:
    if repository.working_tree_dir is None:
        raise UnusableCheckoutError(
            f"The slot_path {repository.git_dir} is a bare repository.", hint="Give it as repo_url instead."
        )
    origin = next((remote.url for remote in repository.remotes if remote.name == "origin"), None)
    branch = None if repository.head.is_detached else repository.head.ref.name
    return Checkout(Path(repository.working_tree_dir), origin, branch)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _parse_tree(content: bytes, oid_size: int) -> dict[str, TreeEntry]:
    """A raw tree object: entries of ``<mode> <name>NUL<binary id>`` (git's tree.c)."""
    entries: dict[str, TreeEntry] = {}
    position = 0
    while position < len(content):
        space = content.index(b" ", position)
        end = content.index(b"\0", space)
        oid = content[end + 1 : end + 1 + oid_size].hex()
        entries[content[space + 1 : end].decode(errors="surrogateescape")] = TreeEntry(
            content[position:space].decode(), oid
        )
        position = end + 1 + oid_size
    return entries


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, seconds: float, cancellation: Cancellation
) -> tuple[bytes, bytes]:
    """Standard output and error of the process, once it has ended; ``TimeoutExpired`` and ``RunCancelledError``."""
    end, given = time.monotonic() + seconds, stdin or None
    while True:
        left = end - time.monotonic()
        try:
            return process.communicate(given, timeout=max(0.0, min(left, _LOOK_SECONDS)))
        except subprocess.TimeoutExpired:
            cancellation.check()
            if left <= _LOOK_SECONDS:
                raise
        given = None  # what is not written yet still is


def _read_until(
    process: subprocess.Popen[bytes],
    output: bytearray,
    limit_bytes: int,
    end: float,
    cancellation: Cancellation | None,
) -> bool:
    """Whether all that the process prints was read before the limit and the end, on the monotonic clock, came."""
    assert process.stdout is not None  # noqa: S101  start() asks for pipes
    descriptor = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(output) < limit_bytes:
            left = max(0.0, end - time.monotonic())
            ready = selector.select(min(left, _LOOK_SECONDS))
            if cancellation is not None:
                cancellation.check()
            if not ready:
                if left > _LOOK_SECONDS:
                    continue
                return False
            piece = os.read(descriptor, min(1 << 20, limit_bytes - len(output)))
            if not piece:
                return True
            output += piece
    return False


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _fast_import_command(change: FileChange) -> bytes:
    quoted = b'"%s"' % change.path.encode(errors="surrogateescape").replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    if change.content is not None:
        return b"M %s inline %s\n%s" % (change.mode.encode(), quoted, _data(change.content))
    if change.oid is not None:
        return b"M %s %s %s\n" % (change.mode.encode(), change.oid.encode(), quoted)
    return b"D %s\n" % quoted


_ADVICE = ("Please ", "Aborting")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    telling = [number for number, line in enumerate(lines) if line.startswith(("fatal:", "error:", "!", "remote:"))]
    kept = [lines[number] for number in telling[-3:]]
    if telling and kept[-1].endswith(":"):  # what it announces follows: the files in the way of a checkout
        kept += [line for line in lines[telling[-1] + 1 :] if not line.startswith(_ADVICE)][:3]
    return " / ".join(kept or lines[-3:]) or "it said nothing"
