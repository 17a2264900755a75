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
    )
    from necrocode.agent_runner.config import (
        RunnerConfig as RunnerConfig,
    )
    from necrocode.agent_runner.errors import (
        AmbiguousTaskError as AmbiguousTaskError,
    )
    from necrocode.agent_runner.errors import (
        ArtifactNotFoundError as ArtifactNotFoundError,
    )
    from necrocode.agent_runner.errors import (
        ArtifactUploadError as ArtifactUploadError,
    )
    from necrocode.agent_runner.errors import (
        AuthenticationError as AuthenticationError,
    )
    from necrocode.agent_runner.errors import (
        ChangeRejectedError as ChangeRejectedError,
    )
    from necrocode.agent_runner.errors import (
        ConfigurationError as ConfigurationError,
    )
    from necrocode.agent_runner.errors import (
        ContentFilterError as ContentFilterError,
    )
    from necrocode.agent_runner.errors import (
        ContextOverflowError as ContextOverflowError,
    )
    from necrocode.agent_runner.errors import (
        EmptyAnswerError as EmptyAnswerError,
    )
    from necrocode.agent_runner.errors import (
        IllegalTransitionError as IllegalTransitionError,
    )
    from necrocode.agent_runner.errors import (
        ImplementationError as ImplementationError,
    )
    from necrocode.agent_runner.errors import (
        InternalError as InternalError,
    )
    from necrocode.agent_runner.errors import (
        MalformedAnswerError as MalformedAnswerError,
    )
    from necrocode.agent_runner.errors import (
        ModelRefusalError as ModelRefusalError,
    )
    from necrocode.agent_runner.errors import (
        PushError as PushError,
    )
    from necrocode.agent_runner.errors import (
        RateLimitError as RateLimitError,
    )
    from necrocode.agent_runner.errors import (
        RepositoryNotFoundError as RepositoryNotFoundError,
    )
    from necrocode.agent_runner.errors import (
        RunInterrupted as RunInterrupted,
    )
    from necrocode.agent_runner.errors import (
        RunnerError as RunnerError,
    )
    from necrocode.agent_runner.errors import (
        RunnerTimeoutError as RunnerTimeoutError,
    )
    from necrocode.agent_runner.errors import (
        ServiceConnectionError as ServiceConnectionError,
    )
    from necrocode.agent_runner.errors import (
        ServiceError as ServiceError,
    )
    from necrocode.agent_runner.errors import (
        SlotAllocationError as SlotAllocationError,
    )
    from necrocode.agent_runner.errors import (
        SlotNotFoundError as SlotNotFoundError,
    )
    from necrocode.agent_runner.errors import (
        StaleLeaseError as StaleLeaseError,
    )
    from necrocode.agent_runner.errors import (
        TaskContextValidationError as TaskContextValidationError,
    )
    from necrocode.agent_runner.errors import (
        TaskNotFoundError as TaskNotFoundError,
    )
    from necrocode.agent_runner.errors import (
        TestExecutionError as TestExecutionError,
    )
    from necrocode.agent_runner.errors import (
        TruncatedAnswerError as TruncatedAnswerError,
    )
    from necrocode.agent_runner.errors import (
        WorkspacePreparationError as WorkspacePreparationError,
    )
    from necrocode.agent_runner.models import (
        Artifact as Artifact,
    )
    from necrocode.agent_runner.models import (
        ArtifactRecord as ArtifactRecord,
    )
    from necrocode.agent_runner.models import (
        CodeChange as CodeChange,
    )
    from necrocode.agent_runner.models import (
        CommandResult as CommandResult,
    )
    from necrocode.agent_runner.models import (
        ErrorDetails as ErrorDetails,
    )
    from necrocode.agent_runner.models import (
        EventRecord as EventRecord,
    )
    from necrocode.agent_runner.models import (
        ImplementationResult as ImplementationResult,
    )
    from necrocode.agent_runner.models import (
        LLMResponse as LLMResponse,
    )
    from necrocode.agent_runner.models import (
        Message as Message,
    )
    from necrocode.agent_runner.models import (
        ModelAnswer as ModelAnswer,
    )
    from necrocode.agent_runner.models import (
        PushResult as PushResult,
    )
    from necrocode.agent_runner.models import (
        RunnerResult as RunnerResult,
    )
    from necrocode.agent_runner.models import (
        SlotAllocation as SlotAllocation,
    )
    from necrocode.agent_runner.models import (
        TaskContext as TaskContext,
    )
    from necrocode.agent_runner.models import (
        TaskRecord as TaskRecord,
    )
    from necrocode.agent_runner.models import (
        TestResult as TestResult,
    )
    from necrocode.agent_runner.orchestrator import (
        RunnerOrchestrator as RunnerOrchestrator,
    )
    from necrocode.agent_runner.protocols import (
        ArtifactStore as ArtifactStore,
    )
    from necrocode.agent_runner.protocols import (
        LanguageModel as LanguageModel,
    )
    from necrocode.agent_runner.protocols import (
        RepoPool as RepoPool,
    )
    from necrocode.agent_runner.protocols import (
        Sandbox as Sandbox,
    )
    from necrocode.agent_runner.protocols import (
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

__all__ = [  # noqa: PLE0604  the table above is the list
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
