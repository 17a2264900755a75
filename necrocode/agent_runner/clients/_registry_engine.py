"""An engine for work on a registry's whole database: backup, restore, upgrade. It makes and changes no tables."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from necrocode.agent_runner._text import one_line
from necrocode.agent_runner.clients._registry_sql import BUSY_TIMEOUT_SECONDS, POSTGRES_ARGUMENTS, configure_sqlite
from necrocode.agent_runner.errors import ConfigurationError, ServiceConnectionError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def database_transaction(url: str, *, read_only: bool = False) -> Iterator[sa.Connection]:
    """A transaction on the database that ``sqlite:///path`` or ``postgresql://…`` names.

    With ``read_only`` what is read is as it was at one moment, while others go on writing; a database that is not there
    is an error then, and not made. Raises ``ConfigurationError``, ``ServiceConnectionError`` or ``ServiceError``.
    """
    engine = _engine(url, read_only=read_only)
    name = engine.url.render_as_string(hide_password=True)
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.OperationalError as error:
        raise ServiceConnectionError(
            f"The task registry's database {name} cannot be used: {one_line(str(error.orig))}."
        ) from error
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise ServiceError(f"The task registry's database {name} failed: {one_line(str(cause))}.") from error
    finally:
        engine.dispose()


def _engine(url: str, *, read_only: bool) -> sa.Engine:
    if url.startswith("sqlite:///") and url.removeprefix("sqlite:///"):
        return _sqlite_engine(Path(url.removeprefix("sqlite:///")), read_only=read_only)
    if url.startswith(("postgresql://", "postgres://")):
        return _postgres_engine(url, read_only=read_only)
    raise ConfigurationError(
        "Backup, restore and upgrade work on the registry's database itself, not through a service.",
        hint="Name it: --registry sqlite:///path or --registry postgresql://user@host/database.",
    )


def _sqlite_engine(file: Path, *, read_only: bool) -> sa.Engine:
    if read_only and not file.exists():
        raise ConfigurationError(f"There is no task registry {file}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceConnectionError(f"The task registry {file} cannot be made: {error.strerror}.") from error
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(file)), connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )

    def connected(connection: Any, _record: object) -> None:  # noqa: ANN401  sqlite3's own connection
        configure_sqlite(connection)

    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", begun)
    return engine


def _postgres_engine(url: str, *, read_only: bool) -> sa.Engine:
    try:
        return sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"),
            isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
            connect_args=POSTGRES_ARGUMENTS,
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"A task registry in PostgreSQL needs the package {error.name}.",
            hint="Install it: pip install 'necrocode[services]'",
        ) from error
    except (SQLAlchemyError, ValueError) as error:
        raise ConfigurationError("The URL of the task registry's PostgreSQL database cannot be read.") from error
