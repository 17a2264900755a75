"""What one model behind one endpoint takes, as its refusals show it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.clients._openai_failures import UnexplainedEndError
from necrocode.agent_runner.errors import AuthenticationError, ContextOverflowError
from necrocode.agent_runner.generation.json_changes import JSON_SCHEMA

if TYPE_CHECKING:
    from necrocode.agent_runner.clients._openai_failures import EndpointFailureError

# Models that know only the newer name (OpenAI API reference: max_tokens is "not compatible with o-series models").
_NEWER_MODEL = re.compile(r"^(?:o\d|gpt-(?:[5-9]|[1-9]\d))")
_UNSUPPORTED = re.compile(r"support|default|deprecated|unknown|unrecognized|not permitted|extra", re.IGNORECASE)
_STREAM_OPTIONS = re.compile(r"stream_options|include_usage")
_SCHEMA_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "change_set", "strict": True, "schema": JSON_SCHEMA},
}
RESPONSE_FORMATS: dict[str, dict[str, Any] | None] = {
    "json_schema": _SCHEMA_FORMAT,
    "json_object_with_schema": {"type": "json_object", "schema": JSON_SCHEMA},  # llama-cpp-python's own form
    "json_object": {"type": "json_object"},
    "text": None,
}


@dataclass(frozen=True)
class Manners:
    """What one model behind one endpoint takes; kept once an answer has shown it."""

    response_format: str = "json_schema"
    tokens_parameter: str = "max_tokens"
    takes_temperature: bool = True
    streams: bool = True
    tells_usage_of_streams: bool = True


def first_manners(model: str) -> Manners:
    """What to try first."""
    return Manners(tokens_parameter="max_completion_tokens" if _NEWER_MODEL.match(model) else "max_tokens")


def adapted(manners: Manners, request: dict[str, Any], failure: EndpointFailureError) -> Manners:
    """The manners to ask with after a refusal of the request's form; the same ones where that was not the trouble."""
    if isinstance(failure.error, (AuthenticationError, ContextOverflowError)):
        return manners  # vLLM names max_completion_tokens in its overflow text: another name would not help
    return replace(manners, **_change(request, failure))


def _change(request: dict[str, Any], failure: EndpointFailureError) -> dict[str, Any]:
    said = failure.said
    if failure.refuses_request and "max_completion_tokens" in said:
        is_newer = "max_completion_tokens" in request
        return {"tokens_parameter": "max_tokens" if is_newer else "max_completion_tokens"}
    if failure.refuses_request and "temperature" in request and "temperature" in said and _UNSUPPORTED.search(said):
        return {"takes_temperature": False}
    if failure.refuses_request and "stream_options" in request and _STREAM_OPTIONS.search(said):
        return {"tells_usage_of_streams": False}
    if "stream" in request and (failure.refuses_stream or isinstance(failure, UnexplainedEndError)):
        return {"streams": False}
    if "response_format" in request and failure.refuses_format:
        return {"response_format": _next_format(request["response_format"], said)}
    return {}


def _next_format(refused: dict[str, Any], said: str) -> str:
    """What to ask for after a refusal: the next simpler form."""
    if refused["type"] == "json_schema":
        return "json_object_with_schema" if "literal_error" in said else "json_object"
    return "json_object" if "schema" in refused else "text"
