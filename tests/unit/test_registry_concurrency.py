"""The embedded registry under threads, processes and deaths."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from necrocode.agent_runner import (
    ConfigurationError,
    IllegalTransitionError,
    LocalTaskRegistry,
    ServiceConnectionError,
    ServiceError,
    TaskContext,
    TaskNotFoundError,
)
from necrocode.agent_runner.clients import _registry_store
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock

SCRIPT = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from necrocode.agent_runner import IllegalTransitionError, LocalTaskRegistry, TaskContext

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

def task(task_id="1"):
    return TaskContext(task_id=task_id, spec_name="s", title="t", description="d", repo_url="/r")

registry = LocalTaskRegistry(sys.argv[1])
"""


def task(task_id: str = "1", spec_name: str = "s", title: str = "t") -> TaskContext:
    return TaskContext(task_id=task_id, spec_name=spec_name, title=title, description="d", repo_url="/r")


class Bench:
    def __init__(self, place: Path) -> None:
        self.file = place / "a folder/registry.db"
        self.url = f"sqlite:///{self.file}"

    def start(self, script: str) -> subprocess.Popen[str]:
        """A Python of its own, with ``registry``, ``task()`` and ``die()`` at hand."""
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT + script, self.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finished(self, *running: subprocess.Popen[str], code: int = 0) -> list[str]:
        """What they said, each ended with this exit code."""
        said = []
        for process in running:
            with process:
                output, errors = process.communicate(timeout=120)
            assert process.returncode == code, errors
            said.append(output)
        return said


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def registry(bench: Bench) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(bench.url) as registry:
        yield registry


# --- many at once


def test_24_registries_open_one_new_file(bench: Bench, registry: LocalTaskRegistry) -> None:
    def work(number: int) -> None:
        with LocalTaskRegistry(bench.url) as own:
            own.register_task(task(str(number % 6)))
            own.add_event(str(number % 6), "opened", {"by": number})

    assert at_once(work, range(24)) == [None] * 24
    for task_id in range(6):
        found = {event.data["by"] for event in registry.list_events(str(task_id))}
        assert found == {number for number in range(24) if number % 6 == task_id}


def test_24_threads_of_one_registry_lose_nothing(registry: LocalTaskRegistry) -> None:
    registry.register_task(task())

    def work(number: int) -> None:
        for step in range(3):
            registry.add_event("1", f"thread-{number}", {"step": step})
        registry.add_artifact("1", "log", f"uri-{number}")
        registry.get_task("1")

    assert at_once(work, range(24)) == [None] * 24
    events = registry.list_events("1")
    assert len({event.sequence for event in events}) == 72
    for number in range(24):
        assert [event.data["step"] for event in events if event.event_type == f"thread-{number}"] == [0, 1, 2]
    assert {artifact.uri for artifact in registry.list_artifacts("1")} == {f"uri-{number}" for number in range(24)}


def test_what_is_told_with_a_state_is_merged_whoever_tells_it(registry: LocalTaskRegistry) -> None:
    registry.register_task(task())
    told = at_once(lambda number: registry.update_task_status("1", "running", {f"from-{number}": number}), range(24))
    assert told == [None] * 24
    found = registry.get_task("1")
    assert found.metadata == {f"from-{number}": number for number in range(24)}
    assert found.attempt == 1


def test_24_threads_cannot_end_a_task_that_has_ended(registry: LocalTaskRegistry) -> None:
    registry.register_task(task())
    registry.update_task_status("1", "running")
    registry.update_task_status("1", "done", {"winner": "first"})
    told = at_once(lambda number: registry.update_task_status("1", "failed", {"winner": number}), range(24))
    assert all(isinstance(outcome, IllegalTransitionError) for outcome in told)
    assert registry.get_task("1").metadata == {"winner": "first"}


def test_readers_see_whole_states_only(registry: LocalTaskRegistry) -> None:
    registry.register_task(task())

    def work(number: int) -> bool:
        if number % 2:
            status = "running" if number % 4 == 1 else "ready"
            registry.update_task_status("1", status, {"status": status})
            return True
        found = registry.get_task("1")
        return found.metadata.get("status", found.status) == found.status

    assert at_once(work, range(24)) == [True] * 24


def test_four_processes_lose_nothing_and_one_ends_each_task(bench: Bench, registry: LocalTaskRegistry) -> None:
    script = """
def tell(number):
    registry.register_task(task())
    for step in range(5):
        registry.add_event("1", f"{os.getpid()}-{number}", {"step": step})

with ThreadPoolExecutor(3) as threads:
    list(threads.map(tell, range(3)))
for number in range(5):
    try:
        registry.update_task_status(f"race-{number}", ENDING)
    except IllegalTransitionError:
        continue
    print(number)
"""
    for number in range(5):
        registry.register_task(task(f"race-{number}"))
        registry.update_task_status(f"race-{number}", "running")
    endings = ["done", "failed", "cancelled", "done"]
    said = bench.finished(*(bench.start(script.replace("ENDING", repr(ending))) for ending in endings))
    for number in range(5):
        won = {ending for ending, numbers in zip(endings, said, strict=True) if str(number) in numbers.split()}
        assert won == {registry.get_task(f"race-{number}").status}
    events = registry.list_events("1")
    assert Counter(event.data["step"] for event in events) == dict.fromkeys(range(5), 12)
    for teller in {event.event_type for event in events}:
        assert [event.data["step"] for event in events if event.event_type == teller] == [0, 1, 2, 3, 4]
    with closing(sqlite3.connect(bench.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


# --- deaths


def test_what_was_told_before_a_death_is_kept_and_what_was_half_told_is_not(
    bench: Bench, registry: LocalTaskRegistry
) -> None:
    script = """
registry.register_task(task())
registry.update_task_status("1", "running", {"kept": True})
registry.add_event("1", "kept")
with registry.store.connection() as connection:
    connection.exec_driver_sql("UPDATE tasks SET status = 'done'")
    connection.exec_driver_sql("DELETE FROM events")
    die()
"""
    bench.finished(bench.start(script), code=-signal.SIGKILL)
    found = registry.get_task("1")
    assert (found.status, found.metadata) == ("running", {"kept": True})
    assert [event.event_type for event in registry.list_events("1")] == ["kept"]
    registry.add_event("1", "after")
    assert [event.event_type for event in registry.list_events("1")] == ["kept", "after"]


def test_a_death_while_the_tables_are_made_harms_nobody(bench: Bench, registry: LocalTaskRegistry) -> None:
    script = """
from necrocode.agent_runner.clients import registry_schema
registry_schema.sa.event.listen(registry_schema.events, "before_create", die)
registry.register_task(task())
"""
    bench.finished(bench.start(script), code=-signal.SIGKILL)
    registry.register_task(task())
    assert registry.get_task("1").status == "ready"


def test_a_registry_that_stays_locked_cannot_be_reached(
    bench: Bench, registry: LocalTaskRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register_task(task())
    monkeypatch.setattr(_registry_store, "BUSY_TIMEOUT_SECONDS", 0.05)
    with closing(sqlite3.connect(bench.file, isolation_level=None)) as holder, LocalTaskRegistry(bench.url) as other:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceConnectionError, match="locked"):
            other.add_event("1", "late")
        assert registry.get_task("1").status == "ready", "reading goes on"
        holder.execute("COMMIT")
        other.add_event("1", "in time")
    assert [event.event_type for event in registry.list_events("1")] == ["in time"]


# --- a registry of one's own


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:/a.db", "mysql://host/db", "/a.db", ""])
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must be sqlite:///path"):
        LocalTaskRegistry(url)


def test_nothing_is_made_before_the_first_use(bench: Bench, registry: LocalTaskRegistry) -> None:
    assert not bench.file.parent.exists()
    with pytest.raises(TaskNotFoundError):
        registry.get_task("1")
    assert bench.file.exists()


def test_a_relative_file_is_relative_to_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalTaskRegistry("sqlite:///sub/own.db") as registry:
        registry.register_task(task())
    assert (tmp_path / "sub/own.db").is_file()


def test_closed_it_opens_again(registry: LocalTaskRegistry) -> None:
    registry.register_task(task())
    registry.close()
    registry.close()
    assert registry.get_task("1").title == "t"


def test_a_file_that_is_no_database_is_told(bench: Bench, registry: LocalTaskRegistry) -> None:
    bench.file.parent.mkdir()
    bench.file.write_text("this is no database, and it is long enough to be looked at" * 20)
    with pytest.raises(ServiceError, match="not a database") as caught:
        registry.register_task(task())
    assert str(bench.file) in str(caught.value)


def test_times_are_those_of_the_clock(bench: Bench) -> None:
    clock = FakeClock()
    with LocalTaskRegistry(bench.url, clock=clock) as registry:
        registry.register_task(task())
        clock.sleep(60)
        registry.update_task_status("1", "running")
        registry.add_event("1", "e")
        found, (event,) = registry.get_task("1"), registry.list_events("1")
    assert found.created_at is not None
    assert found.updated_at is not None
    assert event.created_at is not None
    assert (found.updated_at - found.created_at).total_seconds() == 60
    assert event.created_at == found.updated_at
    assert found.updated_at == datetime(2026, 1, 1, 0, 17, 40, tzinfo=UTC)


def test_the_specs_of_an_id_are_told(registry: LocalTaskRegistry) -> None:
    registry.register_task(task(spec_name="b"))
    registry.register_task(task(spec_name="a"))
    with pytest.raises(ServiceError, match=r"specs a, b\. Pass spec_name"):
        registry.get_task("1")
    with pytest.raises(TaskNotFoundError, match="no task 1 of spec c"):
        registry.get_task("1", spec_name="c")
