"""Backups of a registry's database, SQLite and PostgreSQL, into either."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from necrocode.agent_runner import (
    ConfigurationError,
    LocalTaskRegistry,
    ServiceError,
    Spending,
    SpendingLimits,
    StaleLeaseError,
)
from necrocode.agent_runner.clients import registry_backup
from necrocode.agent_runner.clients import registry_schema as schema
from necrocode.agent_runner.clients._registry_engine import database_transaction
from necrocode.agent_runner.clients._registry_upgrade import make_older_schema, upgrade_schema
from necrocode.agent_runner.clients.registry_backup import (
    EPOCHS_SKIPPED,
    restore_backup,
    upgrade_database,
    verify_backup,
    write_backup,
)
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from tests.support.postgres import empty_database

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
DIALECTS = ("sqlite", "postgresql")
KEPT = ("specs", "tasks", "dependencies", "events", "artifacts", "budgets", "budget_reservations")


@pytest.fixture
def new_url(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    with ExitStack() as stack:
        numbers = iter(range(100))

        def make(dialect: str) -> str:
            if dialect == "sqlite":
                return f"sqlite:///{tmp_path / f'registry{next(numbers)}.db'}"
            return stack.enter_context(empty_database())

        yield make


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    return tmp_path / "backup.gz"


def fill(url: str) -> None:
    tasks = (
        TaskDefinition(task_id="1", title="初め", description="a\nb", acceptance_criteria=("x", "y")),
        TaskDefinition(task_id="2", dependencies=("1",), required_skill="ui", metadata={"k": [1, None, "é"]}),
        TaskDefinition(task_id="3", priority=5),
        TaskDefinition(task_id="4", priority=4),
    )
    with LocalTaskRegistry(url) as registry:
        registry.create_taskset(TaskSet(spec_name="チャット", tasks=tasks, metadata={"a": 1}))
        claimed = registry.claim_task("runner-1", lease_seconds=600)
        assert claimed is not None
        assert claimed.task_id == "3"
        assert registry.claim_task("runner-2", lease_seconds=600, idempotency_key="key") is not None
        registry.cancel_task("4")
        registry.add_event("1", "seen", {"text": '日本語 \\ " \n'})
        registry.add_event("2", "seen")
        registry.add_artifact("1", "diff", "file:///a", 12, {"m": 1})
        question = Spending(calls=1, prompt_tokens=900, completion_tokens=100, cost_micro_usd=7)
        for name in ("told", "open"):
            registry.reserve_budget(
                "チャット", name, run_id="r", need=question, limits=SpendingLimits(), ttl_seconds=60
            )
        registry.settle_budget("チャット", "told", question)


def content(url: str) -> dict[str, list[dict[str, Any]]]:
    with database_transaction(url, read_only=True) as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in schema.metadata.sorted_tables
        }


def sorted_rows(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in rows)


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def write_lines(file: Path, lines: list[Any], *, seal: bool = True) -> None:
    """The lines as a backup, with a right checksum if wished."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines[:-1])
    end = {**lines[-1], "sha256": hashlib.sha256(body).hexdigest()} if seal else lines[-1]
    file.write_bytes(gzip.compress(body + json.dumps(end).encode() + b"\n"))


# --- there and back


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("source", DIALECTS)
def test_everything_but_leases_and_keys_comes_back(
    source: str, target: str, new_url: Callable[[str], str], backup: Path
) -> None:
    old, new = new_url(source), new_url(target)
    fill(old)
    before = content(old)
    summary = write_backup(old, backup, now=NOW)
    assert summary.rows == {name: len(before[name]) for name in KEPT}
    assert summary.header.created_at == "2026-05-04T03:02:01.123456+00:00"
    assert verify_backup(backup) == summary
    assert restore_backup(new, backup) == summary
    after = content(new)
    for name in sorted({*KEPT} - {"tasks"}):
        assert sorted_rows(after[name]) == sorted_rows(before[name])
    assert after["idempotency_keys"] == []
    settled = {"lease_token": None, "lease_holder": None, "lease_expires_at": None, "cancel_requested": False}
    states = {"3": "ready", "4": "cancelled"}
    assert sorted_rows(after["tasks"]) == sorted_rows(
        [
            task
            | settled
            | {"epoch": task["epoch"] + EPOCHS_SKIPPED, "status": states.get(task["task_id"], task["status"])}
            for task in before["tasks"]
        ]
    )


@pytest.mark.parametrize("target", DIALECTS)
def test_numbers_go_on_after_those_that_were_restored(target: str, new_url: Callable[[str], str], backup: Path) -> None:
    old, new = new_url("sqlite"), new_url(target)
    fill(old)
    write_backup(old, backup, now=NOW)
    restore_backup(new, backup)
    with LocalTaskRegistry(new) as registry:
        last = max(event["sequence"] for event in content(new)["events"])
        registry.add_event("1", "later")
        assert registry.list_events("1")[-1].sequence == last + 1
        assert registry.claim_task("runner", lease_seconds=60) is not None


@pytest.mark.parametrize("target", DIALECTS)
def test_a_runner_from_before_is_refused(target: str, new_url: Callable[[str], str], backup: Path) -> None:
    url = new_url(target)
    with LocalTaskRegistry(url) as registry:
        registry.create_taskset(TaskSet(spec_name="s", tasks=(TaskDefinition(task_id="1"),)))
    write_backup(url, backup, now=NOW)
    with LocalTaskRegistry(url) as registry:
        claimed = registry.claim_task("runner", lease_seconds=60)
    assert claimed is not None
    restore_backup(url, backup, force=True)
    with LocalTaskRegistry(url) as registry, pytest.raises(StaleLeaseError):
        registry.update_task_status("1", "done", lease_epoch=claimed.lease.epoch)


def test_no_token_is_in_a_backup(new_url: Callable[[str], str], backup: Path) -> None:
    url = new_url("sqlite")
    fill(url)
    write_backup(url, backup, now=NOW)
    tokens = [task["lease_token"] for task in content(url)["tasks"] if task["lease_token"]]
    text = gzip.decompress(backup.read_bytes()).decode()
    assert len(tokens) == 2
    assert not any(token in text for token in tokens)
    assert "runner-1" not in text
    assert backup.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_empty_registry_comes_back_empty(dialect: str, new_url: Callable[[str], str], backup: Path) -> None:
    old, new = new_url(dialect), new_url(dialect)
    upgrade_database(old)
    assert set(write_backup(old, backup, now=NOW).rows.values()) == {0}
    restore_backup(new, backup)
    restore_backup(new, backup)
    with LocalTaskRegistry(new) as registry:
        registry.create_taskset(TaskSet(spec_name="s", tasks=(TaskDefinition(task_id="1"),)))
        registry.add_event("1", "first")


# --- one moment's content


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_backup_holds_one_moment_while_others_write(
    dialect: str, new_url: Callable[[str], str], backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every writer adds an event and then an artifact: a backup with the artifact alone would be of two moments."""
    url = new_url(dialect)
    with LocalTaskRegistry(url) as registry:
        registry.create_taskset(TaskSet(spec_name="s", tasks=(TaskDefinition(task_id="1"),)))
        read_columns = registry_backup._columns
        writes = iter(range(100))

        def write_in_between(connection: sa.Connection, table: sa.Table) -> list[str]:
            number = next(writes)
            done = threading.Thread(target=lambda: add(registry, number))
            done.start()
            done.join()
            return read_columns(connection, table)

        def add(registry: LocalTaskRegistry, number: int) -> None:
            registry.add_event("1", f"e{number}")
            registry.add_artifact("1", "log", f"file:///{number}")

        add(registry, 99)
        monkeypatch.setattr(registry_backup, "_columns", write_in_between)
        summary = write_backup(url, backup, now=NOW)
        assert summary.rows["events"] == summary.rows["artifacts"] == 1
        assert len(registry.list_artifacts("1")) == 1 + len(KEPT)


@pytest.mark.soak
@pytest.mark.parametrize("dialect", DIALECTS)
def test_memory_does_not_grow_with_the_number_of_rows(
    dialect: str, new_url: Callable[[str], str], backup: Path
) -> None:
    def peak(rows: int) -> int:
        old, new, file = new_url(dialect), new_url(dialect), backup.with_name(f"{rows}.gz")
        with database_transaction(old) as connection:
            upgrade_schema(connection)
            for start in range(0, rows, 1000):
                connection.execute(sa.insert(schema.specs), [spec(number) for number in range(start, start + 1000)])
        tracemalloc.start()
        write_backup(old, file, now=NOW)
        restore_backup(new, file)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    def spec(number: int) -> dict[str, Any]:
        text = f"{number} " * 100
        about = {"description": text, "metadata": {"n": number}, "created_at": NOW, "updated_at": NOW}
        return {"spec_name": f"spec{number}", **about}

    peak(1000)
    assert peak(6000) < 1.5 * peak(2000)


# --- what is refused


def test_a_database_that_holds_something_is_not_touched(new_url: Callable[[str], str], backup: Path) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    fill(old)
    write_backup(old, backup, now=NOW)
    with LocalTaskRegistry(new) as registry:
        registry.create_taskset(TaskSet(spec_name="other", tasks=()))
    before = content(new)
    with pytest.raises(ConfigurationError, match="not empty; nothing was restored"):
        restore_backup(new, backup)
    assert content(new) == before


@pytest.mark.parametrize("dialect", DIALECTS)
def test_force_replaces_everything(dialect: str, new_url: Callable[[str], str], backup: Path) -> None:
    old, new = new_url("sqlite"), new_url(dialect)
    fill(old)
    write_backup(old, backup, now=NOW)
    with LocalTaskRegistry(new) as registry:
        registry.create_taskset(TaskSet(spec_name="other", tasks=(TaskDefinition(task_id="9"),)))
        for _ in range(9):
            registry.add_event("9", "x")
    restore_backup(new, backup, force=True)
    assert [spec["spec_name"] for spec in content(new)["specs"]] == ["チャット"]
    with LocalTaskRegistry(new) as registry:  # numbers never go back: a follower of events would miss some
        registry.add_event("1", "later")
        assert registry.list_events("1")[-1].sequence > 9


@pytest.fixture
def whole(new_url: Callable[[str], str], backup: Path) -> Path:
    url = new_url("sqlite")
    fill(url)
    write_backup(url, backup, now=NOW)
    return backup


def refused(file: Path, url: str) -> str:
    """The text of the refusal, the same for both; the database is as it was."""
    with pytest.raises(ConfigurationError) as of_verify:
        verify_backup(file)
    with LocalTaskRegistry(url) as registry:
        registry.create_taskset(TaskSet(spec_name="mine", tasks=()))
    before = content(url)
    with pytest.raises(ConfigurationError) as of_restore:
        restore_backup(url, file, force=True)
    assert content(url) == before
    assert str(of_restore.value) == str(of_verify.value)
    return str(of_verify.value)


def test_a_torn_backup_is_refused_wherever_it_is_torn(whole: Path, new_url: Callable[[str], str]) -> None:
    data = whole.read_bytes()
    url = new_url("sqlite")
    for size in [0, 1, 9, 10, 11, *range(12, len(data), len(data) // 12), len(data) - 9, len(data) - 1]:
        whole.write_bytes(data[:size])
        assert "is damaged: " in refused(whole, url) or size < 12


def test_a_changed_byte_is_found(whole: Path, new_url: Callable[[str], str]) -> None:
    data = whole.read_bytes()
    url = new_url("sqlite")
    for place in range(12, len(data), len(data) // 12):
        whole.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(whole, url)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "is not a backup of a task registry"),
        (lambda lines: [{**lines[0], "format": "x"}, *lines[1:]], "is not a backup of a task registry"),
        (lambda lines: [{**lines[0], "version": 2}, *lines[1:]], "is a backup of version 2, which this release cannot"),
        (
            lambda lines: [{**lines[0], "schema": "9999"}, *lines[1:]],
            "has the schema 9999; this release knows those up",
        ),
        (lambda lines: [{"format": lines[0]["format"], "version": 1}, *lines[1:]], "its first line has no 'schema'"),
        (lambda lines: [lines[0], ["row"], *lines[1:]], "line 2 is none that can stand there"),
        (lambda lines: [*lines[:2], lines[2][1:], *lines[3:]], "line 3 is none that can stand there"),
        (lambda lines: [*lines[:2], 7, *lines[3:]], "line 3 is none that can stand there"),
        (lambda lines: [lines[0], lines[1], *lines[1:]], "line 3 is none that can stand there"),
        (lambda lines: [lines[0], {"table": "x"}, *lines[1:]], "line 2 is none that can stand there"),
        (lambda lines: [*lines[:2], *lines[3:]], "its content is not that which its checksum was made of"),
    ],
)
def test_a_backup_that_was_edited_is_refused(
    whole: Path, new_url: Callable[[str], str], change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    write_lines(whole, change(lines_of(whole)), seal=False)
    assert message in refused(whole, new_url("sqlite"))


def test_counts_are_checked_besides_the_checksum(whole: Path, new_url: Callable[[str], str]) -> None:
    lines = lines_of(whole)
    write_lines(whole, [*lines[:2], *lines[3:]])
    assert "where {'specs': 1, " in refused(whole, new_url("sqlite"))


@pytest.mark.parametrize("tail", [b"x", gzip.compress(b"more\n", mtime=0)], ids=["text", "another member"])
def test_nothing_may_follow_after_the_end(whole: Path, new_url: Callable[[str], str], tail: bytes) -> None:
    whole.write_bytes(whole.read_bytes() + tail)
    assert "is damaged" in refused(whole, new_url("sqlite"))


@pytest.mark.parametrize(
    "content_",
    [b"", b"plain text\n", gzip.compress(b""), gzip.compress(b"text\n"), b"\x1f\x8b"],
    ids=["empty", "text", "gzip of nothing", "gzip of text", "start of gzip"],
)
def test_another_file_is_no_backup(backup: Path, new_url: Callable[[str], str], content_: bytes) -> None:
    backup.write_bytes(content_)
    assert str(backup) in refused(backup, new_url("sqlite"))


def test_a_line_without_end_does_not_fill_the_memory(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.clients._backup_format._LONGEST_LINE_BYTES", 1000)
    backup.write_bytes(gzip.compress(b" " * 5000))
    with pytest.raises(ConfigurationError, match="line 1 is too long"):
        verify_backup(backup)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"table": "secrets", "columns": []}, "holds a table or column of 'secrets' that is unknown here"),
        ({"table": "specs", "columns": ["x"]}, "holds a table or column of 'specs' that is unknown here"),
    ],
)
def test_a_well_made_backup_of_something_else_is_refused(
    whole: Path, new_url: Callable[[str], str], line: dict[str, Any], message: str
) -> None:
    lines = lines_of(whole)
    rows = {line["table"]: 1}
    write_lines(whole, [lines[0], line, ["v"] * len(line["columns"]), {"rows": rows}])
    url = new_url("sqlite")
    upgrade_database(url)
    with pytest.raises(ConfigurationError, match=message):
        restore_backup(url, whole)
    assert not any(content(url).values())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_values_that_do_not_fit_are_refused_and_nothing_is_written(
    whole: Path, new_url: Callable[[str], str], dialect: str
) -> None:
    lines = lines_of(whole)
    time = lines[1]["columns"].index("created_at")
    name = lines[1]["columns"].index("spec_name")
    url = new_url(dialect)
    upgrade_database(url)
    for place, value, error in ((time, "soon", ConfigurationError), (name, None, ServiceError)):
        row = [*lines[2][:place], value, *lines[2][place + 1 :]]
        write_lines(whole, [*lines[:2], row, *lines[3:]])
        verify_backup(whole)
        with pytest.raises(error):
            restore_backup(url, whole)
        assert not any(content(url).values())


def test_a_backup_is_never_written_over_another(new_url: Callable[[str], str], backup: Path) -> None:
    url = new_url("sqlite")
    upgrade_database(url)
    backup.write_text("mine")
    with pytest.raises(ConfigurationError, match="exists already"):
        write_backup(url, backup, now=NOW)
    assert backup.read_text() == "mine"


def test_a_backup_that_cannot_be_written_leaves_nothing_behind(
    new_url: Callable[[str], str], backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    url = new_url("sqlite")
    upgrade_database(url)
    with pytest.raises(ConfigurationError, match=r"Cannot write the backup .*nowhere.*: No such file"):
        write_backup(url, backup.parent / "nowhere" / "b.gz", now=NOW)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        write_backup(url, backup, now=NOW)
    assert not list(backup.parent.glob("backup*"))


def test_a_backup_that_is_not_there_is_named(new_url: Callable[[str], str], backup: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read the backup .*: No such file"):
        restore_backup(new_url("sqlite"), backup)
    with pytest.raises(ConfigurationError, match=r"Cannot read the backup .*: Is a directory"):
        verify_backup(backup.parent)


def test_a_file_that_fails_while_it_is_read_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "readline", broken)
    with pytest.raises(ConfigurationError, match=r"Cannot read the backup .*: Input/output error"):
        verify_backup(whole)


# --- schemas


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("source", DIALECTS)
@pytest.mark.parametrize("force", [False, True])
def test_a_backup_of_an_older_schema_is_upgraded(
    source: str, target: str, force: bool, new_url: Callable[[str], str], backup: Path
) -> None:
    old, new = new_url(source), new_url(target)
    about: dict[str, Any] = {
        "spec_name": "s", "attempt": 1, "title": "t", "description": "d", "acceptance_criteria": ["a"],
        "required_skill": None, "metadata": {}, "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    with database_transaction(old) as connection:
        make_older_schema(connection, "0001")
        rows = [
            {**about, "task_id": "1", "status": "running", "dependencies": []},
            {**about, "task_id": "2", "status": "ready", "dependencies": ["1"]},
        ]
        names = [*about, "task_id", "status", "dependencies"]
        table = sa.table("tasks", *(sa.column(name, schema.tasks.c[name].type) for name in names))
        connection.execute(sa.insert(table), rows)
        connection.exec_driver_sql("DROP TABLE alembic_version")  # as the first release left it
    summary = write_backup(old, backup, now=NOW)
    assert summary.header.schema == "0001"
    assert summary.rows == {"tasks": 2, "events": 0, "artifacts": 0}
    assert "specs" not in [*table_names(old)]
    if force:
        fill(new)
    restore_backup(new, backup, force=force)
    with LocalTaskRegistry(new) as registry:
        first, second = registry.list_tasks()
        assert (first.status, first.epoch, first.created_at) == ("ready", EPOCHS_SKIPPED, NOW)
        assert second.dependencies == ("1",)
        registry.update_task_status("1", "running")
        registry.add_event("1", "later")
    assert content(new)["dependencies"] == [{"spec_name": "s", "task_id": "2", "depends_on": "1"}]


def table_names(url: str) -> list[str]:
    with database_transaction(url, read_only=True) as connection:
        return sa.inspect(connection).get_table_names()


def test_upgrade_says_what_was_there(new_url: Callable[[str], str]) -> None:
    url = new_url("sqlite")
    assert upgrade_database(url) == (None, schema.HEAD_REVISION)
    assert upgrade_database(url) == (schema.HEAD_REVISION, schema.HEAD_REVISION)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_database_of_a_newer_release_or_of_somebody_else_is_not_backed_up(
    dialect: str, new_url: Callable[[str], str], backup: Path
) -> None:
    url = new_url(dialect)
    with database_transaction(url):
        pass
    with pytest.raises(ConfigurationError, match="The database holds no task registry"):
        write_backup(url, backup, now=NOW)
    upgrade_database(url)
    with database_transaction(url) as connection:
        connection.execute(sa.update(schema.alembic_version).values(version_num="9999"))
    with pytest.raises(ServiceError, match="The database has the schema 9999, made by a newer release"):
        write_backup(url, backup, now=NOW)
    assert not backup.exists()


# --- databases that cannot be had


@pytest.mark.parametrize("url", ["http://localhost:8001", "sqlite:///", "mysql://x/y"])
def test_a_service_is_told_apart_from_a_database(url: str, backup: Path) -> None:
    with pytest.raises(ConfigurationError, match="work on the registry's database itself, not through a service"):
        write_backup(url, backup, now=NOW)


def test_a_database_that_is_not_there_is_not_made_by_a_backup(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no task registry .*none\.db"):
        write_backup(f"sqlite:///{tmp_path / 'none.db'}", backup, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_used_is_unavailable(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "file").write_text("no database, and longer than the hundred bytes of a header" * 3)
    with pytest.raises(ServiceError, match="file is not a database"):
        restore_backup(f"sqlite:///{tmp_path / 'file'}", whole)
    with pytest.raises(ServiceError, match=r"cannot be made: File exists|cannot be made: Not a directory"):
        restore_backup(f"sqlite:///{tmp_path / 'file' / 'x.db'}", whole)
    with pytest.raises(ServiceError, match=r"postgresql.*:\*\*\*@127\.0\.0\.1.* cannot be used: "):
        restore_backup("postgresql://user:secret@127.0.0.1:9/none", whole)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        restore_backup("postgresql://host:port/none", whole)


def test_a_missing_driver_says_how_to_get_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(sa, "create_engine", missing)
    with pytest.raises(
        ConfigurationError, match=r"needs the package psycopg\. Install it: pip install 'necrocode\[serv"
    ):
        restore_backup("postgresql://user@127.0.0.1/none", whole)
