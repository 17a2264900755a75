"""Repo pool and artifact store on loopback, as far as the clients need them: thin shells over the embedded ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel

from necrocode.agent_runner import (
    AmbiguousTaskError,
    ArtifactNotFoundError,
    ArtifactUploadError,
    IllegalTransitionError,
    LocalArtifactStore,
    LocalRepoPool,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    TaskContextValidationError,
    TaskNotFoundError,
    WorkspacePreparationError,
)

_PROBLEMS: list[tuple[type[RunnerError], int, str]] = [
    (TaskNotFoundError, 404, "task-not-found"),
    (SlotNotFoundError, 404, "slot-not-found"),
    (ArtifactNotFoundError, 404, "artifact-not-found"),
    (AmbiguousTaskError, 409, "ambiguous-task"),
    (IllegalTransitionError, 409, "illegal-transition"),
    (StaleLeaseError, 409, "stale-lease"),
    (SlotAllocationError, 503, "no-available-slots"),
    (RepositoryNotFoundError, 422, "repository-not-found"),
    (WorkspacePreparationError, 500, "workspace-preparation-failed"),
    (TaskContextValidationError, 422, "invalid-task"),
    (ArtifactUploadError, 507, "artifact-not-stored"),
    (RunnerError, 500, "internal-error"),
]  # fmt: skip


@dataclass
class Call:
    """One request, taken apart."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        if not isinstance(value, dict):
            raise TypeError("the body must be a JSON object")
        return value

    @property
    def form(self) -> dict[str, bytes]:
        """The parts of a multipart body by name."""
        boundary = self.headers["content-type"].rpartition("boundary=")[2].strip('"').encode()
        parts = (b"\r\n" + self.body).split(b"\r\n--" + boundary)[1:-1]
        found = {}
        for part in parts:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            name = re.search(rb'name="([^"]*)"', head)
            found[name.group(1).decode() if name else ""] = content
        return found

    @property
    def fingerprint(self) -> tuple[str, str, bytes]:
        """What must be equal for a repeated key: multipart boundaries differ from call to call, so not the raw body."""
        is_form = self.headers.get("content-type", "").startswith("multipart/")
        content = repr(sorted(self.form.items())).encode() if is_form else self.body
        return self.method, self.path, hashlib.sha256(content).digest()


@dataclass
class Reply:
    """What is answered."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Route = tuple[str, str, Callable[..., Reply]]


class WireService:
    """A service: routes, health, problems, tokens and idempotency keys. ``url`` is where it listens."""

    name: ClassVar[str]
    capabilities: ClassVar[tuple[str, ...]]

    def __init__(self, *, token: str | None = None) -> None:
        self._token = token
        self._answered: dict[str, tuple[tuple[str, str, bytes], Reply]] = {}
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def routes(self) -> Sequence[Route]:
        raise NotImplementedError

    def answer(self, call: Call) -> Reply:
        """The whole way from a request to its answer; never raises."""
        given = call.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            return _problem(401, "unauthorized", "a bearer token is needed")
        key = call.headers.get("idempotency-key")
        if key is None:
            return self._routed(call)
        with self._key_locks[key]:
            if key in self._answered:
                fingerprint, reply = self._answered[key]
                if fingerprint != call.fingerprint:
                    return _problem(422, "idempotency-key-reused", "the key came with another request before")
                return reply
            reply = self._routed(call)
            if reply.status < 500:
                self._answered[key] = (call.fingerprint, reply)
            return reply

    def _routed(self, call: Call) -> Reply:
        health: Route = ("GET", "/health", self._health)
        try:
            for method, pattern, action in (health, *self.routes()):
                match = re.fullmatch(pattern, call.path)
                if method == call.method and match:
                    return action(call, *map(unquote, match.groups()))
        except RunnerError as error:
            return _refusal(error)
        except (KeyError, TypeError, ValueError) as error:
            return _problem(400, "invalid-request", f"{type(error).__name__}: {error}")
        return _problem(404, "no-such-endpoint", f"{call.method} {call.path}")

    def _health(self, _call: Call) -> Reply:
        return Reply(
            body={"status": "ok", "service": self.name, "version": "0", "capabilities": list(self.capabilities)}
        )


class PoolService(WireService):
    """The repo pool's wire."""

    name = "repo-pool"
    capabilities = ("slot-leases",)

    def __init__(self, pool: LocalRepoPool, *, token: str | None = None) -> None:
        super().__init__(token=token)
        self.pool = pool

    def routes(self) -> Sequence[Route]:
        return (
            ("POST", r"/slots/allocate", self._allocate),
            ("POST", r"/slots/([^/]+)/release", self._release),
            ("POST", r"/slots/([^/]+)/lease", self._renew),
        )

    def _allocate(self, call: Call) -> Reply:
        body = call.json
        wishes = {name: body.get(name) for name in ("base_ref", "timeout_seconds", "lease_seconds")}
        return Reply(201, _plain(self.pool.allocate_slot(body["repo_url"], body["required_by"], **wishes)))

    def _release(self, call: Call, slot_id: str) -> Reply:
        self.pool.release_slot(slot_id, lease_token=call.json.get("lease_token"))
        return Reply()

    def _renew(self, call: Call, slot_id: str) -> Reply:
        body = call.json
        self.pool.renew_lease(slot_id, body["lease_token"], lease_seconds=body.get("lease_seconds"))
        return Reply()


class StoreService(WireService):
    """The artifact store's wire. An artifact's id is made of the embedded store's URI."""

    name = "artifact-store"
    capabilities = ()

    def __init__(self, store: LocalArtifactStore, *, token: str | None = None) -> None:
        super().__init__(token=token)
        self.store = store

    def routes(self) -> Sequence[Route]:
        return (("POST", r"/artifacts", self._upload), ("GET", r"/artifacts/([^/]+)", self._download))

    def _health(self, call: Call) -> Reply:
        self.store.ensure_available()
        return super()._health(call)

    def _upload(self, call: Call) -> Reply:
        form = call.form
        content, digest = form["file"], hashlib.sha256(form["file"]).hexdigest()
        if form.get("sha256", digest.encode()).decode() != digest:
            return _problem(422, "sha256-differs", "the bytes that came are not the bytes that were meant")
        uri = self.store.upload(form["type"].decode(), content, json.loads(form.get("metadata", b"{}")))
        artifact_id = base64.urlsafe_b64encode(uri.encode()).decode()
        answer = {"artifact_id": artifact_id, "sha256": digest, "size_bytes": len(content)}
        return Reply(201, answer | {"uri": f"{self.url}/artifacts/{artifact_id}"})

    def _download(self, _call: Call, artifact_id: str) -> Reply:
        content = self.store.download(base64.urlsafe_b64decode(artifact_id).decode())
        return Reply(body=content, headers={"Content-Type": "application/octet-stream"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: WireService

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers, body)
        reply = self.service.answer(call)
        content = reply.content()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def log_message(self, *_arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_arguments: Any) -> None:
        pass  # clients that hang up are part of the tests


def _refusal(error: RunnerError) -> Reply:
    status, slug = next((status, slug) for kind, status, slug in _PROBLEMS if isinstance(error, kind))
    reply = _problem(error.status_code or status, slug, str(error))
    if isinstance(error, SlotAllocationError):
        reply.headers["Retry-After"] = "1"
    return reply


def _problem(status: int, slug: str, detail: str) -> Reply:
    body = {"type": slug, "title": slug.replace("-", " "), "status": status, "detail": detail}
    return Reply(status, body, {"Content-Type": "application/problem+json"})


def _plain(record: BaseModel) -> Any:
    return record.model_dump(mode="json")
