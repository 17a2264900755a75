"""What requests to the task registry hold, and the limits on it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BaseModel, Field

from necrocode.agent_runner import _names
from necrocode.agent_runner._strict import JsonObject
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from necrocode.agent_runner.spending import MICRO, MOST_SPENT, Spending, SpendingLimits

_LONGEST_TEXT = 200_000
_LONGEST_LEASE_SECONDS = 7 * 86_400
_LONGEST_RESERVATION_SECONDS = 8 * 86_400
_MOST_BYTES = 2**62

TaskId = Annotated[
    str,
    Path(description="Unique within its spec.", min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
]
SpecInPath = Annotated[str, Path(min_length=1, max_length=128), AfterValidator(_names.check_spec_name)]
RequiredSpec = Annotated[str, Query(min_length=1, max_length=128), AfterValidator(_names.check_spec_name)]


def _checked_spec(value: str | None) -> str | None:
    return None if value is None else _names.check_spec_name(value)


OptionalSpec = Annotated[
    str | None,
    Query(description="Needed where the task id names tasks of several specs.", min_length=1, max_length=128),
    AfterValidator(_checked_spec),
]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most items of a page.")]
Cursor = Annotated[str | None, Query(max_length=2000, description="The next_cursor of the page before.")]
LeaseToken = Annotated[str, Header(alias="X-Lease-Token", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
ReservationId = Annotated[
    str,
    Path(description="The runner's own name for it.", min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$"),
]
Count = Annotated[int, Field(ge=0, le=MOST_SPENT)]
LeaseSeconds = Annotated[float, Field(gt=0, le=_LONGEST_LEASE_SECONDS, allow_inf_nan=False)]
Skill = Annotated[str, Field(min_length=1, max_length=200)]


class StatusBody(BaseModel):
    """A new state."""

    status: str = Field(
        max_length=50,
        description="blocked, ready, running, done, failed or cancelled; also pending, in_progress and completed.",
    )
    metadata: JsonObject | None = Field(default=None, description="Added to what the task has.")


class EventBody(BaseModel):
    """Something that happened."""

    event_type: str = Field(max_length=1000)
    data: JsonObject | None = None


class ArtifactBody(BaseModel):
    """Where an artifact is stored."""

    type: str = Field(max_length=1000)
    uri: str = Field(max_length=10_000)
    size_bytes: int | None = Field(default=None, ge=0, le=_MOST_BYTES)
    metadata: JsonObject | None = None


class TaskBody(BaseModel):
    """A task's definition; its id and spec are in the URL."""

    title: str = Field(default="", max_length=500)
    description: str = Field(default="", max_length=_LONGEST_TEXT)
    acceptance_criteria: list[str] = Field(default_factory=list)
    dependencies: list[str] = Field(default_factory=list, max_length=10_000)
    required_skill: Skill | None = None
    priority: int | None = Field(
        default=None, ge=-1_000_000, le=1_000_000, description="Left out or null: 0, or as it was."
    )
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskInSet(TaskBody):
    """A task of a task set."""

    task_id: str = Field(max_length=128)

    def definition(self) -> TaskDefinition:
        """The task, its ids checked; ``TaskContextValidationError``."""
        return TaskDefinition(**self.model_dump(exclude={"priority"} if self.priority is None else set()))


class TaskSetBody(BaseModel):
    """A spec and all its tasks."""

    spec_name: str = Field(max_length=128)
    description: str = Field(default="", max_length=_LONGEST_TEXT)
    tasks: list[TaskInSet] = Field(max_length=100_000)
    metadata: dict[str, Any] = Field(default_factory=dict)

    def taskset(self) -> TaskSet:
        """The task set, its names checked; ``TaskContextValidationError``."""
        tasks = tuple(task.definition() for task in self.tasks)
        return TaskSet(spec_name=self.spec_name, description=self.description, tasks=tasks, metadata=self.metadata)


class ClaimThisBody(BaseModel):
    """Who wants the task."""

    runner_id: str = Field(min_length=1, max_length=200)
    lease_seconds: LeaseSeconds = 300.0


class ClaimBody(ClaimThisBody):
    """Who wants a task, and which."""

    required_skills: list[Skill] | None = Field(
        default=None, max_length=50, description="Only tasks that want one of these, or none. Left out: any task."
    )
    spec_name: Annotated[str | None, AfterValidator(_checked_spec)] = Field(default=None, max_length=128)


class RenewBody(BaseModel):
    """A lease to hold for longer."""

    lease_token: str = Field(min_length=1, max_length=200)
    lease_seconds: LeaseSeconds = 300.0


class SpendingBody(BaseModel):
    """What one question to a model uses; money in micro-dollars, a millionth of a US dollar."""

    calls: Count = 1
    prompt_tokens: Count = 0
    cached_prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost_micro_usd: Count = 0
    unpriced_calls: Count = Field(default=0, description="1: its price is not known, so it costs 0 here.")
    estimated_calls: Count = Field(default=0, description="1: its tokens are not as the endpoint counted them.")

    def spending(self) -> Spending:
        """The same as the registry takes it."""
        return Spending.model_validate(self.model_dump())


class LimitsBody(BaseModel):
    """What the runs of the spec may spend together, as the asking runner is configured. Left out or null: no limit."""

    max_tokens: Count | None = None
    max_calls: Count | None = None
    max_cost_micro_usd: Annotated[int, Field(ge=0, le=MICRO * MICRO)] | None = None
    max_seconds: Annotated[float, Field(ge=0, le=315_360_000, allow_inf_nan=False)] | None = None

    def limits(self) -> SpendingLimits:
        """The same as the registry takes them."""
        cost = None if self.max_cost_micro_usd is None else Decimal(self.max_cost_micro_usd) / MICRO
        return SpendingLimits(**self.model_dump(exclude={"max_cost_micro_usd"}), max_cost_usd=cost)


class ReserveBody(BaseModel):
    """A question that is about to be asked."""

    reservation_id: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")
    run_id: str = Field(max_length=200)
    need: SpendingBody = Field(description="The most that it may come to.")
    limits: LimitsBody = Field(default_factory=LimitsBody)
    ttl_seconds: Annotated[float, Field(gt=0, le=_LONGEST_RESERVATION_SECONDS, allow_inf_nan=False)] = 3600.0
