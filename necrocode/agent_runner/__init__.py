"""The embeddable runner SDK: everything public, each name imported when it is first used (PEP 562).

Importing this package costs almost nothing; ``openai``, ``requests``, ``git`` and ``sqlalchemy`` are imported by the
first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from necrocode.agent_runner.clients.artifact_store_http import (
        ArtifactStoreClient,
    )
    from necrocode.agent_runner.clients.artifact_store_local import (
        LocalArtifactStore,
    )
    from necrocode.agent_runner.clients.artifact_store_s3 import (
        S3ArtifactStore,
    )
    from necrocode.agent_runner.clients.llm_openai import (
        LLMClient,
    )
    from necrocode.agent_runner.clients.llm_scripted import (
        ScriptedLLM,
    )
    from necrocode.agent_runner.clients.repo_pool_http import (
        RepoPoolClient,
    )
    from necrocode.agent_runner.clients.repo_pool_local import (
        LocalRepoPool,
    )
    from necrocode.agent_runner.clients.task_registry_http import (
        TaskRegistryClient,
    )
    from necrocode.agent_runner.clients.task_registry_local import (
        LocalTaskRegistry,
    )
    from necrocode.agent_runner.config import (
        LLMConfig,
        RunnerConfig,
    )
    from necrocode.agent_runner.errors import (
        AmbiguousTaskError,
        ArtifactDamagedError,
        ArtifactNotFoundError,
        ArtifactUploadError,
        AuthenticationError,
        ChangeRejectedError,
        ConfigurationError,
        ContentFilterError,
        ContextOverflowError,
        EmptyAnswerError,
        IdempotencyKeyReusedError,
        IllegalTransitionError,
        ImplementationError,
        InternalError,
        MalformedAnswerError,
        ModelRefusalError,
        PoolExistsError,
        PoolInUseError,
        PoolNotFoundError,
        PushError,
        RateLimitError,
        RepositoryNotFoundError,
        RunnerError,
        RunnerTimeoutError,
        ServiceConnectionError,
        ServiceError,
        SlotAllocationError,
        SlotNotFoundError,
        StaleLeaseError,
        StorageFullError,
        TaskContextValidationError,
        TaskNotFoundError,
        TestExecutionError,
        TruncatedAnswerError,
        UnusableCheckoutError,
        WorkspacePreparationError,
    )
    from necrocode.agent_runner.models import (
        Artifact,
        CodeChange,
        CommandResult,
        ErrorDetails,
        ImplementationResult,
        LLMResponse,
        Message,
        ModelAnswer,
        PushResult,
        RunnerResult,
        TaskContext,
        TestResult,
    )
    from necrocode.agent_runner.orchestrator import (
        RunnerOrchestrator,
    )
    from necrocode.agent_runner.protocols import (
        ArtifactStore,
        LanguageModel,
        RepoPool,
        Sandbox,
        TaskRegistry,
    )
    from necrocode.agent_runner.records import (
        ArtifactFilter,
        ArtifactPage,
        ArtifactRecord,
        ArtifactRecordPage,
        DeletedArtifacts,
        EventRecord,
        PoolDefinition,
        PoolRecord,
        PoolSet,
        PoolUse,
        SlotAllocation,
        SlotRecord,
        StorageUsage,
        StoredArtifact,
        SweepReport,
        TaskRecord,
        UploadedArtifact,
        UsageShare,
        VerifyReport,
    )
    from necrocode.agent_runner.removed import (
        RemovedSettingWarning,
    )
    from necrocode.agent_runner.run_record import (
        Progress,
        RunInterrupted,
    )

_HOME_OF = {
    "AmbiguousTaskError": "errors",
    "Artifact": "models",
    "ArtifactFilter": "records",
    "ArtifactDamagedError": "errors",
    "ArtifactNotFoundError": "errors",
    "ArtifactPage": "records",
    "ArtifactRecord": "records",
    "ArtifactRecordPage": "records",
    "ArtifactStore": "protocols",
    "ArtifactStoreClient": "clients.artifact_store_http",
    "ArtifactUploadError": "errors",
    "AuthenticationError": "errors",
    "ChangeRejectedError": "errors",
    "CodeChange": "models",
    "CommandResult": "models",
    "ConfigurationError": "errors",
    "ContentFilterError": "errors",
    "ContextOverflowError": "errors",
    "DeletedArtifacts": "records",
    "EmptyAnswerError": "errors",
    "ErrorDetails": "models",
    "EventRecord": "records",
    "IdempotencyKeyReusedError": "errors",
    "IllegalTransitionError": "errors",
    "ImplementationError": "errors",
    "ImplementationResult": "models",
    "InternalError": "errors",
    "LLMClient": "clients.llm_openai",
    "LLMConfig": "config",
    "LLMResponse": "models",
    "LanguageModel": "protocols",
    "LocalArtifactStore": "clients.artifact_store_local",
    "LocalRepoPool": "clients.repo_pool_local",
    "LocalTaskRegistry": "clients.task_registry_local",
    "MalformedAnswerError": "errors",
    "Message": "models",
    "ModelAnswer": "models",
    "ModelRefusalError": "errors",
    "PoolDefinition": "records",
    "PoolExistsError": "errors",
    "PoolInUseError": "errors",
    "PoolNotFoundError": "errors",
    "PoolRecord": "records",
    "PoolSet": "records",
    "PoolUse": "records",
    "Progress": "run_record",
    "PushError": "errors",
    "PushResult": "models",
    "RateLimitError": "errors",
    "RemovedSettingWarning": "removed",
    "RepoPool": "protocols",
    "RepoPoolClient": "clients.repo_pool_http",
    "RepositoryNotFoundError": "errors",
    "RunInterrupted": "run_record",
    "RunnerConfig": "config",
    "RunnerError": "errors",
    "RunnerOrchestrator": "orchestrator",
    "RunnerResult": "models",
    "RunnerTimeoutError": "errors",
    "S3ArtifactStore": "clients.artifact_store_s3",
    "Sandbox": "protocols",
    "ScriptedLLM": "clients.llm_scripted",
    "ServiceConnectionError": "errors",
    "ServiceError": "errors",
    "SlotAllocation": "records",
    "SlotAllocationError": "errors",
    "SlotNotFoundError": "errors",
    "SlotRecord": "records",
    "StaleLeaseError": "errors",
    "StorageFullError": "errors",
    "StorageUsage": "records",
    "StoredArtifact": "records",
    "SweepReport": "records",
    "TaskContext": "models",
    "TaskContextValidationError": "errors",
    "TaskNotFoundError": "errors",
    "TaskRecord": "records",
    "TaskRegistry": "protocols",
    "TaskRegistryClient": "clients.task_registry_http",
    "TestExecutionError": "errors",
    "TestResult": "models",
    "TruncatedAnswerError": "errors",
    "UnusableCheckoutError": "errors",
    "UploadedArtifact": "records",
    "UsageShare": "records",
    "VerifyReport": "records",
    "WorkspacePreparationError": "errors",
}

__all__ = [
    "AmbiguousTaskError",
    "Artifact",
    "ArtifactDamagedError",
    "ArtifactFilter",
    "ArtifactNotFoundError",
    "ArtifactPage",
    "ArtifactRecord",
    "ArtifactRecordPage",
    "ArtifactStore",
    "ArtifactStoreClient",
    "ArtifactUploadError",
    "AuthenticationError",
    "ChangeRejectedError",
    "CodeChange",
    "CommandResult",
    "ConfigurationError",
    "ContentFilterError",
    "ContextOverflowError",
    "DeletedArtifacts",
    "EmptyAnswerError",
    "ErrorDetails",
    "EventRecord",
    "IdempotencyKeyReusedError",
    "IllegalTransitionError",
    "ImplementationError",
    "ImplementationResult",
    "InternalError",
    "LLMClient",
    "LLMConfig",
    "LLMResponse",
    "LanguageModel",
    "LocalArtifactStore",
    "LocalRepoPool",
    "LocalTaskRegistry",
    "MalformedAnswerError",
    "Message",
    "ModelAnswer",
    "ModelRefusalError",
    "PoolDefinition",
    "PoolExistsError",
    "PoolInUseError",
    "PoolNotFoundError",
    "PoolRecord",
    "PoolSet",
    "PoolUse",
    "Progress",
    "PushError",
    "PushResult",
    "RateLimitError",
    "RemovedSettingWarning",
    "RepoPool",
    "RepoPoolClient",
    "RepositoryNotFoundError",
    "RunInterrupted",
    "RunnerConfig",
    "RunnerError",
    "RunnerOrchestrator",
    "RunnerResult",
    "RunnerTimeoutError",
    "S3ArtifactStore",
    "Sandbox",
    "ScriptedLLM",
    "ServiceConnectionError",
    "ServiceError",
    "SlotAllocation",
    "SlotAllocationError",
    "SlotNotFoundError",
    "SlotRecord",
    "StaleLeaseError",
    "StorageFullError",
    "StorageUsage",
    "StoredArtifact",
    "SweepReport",
    "TaskContext",
    "TaskContextValidationError",
    "TaskNotFoundError",
    "TaskRecord",
    "TaskRegistry",
    "TaskRegistryClient",
    "TestExecutionError",
    "TestResult",
    "TruncatedAnswerError",
    "UnusableCheckoutError",
    "UploadedArtifact",
    "UsageShare",
    "VerifyReport",
    "WorkspacePreparationError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        removed = import_module(f"{__name__}.removed")  # a "from" import of it would come by here again
        raise removed.missing(__name__, name, importing=removed.is_from_importing())
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
