"""Errors on the wire: every one is an RFC 9457 problem, made in this module alone.

``type`` is a stable slug (a relative reference), ``title`` says the kind, ``detail`` says which input and what to try;
further members carry data, such as ``errors`` with a line for each wrong field.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from necrocode.agent_runner import errors
from necrocode.agent_runner._redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import Request
    from starlette.routing import Route

MEDIA_TYPE = "application/problem+json"

# The first line whose class fits decides: subclasses come before their bases.
_KINDS: tuple[tuple[type[errors.RunnerError], int, str], ...] = (
    (errors.TaskNotFoundError, 404, "task-not-found"),
    (errors.SlotNotFoundError, 404, "slot-not-found"),
    (errors.PoolNotFoundError, 404, "pool-not-found"),
    (errors.PoolExistsError, 409, "pool-exists"),
    (errors.PoolInUseError, 409, "pool-in-use"),
    (errors.ArtifactDamagedError, 410, "artifact-damaged"),
    (errors.ArtifactNotFoundError, 404, "artifact-not-found"),
    (errors.AmbiguousTaskError, 409, "ambiguous-task"),
    (errors.IllegalTransitionError, 409, "illegal-transition"),
    (errors.StaleLeaseError, 409, "stale-lease"),
    (errors.TaskLeasedError, 409, "task-leased"),
    (errors.IdempotencyKeyReusedError, 422, "idempotency-key-reused"),
    (errors.SlotAllocationError, 503, "no-available-slots"),
    (errors.RepositoryNotFoundError, 422, "repository-not-found"),
    (errors.AuthenticationError, 422, "repository-refused"),  # no 401: the caller's own token is not the trouble
    (errors.WorkspacePreparationError, 500, "workspace-preparation-failed"),
    (errors.TaskContextValidationError, 422, "invalid-task"),
    (errors.ConfigurationError, 422, "invalid-request"),
    (errors.StorageFullError, 507, "storage-full"),
    (errors.ArtifactUploadError, 500, "artifact-not-stored"),
    (errors.ServiceConnectionError, 503, "store-unavailable"),
    (errors.RunnerTimeoutError, 503, "timed-out"),
    (errors.ServiceError, 500, "internal-error"),
    (errors.RunnerError, 500, "internal-error"),
)
# Written out, because the phrases of the standard library change with its version.
_FRAMEWORK_SLUGS = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "content-too-large"}
_RETRY_AFTER_SECONDS = {429: 1, 503: 1}
FOR_EVERY_ROUTE = (400, 401, 404, 413, 422, 429, 500, 503)
"""What the shell itself may answer to any request."""


class FieldProblem(BaseModel):
    """One wrong field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """What every error answers (RFC 9457, ``application/problem+json``)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI ``responses`` of a route that answers problems with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem(
    status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **data: object
) -> Response:
    """An error as a response."""
    body = {"type": slug, "title": slug.replace("-", " ").capitalize(), "status": status, "detail": detail, **data}
    extra = dict(headers or {})
    if status in _RETRY_AFTER_SECONDS:
        extra.setdefault("Retry-After", str(_RETRY_AFTER_SECONDS[status]))
    return JSONResponse(body, status, extra, media_type=MEDIA_TYPE)


def problem_of(error: errors.RunnerError) -> Response:
    """The response that stands for an error of the package; a status that the error itself names comes first."""
    status, slug = next((status, slug) for kind, status, slug in _KINDS if isinstance(error, kind))
    if error.status_code is not None and error.status_code in _own_statuses():
        status = error.status_code
        if slug == "internal-error" and status < HTTPStatus.INTERNAL_SERVER_ERROR:
            slug = "invalid-request"
    return problem(status, slug, Redactor().text(str(error)))


def _own_statuses() -> frozenset[int]:
    return frozenset({*FOR_EVERY_ROUTE, 409, 410, 412, 416, 507})


async def on_runner_error(_request: Request, error: Exception) -> Response:
    """FastAPI's handler for the package's own errors."""
    if not isinstance(error, errors.RunnerError):  # pragma: no cover - registered for that class alone
        raise error
    return problem_of(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for what the framework refuses: unknown paths, methods, unreadable bodies."""
    if not isinstance(error, HTTPException):  # pragma: no cover - registered for that class alone
        raise error
    slug = _FRAMEWORK_SLUGS.get(error.status_code, f"http-{error.status_code}")
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (allowed := _methods_of(request)):
        headers["Allow"] = ", ".join(sorted(allowed))  # the framework names those of one route alone
    return problem(error.status_code, slug, str(error.detail), headers=headers)


def _methods_of(request: Request) -> set[str]:
    """The methods of the resource that the request names: of all routes with the closest path."""
    routes: Sequence[Route] = request.app.state.routes
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    closest = min((route.path for route in fitting), key=lambda path: path.count("{"), default="")
    return {method for route in fitting if route.path == closest for method in route.methods or ()}


async def on_invalid_request(_request: Request, error: Exception) -> Response:
    """FastAPI's handler for requests that do not fit: 400 for path, query and headers, 422 for the body."""
    if not isinstance(error, RequestValidationError):  # pragma: no cover - registered for that class alone
        raise error
    wrong = [_explained(detail) for detail in error.errors()]
    is_body = all(str(detail["loc"][0]) == "body" for detail in error.errors())
    told = "; ".join(f"{one['field']}: {one['message']}" for one in wrong)
    return problem(422 if is_body else 400, "invalid-request", told, errors=wrong)


def _explained(detail: Mapping[str, Any]) -> dict[str, str]:
    """A wrong field by name and rule; the value itself is not echoed, for it may be a secret."""
    place: Sequence[object] = detail["loc"]
    field = ".".join(str(part) for part in place[1:]) or str(place[0])
    return {"field": field, "message": str(detail["msg"]).removeprefix("Value error, ")}
