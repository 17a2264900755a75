"""The client of an Artifact Store service."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._http import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_TIMEOUT_SECONDS,
    ServiceClient,
    ServiceHttp,
)
from necrocode.agent_runner.errors import (
    ArtifactNotFoundError,
    ArtifactUploadError,
    ServiceConnectionError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class ArtifactStoreClient(ServiceClient):
    """Artifacts over HTTP; the Protocol is ``ArtifactStore``. Safe for several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
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
        digest = hashlib.sha256(content).hexdigest()
        try:
            form = {
                "type": artifact_type.encode(),
                "metadata": json.dumps(dict(metadata or {}), ensure_ascii=False, default=str).encode(),
                "sha256": digest,
            }
        except (TypeError, ValueError) as error:
            raise ArtifactUploadError(f"The metadata of the artifact cannot be written as JSON: {error}.") from error
        try:
            answer = self._http.write("POST", "/artifacts", form=form, file=content)
        except ServiceConnectionError:
            raise
        except ServiceError as error:
            raise ArtifactUploadError(str(error), status_code=error.status_code, retryable=error.retryable) from error
        if not isinstance(answer, dict) or not isinstance(answer.get("uri"), str):
            raise ArtifactUploadError(f"The artifact store at {self._http.base_url} answered an upload without a URI.")
        said = (answer.get("sha256", digest), answer.get("size_bytes", len(content)))
        if said != (digest, len(content)):
            raise ArtifactUploadError(
                f"The artifact store has {said[1]} bytes with sha256 {said[0]} for the {artifact_type} artifact;"
                f" {len(content)} bytes with {digest} were sent."
            )
        uri: str = answer["uri"]
        return uri

    def ensure_available(self) -> None:
        """Return when the service answers; ``ServiceConnectionError`` when it cannot be reached."""
        try:
            self.health()
        except ArtifactNotFoundError:  # it answers, though it has no /health
            return

    def download(self, artifact_id: str) -> bytes:
        """An artifact's bytes, by its id; ``ArtifactNotFoundError``."""
        return self._http.get_bytes(f"/artifacts/{quote(artifact_id, safe='')}")
