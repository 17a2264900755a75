"""What the services keep records of: slots, tasks, events, artifacts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from necrocode.agent_runner._strict import Value


class SlotAllocation(Value):
    """A leased workspace. The fields after ``slot_path`` are None where a repo pool service does not give them."""

    slot_id: str
    slot_path: Path
    repo_url: str | None = None
    base_commit: str | None = None
    epoch: int | None = None
    """Grows with every allocation of the slot; a write with an older one is refused."""
    lease_token: str | None = None
    expires_at: datetime | None = None


class TaskRecord(Value):
    """A task as the registry holds it."""

    task_id: str
    spec_name: str
    status: str
    title: str = ""
    description: str = ""
    acceptance_criteria: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    required_skill: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    attempt: int = 0
    """How often the task has gone to ``running``."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class EventRecord(Value):
    """One event of a task."""

    sequence: int
    task_id: str
    spec_name: str
    event_type: str
    data: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None


class ArtifactRecord(Value):
    """One artifact as the registry knows it."""

    task_id: str
    spec_name: str
    type: str
    uri: str
    size_bytes: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None
