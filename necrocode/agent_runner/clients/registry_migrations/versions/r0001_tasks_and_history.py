"""Tasks, events, artifacts: what the first release made."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "tasks",
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
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
    )
    op.create_index("tasks_by_id", "tasks", ["task_id"])
    _history("events", sa.Column("event_type", sa.Text, nullable=False), sa.Column("data", sa.JSON, nullable=False))
    _history(
        "artifacts",
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("metadata", sa.JSON, nullable=False),
    )


def _history(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("sequence", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("spec_name", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        *columns,
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["spec_name", "task_id"], ["tasks.spec_name", "tasks.task_id"], ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index(f"{name}_by_task", name, ["spec_name", "task_id", "sequence"])
