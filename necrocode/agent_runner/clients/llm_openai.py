"""The model client: any endpoint that speaks OpenAI's chat completions, through the official package.

The package's own retries are off; retries live here. What an endpoint can do (structured output, names of parameters)
is found out by asking, and remembered for the rest of the process.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tenacity

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline, pause
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.clients._exchange import AnswerTooLargeError, Exchange
from necrocode.agent_runner.clients._openai_answers import read_answer as read_model_answer
from necrocode.agent_runner.clients._openai_connection import Endpoint, pieces_of, shared_client
from necrocode.agent_runner.clients._openai_failures import (
    Asked,
    EmptyStreamError,
    EndpointFailureError,
    failure_of,
    idle_answer,
    late_answer,
    request_id_of,
)
from necrocode.agent_runner.clients._openai_manners import RESPONSE_FORMATS, Manners, adapted, first_manners
from necrocode.agent_runner.errors import ConfigurationError, RunnerTimeoutError
from necrocode.agent_runner.generation.answer_forms import answer_format_of, as_text_request
from necrocode.agent_runner.generation.edit_formats import MAX_ANSWER_CHARACTERS, read_answer
from necrocode.agent_runner.generation.prompt import free_messages
from necrocode.agent_runner.llm_config import LLMConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import openai

    from necrocode.agent_runner.models import LLMResponse, Message, ModelAnswer
    from necrocode.agent_runner.protocols import AnswerFormat

OPENAI_ENDPOINT = "https://api.openai.com/v1"
CONNECT_TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 4 * MAX_ANSWER_CHARACTERS
"""The largest body in one piece that is read: the longest answer in UTF-8."""
_STREAMED_TO_WHOLE = 4
"""How many times as large a stream may be: each of its pieces, a word or so, comes in an object of its own."""
_EMPTY_STREAMS = 2
"""How many streams may end before they begin until the answer is asked for in one piece."""
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_MAX_RETRY_AFTER_SECONDS = 300.0

_manners: dict[tuple[str, str], Manners] = {}


@dataclass
class _Question:
    """One question on its way: how often it was sent, and what every form of it has in common."""

    answer_format: AnswerFormat
    max_tokens: int
    temperature: float | None
    deadline: Deadline
    attempts: int = 0


@dataclass(frozen=True)
class _Trial:
    """One request and its limits."""

    asked: Asked
    timeout_seconds: float
    idle_seconds: float
    deadline: Deadline

    def lateness(self, exchange: Exchange) -> Exception:
        """What to raise for an answer that was hung up on, or not waited for any longer."""
        if self.deadline.cancellation.is_requested:
            return self.deadline.cancellation.error()
        if exchange.was_idle:
            return idle_answer(self.asked, self.idle_seconds)
        if self.deadline.remaining_seconds() <= 0:
            return RunnerTimeoutError("The task's time ran out while the model was answering.")
        return late_answer(self.asked, self.timeout_seconds)


class LLMClient:
    """A model behind an OpenAI-compatible endpoint; the Protocol is ``LanguageModel``. Safe for several threads.

    Nothing is imported or connected before the first question, and no connection is kept after an answer.
    """

    def __init__(self, config: LLMConfig, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._clock = clock
        key = LLMConfig(api_key=config.api_key).api_key  # checked again: a copied configuration may hold any text
        self._key = key.get_secret_value() if key is not None else None
        self._endpoint = Endpoint.at(
            config.endpoint or _endpoint_of_environment() or OPENAI_ENDPOINT,
            key=self._key,
            key_header=config.api_key_header,
            headers={name: value.get_secret_value() for name, value in config.headers.items()},
        )
        self._redact = Redactor(config.model_copy(update={"api_key": key}).secrets()).text

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
        question = _Question(
            answer_format,
            max_tokens or self._config.max_tokens,
            self._config.temperature if temperature is None else temperature,
            deadline or Deadline((self._config.retry_count + 1) * self._config.timeout_seconds * 2, self._clock),
        )
        place = (self._endpoint.base_url, self._config.model)
        manners = _manners.get(place) or first_manners(self._config.model)
        tried = {manners}
        while True:
            asked_format = manners.response_format if answer_format == "json" else "text"
            if answer_format == "json" and asked_format == "text" and self._config.edit_format == "auto":
                messages = as_text_request(messages)
            request = self._request(messages, asked_format, manners, question)
            try:
                answer = self._ask(request, question)
            except EndpointFailureError as failure:
                manners = adapted(manners, request, failure)
                if manners in tried:  # no other form is left
                    raise failure.error from failure.__cause__
                tried.add(manners)
            else:
                _manners[place] = manners
                is_without = question.temperature is not None and not manners.takes_temperature
                known = {"asked_format": asked_format, "attempts": question.attempts}
                return answer.model_copy(update=known | {"left_out": ("temperature",) if is_without else ()})

    def generate_code(
        self, prompt: str, workspace_path: Path | None = None, max_tokens: int | None = None
    ) -> LLMResponse:
        """The change set for a prompt. ``workspace_path`` names a folder whose file names the model is told.

        Nothing is written anywhere. Raises as :meth:`complete` does, and ``MalformedAnswerError``.
        """
        edit_format = "json" if self._config.edit_format == "auto" else self._config.edit_format
        answer_format = answer_format_of(edit_format)
        messages = free_messages(prompt, workspace_path, edit_format=edit_format)
        return read_answer(self.complete(messages, answer_format=answer_format, max_tokens=max_tokens))

    def _request(
        self, messages: Sequence[Message], asked_format: str, manners: Manners, question: _Question
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            manners.tokens_parameter: question.max_tokens,
        }
        if question.temperature is not None and manners.takes_temperature:
            request["temperature"] = question.temperature
        if self._config.stream and manners.streams:
            request["stream"] = True
            if manners.tells_usage_of_streams:
                request["stream_options"] = {"include_usage": True}
        if (response_format := RESPONSE_FORMATS[asked_format]) is not None:
            request["response_format"] = response_format
        if asked_format.startswith("json_object"):
            _say_json(request["messages"])
        return request

    def _ask(self, request: dict[str, Any], question: _Question) -> ModelAnswer:
        def is_worth_another_try(error: BaseException) -> bool:
            if not isinstance(error, EndpointFailureError) or not error.is_retried:
                return False
            is_form = ("response_format" in request and error.refuses_format) or (
                "stream" in request and error.refuses_stream
            )
            return not is_form

        def is_over(state: tenacity.RetryCallState) -> bool:
            longest_wait = min(_MAX_RETRY_AFTER_SECONDS, question.deadline.remaining_seconds())
            return state.attempt_number > self._config.retry_count or state.upcoming_sleep >= longest_wait

        def ask_in_one_piece(state: tenacity.RetryCallState) -> None:
            is_empty = state.outcome is not None and isinstance(state.outcome.exception(), EmptyStreamError)
            if is_empty and state.attempt_number >= min(_EMPTY_STREAMS, self._config.retry_count):
                request.pop("stream", None)
                request.pop("stream_options", None)

        retrying = tenacity.Retrying(
            stop=is_over,
            wait=_wait_seconds,
            before_sleep=ask_in_one_piece,
            sleep=lambda seconds: pause(self._clock, seconds, question.deadline.cancellation),
            retry=tenacity.retry_if_exception(is_worth_another_try),
            reraise=True,
        )
        answer: ModelAnswer = retrying(self._try, request, question)
        return answer

    def _try(self, request: dict[str, Any], question: _Question) -> ModelAnswer:
        import openai  # noqa: PLC0415  0.9 s of imports, at the first question only

        left = question.deadline.check("ask the model")
        trial = _Trial(
            asked=Asked(self._endpoint.base_url, self._config.model, request["messages"], self._redact, self._clock),
            timeout_seconds=min(self._config.timeout_seconds, left),
            idle_seconds=self._config.idle_timeout_seconds if "stream" in request else 0.0,
            deadline=question.deadline,
        )
        client = self._client()
        question.attempts += 1
        started = self._clock.monotonic()
        cancellation = question.deadline.cancellation
        with Exchange(
            trial.timeout_seconds, idle_seconds=trial.idle_seconds or None, cancellation=cancellation
        ) as exchange:
            exchange.start()
            try:
                answer = self._exchanged(client, request, trial, exchange)
            except (openai.OpenAIError, AnswerTooLargeError) as error:
                error.args = (self._redact(str(error)),)  # a traceback shows the cause too, and endpoints echo keys
                is_late = exchange.is_over or isinstance(error, openai.APITimeoutError)
                if is_late and type(error.__cause__).__name__ != "ConnectTimeout":
                    raise trial.lateness(exchange) from error
                raise failure_of(error, trial.asked) from error
            except EndpointFailureError as failure:
                if exchange.is_over and failure.is_retried:
                    raise trial.lateness(exchange) from failure
                raise
            if exchange.is_over and not answer.is_streamed:  # a body without a length looks whole when it is cut
                raise trial.lateness(exchange)
        return answer.model_copy(update={"latency_seconds": self._clock.monotonic() - started})

    @staticmethod
    def _exchanged(client: openai.OpenAI, request: dict[str, Any], trial: _Trial, exchange: Exchange) -> ModelAnswer:
        import openai  # noqa: PLC0415  loaded already: the client is its

        limits = openai.Timeout(trial.timeout_seconds, connect=min(CONNECT_TIMEOUT_SECONDS, trial.timeout_seconds))
        with client.chat.completions.with_streaming_response.create(**request, timeout=limits) as raw:
            return read_model_answer(
                _beating(exchange, pieces_of(raw.http_response, limit_bytes=_STREAMED_TO_WHOLE * MAX_ANSWER_BYTES)),
                trial.asked,
                request_id=request_id_of(raw.headers, trial.asked.redact),
                max_bytes=MAX_ANSWER_BYTES,
                is_stream_asked="stream" in request,
            )

    def check(self) -> None:
        """Return when the endpoint may be asked at all, without asking it; ``ConfigurationError`` without a key."""
        is_open = self._key is not None or bool(self._config.headers)
        if not is_open and self._endpoint.base_url == OPENAI_ENDPOINT:
            raise ConfigurationError(
                "No API key for the model.",
                hint="Set OPENAI_API_KEY (or the variable that llm_api_key_env_var names), or llm.endpoint /"
                " OPENAI_BASE_URL for a server that needs none.",
            )

    def _client(self) -> openai.OpenAI:
        self.check()
        return shared_client(self._endpoint)


def _beating(exchange: Exchange, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        exchange.beat()
        yield piece


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


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """What the endpoint asked for; else a jittered, doubling pause."""
    failure = state.outcome.exception() if state.outcome is not None else None
    asked = failure.wait_seconds if isinstance(failure, EndpointFailureError) else None
    if asked is not None:
        return asked
    ceiling = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**state.attempt_number)
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  jitter, no secret
