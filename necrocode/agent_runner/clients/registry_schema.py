"""The tables of the task registry, the same in SQLite and PostgreSQL.

``tests/clients/test_registry_migrations.py`` holds them to what the migrations make.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from necrocode.agent_runner.spending import Spending

HEAD_REVISION = "0003"
KNOWN_REVISIONS = ("0001", "0002", HEAD_REVISION)
"""Every schema that this code can bring up to date; another one is of a newer release."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no time zone, PostgreSQL answers in its session's."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> datetime | None:  # noqa: ARG002  SQLAlchemy's signature
        """What is stored."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:  # noqa: ARG002  SQLAlchemy's signature
        """What is read."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up an INTEGER PRIMARY KEY only

metadata = sa.MetaData()

specs = sa.Table(
    "specs",
    metadata,
    sa.Column("spec_name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("spec_name", sa.Text, primary_key=True),
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("acceptance_criteria", sa.JSON, nullable=False),
    sa.Column("dependencies", sa.JSON, nullable=False),
    sa.Column("required_skill", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease_token", sa.Text),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
)
"""``position`` grows in the order in which tasks are made. ``epoch`` grows with every claim; the lease's other columns
are null while nobody holds the task."""

sa.Index("tasks_by_id", tasks.c.task_id)
sa.Index("tasks_by_position", tasks.c.position)
sa.Index("tasks_by_spec", tasks.c.spec_name, tasks.c.position)
sa.Index("tasks_by_status", tasks.c.status, tasks.c.priority.desc(), tasks.c.position)


sa.Index("tasks_by_skill", tasks.c.required_skill, tasks.c.status, tasks.c.priority.desc(), tasks.c.position)
_is_ready = tasks.c.status == sa.literal_column("'ready'")
_claim_order = (tasks.c.spec_name, tasks.c.priority.desc(), tasks.c.position)
sa.Index("tasks_ready_by_spec", *_claim_order, sqlite_where=_is_ready, postgresql_where=_is_ready)
_is_leased = tasks.c.lease_expires_at.is_not(None)
sa.Index("tasks_by_lease", tasks.c.lease_expires_at, sqlite_where=_is_leased, postgresql_where=_is_leased)

dependencies = sa.Table(
    "dependencies",
    metadata,
    sa.Column("spec_name", sa.Text, primary_key=True),
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("depends_on", sa.Text, primary_key=True),
    sa.ForeignKeyConstraint(["spec_name", "task_id"], ["tasks.spec_name", "tasks.task_id"], ondelete="CASCADE"),
    sa.Index("dependencies_by_dependency", "spec_name", "depends_on", "task_id"),
)
"""What each task waits for. ``depends_on`` may name a task that the registry does not know, which holds nobody up."""


def _history_table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("sequence", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("spec_name", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        *columns,
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(["spec_name", "task_id"], ["tasks.spec_name", "tasks.task_id"], ondelete="CASCADE"),
        sa.Index(f"{name}_by_task", "spec_name", "task_id", "sequence"),
        sqlite_autoincrement=True,
    )


events = _history_table(
    "events", sa.Column("event_type", sa.Text, nullable=False), sa.Column("data", sa.JSON, nullable=False)
)
sa.Index("events_by_time", events.c.created_at)

artifacts = _history_table(
    "artifacts",
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("metadata", sa.JSON, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index("idempotency_keys_by_time", "created_at"),
)
"""The first answer to each write that came with a key, made in the same transaction as the write's effect."""


def _spending_columns() -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in Spending.model_fields]


budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("spec_name", sa.Text, primary_key=True),
    sa.Column("began_at", UtcDateTime, nullable=False),
    *_spending_columns(),
)
"""What each spec has spent: the sum of all reservations that were settled since ``began_at``."""

budget_reservations = sa.Table(
    "budget_reservations",
    metadata,
    sa.Column("spec_name", sa.Text, primary_key=True),
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    *_spending_columns(),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("settled_at", UtcDateTime),
    sa.Index("budget_reservations_by_spec", "spec_name", "settled_at"),
    sa.Index("budget_reservations_by_time", "settled_at"),
)
"""``settled_at`` is null while nobody has told what the question came to. A settled one stays for a day, so that it is
known when it is told again."""

alembic_version = sa.Table(
    "alembic_version",
    sa.MetaData(),  # not among the registry's own tables: alembic makes and moves it
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
