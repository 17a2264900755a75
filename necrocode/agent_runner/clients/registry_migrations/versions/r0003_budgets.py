"""What specs spend on the model."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TIME = sa.DateTime(timezone=True)
_COUNTS = (
    "calls",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "cost_micro_usd",
    "unpriced_calls",
    "estimated_calls",
)


def upgrade() -> None:
    """Add the tables; nothing was counted before."""
    op.create_table(
        "budgets",
        sa.Column("spec_name", sa.Text, primary_key=True),
        sa.Column("began_at", _TIME, nullable=False),
        *_counts(),
    )
    op.create_table(
        "budget_reservations",
        sa.Column("spec_name", sa.Text, primary_key=True),
        sa.Column("reservation_id", sa.Text, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        *_counts(),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
    )
    op.create_index("budget_reservations_by_spec", "budget_reservations", ["spec_name", "settled_at"])
    op.create_index("budget_reservations_by_time", "budget_reservations", ["settled_at"])


def _counts() -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS]
