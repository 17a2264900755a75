"""What the A2A/Kiro runner had and this one has not: each old name with what took its place, and where that is told."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GUIDE = "MIGRATION.md"
SECTION_NAMES = "Removed components"
SECTION_SETTINGS = "Step 2: The configuration file"
SECTION_VARIABLES = "Step 3: Environment variables"

_SERVICES = "TaskRegistryClient, RepoPoolClient and ArtifactStoreClient"
REMOVED_NAMES = {
    "A2AClient": f"Tasks come to RunnerOrchestrator.run() as a TaskContext, and {_SERVICES} speak with the services",
    "A2AProtocol": f"The services are spoken to over REST, by {_SERVICES}",
    "AgentRegistry": "Runners are not registered: tasks, their states and events are kept by a TaskRegistryClient",
    "KiroAgent": "RunnerOrchestrator does a task from start to end, and LLMClient asks the model",
    "KiroClient": "LLMClient asks an OpenAI-compatible model, and RunnerOrchestrator.run() a whole task",
    "MessageBus": f"There is no bus between agents: {_SERVICES} speak with the services",
}
"""The removed classes, each with what took its place."""

_URLS = "task_registry_url, repo_pool_url and artifact_store_url took its place; left out, each service is embedded"
REMOVED_SETTINGS = {
    "message_bus_url": _URLS,
    "kiro_url": "llm (llm_config in code) took its place",
}
"""The removed settings that the guide names, each with what took its place."""

BUS_SETTINGS = (
    "message_bus_url", "message_bus", "message_bus_endpoint", "message_bus_host", "a2a_url", "a2a_endpoint", "a2a_host",
    "a2a_registry_url", "agent_registry_url", "agent_registry",
)  # fmt: skip
"""The removed settings that the services' URLs took the place of."""
KIRO_SETTINGS = ("kiro_url", "kiro", "kiro_endpoint", "kiro_base_url", "kiro_host")
"""The removed settings that the llm section took the place of."""
CARRIED_SETTINGS = {
    "kiro_model": "llm.model",
    "kiro_max_tokens": "llm.max_tokens",
    "kiro_temperature": "llm.temperature",
    **dict.fromkeys(("kiro_timeout", "kiro_timeout_seconds"), "llm.timeout_seconds"),
    **dict.fromkeys(("kiro_retry_count", "kiro_max_retries", "kiro_retries"), "llm.retry_count"),
    **dict.fromkeys(
        ("message_bus_timeout", "message_bus_timeout_seconds", "a2a_timeout", "a2a_timeout_seconds"),
        "request_timeout_seconds",
    ),
    **dict.fromkeys(
        ("message_bus_retry_count", "message_bus_max_retries", "message_bus_retries", "a2a_retry_count",
         "a2a_max_retries", "a2a_retries"), "network_retry_count",
    ),
    **dict.fromkeys(("agent_id", "a2a_agent_id", "agent_registry_id"), "runner_id"),
}  # fmt: skip
"""The removed settings whose value goes on under another name: ``llm.x``, or a setting."""

_OLD_PREFIXES = ("message_bus", "a2a", "kiro", "agent_registry")
_REMOVED_VARIABLES = {
    "MESSAGE_BUS_URL": "TASK_REGISTRY_URL, REPO_POOL_URL and ARTIFACT_STORE_URL took its place",
    "KIRO_URL": "OPENAI_API_KEY and OPENAI_BASE_URL took its place",
}
_told: set[str] = set()


class RemovedSettingWarning(UserWarning):
    """The environment sets a variable of the A2A/Kiro runner, which nothing reads any more."""


def is_from_importing() -> bool:
    """Whether the caller's caller is a ``from package import name``.

    PEP 562 gives both that statement and ``hasattr`` one hook, and the statement loses the text of an
    ``AttributeError``: it looks for a submodule and says "cannot import name". ``_handle_fromlist`` is where it looks.
    """
    caller = sys._getframe(2)  # noqa: SLF001  inspect.currentframe is this, with an import that costs milliseconds
    return caller.f_globals.get("__name__") == "importlib._bootstrap"


def missing(module: str, name: str, *, importing: bool) -> ImportError | AttributeError:
    """The error for a name that a module has not: for a removed one it says what took its place."""
    if name not in REMOVED_NAMES:
        return AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    text = (
        f"{name} was removed from {module}. {REMOVED_NAMES[name]}. "
        f'See "{SECTION_NAMES}" in {GUIDE}; "necrocode migrate code PATH" finds the uses.'
    )
    return ImportError(text, name=module) if importing else AttributeError(text, name=name)


def explain_setting(key: str) -> str | None:
    """What took the place of a setting of the A2A/Kiro runner; None for a key that it never had."""
    if not key.startswith(_OLD_PREFIXES) and key not in CARRIED_SETTINGS:
        return None
    place = _place_of(key)
    return f'removed: {place}; see "{SECTION_SETTINGS}" in {GUIDE}, or let "necrocode migrate config FILE" rewrite it'


def _place_of(key: str) -> str:
    if key in REMOVED_SETTINGS:
        return REMOVED_SETTINGS[key]
    told = successor(key)
    return "it belonged to the A2A/Kiro runner" + (f", and {told}" if told else "")


def successor(key: str) -> str:
    """What took the place of an old setting, as a clause; empty where nothing did."""
    if key in BUS_SETTINGS:
        return REMOVED_SETTINGS["message_bus_url"]
    if key in KIRO_SETTINGS:
        return REMOVED_SETTINGS["kiro_url"]
    target = CARRIED_SETTINGS.get(key, "")
    code = f" (of llm_config in code, {target.partition('.')[2]})" if target.startswith("llm.") else ""
    return f"{target}{code} took its place" if target else ""


def untold_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each removed variable that is set, once a process; values are not shown."""
    for name, place in _REMOVED_VARIABLES.items():
        if environ.get(name) and name not in _told:
            yield (
                f"The variable {name} is set, but nothing reads it any more: {place}. "
                f'See "{SECTION_VARIABLES}" in {GUIDE}; "necrocode migrate env" prints what to change.'
            )
            _told.add(name)  # after the sentence was taken: a filter that turns warnings into errors holds each time


def warn_of_variables(environ: Mapping[str, str], *, stacklevel: int) -> None:
    """Warn with :class:`RemovedSettingWarning` of each removed variable that is set, once a process."""
    for text in untold_variables(environ):
        warnings.warn(text, RemovedSettingWarning, stacklevel=stacklevel + 1)
