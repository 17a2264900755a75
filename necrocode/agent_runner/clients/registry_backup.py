"""Backup and restore of a registry's database, from SQLite or PostgreSQL into either.

A backup holds specs, tasks, dependencies, events, artifact records and budgets, as they were at one moment. It holds no
leases (their tokens are secrets, and their holders worked for the database of that moment) and no idempotency keys
(their answers may hold tokens).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from necrocode import __version__
from necrocode.agent_runner.clients import registry_schema as schema
from necrocode.agent_runner.clients._backup_format import (
    BackupHeader,
    BackupReader,
    BackupSummary,
    BackupTable,
    BackupWriter,
)
from necrocode.agent_runner.clients._registry_engine import database_transaction
from necrocode.agent_runner.clients._registry_upgrade import make_older_schema, schema_revision, upgrade_schema
from necrocode.agent_runner.errors import ConfigurationError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

EPOCHS_SKIPPED = 1_000
"""By how much a restore raises every task's epoch, so that it is above any that was given out after the backup."""

_TABLES = (  # parents first
    schema.specs,
    schema.tasks,
    schema.dependencies,
    schema.events,
    schema.artifacts,
    schema.budgets,
    schema.budget_reservations,
)
_COUNTED = (schema.events, schema.artifacts)
_NOT_KEPT = {"tasks": {"lease_token", "lease_holder", "lease_expires_at"}}
_BATCH = 1_000


def write_backup(url: str, file: Path, *, now: datetime) -> BackupSummary:
    """Write the database at ``url`` to a new file, which is there only once it was read again and found whole.

    What is written is one moment's content, while others go on writing; memory use does not grow with it. An older
    schema is left as it is. Raises ``ConfigurationError``, ``ServiceError``.
    """
    if file.exists():
        raise ConfigurationError(f"{file} exists already.", hint="Name a new file.")
    part = file.with_name(f"{file.name}.part")
    try:
        with database_transaction(url, read_only=True) as connection, _new_file(part) as stream:
            _write(connection, stream, now)
        summary = verify_backup(part)
        part.replace(file)
    except ServiceError:
        raise  # one of them is an OSError as well
    except OSError as error:
        raise ConfigurationError(f"Cannot write the backup {file}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return summary


def verify_backup(file: Path) -> BackupSummary:
    """What the backup holds; ``ConfigurationError`` for one that is torn, changed, or of a newer release."""
    with _open(file) as stream:
        return _reader(stream, file).summary()


def restore_backup(url: str, file: Path, *, force: bool = False) -> BackupSummary:
    """Put the content of a backup into the database at ``url``, all of it or nothing.

    The database must hold no task and no spec; with ``force`` whatever it holds is replaced. A task that was running is
    ``ready`` again (``cancelled``, where that was asked for), for nobody holds it; every task's epoch is raised, so
    that the writes of runners from before are refused. Rows of an older schema are upgraded.
    Raises ``ConfigurationError`` for a bad file or a database that is not empty, ``ServiceError``.
    """
    with _open(file) as stream:
        summary = _reader(stream, file).summary()
        stream.seek(0)
        with database_transaction(url) as connection:
            upgrade_schema(connection)
            _make_room(connection, summary.header.schema, force=force)
            _insert(connection, _reader(stream, file), file)
            upgrade_schema(connection)
            _settle(connection)
    return summary


def upgrade_database(url: str) -> tuple[str | None, str]:
    """Bring the database to this release's schema; its revisions before (None: it was empty) and after."""
    with database_transaction(url) as connection:
        before = schema_revision(connection)
        upgrade_schema(connection)
    return before, schema.HEAD_REVISION


def _write(connection: sa.Connection, stream: BinaryIO, now: datetime) -> None:
    writer = BackupWriter(stream, BackupHeader(_known_revision(connection), now.isoformat(), __version__))
    for table in _present_tables(connection):
        columns = [table.c[name] for name in _columns(connection, table)]
        writer.table(BackupTable(table.name, tuple(column.name for column in columns)), _rows(connection, columns))
    writer.close()


def _known_revision(connection: sa.Connection) -> str:
    revision = schema_revision(connection)
    if revision is None:
        raise ConfigurationError("The database holds no task registry.", hint="Check --registry.")
    if revision not in schema.KNOWN_REVISIONS:
        raise ServiceError(
            f"The database has the schema {revision}, made by a newer release of necrocode; this one knows those up to"
            f" {schema.HEAD_REVISION}.",
            hint="Upgrade necrocode.",
        )
    return revision


def _present_tables(connection: sa.Connection) -> list[sa.Table]:
    names = sa.inspect(connection).get_table_names()
    return [table for table in _TABLES if table.name in names]


def _columns(connection: sa.Connection, table: sa.Table) -> list[str]:
    names = [column["name"] for column in sa.inspect(connection).get_columns(table.name)]
    return [name for name in names if name in table.c and name not in _NOT_KEPT.get(table.name, ())]


def _rows(connection: sa.Connection, columns: list[sa.Column[Any]]) -> Iterator[list[Any]]:
    key = [column for column in columns if column.primary_key]
    query = sa.select(*columns).order_by(*key).execution_options(yield_per=_BATCH)
    for row in connection.execute(query):
        yield [value.isoformat() if isinstance(value, datetime) else value for value in row]


@contextmanager
def _new_file(file: Path) -> Iterator[BinaryIO]:
    """A stream to a file for its owner's eyes alone, on disk when it is closed."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as stream:  # noqa: PTH123  a descriptor
        yield stream
        stream.flush()
        os.fsync(descriptor)


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"Cannot read the backup {file}: {error.strerror}.") from error


def _reader(stream: BinaryIO, file: Path) -> BackupReader:
    reader = BackupReader(stream, str(file))
    if reader.header.schema not in schema.KNOWN_REVISIONS:
        raise ConfigurationError(
            f"The backup {file} has the schema {reader.header.schema}; this release knows those up to"
            f" {schema.HEAD_REVISION}.",
            hint="Upgrade necrocode.",
        )
    return reader


def _make_room(connection: sa.Connection, revision: str, *, force: bool) -> None:
    """Empty tables of the backup's schema."""
    if connection.dialect.name == "postgresql":
        names = ", ".join(table.name for table in schema.metadata.sorted_tables)
        connection.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")  # readers may go on
    if not force and any(connection.execute(sa.select(table).limit(1)).first() for table in _TABLES):
        raise ConfigurationError(
            "The database is not empty; nothing was restored.",
            hint="Restore into a new one, or replace all with --force.",
        )
    if revision == schema.HEAD_REVISION:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    else:
        schema.metadata.drop_all(connection)
        schema.alembic_version.drop(connection)
        make_older_schema(connection, revision)


def _insert(connection: sa.Connection, reader: BackupReader, file: Path) -> None:
    for table, rows in groupby(reader.rows(), key=lambda item: item[0]):
        target, convert = _target(table, file)
        values = (convert(row) for _, row in rows)
        while batch := list(islice(values, _BATCH)):
            connection.execute(sa.insert(target), batch)


def _target(table: BackupTable, file: Path) -> tuple[sa.TableClause, Callable[[list[Any]], dict[str, Any]]]:
    """Where the rows of a table of the backup go, and how one is made ready for it."""
    known = {one.name: one for one in _TABLES}.get(table.name)
    if known is None or any(name not in known.c for name in table.columns):
        raise ConfigurationError(f"The backup {file} holds a table or column of {table.name!r} that is unknown here.")
    times = [place for place, name in enumerate(table.columns) if isinstance(known.c[name].type, schema.UtcDateTime)]

    def convert(row: list[Any]) -> dict[str, Any]:
        try:
            for place in times:
                row[place] = None if row[place] is None else datetime.fromisoformat(row[place])
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"The backup {file} holds a time that cannot be read: {error}.") from error
        return dict(zip(table.columns, row, strict=True))

    return sa.table(known.name, *(sa.column(name, known.c[name].type) for name in table.columns)), convert


def _settle(connection: sa.Connection) -> None:
    """Nobody holds a task, and counters go on after what is there."""
    running = schema.tasks.c.status == "running"
    after = sa.case((schema.tasks.c.cancel_requested, "cancelled"), else_="ready")
    connection.execute(sa.update(schema.tasks).where(running).values(status=after))
    connection.execute(
        sa.update(schema.tasks).values(epoch=schema.tasks.c.epoch + EPOCHS_SKIPPED, cancel_requested=sa.false())
    )
    if connection.dialect.name == "postgresql":  # SQLite's AUTOINCREMENT has seen the rows
        for table in _COUNTED:
            connection.exec_driver_sql(
                f"SELECT setval('{table.name}_sequence_seq', greatest(last_value, (SELECT max(sequence) FROM"  # noqa: S608  our own name
                f" {table.name}))) FROM {table.name}_sequence_seq"
            )
