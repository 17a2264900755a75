"""The embeddable runner SDK: everything public, each name imported when it is first used (PEP 562).

Importing this package costs almost nothing; ``openai``, ``requests``, ``git`` and ``sqlalchemy`` are imported by the
first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from necrocode.agent_runner.clients.artifact_store_http import (
        ArtifactStoreClient as ArtifactStoreClient,
    )
    from necrocode.agent_runner.clients.artifact_store_local import (
        LocalArtifactStore as LocalArtifactStore,
    )
    from necrocode.agent_runner.clients.llm_openai import (
        LLMClient as LLMClient,
    )
    from necrocode.agent_runner.clients.llm_scripted import (
        ScriptedLLM as ScriptedLLM,
    )
    from necrocode.agent_runner.clients.repo_pool_http import (
        RepoPoolClient as RepoPoolClient,
    )
    from necrocode.agent_runner.clients.repo_pool_local import (
        LocalRepoPool as LocalRepoPool,
    )
    from necrocode.agent_runner.clients.task_registry_http import (
        TaskRegistryClient as TaskRegistryClient,
    )
    from necrocode.agent_runner.clients.task_registry_local import (
        LocalTaskRegistry as LocalTaskRegistry,
    )
    from necrocode.agent_runner.config import (
        LLMConfig as LLMConfig,
        RunnerConfig as RunnerConfig,
    )
    from necrocode.agent_runner.errors import (
        AmbiguousTaskError as AmbiguousTaskError,
        ArtifactNotFoundError as ArtifactNotFoundError,
        ArtifactUploadError as ArtifactUploadError,
        AuthenticationError as AuthenticationError,
        ChangeRejectedError as ChangeRejectedError,
        ConfigurationError as ConfigurationError,
        ContentFilterError as ContentFilterError,
        ContextOverflowError as ContextOverflowError,
        EmptyAnswerError as EmptyAnswerError,
        IllegalTransitionError as IllegalTransitionError,
        ImplementationError as ImplementationError,
        InternalError as InternalError,
        MalformedAnswerError as MalformedAnswerError,
        ModelRefusalError as ModelRefusalError,
        PushError as PushError,
        RateLimitError as RateLimitError,
        RepositoryNotFoundError as RepositoryNotFoundError,
        RunInterrupted as RunInterrupted,
        RunnerError as RunnerError,
        RunnerTimeoutError as RunnerTimeoutError,
        ServiceConnectionError as ServiceConnectionError,
        ServiceError as ServiceError,
        SlotAllocationError as SlotAllocationError,
        SlotNotFoundError as SlotNotFoundError,
        StaleLeaseError as StaleLeaseError,
        TaskContextValidationError as TaskContextValidationError,
        TaskNotFoundError as TaskNotFoundError,
        TestExecutionError as TestExecutionError,
        TruncatedAnswerError as TruncatedAnswerError,
        WorkspacePreparationError as WorkspacePreparationError,
    )
    from necrocode.agent_runner.models import (
        Artifact as Artifact,
        ArtifactRecord as ArtifactRecord,
        CodeChange as CodeChange,
        CommandResult as CommandResult,
        ErrorDetails as ErrorDetails,
        EventRecord as EventRecord,
        ImplementationResult as ImplementationResult,
        LLMResponse as LLMResponse,
        Message as Message,
        ModelAnswer as ModelAnswer,
        PushResult as PushResult,
        RunnerResult as RunnerResult,
        SlotAllocation as SlotAllocation,
        TaskContext as TaskContext,
        TaskRecord as TaskRecord,
        TestResult as TestResult,
    )
    from necrocode.agent_runner.orchestrator import (
        RunnerOrchestrator as RunnerOrchestrator,
    )
    from necrocode.agent_runner.protocols import (
        ArtifactStore as ArtifactStore,
        LanguageModel as LanguageModel,
        RepoPool as RepoPool,
        Sandbox as Sandbox,
        TaskRegistry as TaskRegistry,
    )

_HOME_OF = {
    "AmbiguousTaskError": "errors",
    "Artifact": "models",
    "ArtifactNotFoundError": "errors",
    "ArtifactRecord": "models",
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
    "EmptyAnswerError": "errors",
    "ErrorDetails": "models",
    "EventRecord": "models",
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
    "PushError": "errors",
    "PushResult": "models",
    "RateLimitError": "errors",
    "RepoPool": "protocols",
    "RepoPoolClient": "clients.repo_pool_http",
    "RepositoryNotFoundError": "errors",
    "RunInterrupted": "errors",
    "RunnerConfig": "config",
    "RunnerError": "errors",
    "RunnerOrchestrator": "orchestrator",
    "RunnerResult": "models",
    "RunnerTimeoutError": "errors",
    "Sandbox": "protocols",
    "ScriptedLLM": "clients.llm_scripted",
    "ServiceConnectionError": "errors",
    "ServiceError": "errors",
    "SlotAllocation": "models",
    "SlotAllocationError": "errors",
    "SlotNotFoundError": "errors",
    "StaleLeaseError": "errors",
    "TaskContext": "models",
    "TaskContextValidationError": "errors",
    "TaskNotFoundError": "errors",
    "TaskRecord": "models",
    "TaskRegistry": "protocols",
    "TaskRegistryClient": "clients.task_registry_http",
    "TestExecutionError": "errors",
    "TestResult": "models",
    "TruncatedAnswerError": "errors",
    "WorkspacePreparationError": "errors",
}

__all__ = [  # noqa: PLE0604, PLE0605  the table above is the list
    *_HOME_OF,
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
