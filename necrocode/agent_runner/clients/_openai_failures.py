"""From the ways in which an OpenAI-compatible endpoint gives no answer to our errors, in one place.

The wordings come from the servers themselves: OpenAI, Azure, vLLM, llama.cpp, llama-cpp-python, Ollama, LiteLLM.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.clients._exchange import AnswerTooLargeError
from necrocode.agent_runner.clients._retry_after import LONGEST_WAIT_SECONDS, retry_after_seconds
from necrocode.agent_runner.errors import (
    AuthenticationError,
    ContentFilterError,
    ContextOverflowError,
    RateLimitError,
    RunnerError,
    ServiceConnectionError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import openai

    from necrocode.agent_runner._clock import Clock

RETRIED_STATUSES = frozenset({408, 409, 429})
_REDIRECTS = range(300, 400)
_FIRST_SERVER_ERROR = 500
# 404 and 405 come from gateways that route by what is asked for; 500 from servers whose validation is not their own.
_FORMAL_STATUSES = frozenset({400, 404, 405, 415, 422, 500, 501})
_BREAKS = {"RemoteProtocolError", "ReadError", "UnreadableBodyError"}
_LONGEST_SAID = 400
_PAGE_BYTES = 20
_LONGEST_REQUEST_ID = 200
_OVERFLOW = re.compile(
    r"context_length_exceeded|maximum context length|exceed(?:s|ed)?[a-z ]{0,30} context (?:window|size|length)"
    r"|context window of \d+|prompt is too long|exceed_context_size",
    re.IGNORECASE,
)
_WRONG_KEY = re.compile(
    r"invalid[ _]api[ _]key|incorrect api key|authentication error|invalid proxy server token|no api key"
    # Gemini; and LiteLLM without a database (https://github.com/BerriAI/litellm/issues/12273).
    r"|api key not valid|no_db_connection|no connected db",
    re.IGNORECASE,
)
# By the code alone: Gemini says "You exceeded your current quota ... billing details" at per-minute limits too.
_QUOTA = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)
# Azure refuses a prompt that its filter does not like (https://learn.microsoft.com/azure/ai-foundry/openai/concepts/
# content-filter), instead of answering with that finish_reason.
_FILTERED = re.compile(r"\bcontent_filter\b|ResponsibleAIPolicyViolation|content management policy", re.IGNORECASE)
_FORMAT_REFUSED = re.compile(
    r"response[_ ]format|json_schema|json_object|structured output|literal_error|grammar|guided", re.IGNORECASE
)
_UNSUPPORTED = re.compile(r"unsupported|n[o']t support", re.IGNORECASE)
# "Your organization must be verified to stream this model" is OpenAI's.
_UNSTREAMED = re.compile(
    r"unsupported|n[o']t (?:be )?(?:support|allow|permit|available|enabled)|unrecognized|unknown|extra|must be verified"
    r"|disabled",
    re.IGNORECASE,
)
# What an error is known by that does not say which status it would have had.
_KINDS = (
    (401, re.compile(rf"{_WRONG_KEY.pattern}|authentication_error|permission_error", re.IGNORECASE)),
    (429, re.compile(rf"{_QUOTA.pattern}|rate[_ ]?limit|too many requests", re.IGNORECASE)),
    (400, re.compile(rf"{_OVERFLOW.pattern}|invalid_request|bad ?request", re.IGNORECASE)),
)
_UNKNOWN_KIND = 502


@dataclass(frozen=True)
class Asked:
    """Who was asked what: errors name it, and what the answer cost is estimated from it."""

    endpoint: str
    model: str
    messages: Sequence[Mapping[str, str]]
    redact: Callable[[str], str]
    clock: Clock


class EndpointFailureError(Exception):
    """One failed try: what to raise, whether and when to try again, and what the endpoint said."""

    def __init__(
        self,
        error: RunnerError,
        *,
        is_retried: bool,
        wait_seconds: float | None = None,
        status_code: int | None = None,
        said: str = "",
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_retried = is_retried
        self.wait_seconds = wait_seconds
        self.status_code = status_code
        self.said = said

    @property
    def refuses_format(self) -> bool:
        """Whether this reads as "I do not know this response_format" rather than as an outage."""
        if isinstance(self.error, (AuthenticationError, ContextOverflowError)):
            return False
        if self.status_code in {400, 404, 415, 422} and _UNSUPPORTED.search(self.said):
            return True
        is_formal = self.status_code in {400, 404, 415, 422, 500, 501}
        return is_formal and _FORMAT_REFUSED.search(self.said) is not None

    @property
    def refuses_stream(self) -> bool:
        """Whether this reads as "I cannot stream this" rather than as an outage."""
        if isinstance(self.error, (AuthenticationError, ContextOverflowError)):
            return False
        is_formal = self.status_code in _FORMAL_STATUSES
        return is_formal and "stream" in self.said.lower() and _UNSTREAMED.search(self.said) is not None

    @property
    def refuses_request(self) -> bool:
        """Whether the endpoint calls the request itself wrong."""
        return self.status_code in {400, 422}


class UnexplainedEndError(EndpointFailureError):
    """A stream said that it was done, but not why: some relays say so of streams that were cut.

    Not tried again as it is, but asked for in one piece.
    """

    def __init__(self, asked: Asked) -> None:
        text = f"The model endpoint {asked.endpoint} ended its answer without a finish_reason."
        super().__init__(ServiceError(text, retryable=True), is_retried=False)


class EmptyStreamError(EndpointFailureError):
    """A stream ended before it began: the server met its trouble too late for an error's status (llama-cpp-python).

    After two of them the next try asks in one piece, whose refusal says what the trouble is.
    """

    def __init__(self, asked: Asked) -> None:
        text = f"The model endpoint {asked.endpoint} broke off its answer before it began."
        super().__init__(ServiceConnectionError(text), is_retried=True)


def failure_of(error: openai.OpenAIError | AnswerTooLargeError, asked: Asked) -> EndpointFailureError:
    """One of the openai package's exceptions, or an answer that is too large, as a failure of ours."""
    import openai  # noqa: PLC0415  loaded already: its exception is at hand

    if isinstance(error, openai.APIStatusError):
        headers = error.response.headers
        said = _said(error.body, error.response.text, asked.redact)
        wait = _wait_asked_for(headers, asked.clock)
        return _refusal(error.status_code, said, asked, wait=wait, request_id=request_id_of(headers, asked.redact))
    large = error if isinstance(error, AnswerTooLargeError) else error.__cause__
    if isinstance(large, AnswerTooLargeError):
        return final(ServiceError(f"The model endpoint {asked.endpoint} sent an answer that is too large ({large})."))
    if isinstance(error, openai.APIConnectionError):
        return _connection_failure(error, asked)
    text = f"The model endpoint {asked.endpoint} cannot be asked: {short(asked.redact(str(error)))}"
    return final(ServiceError(text))


def failure_in_body(error: object, asked: Asked) -> EndpointFailureError:
    """The failure told by an error that came with the status 200, or in the middle of a stream."""
    said = _said(error, error if isinstance(error, str) else "", asked.redact)
    return _refusal(_status_in(error, said), said, asked)


def late_answer(asked: Asked, timeout_seconds: float) -> EndpointFailureError:
    """The failure of an answer that was not there in time."""
    text = f"The model endpoint {asked.endpoint} did not answer within {timeout_seconds:g} seconds."
    error = ServiceConnectionError(text, hint="Raise llm.timeout_seconds if the model is slow.")
    return EndpointFailureError(error, is_retried=True)


def idle_answer(asked: Asked, idle_seconds: float) -> EndpointFailureError:
    """The failure of a stream that paused for too long."""
    text = f"The model endpoint {asked.endpoint} sent nothing for {idle_seconds:g} seconds in the middle of its answer."
    error = ServiceConnectionError(text, hint="Raise llm.idle_timeout_seconds if the model pauses for so long.")
    return EndpointFailureError(error, is_retried=True)


def broken_off(asked: Asked, how: str) -> EndpointFailureError:
    """The failure of an answer that ended before it was whole."""
    text = f"The model endpoint {asked.endpoint} broke off its answer ({how})."
    return EndpointFailureError(ServiceConnectionError(text), is_retried=True)


def no_completion(body: bytes, asked: Asked) -> EndpointFailureError:
    """The failure of an answer that is something else, such as a login page."""
    said = short(asked.redact(body.decode(errors="replace")))
    text = f"The model endpoint answered 200 with something that is no chat completion: {said!r}"
    error = ServiceError(text, retryable=True)
    error.is_free = body.lstrip()[:_PAGE_BYTES].lower().startswith((b"<!doctype html", b"<html"))
    return EndpointFailureError(error, is_retried=True)


def final(error: RunnerError) -> EndpointFailureError:
    """The failure of a question that another try would not answer otherwise."""
    return EndpointFailureError(error, is_retried=False)


def passing(text: str) -> EndpointFailureError:
    """The failure of a question that another try may answer."""
    return EndpointFailureError(ServiceError(text, retryable=True), is_retried=True)


def request_id_of(headers: Mapping[str, str], redact: Callable[[str], str]) -> str | None:
    """The endpoint's name for a call, secrets masked; Azure's gateway and Anthropic have headers of their own."""
    found = headers.get("x-request-id") or headers.get("apim-request-id") or headers.get("request-id")
    return None if found is None else shown(redact(found), _LONGEST_REQUEST_ID)


def short(text: str) -> str:
    """The text in one bounded line."""
    return shown(" ".join(text.split()), _LONGEST_SAID)


def is_broken_off(error: openai.OpenAIError) -> bool:
    """Whether the connection broke, or the body did, and neither was the time over nor the size."""
    return type(error.__cause__).__name__ in _BREAKS


def _connection_failure(error: openai.APIConnectionError, asked: Asked) -> EndpointFailureError:
    if is_broken_off(error):
        return broken_off(asked, type(error.__cause__).__name__)
    text = f"Failed to connect to {asked.endpoint} (model endpoint): is it running?"
    return EndpointFailureError(
        ServiceConnectionError(text, hint=f"try: curl {asked.endpoint}/models"), is_retried=True
    )


def _refusal(
    status: int, said: str, asked: Asked, *, wait: float | None = None, request_id: str | None = None
) -> EndpointFailureError:
    told = f"{said} (request {asked.redact(request_id)})" if request_id else said
    error = _status_error(status, said, told, asked, wait)
    is_lasting = isinstance(error, (AuthenticationError, ContextOverflowError)) or (
        isinstance(error, RateLimitError) and _QUOTA.search(said) is not None
    )
    error.retryable = (status in RETRIED_STATUSES or status >= _FIRST_SERVER_ERROR) and not is_lasting
    return EndpointFailureError(error, is_retried=error.retryable, wait_seconds=wait, status_code=status, said=said)


def _status_in(error: object, said: str) -> int:
    """The status that an error has, or would have had."""
    code = error.get("code") or error.get("status_code") if isinstance(error, dict) else None
    code = str(code) if isinstance(code, (int, str)) else ""
    if re.fullmatch(r"[45][0-9]{2}", code):
        return int(code)
    return next((status for status, words in _KINDS if words.search(said)), _UNKNOWN_KIND)


def _status_error(status: int, said: str, told: str, asked: Asked, wait: float | None) -> RunnerError:
    endpoint = asked.endpoint
    where = f"The model endpoint {endpoint} answered {status}: {told}"
    hint = None if not wait else f"It asks to be tried again in {math.ceil(wait)} seconds."
    if status in {401, 403} or (status == 400 and _WRONG_KEY.search(said)):  # noqa: PLR2004  LiteLLM says 400
        return AuthenticationError(
            f"Invalid API key for {endpoint} (it answered {status}: {told}).",
            hint="Check OPENAI_API_KEY, or the variable that llm_api_key_env_var names.",
            status_code=status,
        )
    if status in {400, 413, 500} and _OVERFLOW.search(said):
        return ContextOverflowError(where, hint="Lower llm.context_tokens or max_tokens.", status_code=status)
    if status == 400 and _FILTERED.search(said):  # noqa: PLR2004
        return ContentFilterError(where, hint="Say the task in other words.", status_code=status)
    if status == 429:  # noqa: PLR2004
        if _QUOTA.search(said):
            hint = "Add credit to the account or raise its limit at the provider, or name another key."
        return RateLimitError(where, hint=hint or "Try again later.", status_code=status)
    if status == 404 or "model_not_found" in said:  # noqa: PLR2004  llama-cpp-python says 400
        hint = f"Does it serve the model {asked.model!r}? try: curl {endpoint}/models"
    if status in _REDIRECTS:
        hint = "Redirects are not followed: set llm.endpoint to the final URL."
    return ServiceError(where, hint=hint, status_code=status)


def _said(body: object, text: str, redact: Callable[[str], str]) -> str:
    """What the endpoint said, in one bounded line: the message and code of a JSON body, else the body's beginning.

    Masked before it is cut: a key across the cut would no longer be known as one.
    """
    if isinstance(body, dict):
        try:
            parts = [str(body.get(key)) for key in ("code", "type", "message", "detail") if body.get(key)]
            return short(redact(": ".join(dict.fromkeys(parts)) or json.dumps(body)))
        except RecursionError:
            return "something that is nested too deeply"
    return short("(an HTML page)" if "<html" in text[:1000].lower() else redact(text)) or "no reason given"


def _wait_asked_for(headers: Mapping[str, str], clock: Clock) -> float | None:
    """The wait that an answer asks for: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date.

    LiteLLM passes on the latter under a name of its own.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", milliseconds):
        return min(float(milliseconds) / 1000.0, LONGEST_WAIT_SECONDS)
    return retry_after_seconds(headers.get("retry-after") or headers.get("llm_provider-retry-after", ""), clock)
