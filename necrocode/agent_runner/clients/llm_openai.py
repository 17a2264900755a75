"""The model client: any endpoint that speaks OpenAI's chat completions, through the official package.

The package's own retries are off; retries live here. What an endpoint can do (structured output, names of parameters)
is found out by asking, and remembered for the rest of the process.
"""

from __future__ import annotations

import os
import random
import re
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import tenacity

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.clients._exchange import (
    ACCEPTED_ENCODINGS,
    AnswerTooLargeError,
    Exchange,
    UnreadableBodyError,
    current_exchange,
    inflated,
)
from necrocode.agent_runner.clients._openai_answers import (
    EndpointFailureError,
    failure_of,
    late_answer,
    read_completion,
)
from necrocode.agent_runner.config import LLMConfig
from necrocode.agent_runner.errors import (
    AuthenticationError,
    ConfigurationError,
    ContextOverflowError,
    RunnerTimeoutError,
)
from necrocode.agent_runner.generation.edit_formats import JSON_SCHEMA, MAX_ANSWER_CHARACTERS, read_answer
from necrocode.agent_runner.generation.prompt import as_text_request, free_messages
from necrocode.agent_runner.models import LLMResponse, Message, ModelAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import httpx2
    import openai

    from necrocode.agent_runner.protocols import AnswerFormat

OPENAI_ENDPOINT = "https://api.openai.com/v1"
CONNECT_TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 4 * MAX_ANSWER_CHARACTERS
"""The largest body that is read: the longest answer in UTF-8."""
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_MAX_RETRY_AFTER_SECONDS = 300.0
# Models that know only the newer name (OpenAI API reference: max_tokens is "not compatible with o-series models").
_NEWER_MODEL = re.compile(r"^(?:o\d|gpt-(?:[5-9]|[1-9]\d))")
_UNSUPPORTED = re.compile(r"support|default|deprecated|unknown|unrecognized|not permitted|extra", re.IGNORECASE)
_SCHEMA_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "change_set", "strict": True, "schema": JSON_SCHEMA},
}
_RESPONSE_FORMATS: dict[str, dict[str, Any] | None] = {
    "json_schema": _SCHEMA_FORMAT,
    "json_object_with_schema": {"type": "json_object", "schema": JSON_SCHEMA},  # llama-cpp-python's own form
    "json_object": {"type": "json_object"},
    "text": None,
}


@dataclass(frozen=True)
class _Manners:
    """What one model behind one endpoint takes; kept once an answer has shown it."""

    response_format: str = "json_schema"
    tokens_parameter: str = "max_tokens"
    takes_temperature: bool = True


_manners: dict[tuple[str, str], _Manners] = {}


class LLMClient:
    """A model behind an OpenAI-compatible endpoint; the Protocol is ``LanguageModel``. Safe for several threads.

    Nothing is imported or connected before the first question.
    """

    def __init__(self, config: LLMConfig, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._clock = clock
        self._endpoint = config.endpoint or _endpoint_of_environment() or OPENAI_ENDPOINT
        key = LLMConfig(api_key=config.api_key).api_key  # checked again: a copied configuration may hold any text
        self._key = key.get_secret_value() if key is not None else None
        self._redact = Redactor((self._key,) if self._key else ()).text

    def complete(
        self,
        messages: Sequence[Message],
        *,
        answer_format: AnswerFormat = "text",
        max_tokens: int | None = None,
        deadline: Deadline | None = None,
        temperature: float | None = None,
    ) -> ModelAnswer:
        """One whole answer; see ``LanguageModel.complete`` for what is raised instead of a bad one."""
        deadline = deadline or Deadline((self._config.retry_count + 1) * self._config.timeout_seconds * 2, self._clock)
        place = (self._endpoint, self._config.model)
        manners = _manners.get(place) or _first_manners(self._config.model)
        tried = {manners}
        while True:
            asked = manners.response_format if answer_format == "json" else "text"
            if answer_format == "json" and asked == "text" and self._config.edit_format == "auto":
                messages = as_text_request(messages)
            request = self._request(messages, asked, manners, max_tokens, temperature)
            try:
                answer = ModelAnswer(**self._ask(request, deadline), asked_format=asked)
            except EndpointFailureError as failure:
                manners = _adapted(manners, request, failure)
                if manners in tried:  # no other form is left
                    raise failure.error from failure.__cause__
                tried.add(manners)
            else:
                _manners[place] = manners
                return answer

    def generate_code(
        self, prompt: str, workspace_path: Path | None = None, max_tokens: int | None = None
    ) -> LLMResponse:
        """The change set for a prompt. ``workspace_path`` names a folder whose file names the model is told.

        Nothing is written anywhere. Raises as :meth:`complete` does, and ``MalformedAnswerError``.
        """
        answer_format: AnswerFormat = "text" if self._config.edit_format == "files" else "json"
        messages = free_messages(prompt, workspace_path, answer_format=answer_format)
        return read_answer(self.complete(messages, answer_format=answer_format, max_tokens=max_tokens))

    def _request(
        self,
        messages: Sequence[Message],
        asked: str,
        manners: _Manners,
        max_tokens: int | None,
        temperature: float | None,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            manners.tokens_parameter: max_tokens or self._config.max_tokens,
        }
        if temperature is None:
            temperature = self._config.temperature
        if temperature is not None and manners.takes_temperature:
            request["temperature"] = temperature
        if (response_format := _RESPONSE_FORMATS[asked]) is not None:
            request["response_format"] = response_format
        if asked.startswith("json_object"):
            _say_json(request["messages"])
        return request

    def _ask(self, request: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        def is_worth_another_try(error: BaseException) -> bool:
            if not isinstance(error, EndpointFailureError) or not error.is_retried:
                return False
            return not ("response_format" in request and error.refuses_format)

        def is_over(state: tenacity.RetryCallState) -> bool:
            longest_wait = min(_MAX_RETRY_AFTER_SECONDS, deadline.remaining_seconds())
            return state.attempt_number > self._config.retry_count or state.upcoming_sleep >= longest_wait

        retrying = tenacity.Retrying(
            stop=is_over,
            wait=_wait_seconds,
            sleep=self._clock.sleep,
            retry=tenacity.retry_if_exception(is_worth_another_try),
            reraise=True,
        )
        answer: dict[str, Any] = retrying(self._try, request, deadline)
        return answer

    def _try(self, request: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        import openai  # noqa: PLC0415  0.9 s of imports, at the first question only

        left = deadline.check("ask the model")
        timeout = min(self._config.timeout_seconds, left)
        limits = openai.Timeout(timeout, connect=min(CONNECT_TIMEOUT_SECONDS, timeout))
        with Exchange(timeout) as exchange:
            exchange.start()
            try:
                raw = self._client().chat.completions.with_raw_response.create(**request, timeout=limits)
                body = raw.http_response.content
            except openai.OpenAIError as error:
                error.args = (self._redact(str(error)),)  # a traceback shows the cause too, and endpoints echo keys
                is_late = exchange.is_over or isinstance(error, openai.APITimeoutError)
                raise self._failure(error, timeout, deadline, is_late=is_late) from error
        if exchange.is_over:  # a body without a length looks whole when it is cut
            raise self._failure(None, timeout, deadline, is_late=True)
        return read_completion(
            body, request_id=raw.headers.get("x-request-id"), model=self._config.model, redact=self._redact
        )

    def _failure(
        self, error: openai.OpenAIError | None, timeout: float, deadline: Deadline, *, is_late: bool
    ) -> Exception:
        """What to raise after a try that brought no answer."""
        if is_late and deadline.remaining_seconds() <= 0:
            return RunnerTimeoutError("The task's time ran out while the model was answering.")
        if error is None or (is_late and type(error.__cause__).__name__ != "ConnectTimeout"):
            return late_answer(self._endpoint, timeout)
        return failure_of(
            error, endpoint=self._endpoint, model=self._config.model, redact=self._redact, clock=self._clock
        )

    def _client(self) -> openai.OpenAI:
        if self._key is None and self._endpoint == OPENAI_ENDPOINT:
            raise ConfigurationError(
                "No API key for the model.",
                hint="Set OPENAI_API_KEY (or the variable that llm_api_key_env_var names), or llm.endpoint /"
                " OPENAI_BASE_URL for a server that needs none.",
            )
        return _shared_client(self._endpoint, self._key or "unused", os.getpid())


def _endpoint_of_environment() -> str | None:
    """``OPENAI_BASE_URL``, checked as the setting is; read here so that messages can name it."""
    try:
        return LLMConfig(endpoint=os.environ.get("OPENAI_BASE_URL") or None).endpoint
    except ConfigurationError:
        text = "OPENAI_BASE_URL must be a URL such as http://localhost:8080/v1, without a user or password."
        raise ConfigurationError(text) from None  # the value may hold a password: it is not shown


def _say_json(messages: list[dict[str, str]]) -> None:
    """Name JSON in the messages: OpenAI refuses ``json_object`` without (API reference, ``response_format``)."""
    if messages and not any("json" in message["content"].lower() for message in messages):
        messages[-1]["content"] += "\n\nAnswer with one JSON object."


def _adapted(manners: _Manners, request: dict[str, Any], failure: EndpointFailureError) -> _Manners:
    """The manners to ask with after a refusal of the request's form; the same ones where that was not the trouble."""
    said = failure.said
    if isinstance(failure.error, (AuthenticationError, ContextOverflowError)):
        return manners  # vLLM names max_completion_tokens in its overflow text: another name would not help
    if failure.refuses_request and "max_completion_tokens" in said:
        other = "max_tokens" if "max_completion_tokens" in request else "max_completion_tokens"
        return replace(manners, tokens_parameter=other)
    if failure.refuses_request and "temperature" in request and "temperature" in said and _UNSUPPORTED.search(said):
        return replace(manners, takes_temperature=False)
    if "response_format" in request and failure.refuses_format:
        return replace(manners, response_format=_next_format(request["response_format"], said))
    return manners


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """What the endpoint asked for; else a jittered, doubling pause."""
    failure = state.outcome.exception() if state.outcome is not None else None
    asked = failure.wait_seconds if isinstance(failure, EndpointFailureError) else None
    if asked is not None:
        return asked
    ceiling = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**state.attempt_number)
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  jitter, no secret


def _first_manners(model: str) -> _Manners:
    return _Manners(tokens_parameter="max_completion_tokens" if _NEWER_MODEL.match(model) else "max_tokens")


def _next_format(refused: dict[str, Any], said: str) -> str:
    """What to ask for after a refusal: the next simpler form."""
    if refused["type"] == "json_schema":
        return "json_object_with_schema" if "literal_error" in said else "json_object"
    return "json_object" if "schema" in refused else "text"


@lru_cache(maxsize=32)
def _shared_client(endpoint: str, key: str, _process_id: int) -> openai.OpenAI:
    """One client per endpoint and key: building one costs 25 ms.

    And per process, for its locks. Each question has a connection of its own, so that its time limit knows from the
    first byte on which one to hang up on; answers take seconds, and the next question seldom comes within the few for
    which an idle connection is kept.
    """
    import httpx2  # noqa: PLC0415
    import openai  # noqa: PLC0415

    connections = openai.DefaultHttpxClient(
        event_hooks={"request": [_watch], "response": [_read_bounded]},
        limits=httpx2.Limits(max_keepalive_connections=0),
        headers={"Accept-Encoding": ACCEPTED_ENCODINGS},
    )
    client = openai.OpenAI(api_key=key, base_url=endpoint, max_retries=0, http_client=connections)
    weakref.finalize(client, connections.close)
    return client


def _watch(request: httpx2.Request) -> None:
    """Put the connection, as soon as there is one, under the time limit of the exchange."""
    exchange = current_exchange()

    def note(event: str, facts: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete" and exchange is not None:
            exchange.hold(facts["return_value"].get_extra_info("socket"))

    request.extensions["trace"] = note


def _read_bounded(response: httpx2.Response) -> None:
    """Read the body within its limit, before anything else does without one."""
    import httpx2  # noqa: PLC0415  loaded already: its client calls this
    import openai  # noqa: PLC0415

    stream = response.stream
    assert isinstance(stream, httpx2.SyncByteStream)  # noqa: S101  the client is no asynchronous one
    try:
        encoding = response.headers.pop("content-encoding", "")
        body = b"".join(inflated(stream, encoding, limit_bytes=MAX_ANSWER_BYTES))
    except (AnswerTooLargeError, UnreadableBodyError) as error:
        raise openai.APIConnectionError(request=response.request) from error
    finally:
        stream.close()
    response.stream = httpx2.ByteStream(body)
    response.read()
