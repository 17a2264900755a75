"""The user's migration guide: what its new side shows works as it is written there."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from necrocode.agent_runner import (
    ArtifactStoreClient,
    AuthenticationError,
    ConfigurationError,
    LLMClient,
    LLMConfig,
    RemovedSettingWarning,
    RepoPoolClient,
    RunnerConfig,
    SlotAllocationError,
    TaskRegistryClient,
    removed,
)
from tests.docs.markdown import Block, Document
from tests.docs.snippets import (
    DIFF,
    GUIDE_REPOSITORY_URL,
    GUIDE_REQUESTS,
    PORTS,
    SERVICE_COMMANDS,
    Loopback,
    Sent,
    check_command,
    is_old_side,
    load_yaml_block,
    loopback,
    setting_of,
)
from tests.support.http_server import Answer, serving
from tests.support.repositories import files_at, git
from tests.support.shared import ROOT, migration_guide

MIGRATIONS = sorted(path.name for path in ROOT.glob("MIGRATION*.md"))


@pytest.fixture
def guide() -> Document:
    return Document(migration_guide())


@pytest.fixture(params=["guide", *MIGRATIONS])
def document(request: pytest.FixtureRequest) -> Document:
    """The user's guide, and the project's own, which show the same snippets."""
    return Document(migration_guide() if request.param == "guide" else ROOT / request.param)


@pytest.fixture
def services(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with loopback(repository) as place:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{place.urls['model']}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "your-api-key")
        yield place


def new_side(document: Document, language: str) -> list[Block]:
    return [block for block in document.blocks if block.language == language and not is_old_side(block)]


def old_side(document: Document, language: str) -> list[Block]:
    return [block for block in document.blocks if block.language == language and is_old_side(block)]


# ---- Which snippet belongs to which side


def test_no_snippet_of_the_guide_falls_between_the_sides(guide: Document) -> None:
    by_label = {str(block): "旧" in block.label for block in guide.blocks}
    assert by_label == {str(block): is_old_side(block) for block in guide.blocks}
    assert list(by_label.values()).count(True) == 6


def test_every_snippet_of_the_guide_is_of_a_kind_that_is_proved(guide: Document) -> None:
    assert {block.language for block in guide.blocks} == {"python", "yaml", "bash", ""}
    plain = [block for block in new_side(guide, "") if "┌" not in block.text]
    assert [block.text.strip() for block in plain] == [
        "ConnectionError: Failed to connect to http://localhost:8001",
        "AuthenticationError: Invalid API key",
        "SlotAllocationError: No available slots",
    ]


@pytest.mark.parametrize("name", MIGRATIONS)
def test_the_old_side_of_our_guide_is_marked(name: str) -> None:
    blocks = [block for block in Document(ROOT / name).blocks if block.language in {"python", "yaml"}]
    assert [block.is_marked_old for block in blocks] == [is_old_side(block) for block in blocks]


# ---- Python


def status(task_id: str, value: str) -> Sent:
    return Sent("registry", "PUT", f"/tasks/{task_id}/status", {"status": value, "metadata": {}})


def upload(content: bytes) -> Callable[[Sent], None]:
    def check(sent: Sent) -> None:
        assert (sent.service, sent.method, sent.path) == ("store", "POST", "/artifacts")
        assert {"file": content, "type": b"diff"}.items() <= sent.body.items()
        assert json.loads(sent.body["metadata"]) == {"task_id": "1.1"}
        assert set(sent.body) <= {"file", "type", "metadata", "sha256"}

    return check


def artifact(uri: str, size_bytes: int) -> Sent:
    body = {"type": "diff", "uri": uri, "size_bytes": size_bytes}
    return Sent("registry", "POST", "/tasks/1.1/artifacts", body)


EVENT = {"event_type": "implementation_started", "data": {}}
ALLOCATION = {"repo_url": GUIDE_REPOSITORY_URL, "required_by": "runner-1"}
# What each Python snippet of the new side sends to the services, in the guide's order.
REQUESTS: list[Any] = [
    [status("1.1", "in_progress"), Sent("registry", "POST", "/tasks/1.1/events", EVENT), artifact("s3://...", 1024)],
    [Sent("pool", "POST", "/slots/allocate", ALLOCATION), Sent("pool", "POST", "/slots/slot-1/release", {})],
    [upload(b"diff content")],
    [],
    [],
    None,  # a whole run: see below
    [upload(DIFF.encode()), artifact("s3://artifacts/1", len(DIFF))],
    [status("test", "in_progress")],
]


def test_client_snippets_send_the_requests_that_services_of_the_guide_know(
    document: Document, services: Loopback
) -> None:
    snippets = new_side(document, "python")
    for block, expected in zip(snippets, REQUESTS, strict=True):
        if expected is None:
            continue
        services.sent.clear()
        services.run(block)
        assert len(services.sent) == len(expected), f"{block}: {services.sent}"
        for sent, wanted in zip(services.sent, expected, strict=True):
            wanted(sent) if callable(wanted) else _assert_same(sent, wanted, block)


def _assert_same(sent: Sent, wanted: Sent, block: Block) -> None:
    assert sent == wanted, str(block)


def test_the_model_snippet_asks_as_configured_and_shows_the_changes(
    document: Document, services: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in new_side(document, "python") if "generate_code" in block.text]
    services.run(block)
    (asked,) = services.asked
    assert (asked["model"], asked["max_tokens"]) == ("gpt-4", 4000)
    assert "Create a User model" in asked["messages"][-1]["content"]
    assert capsys.readouterr().out == "create: user.py\n"
    assert git(services.checkout, "status", "--porcelain") == ""


def test_the_orchestrator_snippet_makes_one_with_the_settings_it_names(document: Document, services: Loopback) -> None:
    (block,) = [block for block in new_side(document, "python") if "RunnerConfig(" in block.text]
    config: RunnerConfig = services.run(block)["orchestrator"].config
    urls = (config.task_registry_url, config.repo_pool_url, config.artifact_store_url)
    assert urls == tuple(services.urls[service] for service in PORTS)
    assert config.llm_config.api_key is not None
    assert config.llm_config.api_key.get_secret_value() == "your-api-key"
    assert (config.llm_config.model, config.llm_config.timeout_seconds) == ("gpt-4", 120)


def test_the_task_snippet_is_a_whole_run_that_services_of_the_guide_can_follow(
    document: Document, services: Loopback
) -> None:
    (block,) = [block for block in new_side(document, "python") if "orchestrator.run(" in block.text]
    names = services.run(block)
    result, task = names["result"], names["task_context"]
    assert (result.status, result.error, result.reported) == ("done", None, "yes")
    assert (task.acceptance_criteria, result.branch) == ((), "feature/task-1.1-database-schema")
    assert files_at(services.checkout, result.branch)["user.py"] == b"class User:\n    pass\n"
    assert {sent.kind for sent in services.sent} <= GUIDE_REQUESTS
    statuses = [sent.body["status"] for sent in services.sent if sent.path == "/tasks/1.1/status"]
    assert statuses == ["running", "done"]
    stored = [sent.body["type"] for sent in services.sent if sent.path == "/artifacts"]
    recorded = [sent.body["type"].encode() for sent in services.sent if sent.path == "/tasks/1.1/artifacts"]
    assert sorted(stored) == sorted(recorded) == [b"diff", b"log", b"manifest", b"test", b"transcript"]


def test_our_guide_shows_the_same_code_as_the_users(guide: Document) -> None:
    for name in MIGRATIONS:
        ours = new_side(Document(ROOT / name), "python")
        theirs = new_side(guide, "python")
        assert [ast.dump(ast.parse(b.text)) for b in ours] == [ast.dump(ast.parse(b.text)) for b in theirs], name


# ---- YAML


def test_settings_snippets_load_and_every_value_arrives(document: Document, tmp_path: Path) -> None:
    blocks = new_side(document, "yaml")
    assert len(blocks) == 6
    for block in blocks:
        config = load_yaml_block(block, tmp_path)
        assert isinstance(config, RunnerConfig)
        written = yaml.safe_load(block.text)
        for name, value in written.pop("llm", {}).items():
            assert getattr(config.llm_config, name) == value
        for name, value in written.items():
            assert getattr(config, name) == value


def test_old_settings_are_refused_by_name(document: Document, tmp_path: Path) -> None:
    (block,) = old_side(document, "yaml")
    with pytest.raises(ConfigurationError, match=r"message_bus_url.*kiro_url"):
        load_yaml_block(block, tmp_path)


# ---- Shell and environment


def test_shell_lines_work(document: Document) -> None:
    blocks = new_side(document, "bash")
    for command in (command for block in blocks for command in block.commands):
        check_command(command)


def test_each_exported_variable_of_the_new_side_is_a_setting(document: Document) -> None:
    exports = [line for block in new_side(document, "bash") for line in block.commands if line.startswith("export ")]
    names = [line.split()[1].partition("=")[0] for line in exports]
    assert {name: setting_of(name) for name in names} == {
        "TASK_REGISTRY_URL": "task_registry_url",
        "REPO_POOL_URL": "repo_pool_url",
        "ARTIFACT_STORE_URL": "artifact_store_url",
        "OPENAI_API_KEY": "llm.api_key",
        "GIT_TOKEN": "git_token",
    }


@pytest.mark.parametrize("variable", ["MESSAGE_BUS_URL", "KIRO_URL"])
def test_old_variables_set_nothing(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removed, "_told", set())
    with pytest.warns(RemovedSettingWarning, match=variable):
        RunnerConfig.from_env(environ={variable: "http://localhost:5000"})
    assert setting_of(variable) is None  # warned about once, so no more


def test_every_image_that_is_named_is_a_target_of_the_dockerfile() -> None:
    images = {word for command in SERVICE_COMMANDS for word in command.split() if word.startswith("necrocode/")}
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {image.partition("/")[2] for image in images} < set(targets)
    ports = {"task-registry": "8001", "repo-pool": "8002", "artifact-store": "8003"}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name, port in ports.items():
        assert compose[name]["image"] == f"necrocode/{name}"
        assert compose[name]["container_name"] == name
        assert compose[name]["build"]["target"] == name
        assert compose[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


# ---- Troubleshooting


def test_a_service_that_is_down_reads_as_the_guide_says() -> None:
    with serving([Answer()]) as server:
        url = server.url
    with pytest.raises(ConnectionError) as caught:
        TaskRegistryClient(url, network_retry_count=0).update_task_status("1.1", "running")
    assert str(caught.value).startswith(f"Failed to connect to {url}")
    assert f"curl {url}/health" in str(caught.value)


def test_a_refused_key_reads_as_the_guide_says() -> None:
    refusal = {"error": {"message": "Incorrect API key provided: sk-x.", "code": "invalid_api_key"}}
    with serving([Answer(401, refusal)]) as server:
        client = LLMClient(LLMConfig(api_key="your-api-key", endpoint=f"{server.url}/v1"))
        with pytest.raises(AuthenticationError, match="Invalid API key"):
            client.generate_code("x")


def test_a_full_pool_reads_as_the_guide_says() -> None:
    problem = {"type": "no-available-slots", "title": "no available slots", "status": 503, "detail": "5 of 5 in use"}
    with (
        serving([Answer(503, problem, {"Retry-After": "1"})]) as server,
        pytest.raises(SlotAllocationError, match=r"^No available slots"),
    ):
        RepoPoolClient(server.url).allocate_slot(GUIDE_REPOSITORY_URL, "runner-1")


def test_what_the_guide_asks_with_curl_the_clients_can_ask_too(services: Loopback) -> None:
    for client, service in ((TaskRegistryClient, "registry"), (RepoPoolClient, "pool"), (ArtifactStoreClient, "store")):
        assert client(services.urls[service]).health()["status"] == "ok"
    pool = RepoPoolClient(services.urls["pool"])
    pool.pools_status()
    pool.release_slot("slot-7")
    assert services.sent[-2:] == [
        Sent("pool", "GET", "/pools/status"),
        Sent("pool", "POST", "/slots/slot-7/release", {}),
    ]
