"""The Artifact Store service: the artifact store of a folder or a bucket, over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from necrocode.agent_runner.errors import RunnerError
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
from necrocode.services import _byte_ranges as ranges
from necrocode.services._app import Service
from necrocode.services._headers import IdempotencyKey
from necrocode.services._idempotency import AnsweredWrites
from necrocode.services._moments import Moment
from necrocode.services._problems import problem, problems
from necrocode.services._upload_form import UploadForm

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

CAPABILITIES = ("delete", "export", "ranges", "retention", "search", "tags", "usage", "verify")
DEFAULT_MAX_UPLOAD_BYTES = 8 << 30
_FORM_ROOM_BYTES = 2 << 20  # what a form may hold besides the file
_BATCH_BYTES = 1 << 20
_TRANSFERS_AT_ONCE = 32
_TOURS_AT_ONCE = 4
_MOST_TAGS = 50
_FILTERS = frozenset(ArtifactFilter.model_fields)

# Another way to say the metadata's lease_epoch, for those who send the header with every write; the schema tells one.
LeaseEpoch = Annotated[int | None, Header(alias="X-Lease-Epoch", ge=0, le=2**62, include_in_schema=False)]
ArtifactId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]+$", max_length=1400)]
_BINARY: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "type"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "type": {"type": "string", "description": "`diff`, `log`, `test`, `transcript` …"},
                        "metadata": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "A JSON object; `spec_name`, `task_id` and `run_id` place the artifact.",
                        },
                        "sha256": {"type": "string", "description": "Checked, where it is given."},
                    },
                }
            }
        },
    }
}


class Tags(BaseModel):
    """The tags that an artifact shall have."""

    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(max_length=_MOST_TAGS)


def artifact_store_service(
    store: SidecarArtifactStore,
    *,
    answers_file: pathlib.Path,
    public_url: str | None = None,
    sweep_every_seconds: float | None = None,
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES,
) -> Service:
    """The service over a store. ``answers_file`` keeps what writes were answered, by ``Idempotency-Key``.

    Of a store in a bucket the URIs are ``s3://…``; of one in a folder ``{public_url}/artifacts/{id}``, where None as
    ``public_url`` means: as the caller reached the service. ``sweep_every_seconds`` None: sweep only when asked to.
    """
    stopping = asyncio.Event()
    metrics = CollectorRegistry()
    routes = _Routes(store, AnsweredWrites(answers_file), public_url, metrics)
    sweeps: list[asyncio.Task[None]] = []

    async def start() -> None:
        await routes.prepare()
        await routes.check()  # a bucket or folder that is not there ends the service before it listens for nothing
        if sweep_every_seconds is not None:
            sweeps.append(asyncio.create_task(_sweep_regularly(routes, sweep_every_seconds, stopping)))

    async def close() -> None:
        stopping.set()
        await asyncio.gather(*sweeps)

    return Service(
        name="artifact-store",
        title="Artifact Store",
        capabilities=CAPABILITIES,
        router=routes.router(),
        check=routes.check,
        start=start,
        close=close,
        max_body_bytes=max_upload_bytes + _FORM_ROOM_BYTES,
        metrics=metrics,
        stopping=stopping,
    )


async def _sweep_regularly(routes: _Routes, every_seconds: float, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            report = await routes.sweep()
            logger.info("swept: %d artifacts, %d bytes, %d leftovers", *report.model_dump().values())
        except RunnerError as error:
            logger.warning("the sweep failed and is tried again later: %s", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), every_seconds)


async def _wanted(
    request: Request,
    *,
    spec_name: str | None = None,
    task_id: str | None = None,
    run_id: str | None = None,
    type: str | None = None,  # noqa: A002  its name on the wire
    tag: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> ArtifactFilter:
    """The filter in a query. An unknown name is refused: a filter that is misspelt would mean more than was meant."""
    known = _FILTERS | {"limit", "cursor"} if request.method == "GET" else _FILTERS
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise RequestValidationError(
            [{"loc": ("query", name), "msg": "is not known", "type": "extra_forbidden"} for name in unknown]
        )
    return ArtifactFilter(
        spec_name=spec_name, task_id=task_id, run_id=run_id, type=type, tag=tag, since=since, until=until
    )


Wanted = Annotated[ArtifactFilter, Depends(_wanted)]


class _Routes:
    """The calls. What blocks runs in threads: many for transfers, few for what goes through the whole store."""

    def __init__(
        self, store: SidecarArtifactStore, answered: AnsweredWrites, public_url: str | None, metrics: CollectorRegistry
    ) -> None:
        self._store = store
        self._answered = answered
        self._public_url = public_url.rstrip("/") if public_url else None
        self._transfers = anyio.CapacityLimiter(_TRANSFERS_AT_ONCE)
        self._tours = anyio.CapacityLimiter(_TOURS_AT_ONCE)
        self._uploads = Counter("necrocode_artifact_uploads", "Artifacts taken in", registry=metrics)
        self._uploaded = Counter("necrocode_artifact_uploaded_bytes", "Bytes of them", registry=metrics)
        self._downloads = Counter("necrocode_artifact_downloads", "Artifacts, or parts, given out", registry=metrics)
        self._downloaded = Counter("necrocode_artifact_downloaded_bytes", "Bytes of them", registry=metrics)
        self._deleted = Counter("necrocode_artifact_deletions", "Artifacts deleted, sweeps included", registry=metrics)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["artifacts"])
        one = "/artifacts/{artifact_id}"
        router.post("/artifacts", status_code=201, summary="Store", openapi_extra=_FORM, responses=problems(409, 507))(
            self.upload
        )
        router.get("/artifacts", summary="Search")(self.find)
        router.delete("/artifacts", summary="Delete all that fit")(self.delete_matching)
        answers: dict[int | str, Any] = {
            200: _BINARY,
            206: _BINARY | {"description": "A part"},
            304: {"description": "As known"},
        }
        router.get(one, summary="The bytes", response_class=Response, responses={**answers, **problems(410, 416)})(
            self.download
        )
        router.head(
            one, summary="Size and ETag", response_class=Response, responses={304: {"description": "As known"}}
        )(self.head)
        router.delete(one, summary="Delete one")(self.delete)
        router.put(f"{one}/tags", summary="Replace the tags")(self.tag)
        router.get("/usage", summary="What is stored, and the quota")(self.usage)
        router.post("/retention/sweep", summary="Delete what is past its time, and leftovers")(self.sweep)
        router.post("/verify", summary="Re-hash; nothing is changed")(self.verify)
        archive = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
        router.get(
            "/export.zip", summary="All that fit, as an archive", response_class=Response, responses={200: archive}
        )(self.export)
        return router

    async def prepare(self) -> None:
        await self._answered.prepare()

    async def check(self) -> None:
        await self._transfer(self._store.ensure_available)
        await self._answered.check()

    async def upload(self, request: Request, key: IdempotencyKey = None, epoch: LeaseEpoch = None) -> UploadedArtifact:
        try:
            answer = await self._upload(request, key, epoch)
        except (RunnerError, RequestValidationError):
            await _drained(request)
            raise
        except ClientDisconnect as error:
            raise RequestValidationError([{"loc": ("body",), "msg": "was cut off", "type": "cut"}]) from error
        self._uploads.inc()
        self._uploaded.inc(answer.size_bytes)
        return answer

    async def _upload(self, request: Request, key: str | None, epoch: int | None) -> UploadedArtifact:
        form = UploadForm(request.headers.get("content-type", ""), self._store.receive)
        try:
            async for batch in _batches(request):
                await self._transfer(form.feed, batch)
            incoming = form.end()
            artifact_type = form.required_text("type")
            metadata, given = form.mapping("metadata"), form.text("sha256")
            if epoch is not None:
                metadata = {"lease_epoch": epoch, **metadata}
            fingerprint = _fingerprint("upload", incoming.sha256, artifact_type, metadata, given)

            async def write() -> dict[str, Any]:
                stored = await self._transfer(lambda: incoming.finish(artifact_type, metadata, sha256=given or None))
                answer = UploadedArtifact(uri=self._uri(stored, request), **stored.model_dump(include=_ANSWERED))
                return answer.model_dump()

            return UploadedArtifact(**await self._answered.once(key, fingerprint, write))
        finally:
            with anyio.CancelScope(shield=True):
                await self._transfer(form.discard)

    async def find(
        self,
        request: Request,
        wanted: Wanted,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> ArtifactPage:
        page = await self._tour(lambda: self._store.find(wanted, limit=limit, cursor=cursor))
        return page.model_copy(update={"items": tuple(self._shown(one, request) for one in page.items)})

    async def head(self, artifact_id: ArtifactId, request: Request) -> Response:
        artifact = await self._transfer(self._store.get, artifact_id)
        headers = _headers(artifact)
        if ranges.is_known(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(headers=headers | {"Content-Length": str(artifact.size_bytes)}, media_type=_OCTETS)

    async def download(self, artifact_id: ArtifactId, request: Request) -> Response:
        artifact = await self._transfer(self._store.get, artifact_id)
        headers, asked = _headers(artifact), request.headers
        if ranges.is_known(asked.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        try:
            part = ranges.asked_range(asked.get("range"), asked.get("if-range"), headers["ETag"], artifact.size_bytes)
        except ranges.UnsatisfiableRangeError:
            outside = {"Content-Range": f"bytes */{artifact.size_bytes}"}
            return problem(416, "range-not-satisfiable", f"It has {artifact.size_bytes} bytes.", headers=outside)
        start, stop = part or (0, artifact.size_bytes)
        content = await self._transfer(self._store.read, artifact_id, start, stop)
        first = await self._transfer(next, content.chunks, b"")  # what fails, fails before an answer has begun
        headers["Content-Length"] = str(stop - start)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size_bytes}"
        self._downloads.inc()
        body = self._streamed(first, content.chunks, self._transfers)
        return StreamingResponse(body, 206 if part is not None else 200, headers, media_type=_OCTETS)

    async def tag(self, artifact_id: ArtifactId, tags: Tags, request: Request) -> StoredArtifact:
        return self._shown(await self._transfer(self._store.tag, artifact_id, tags.tags), request)

    async def delete(self, artifact_id: ArtifactId, key: IdempotencyKey = None) -> DeletedArtifacts:
        return await self._delete(key, f"delete {artifact_id}", lambda: self._store.delete(artifact_id))

    async def delete_matching(self, wanted: Wanted, key: IdempotencyKey = None) -> DeletedArtifacts:
        fingerprint = _fingerprint("delete", wanted.model_dump(mode="json"))
        return await self._delete(key, fingerprint, lambda: self._store.delete_matching(wanted))

    async def _delete(
        self, key: str | None, fingerprint: str, delete: Callable[[], DeletedArtifacts]
    ) -> DeletedArtifacts:
        async def write() -> dict[str, Any]:
            deleted = await self._tour(delete)
            self._deleted.inc(deleted.deleted)
            return deleted.model_dump()

        return DeletedArtifacts(**await self._answered.once(key, fingerprint, write))

    async def usage(self) -> StorageUsage:
        return await self._tour(self._store.usage)

    async def sweep(self) -> SweepReport:
        report = await self._tour(self._store.sweep)
        self._deleted.inc(report.deleted)
        return report

    async def verify(self, wanted: Wanted) -> VerifyReport:
        return await self._tour(lambda: self._store.verify(wanted))

    async def export(self, request: Request, wanted: Wanted) -> Response:
        chunks = self._store.export_chunks(wanted, shown=lambda one: self._shown(one, request))
        first = await self._tour(lambda: next(chunks, b""))
        headers = {"Content-Disposition": 'attachment; filename="export.zip"'}
        return StreamingResponse(self._streamed(first, chunks, self._tours), 200, headers, media_type="application/zip")

    async def _streamed(
        self, first: bytes, rest: Iterator[bytes], limiter: anyio.CapacityLimiter
    ) -> AsyncIterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            self._downloaded.inc(len(chunk))
            chunk = await anyio.to_thread.run_sync(next, rest, b"", limiter=limiter)

    def _shown(self, artifact: StoredArtifact, request: Request) -> StoredArtifact:
        return artifact.model_copy(update={"uri": self._uri(artifact, request)})

    def _uri(self, artifact: StoredArtifact, request: Request) -> str:
        if not artifact.uri.startswith("file:"):
            return artifact.uri
        base = self._public_url or str(request.base_url).rstrip("/")
        return f"{base}/artifacts/{artifact.artifact_id}"

    def _transfer(self, work: Callable[..., Result], *arguments: object) -> Awaitable[Result]:
        return anyio.to_thread.run_sync(work, *arguments, limiter=self._transfers)

    def _tour(self, work: Callable[[], Result]) -> Awaitable[Result]:
        return anyio.to_thread.run_sync(work, limiter=self._tours)


_OCTETS = "application/octet-stream"
_ANSWERED = {"artifact_id", "sha256", "size_bytes"}


async def _batches(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces large enough for a trip to a thread to cost little."""
    held: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        held.append(chunk)
        size += len(chunk)
        if size >= _BATCH_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


async def _drained(request: Request) -> None:
    """Read what is still coming: most clients look for an answer only when they have sent everything."""
    with suppress(ClientDisconnect, RuntimeError):  # the latter says that everything has been read
        async for _ in request.stream():
            pass


def _headers(artifact: StoredArtifact) -> dict[str, str]:
    return {
        "ETag": f'"{artifact.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": "attachment",  # no browser shall take an artifact for a page of this service
        "X-Content-Type-Options": "nosniff",
    }


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
