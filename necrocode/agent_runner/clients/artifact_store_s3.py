"""An artifact store in an S3 bucket. Needs the extra ``necrocode[s3]``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore
from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from necrocode.agent_runner.clients._artifact_blobs import Blobs

_DEFAULT_RETRY_COUNT = 3
_DEFAULT_TIMEOUT_SECONDS = 30.0


class S3ArtifactStore(SidecarArtifactStore):
    """Artifacts as S3 objects; the Protocol is :class:`~necrocode.agent_runner.ArtifactStore`.

    ``url`` is ``s3://bucket/prefix``, and URIs are ``s3://bucket/prefix/{spec}/{task}/{run_id}/{name}``. Credentials,
    region and, where ``endpoint_url`` is None, the endpoint (``AWS_ENDPOINT_URL``) come from where boto3 finds them.
    Uploads larger than 1 MiB wait in ``spool_dir`` (None: the system's folder for temporary files) until they are
    whole, except where they come from a file on disk. ``ConfigurationError`` when the URL is no S3 URL, or boto3 is
    not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        network_retry_count: int = _DEFAULT_RETRY_COUNT,
        timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
        spool_dir: Path | None = None,
        compress: bool = False,
        quota_bytes: int | None = None,
        retention_days: Mapping[str, float] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            _blobs(url, endpoint_url, network_retry_count, timeout_seconds, spool_dir),
            compress=compress,
            quota_bytes=quota_bytes,
            retention_days=retention_days,
            clock=clock,
        )


def _blobs(
    url: str, endpoint_url: str | None, network_retry_count: int, timeout_seconds: float, spool_dir: Path | None
) -> Blobs:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(f"The artifact store URL {url!r} must be s3://bucket or s3://bucket/prefix.")
    try:
        from necrocode.agent_runner.clients._artifact_s3 import S3Blobs  # noqa: PLC0415  boto3 is an extra, and slow
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"An artifact store on S3 needs {error.name}.", hint="Install it with: pip install 'necrocode[s3]'"
        ) from error
    return S3Blobs(
        parts.netloc,
        parts.path,
        endpoint_url=endpoint_url,
        network_retry_count=network_retry_count,
        timeout_seconds=timeout_seconds,
        spool_dir=spool_dir,
    )
