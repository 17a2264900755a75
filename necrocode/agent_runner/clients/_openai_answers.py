"""From what an OpenAI-compatible endpoint says to an answer or to one of our errors, in one place.

The wordings come from the servers themselves: OpenAI, Azure, vLLM, llama.cpp, llama-cpp-python, Ollama, LiteLLM.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._text import is_writable, shown, writable
from necrocode.agent_runner.clients._exchange import AnswerTooLargeError
from necrocode.agent_runner.clients._retry_after import LONGEST_WAIT_SECONDS, retry_after_seconds
from necrocode.agent_runner.errors import (
    AuthenticationError,
    ContentFilterError,
    ContextOverflowError,
    EmptyAnswerError,
    MalformedAnswerError,
    ModelRefusalError,
    RateLimitError,
    RunnerError,
    ServiceConnectionError,
    ServiceError,
    TruncatedAnswerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import openai

    from necrocode.agent_runner._clock import Clock

RETRIED_STATUSES = frozenset({408, 409, 429})
_LONGEST_SAID = 400
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
_FORMAT_REFUSED = re.compile(
    r"response[_ ]format|json_schema|json_object|structured output|literal_error|grammar|guided", re.IGNORECASE
)
_UNSUPPORTED = re.compile(r"unsupported|n[o']t support", re.IGNORECASE)
_CUT_REASONS = {"length", "max_tokens", "model_length"}
# What a server says of an answer that it could not end: DeepSeek's API reference, vLLM, OpenRouter's API reference.
_BROKEN_REASONS = {"insufficient_system_resource", "abort", "error"}


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
    def refuses_request(self) -> bool:
        """Whether the endpoint calls the request itself wrong."""
        return self.status_code in {400, 422}


def read_completion(body: bytes, *, request_id: str | None, model: str, redact: Callable[[str], str]) -> dict[str, Any]:
    """Text, model and usage of a chat completion (OpenAI API reference, "The chat completion object").

    Raises :class:`EndpointFailureError` for a body that is none and for an answer that the server broke off, which are
    tried again, and for an answer that is cut, refused, filtered, empty or a tool call, which is not.
    """
    try:
        completion = json.loads(body)
        choices = completion["choices"]
        choice = choices[0] if choices else None
        message = choice["message"] if choice is not None else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = _short(redact(body.decode(errors="replace")))
        raise _passing(
            f"The model endpoint answered 200 with something that is no chat completion: {said!r}"
        ) from error
    if choice is None or not isinstance(message, dict):
        raise _final(EmptyAnswerError("The model endpoint answered without any choice."))
    text = _text(message)
    _check_finished(str(choice.get("finish_reason")), message, text, redact)
    usage = completion.get("usage") or {}
    return {
        "text": text,
        "model": writable(str(completion.get("model") or model)),
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "request_id": request_id or (writable(str(completion["id"])) if completion.get("id") else None),
    }


def _text(message: dict[str, Any]) -> str:
    """The message's text; some servers send it in parts (OpenAI API reference, content parts of type ``text``)."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _check_finished(reason: str, message: dict[str, Any], text: str, redact: Callable[[str], str]) -> None:
    if message.get("refusal"):
        raise _final(ModelRefusalError(f"The model declined: {_short(redact(str(message['refusal'])))}"))
    if reason in _BROKEN_REASONS:
        raise _passing(f"The model endpoint broke off its answer (finish_reason {reason!r}).")
    if reason == "content_filter":
        raise _final(ContentFilterError("The provider's content filter withheld the answer."))
    if reason in _CUT_REASONS:
        cut = "The model's answer was cut at the token limit; nothing of it was applied."
        raise _final(TruncatedAnswerError(cut, hint="Raise max_tokens, or split the task."))
    if message.get("tool_calls") or message.get("function_call"):
        raise _final(MalformedAnswerError("The model answered with a tool call, though it was offered no tools."))
    if not text.strip():
        raise _final(EmptyAnswerError(f"The model answered with no text (finish_reason {_short(redact(reason))!r})."))
    if not is_writable(text):
        raise _final(MalformedAnswerError("The model's answer holds half a character (a lone surrogate)."))


def failure_of(
    error: openai.OpenAIError,
    *,
    endpoint: str,
    model: str,
    redact: Callable[[str], str],
    clock: Clock,
) -> EndpointFailureError:
    """One of the openai package's exceptions as a failure of ours."""
    import openai  # noqa: PLC0415  loaded already: its exception is at hand

    if isinstance(error, openai.APIStatusError):
        said = _said(error, redact)
        kind = _status_error(error.status_code, said, endpoint=endpoint, model=model)
        is_retried = (error.status_code in RETRIED_STATUSES or error.status_code >= 500) and (  # noqa: PLR2004
            not isinstance(kind, (AuthenticationError, ContextOverflowError))
            and not (isinstance(kind, RateLimitError) and _QUOTA.search(said))
        )
        kind.retryable = is_retried
        wait = _wait_asked_for(error.response.headers, clock)
        return EndpointFailureError(
            kind, is_retried=is_retried, wait_seconds=wait, status_code=error.status_code, said=said
        )
    if isinstance(error.__cause__, AnswerTooLargeError):
        text = f"The model endpoint {endpoint} sent an answer that is too large ({error.__cause__})."
        return EndpointFailureError(ServiceError(text), is_retried=False)
    if isinstance(error, openai.APIConnectionError):
        return EndpointFailureError(_connection_error(error, endpoint), is_retried=True)
    text = f"The model endpoint {endpoint} cannot be asked: {_short(redact(str(error)))}"
    return EndpointFailureError(ServiceError(text), is_retried=False)


def late_answer(endpoint: str, timeout_seconds: float) -> EndpointFailureError:
    """The failure of an answer that was not there in time."""
    text = f"The model endpoint {endpoint} did not answer within {timeout_seconds:g} seconds."
    error = ServiceConnectionError(text, hint="Raise llm.timeout_seconds if the model is slow.")
    return EndpointFailureError(error, is_retried=True)


def _connection_error(error: openai.APIConnectionError, endpoint: str) -> ServiceConnectionError:
    cause = type(error.__cause__).__name__
    if cause in {"RemoteProtocolError", "ReadError", "UnreadableBodyError"}:
        return ServiceConnectionError(f"The model endpoint {endpoint} broke off its answer ({cause}).")
    return ServiceConnectionError(
        f"Failed to connect to {endpoint} (model endpoint): is it running?", hint=f"try: curl {endpoint}/models"
    )


def _status_error(status: int, said: str, *, endpoint: str, model: str) -> RunnerError:
    where = f"The model endpoint {endpoint} answered {status}: {said}"
    if status in {401, 403} or (status == 400 and _WRONG_KEY.search(said)):  # noqa: PLR2004  LiteLLM says 400
        return AuthenticationError(
            f"Invalid API key for {endpoint} (it answered {status}: {said}).",
            hint="Check OPENAI_API_KEY, or the variable that llm_api_key_env_var names.",
            status_code=status,
        )
    if status in {400, 413, 500} and _OVERFLOW.search(said):
        return ContextOverflowError(where, hint="Lower llm.context_tokens or max_tokens.", status_code=status)
    if status == 429:  # noqa: PLR2004
        return RateLimitError(where, status_code=status)
    if status == 404 or "model_not_found" in said:  # noqa: PLR2004  llama-cpp-python says 400
        return ServiceError(
            where, hint=f"Does it serve the model {model!r}? try: curl {endpoint}/models", status_code=status
        )
    return ServiceError(where, status_code=status)


def _said(error: openai.APIStatusError, redact: Callable[[str], str]) -> str:
    """What the endpoint said, in one bounded line: the message and code of a JSON body, else the body's beginning.

    Masked before it is cut: a key across the cut would no longer be known as one.
    """
    body = error.body
    if isinstance(body, dict):
        parts = [str(body.get(key)) for key in ("code", "type", "message", "detail") if body.get(key)]
        return _short(redact(": ".join(dict.fromkeys(parts)) or json.dumps(body)))
    text = error.response.text
    return _short("(an HTML page)" if "<html" in text[:1000].lower() else redact(text)) or "no reason given"


def _wait_asked_for(headers: Mapping[str, str], clock: Clock) -> float | None:
    """The wait that an answer asks for: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", milliseconds):
        return min(float(milliseconds) / 1000.0, LONGEST_WAIT_SECONDS)
    return retry_after_seconds(headers.get("retry-after", ""), clock)


def _final(error: RunnerError) -> EndpointFailureError:
    return EndpointFailureError(error, is_retried=False)


def _passing(text: str) -> EndpointFailureError:
    return EndpointFailureError(ServiceError(text, retryable=True), is_retried=True)


def _count(usage: object, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def _short(text: str) -> str:
    return shown(" ".join(text.split()), _LONGEST_SAID)
