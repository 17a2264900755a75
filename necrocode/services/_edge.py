"""What every request passes before a service sees it: log, metrics, token, rate, size; and the last net below it."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.services._problems import problem

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_log = logging.getLogger("necrocode.services.access")
logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/openapi.json"})
"""What is answered without a token: whether the service lives, and what it can do."""
_MOST_CLIENTS = 10_000
_LONGEST_LOGGED = 2000
_BURST_SECONDS = 2.0


@dataclass
class _Exchange:
    """One request on its way: what log and metrics tell of it."""

    started: float
    status: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))


class Edge:
    """ASGI middleware around a whole service; it never lets an exception out."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        token: str | None,
        max_body_bytes: int,
        rate_limit_per_second: float,
        metrics: CollectorRegistry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._app = app
        self._service = service
        self._expected = f"Bearer {token}".encode() if token is not None else None
        self._max_body_bytes = max_body_bytes
        self._rates = RateLimit(rate_limit_per_second, clock) if rate_limit_per_second > 0 else None
        self._meters = _Meters(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(time.perf_counter())

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received_bytes += len(message.get("body", b""))
            if exchange.received_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", exchange.request_id.encode()))
            else:
                exchange.sent_bytes += len(message.get("body", b""))
            await send(message)

        self._meters.running.inc()
        try:
            await self._guarded(scope, counted_receive, counted_send, exchange)
        finally:
            self._meters.running.dec()
            self._tell(scope, exchange)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            if exchange.status == 0:
                detail = f"An unexpected error; the service's log has more under request id {exchange.request_id}."
                await problem(500, "internal-error", detail)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:  # noqa: ANN401  an ASGI response
        if self._rates is not None and (wait := self._rates.wait_seconds(_client(scope))) > 0:
            detail = "Too many requests from this address."
            return problem(429, "too-many-requests", detail, headers={"Retry-After": str(int(wait) + 1)})
        if self._expected is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                detail = "A bearer token is needed: Authorization: Bearer <token>."
                return problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return problem(413, "content-too-large", self._too_large(), headers={"Connection": "close"})
        return None

    def _too_large(self) -> str:
        return f"The request is larger than {self._max_body_bytes} bytes."

    def _tell(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", "") or "(none)"  # not the path: ids would make a series each
        self._meters.tell(scope["method"], route, exchange.status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            line = {
                "service": self._service,
                "client": _client(scope),
                "method": scope["method"][:_LONGEST_LOGGED],
                "path": scope["path"][:_LONGEST_LOGGED],
                "status": exchange.status,
                "seconds": round(seconds, 6),
                "received_bytes": exchange.received_bytes,
                "sent_bytes": exchange.sent_bytes,
                "request_id": exchange.request_id,
            }
            access_log.info("%s", json.dumps(line, ensure_ascii=False), extra={"access": line})


class RateLimit:
    """A token bucket per client, with room for two seconds' worth at once; the longest unseen are forgotten."""

    def __init__(self, per_second: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._per_second = per_second
        self._size = max(1.0, per_second * _BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """0 when a request may pass now (and it is counted), else the seconds until one may."""
        now = self._clock.monotonic()
        level, then = self._buckets.pop(client, (self._size, now))
        level = min(self._size, level + (now - then) * self._per_second)
        passes = level >= 1
        self._buckets[client] = (level - 1 if passes else level), now
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (1 - level) / self._per_second


class _Meters:
    """The request metrics of one service."""

    def __init__(self, metrics: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.running = Gauge("necrocode_http_requests_running", "Requests being served", registry=metrics)
        self._count = Counter("necrocode_http_requests", "Requests served", labels, registry=metrics)
        self._seconds = Histogram("necrocode_http_request_seconds", "Time to serve", ("route",), registry=metrics)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def tell(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method if method in _METHODS else "(other)", route, status)
        if key not in self._children:  # looking a child up by labels costs more than the rest of it
            self._children[key] = self._count.labels(key[0], route, str(status)), self._seconds.labels(route)
        count, histogram = self._children[key]
        count.inc()
        histogram.observe(seconds)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
