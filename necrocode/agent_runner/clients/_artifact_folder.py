"""Artifact bytes in a folder. A draft becomes visible by a hard link, which never replaces another's file."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from necrocode.agent_runner.clients._artifact_blobs import CHUNK_BYTES, Blob
from necrocode.agent_runner.errors import ArtifactUploadError, ServiceError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DRAFTS = "+drafts"  # a part of a key never holds a plus: it would be %2B
_LOCKS = "+locks"
_LOCK_COUNT = 64
_MOST_TRIES = 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class FolderBlobs:
    """The ``Blobs`` of a folder; other processes may use it at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root).absolute()

    def ensure_available(self) -> None:
        """Make the folder; ``ArtifactUploadError`` when it cannot be written to."""
        with _writing(f"use the artifact folder {self._root}"):
            self._root.mkdir(parents=True, exist_ok=True)
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise ArtifactUploadError(f"Cannot write to the artifact folder {self._root}.")

    def named(self) -> str:
        """The folder."""
        return str(self._root)

    def uri(self, key: str) -> str:
        """``file:///…``."""
        return (self._root / key).as_uri()

    def key_of(self, uri: str) -> str | None:
        """The key of a ``file:`` URI inside the folder."""
        parts = urlsplit(uri)
        file = Path(os.path.normpath(unquote(parts.path)))
        if parts.scheme != "file" or not file.is_relative_to(self._root):
            return None
        return file.relative_to(self._root).as_posix()

    def draft(self, source: IO[bytes] | None = None) -> FolderDraft:  # noqa: ARG002  not needed
        """A file that nobody looks at."""
        with _writing(f"store an artifact in {self._root}"):
            return FolderDraft(self._root)

    def chunks(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        """The file's bytes."""
        try:
            stream = (self._root / key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyError(key) from error
        with stream, _reading(stream.name):
            stream.seek(start)
            left = stop - start if stop is not None else None
            while chunk := stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
                left = left - len(chunk) if left is not None else None
                yield chunk

    def read_small(self, key: str) -> bytes | None:
        """The whole file."""
        try:
            with _reading(str(self._root / key)):
                return (self._root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def write_small(self, key: str, content: bytes) -> None:
        """Write beside, then rename over."""
        file = self._root / key
        with _writing(f"write {file}"):
            draft = FolderDraft(self._root)
            try:
                draft.write(content)
                draft.replace(file)
            finally:
                draft.discard()

    def delete(self, key: str) -> None:
        """Remove the file, and the folders that it leaves empty."""
        file = self._root / key
        with _writing(f"delete {file}"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for folder in list(file.parents)[: key.count("/")]:
                folder.rmdir()

    def walk(self, prefix: str, after: str) -> Iterator[Blob]:
        """The files, folder by folder."""
        yield from self._walk(self._root / prefix, prefix, after)

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[Blob]:
        for name, entry in _sorted_entries(folder):
            key = prefix + name
            if not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if key > after:
                        yield Blob(key, status.st_size, status.st_mtime)
            elif key > after or after.startswith(key):
                yield from self._walk(folder / entry.name, key, after)

    @contextmanager
    def exclusive(self, folder: str) -> Iterator[None]:
        """A lock that the kernel gives back when its holder dies."""
        number = zlib.crc32(folder.encode()) % _LOCK_COUNT
        with _writing(f"lock the artifact folder {self._root}"):
            locks = self._root / _LOCKS
            locks.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(locks / f"{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def clear_drafts(self, *, before: float) -> int:
        """Remove old files that never became an artifact."""
        cleared = 0
        for _, entry in _sorted_entries(self._root / _DRAFTS):
            with suppress(FileNotFoundError):  # published meanwhile
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    Path(entry).unlink()
                    cleared += 1
        return cleared


class FolderDraft:
    """A file on its way."""

    source_bytes: int | None = None  # everything is copied in one pass

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = root / _DRAFTS / secrets.token_hex(16)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._file.open("xb", buffering=0)
        self._is_on_disk = False

    def write(self, chunk: bytes | memoryview) -> None:
        """Append to the file."""
        with _writing(f"store an artifact in {self._root}"):
            rest = memoryview(chunk)
            while rest:  # an unbuffered write may be short
                rest = rest[self._stream.write(rest) :]

    def publish(self, key: str, encoding: Literal["gzip"] | None) -> bool:  # noqa: ARG002  a file has no place for it
        """Link the file to its name."""
        file = self._root / key
        with _writing(f"store {file}"):
            self._settle()
            return _in_folder(self._root, file, lambda: _link(self._file, file))

    def replace(self, file: Path) -> None:
        """Rename the file over another, and have the folder itself on disk."""
        self._settle()
        _in_folder(self._root, file, lambda: _rename(self._file, file))
        _sync_folder(file.parent)

    def discard(self) -> None:
        """Remove the draft's own name."""
        self._stream.close()
        with suppress(OSError):  # swept later
            self._file.unlink(missing_ok=True)

    def _settle(self) -> None:
        if not self._is_on_disk:
            os.fsync(self._stream.fileno())
            self._is_on_disk = True


def _link(draft: Path, file: Path) -> bool:
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    return True


def _rename(draft: Path, file: Path) -> bool:
    draft.replace(file)
    return True


def _in_folder(root: Path, file: Path, work: Callable[[], bool]) -> bool:
    """Do something in a folder that a deletion may be removing at this moment."""
    for _ in range(_MOST_TRIES):
        try:
            return work()
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            for folder in reversed([one for one in file.parents if one.is_relative_to(root)]):
                _sync_folder(folder)
    return work()


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):  # it was empty and has been removed
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sorted_entries(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """The entries by name, folders with a slash: so whole keys come in their order. Ours are left out."""
    try:
        with os.scandir(folder) as entries:
            named = [(f"{one.name}/" if one.is_dir(follow_symlinks=False) else one.name, one) for one in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((pair for pair in named if not pair[0].startswith("+")), key=lambda pair: pair[0])


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise ServiceError(f"Cannot read {name}: {error.strerror or error}.") from error


@contextmanager
def _writing(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFullError(
                f"Cannot {doing}: {error.strerror}.", hint="Delete artifacts, or give the store more room."
            ) from error
        raise ArtifactUploadError(f"Cannot {doing}: {error.strerror or error}.") from error
