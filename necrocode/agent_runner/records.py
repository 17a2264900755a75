"""What the services keep records of: slots, tasks, events, artifacts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from necrocode.agent_runner import _names
from necrocode.agent_runner._strict import JsonObject, StrictModel, Value
from necrocode.agent_runner._text import is_writable
from necrocode.agent_runner.errors import RunnerError, TaskContextValidationError

TaskStatus = Literal["blocked", "ready", "running", "done", "failed", "cancelled"]


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

    @field_validator("slot_id", "slot_path", "repo_url", "base_commit", "lease_token", mode="before")
    @classmethod
    def _check_text(cls, value: object) -> object:
        if isinstance(value, str) and ("\0" in value or not is_writable(value)):
            raise ValueError("holds a NUL or half a character")
        return value


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


class TaskDefinition(StrictModel):
    """A task as it is put into a registry."""

    error_type: ClassVar[type[RunnerError]] = TaskContextValidationError
    what: ClassVar[str] = "task"

    task_id: str
    title: str = Field(default="", max_length=500)
    description: str = Field(default="", max_length=200_000)
    acceptance_criteria: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    """Ids of tasks of the same spec. Until all of them are ``done`` the task is ``blocked``."""
    required_skill: str | None = Field(default=None, min_length=1, max_length=200)
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    """Among tasks that are ready, the higher one is claimed first."""
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("task_id")
    @classmethod
    def _check_task_id(cls, value: str) -> str:
        return _names.check_task_id(value)

    @field_validator("dependencies")
    @classmethod
    def _check_dependencies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_names.check_task_id(task_id) for task_id in value)


class TaskSet(StrictModel):
    """A spec and all its tasks."""

    error_type: ClassVar[type[RunnerError]] = TaskContextValidationError
    what: ClassVar[str] = "task set"

    spec_name: str
    description: str = Field(default="", max_length=200_000)
    tasks: tuple[TaskDefinition, ...] = Field(max_length=100_000)
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("spec_name")
    @classmethod
    def _check_spec_name(cls, value: str) -> str:
        return _names.check_spec_name(value)


class TaskLease(Value):
    """A runner's hold on a task."""

    token: str
    epoch: int
    """Grows with every claim of the task; a write that carries an older one is refused."""
    expires_at: datetime
    cancel_requested: bool = False
    """Whether somebody asked the runner to stop."""
