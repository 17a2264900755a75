"""Artifact bytes in an S3 bucket. The one module that needs boto3, and it is imported by those who use S3 alone.

Nothing is overwritten: uploads are conditional (``If-None-Match: *``; AWS S3 user guide, "Conditional writes"), and a
service that does not know the condition is asked beforehand whether the key is free. Retries are botocore's own.
"""

from __future__ import annotations

import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config

from necrocode.agent_runner.clients._artifact_blobs import CHUNK_BYTES, Blob
from necrocode.agent_runner.clients._artifact_s3_draft import PART_BYTES, OpenFile, S3Draft
from necrocode.agent_runner.errors import (
    ArtifactUploadError,
    AuthenticationError,
    RunnerError,
    ServiceConnectionError,
    ServiceError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_PARTS = 10_000  # of one upload (AWS S3 user guide, "Amazon S3 multipart upload limits")
_PARTS_AT_ONCE = 4  # each costs about 2 MB of memory
_LOCK_COUNT = 256
_MOST_CONFLICTS = 5
_FREE = frozenset({"404", "NoSuchKey", "NotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed"})
_CONFLICT = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})
_UNCONDITIONAL = frozenset({"501", "NotImplemented"})
_DENIED = frozenset({"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_NO_ROOM = frozenset({"507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"})


class S3Blobs:
    """The ``Blobs`` of ``s3://bucket/prefix``.

    ``exclusive`` reaches as far as this object: two processes that store the same artifact at the same moment may make
    two versions of it. A draft larger than 1 MiB is kept in ``spool_dir``, under no name, until it is uploaded.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint_url: str | None,
        network_retry_count: int,
        timeout_seconds: float,
        spool_dir: Path | None,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._spool_dir = Path(spool_dir or tempfile.gettempdir())
        self._locks = [threading.Lock() for _ in range(_LOCK_COUNT)]
        self._is_conditional = True
        config = Config(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": network_retry_count + 1},
            max_pool_connections=32,
        )
        with self._calling("look"):
            self._client: Any = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)

    def ensure_available(self) -> None:
        """Ask for the bucket."""
        with self._calling("look"):
            self._client.head_bucket(Bucket=self._bucket)

    def named(self) -> str:
        """The bucket and prefix."""
        return f"s3://{self._bucket}/{self._prefix}"

    def uri(self, key: str) -> str:
        """``s3://…``, exactly as the object is called."""
        return f"s3://{self._bucket}/{self._object(key)}"

    def key_of(self, uri: str) -> str | None:
        """The key of an ``s3:`` URI under the prefix."""
        start = self.uri("")
        return _key(uri.removeprefix(start)) if uri.startswith(start) else None

    def draft(self, source: IO[bytes] | None = None) -> S3Draft:
        """In memory as long as it is small, then in a file that has no name, or where ``source`` has it."""
        return S3Draft(self, self._spool_dir, source)

    def chunks(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        """The object's bytes, as they come."""
        if stop is not None and stop <= start:
            yield from ()
            return
        wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        try:
            with self._calling(f"read {key}"):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._object(key), **wanted)
                with closing(answer["Body"]) as body:  # who stops early gives the connection back
                    yield from body.iter_chunks(CHUNK_BYTES)
        except _FreeKeyError as error:
            raise KeyError(key) from error

    def read_small(self, key: str) -> bytes | None:
        """The whole object."""
        try:
            with self._calling(f"read {key}"):
                content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._object(key))["Body"].read()
                return content
        except _FreeKeyError:
            return None

    def write_small(self, key: str, content: bytes) -> None:
        """One request."""
        with self._calling(f"write {key}"):
            self._client.put_object(
                Bucket=self._bucket, Key=self._object(key), Body=content, ContentType="application/json"
            )

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._calling(f"delete {key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._object(key))

    def walk(self, prefix: str, after: str) -> Iterator[Blob]:
        """The bucket's own listing, which is in this order."""
        start = {"StartAfter": self._object(after)} if after else {}
        with self._calling(f"list {prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._object(prefix), **start
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = _key(found["Key"][len(self._prefix) :])
                    yield Blob(key, found["Size"], found["LastModified"].timestamp())

    @contextmanager
    def exclusive(self, folder: str) -> Iterator[None]:
        """A lock of this process."""
        with self._locks[zlib.crc32(folder.encode()) % _LOCK_COUNT]:
            yield

    def clear_drafts(self, *, before: float) -> int:
        """Abort old multipart uploads under the prefix."""
        cleared = 0
        with self._calling("list unfinished uploads"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for upload in [one for page in pages for one in page.get("Uploads", ())]:
                if upload["Initiated"].timestamp() < before:
                    self._abort(upload["Key"], upload["UploadId"])
                    cleared += 1
        return cleared

    def put_new(self, key: str, size: int, send: Callable[[str, dict[str, str]], None]) -> bool:
        """Have ``send`` put an object where there is none, and see that it is whole; False when there is one."""
        for attempt in range(_MOST_CONFLICTS):
            if not self._is_conditional and self._size(key) is not None:
                return False
            condition = {"IfNoneMatch": "*"} if self._is_conditional else {}
            try:
                with self._calling(f"store {key}"):
                    send(self._object(key), condition)
            except _TakenError:
                return False
            except _ConflictError:
                if attempt == _MOST_CONFLICTS - 1:
                    raise
            except _UnconditionalError:
                self._is_conditional = False
            else:
                self._check_size(key, size)
                return True
        raise ServiceError(f"{self.named()} kept refusing to store {key}.")  # pragma: no cover - five conflicts

    def put(self, name: str, body: object, options: dict[str, str]) -> None:
        """One request for a small object."""
        self._client.put_object(Bucket=self._bucket, Key=name, Body=body, **options)

    def put_parts(self, name: str, file: OpenFile, headers: dict[str, str], condition: dict[str, str]) -> None:
        """A multipart upload, aborted when anything goes wrong."""
        # Checksums as s3transfer does it, unless the caller's AWS settings say that the service knows none.
        knows_checksums = self._client.meta.config.request_checksum_calculation == "when_supported"
        checked = {"ChecksumAlgorithm": "CRC32"} if knows_checksums else {}
        target = {"Bucket": self._bucket, "Key": name}
        upload_id = self._client.create_multipart_upload(**target, **headers, **checked)["UploadId"]
        length = max(PART_BYTES, -(-file.size // _MOST_PARTS))

        def send(index: int) -> dict[str, Any]:
            number = {"PartNumber": index + 1}
            with file.part(index * length, length) as part:
                sent = self._client.upload_part(**target, **number, **checked, UploadId=upload_id, Body=part)
            return number | {name: sent[name] for name in ("ETag", "ChecksumCRC32") if name in sent}

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE, "s3-part") as pool:
                parts = {"Parts": list(pool.map(send, range(-(-file.size // length))))}
            self._client.complete_multipart_upload(**target, UploadId=upload_id, MultipartUpload=parts, **condition)
        except BaseException:
            self._abort(name, upload_id)
            raise

    def _abort(self, name: str, upload_id: str) -> None:
        with suppress(boto_errors.BotoCoreError, boto_errors.ClientError):  # swept later
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload_id)

    def _check_size(self, key: str, size: int) -> None:
        found = self._size(key)
        if found != size:
            self.delete(key)
            raise ArtifactUploadError(f"{self.named()} kept {found} of {size} bytes of {key}.", retryable=True)

    def _size(self, key: str) -> int | None:
        try:
            with self._calling(f"look at {key}"):
                size: int = self._client.head_object(Bucket=self._bucket, Key=self._object(key))["ContentLength"]
                return size
        except _FreeKeyError:
            return None

    def _object(self, key: str) -> str:
        return self._prefix + key.replace(" ", "%20")  # a space would need quoting in a URI; no key holds "%20" itself

    @contextmanager
    def _calling(self, doing: str) -> Iterator[None]:
        try:
            yield
        except boto_errors.ClientError as error:
            raise self._refusal(error, doing) from error
        except boto_errors.NoCredentialsError as error:
            raise AuthenticationError(
                f"There are no credentials for {self.named()}.", hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        except (boto_errors.ConnectionError, boto_errors.HTTPClientError) as error:
            raise ServiceConnectionError(
                f"Cannot {doing} in {self.named()}: {error}", hint="Check the endpoint (AWS_ENDPOINT_URL)."
            ) from error
        except boto_errors.BotoCoreError as error:
            raise ServiceError(f"Cannot {doing} in {self.named()}: {error}") from error

    def _refusal(self, error: boto_errors.ClientError, doing: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        for codes, kind in _SIGNALS:
            if code in codes:
                return kind(f"Cannot {doing} in {self.named()}: {error}")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return ServiceError(f"Cannot {doing} in {self.named()}: {error}", retryable=bool(status and status >= 500))  # noqa: PLR2004  RFC 9110


class _FreeKeyError(ServiceError):
    """There is no such object."""


class _TakenError(ServiceError):
    """There is an object already."""


class _ConflictError(ServiceError):
    """Another write to the same key is under way."""


class _UnconditionalError(ServiceError):
    """The service knows no conditional writes."""


_SIGNALS: tuple[tuple[frozenset[str], type[RunnerError]], ...] = (
    (_FREE, _FreeKeyError),
    (_TAKEN, _TakenError),
    (_CONFLICT, _ConflictError),
    (_UNCONDITIONAL, _UnconditionalError),
    (_DENIED, AuthenticationError),
    (_NO_ROOM, StorageFullError),
)


def _key(name: str) -> str:
    return name.replace("%20", " ")
