"""The Task Registry over HTTP: a shell around the embedded registry, whose operations do all the work."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel

from necrocode.agent_runner.clients._registry_budget import Reserve
from necrocode.agent_runner.clients._registry_call import OnceOnly
from necrocode.agent_runner.records import (
    ArtifactRecord,
    ArtifactRecordPage,
    ClaimedTask,
    EventPage,
    EventRecord,
    TaskDefinition,
    TaskLease,
    TaskPage,
    TaskRecord,
    TaskSetRecord,
)
from necrocode.agent_runner.spending import BudgetReservation, BudgetUsage
from necrocode.agent_runner.task_graph import GRAPH_MEDIA_TYPES, GraphFormat, TaskGraph, render_graph
from necrocode.services._app import Service
from necrocode.services._headers import IdempotencyKey, LeaseEpoch
from necrocode.services._moments import Moment
from necrocode.services._problems import problems
from necrocode.services._registry_bodies import (
    ArtifactBody,
    ClaimBody,
    ClaimThisBody,
    Cursor,
    EventBody,
    LeaseToken,
    Limit,
    OptionalSpec,
    RenewBody,
    RequiredSpec,
    ReservationId,
    ReserveBody,
    SpecInPath,
    SpendingBody,
    StatusBody,
    TaskBody,
    TaskId,
    TaskSetBody,
)
from necrocode.services._registry_stream import MEDIA_TYPE, EventFeed

if TYPE_CHECKING:
    from necrocode.agent_runner import LocalTaskRegistry
    from necrocode.agent_runner.clients._registry_call import Call

CAPABILITIES = (
    "register-task",
    "task-sets",
    "claims",
    "claim-task",
    "leases",
    "search",
    "events",
    "event-stream",
    "graph",
    "budgets",
)
_MAX_BODY_BYTES = 64_000_000  # a task set of 100 000 tasks
_LAST_ID_PATTERN = r"^[0-9]{1,18}$"
_T = TypeVar("_T")


def task_registry_service(registry: LocalTaskRegistry) -> Service:
    """The service over a registry, which it closes when it ends."""
    stopping = asyncio.Event()
    feed = EventFeed(registry, stopping)
    metrics = CollectorRegistry()
    desk = _Desk(registry, feed, metrics)

    async def check() -> None:
        await desk.done(registry.calls.ping())

    async def start() -> None:
        await check()  # a database that is not there, or too new, ends the service before it listens for nothing
        await feed.start()

    async def close() -> None:
        await feed.close()
        await asyncio.to_thread(registry.close)

    router = APIRouter(tags=["tasks"], responses=problems(507))
    for add_routes in (_runner_routes, _task_routes, _lease_routes, _taskset_routes, _budget_routes, _event_routes):
        add_routes(router, desk)
    return Service(
        name="task-registry",
        title="necrocode Task Registry",
        capabilities=CAPABILITIES,
        router=router,
        check=check,
        start=start,
        close=close,
        max_body_bytes=_MAX_BODY_BYTES,
        metrics=metrics,
        stopping=stopping,
    )


class _Desk:
    """What all routes work with."""

    def __init__(self, registry: LocalTaskRegistry, feed: EventFeed, metrics: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = registry.calls
        self.budget_calls = registry.budget_calls
        self.feed = feed
        name = "necrocode_registry"
        self.moves = Counter(f"{name}_status_updates", "States reported.", ["status"], registry=metrics)
        self.claims = Counter(f"{name}_claims", "Claims, by whether there was a task.", ["found"], registry=metrics)

    async def done(self, call: Call[_T]) -> _T:
        """The call's answer; no thread waits for it."""
        return call.read(await asyncio.wrap_future(self.registry.submit(call)))

    async def once(self, call: Call[_T], kind: Any, only: OnceOnly | None) -> _T:  # noqa: ANN401  a type, or a union
        """The call's answer, or its first one."""
        return await self.done(self.calls.once(call, kind, only))


async def _only_once(request: Request, key: IdempotencyKey = None) -> OnceOnly | None:
    """The request's idempotency key, with a fingerprint of all that it asks."""
    if key is None:
        return None
    asked = f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body()
    return OnceOnly(key, hashlib.sha256(asked).hexdigest())


Only = Annotated[OnceOnly | None, Depends(_only_once)]


def _json(value: BaseModel, status: int = 200) -> Response:
    return Response(value.model_dump_json(), status, media_type="application/json")


def _runner_routes(router: APIRouter, desk: _Desk) -> None:
    """The calls that every runner makes."""

    @router.put("/tasks/{task_id}/status", response_model=TaskRecord, responses=problems(404, 409))
    async def update_status(
        task_id: TaskId, body: StatusBody, only: Only, spec_name: OptionalSpec = None, epoch: LeaseEpoch = None
    ) -> Response:
        """Move the task to a state; one that becomes done frees the tasks that waited for it alone."""
        call = desk.calls.update_status(task_id, body.status, body.metadata, spec_name=spec_name, lease_epoch=epoch)
        task = await desk.once(call, TaskRecord, only)
        desk.moves.labels(task.status).inc()
        return _json(task)

    @router.post("/tasks/{task_id}/events", status_code=201, response_model=EventRecord, responses=problems(404, 409))
    async def add_event(
        task_id: TaskId, body: EventBody, only: Only, spec_name: OptionalSpec = None, epoch: LeaseEpoch = None
    ) -> Response:
        """Append an event to the task's history."""
        call = desk.calls.add_event(task_id, body.event_type, body.data, spec_name=spec_name, lease_epoch=epoch)
        event = await desk.once(call, EventRecord, only)
        desk.feed.nudge()
        return _json(event, 201)

    @router.post(
        "/tasks/{task_id}/artifacts", status_code=201, response_model=ArtifactRecord, responses=problems(404, 409)
    )
    async def add_artifact(
        task_id: TaskId, body: ArtifactBody, only: Only, spec_name: OptionalSpec = None, epoch: LeaseEpoch = None
    ) -> Response:
        """Record where an artifact of the task is stored."""
        values = body.model_dump() | {"metadata": body.metadata or {}}
        call = desk.calls.add_artifact(task_id, values, spec_name=spec_name, lease_epoch=epoch)
        return _json(await desk.once(call, ArtifactRecord, only), 201)


def _task_routes(router: APIRouter, desk: _Desk) -> None:
    """One task, and searching."""

    @router.get("/tasks", response_model=TaskPage)
    async def search(
        *,
        status: Annotated[str | None, Query(max_length=50)] = None,
        spec_name: OptionalSpec = None,
        required_skill: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
        sort: Literal["created", "priority"] = "created",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """The tasks that fit, the oldest first; with `sort=priority` in the order in which they are claimed."""
        call = desk.calls.search(
            status=status, spec_name=spec_name, required_skill=required_skill, sort=sort, limit=limit, cursor=cursor
        )
        return _json(await desk.done(call))

    @router.put("/tasks/{task_id}", response_model=TaskRecord)
    async def put(task_id: TaskId, body: TaskBody, only: Only, spec_name: RequiredSpec) -> Response:
        """Register or replace one task; a finished one can be run again, a running one is not disturbed."""
        given = body.model_dump(exclude={"priority"} if body.priority is None else set())
        TaskDefinition(task_id=task_id, **given)  # its rules on ids
        return _json(await desk.once(desk.calls.register(spec_name, task_id, given), TaskRecord, only))

    @router.get("/tasks/{task_id}", response_model=TaskRecord, responses=problems(409))
    async def get(task_id: TaskId, spec_name: OptionalSpec = None) -> Response:
        """One task."""
        return _json(await desk.done(desk.calls.get(task_id, spec_name=spec_name)))

    @router.get("/tasks/{task_id}/events", response_model=EventPage, responses=problems(409))
    async def events(
        task_id: TaskId, spec_name: OptionalSpec = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        """The task's events, the oldest first."""
        call = desk.calls.task_events(task_id, spec_name=spec_name, limit=limit, cursor=cursor)
        return _json(await desk.done(call))

    @router.get("/tasks/{task_id}/artifacts", response_model=ArtifactRecordPage, responses=problems(409))
    async def artifacts(
        task_id: TaskId, spec_name: OptionalSpec = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        """The task's artifact records, the oldest first."""
        call = desk.calls.task_artifacts(task_id, spec_name=spec_name, limit=limit, cursor=cursor)
        return _json(await desk.done(call))

    @router.post("/tasks/{task_id}/cancel", response_model=TaskRecord, responses=problems(409))
    async def cancel(task_id: TaskId, only: Only, spec_name: OptionalSpec = None, epoch: LeaseEpoch = None) -> Response:
        """Ask a running task to stop; one that does not run is cancelled at once."""
        call = desk.calls.cancel(task_id, spec_name=spec_name, lease_epoch=epoch)
        return _json(await desk.once(call, TaskRecord, only))

    @router.post("/tasks/{task_id}/retry", response_model=TaskRecord, responses=problems(409))
    async def retry(task_id: TaskId, only: Only, spec_name: OptionalSpec = None) -> Response:
        """Put a failed or cancelled task back."""
        return _json(await desk.once(desk.calls.retry(task_id, spec_name=spec_name), TaskRecord, only))


def _lease_routes(router: APIRouter, desk: _Desk) -> None:
    """Who works on what."""

    @router.post(
        "/tasks/claim",
        response_model=ClaimedTask,
        responses={204: {"description": "There is no task for this runner."}},
    )
    async def claim(body: ClaimBody, only: Only) -> Response:
        """The next task, held by the runner: the highest priority first, then the oldest."""
        call = desk.calls.claim(
            body.runner_id,
            lease_seconds=body.lease_seconds,
            required_skills=body.required_skills,
            spec_name=body.spec_name,
        )
        task = await desk.once(call, ClaimedTask | None, only)
        desk.claims.labels("no" if task is None else "yes").inc()
        return Response(status_code=204) if task is None else _json(task)

    @router.post("/tasks/{task_id}/claim", response_model=ClaimedTask, responses=problems(409))
    async def claim_this(task_id: TaskId, body: ClaimThisBody, only: Only, spec_name: OptionalSpec = None) -> Response:
        """This very task, held by the runner, unless another holds it; a lease that ran out is taken over."""
        call = desk.calls.claim_this(task_id, body.runner_id, lease_seconds=body.lease_seconds, spec_name=spec_name)
        task = await desk.once(call, ClaimedTask, only)
        desk.claims.labels("yes").inc()
        return _json(task)

    @router.post("/tasks/{task_id}/lease", response_model=TaskLease, responses=problems(409))
    async def renew(task_id: TaskId, body: RenewBody, only: Only, spec_name: OptionalSpec = None) -> Response:
        """Hold the task for longer."""
        call = desk.calls.renew(task_id, body.lease_token, lease_seconds=body.lease_seconds, spec_name=spec_name)
        return _json(await desk.once(call, TaskLease, only))

    @router.delete("/tasks/{task_id}/lease", response_model=TaskRecord, responses=problems(409))
    async def give_back(task_id: TaskId, token: LeaseToken, only: Only, spec_name: OptionalSpec = None) -> Response:
        """Let others have the task; the answer says whether it was to be cancelled."""
        return _json(await desk.once(desk.calls.give_back(task_id, token, spec_name=spec_name), TaskRecord, only))


def _taskset_routes(router: APIRouter, desk: _Desk) -> None:
    """Specs."""

    @router.post("/tasksets", status_code=201, response_model=TaskSetRecord, tags=["specs"])
    async def create(body: TaskSetBody, only: Only) -> Response:
        """Put a spec and its tasks in, or bring them up to date; running and ended tasks keep their state."""
        return _json(await desk.once(desk.calls.create_taskset(body.taskset()), TaskSetRecord, only), 201)

    @router.get("/tasksets/{spec_name}", response_model=TaskSetRecord, tags=["specs"])
    async def get(spec_name: SpecInPath) -> Response:
        """A spec and its tasks."""
        return _json(await desk.done(desk.calls.get_taskset(spec_name)))

    content = {media_type: {"schema": {"type": "string"}} for media_type in GRAPH_MEDIA_TYPES.values()}
    content["application/json"] = {"schema": TaskGraph.model_json_schema(ref_template="#/components/schemas/{model}")}

    @router.get(
        "/tasksets/{spec_name}/graph",
        response_class=Response,
        responses={200: {"description": "The graph", "content": content}},
        tags=["specs"],
    )
    async def graph(spec_name: SpecInPath, format: GraphFormat = "json") -> Response:  # noqa: A002  the name in the URL
        """Who waits for whom, with the tasks' states."""
        spec = await desk.done(desk.calls.get_taskset(spec_name))
        text = render_graph(TaskGraph.of(spec_name, spec.tasks), format)
        return Response(text, media_type=GRAPH_MEDIA_TYPES[format])


def _budget_routes(router: APIRouter, desk: _Desk) -> None:
    """What specs spend on the model."""

    @router.get("/specs/{spec_name}/budget", response_model=BudgetUsage, tags=["budgets"])
    async def usage(spec_name: SpecInPath) -> Response:
        """What the runs of the spec have spent and reserved; nothing for a spec that is not known."""
        return _json(await desk.done(desk.budget_calls.usage(spec_name)))

    @router.delete("/specs/{spec_name}/budget", response_model=BudgetUsage, tags=["budgets"])
    async def reset(spec_name: SpecInPath, only: Only) -> Response:
        """Forget what was spent; questions under way still count."""
        return _json(await desk.once(desk.budget_calls.reset(spec_name), BudgetUsage, only))

    @router.post("/specs/{spec_name}/budget/reservations", response_model=BudgetReservation, tags=["budgets"])
    async def reserve(spec_name: SpecInPath, body: ReserveBody, only: Only) -> Response:
        """Set aside what a question may come to; `granted` is false, and nothing is done, where it passes a limit."""
        asked = Reserve(
            spec_name,
            body.reservation_id,
            body.run_id,
            body.need.spending(),
            body.limits.limits(),
            body.ttl_seconds,
        )
        return _json(await desk.once(desk.budget_calls.reserve(asked), BudgetReservation, only))

    @router.put("/specs/{spec_name}/budget/reservations/{reservation_id}", response_model=BudgetUsage, tags=["budgets"])
    async def settle(spec_name: SpecInPath, reservation_id: ReservationId, body: SpendingBody, only: Only) -> Response:
        """Tell what a question came to, all fields 0 where it was not asked; what was told first stays."""
        call = desk.budget_calls.settle(spec_name, reservation_id, body.spending())
        return _json(await desk.once(call, BudgetUsage, only))


def _event_routes(router: APIRouter, desk: _Desk) -> None:
    """The events of all tasks."""

    @router.get("/events", response_model=EventPage, tags=["events"])
    async def events(
        since: Annotated[Moment | None, Query(description="From this moment on.")] = None,
        until: Annotated[Moment | None, Query(description="Before this moment.")] = None,
        spec_name: OptionalSpec = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """What happened, the oldest first."""
        call = desk.calls.events(since=since, until=until, spec_name=spec_name, limit=limit, cursor=cursor)
        return _json(await desk.done(call))

    @router.get(
        "/events/stream",
        response_class=StreamingResponse,
        responses={200: {"description": "Server-sent events", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
        tags=["events"],
    )
    async def stream(
        spec_name: OptionalSpec = None,
        last_id: Annotated[
            str | None,
            Header(
                alias="Last-Event-ID",
                pattern=_LAST_ID_PATTERN,
                description="The number of the last event that was seen; 0: all there are. Left out: new ones only.",
            ),
        ] = None,
    ) -> Response:
        """What happens, as it happens: `id` is the event's number, `data` the event. Each comes once, in order."""
        after = await desk.feed.newest() if last_id is None else int(last_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(desk.feed.follow(after, spec_name), media_type=MEDIA_TYPE, headers=headers)
