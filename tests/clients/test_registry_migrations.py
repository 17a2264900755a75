"""The registry's schema: what migrations make is what the code expects, and nothing of an older database is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from necrocode.agent_runner import LocalTaskRegistry, ServiceError
from necrocode.agent_runner.clients import _registry_upgrade, registry_schema
from necrocode.agent_runner.records import TaskDefinition
from tests.contracts.threads import at_once
from tests.support.postgres import empty_database

MIGRATIONS = Path(registry_schema.__file__).with_name("registry_migrations")
OLD = "2026-01-02 03:04:05.678901"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    with empty_database() as url:
        yield url


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def config(connection: sa.Connection) -> Config:
    found = Config()
    found.set_main_option("script_location", str(MIGRATIONS))
    found.attributes["connection"] = connection
    return found


def shape(connection: sa.Connection) -> dict[str, Any]:
    """All that a database says of its tables; the WHERE of partial indexes as text."""
    inspector = sa.inspect(connection)
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        columns = {column["name"]: {**column, "type": str(column["type"])} for column in inspector.get_columns(table)}
        indexes = {}
        for index in inspector.get_indexes(table):
            options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
            sorting = {name: tuple(how) for name, how in index.get("column_sorting", {}).items()}
            indexes[index["name"]] = (index["column_names"], index["unique"], options, sorting)
        keys = [
            (key["constrained_columns"], key["referred_table"], key["options"])
            for key in inspector.get_foreign_keys(table)
        ]
        found[table] = (columns, indexes, keys, inspector.get_pk_constraint(table)["constrained_columns"])
    return found


def make_first_release(url: str) -> None:
    """A database as the first release left it: a task that waits for another, its history, no mark of a revision."""
    with connected(url) as connection:
        command.upgrade(config(connection), "0001")
        connection.execute(sa.text("DROP TABLE alembic_version"))
        task = "INSERT INTO tasks VALUES ('s', :id, :status, 2, 't', 'd', '[\"a\"]', :needs, 'db', :metadata, :at, :at)"
        for task_id, status, needs in (("b", "done", "[]"), ("a", "running", '["b", "gone", "b"]')):
            values = {"id": task_id, "status": status, "needs": needs, "metadata": '{"k": "\\u7a7a"}'}
            connection.execute(sa.text(task), values | {"at": OLD + ("+00" if "postgres" in url else "")})
        zone = "+00" if "postgres" in url else ""
        for table, columns in (("events", "'e', '{\"n\": 1}'"), ("artifacts", "'log', 'u', 5, '{}'")):
            connection.execute(
                sa.text(f"INSERT INTO {table} VALUES (7, 's', 'a', {columns}, '{OLD}{zone}')")  # noqa: S608  our own text
            )
        if zone:
            for table in ("events", "artifacts"):
                connection.execute(sa.text(f"SELECT setval('{table}_sequence_seq', 7)"))


def test_the_code_knows_every_revision() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(revisions)) == registry_schema.KNOWN_REVISIONS
    assert script.get_current_head() == registry_schema.HEAD_REVISION


def test_migrations_make_what_the_code_expects(url: str) -> None:
    with connected(url) as connection:
        command.upgrade(config(connection), "head")
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, registry_schema.metadata) == []
        migrated = shape(connection)
    with connected(url) as connection:
        for table in (*reversed(registry_schema.metadata.sorted_tables), registry_schema.alembic_version):
            table.drop(connection)
        _registry_upgrade.upgrade_schema(connection)
        assert shape(connection) == migrated


def test_a_database_of_the_first_release_is_upgraded_without_loss(url: str) -> None:
    make_first_release(url)
    with LocalTaskRegistry(url) as registry:
        found = registry.get_task("a")
        assert (found.status, found.attempt, found.metadata) == ("running", 2, {"k": "空"})
        assert (found.dependencies, found.required_skill) == (("b", "gone", "b"), "db")
        assert found.created_at is not None
        assert found.created_at.isoformat(sep=" ") == OLD + "+00:00"
        assert (found.priority, found.epoch, found.lease_holder, found.cancel_requested) == (0, 0, None, False)
        assert [task.task_id for task in registry.list_tasks()] == ["a", "b"]
        assert [event.data for event in registry.list_events("a")] == [{"n": 1}]
        assert [artifact.size_bytes for artifact in registry.list_artifacts("a")] == [5]
        registry.add_event("a", "next")
        assert [event.sequence for event in registry.list_events("a")] == [7, 8]
    with connected(url) as connection:
        rows = connection.execute(sa.select(registry_schema.dependencies.c.depends_on)).scalars().all()
        assert sorted(rows) == ["b", "gone"]


def test_eight_upgrade_one_database_at_once(url: str) -> None:
    make_first_release(url)

    def work(number: int) -> None:
        with LocalTaskRegistry(url) as own:
            own.put_task(TaskDefinition(task_id=str(number)), spec_name="new")

    assert at_once(work, range(8)) == [None] * 8
    with LocalTaskRegistry(url) as registry:
        assert len(registry.list_tasks(spec_name="new")) == 8


def test_a_database_of_a_newer_release_is_left_alone(url: str) -> None:
    with LocalTaskRegistry(url) as registry:
        registry.list_tasks()
    with connected(url) as connection:
        connection.execute(sa.update(registry_schema.alembic_version).values(version_num="9999"))
        before = shape(connection)
    with LocalTaskRegistry(url) as registry, pytest.raises(ServiceError, match=r"schema 9999.*Upgrade necrocode"):
        registry.list_tasks()
    with connected(url) as connection:
        assert shape(connection) == before


def test_a_migration_that_fails_changes_nothing(url: str) -> None:
    make_first_release(url)
    with connected(url) as connection:
        connection.execute(sa.text("CREATE TABLE dependencies (in_the_way INTEGER)"))
        before = shape(connection)
    with LocalTaskRegistry(url) as registry:
        with pytest.raises(ServiceError, match="dependencies"):
            registry.list_tasks()
        with connected(url) as connection:
            assert shape(connection) == before
            connection.execute(sa.text("DROP TABLE dependencies"))
        assert len(registry.list_tasks()) == 2


def test_alembic_is_not_imported_for_a_new_or_up_to_date_database(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom necrocode.agent_runner import LocalTaskRegistry\n"
        "for _ in range(2):\n    with LocalTaskRegistry(sys.argv[1]) as registry:\n        registry.list_tasks()\n"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, f"sqlite:///{tmp_path / 'r.db'}"], check=True)
