"""Specs, dependencies, priorities, leases and idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_BATCH = 1000


def upgrade() -> None:
    """Add the tables and columns, and fill them from what is there."""
    _add_tables()
    _add_columns()
    _add_indexes()
    _place_tasks()
    _fill_dependencies()


def _add_tables() -> None:
    op.create_table(
        "specs",
        sa.Column("spec_name", sa.Text, primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
    )
    op.create_table(
        "dependencies",
        sa.Column("spec_name", sa.Text, primary_key=True),
        sa.Column("task_id", sa.Text, primary_key=True),
        sa.Column("depends_on", sa.Text, primary_key=True),
        sa.ForeignKeyConstraint(["spec_name", "task_id"], ["tasks.spec_name", "tasks.task_id"], ondelete="CASCADE"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )


def _add_columns() -> None:
    for column in (
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_token", sa.Text),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_expires_at", _TIME),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("tasks", column)


def _add_indexes() -> None:
    descending = sa.text("priority DESC")
    op.create_index("tasks_by_position", "tasks", ["position"])
    op.create_index("tasks_by_spec", "tasks", ["spec_name", "position"])
    op.create_index("tasks_by_status", "tasks", ["status", descending, "position"])
    op.create_index("tasks_by_skill", "tasks", ["required_skill", "status", descending, "position"])
    ready = sa.text("status = 'ready'")
    order: list[str | sa.TextClause] = ["spec_name", descending, "position"]
    op.create_index("tasks_ready_by_spec", "tasks", order, sqlite_where=ready, postgresql_where=ready)
    leased = sa.text("lease_expires_at IS NOT NULL")
    op.create_index("tasks_by_lease", "tasks", ["lease_expires_at"], sqlite_where=leased, postgresql_where=leased)
    op.create_index("dependencies_by_dependency", "dependencies", ["spec_name", "depends_on", "task_id"])
    op.create_index("events_by_time", "events", ["created_at"])
    op.create_index("idempotency_keys_by_time", "idempotency_keys", ["created_at"])


def _place_tasks() -> None:
    """Older tasks come first."""
    op.execute(
        "UPDATE tasks SET position = ordered.place FROM (SELECT spec_name AS s, task_id AS t,"
        " row_number() OVER (ORDER BY created_at, spec_name, task_id) AS place FROM tasks) AS ordered"
        " WHERE ordered.s = tasks.spec_name AND ordered.t = tasks.task_id"
    )


def _fill_dependencies() -> None:
    connection = op.get_bind()
    tasks = sa.table(
        "tasks", sa.column("spec_name", sa.Text), sa.column("task_id", sa.Text), sa.column("dependencies", sa.JSON)
    )
    table = sa.table("dependencies", sa.column("spec_name"), sa.column("task_id"), sa.column("depends_on"))
    found = connection.execute(sa.select(tasks)).all()
    rows = [
        {"spec_name": task.spec_name, "task_id": task.task_id, "depends_on": depends_on}
        for task in found
        for depends_on in dict.fromkeys(task.dependencies)
    ]
    for start in range(0, len(rows), _BATCH):
        connection.execute(sa.insert(table), rows[start : start + _BATCH])
