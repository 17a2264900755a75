"""From a chat completion, in one piece or streamed, to an answer or to one of our errors."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._text import is_writable
from necrocode.agent_runner.clients._exchange import limited
from necrocode.agent_runner.clients._openai_failures import (
    EmptyStreamError,
    EndpointFailureError,
    UnexplainedEndError,
    broken_off,
    failure_in_body,
    final,
    is_broken_off,
    no_completion,
    passing,
    short,
)
from necrocode.agent_runner.clients._openai_stream import (
    MalformedStreamError,
    StreamedCompletion,
    begun,
    error_in,
    events,
    text_of,
)
from necrocode.agent_runner.clients._token_usage import token_usage, told_usage
from necrocode.agent_runner.errors import (
    ContentFilterError,
    EmptyAnswerError,
    ImplementationError,
    MalformedAnswerError,
    ModelRefusalError,
    TruncatedAnswerError,
)
from necrocode.agent_runner.models import ModelAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner.clients._openai_failures import Asked

_MOST_BYTES_PER_CHARACTER = 4  # in UTF-8
_CUT_REASONS = {"length", "max_tokens", "model_length"}
# What a server says of an answer that it could not end: DeepSeek's API reference, vLLM, OpenRouter's API reference.
_BROKEN_REASONS = {"insufficient_system_resource", "abort", "error"}


def read_answer(
    pieces: Iterator[bytes],
    asked: Asked,
    *,
    request_id: str | None,
    max_bytes: int,
    is_stream_asked: bool,
) -> ModelAnswer:
    """The answer in a body, which is a stream or a JSON object by how it begins: servers send either for the other.

    A stream is read as far as its ``[DONE]``; trouble after the reason why the answer ended does not matter any more.
    Where a stream ``is_stream_asked``, one that says ``[DONE]`` without a reason is refused. Raises
    :class:`EndpointFailureError`, :class:`AnswerTooLargeError`, and what reading ``pieces`` raises.
    """
    reading = StreamedCompletion(max_characters=max_bytes // _MOST_BYTES_PER_CHARACTER)
    beginning, is_stream = _begun(pieces, asked) if is_stream_asked else begun(pieces)
    everything = chain([beginning], pieces)
    if is_stream:
        _read_stream(reading, everything, asked, is_stream_asked=is_stream_asked)
        completion = reading.as_completion()
    else:
        completion = _parsed(b"".join(limited(everything, max_bytes)), asked)
    answer = _read_completion(completion, asked, request_id=request_id)
    return answer.model_copy(update={"is_streamed": is_stream})


def _begun(pieces: Iterator[bytes], asked: Asked) -> tuple[bytes, bool]:
    import openai  # noqa: PLC0415  loaded already: its client brought the stream

    try:
        beginning, is_stream = begun(pieces)
    except openai.OpenAIError as error:
        if is_broken_off(error):
            raise EmptyStreamError(asked) from error
        raise
    if not beginning:
        raise EmptyStreamError(asked)
    return beginning, is_stream


def _read_stream(
    completion: StreamedCompletion, pieces: Iterator[bytes], asked: Asked, *, is_stream_asked: bool
) -> None:
    import openai  # noqa: PLC0415  loaded already: its client brought the stream

    try:
        for data in events(pieces):
            completion.add(data)
            if completion.is_done:
                break
    except MalformedStreamError as error:
        if not completion.is_explained:
            raise no_completion(error.data, asked) from error
    except openai.OpenAIError as error:
        if is_broken_off(error) and not completion.is_begun:
            raise EmptyStreamError(asked) from error
        if not completion.is_explained:
            raise
    if not (completion.is_done or completion.is_explained):
        raise broken_off(asked, "the stream ended in the middle") if completion.is_begun else EmptyStreamError(asked)
    if is_stream_asked and completion.is_begun and not (completion.is_explained or completion.is_error):
        raise UnexplainedEndError(asked)


def _parsed(body: bytes, asked: Asked) -> dict[str, Any]:
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise no_completion(body, asked) from error
    if not isinstance(completion, dict) or not ("choices" in completion or error_in(completion)):
        raise no_completion(body, asked)
    if not isinstance(completion.get("choices"), (list, type(None))):
        raise no_completion(body, asked)
    return completion


def _read_completion(completion: dict[str, Any], asked: Asked, *, request_id: str | None) -> ModelAnswer:
    """The answer in a chat completion (OpenAI API reference, "The chat completion object").

    Secrets that the endpoint repeats are masked, but in the text, which is taken at its word.
    """
    if error := error_in(completion):
        raise failure_in_body(error, asked)
    try:
        return _usable(completion, asked, request_id=request_id)
    except EndpointFailureError as failure:
        if isinstance(failure.error, ImplementationError):
            for name, value in told_usage(completion.get("usage")).items():
                setattr(failure.error, name, value)
        raise


def _usable(completion: dict[str, Any], asked: Asked, *, request_id: str | None) -> ModelAnswer:
    choice = _first(completion.get("choices") or [])
    message = choice.get("message")
    if not isinstance(message, dict):
        raise final(EmptyAnswerError("The model endpoint answered without any choice."))
    text = _whole_characters(text_of(message.get("content")))
    reason = _word(choice.get("finish_reason"))
    _check_finished(reason, message, text, asked.redact)
    thought = text_of(message.get("reasoning_content") or message.get("reasoning"))
    usage = token_usage(
        completion.get("usage"), prompt=(asking["content"] for asking in asked.messages), answer=thought + text
    )
    return ModelAnswer(
        text=text,
        model=asked.redact(_word(completion.get("model")) or asked.model),
        request_id=request_id or asked.redact(_word(completion.get("id")) or "") or None,
        finish_reason=None if reason is None else short(asked.redact(reason)),
        **usage,
    )


def _first(choices: list[Any]) -> dict[str, Any]:
    """The choice with the index 0; where none has it, the first that there is; an empty one where there is none."""
    known = [choice for choice in choices if isinstance(choice, dict)]
    return next((choice for choice in known if choice.get("index") == 0), known[0] if known else {})


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole_characters(text: str) -> str:
    """The text, and in it no character in two halves: some servers stream a surrogate pair one half at a time."""
    if is_writable(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _check_finished(reason: str | None, message: dict[str, Any], text: str, redact: Callable[[str], str]) -> None:
    if message.get("refusal"):
        why = short(redact(text_of(message["refusal"]))) or "it gave no reason"
        raise final(ModelRefusalError(f"The model declined: {why}"))
    if reason in _BROKEN_REASONS:
        raise passing(f"The model endpoint broke off its answer (finish_reason {reason!r}).")
    if reason == "content_filter":
        raise final(ContentFilterError("The provider's content filter withheld the answer."))
    if reason in _CUT_REASONS:
        cut = "The model's answer was cut at the token limit; nothing of it was applied."
        raise final(TruncatedAnswerError(cut, hint="Raise max_tokens, or split the task."))
    if message.get("tool_calls") or message.get("function_call"):
        raise final(MalformedAnswerError("The model answered with a tool call, though it was offered no tools."))
    if not text.strip():
        raise final(
            EmptyAnswerError(f"The model answered with no text (finish_reason {short(redact(str(reason)))!r}).")
        )
    if not is_writable(text):
        raise final(MalformedAnswerError("The model's answer holds half a character (a lone surrogate)."))
