"""From a service's routes to a whole application: health, metrics, OpenAPI, errors and the edge around it all."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from necrocode import __version__
from necrocode.agent_runner.errors import RunnerError
from necrocode.services import _problems
from necrocode.services._edge import OPEN_PATHS, Edge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

logger = logging.getLogger(__name__)

DEFAULT_MAX_BODY_BYTES = 8_000_000


async def _nothing() -> None:
    """For services that need no start or no close."""


@dataclass(frozen=True)
class Service:
    """One service as the shell sees it."""

    name: str
    """What ``/health`` calls it: ``task-registry``, ``repo-pool``, ``artifact-store``."""
    title: str
    capabilities: tuple[str, ...]
    """The optional abilities that ``/health`` lists."""
    router: APIRouter
    check: Callable[[], Awaitable[None]]
    """Raises ``RunnerError`` when the store behind the service does not answer."""
    start: Callable[[], Awaitable[None]] = _nothing
    """Called before the first request."""
    close: Callable[[], Awaitable[None]] = _nothing
    """Called after the last request."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    """Larger requests are refused."""
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    """Where the service's own collectors are registered."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when shutdown begins: endless answers must end then."""


class Health(BaseModel):
    """What ``GET /health`` answers."""

    status: Literal["ok"]
    service: str
    version: str
    capabilities: list[str]


def create_app(service: Service, *, token: str | None = None, rate_limit_per_second: float = 0) -> FastAPI:
    """The application of a service. ``token`` None: everybody may call; ``rate_limit_per_second`` 0: no limit.

    The limit counts by client address, with bursts of two seconds' worth.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
        except Exception as error:
            app.state.start_error = error
            if not isinstance(error, RunnerError):
                logger.exception("the %s service cannot start", service.name)
            raise
        try:
            yield
        finally:
            service.stopping.set()
            await service.close()

    app = FastAPI(
        title=service.title,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # as the guide's curl lines are written
        responses=_problems.problems(*_problems.FOR_EVERY_ROUTE),
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    routers = (_own_routes(service), service.router)
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    app.add_exception_handler(RunnerError, _problems.on_runner_error)
    app.add_exception_handler(HTTPException, _problems.on_http_error)
    app.add_exception_handler(RequestValidationError, _problems.on_invalid_request)
    app.add_middleware(
        Edge,
        service=service.name,
        token=token,
        max_body_bytes=service.max_body_bytes,
        rate_limit_per_second=rate_limit_per_second,
        metrics=service.metrics,
    )
    _describe(app, has_token=token is not None)
    return app


def _own_routes(service: Service) -> APIRouter:
    router = APIRouter()
    started = time.monotonic()

    @router.get("/health", summary="Whether the service and its store answer", tags=["service"])
    async def health() -> Health:
        try:
            await service.check()
        except RunnerError as error:
            error.status_code = 503
            raise
        return Health(status="ok", service=service.name, version=__version__, capabilities=sorted(service.capabilities))

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        tags=["service"],
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        lines = generate_latest(service.metrics)
        up = f"# TYPE necrocode_uptime_seconds gauge\nnecrocode_uptime_seconds {time.monotonic() - started:.3f}\n"
        return Response(lines + up.encode(), media_type=CONTENT_TYPE_LATEST)

    return router


def _describe(app: FastAPI, *, has_token: bool) -> None:
    """Put the problem schema, and where there is one the token, into the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            components = document.setdefault("components", {})
            schema = _problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components.setdefault("schemas", {}).update(schema.pop("$defs", {}) | {"Problem": schema})
            if has_token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"token": []}]
                for path in OPEN_PATHS & document["paths"].keys():
                    document["paths"][path]["get"]["security"] = []
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form, which we do not answer
                components["schemas"].pop(name, None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way ("Extending OpenAPI")
