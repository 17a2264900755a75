"""What is in a git repository: entries of trees, changes to files, and objects read by one long-lived process."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Self

from necrocode.agent_runner._bounded import current_deadline
from necrocode.agent_runner._git.door import end_process
from necrocode.agent_runner._git.failures import GitError, ObjectTooLargeError, last_words
from necrocode.agent_runner._process import signal_group

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

MAX_OBJECT_BYTES = 100_000_000
MODE_FILE = "100644"
MODE_EXECUTABLE = "100755"
MODE_SYMLINK = "120000"
MODE_SUBMODULE = "160000"
MODE_TREE = "40000"


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


class ObjectReader:
    """Objects of one repository by any name git understands, through one long-lived ``cat-file --batch``."""

    def __init__(self, place: str, start: Callable[[Sequence[str]], subprocess.Popen[bytes]]) -> None:
        self._place = place
        self._start = start
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
            end_process(self._process)
            self._process = None

    def read(self, name: str) -> tuple[str, str, bytes] | None:
        """(id, type, content) of the object that ``name`` means; None when there is none."""
        if self._process is None:
            self._process = self._start(("cat-file", "--batch"))
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

    def _answer(
        self, process: subprocess.Popen[bytes], name: str, stdin: IO[bytes], stdout: IO[bytes]
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
            raise GitError(f"git cat-file failed: {last_words(words)}", output=words)
        if header.endswith((b" missing\n", b" ambiguous\n")):
            return None
        oid, kind, size = header.decode().split()
        if int(size) > MAX_OBJECT_BYTES:  # a few kilobytes of a pack can stand for gigabytes
            self.close()
            raise ObjectTooLargeError(f"The object {oid} has {size} bytes; at most {MAX_OBJECT_BYTES} are read.")
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
            raise GitError(f"commit {commit} is not in {self._place}")
        return found[0]

    def entries(self, tree: str) -> Mapping[str, TreeEntry]:
        """The direct entries of a tree, by name."""
        if tree not in self._trees:
            found = self.read(tree)
            try:
                self._trees[tree] = _parse_tree(found[2], len(tree) // 2) if found is not None else {}
            except ValueError as error:
                raise GitError(f"The tree {tree} in {self._place} is damaged.", hint="try: git fsck") from error
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
            raise GitError(f"object {oid} is not in {self._place}")
        return found[2]


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


def commit_stream(base: str, changes: Iterable[FileChange], *, ref: str, message: str, author: Author) -> bytes:
    """What ``git fast-import`` reads to make a commit on top of ``base``, point ``ref`` at it, and print its id."""
    signature = f"{author.name} <{author.email}> {author.when} +0000".encode()
    stream = bytearray(b"feature done\n")
    stream += b"commit %s\nmark :1\nauthor %s\ncommitter %s\n" % (ref.encode(), signature, signature)
    stream += _data(message.encode()) + b"from %s\n" % base.encode()
    for change in sorted(changes, key=lambda change: not change.removes):  # a file may give way to a directory
        stream += _fast_import_command(change)
    stream += b"get-mark :1\ndone\n"
    return bytes(stream)


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _fast_import_command(change: FileChange) -> bytes:
    quoted = b'"%s"' % change.path.encode(errors="surrogateescape").replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    if change.content is not None:
        return b"M %s inline %s\n%s" % (change.mode.encode(), quoted, _data(change.content))
    if change.oid is not None:
        return b"M %s %s %s\n" % (change.mode.encode(), change.oid.encode(), quoted)
    return b"D %s\n" % quoted
