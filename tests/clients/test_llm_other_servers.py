"""The model client against servers that nobody here wrote."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
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
    RateLimitError,
    ServiceConnectionError,
    ServiceError,
    TruncatedAnswerError,
)
from tests.support.shared import shared_folder

AIMOCK_VERSION = "1.43.0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- aimock


@pytest.fixture(scope="session")
def aimock_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """aimock, from the npm registry; installed once per machine, in a folder of the tests' own."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    cache = Path(os.environ.get("NECROCODE_TEST_CACHE") or tmp_path_factory.mktemp("aimock"))
    program = cache / "node_modules/.bin/llmock"
    if not program.exists():
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(cache),
            f"@copilotkit/aimock@{AIMOCK_VERSION}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm could not install aimock: {done.stderr[-200:]}")
    return ["node", str(program.resolve())]


@pytest.fixture(scope="module")
def aimock(aimock_command: list[str]) -> Iterator[str]:
    fixtures = shared_folder("aimock_fixtures") / "fx.json"
    port = free_port()
    command = [*aimock_command, "--port", str(port), "--fixtures", str(fixtures), "--log-level", "silent"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)


def aimock_client(url: str, edit_format: Any = "files", **settings: Any) -> LLMClient:
    return LLMClient(
        LLMConfig(endpoint=url, api_key="sk-test-key", model="gpt-4.1", edit_format=edit_format, **settings)
    )


def test_aimock_structured_output_becomes_a_change_set(aimock: str) -> None:
    response = aimock_client(aimock, "auto").generate_code("Write hello.py")
    assert response.edit_format == "json"
    assert [(change.operation, change.file_path, change.content) for change in response.code_changes] == [
        ("create", "hello.py", "print('hello')\n")
    ]
    assert response.explanation == "ok"


def test_aimock_plain_answers_without_a_change_are_malformed(aimock: str) -> None:
    with pytest.raises(MalformedAnswerError, match="Hello from aimock"):
        aimock_client(aimock).generate_code("plain")


@pytest.mark.parametrize("case", ["CASE-429", "CASE-500"])
def test_aimock_passing_trouble_is_overcome(aimock: str, case: str) -> None:
    with pytest.raises(MalformedAnswerError, match="recovered"):
        aimock_client(aimock).generate_code(case)


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("CASE-401", AuthenticationError),
        ("CASE-CTX", ContextOverflowError),
        ("CASE-LENGTH", TruncatedAnswerError),
        ("CASE-FILTER", ContentFilterError),
        ("CASE-TOOL", MalformedAnswerError),
    ],
)
def test_aimock_refusals_are_typed(aimock: str, case: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        aimock_client(aimock).generate_code(case)


def test_aimock_streams_that_are_cut_are_never_applied(aimock: str) -> None:
    with pytest.raises(ServiceConnectionError, match="broke off its answer"):
        aimock_client(aimock, retry_count=1).generate_code("CASE-TRUNC")


def test_aimock_slow_answers_are_waited_for(aimock: str) -> None:
    with pytest.raises(MalformedAnswerError, match="slow answer in several chunks"):
        aimock_client(aimock).generate_code("CASE-SLOW")


# --- llmock, whose pytest plugin starts it on loopback and judges its client

ANSWER = "a.py\n```python\nx = 1\n```\n"


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then jitter makes two growing pauses about the same, which llmock takes for a client without backoff."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


def llmock_client(llmock: Any, **settings: Any) -> LLMClient:
    settings = {"endpoint": llmock.base_url(), "api_key": "sk-test-key", "model": "gpt-4.1"} | settings
    return LLMClient(LLMConfig(edit_format="files", **settings))


def test_llmock_has_nothing_to_say_of_a_client_that_is_limited_and_served_again(llmock: Any) -> None:
    llmock.rate_limit(times=2, retry_after=0.4).reply(ANSWER)
    assert llmock_client(llmock).generate_code("P").code_changes[0].file_path == "a.py"
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_llmock_has_nothing_to_say_of_one_that_overcomes_an_outage(llmock: Any, status: int) -> None:
    llmock.fail(status, times=2).reply(ANSWER)
    assert llmock_client(llmock).generate_code("P").code_changes
    llmock.assert_resilient(strict=True)


def test_llmock_has_nothing_to_say_of_one_that_gives_up_in_time(llmock: Any) -> None:
    llmock.outage()
    with pytest.raises(ServiceError):
        llmock_client(llmock, retry_count=3).generate_code("P")
    assert len(llmock.requests) == 4
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_llmock_has_nothing_to_say_of_one_that_takes_no_for_an_answer(llmock: Any, status: int) -> None:
    llmock.fail(status, times=None)
    with pytest.raises((ServiceError, AuthenticationError)):
        llmock_client(llmock).generate_code("P")
    assert len(llmock.requests) == 1
    llmock.assert_resilient(strict=True)


def test_llmock_has_nothing_to_say_of_one_whose_prompt_is_too_long(llmock: Any) -> None:
    llmock.context_overflow()
    with pytest.raises(ContextOverflowError):
        llmock_client(llmock).generate_code("P")
    llmock.assert_resilient(strict=True)


def test_llmock_real_quotas_are_waited_for(llmock: Any) -> None:
    llmock.limits(rpm=600)
    asking = llmock_client(llmock)
    for number in range(3):
        llmock.reply(ANSWER)
        assert asking.generate_code(f"P{number}").code_changes
    llmock.assert_resilient(strict=True)


def test_llmock_structured_output_is_asked_for(llmock: Any) -> None:
    llmock.reply('{"explanation": "e", "changes": [{"operation": "create", "file_path": "a.py", "content": "x"}]}')
    asking = LLMClient(LLMConfig(endpoint=llmock.base_url(), api_key="sk-test-key", model="gpt-4.1"))
    assert asking.generate_code("P").edit_format == "json"
    llmock.assert_resilient(strict=True)


def test_a_wait_that_is_too_long_is_told_instead_of_sat_out(llmock: Any) -> None:
    llmock.rate_limit(times=None, retry_after=4000)
    with pytest.raises(RateLimitError):
        llmock_client(llmock).generate_code("P")
    assert len(llmock.requests) == 1


# --- llmock's streams


@pytest.mark.parametrize("after_chunks", [0, 1, 2])
@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt"])
def test_llmock_has_nothing_to_say_of_one_whose_stream_is_broken(llmock: Any, fault: str, after_chunks: int) -> None:
    llmock.reply(ANSWER, times=None)
    getattr(llmock, fault)(after_chunks=after_chunks, times=1)
    assert llmock_client(llmock).generate_code("P").code_changes[0].file_path == "a.py"
    assert len(llmock.requests) == 2
    # A stream whose later chunks were all sent before the client hung up looks to llmock like one that was taken.
    llmock.assert_resilient(strict=fault != "corrupt")


def test_llmock_has_nothing_to_say_of_one_whose_stream_stalls(llmock: Any) -> None:
    llmock.reply(ANSWER, times=None)
    llmock.stall(after_chunks=2, seconds=20, times=1)
    assert llmock_client(llmock, idle_timeout_seconds=0.5).generate_code("P").code_changes
    assert len(llmock.requests) == 2
    llmock.assert_resilient(strict=True)


def test_llmock_has_nothing_to_say_of_one_whose_stream_is_slow(llmock: Any) -> None:
    llmock.reply(ANSWER).slow_first_token(0.5)
    llmock.pace(5)
    answer = llmock_client(llmock, idle_timeout_seconds=5).complete([Message(role="user", content="P")])
    assert (answer.text, answer.is_streamed) == (ANSWER, True)
    llmock.assert_resilient(strict=True)


def test_llmock_tool_calls_in_streams_are_no_answer(llmock: Any) -> None:
    llmock.call_tool("apply_changes", {"changes": []})
    with pytest.raises(MalformedAnswerError, match="tool call"):
        llmock_client(llmock).generate_code("P")
