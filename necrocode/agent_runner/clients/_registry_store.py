"""Where a registry's tables live: a SQLite file with one group-committing writer, or a PostgreSQL with a pool.

Both run an operation, a function of an open :class:`Transaction`, and give its result when it is durable: to a caller
who waits (``read``, ``write``) or as a future (``submit``, ``submit_read``).
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from necrocode.agent_runner.clients._group_commit import GroupWriter
from necrocode.agent_runner.clients._registry_json import from_json, to_json
from necrocode.agent_runner.clients._registry_sql import (
    BUSY_TIMEOUT_SECONDS,
    POSTGRES_ARGUMENTS,
    Database,
    Transaction,
    configure_sqlite,
    failure,
)
from necrocode.agent_runner.clients._registry_upgrade import schema_revision, upgrade_schema
from necrocode.agent_runner.clients.registry_schema import HEAD_REVISION
from necrocode.agent_runner.errors import (
    ConfigurationError,
    RunnerError,
    ServiceConnectionError,
    ServiceError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_POOL_SIZE = 16
_LEFT_TO_THE_PARENT: list[object] = []  # connections of a parent process: closing them here would disturb it there
_Result = TypeVar("_Result")
_Place = tuple[int, int]


class RegistryStore(Protocol):
    """A database of a registry. Safe for threads, several processes, and in a child after a fork."""

    def read(self, operation: Callable[[Transaction], _Result]) -> _Result:
        """The result of an operation that changes nothing."""

    def write(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> _Result:
        """The result of an operation, durable. It has no effect when it raises.

        ``by_statement``: each of its statements makes sense alone, so a transaction around them may be saved.
        """

    def submit(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> Future[_Result]:
        """As ``write``, without waiting."""

    def submit_read(self, operation: Callable[[Transaction], _Result]) -> Future[_Result]:
        """As ``read``, without waiting."""

    def close(self) -> None:
        """Finish what was submitted and close the connections; a later call opens them again."""

    def connection(self, *, read_only: bool = False) -> AbstractContextManager[sa.Connection]:
        """SQLAlchemy's own connection in a transaction, for work on whole tables."""


def open_store(url: str) -> RegistryStore:
    """The store that a URL names: ``sqlite:///path`` or ``postgresql://user@host/database``; nothing is opened yet."""
    if url.startswith("sqlite:///") and url.removeprefix("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")))
    if url.startswith(("postgresql://", "postgres://")):
        return PostgresStore(url)
    raise ConfigurationError(
        f"The task registry URL {_without_password(url)!r} must be sqlite:///path, postgresql://user@host/database,"
        " or http(s)://host:port."
    )


class _PooledStore:
    """What is the same for both: an engine made at the first use, its schema brought up to date, threads for reads."""

    _begin: ClassVar[str | None]
    """What opens a transaction, where the driver does not do that by itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._forget()
        _STORES.add(self)

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._engine: sa.Engine | None = None
        self._opened: Database | None = None
        self._threads: ThreadPoolExecutor | None = None

    def forget_in_child(self) -> None:
        """Be as new in a child process, which has neither the threads nor a right to the connections."""
        _LEFT_TO_THE_PARENT.append(self._engine)
        self._forget()

    def _make_engine(self) -> sa.Engine:
        raise NotImplementedError

    def _open(self) -> tuple[sa.Engine, Database]:
        """The engine and database, the schema being that of this code."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make_engine()
            if self._opened is None:
                with self._translating():
                    _bring_up_to_date(self._engine)
                self._opened = Database(self._engine, self._name)
            return self._engine, self._opened

    def read(self, operation: Callable[[Transaction], _Result]) -> _Result:
        """The result of an operation that changes nothing."""
        return self._in_transaction(operation)

    def _in_transaction(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> _Result:
        engine, database = self._open()
        connection = self._borrowed(engine)
        driver_connection: Any = connection.driver_connection
        try:
            if self._begin is None and driver_connection.autocommit != by_statement:
                driver_connection.autocommit = by_statement  # and stays so: the next may well be of the same kind
            transaction = Transaction(database, driver_connection)
            try:
                if self._begin is not None:
                    transaction.command(self._begin)
                result = operation(transaction)
                if not by_statement:
                    transaction.commit()
            except ServiceConnectionError:
                connection.invalidate()
                raise
            except BaseException:
                driver_connection.rollback()
                raise
        finally:
            connection.close()
        return result

    def _borrowed(self, engine: sa.Engine) -> sa.PoolProxiedConnection:
        """A connection of the pool, which lets the driver's own errors through."""
        driver: Any = engine.dialect.loaded_dbapi
        with self._translating():
            try:
                return engine.raw_connection()
            except driver.Error as error:
                told = next((str(part) for part in error.args if part), "no reason given")
                raise ServiceConnectionError(f"Failed to connect to {self._name} (task registry): {told}.") from error

    def submit_read(self, operation: Callable[[Transaction], _Result]) -> Future[_Result]:
        """As ``read``, without waiting."""
        return self._executor().submit(self.read, operation)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_POOL_SIZE, thread_name_prefix="necrocode-registry")
            return self._threads

    def close(self) -> None:
        """Finish what was submitted and close the connections."""
        with self._lock:
            threads, engine = self._threads, self._engine
            self._threads = self._engine = self._opened = None
        if threads is not None:
            threads.shutdown()
        if engine is not None:
            engine.dispose()

    @contextmanager
    def connection(self, *, read_only: bool = False) -> Iterator[sa.Connection]:
        """SQLAlchemy's own connection in a transaction."""
        engine, _ = self._open()
        with self._translating(), engine.execution_options(read_only=read_only).begin() as connection:
            yield connection

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except RunnerError:  # ours already; some of them are an OSError too
            raise
        except OSError as error:
            raise ServiceConnectionError(f"The task registry cannot use {self._name}: {error.strerror}.") from error
        except SQLAlchemyError as error:
            raise self._translated(error) from error

    def _translated(self, error: SQLAlchemyError) -> ServiceError:
        return failure(self._name, getattr(error, "orig", None) or error)


_STORES: weakref.WeakSet[_PooledStore] = weakref.WeakSet()


def _forget_all() -> None:
    for store in list(_STORES):
        store.forget_in_child()


os.register_at_fork(after_in_child=_forget_all)


class SqliteStore(_PooledStore):
    """A SQLite file: readers see the last commit and wait for nobody; all writes go through one writer."""

    _begin = "BEGIN"

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        connect = weakref.WeakMethod(self._connect_writer)  # else the writer's thread would keep the store alive
        self._writer = GroupWriter(lambda: _called(connect))

    def write(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> _Result:
        """The result of an operation, durable."""
        return self.submit(operation, by_statement=by_statement).result()

    def submit(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> Future[_Result]:  # noqa: ARG002  one transaction is the writer's way anyway
        """As ``write``, without waiting."""
        return self._writer.submit(operation)

    def close(self) -> None:
        """Finish what was submitted and close the file."""
        self._writer.close()
        super().close()

    def _make_engine(self) -> sa.Engine:
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self._file)),  # a path may hold what means something in a URL
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
            json_serializer=to_json,
            json_deserializer=from_json,
            pool_size=_POOL_SIZE,
        )
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        with self._translating():
            self._file.parent.mkdir(parents=True, exist_ok=True)
        return engine

    def _forget(self) -> None:
        super()._forget()
        self._place: _Place | None = None

    def _open(self) -> tuple[sa.Engine, Database]:
        """The engine and database of the file that has the name now; one that vanished is not made anew, empty."""
        with self._lock:
            place = _place_of(self._file)
            if self._engine is not None and self._opened is not None and place != self._place:
                if place is None:
                    raise _replaced(self._file)
                self._engine.dispose()
                self._engine = self._opened = None
            is_open = self._opened is not None
            opened = super()._open()
            if not is_open:
                self._place = _place_of(self._file)
            return opened

    def _connect_writer(self) -> _SqliteWriter:
        engine, database = self._open()
        return _SqliteWriter(database, self._borrowed(engine), self._file, self._place)


class _SqliteWriter:
    """The writer's own connection."""

    def __init__(
        self, database: Database, connection: sa.PoolProxiedConnection, file: Path, place: _Place | None
    ) -> None:
        self._connection = connection
        self._file = file
        self._place = place
        self._driver: Any = connection.driver_connection
        self.transaction = Transaction(database, self._driver)

    @property
    def in_transaction(self) -> bool:
        is_open: bool = self._driver.in_transaction
        return is_open

    def check(self) -> None:
        if _place_of(self._file) != self._place:
            raise _replaced(self._file)

    def close(self) -> None:
        self._connection.invalidate()  # after an error nobody knows what state it is in
        self._connection.close()


def _place_of(file: Path) -> _Place | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _replaced(file: Path) -> ServiceConnectionError:
    return ServiceConnectionError(
        f"The task registry's file {file} was deleted or replaced while it was in use.",
        hint="Put it back, or start anew to begin with an empty one.",
    )


def _called(connect: weakref.WeakMethod[Callable[[], _SqliteWriter]]) -> _SqliteWriter:
    method = connect()
    if method is None:
        raise ServiceError("The task registry was thrown away before it had written.")
    return method()


class PostgresStore(_PooledStore):
    """A PostgreSQL database: every operation is a transaction on one of a bounded number of connections."""

    _begin = None

    def __init__(self, url: str) -> None:
        super().__init__(_without_password(url))
        self._url = url

    def write(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> _Result:
        """The result of an operation, durable."""
        return self._in_transaction(operation, by_statement=by_statement)

    def submit(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> Future[_Result]:
        """As ``write``, without waiting."""
        return self._executor().submit(self.write, operation, by_statement=by_statement)

    def _in_transaction(self, operation: Callable[[Transaction], _Result], *, by_statement: bool = False) -> _Result:
        started: list[Transaction] = []

        def watched(transaction: Transaction) -> _Result:
            started.append(transaction)
            return operation(transaction)

        try:
            return super()._in_transaction(watched, by_statement=by_statement)
        except ServiceConnectionError:
            if not started or started[0].has_spoken:
                raise
        with self._lock:  # the server was restarted: what the pool still has is dead, and nothing has been done yet
            if self._engine is not None:
                self._engine.dispose()
        return super()._in_transaction(operation, by_statement=by_statement)

    def _make_engine(self) -> sa.Engine:
        try:
            engine = sa.create_engine(
                sa.make_url(self._url).set(drivername="postgresql+psycopg"),
                json_serializer=to_json,
                json_deserializer=from_json,
                pool_reset_on_return=None,  # every transaction is ended by who began it
                pool_size=_POOL_SIZE,
                max_overflow=0,
                connect_args=POSTGRES_ARGUMENTS,
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"A task registry in PostgreSQL needs the package {error.name}.",
                hint="Install it: pip install 'necrocode[services]'",
            ) from error
        sa.event.listen(engine, "begin", _begin_postgres)
        return engine

    def _translated(self, error: SQLAlchemyError) -> ServiceError:
        if isinstance(error, sa.exc.TimeoutError):
            return ServiceConnectionError(f"All {_POOL_SIZE} connections to {self._name} stay busy.")
        known = super()._translated(error)
        if isinstance(error, sa.exc.OperationalError) and not isinstance(known, StorageFullError):
            return ServiceConnectionError(f"Failed to connect to {self._name} (task registry): {error.orig}.")
        return known


def _bring_up_to_date(engine: sa.Engine) -> None:
    with engine.execution_options(read_only=True).begin() as connection:
        revision = schema_revision(connection)
    if revision != HEAD_REVISION:
        with engine.begin() as connection:
            upgrade_schema(connection)


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return url.partition("://")[0] or "without a scheme"


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  SQLAlchemy's signature
    configure_sqlite(connection)


def _begin_postgres(connection: sa.Connection) -> None:
    driver: Any = connection.connection.driver_connection
    driver.autocommit = False  # a claim may have been there before


def _begin_sqlite(connection: sa.Connection) -> None:
    """Writers queue at the start of a transaction, not in its middle, where SQLite would refuse them (SQLITE_BUSY)."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
