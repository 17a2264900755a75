"""The client of an Artifact Store service."""

from __future__ import annotations

import io
import json
import re
from contextlib import closing
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import ValidationError

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients import _artifact_names as names
from necrocode.agent_runner.clients._http import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_TIMEOUT_SECONDS,
    ServiceClient,
    ServiceHttp,
)
from necrocode.agent_runner.clients._upload_body import RewoundFile, UploadBody
from necrocode.agent_runner.errors import (
    ArtifactNotFoundError,
    ArtifactUploadError,
    ServiceConnectionError,
    ServiceError,
    StaleLeaseError,
    StorageFullError,
)
from necrocode.agent_runner.records import (
    ArtifactFilter,
    ArtifactPage,
    DeletedArtifacts,
    StorageUsage,
    StoredArtifact,
    SweepReport,
    UploadedArtifact,
    VerifyReport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeVar

    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

_TOUR_TIMEOUT_SECONDS = 3600.0
"""What goes through the whole store (sweep, verify, usage, deletions, searches) may take this long."""
_SLOWEST_BYTES_PER_SECOND = 2_000_000
_ALL = ArtifactFilter()
_ETAG = re.compile(r'"([0-9a-f]{64})"')


class ArtifactStoreClient(ServiceClient):
    """Artifacts over HTTP; the Protocol is ``ArtifactStore``. Safe for several threads.

    ``reference`` is an artifact's id or its URI.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._http = ServiceHttp(
            base_url,
            "artifact store",
            not_found=ArtifactNotFoundError,
            token=token,
            network_retry_count=network_retry_count,
            timeout_seconds=timeout_seconds,
            clock=clock,
        )

    def upload(self, artifact_type: str, content: bytes, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the bytes and get their URI. ``ArtifactUploadError`` when the service refuses or garbles them."""
        with io.BytesIO(content) as source:
            return str(self._upload(artifact_type, source, metadata, None, None)["uri"])

    def upload_stream(
        self,
        artifact_type: str,
        source: IO[bytes],
        metadata: Mapping[str, Any] | None = None,
        *,
        sha256: str | None = None,
        size_bytes: int | None = None,
    ) -> UploadedArtifact:
        """Store what a binary file holds from where it stands, without ever holding all of it in memory.

        A ``sha256`` or ``size_bytes`` that turns out otherwise: ``ArtifactUploadError``, and nothing is stored. A file
        that cannot be rewound is copied to a temporary one first, for the upload may have to be tried again.
        """
        return self._parsed(UploadedArtifact, self._upload(artifact_type, source, metadata, sha256, size_bytes))

    def _upload(
        self,
        artifact_type: str,
        source: IO[bytes],
        metadata: Mapping[str, Any] | None,
        sha256: str | None,
        size_bytes: int | None,
    ) -> dict[str, Any]:
        try:
            fields = {
                "type": artifact_type.encode(),
                "metadata": json.dumps(dict(metadata or {}), ensure_ascii=False, allow_nan=False, default=str).encode(),
            }
        except (TypeError, ValueError, RecursionError) as error:
            raise ArtifactUploadError(f"The metadata of the artifact cannot be written as JSON: {error}.") from error
        try:
            with closing(UploadBody(fields, source, sha256)) as body:
                _check_size(body, size_bytes)
                epoch = (metadata or {}).get("lease_epoch")
                answer = self._http.write(
                    "POST", "/artifacts", form=body, epoch=epoch, timeout_seconds=self._patience(body)
                )
                return self._checked(answer, body, artifact_type)
        except (ServiceConnectionError, StorageFullError, StaleLeaseError):
            raise
        except ServiceError as error:
            raise ArtifactUploadError(str(error), status_code=error.status_code, retryable=error.retryable) from error
        except OSError as error:
            raise ArtifactUploadError(f"The {artifact_type} artifact cannot be read: {error}.") from error

    def _patience(self, body: UploadBody) -> float:
        """Seconds for an answer, which comes when all is on disk."""
        return self._timeout_seconds + body.size_bytes / _SLOWEST_BYTES_PER_SECOND

    def _checked(self, answer: object, body: UploadBody, artifact_type: str) -> dict[str, Any]:
        if not isinstance(answer, dict) or not isinstance(answer.get("uri"), str):
            raise ArtifactUploadError(f"The artifact store at {self._http.base_url} answered an upload without a URI.")
        said = (answer.get("sha256", body.sha256), answer.get("size_bytes", body.size_bytes))
        if said != (body.sha256, body.size_bytes):
            raise ArtifactUploadError(
                f"The artifact store has {said[1]} bytes with sha256 {said[0]} for the {artifact_type} artifact;"
                f" {body.size_bytes} bytes with {body.sha256} were sent."
            )
        known = {"artifact_id": names.id_in(answer["uri"]), "sha256": body.sha256, "size_bytes": body.size_bytes}
        return known | answer

    def ensure_available(self) -> None:
        """Return when the service answers; ``ServiceConnectionError`` when it cannot be reached."""
        try:
            self.health()
        except ArtifactNotFoundError:  # it answers, though it has no /health
            return

    def download(self, reference: str) -> bytes:
        """An artifact's bytes, checked against the hash that the service names; ``ArtifactNotFoundError``."""
        with io.BytesIO() as target:
            self.download_to(reference, target)
            return target.getvalue()

    def download_to(self, reference: str, target: IO[bytes]) -> None:
        """Write an artifact's bytes to a binary file, piece by piece; after an error it holds only a part of them.

        When the connection breaks, a file that can be rewound is written again from where it stood.
        """
        written = RewoundFile(target)
        headers = self._http.get_into(f"/artifacts/{_segment(reference)}", written)
        named = _ETAG.fullmatch(headers.get("ETag", ""))
        if named is not None and named.group(1) != written.sha256:
            raise ServiceError(
                f"The artifact {reference} came with the sha256 {written.sha256} where the service at"
                f" {self._http.base_url} names {named.group(1)}.",
                retryable=True,
            )

    def find(self, wanted: ArtifactFilter = _ALL, *, limit: int = 100, cursor: str | None = None) -> ArtifactPage:
        """The artifacts that fit, in a stable order, at most ``limit`` (1 to 1000) of them from ``cursor`` on."""
        params = _query(wanted) | {"limit": limit} | ({"cursor": cursor} if cursor is not None else {})
        answer = self._http.get("/artifacts", params=params, timeout_seconds=_TOUR_TIMEOUT_SECONDS)
        return self._parsed(ArtifactPage, answer)

    def walk(self, wanted: ArtifactFilter = _ALL) -> Iterator[StoredArtifact]:
        """All artifacts that fit, page by page."""
        cursor = None
        while True:
            page = self.find(wanted, limit=1000, cursor=cursor)
            yield from page.items
            if (cursor := page.next_cursor) is None:
                return

    def tag(self, reference: str, tags: Sequence[str]) -> StoredArtifact:
        """Replace an artifact's tags; ``keep`` keeps it from being swept."""
        path = f"/artifacts/{_segment(reference)}/tags"
        return self._parsed(StoredArtifact, self._http.write("PUT", path, json_body={"tags": list(tags)}))

    def delete(self, reference: str) -> DeletedArtifacts:
        """Delete one artifact; ``ArtifactNotFoundError``."""
        return self._parsed(DeletedArtifacts, self._http.write("DELETE", f"/artifacts/{_segment(reference)}"))

    def delete_matching(self, wanted: ArtifactFilter) -> DeletedArtifacts:
        """Delete the artifacts that fit; a filter that says nothing is refused."""
        return self._tour(DeletedArtifacts, "DELETE", "/artifacts", wanted)

    def usage(self) -> StorageUsage:
        """What is stored, by spec and by type, and the quota."""
        return self._parsed(StorageUsage, self._http.get("/usage", timeout_seconds=_TOUR_TIMEOUT_SECONDS))

    def sweep(self) -> SweepReport:
        """Delete what is older than its type is kept, and leftovers of dead uploads."""
        return self._tour(SweepReport, "POST", "/retention/sweep", _ALL)

    def verify(self, wanted: ArtifactFilter = _ALL) -> VerifyReport:
        """Have the artifacts that fit read and re-hashed. Nothing is changed."""
        return self._tour(VerifyReport, "POST", "/verify", wanted)

    def export(self, target: IO[bytes], wanted: ArtifactFilter = _ALL) -> None:
        """Write a zip archive of the artifacts that fit to a binary file, with ``metadata.json``, which lists them."""
        self._http.get_into("/export.zip", RewoundFile(target), params=_query(wanted))

    def _tour(self, model: type[Model], method: str, path: str, wanted: ArtifactFilter) -> Model:
        answer = self._http.write(method, path, params=_query(wanted), timeout_seconds=_TOUR_TIMEOUT_SECONDS)
        return self._parsed(model, answer)

    def _parsed(self, model: type[Model], answer: object) -> Model:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise ServiceError(
                f"The artifact store at {self._http.base_url} answered something that is no {model.__name__}:"
                f" {error.error_count()} fields do not fit."
            ) from error


def _check_size(body: UploadBody, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes != body.size_bytes:
        raise ArtifactUploadError(
            f"There are {body.size_bytes} bytes where {size_bytes} were announced; nothing was sent.", status_code=422
        )


def _query(wanted: ArtifactFilter) -> dict[str, Any]:
    return wanted.model_dump(mode="json", exclude_none=True)


def _segment(reference: str) -> str:
    return quote(names.id_in(reference), safe="")
