"""The manners of the servers that speak OpenAI's chat completions, one by one, on the wire.

What each says is taken down from the server itself or from its documentation; docs/models.md says which.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    ContentFilterError,
    ContextOverflowError,
    LLMClient,
    LLMConfig,
    MalformedAnswerError,
    Message,
    ModelAnswer,
    RateLimitError,
    ServiceConnectionError,
    ServiceError,
    TruncatedAnswerError,
)
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, Script, ScriptedServer, serving
from tests.support.model_server import DONE, as_json, chunk, chunk_of, completion, event, streamed, streaming

MESSAGES = (Message(role="user", content="Do it."),)
WHOLE = streamed(completion("hello"))


def client(server: ScriptedServer, clock: FakeClock, path: str = "/v1", **settings: Any) -> LLMClient:
    settings = {"endpoint": f"{server.url}{path}", "api_key": "sk-test-key", "model": "m"} | settings
    return LLMClient(LLMConfig(**settings), clock=clock)


def answer_of(
    script: Script | list[Answer], clock: FakeClock, *, answer_format: Any = "text", **settings: Any
) -> ModelAnswer:
    with serving(script) as server:
        return client(server, clock, **settings).complete(MESSAGES, answer_format=answer_format)


def error(status: int, message: str, **more: Any) -> Answer:
    headers = more.pop("headers", {})
    return Answer(
        status, {"error": {"message": message, "type": None, "param": None, "code": None, **more}}, headers=headers
    )


# --- OpenAI


def test_openai_reasoning_models_take_the_newer_name_of_the_limit_and_no_temperature(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        if "temperature" in request.json:
            said = "Unsupported value: 'temperature' does not support 0.2 with this model."
            return error(400, said, type="invalid_request_error", param="temperature", code="unsupported_value")
        assert "max_completion_tokens" in request.json
        return streaming(WHOLE)

    assert answer_of(script, clock, model="o4-mini", temperature=0.2).attempts == 2


def test_openai_streams_its_usage_with_details_in_a_chunk_without_choices(clock: FakeClock) -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 300,
        "prompt_tokens_details": {"cached_tokens": 1920},
        "completion_tokens_details": {"reasoning_tokens": 256},
    }
    answer = answer_of([streaming([*WHOLE[:-2], event(chunk_of([], usage=usage)), DONE])], clock)
    assert (answer.prompt_tokens, answer.cached_prompt_tokens) == (2000, 1920)
    assert (answer.completion_tokens, answer.reasoning_tokens) == (300, 256)


def test_openai_organisations_that_may_not_stream_get_their_answer_in_one_piece(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        said = "Your organization must be verified to stream this model. Please go to: https://platform.openai.com/"
        refused = error(400, said, type="invalid_request_error", param="stream", code="unsupported_value")
        return refused if "stream" in request.json else Answer(200, completion("hello"))

    assert not answer_of(script, clock).is_streamed


def test_openai_quota_is_lasting_and_rate_limits_are_not(clock: FakeClock) -> None:
    with pytest.raises(RateLimitError) as caught:
        answer_of([error(429, "You exceeded your current quota", code="insufficient_quota")], clock)
    assert not caught.value.retryable
    limited = error(429, "Rate limit reached", code="rate_limit_exceeded", headers={"retry-after-ms": "350"})
    answer_of([limited, streaming(WHOLE)], clock)
    assert clock.sleeps == [0.35]


# --- Azure


def test_azure_begins_its_streams_with_a_chunk_of_no_choices(clock: FakeClock) -> None:
    first = event({"choices": [], "created": 0, "id": "", "model": "", "prompt_filter_results": [{"prompt_index": 0}]})
    with serving([streaming([first, *WHOLE], **{"apim-request-id": "apim-1"})]) as server:
        path = "/openai/deployments/gpt-4o?api-version=2024-10-21"
        answer = client(server, clock, path).complete(MESSAGES)
        (request,) = server.requests
    assert (answer.text, answer.model, answer.request_id) == ("hello", "scripted", "apim-1")
    assert request.path == "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert (request.headers["api-key"], request.headers.get("authorization")) == ("sk-test-key", None)


def test_azure_refuses_a_prompt_that_its_filter_does_not_like(clock: FakeClock) -> None:
    said = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}
    with pytest.raises(ContentFilterError):
        answer_of([error(400, said, code="content_filter", param="prompt", innererror=inner)], clock)


def test_older_azure_versions_do_not_know_stream_options(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        said = "Unrecognized request argument supplied: stream_options"
        return (
            error(400, said, type="invalid_request_error")
            if "stream_options" in request.json
            else streaming(WHOLE[:-2])
        )

    answer = answer_of(script, clock)
    assert (answer.is_streamed, answer.usage_is_estimated) == (True, True)


def test_azure_says_a_wrong_key_without_an_error_type(clock: FakeClock) -> None:
    said = "Access denied due to invalid subscription key or wrong API endpoint."
    with pytest.raises(AuthenticationError):
        answer_of([Answer(401, {"error": {"code": "401", "message": said}})], clock)


# --- vLLM


def vllm_error(status: int, message: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": status}


OVERFLOW = (
    "This model's maximum context length is 4096 tokens. However, you requested 6000 tokens (5000 in the messages, 1000"
    " in the completion). Please reduce the length of the messages or completion."
)


@pytest.mark.parametrize(
    "said",
    [
        OVERFLOW,
        "'max_tokens' or 'max_completion_tokens' is too large: 8192. The model's maximum context length is 4096.",
    ],
)
def test_vllm_names_both_counts_of_an_overflow(clock: FakeClock, said: str) -> None:
    for body in (vllm_error(400, said), {"error": vllm_error(400, said)}):
        with pytest.raises(ContextOverflowError):
            answer_of([Answer(400, body)], clock)


@pytest.mark.parametrize("wrapped", [True, False])
def test_vllm_tells_its_errors_in_the_middle_of_a_stream(clock: FakeClock, wrapped: bool) -> None:
    said = vllm_error(500, "EngineCore encountered an issue.")
    broken = streaming([*WHOLE[:2], event({"error": said} if wrapped else said), DONE])
    assert answer_of([broken, streaming(WHOLE)], clock).attempts == 2


def test_vllm_may_tell_its_usage_in_every_chunk(clock: FakeClock) -> None:
    def counted(text: str | None, count: int, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}
        return event(chunk_of([choice], usage={"prompt_tokens": 7, "completion_tokens": count}))

    answer = answer_of([streaming([counted("a", 1), counted("b", 2), counted(None, 3, "stop"), DONE])], clock)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("ab", 7, 3)


def test_vllm_thinks_beside_the_text(clock: FakeClock) -> None:
    thoughts = [chunk(None, reasoning_content="let me see"), chunk(None, reasoning="hm")]
    assert answer_of([streaming([WHOLE[0], *thoughts, *WHOLE[1:]])], clock).text == "hello"


def test_vllm_ends_what_it_gave_up_with_abort(clock: FakeClock) -> None:
    aborted = streaming([*WHOLE[:2], chunk(None, "abort"), DONE])
    assert answer_of([aborted, streaming(WHOLE)], clock).attempts == 2


# --- Ollama


def test_ollama_does_not_know_the_model(clock: FakeClock) -> None:
    said = error(404, 'model "m" not found, try pulling it first', type="api_error")
    with pytest.raises(ServiceError, match=r"try pulling it first.*Does it serve the model 'm'\?"):
        answer_of([said], clock)


def test_ollama_streams_thoughts_as_reasoning_and_its_end_without_a_delta_of_its_own(clock: FakeClock) -> None:
    pieces = [chunk("", role="assistant", reasoning="hm"), chunk("hello", role="assistant")]
    pieces += [
        chunk("", "stop", role="assistant"),
        event(chunk_of([], usage={"prompt_tokens": 26, "completion_tokens": 9})),
    ]
    answer = answer_of([streaming([*pieces, DONE])], clock)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("hello", 26, 9)


def test_ollama_needs_no_key(clock: FakeClock) -> None:
    assert answer_of([streaming(WHOLE)], clock, api_key=None).text == "hello"


# --- llama.cpp


def test_llama_cpp_is_busy_while_it_loads(clock: FakeClock) -> None:
    loading = error(503, "Loading model", type="unavailable_error", code=503)
    assert answer_of([loading, loading, streaming(WHOLE)], clock).attempts == 3


def test_llama_cpp_ends_its_streams_with_usage_and_timings_and_no_choices(clock: FakeClock) -> None:
    last = chunk_of([], usage={"prompt_tokens": 26, "completion_tokens": 9}, timings={"cache_n": 20, "prompt_n": 6})
    answer = answer_of([streaming([*WHOLE[:-2], event(last), DONE])], clock)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (26, 9, False)


def test_llama_cpp_tells_errors_in_a_field_of_their_own(clock: FakeClock) -> None:
    said = {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
    }
    with pytest.raises(ContextOverflowError):
        answer_of([streaming([b"error: " + json.dumps(said).encode() + b"\n\n"])], clock)


def test_llama_cpp_wants_its_key(clock: FakeClock) -> None:
    with pytest.raises(AuthenticationError):
        answer_of([error(401, "Invalid API Key", type="authentication_error", code=401)], clock)


def test_llama_cpp_takes_a_strict_schema(clock: FakeClock) -> None:
    answer = answer_of([streaming(WHOLE)], clock, answer_format="json")
    assert (answer.asked_format, answer.attempts) == ("json_schema", 1)


# --- llama-cpp-python


def test_llama_cpp_python_takes_a_schema_in_a_form_of_its_own(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        asked = request.json["response_format"]
        said = (
            "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text'\"}]"
        )
        return error(500, said, type="internal_server_error") if asked["type"] == "json_schema" else streaming(WHOLE)

    answer = answer_of(script, clock, answer_format="json")
    assert (answer.asked_format, answer.attempts, clock.sleeps) == ("json_object_with_schema", 2, [])


def test_llama_cpp_python_does_not_tell_the_usage_of_streams(clock: FakeClock) -> None:
    answer = answer_of([streaming([*WHOLE[:-2], DONE])], clock)
    assert (answer.usage_is_estimated, answer.prompt_tokens, answer.completion_tokens) == (True, 6, 2)


def test_llama_cpp_python_says_nothing_in_a_stream_when_the_prompt_is_too_long(clock: FakeClock) -> None:
    def script(request: Request) -> Answer:
        said = OVERFLOW.replace("4096", "2048")
        whole = error(400, said, type="invalid_request_error", param="messages", code="context_length_exceeded")
        return streaming([]) if "stream" in request.json else whole

    with pytest.raises(ContextOverflowError, match="2048"):
        answer_of(script, clock)


# --- LiteLLM


def test_litellm_gives_a_rate_limit_the_code_429_and_its_wait_a_name_of_its_own(clock: FakeClock) -> None:
    said = "litellm.RateLimitError: RateLimitError: OpenAIException - Rate limit"
    limited = error(429, said, type="throttling_error", code="429", headers={"llm_provider-retry-after": "2"})
    assert answer_of([limited, streaming(WHOLE)], clock).attempts == 2
    assert clock.sleeps == [2.0]


@pytest.mark.parametrize(
    ("said", "code"),
    [("Authentication Error, Invalid proxy server token passed.", "400"), ("No connected db.", "400")],
)
def test_litellm_says_400_to_a_wrong_key(clock: FakeClock, said: str, code: str) -> None:
    with pytest.raises(AuthenticationError):
        answer_of([error(400, said, type="no_db_connection", code=code)], clock)


def test_litellm_fails_in_plain_text_without_a_key(clock: FakeClock) -> None:
    with pytest.raises(ServiceError, match="answered 500: Internal Server Error"):
        answer_of([Answer(500, "Internal Server Error", headers={"Content-Type": "text/plain"})], clock, retry_count=0)


def test_litellm_says_an_unknown_model_with_400(clock: FakeClock) -> None:
    said = "/chat/completions: Invalid model name passed in model=m. Call `/v1/models` to view available models."
    with pytest.raises(ServiceError, match="Invalid model name"):
        answer_of([error(400, said, type="invalid_request_error", param="model", code="400")], clock)


def test_litellm_tells_the_usage_in_a_choice_after_the_end(clock: FakeClock) -> None:
    last = chunk_of([{"index": 0, "delta": {}}], usage={"prompt_tokens": 10, "completion_tokens": 5})
    answer = answer_of([streaming([*WHOLE[:-2], event(last), DONE])], clock)
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 10, 5)


def test_litellm_tells_of_a_lost_provider_in_the_stream(clock: FakeClock) -> None:
    said = {"message": "litellm.APIConnectionError: OpenAIException - Connection error.", "type": None, "code": "500"}
    broken = streaming([*WHOLE[:2], event({"error": said})])
    assert answer_of([broken, streaming(WHOLE)], clock).attempts == 2


# --- OpenRouter, DeepSeek, Groq, Mistral


def test_openrouter_keeps_alive_by_comments(clock: FakeClock) -> None:
    kept = [b": OPENROUTER PROCESSING\n\n"] * 3
    assert answer_of([streaming([*kept, *WHOLE])], clock).text == "hello"


def test_openrouter_tells_a_lost_provider_as_an_error_beside_a_choice(clock: FakeClock) -> None:
    lost = chunk_of([{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}])
    lost["error"] = {"code": "server_error", "message": "Provider disconnected unexpectedly"}
    whole = {"error": {"code": 502, "message": "Provider returned error"}, "user_id": "u"}
    assert answer_of([streaming([*WHOLE[:2], event(lost)]), Answer(200, whole), streaming(WHOLE)], clock).attempts == 3


def test_deepseek_keeps_alive_by_empty_lines_before_an_answer_in_one_piece(clock: FakeClock) -> None:
    body = b"\n\n\n" + json.dumps(completion("hello")).encode()
    assert answer_of([Answer(200, body)], clock, stream=False).text == "hello"


def test_deepseek_tells_its_cache_in_fields_of_its_own(clock: FakeClock) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 5,
        "prompt_cache_hit_tokens": 64,
        "prompt_cache_miss_tokens": 36,
    }
    answer = answer_of([streaming([*WHOLE[:-2], event(chunk_of([], usage=usage)), DONE])], clock)
    assert answer.cached_prompt_tokens == 64


def test_groq_tells_the_usage_of_a_stream_beside_it(clock: FakeClock) -> None:
    last = chunk_of([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    last["x_groq"] = {"id": "req_1", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    answer = answer_of([streaming([*WHOLE[:2], event(last), DONE])], clock)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (10, 5, False)


def test_mistral_calls_its_windows_end_model_length(clock: FakeClock) -> None:
    with pytest.raises(TruncatedAnswerError):
        answer_of([streaming([*WHOLE[:2], chunk(None, "model_length"), DONE])], clock)


# --- the cases of ../shared/data/aimock_fixtures/fx.json, as aimock 1.43 puts them on the wire


def aimock_stream(text: str, *, size: int, reason: str = "stop") -> list[bytes]:
    return streamed(completion(text, reason), size=size)


def test_aimock_rate_limit(clock: FakeClock) -> None:
    limited = error(
        429, "Rate limit reached", type="rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"}
    )
    assert answer_of([limited, streaming(aimock_stream("recovered", size=20))], clock).text == "recovered"
    assert clock.sleeps == [1.0]


def test_aimock_server_error(clock: FakeClock) -> None:
    boom = error(500, "boom", type="server_error")
    assert answer_of([boom, streaming(aimock_stream("recovered", size=20))], clock).text == "recovered"


def test_aimock_wrong_key(clock: FakeClock) -> None:
    with pytest.raises(AuthenticationError):
        answer_of([error(401, "bad key", type="invalid_request_error", code="invalid_api_key")], clock)


def test_aimock_context_overflow(clock: FakeClock) -> None:
    said = "This model's maximum context length is 8192 tokens"
    with pytest.raises(ContextOverflowError):
        answer_of([error(400, said, type="invalid_request_error", code="context_length_exceeded")], clock)


def test_aimock_token_limit(clock: FakeClock) -> None:
    cut = '{"changes":[{"operation":"create","file_path":"a.py","conte'
    with pytest.raises(TruncatedAnswerError):
        answer_of([streaming(aimock_stream(cut, size=20, reason="length"))], clock)


def test_aimock_content_filter(clock: FakeClock) -> None:
    with pytest.raises(ContentFilterError):
        answer_of([streaming(aimock_stream("", size=20, reason="content_filter"))], clock)


def test_aimock_slow_answer(clock: FakeClock) -> None:
    text = "slow answer in several chunks to test read timeout"
    assert answer_of([streaming(aimock_stream(text, size=5))], clock).text == text


def test_aimock_cut_stream(clock: FakeClock) -> None:
    cut = streaming(aimock_stream("this stream is cut in the middle of the text", size=5)[:3], ends=False)
    with pytest.raises(ServiceConnectionError, match="broke off"):
        answer_of([cut], clock)


def test_aimock_tool_call(clock: FakeClock) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "apply_changes", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": '{"changes":[]}'}}
    calls = [
        chunk(None, role="assistant", tool_calls=[call]),
        chunk(None, tool_calls=[rest]),
        chunk(None, "tool_calls"),
    ]
    with pytest.raises(MalformedAnswerError, match="tool call"):
        answer_of([streaming([*calls, DONE])], clock)


def test_aimock_structured_output(clock: FakeClock) -> None:
    text = as_json({"hello.py": "print('hello')\n"})
    answer = answer_of([streaming(aimock_stream(text, size=20))], clock, answer_format="json")
    assert (answer.text, answer.asked_format) == (text, "json_schema")


def test_aimock_usage(clock: FakeClock) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
    pieces = streamed({**completion("Hello from aimock"), "usage": usage})
    answer = answer_of([streaming(pieces)], clock)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (11, 4, False)
