"""The registry when its database fails it: not there, replaced, full, locked."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from necrocode.agent_runner import (
    LocalTaskRegistry,
    ServiceConnectionError,
    ServiceError,
    StorageFullError,
    TaskContext,
)
from necrocode.agent_runner.clients._group_commit import GroupWriter
from necrocode.agent_runner.clients._registry_sql import failure
from necrocode.services._problems import problem_of
from tests.support.postgres import start_server

TASK = TaskContext(task_id="1", spec_name="s", title="t", description="d", repo_url="/r")
_WAIT_SECONDS = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder/registry.db"


@pytest.fixture
def registry(file: Path) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(f"sqlite:///{file}") as registry:
        yield registry


def write(registry: LocalTaskRegistry) -> object:
    """What a write gives, for which nobody waits without end."""
    call = registry.calls.add_event("1", "e", None, spec_name=None)
    return registry.submit(call).result(_WAIT_SECONDS)


def ping(registry: LocalTaskRegistry) -> object:
    return registry.submit(registry.calls.ping()).result(_WAIT_SECONDS)


def test_writes_go_on_after_the_file_could_not_be_opened(registry: LocalTaskRegistry, file: Path) -> None:
    aside = file.parent.with_name("aside")
    with registry.store.connection(read_only=True):  # it has the tables made, and keeps the one connection there is
        file.parent.rename(aside)
        for attempt in (write, write, ping):
            with pytest.raises(ServiceConnectionError):
                attempt(registry)
    aside.rename(file.parent)
    registry.register_task(TASK)
    assert write(registry)
    assert ping(registry) == 1


def test_writes_are_answered_after_an_error_that_nobody_foresaw() -> None:
    def connect() -> None:
        raise LookupError("unforeseen")

    writer = GroupWriter(connect)  # type: ignore[arg-type]  # it makes none
    for _ in range(2):
        with pytest.raises(LookupError):
            writer.submit(lambda _: None).result(_WAIT_SECONDS)
    writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_died_is_followed_by_another() -> None:
    died = threading.Event()

    def connect() -> None:
        if not died.is_set():
            died.set()
            raise SystemExit
        raise LookupError("the next one")

    writer = GroupWriter(connect)  # type: ignore[arg-type]  # it makes none
    writer.submit(lambda _: None)
    dead = writer._thread
    assert died.wait(_WAIT_SECONDS)
    assert dead is not None
    dead.join(_WAIT_SECONDS)
    with pytest.raises(LookupError):
        writer.submit(lambda _: None).result(_WAIT_SECONDS)
    writer.close()


def test_a_postgresql_that_stopped_is_a_connection_error() -> None:
    folder = Path(tempfile.mkdtemp(prefix="necrocode-pg-"))
    server = start_server(folder)
    with LocalTaskRegistry(server.get_uri()) as registry:
        registry.register_task(TASK)
        server.cleanup()
        for attempt in (write, ping):
            with pytest.raises(ServiceConnectionError):
                attempt(registry)
    shutil.rmtree(folder, ignore_errors=True)


def _deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(300):
        value = {"a": value}
    return value


@pytest.mark.parametrize("data", [{"a": "\ud800"}, {"\udfff": 1}, _deep(), {"a": float("nan")}, {"a": object()}])
def test_what_no_answer_could_hold_is_not_taken_in(registry: LocalTaskRegistry, data: dict[str, Any]) -> None:
    registry.register_task(TASK)
    with pytest.raises(ServiceError, match="no JSON") as caught:
        registry.add_event("1", "e", data)
    assert caught.value.status_code == 400
    with pytest.raises(ServiceError, match="no JSON"):
        registry.update_task_status("1", "running", data)
    with pytest.raises(ServiceError, match="no JSON"):
        registry.add_artifact("1", "log", "uri", metadata=data)
    assert registry.get_task("1").status == "ready"
    assert registry.list_events("1") == registry.list_artifacts("1") == ()


def test_a_time_that_utc_does_not_have_is_refused(registry: LocalTaskRegistry) -> None:
    with pytest.raises(ServiceError, match="years 1 to 9999") as caught:
        registry.search_events(since=datetime.fromisoformat("0001-01-01T00:00:00+14:00"))
    assert caught.value.status_code == 400


def test_nothing_is_said_to_be_written_to_a_file_that_was_deleted(registry: LocalTaskRegistry, file: Path) -> None:
    registry.register_task(TASK)
    aside = file.with_name("aside.db")
    file.rename(aside)
    for attempt in (write, write, ping, lambda one: one.get_task("1")):
        with pytest.raises(ServiceConnectionError, match="deleted or replaced"):
            attempt(registry)
    assert not file.exists()
    aside.rename(file)
    assert write(registry)


def test_a_file_that_was_replaced_is_opened_after_one_failure(registry: LocalTaskRegistry, file: Path) -> None:
    registry.register_task(TASK)
    with LocalTaskRegistry(f"sqlite:///{file.with_name('other.db')}") as other:
        other.register_task(TASK.model_copy(update={"title": "other"}))
    file.with_name("other.db").replace(file)
    for left in ("-wal", "-shm"):
        file.with_name(f"{file.name}{left}").unlink(missing_ok=True)
    with pytest.raises(ServiceConnectionError, match="deleted or replaced"):
        write(registry)
    assert write(registry)
    assert registry.get_task("1").title == "other"


def test_a_full_disk_is_told_as_such_and_what_was_written_stays(registry: LocalTaskRegistry) -> None:
    registry.register_task(TASK)
    registry.store.write(lambda transaction: transaction.command("PRAGMA max_page_count=1"))  # no more than there are
    with pytest.raises(StorageFullError, match="full") as caught:
        registry.add_event("1", "e", {"a": "x" * 500_000})
    assert isinstance(caught.value, ServiceError)
    answer = problem_of(caught.value)
    assert (answer.status_code, b'"storage-full"' in answer.body) == (507, True)
    assert registry.get_task("1").status == "ready"
    registry.close()
    registry.add_event("1", "later")
    assert [event.event_type for event in registry.list_events("1")] == ["later"]


@pytest.mark.parametrize("error", [psycopg.errors.DiskFull("no room"), OSError(28, "no room")])
def test_no_room_is_no_room_whoever_says_it(error: Exception) -> None:
    assert isinstance(failure("a database", error), StorageFullError)
