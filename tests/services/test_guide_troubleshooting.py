"""The guide's four problems: each shows the symptom that is printed there, and what is told to be done cures it."""

from __future__ import annotations

import socket
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    LLMClient,
    LocalRepoPool,
    RepoPoolClient,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    SlotAllocationError,
    TaskContext,
    TaskNotFoundError,
    TaskRegistryClient,
)
from necrocode.agent_runner._git import Git
from tests.docs.markdown import Document
from tests.support.http_server import Answer, Request, serving
from tests.support.model_server import as_files, completion
from tests.support.repositories import FIXED_CALC
from tests.support.serving import necrocode_serve
from tests.support.shared import ROOT, migration_guide

LOCALHOST = "http://localhost:8001"


@pytest.fixture(params=["guide", "MIGRATION.md"])
def document(request: pytest.FixtureRequest) -> Document:
    return Document(migration_guide() if request.param == "guide" else ROOT / request.param)


def symptom(document: Document, error: str) -> str:
    """The line that the document shows for an error."""
    (block,) = [block for block in document.blocks if block.text.startswith(error)]
    return block.text.strip()


def last_line(function: Callable[[], object], kind: type[Exception]) -> str:
    """What a traceback of the call ends with."""
    with pytest.raises(kind) as caught:
        function()
    return traceback.format_exception_only(caught.value)[-1]


def settings(document: Document, key: str, folder: Path, *, url: str = LOCALHOST) -> RunnerConfig:
    """The settings that the document shows for a key, with another URL in the place of its own."""
    block, *_ = [block for block in document.blocks_of("yaml") if block.text.startswith(f"{key}:")]
    file = folder / "config.yaml"
    file.write_text(block.text.replace(LOCALHOST, url), encoding="utf-8")
    return RunnerConfig.from_yaml(file, state_dir=folder / "state")


def command(document: Document, text: str) -> str:
    (line,) = [line for block in document.blocks_of("bash") for line in block.commands if text in line]
    return line


def typed(line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, check=False)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# ---- Problem 1


def test_a_service_that_is_not_there_is_found_by_its_health_and_cured_by_starting_it(
    document: Document, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    curl = f"{command(document, '8001/health').replace(LOCALHOST, url)} --fail -sS"

    def report() -> object:
        with TaskRegistryClient(url, network_retry_count=0) as client:
            return client.update_task_status("1.1", "in_progress")

    assert symptom(document, "ConnectionError").replace(LOCALHOST, url) in last_line(report, ConnectionError)
    assert typed(curl, PATH="/usr/bin:/bin").returncode != 0
    with necrocode_serve(tmp_path, "task-registry", "--port", url.rpartition(":")[2], "--data-dir", str(tmp_path)):
        assert '"status":"ok"' in typed(curl, PATH="/usr/bin:/bin").stdout
        last_line(report, TaskNotFoundError)  # it is reached, and knows no such task


def test_a_wrong_url_is_cured_by_the_right_one_or_by_none(document: Document, tmp_path: Path, repository: Path) -> None:
    wrong = RunnerConfig(task_registry_url=f"http://127.0.0.1:{free_port()}", network_retry_count=0, state_dir=tmp_path)
    refused = run(wrong, repository)
    assert refused.error_details is not None
    assert refused.error_details.type == "ServiceConnectionError"
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--data-dir", str(tmp_path)) as served:
        right = settings(document, "task_registry_url", tmp_path, url=served.urls["task-registry"])
        assert run(right, repository).reported == "yes"
    assert run(RunnerConfig(state_dir=tmp_path / "embedded"), repository).reported == "yes"


# ---- Problem 2


def keyed(request: Request) -> Answer:
    """An endpoint that takes one key."""
    if request.headers.get("authorization") != "Bearer good-key":
        refusal = {"error": {"message": "Incorrect API key provided: bad.", "code": "invalid_api_key"}}
        return Answer(401, refusal)
    return Answer(200, completion(as_files({"a.py": "x = 1\n"})) if request.method == "POST" else {"data": []})


def test_a_refused_key_is_found_by_asking_and_cured_by_another(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(keyed) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        curl = f"{command(document, 'api.openai.com').replace('https://api.openai.com', server.url)} --fail -sS"

        def ask() -> object:
            return LLMClient(settings(document, "llm_api_key_env_var", tmp_path).llm_config).generate_code("x")

        monkeypatch.setenv("OPENAI_API_KEY", "bad-key")
        assert symptom(document, "AuthenticationError") in last_line(ask, AuthenticationError)
        assert typed(curl, PATH="/usr/bin:/bin", OPENAI_API_KEY="bad-key").returncode != 0
        monkeypatch.setenv("OPENAI_API_KEY", "good-key")
        assert ask()
        assert typed(curl, PATH="/usr/bin:/bin", OPENAI_API_KEY="good-key").returncode == 0
        assert typed(command(document, "echo $OPENAI"), OPENAI_API_KEY="good-key").stdout == "good-key\n"


# ---- Problem 3


def test_a_full_pool_is_seen_in_its_status_and_cured_by_giving_a_slot_back(
    document: Document, tmp_path: Path, repository: Path
) -> None:
    arguments = ("repo-pool", "--port", "0", "--data-dir", str(tmp_path), "--pool-size", "1")
    with necrocode_serve(tmp_path, *arguments) as served:
        url = served.urls["repo-pool"]
        with RepoPoolClient(url, network_retry_count=0) as pool:
            held = pool.allocate_slot(str(repository), "runner-1").slot_id

            def allocate() -> object:
                return pool.allocate_slot(str(repository), "runner-2", timeout_seconds=0)

            assert symptom(document, "SlotAllocationError") in last_line(allocate, SlotAllocationError)
            shown = typed(f"{at(url, command(document, 'pools/status'))} -sS", PATH="/usr/bin:/bin")
            assert held in shown.stdout
            release = at(url, command(document, "/release")).replace("{slot_id}", held)
            assert typed(f"{release} -sS --fail", PATH="/usr/bin:/bin").returncode == 0
            assert allocate()


def test_a_full_pool_is_cured_by_a_larger_one(document: Document, tmp_path: Path, repository: Path) -> None:
    size = settings(document, "pool_size", tmp_path).pool_size
    assert size > RunnerConfig().pool_size == 5
    for slots in (5, size):
        pool = LocalRepoPool(tmp_path / str(slots), Git(tmp_path / "git"), pool_size=slots)
        for number in range(5):
            pool.allocate_slot(str(repository), f"runner-{number}")

        def allocate(pool: LocalRepoPool = pool) -> object:
            return pool.allocate_slot(str(repository), "runner-6", timeout_seconds=0)

        if slots == 5:
            assert symptom(document, "SlotAllocationError") in last_line(allocate, SlotAllocationError)
        else:
            assert allocate()


def at(url: str, line: str) -> str:
    return line.replace("http://localhost:8002", url)


# ---- Problem 4


def run(config: RunnerConfig, repository: Path) -> RunnerResult:
    """One task, by a model that knows the answer."""
    llm = ScriptedLLM([as_files({"calc.py": FIXED_CALC})])
    with RunnerOrchestrator(config.model_copy(update={"push": False}), llm=llm) as orchestrator:
        return orchestrator.run(
            TaskContext(task_id="1.1", spec_name="s", title="t", description="d", repo_url=str(repository))
        )


class Flaky:
    """A registry whose answer to the last report is lost a number of times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self, request: Request) -> Answer:
        if request.method == "PUT" and request.json["status"] == "done" and self.failures > 0:
            self.failures -= 1
            return Answer(503, {"type": "unavailable", "title": "unavailable", "status": 503}, {"Retry-After": "0"})
        return Answer(200 if request.method == "PUT" else 201, {})


def test_a_report_that_is_lost_is_told_in_the_result_and_cured_by_retries(
    document: Document, tmp_path: Path, repository: Path
) -> None:
    config = settings(document, "network_retry_count", tmp_path)
    with serving(Flaky(failures=1)) as server:
        once = config.model_copy(update={"network_retry_count": 0, "task_registry_url": server.url})
        result = run(once, repository)
        assert (result.status, result.reported) == ("done", "pending")
        assert any("registry" in warning for warning in result.warnings)
    with serving(Flaky(failures=1)) as server:
        result = run(config.model_copy(update={"task_registry_url": server.url}), repository)
        assert (result.status, result.reported) == ("done", "yes")


def test_a_client_by_itself_tells_whether_the_registry_is_reached(document: Document, tmp_path: Path) -> None:
    (block,) = [block for block in document.python() if '"test"' in block.text]
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--data-dir", str(tmp_path)) as served:
        code = block.text.replace(LOCALHOST, served.urls["task-registry"])
        names = {"TaskRegistryClient": TaskRegistryClient}
        last_line(lambda: exec(code, names), TaskNotFoundError)  # noqa: S102  the document's own code
        assert served.stop() == 0  # by then the log is whole
        assert '"path": "/tasks/test/status"' in served.log.read_text(encoding="utf-8")
