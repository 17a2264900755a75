"""Statements that are built and compiled by SQLAlchemy once, and then executed by the driver without further ado.

An operation of the registry is two or three statements of some microseconds each; building, compiling and wrapping
them anew would cost a multiple of that.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from necrocode.agent_runner._text import one_line
from necrocode.agent_runner.errors import ServiceConnectionError, ServiceError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Row = dict[str, Any]
    Statement = sa.Select[Any] | sa.CompoundSelect[Any] | sa.Insert | sa.Update | sa.Delete
    Process = Callable[[Any], Any]

# A database made without a locale has the encoding SQL_ASCII, and psycopg gives its texts back as bytes unless told.
POSTGRES_ARGUMENTS = {"connect_timeout": 10, "client_encoding": "utf8"}

BUSY_TIMEOUT_SECONDS = 30.0
"""How long SQLite waits for other processes."""
_POLL_SECONDS = 0.02
_PRIMARY_CODE = 0xFF  # SQLite, "Result and Error Codes": the rest of an extended code only says more
_NOT_NOW = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})
_DISK_FULL = "53100"  # PostgreSQL, appendix "Error Codes": disk_full


def configure_sqlite(connection: Any) -> None:  # noqa: ANN401  sqlite3's own connection
    """Set a new connection up: transactions begun by us, readers beside a writer, every commit on disk."""
    connection.isolation_level = None
    _use_write_ahead_log(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_write_ahead_log(connection: Any) -> None:  # noqa: ANN401  sqlite3's own connection
    """The change of mode is refused at once while others use the file: SQLite's own waiting does not cover it."""
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def insert_row(table: sa.Table, *columns: str) -> sa.Insert:
    """An insert that takes these columns (none named: all) as parameters of their own names."""
    names = columns or tuple(table.c.keys())
    return sa.insert(table).values({name: sa.bindparam(name, type_=table.c[name].type) for name in names})


class Prepared:
    """One statement in a dialect's own words."""

    def __init__(self, statement: Statement, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        order = getattr(compiled, "positiontup", None)  # SQLite takes parameters by position, psycopg by name
        self._order: list[str] | None = list(order) if order is not None else None
        self._literals = {
            name: parameter.effective_value for parameter, name in compiled.bind_names.items() if not parameter.required
        }
        self._binds = [
            (name, process)
            for parameter, name in compiled.bind_names.items()
            if (process := parameter.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]
        self._results = _result_columns(statement, dialect)

    def parameters(self, values: Row) -> Any:  # noqa: ANN401  a tuple or a mapping, as the driver takes it
        """The values as the driver takes them; ``ServiceError`` for what is no JSON."""
        given = self._literals | values
        try:
            for name, process in self._binds:
                given[name] = process(given[name])
        except OverflowError as error:  # the first and last day of all, turned to UTC
            raise ServiceError(
                "The task registry knows times of the years 1 to 9999 only, in UTC too.", status_code=400
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ServiceError(
                f"The task registry cannot keep something that is no JSON: {error}.", status_code=400
            ) from error
        return given if self._order is None else tuple([given[name] for name in self._order])

    def row(self, values: Sequence[Any]) -> Row:
        """A row of the answer by column name."""
        return {
            name: value if process is None else process(value)
            for (name, process), value in zip(self._results, values, strict=True)
        }


def _result_columns(statement: Statement, dialect: sa.Dialect) -> list[tuple[str, Process | None]]:
    return [
        (str(column.key), column.type.dialect_impl(dialect).result_processor(dialect, None))
        for column in statement.exported_columns
    ]


class Database:
    """What is known of one database: its dialect, what it is called in errors, its prepared statements."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self.dialect = engine.dialect
        self.name = name
        self._driver: Any = engine.dialect.loaded_dbapi
        self._prepared: dict[Statement, Prepared] = {}

    @property
    def is_postgresql(self) -> bool:
        """Whether several transactions may write at once."""
        return self.dialect.name == "postgresql"

    def prepared(self, statement: Statement) -> Prepared:
        """The statement, compiled at its first use."""
        found = self._prepared.get(statement)
        if found is None:
            found = self._prepared[statement] = Prepared(statement, self.dialect)
        return found

    @property
    def driver_errors(self) -> tuple[type[Exception], ...]:
        """What the driver raises."""
        return (self._driver.Error, TypeError, ValueError, OverflowError, RecursionError)

    def translated(self, error: Exception, connection: object = None) -> ServiceError:
        """A driver's error as one of ours."""
        if not isinstance(error, self._driver.Error) or isinstance(error, self._driver.DataError):
            return ServiceError(f"The task registry cannot keep such a text, number or data: {error}.", status_code=400)
        if self.is_postgresql and self.dialect.is_disconnect(error, connection, None):  # type: ignore[arg-type]  # the driver's own
            return ServiceConnectionError(f"The task registry in {self.name} failed: {one_line(str(error))}.")
        return failure(self.name, error)


def failure(name: str, cause: object) -> ServiceError:
    """What the driver said of the database, or the error of the system, as one of ours."""
    text = f"The task registry in {name} failed: {one_line(str(cause))}."
    code = getattr(cause, "sqlite_errorcode", 0) or 0
    is_full = code & _PRIMARY_CODE == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == _DISK_FULL
    if is_full or getattr(cause, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFullError(text, hint="Make room on the disk that holds it.", status_code=507)
    if code & _PRIMARY_CODE in _NOT_NOW or code == sqlite3.SQLITE_READONLY_DBMOVED:
        return ServiceConnectionError(text)
    return ServiceError(text)


class Transaction:
    """An open transaction on a driver's connection."""

    def __init__(self, database: Database, connection: Any) -> None:  # noqa: ANN401  the driver's own
        self.database = database
        self.has_spoken = False
        """Whether a statement was answered: until then, nothing is lost by starting again on another connection."""
        self._connection = connection
        self._cursor = connection.cursor()

    def rows(self, statement: Statement, **values: object) -> list[Row]:
        """All rows that the statement answers."""
        prepared = self.database.prepared(statement)
        self._execute(prepared.sql, prepared.parameters(values))
        try:
            found = self._cursor.fetchall()  # SQLite does part of a statement's work here
        except self.database.driver_errors as error:
            raise self.database.translated(error, self._connection) from error
        return [prepared.row(row) for row in found]

    def row(self, statement: Statement, **values: object) -> Row | None:
        """The first row, None when there is none."""
        found = self.rows(statement, **values)
        return found[0] if found else None

    def run(self, statement: Statement, **values: object) -> int:
        """How many rows the statement changed."""
        prepared = self.database.prepared(statement)
        self._execute(prepared.sql, prepared.parameters(values))
        return int(self._cursor.rowcount)

    def run_many(self, statement: Statement, rows: Iterable[Row]) -> None:
        """Execute the statement once for each of the rows."""
        prepared = self.database.prepared(statement)
        todo = [prepared.parameters(row) for row in rows]
        if not todo:
            return
        try:
            self._cursor.executemany(prepared.sql, todo)
        except self.database.driver_errors as error:
            raise self.database.translated(error, self._connection) from error
        self.has_spoken = True

    def lock(self, kind: str, name: str = "", *, shared: bool = False) -> None:
        """Wait for others that hold the same lock, till the end of the transaction. SQLite has one writer anyway."""
        if self.database.is_postgresql:
            key = int.from_bytes(hashlib.blake2b(f"{kind} {name}".encode(), digest_size=8).digest(), signed=True)
            self._execute(f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}({key})", ())

    def commit(self) -> None:
        """End the transaction; what it did is durable then."""
        try:
            self._connection.commit()
        except self.database.driver_errors as error:
            raise self.database.translated(error, self._connection) from error

    def command(self, sql: str) -> None:
        """A command without parameters, such as ``BEGIN``."""
        self._execute(sql, ())

    def _execute(self, sql: str, parameters: Any) -> None:  # noqa: ANN401  as the driver takes them
        try:
            self._cursor.execute(sql, parameters)
        except self.database.driver_errors as error:
            raise self.database.translated(error, self._connection) from error
        self.has_spoken = True
