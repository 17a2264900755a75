"""The embedded artifact store: a folder, ``{spec}/{task}/{run_id}/{name}``, with a ``.json`` beside each artifact."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.errors import ArtifactNotFoundError, ArtifactUploadError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE_NAMES = {"diff": "diff.patch", "log": "log.txt", "test": "test.json", "transcript": "transcript.json"}
_MOST_VERSIONS = 10_000


class LocalArtifactStore:
    """Artifacts as files; the Protocol is :class:`~necrocode.agent_runner.ArtifactStore`. Safe for many processes.

    An artifact is visible only when it is whole and on disk. URIs are ``file:///…``.
    """

    def __init__(self, root: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._root = Path(root).absolute()
        self._clock = clock

    def upload(self, artifact_type: str, content: bytes, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the bytes; ``ArtifactUploadError`` when the disk refuses them.

        The same content under the same type, task and run gets the URI it already has; other content a further one.
        """
        details = dict(metadata or {})
        digest = hashlib.sha256(content).hexdigest()
        try:
            parts = [_component(details.get(key), f"no-{key}") for key in ("spec_name", "task_id", "run_id")]
            name = _FILE_NAMES.get(artifact_type, f"{_component(artifact_type, 'artifact')}.bin")
            description = self._description(artifact_type, details, digest, len(content))
        except (TypeError, ValueError) as error:
            raise ArtifactUploadError(
                f"The metadata of the artifact cannot be written as JSON: {error}.", status_code=400
            ) from error
        folder = self._root.joinpath(*parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = self._store(folder, name, content, digest)
            _replace_durably(_sidecar(file), description)
        except OSError as error:
            raise ArtifactUploadError(
                f"Cannot store the {artifact_type} artifact in {folder}: {error.strerror}."
            ) from error
        return file.as_uri()

    def ensure_available(self) -> None:
        """Make the store's folder; ``ArtifactUploadError`` when it cannot be written to."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactUploadError(f"Cannot use the artifact folder {self._root}: {error.strerror}.") from error
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise ArtifactUploadError(f"Cannot write to the artifact folder {self._root}.")

    def download(self, uri: str) -> bytes:
        """An artifact's bytes, checked against the sha256 that they were stored with."""
        file = self._file_of(uri)
        try:
            content = file.read_bytes()
            described = json.loads(_sidecar(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactNotFoundError(f"The artifact store has no artifact {uri}.", status_code=404) from error
        if hashlib.sha256(content).hexdigest() != described.get("sha256"):
            raise ArtifactNotFoundError(f"The artifact {uri} is damaged: its sha256 differs.", status_code=500)
        return content

    def _file_of(self, uri: str) -> Path:
        parts = urlsplit(uri)
        file = Path(os.path.normpath(unquote(parts.path)))
        if parts.scheme != "file" or not file.is_relative_to(self._root):
            raise ArtifactNotFoundError(f"{uri} is no artifact of the store in {self._root}.", status_code=404)
        return file

    @staticmethod
    def _store(folder: Path, name: str, content: bytes, digest: str) -> Path:
        draft = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            _write_durably(draft, content)
            stem, dot, ending = name.partition(".")
            for version in range(1, _MOST_VERSIONS):
                file = folder / (name if version == 1 else f"{stem}-{version}{dot}{ending}")
                try:
                    os.link(draft, file)  # unlike a rename, this never replaces another's artifact
                except FileExistsError:
                    if hashlib.sha256(file.read_bytes()).hexdigest() == digest:
                        return file
                else:
                    return file
            raise ArtifactUploadError(f"{folder} holds {_MOST_VERSIONS} versions of {name}.")
        finally:
            draft.unlink(missing_ok=True)

    def _description(self, artifact_type: str, metadata: dict[str, Any], digest: str, size: int) -> bytes:
        described = {
            "type": artifact_type,
            "sha256": digest,
            "size_bytes": size,
            "created_at": self._clock.now().isoformat(),
            "metadata": metadata,
        }
        return json.dumps(described, ensure_ascii=False, indent=1, default=str).encode()


def _component(value: object, fallback: str) -> str:
    """A name as one path component: any text, in a form that no file system reads as something else."""
    text = quote(str(value), safe="-_.~ ") if value not in {None, ""} else fallback
    return text.replace(".", "%2E") if set(text) == {"."} else text[:200]


def _sidecar(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _replace_durably(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{secrets.token_hex(8)}.tmp")
    _write_durably(draft, content)
    draft.replace(file)


def _write_durably(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
