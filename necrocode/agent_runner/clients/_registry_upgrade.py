"""Bringing a registry's database to the schema of this code; alembic is imported only when there is something to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from necrocode.agent_runner.clients.registry_schema import HEAD_REVISION, KNOWN_REVISIONS, alembic_version, metadata
from necrocode.agent_runner.errors import ServiceError

if TYPE_CHECKING:
    from alembic.config import Config

_FIRST_REVISION = KNOWN_REVISIONS[0]
_ADVISORY_LOCK = 0x6E656372_6F636F64  # "necrocod": nobody else's lock in a shared database


def schema_revision(connection: sa.Connection) -> str | None:
    """The revision of the database's schema; None while it has no tables of ours.

    A database that the first release made has no mark: it is of the first revision.
    """
    tables = sa.inspect(connection).get_table_names()
    if alembic_version.name in tables:
        revision: str | None = connection.execute(sa.select(alembic_version.c.version_num)).scalar()
        if revision is not None:
            return revision
    return _FIRST_REVISION if "tasks" in tables else None


def upgrade_schema(connection: sa.Connection) -> None:
    """Make or upgrade the tables, in the caller's transaction, which on SQLite must have the write lock already.

    Others who want to do the same wait, and find it done. ``ServiceError`` for a database of a newer release.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    revision = schema_revision(connection)
    if revision == HEAD_REVISION:
        return
    if revision is None:
        metadata.create_all(connection)
        alembic_version.create(connection, checkfirst=True)
        connection.execute(sa.insert(alembic_version).values(version_num=HEAD_REVISION))
        return
    if revision not in KNOWN_REVISIONS:
        raise ServiceError(
            f"The task registry's database has the schema {revision}, made by a newer release of necrocode; this one"
            f" knows those up to {HEAD_REVISION}.",
            hint="Upgrade necrocode.",
        )
    _run_migrations(connection, revision)


def make_older_schema(connection: sa.Connection, revision: str) -> None:
    """Make the tables as an older release had them, in a database without any of ours."""
    from alembic import command  # noqa: PLC0415  only an old backup needs it

    command.upgrade(_alembic_config(connection), revision)


def _run_migrations(connection: sa.Connection, revision: str) -> None:
    from alembic import command  # noqa: PLC0415  needed once in a database's life

    config = _alembic_config(connection)
    if revision == _FIRST_REVISION:
        command.stamp(config, revision)
    command.upgrade(config, HEAD_REVISION)


def _alembic_config(connection: sa.Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415  as alembic's commands

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("registry_migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
