"""What the services keep records of: slots, tasks, events, artifacts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field, field_validator

from necrocode.agent_runner import _names
from necrocode.agent_runner._strict import JsonObject, StrictModel, Value
from necrocode.agent_runner._text import is_writable
from necrocode.agent_runner.errors import ConfigurationError, RunnerError, TaskContextValidationError
from necrocode.agent_runner.models import TaskContext

SlotState = Literal["warming", "available", "allocated", "cleaning", "quarantined"]
SlotEnd = Literal["released", "forced", "expired"]
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


class SlotRecord(Value):
    """A slot as the pool shows it: who has it, never with which token."""

    slot_id: str
    pool: str = ""
    """The name of the pool."""
    state: SlotState
    slot_path: Path | None = None
    epoch: int = 0
    holder: str | None = None
    allocated_at: datetime | None = None
    """Since when the holder has it."""
    expires_at: datetime | None = None
    """When the lease ends that is not renewed."""
    last_used_at: datetime | None = None
    last_holder: str | None = None
    last_end: SlotEnd | None = None
    """How the last lease ended: by its holder, by an operator, by itself."""
    last_end_at: datetime | None = None
    last_end_by: str | None = None
    """Which operator, where that is known."""
    trouble: str | None = None
    """Why a quarantined slot could not be made ready."""


class PoolUse(Value):
    """What has happened in a pool since it was made."""

    allocations: int = 0
    allocation_seconds: float = 0.0
    """Of all allocations together."""
    last_allocation_seconds: float | None = None
    fetches: int = 0
    released: int = 0
    forced: int = 0
    """Releases by an operator."""
    expired: int = 0
    """Leases that ended by themselves."""
    held: int = 0
    """Leases that have ended, whichever way."""
    held_seconds: float = 0.0
    """Of all of those together."""

    @property
    def average_allocation_seconds(self) -> float | None:
        """None before the first."""
        return self.allocation_seconds / self.allocations if self.allocations else None

    @property
    def average_held_seconds(self) -> float | None:
        """None before the first."""
        return self.held_seconds / self.held if self.held else None


class PoolRecord(Value):
    """The slots of one repository."""

    name: str
    repo_url: str = ""
    pool_size: int
    counts: dict[SlotState, int] = Field(default_factory=dict)
    """Slots by state; a slot that was never needed is not there yet."""
    slots: tuple[SlotRecord, ...] = ()
    use: PoolUse = Field(default_factory=PoolUse)
    trouble: str | None = None
    """Why nothing is known of its slots: its list of them is damaged. None: all is well."""


class PoolDefinition(StrictModel):
    """A pool that an operator asks for."""

    what: ClassVar[str] = "pool"

    repo_url: str = Field(min_length=1, max_length=4096)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Letters, digits, ``.``, ``_`` and ``-``. None: made of the repository's name and URL."""
    pool_size: int | None = Field(default=None, ge=1, le=1000)
    """The most slots that it may have. None: the default."""


class PoolSet(StrictModel):
    """The pools file of a repo pool service."""

    error_type: ClassVar[type[RunnerError]] = ConfigurationError
    what: ClassVar[str] = "pools file"

    pool_size: int | None = Field(default=None, ge=1, le=1000)
    """For every pool that names none. None: as the service is started."""
    pools: tuple[PoolDefinition, ...] = Field(default=(), max_length=1000)


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
    priority: int = 0
    """Among tasks that are ready, the higher one is claimed first."""
    attempt: int = 0
    """How often the task has gone to ``running``."""
    epoch: int = 0
    """How often it has been claimed, or put back by an operator; a write that carries an older one is refused."""
    lease_holder: str | None = None
    """The runner that has claimed it. None: nobody, or a runner that works without a lease."""
    lease_expires_at: datetime | None = None
    cancel_requested: bool = False
    """Whether somebody asked the runner to stop."""
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


class UploadedArtifact(Value):
    """An artifact that the artifact store has taken. Size and hash are of the bytes as they were given."""

    uri: str
    artifact_id: str
    """One path segment; the artifact's name in calls, as good as its URI."""
    sha256: str
    size_bytes: int


class StoredArtifact(UploadedArtifact):
    """One artifact as the artifact store holds it."""

    type: str
    spec_name: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    stored_bytes: int
    """What it takes up in the store, which is less where it is compressed."""
    encoding: Literal["gzip"] | None = None
    """How it is kept; it is always served as it was given."""
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime


class ArtifactPage(Value):
    """Some of the artifacts that a search found."""

    items: tuple[StoredArtifact, ...]
    next_cursor: str | None = None
    """Where the next page begins; None: this is the last."""


class ArtifactFilter(StrictModel):
    """Which artifacts are meant: those that fit everything that is given. With nothing given, all."""

    what: ClassVar[str] = "artifact filter"

    spec_name: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    type: str | None = None
    tag: str | None = None
    since: AwareDatetime | None = None
    """Stored at this moment or later."""
    until: AwareDatetime | None = None
    """Stored before this moment."""

    def fits(self, artifact: StoredArtifact) -> bool:
        """Whether an artifact is meant."""
        wanted = (self.spec_name, self.task_id, self.run_id, self.type)
        found = (artifact.spec_name, artifact.task_id, artifact.run_id, artifact.type)
        return (
            all(one is None or one == other for one, other in zip(wanted, found, strict=True))
            and (self.tag is None or self.tag in artifact.tags)
            and (self.since is None or self.since <= artifact.created_at)
            and (self.until is None or artifact.created_at < self.until)
        )


class DeletedArtifacts(Value):
    """What a deletion did."""

    deleted: int
    freed_bytes: int
    """Of storage; less than their sizes where they were compressed."""


class UsageShare(Value):
    """What some of the artifacts come to."""

    count: int = 0
    size_bytes: int = 0
    stored_bytes: int = 0


class StorageUsage(UsageShare):
    """What all artifacts come to, by spec (``""``: without one) and by type."""

    quota_bytes: int | None = None
    """The most that may be stored. None: no limit."""
    by_spec: dict[str, UsageShare] = Field(default_factory=dict)
    by_type: dict[str, UsageShare] = Field(default_factory=dict)


class SweepReport(DeletedArtifacts):
    """What a retention sweep did; ``leftovers`` counts pieces of uploads that never came to an end."""

    leftovers: int = 0


class VerifyReport(Value):
    """What re-hashing found. The lists name artifacts by id, and orphans by their place in the store."""

    checked: int
    checked_bytes: int
    damaged: tuple[str, ...] = ()
    """Their bytes, or what is written of them, are not what was stored."""
    missing: tuple[str, ...] = ()
    """They are described, but their bytes are gone."""
    orphans: tuple[str, ...] = ()
    """Bytes that nothing describes: leftovers of uploads that died, or artifacts whose description is lost."""


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
    lineage: str = ""
    """Which count the epoch is of; see :class:`Fence`. Empty: the registry does not say."""
    expires_at: datetime
    cancel_requested: bool = False
    """Whether somebody asked the runner to stop."""


class ClaimedTask(TaskRecord):
    """A task, and the hold on it that the claim gave."""

    lease: TaskLease

    def task_context(self, **fields: Any) -> TaskContext:  # noqa: ANN401  the fields of TaskContext
        """The task for :meth:`RunnerOrchestrator.run`, which goes on under this hold; ``fields`` add to it.

        At least ``repo_url`` or ``slot_path``: a registry knows no repositories. ``TaskContextValidationError``.
        """
        known = {
            "task_id": self.task_id,
            "spec_name": self.spec_name,
            "title": self.title.strip() or self.task_id,
            "description": self.description,
            "acceptance_criteria": self.acceptance_criteria,
            "dependencies": self.dependencies,
            "required_skill": self.required_skill,
            "metadata": self.metadata,
            "lease": self.lease,
        }
        return TaskContext(**(known | fields))


class TaskSetRecord(Value):
    """A spec as the registry holds it; ``tasks`` in the order in which they were made."""

    spec_name: str
    description: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)
    tasks: tuple[TaskRecord, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


class TaskPage(Value):
    """A part of a search's result."""

    items: tuple[TaskRecord, ...]
    next_cursor: str | None = None
    """Where the next part begins; None: this was the last."""


class EventPage(Value):
    """A part of the events; see :class:`TaskPage`."""

    items: tuple[EventRecord, ...]
    next_cursor: str | None = None


class ArtifactRecordPage(Value):
    """A part of a task's artifact records; see :class:`TaskPage`."""

    items: tuple[ArtifactRecord, ...]
    next_cursor: str | None = None
