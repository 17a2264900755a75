"""The Repo Pool Manager: slots over HTTP. It hands out paths, so it shares a file system with its callers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Body, Path, Request, Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner._strict import read_yaml_mapping
from necrocode.agent_runner.errors import (
    ConfigurationError,
    RepositoryNotFoundError,
    RunnerError,
    SlotAllocationError,
    SlotNotFoundError,
    WorkspacePreparationError,
)
from necrocode.agent_runner.records import PoolDefinition, PoolRecord, PoolSet, SlotAllocation, SlotRecord, SlotState
from necrocode.services._app import Service
from necrocode.services._headers import IdempotencyKey
from necrocode.services._idempotency import AnsweredWrites
from necrocode.services._pool_metrics import PoolCollector, allocation_seconds
from necrocode.services._pool_sources import AllowedSources
from necrocode.services._problems import problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path as FilePath

    from necrocode.agent_runner.clients.repo_pool_local import LocalRepoPool

logger = logging.getLogger(__name__)

CAPABILITIES = ("slot-leases", "pools")
SWEEP_SECONDS = 5.0
_ALLOCATIONS_AT_ONCE = 128
_CALLS_AT_ONCE = 16
_MAX_BODY_BYTES = 64 * 1024
_LONGEST_WAIT_SECONDS = 3600.0
_LONGEST_LEASE_SECONDS = 86_400.0

Answer = TypeVar("Answer")
SlotId = Annotated[str, Path(max_length=200, description="As an allocation gave it.")]
PoolName = Annotated[str, Path(max_length=100, description="As GET /pools/status lists it.")]
LeaseSeconds = Annotated[float | None, Field(gt=0, le=_LONGEST_LEASE_SECONDS)]
PoolSize = Annotated[int, Field(ge=1, le=1000)]


class Allocate(BaseModel):
    """What an allocation asks for."""

    repo_url: str = Field(max_length=4096)
    required_by: str = Field(min_length=1, max_length=500, description="Who will hold the slot; shown in the status.")
    base_ref: str | None = Field(default=None, max_length=1000, description="Branch, tag or commit. None: HEAD.")
    timeout_seconds: float | None = Field(default=None, ge=0, le=_LONGEST_WAIT_SECONDS)
    lease_seconds: LeaseSeconds = None


class Renew(BaseModel):
    """The lease to renew."""

    lease_token: str = Field(max_length=500)
    lease_seconds: LeaseSeconds = None


class Renewed(BaseModel):
    """Until when the lease lasts now."""

    slot_id: str
    expires_at: datetime | None


class Release(BaseModel):
    """The lease that ends; without a token it is an operator's forced release."""

    lease_token: str | None = Field(default=None, max_length=500)


class Released(BaseModel):
    """What the slot is now; ``removed`` when its pool had become too large."""

    slot_id: str
    state: SlotState | Literal["removed"]


class CreatePool(BaseModel):
    """A pool to make."""

    repo_url: str = Field(min_length=1, max_length=4096)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    pool_size: PoolSize = 5


class ResizePool(BaseModel):
    """A pool's new size."""

    pool_size: PoolSize


class PoolsStatus(BaseModel):
    """All pools, by name."""

    pools: list[PoolRecord]


class Reconciled(BaseModel):
    """What was put right, a line each."""

    done: list[str]


def read_pools_file(file: FilePath) -> PoolSet:
    """The pools that a YAML file asks for; ``ConfigurationError`` names each wrong key."""
    data = read_yaml_mapping(file, what="pools file", error_type=ConfigurationError)
    entries = data.get("pools", [])
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        data["pools"] = [PoolDefinition(**entry) for entry in entries]
    return PoolSet(**data)


def repo_pool_service(
    pool: LocalRepoPool,
    *,
    pools: PoolSet | None = None,
    allowed_sources: Sequence[str] | None = None,
    sweep_seconds: float = SWEEP_SECONDS,
    clock: Clock = SYSTEM_CLOCK,
) -> Service:
    """The service over ``pool``.

    ``pools`` are made before the first request, and filled in the background. ``allowed_sources`` limits from where
    callers may have repositories (see :class:`AllowedSources`); None: whatever ``pool`` takes, local paths among it.
    Leases that have ended are reclaimed every ``sweep_seconds``.
    """
    metrics = CollectorRegistry()
    metrics.register(PoolCollector(pool))
    stopping = asyncio.Event()
    desk = _Desk(
        pool=pool,
        sources=AllowedSources(allowed_sources),
        answered=AnsweredWrites(pool.root / ".answered.db", clock=clock),
        seconds=allocation_seconds(metrics),
        clock=clock,
        stopping=stopping,
        allocations=anyio.CapacityLimiter(_ALLOCATIONS_AT_ONCE),
        calls=anyio.CapacityLimiter(_CALLS_AT_ONCE),
    )
    upkeep = _Upkeep(desk, pools or PoolSet(), sweep_seconds)
    return Service(
        name="repo-pool",
        title="necrocode Repo Pool Manager",
        capabilities=CAPABILITIES,
        router=_router(desk),
        check=desk.check,
        start=upkeep.start,
        close=upkeep.close,
        max_body_bytes=_MAX_BODY_BYTES,
        metrics=metrics,
        stopping=stopping,
    )


@dataclass(frozen=True)
class _Desk:
    """What the routes work with."""

    pool: LocalRepoPool
    sources: AllowedSources
    answered: AnsweredWrites
    seconds: Any  # a histogram: prometheus_client's classes have no usable types for labels
    clock: Clock
    stopping: asyncio.Event
    allocations: anyio.CapacityLimiter
    """Threads of their own: allocations that wait must not keep releases from what they wait for."""
    calls: anyio.CapacityLimiter

    async def call(self, function: Callable[..., Answer], *arguments: object, **options: object) -> Answer:
        """What a method of the pool returns, in a thread."""
        return await anyio.to_thread.run_sync(partial(function, *arguments, **options), limiter=self.calls)

    async def check(self) -> None:
        """Return when slots can be handed out, and what was answered can be kept."""
        await self.call(self.pool.check)
        await self.answered.check()

    async def allocate(self, request: Request, wanted: Allocate, key: str | None) -> Any:  # noqa: ANN401  JSON
        """An allocation as JSON; given up, with no slot held, when the caller hangs up or the service ends."""
        await self.call(self.sources.check, wanted.repo_url)
        fingerprint = hashlib.sha256(json.dumps(wanted.model_dump(), sort_keys=True).encode()).hexdigest()
        gone = threading.Event()
        watch = asyncio.create_task(_tell_when_gone(request, self.stopping, gone))
        try:
            write = partial(self._allocate, wanted, gone)
            return await self.answered.once(key, fingerprint, write, undo=self._give_back)
        finally:
            watch.cancel()

    async def _give_back(self, answer: Any) -> None:  # noqa: ANN401  JSON
        try:
            await self.call(self.pool.release_slot, answer["slot_id"], lease_token=answer["lease_token"])
        except RunnerError as error:  # its lease will end by itself
            logger.warning("The slot %s was not given back: %s", answer["slot_id"], error)

    async def _allocate(self, wanted: Allocate, gone: threading.Event) -> Any:  # noqa: ANN401  JSON
        started, outcome = self.clock.monotonic(), "failed"
        options = wanted.model_dump(exclude={"repo_url", "required_by"})
        call = partial(
            self.pool.allocate_slot_while, lambda: not gone.is_set(), wanted.repo_url, wanted.required_by, **options
        )
        try:
            allocation = await anyio.to_thread.run_sync(call, limiter=self.allocations)
            outcome = "allocated"
        except SlotAllocationError:
            outcome = "none-free"
            raise
        finally:
            self.seconds.labels(outcome).observe(max(0.0, self.clock.monotonic() - started))
        return allocation.model_dump(mode="json")


async def _tell_when_gone(request: Request, stopping: asyncio.Event, gone: threading.Event) -> None:
    """Set ``gone`` when the caller hangs up, or the service ends. The request's body has been read before."""
    ended = asyncio.create_task(stopping.wait())
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
        gone.set()
    finally:
        ended.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass
class _Upkeep:
    """What the service does by itself."""

    desk: _Desk
    pools: PoolSet
    sweep_seconds: float
    _tasks: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        await self.desk.answered.prepare()
        await self.desk.call(self.desk.pool.reconcile)
        made = [await self.desk.call(self._create, definition) for definition in self.pools.pools]
        names = [name for name in made if name is not None]
        self._tasks = (asyncio.create_task(self._sweep()), asyncio.create_task(self._warm(names)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def _create(self, wanted: PoolDefinition) -> str | None:
        """The pool's name; None when it is there, but damaged, which must not keep the others from their work."""
        pool = self.desk.pool
        size = wanted.pool_size or self.pools.pool_size or pool.pool_size
        try:
            return pool.create_pool(wanted.repo_url, name=wanted.name, pool_size=size, resize=True).name
        except RepositoryNotFoundError:
            raise
        except WorkspacePreparationError as error:
            pool.check()
            logger.warning("A pool of the pools file cannot be used: %s", error)
            return None

    async def _warm(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                await self.desk.call(self.desk.pool.warm, name)
            except RunnerError as error:
                logger.warning("The pool %s was not filled ahead: %s", name, error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.sweep_seconds)
            try:
                await self.desk.call(self.desk.pool.reclaim_expired)
            except RunnerError as error:
                logger.warning("Leases that ended were not reclaimed: %s", error)


def _router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    _add_slots(router, desk)
    _add_pools(router, desk)
    return router


def _add_slots(router: APIRouter, desk: _Desk) -> None:
    pool = desk.pool

    @router.post(
        "/slots/allocate",
        status_code=201,
        responses=problems(507),
        tags=["slots"],
        summary="Get a clean checkout of a repository",
    )
    async def allocate(request: Request, wanted: Allocate, key: IdempotencyKey = None) -> SlotAllocation:
        return SlotAllocation.model_validate(await desk.allocate(request, wanted, key))

    @router.post(
        "/slots/{slot_id}/release", responses=problems(409), tags=["slots"], summary="Give a slot back, or take it back"
    )
    async def release(request: Request, slot_id: SlotId, lease: Annotated[Release | None, Body()] = None) -> Released:
        token = lease.lease_token if lease is not None else None
        by = request.client.host if request.client is not None else ""
        await desk.call(pool.release_slot, slot_id, lease_token=token, released_by="" if token is not None else by)
        try:
            slot = await desk.call(pool.get_slot, slot_id)
        except SlotNotFoundError:
            return Released(slot_id=slot_id, state="removed")
        return Released(slot_id=slot_id, state=slot.state)

    @router.post("/slots/{slot_id}/lease", responses=problems(409), tags=["slots"], summary="Keep a slot for longer")
    async def renew(slot_id: SlotId, lease: Renew) -> Renewed:
        await desk.call(pool.renew_lease, slot_id, lease.lease_token, lease_seconds=lease.lease_seconds)
        slot = await desk.call(pool.get_slot, slot_id)
        return Renewed(slot_id=slot_id, expires_at=slot.expires_at)

    @router.get("/slots/{slot_id}", tags=["slots"], summary="State, holder and lease of a slot")
    async def get_slot(slot_id: SlotId) -> SlotRecord:
        return await desk.call(pool.get_slot, slot_id)


def _add_pools(router: APIRouter, desk: _Desk) -> None:
    pool = desk.pool

    @router.get("/pools/status", tags=["pools"], summary="All pools, their slots and their use")
    async def status() -> PoolsStatus:
        return PoolsStatus(pools=list(await desk.call(pool.pools_status)))

    @router.post("/pools", status_code=201, responses=problems(409), tags=["pools"], summary="Make a repository's pool")
    async def create(wanted: CreatePool) -> PoolRecord:
        await desk.call(desk.sources.check, wanted.repo_url)
        return await desk.call(pool.create_pool, wanted.repo_url, name=wanted.name, pool_size=wanted.pool_size)

    @router.patch("/pools/{name}", tags=["pools"], summary="Change a pool's size")
    async def resize(name: PoolName, wanted: ResizePool) -> PoolRecord:
        return await desk.call(pool.resize_pool, name, wanted.pool_size)

    @router.delete("/pools/{name}", status_code=204, responses=problems(409), tags=["pools"], summary="Delete a pool")
    async def remove(name: PoolName) -> Response:
        await desk.call(pool.remove_pool, name)
        return Response(status_code=204)

    @router.post("/pools/{name}/warm", tags=["pools"], summary="Make all slots of a pool ready ahead")
    async def warm(name: PoolName) -> PoolRecord:
        return await desk.call(pool.warm, name)

    @router.post("/pools/reconcile", tags=["pools"], summary="Put right what dead processes have left")
    async def reconcile() -> Reconciled:
        return Reconciled(done=await desk.call(pool.reconcile))
