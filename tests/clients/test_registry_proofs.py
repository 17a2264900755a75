"""The registry at its worst: crowds, deaths, forks, failing operations, events that overtake each other."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from necrocode.agent_runner import (
    ConfigurationError,
    LocalTaskRegistry,
    ServiceConnectionError,
    ServiceError,
    TaskNotFoundError,
    TaskRegistryClient,
)
from necrocode.agent_runner.clients import _registry_history
from necrocode.agent_runner.clients._registry_sql import Transaction
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from tests.contracts.threads import at_once
from tests.support.postgres import empty_database, kill_server, own_server

SERVER = """
import sys, uvicorn
from necrocode.agent_runner import LocalTaskRegistry
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
app = create_app(task_registry_service(LocalTaskRegistry(sys.argv[1])))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    with empty_database() as url:
        yield url


@pytest.fixture
def registry(url: str) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(url) as registry:
        yield registry


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.put_task(TaskDefinition(task_id="1"), spec_name="s")
        yield registry


def fill(registry: LocalTaskRegistry, count: int) -> None:
    tasks = tuple(TaskDefinition(task_id=f"t{number}", priority=number % 3) for number in range(count))
    registry.create_taskset(TaskSet(spec_name="s", tasks=tasks))


# --- crowds


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_64_clients_claim_every_task_once(registry: LocalTaskRegistry, url: str, count: int) -> None:
    fill(registry, count)
    with LocalTaskRegistry(url) as other:  # half of them by another registry on the same database

        def work(number: int) -> list[str]:
            mine, done = (registry, other)[number % 2], []
            while (task := mine.claim_task(f"r{number}", lease_seconds=600)) is not None:
                mine.update_task_status(task.task_id, "done", spec_name="s", lease_epoch=task.epoch)
                done.append(task.task_id)
            return done

        got = at_once(work, range(64))
    assert not [outcome for outcome in got if isinstance(outcome, Exception)]
    claimed = Counter(task_id for some in got for task_id in some)  # type: ignore[union-attr]
    assert claimed == {f"t{number}": 1 for number in range(count)}
    assert {(task.status, task.attempt) for task in registry.list_tasks()} == {("done", 1)}


# --- deaths


class Served:
    """The registry in a process of its own, always at the same address."""

    def __init__(self, url: str) -> None:
        self._url = url
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self._port = unused.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, self._url, str(self._port)])
        for _ in range(600):
            try:
                requests.get(f"{self.address}/health", timeout=5)
            except requests.ConnectionError:
                threading.Event().wait(0.05)
            else:
                return
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def served(url: str) -> Iterator[Served]:
    service = Served(url)
    yield service
    service.kill()


class Tellers:
    """Eight threads that add events to the task t0, each of them again until it is acknowledged."""

    def __init__(self, connect: Callable[[], LocalTaskRegistry | TaskRegistryClient]) -> None:
        self._connect = connect
        self._told = threading.Condition()
        self._acknowledged: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._tell, args=(number,)) for number in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        with self._told:
            enough = len(self._acknowledged) + more
            assert self._told.wait_for(lambda: len(self._acknowledged) >= enough, 60)

    def check(self, registry: LocalTaskRegistry) -> None:
        kept = Counter(event.data["n"] for event in registry.list_events("t0"))
        assert not set(self._acknowledged) - kept.keys(), "every acknowledged write is there"
        assert set(kept.values()) == {1}, "and none is there twice"

    def _tell(self, number: int) -> None:
        step = number * 100_000
        with self._connect() as registry:
            while not self._stop.is_set():
                try:
                    registry.add_event("t0", "e", {"n": step}, idempotency_key=str(step))
                except ServiceError:
                    self._stop.wait(0.02)
                    continue  # the same again: its key keeps it from being done twice
                with self._told:
                    self._acknowledged.append(step)
                    self._told.notify_all()
                step += 1


def test_what_was_acknowledged_outlives_a_killed_service(registry: LocalTaskRegistry, served: Served) -> None:
    fill(registry, 1)
    with Tellers(lambda: TaskRegistryClient(served.address, network_retry_count=0)) as tellers:
        for _ in range(3):
            tellers.wait_for(100)
            served.kill()
            served.start()
        tellers.wait_for(100)
    tellers.check(registry)


def test_what_was_acknowledged_outlives_a_killed_postgresql() -> None:
    with own_server() as server, LocalTaskRegistry(server.get_uri()) as registry:
        fill(registry, 1)
        with Tellers(lambda: LocalTaskRegistry(server.get_uri())) as tellers:
            for _ in range(2):
                tellers.wait_for(100)
                kill_server(server)
                with pytest.raises(ServiceConnectionError, match=r"^Failed to connect to postgresql://"):
                    registry.list_tasks()
                server.ensure_postgres_running()
            tellers.wait_for(100)
        tellers.check(registry)


def test_a_registry_goes_on_when_its_connections_were_cut(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("a file has no connections that a server could cut")
    import psycopg  # noqa: PLC0415

    with LocalTaskRegistry(url) as registry:
        fill(registry, 1)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        registry.add_event("t0", "after")
        assert [event.event_type for event in registry.list_events("t0")] == ["after"]


def test_a_child_process_has_a_writer_of_its_own(on_sqlite: LocalTaskRegistry) -> None:
    on_sqlite.add_event("1", "parent")
    child = os.fork()
    if child == 0:
        try:
            on_sqlite.add_event("1", "child")
            on_sqlite.list_events("1")
            on_sqlite.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    on_sqlite.add_event("1", "parent again")
    assert [event.event_type for event in on_sqlite.list_events("1")] == ["parent", "child", "parent again"]


def test_a_registry_that_is_thrown_away_takes_its_writer_along(tmp_path: Path) -> None:
    before = threading.active_count()
    registry = LocalTaskRegistry(f"sqlite:///{tmp_path / 'r.db'}")
    registry.put_task(TaskDefinition(task_id="1"), spec_name="s")
    writers = [thread for thread in threading.enumerate() if thread.name == "necrocode-registry-writer"]
    del registry
    for thread in writers:
        thread.join(30)
    assert threading.active_count() <= before


def test_work_on_whole_tables_after_a_claim_is_undone_when_it_fails(registry: LocalTaskRegistry) -> None:
    def fail() -> None:
        with registry.store.connection() as connection:
            connection.exec_driver_sql("UPDATE tasks SET title = 'changed'")
            raise KeyError

    fill(registry, 2)
    assert registry.claim_task("r", lease_seconds=600) is not None
    with pytest.raises(KeyError):
        fail()
    assert {task.title for task in registry.list_tasks()} == {""}
    assert registry.claim_task("r", lease_seconds=600) is not None


# --- the writer


def hold(registry: LocalTaskRegistry) -> tuple[threading.Event, Future[Any]]:
    """Keep the writer busy until the event is set, so that what is submitted meanwhile becomes one batch."""
    gate, started = threading.Event(), threading.Event()

    def wait(_transaction: Transaction) -> None:
        started.set()
        gate.wait(30)

    held = registry.store.submit(wait)
    assert started.wait(30)
    return gate, held


def test_an_operation_that_fails_fails_alone(on_sqlite: LocalTaskRegistry) -> None:
    gate, _ = hold(on_sqlite)
    calls = on_sqlite.calls
    outcomes = [
        on_sqlite.submit(calls.add_event("1", "a", {}, spec_name=None)),
        on_sqlite.submit(calls.add_event("unknown", "b", {}, spec_name=None)),
        on_sqlite.submit(calls.add_event("1", "c", {"no": object()}, spec_name=None)),
        on_sqlite.submit(calls.add_event("1", "d", {}, spec_name=None)),
    ]
    gate.set()
    errors = [outcome.exception(30) for outcome in outcomes]
    assert [type(error) for error in errors] == [type(None), TaskNotFoundError, ServiceError, type(None)]
    assert [event.event_type for event in on_sqlite.list_events("1")] == ["a", "d"]


def test_an_operation_that_ends_the_transaction_spoils_no_other(on_sqlite: LocalTaskRegistry) -> None:
    gate, _ = hold(on_sqlite)
    first = on_sqlite.submit(on_sqlite.calls.add_event("1", "a", {}, spec_name=None))

    def lose(transaction: Transaction) -> None:
        transaction.command("ROLLBACK")  # as SQLite does by itself when the disk is full
        raise OSError("the disk is full")

    lost = on_sqlite.store.submit(lose)
    last = on_sqlite.submit(on_sqlite.calls.add_event("1", "b", {}, spec_name=None))
    gate.set()
    assert first.exception(30) is None
    assert isinstance(lost.exception(30), ServiceError)
    assert last.exception(30) is None
    assert [event.event_type for event in on_sqlite.list_events("1")] == ["a", "b"]


def test_an_operation_nobody_waits_for_any_more_is_not_begun(on_sqlite: LocalTaskRegistry) -> None:
    gate, _ = hold(on_sqlite)
    waiting = on_sqlite.submit(on_sqlite.calls.add_event("1", "a", {}, spec_name=None))
    assert waiting.cancel()
    gate.set()
    on_sqlite.add_event("1", "b")
    assert [event.event_type for event in on_sqlite.list_events("1")] == ["b"]


def test_closing_finishes_what_was_submitted(on_sqlite: LocalTaskRegistry) -> None:
    gate, _ = hold(on_sqlite)
    waiting = [on_sqlite.submit(on_sqlite.calls.add_event("1", "a", {}, spec_name=None)) for _ in range(300)]
    threading.Timer(0.05, gate.set).start()
    on_sqlite.close()
    assert all(one.done() and one.exception() is None for one in waiting)


def test_writes_are_on_disk_when_answered(on_sqlite: LocalTaskRegistry, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with on_sqlite.store.connection() as ours:
        assert ours.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "FULL"


# --- events that overtake each other


def test_no_event_is_missed_that_commits_after_a_later_one(registry: LocalTaskRegistry) -> None:
    fill(registry, 1)
    gate, written = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> None:
        _registry_history.add_event(transaction, registry._clock.now(), "t0", "slow", {}, "s", None)
        written.set()
        gate.wait(30)

    slowly = threading.Thread(target=registry.store.write, args=(slow,))
    slowly.start()
    assert written.wait(30)
    quickly = threading.Thread(target=registry.add_event, args=("t0", "quick"))
    quickly.start()
    found: list[str] = []
    follower = threading.Thread(
        target=lambda: found.extend(event.event_type for event in islice(registry.follow_events(), 2))
    )
    follower.start()
    quickly.join(0.5)  # on PostgreSQL it is through by now
    gate.set()
    for thread in (slowly, quickly, follower):
        thread.join(30)
    assert found == ["slow", "quick"]


# --- settings


def test_without_the_driver_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    registry = LocalTaskRegistry("postgresql://nobody@localhost/none")
    with pytest.raises(ConfigurationError, match=r"pip install 'necrocode\[services\]'"):
        registry.list_tasks()


def test_no_password_is_told(tmp_path: Path) -> None:
    registry = LocalTaskRegistry(f"postgresql://nobody:hunter2@/none?host={tmp_path}")
    with pytest.raises(ServiceError) as caught:
        registry.list_tasks()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError) as refused:
        LocalTaskRegistry("mysql://nobody:hunter2@host/none")
    assert "hunter2" not in str(refused.value)
