"""Queues on PostgreSQL that others wrote: how many no-op jobs a second one process of each gets done.

Jobs are in the queue beforehand; the time counts from the first job's start until the worker has told the end of the
last one, so that what it takes to start does not weigh in. procrastinate takes and ends each job by itself. pgqueuer
takes a batch at a time, ten unless told otherwise, and tells what is done in batches too.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Jobs:
    """When no-op jobs ran."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._at: list[float] = []
        self.ended_at = 0.0

    async def run_one(self, *_arguments: object) -> None:
        self._at.append(time.perf_counter())

    @property
    def per_second(self) -> float:
        if len(self._at) != self.count:
            raise RuntimeError(f"{len(self._at)} of {self.count} jobs were run")
        return self.count / (self.ended_at - self._at[0])


async def _procrastinate(url: str, jobs: Jobs, concurrency: int) -> None:
    import procrastinate  # noqa: PLC0415

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, max_size=concurrency))
    task = app.task(jobs.run_one, name="nothing")
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await task.batch_defer_async(*({} for _ in range(jobs.count)))
        await app.run_worker_async(
            concurrency=concurrency, wait=False, listen_notify=False, install_signal_handlers=False
        )
        jobs.ended_at = time.perf_counter()


async def _pgqueuer(url: str, jobs: Jobs, concurrency: int, batch_size: int = 10) -> None:
    import asyncpg  # noqa: PLC0415
    from pgqueuer import AsyncpgPoolDriver, PgQueuer  # noqa: PLC0415
    from pgqueuer.types import QueueExecutionMode  # noqa: PLC0415

    async with asyncpg.create_pool(url, min_size=1, max_size=concurrency) as pool:
        queue = PgQueuer(AsyncpgPoolDriver(pool))
        await queue.queries.install()
        queue.entrypoint("nothing")(jobs.run_one)
        await queue.queries.enqueue(["nothing"] * jobs.count, [None] * jobs.count, [0] * jobs.count)
        await queue.qm.run(batch_size=batch_size, mode=QueueExecutionMode.drain)
        jobs.ended_at = time.perf_counter()


PEERS: dict[str, Callable[[str, Jobs, int], Coroutine[Any, Any, None]]] = {
    "procrastinate": _procrastinate,
    "pgqueuer": _pgqueuer,
    "pgqueuer, by 100": partial(_pgqueuer, batch_size=100),
}


def jobs_per_second(peer: str, url: str, *, count: int, concurrency: int) -> float:
    """No-op jobs per second of one of :data:`PEERS` in an empty database; ModuleNotFoundError where it is missing."""
    jobs = Jobs(count)
    asyncio.run(PEERS[peer](url, jobs, concurrency))
    return jobs.per_second
