"""The roles that the steps speak to. HTTP clients, embedded services and callers' own objects stand behind them.

An implementation of the first three may be called from several threads at once, raises only
:class:`~necrocode.agent_runner.errors.RunnerError`, and does its own retrying (callers never retry). The
time that a run has left, and its cancellation, are ``_bounded.current_deadline()`` in the thread of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.models import Message, ModelAnswer, TaskContext
    from necrocode.agent_runner.records import ClaimedTask, SlotAllocation, TaskLease
    from necrocode.agent_runner.spending import BudgetReservation, BudgetUsage, Spending, SpendingLimits
    from necrocode.agent_runner.test_results import TestResult

AnswerFormat = Literal["json", "text"]


class TaskRegistry(Protocol):
    """Task states, events and artifact records.

    ``task_id`` is unique within a spec; without ``spec_name`` a bare id works while it names one task, else
    ``AmbiguousTaskError``. An unknown task is ``TaskNotFoundError``.
    """

    def register_task(self, task: TaskContext) -> None:
        """Make the task known, or bring its record up to date; a finished one becomes ``ready`` again.

        Does nothing, and says so once in the log, where the registry has no such ability. Idempotent.
        """

    def update_task_status(
        self,
        task_id: str,
        status: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
    ) -> None:
        """Move the task to ``blocked ready running done failed cancelled`` (or ``pending in_progress completed``).

        The state it is in already is accepted; one that may not follow it is ``IllegalTransitionError``.
        """

    def add_event(
        self,
        task_id: str,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
    ) -> None:
        """Append an event to the task's history."""

    def add_artifact(
        self,
        task_id: str,
        artifact_type: str,
        uri: str,
        size_bytes: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
    ) -> None:
        """Record where an artifact of the task is stored."""


@runtime_checkable
class TaskLeases(Protocol):
    """Who works on which task, so that two runs never do: the optional part of a task registry.

    A registry that has these methods takes ``lease_epoch`` with every write too, and refuses one that is older than the
    task's (``StaleLeaseError``). A run says it to no other registry.
    """

    def claim_this_task(
        self, task_id: str, runner_id: str, *, lease_seconds: float, spec_name: str | None = None
    ) -> ClaimedTask | None:
        """Hold the task for ``lease_seconds`` under a new epoch; it is ``running`` then. None: no leases after all.

        ``TaskLeasedError`` while another runner holds it; a lease that ran out, or is the runner's own, is taken over.
        """

    def renew_lease(
        self, task_id: str, lease_token: str, *, lease_seconds: float, spec_name: str | None = None
    ) -> TaskLease:
        """Hold it for another ``lease_seconds``; ``StaleLeaseError`` when another runner has it by now."""

    def release_task(self, task_id: str, lease_token: str, *, spec_name: str | None = None) -> object:
        """Let others have it; a task that has ended is held by nobody. Idempotent."""

    def update_task_status(
        self,
        task_id: str,
        status: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
    ) -> None:
        """As :meth:`TaskRegistry.update_task_status`; a state that ends the task ends the lease."""

    def add_event(
        self,
        task_id: str,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
    ) -> None:
        """As :meth:`TaskRegistry.add_event`."""

    def add_artifact(
        self,
        task_id: str,
        artifact_type: str,
        uri: str,
        size_bytes: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
    ) -> None:
        """As :meth:`TaskRegistry.add_artifact`."""


@runtime_checkable
class SpecBudgets(Protocol):
    """What the runs of each spec spend on the model, counted in one place: the optional part of a task registry.

    Nothing is forgotten but by an operator: a reservation that nobody settles counts as spent, for it may have been.
    """

    def reserve_budget(
        self,
        spec_name: str,
        reservation_id: str,
        *,
        run_id: str,
        need: Spending,
        limits: SpendingLimits,
        ttl_seconds: float,
    ) -> BudgetReservation:
        """Set ``need`` aside where all that is spent and reserved stays within ``limits`` with it; else nothing.

        One step, whoever else reserves at the same time. Idempotent: the same id again is granted and counted once.
        After ``ttl_seconds`` the question is taken to have ended without anybody telling what it came to.
        """

    def settle_budget(self, spec_name: str, reservation_id: str, spent: Spending) -> BudgetUsage:
        """Put what a question really came to in the place of what was reserved; no calls: it was not asked.

        Idempotent: what was told first stays. A reservation that is not known, or whose time is over, is settled too.
        """

    def budget_usage(self, spec_name: str) -> BudgetUsage:
        """What was spent and is reserved; nothing at all for a spec that is not known."""


class RepoPool(Protocol):
    """Workspaces ("slots"): clean checkouts of a repository, leased to one holder at a time."""

    def allocate_slot(
        self,
        repo_url: str,
        required_by: str,
        *,
        base_ref: str | None = None,
        timeout_seconds: float | None = None,
        lease_seconds: float | None = None,
    ) -> SlotAllocation:
        """A clean checkout at the newest ``base_ref`` (None: the default branch), held by ``required_by``.

        Waits up to ``timeout_seconds`` (None: the pool's default; 0: not at all), then ``SlotAllocationError``. The
        caller owns the slot until it is released, or until the lease ends without a renewal.
        """

    def renew_lease(self, slot_id: str, lease_token: str, *, lease_seconds: float | None = None) -> None:
        """Keep the slot for another ``lease_seconds``; ``StaleLeaseError`` when it has been given to another."""

    def release_slot(self, slot_id: str, *, lease_token: str | None = None) -> None:
        """Give the slot back; idempotent.

        With another's token ``StaleLeaseError``; without a token an operator's forced release.
        """


class ArtifactStore(Protocol):
    """Where the outputs of runs are kept."""

    def upload(self, artifact_type: str, content: bytes, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the bytes and get their URI; visible only when whole.

        ``metadata`` may hold ``task_id``, ``spec_name`` and ``run_id``, which place the artifact. The same content
        under the same metadata gets the same URI. With ``lease_epoch`` (and ``lease_lineage``, which count that is of)
        a store of ours refuses what is older than the newest that it has seen for the task: ``StaleLeaseError``.
        """

    def ensure_available(self) -> None:
        """Return when an upload can be expected to work; else ``ServiceError`` or ``ArtifactUploadError``.

        Asked before a run pays for a model's answer that it could not store.
        """


class LanguageModel(Protocol):
    """A model that continues a conversation.

    A method ``check()``, where there is one, is called before a run begins: it raises a ``RunnerError`` when the model
    can never be asked, for want of a key for instance.
    """

    def complete(
        self,
        messages: Sequence[Message],
        *,
        answer_format: AnswerFormat = "text",
        max_tokens: int | None = None,
        deadline: Deadline | None = None,
        temperature: float | None = None,
    ) -> ModelAnswer:
        """One whole answer. ``answer_format`` ``json`` asks for structured output where the model can do it.

        ``max_tokens`` and ``temperature`` hold for this answer; None: as the model is configured. The answer says what
        it cost in tokens, told by the endpoint or estimated. May be called from several threads at once.

        Raises a subclass of ``ImplementationError`` for an answer that is cut, refused, filtered or empty, and
        ``ServiceError`` or ``AuthenticationError`` for an endpoint that does not answer. Never blocks past
        ``deadline`` (``RunnerTimeoutError``), and not for long once its ``cancellation`` is requested
        (``RunCancelledError``): a run that waits no longer leaves the call behind. Retries what is worth retrying.
        """


class Sandbox(Protocol):
    """Where untrusted commands run."""

    def ensure_available(self) -> None:
        """Return when commands can be run; else ``ConfigurationError``.

        Asked before a run pays for a model's answer that it could not test.
        """

    def run_tests(
        self,
        commands: Sequence[str],
        checkout: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        fail_fast: bool,
        deadline: Deadline,
        collect: Sequence[str] = (),
        below: Path | None = None,
    ) -> TestResult:
        """Run shell commands over a throw-away copy of ``checkout``, which itself is never written to.

        All commands see one copy, so a later one finds what an earlier one wrote; it is dropped afterwards. A command
        that fails or runs out of time is a result. ``TestExecutionError`` when the commands could not be started,
        ``RunCancelledError`` once the deadline's ``cancellation`` is requested: no process of them is left then.

        Each command has ``NECROCODE_REPORTS`` in its environment, which names a fresh folder outside of the copy. The
        regular files in it come back in ``CommandResult.collected``, as ``reports/{path}``; so do files of the copy
        that the command wrote and whose path, with a slash before it, matches one of ``collect`` (``*`` stands for
        anything, slashes included). No link is followed. Number and size are bounded: what is over is cut or left out.

        ``below`` is a folder that :meth:`run_setup` filled: what is in it is there as well, to be written over in the
        copy alone, where the checkout has no file of that path. It is passed only for tasks with ``setup_commands``.
        """

    def run_setup(
        self,
        commands: Sequence[str],
        checkout: Path,
        kept: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        has_network: bool,
        deadline: Deadline,
    ) -> TestResult:
        """Run set-up commands as :meth:`run_tests` runs commands, up to the first that fails, and keep what they wrote.

        Files that they wrote below the copy's top come to lie in ``kept/files``, those below ``HOME`` in ``kept/home``;
        where a command failed, nothing does. Called only for tasks with ``setup_commands``.
        """
