"""What each setting of the A2A/Kiro runner becomes, in a file or, in capitals, in the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from necrocode.agent_runner.removed import BUS_SETTINGS, CARRIED_SETTINGS, KIRO_SETTINGS

NEW_PORTS = {"task_registry_url": 8001, "repo_pool_url": 8002, "artifact_store_url": 8003}
"""The settings that took the bus's place, each with the port that the guide gives its service."""
GUIDE_MODEL: dict[str, str | int] = {"model": "gpt-4", "timeout_seconds": 120}
"""What the guide writes in the place of ``kiro_url``."""

_SECURE = {"https", "wss", "amqps", "rediss"}
# Narrower than the URL syntax: what is found is written into files and shell lines.
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True)
class OldSetting:
    """``services`` gives the three URLs, ``model`` the llm section, ``carried`` its value to ``target`` (``llm.x`` or
    a setting), and ``gone`` nothing at all."""  # noqa: D205, D209  one sentence

    becomes: Literal["services", "model", "carried", "gone"]
    why: str
    target: str = ""
    needs: str = ""
    """The variable that a value of one's own goes to, in the place of a credential that is gone."""


_BUS = OldSetting("services", "There is no bus any more: a runner speaks with three services.")
_KIRO = OldSetting("model", "Kiro is not asked any more: a runner asks an OpenAI-compatible model.")
_MODEL_KEY = OldSetting(
    "gone", "Kiro's key opens no other model: put yours into OPENAI_API_KEY.", needs="OPENAI_API_KEY"
)
_BUS_KEY = OldSetting(
    "gone",
    "It opened the bus, and opens no service: put the services' token into NECROCODE_SERVICE_TOKEN.",
    needs="NECROCODE_SERVICE_TOKEN",
)
_PART = OldSetting("gone", "It described a connection of the old runner that is not made any more.")
_WHY_CARRIED = {
    "llm.model": "It names the model that is asked: your endpoint must know one of that name.",
    "llm.max_tokens": "It bounds the model's answer now.",
    "llm.temperature": "It is the model's temperature now.",
    "llm.timeout_seconds": "It bounds the model's answer now.",
    "llm.retry_count": "It counts further tries to ask the model now.",
    "request_timeout_seconds": "It bounds a call to a service now.",
    "network_retry_count": "It counts further tries of a call to a service now.",
    "runner_id": "There is no registry of agents: it is this runner's name in registry and pool now.",
}

OLD_SETTINGS: dict[str, OldSetting] = {
    **dict.fromkeys(BUS_SETTINGS, _BUS),
    **dict.fromkeys(KIRO_SETTINGS, _KIRO),
    **{name: OldSetting("carried", _WHY_CARRIED[target], target) for name, target in CARRIED_SETTINGS.items()},
    **dict.fromkeys(("kiro_api_key", "kiro_token", "kiro_api_token"), _MODEL_KEY),
    **dict.fromkeys(
        ("message_bus_token", "message_bus_api_key", "message_bus_password", "message_bus_username", "message_bus_user",
         "a2a_token", "a2a_api_key", "agent_registry_token"), _BUS_KEY,
    ),
    **dict.fromkeys(
        ("message_bus_port", "a2a_port", "kiro_port", "agent_registry_port", "a2a_protocol", "a2a_protocol_version",
         "a2a_version", "a2a_enabled", "message_bus_enabled", "kiro_enabled"), _PART,
    ),
}  # fmt: skip
"""By name; a key inside of a section (``kiro: {url: …}``) is named with it (``kiro_url``)."""
SECTIONS = frozenset({"message_bus", "a2a", "kiro", "agent_registry"})
"""The keys that may hold a mapping of such settings."""


def service_urls(old_url: str) -> dict[str, str] | None:
    """The three URLs at the host of an old one, by setting; None where no host can be read from it.

    Scheme and host are kept, as far as they mean something to HTTP; port, user, password, path and query are not.
    """
    text = old_url.strip()
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        host = parts.hostname or ""
    except ValueError:  # brackets that do not match
        return None
    if not _HOST.fullmatch(host):
        return None
    scheme = "https" if parts.scheme in _SECURE else "http"
    name = f"[{host}]" if ":" in host else host
    return {setting: f"{scheme}://{name}:{port}" for setting, port in NEW_PORTS.items()}
