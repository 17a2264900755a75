"""What comes out of a run (:class:`RunnerResult`), and its parts."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from necrocode.agent_runner._strict import Value, Writable
from necrocode.agent_runner.test_results import TestResult

RESULT_SCHEMA_VERSION = 1
# Exact in Python; a float of at most six decimal places is written, and read again, as the same number.
UsdInJson = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]


class ImplementationResult(Value):
    """The change that the model's answer became."""

    base_commit: str
    commit: str
    ref: str
    """The ref that keeps the commit, whatever becomes of the run."""
    tree: str
    files: tuple[str, ...]
    protected_files: tuple[str, ...] = ()
    """Those of them that decide what runs elsewhere, or that ``protected_paths`` names: look at them before merging."""
    explanation: str = ""
    model: str = ""
    edit_format: str = ""
    tokens_used: int = 0
    commit_message: str = ""


class PushResult(Value):
    """Where the commit was delivered."""

    branch: str
    commit: str
    repository: Writable
    """The repository that now has the branch: a remote's URL, or where ``pushed`` is false a local path."""
    pushed: bool


class Artifact(Value):
    """One stored artifact."""

    type: Writable
    uri: Writable
    size_bytes: int
    sha256: Writable


class ErrorDetails(Value):
    """A failed run's error, for programs."""

    type: str
    """The name of a class of :mod:`necrocode.agent_runner.errors`; ``TestsFailed`` where the tests said no."""
    message: str
    step: str | None = None
    hint: str | None = None
    retryable: bool = False
    status_code: int | None = None


class RunUsage(Value):
    """What a run used of the model, as far as it is known."""

    calls: int = 0
    """Questions; one that the client tried again is one question."""
    prompt_tokens: int = 0
    """Cached ones included."""
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cost_usd: UsdInJson | None = None
    """US dollars at the prices of ``llm.prices``, a number in JSON. None: the price is not known."""
    is_estimated: bool = False
    """Whether some of the numbers are estimates: an answer without usage, or one that was paid for and never came."""
    price_known: bool = False
    """Whether ``llm.prices`` has the model."""


class RoundResult(Value):
    """What came of one answer of the model."""

    round: int
    """0: the first question; n: the n-th repair round."""
    candidate: int = 1
    """Which of the answers to that question it is; there is one unless ``LLMConfig.candidates`` asks for more."""
    outcome: Literal["accepted", "tests-failed", "unparsable", "unusable", "unanswered"]
    """``unparsable``: code that parsed before no longer does; ``unusable``: no change set, or a refused one;
    ``unanswered``: the question was not asked, or brought no answer."""
    message: str = ""
    """One line on what was wrong; empty when it was accepted."""
    edit_format: str = ""
    tokens_used: int = 0
    commit: str | None = None
    ref: str | None = None
    """The ref that keeps the commit."""


class RunnerResult(Value):
    """What came of a run. JSON: ``result.model_dump_json()``; fields are only ever added within a schema version."""

    schema_version: int = RESULT_SCHEMA_VERSION
    success: bool
    """Whether the change was applied, the tests (where there are any) passed, and the branch was delivered."""
    status: Literal["done", "failed", "cancelled"]
    runner_id: str
    run_id: str
    task_id: str
    spec_name: str
    branch: str
    started_at: datetime
    duration_seconds: float
    timings: dict[str, float]
    """Seconds by step."""
    artifacts: tuple[Artifact, ...] = ()
    error: str | None = None
    error_details: ErrorDetails | None = None
    impl_result: ImplementationResult | None = None
    test_result: TestResult | None = None
    push_result: PushResult | None = None
    rounds: tuple[RoundResult, ...] = ()
    """Every answer that was tried, in order; ``impl_result`` and ``test_result`` are those of the best one.

    Of several candidates those after the accepted one are not tried; all are in the transcript.
    """
    reported: Literal["yes", "pending", "no"] = "yes"
    """Whether the registry has the final status. ``pending``: it is kept in the outbox, and sent later."""
    resumed: bool = False
    """Whether the run was interrupted before, and went on from its journal: ``run_id`` is that of the first time."""
    lease_epoch: int | None = None
    """The number of this run's claim on the task; later claims have higher ones. None: a registry without leases."""
    usage: RunUsage = Field(default_factory=RunUsage)
    """What was used of the model."""
    warnings: tuple[str, ...] = ()
    """What went wrong without making the run fail, such as an artifact that was not stored."""
