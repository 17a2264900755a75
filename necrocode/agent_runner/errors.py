"""Every error that this package raises, in one tree.

::

    RunnerError
    ├── ConfigurationError (ValueError)        a setting is wrong: fix the configuration
    ├── TaskContextValidationError (ValueError) the task itself is wrong: fix the task
    ├── WorkspacePreparationError              the checkout could not be made ready
    │   ├── RepositoryNotFoundError            there is no such repository or base ref
    │   └── UnusableCheckoutError              the checkout that the task brings is none, or not clean
    ├── SlotAllocationError                    no workspace slot is free
    ├── ImplementationError                    the model's answer cannot become a change
    │   ├── MalformedAnswerError               the answer holds no readable change set
    │   ├── EmptyAnswerError                   the model answered nothing
    │   ├── TruncatedAnswerError               the answer was cut at the token limit
    │   ├── ModelRefusalError                  the model declined
    │   ├── ContentFilterError                 the provider's filter withheld the answer
    │   ├── ContextOverflowError               the prompt is larger than the model's window
    │   └── ChangeRejectedError                a path or content rule refuses the change set
    │       └── EditRejectedError              an edit has no one place in its file
    ├── BudgetExhaustedError                   a limit on tokens, calls, money or time would be passed
    ├── SetupError                             the setup_commands fail before any change
    │   └── ChangedSetupError                  ... or only with the dependencies that the change names
    ├── TestExecutionError                     the tests could not be started (failing tests are a result)
    ├── TamperedTestsError                     the change touches what it is judged by, and that is refused
    ├── PushError                              the branch was not delivered
    ├── ArtifactUploadError                    an artifact was not stored
    │   └── StorageFullError (ServiceError)    the disk is full, or the store's quota is used up
    ├── RunnerTimeoutError (TimeoutError)      the task's time is used up
    ├── JournalError                           a run cannot go on from its journal, or be replayed from it
    ├── AuthenticationError                    a key or token was refused
    ├── ServiceError                           a service or the model's endpoint answered with an error
    │   ├── ServiceConnectionError (ConnectionError)  ... or could not be reached at all
    │   ├── RateLimitError                     ... or asks to slow down, or the quota is used up
    │   ├── TaskNotFoundError                  the registry has no such task
    │   ├── AmbiguousTaskError                 a bare task id names tasks of several specs
    │   ├── IllegalTransitionError             the task's state does not allow this change
    │   ├── ArtifactNotFoundError              the store has no such artifact
    │   │   └── ArtifactDamagedError           ... or no longer as it was stored
    │   ├── SlotNotFoundError                  the pool has no such slot
    │   ├── PoolNotFoundError                  there is no such pool
    │   ├── PoolExistsError                    there is such a pool already, and it is another
    │   ├── PoolInUseError                     the pool has slots that somebody holds
    │   ├── StaleLeaseError                    the lease was given to someone else
    │   ├── TaskLeasedError                    another run holds the task
    │   └── IdempotencyKeyReusedError          one idempotency key came with two different requests
    └── InternalError                          a defect in this package

:class:`~necrocode.agent_runner.RunInterrupted` stands outside the tree: it is a :class:`KeyboardInterrupt`.
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """Base of all errors of this package; the text says what failed, for which input and what to try.

    ``hint`` is the what-to-try part alone (also contained in the text), ``step`` the pipeline step it happened in
    (set by the orchestrator), ``status_code`` the HTTP status where one was received. ``retryable`` says whether the
    same call may succeed later without any change.
    """

    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        step: str | None = None,
        status_code: int | None = None,
        retryable: bool | None = None,
    ) -> None:
        stop = "" if message.endswith((".", "?", "!", ":")) or (hint or "").startswith("(") else "."
        super().__init__(f"{message}{stop} {hint}" if hint else message)
        self.hint = hint
        self.step = step
        self.status_code = status_code
        self.retryable = self.retryable_by_default if retryable is None else retryable


class ConfigurationError(RunnerError, ValueError):
    """A setting is missing, unknown or wrong; the text names it."""


class TaskContextValidationError(RunnerError, ValueError):
    """The task is not valid; the text names each wrong field. Nothing has been touched."""


class WorkspacePreparationError(RunnerError):
    """The checkout could not be made ready for the task."""


class RepositoryNotFoundError(WorkspacePreparationError):
    """The task names a repository, branch or commit that does not exist."""


class UnusableCheckoutError(WorkspacePreparationError):
    """The ``slot_path`` that the task brings is no checkout, or has uncommitted changes: mend it, or name another."""


class SlotAllocationError(RunnerError):
    """No workspace slot became free in time."""

    retryable_by_default = True


class ImplementationError(RunnerError):
    """The model's answer cannot become a change.

    ``prompt_tokens``, ``completion_tokens`` and ``cached_prompt_tokens`` are what the answer came to, as the endpoint
    says; None: it does not say.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_prompt_tokens: int = 0


class MalformedAnswerError(ImplementationError):
    """The answer holds no change set in any known format."""


class EmptyAnswerError(ImplementationError):
    """The model answered with nothing: no choices, or no text."""


class TruncatedAnswerError(ImplementationError):
    """The answer was cut at the token limit (``finish_reason: length``); it is never applied."""


class ModelRefusalError(ImplementationError):
    """The model declined to answer."""


class ContentFilterError(ImplementationError):
    """The provider's content filter withheld the answer."""


class ContextOverflowError(ImplementationError):
    """The prompt does not fit the model's context window."""


class ChangeRejectedError(ImplementationError):
    """A rule on paths, sizes or content refuses the change set; nothing of it was applied.

    ``feedback`` is what to tell the model so that it can do better, where there is more to say than the error's text.
    It may hold lines of the repository's files.
    """

    def __init__(self, message: str, *, feedback: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.feedback = feedback


class NothingChangedError(ChangeRejectedError):
    """An answer after which every file would be as it was before it."""


class EditRejectedError(ChangeRejectedError):
    """An edit's text is not in its file, or is there more than once: nothing of the answer was applied."""


class BudgetExhaustedError(RunnerError):
    """The next question to the model would pass a limit of the budget; it was not asked, or cut short at the limit.

    ``limit`` names the setting, such as ``budget.spec.max_tokens``; ``left`` is what is left below it and ``needed``
    what the question takes at least, both in the setting's unit (US dollars for ``max_cost_usd``). Both are 0 where an
    answer was cut at the limit.
    """

    def __init__(
        self, message: str, *, limit: str, left: float, needed: float, hint: str | None = None, step: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, step=step)
        self.limit = limit
        self.left = left
        self.needed = needed


class SetupError(RunnerError):
    """A command of ``setup_commands`` failed on the base: no test was run, and the model was not asked.

    The text names the command, how it ended and the last lines of its output.
    """


class ChangedSetupError(SetupError):
    """A set-up command that works on the base fails with the dependencies that the change names.

    ``feedback`` is what to tell the model.
    """

    def __init__(self, message: str, *, feedback: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.feedback = feedback


class TestExecutionError(RunnerError):
    """The test commands could not be run at all. Tests that ran and failed are a result, not this error."""

    __test__ = False  # pytest: the name starts with "Test", but this is no test


class TamperedTestsError(RunnerError):
    """The change touches the tests, or the configuration, that judge it, and the settings refuse that."""


class PushError(RunnerError):
    """The branch was not delivered."""


class ArtifactUploadError(RunnerError):
    """An artifact was not stored."""


class RunnerTimeoutError(RunnerError, TimeoutError):
    """The task's ``timeout_seconds`` are used up."""


class RunCancelledError(RunnerError):
    """The run was asked to stop: by its caller, a signal or the registry. The message says by whom."""


class JournalError(RunnerError):
    """There is no such run to go on with or to replay: its journal is missing, damaged, in use, or has ended."""


class AuthenticationError(RunnerError):
    """A service or the model's endpoint refused the key or token."""


class ServiceError(RunnerError):
    """A service or the model's endpoint answered with an error.

    ``is_free``: the question cannot have reached a model that would charge for it.
    """

    is_free: bool = False


class ServiceConnectionError(ServiceError, ConnectionError):
    """A service or the model's endpoint could not be reached."""

    retryable_by_default = True


class StorageFullError(ArtifactUploadError, ServiceError):
    """There is no room for the artifact or the registry's data, and nothing was stored.

    The disk is full, or the store's quota is used up.
    """


class RateLimitError(ServiceError):
    """The endpoint asks to slow down (``retryable``), or the account's quota is used up (not ``retryable``)."""


class TaskNotFoundError(ServiceError):
    """The registry has no such task."""


class AmbiguousTaskError(ServiceError):
    """The task id names tasks of several specs: pass ``spec_name``."""


class IllegalTransitionError(ServiceError):
    """The task's present state does not allow the change; the text names both states."""


class ArtifactNotFoundError(ServiceError):
    """The artifact store has no such artifact."""


class ArtifactDamagedError(ArtifactNotFoundError):
    """The store has the artifact, but not the bytes that were stored: its sha256 differs."""


class SlotNotFoundError(ServiceError):
    """The repo pool has no such slot."""


class PoolNotFoundError(ServiceError):
    """There is no pool of that name."""


class PoolExistsError(ServiceError):
    """The name or the repository already has a pool, which is not the one that was asked for."""


class PoolInUseError(ServiceError):
    """Slots of the pool are held: it was left as it is."""


class StaleLeaseError(ServiceError):
    """The lease has expired or was given to another runner: this runner's writes are refused."""


class TaskLeasedError(ServiceError):
    """Another run holds the task; the text says whose, and until when. Nothing was done, and nothing paid for."""

    retryable_by_default = True


class IdempotencyKeyReusedError(ServiceError):
    """An idempotency key that was used before came with another request; nothing was done."""


class InternalError(RunnerError):
    """A defect in this package, not in its input."""
