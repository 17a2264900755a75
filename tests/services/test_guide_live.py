"""The new side of the user's own migration guide, run as it is written against ``necrocode serve all``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import RepoPoolClient, SlotAllocationError, TaskContext, TaskRegistryClient
from tests.docs.markdown import Block, Document
from tests.docs.snippets import GUIDE_REPOSITORY_URL, PORTS, Loopback, is_old_side
from tests.support.http_server import serving
from tests.support.repositories import files_at
from tests.support.serving import Served, necrocode_serve
from tests.support.shared import migration_guide

_NAMES = {"registry": "task-registry", "pool": "repo-pool", "store": "artifact-store"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with necrocode_serve(tmp_path, "all", "--port", "0", "--data-dir", str(tmp_path / "data")) as running:
        yield running


@pytest.fixture
def place(served: Served, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """The served services in the place of the guide's, a model, and a repository; the dispatcher's tasks are known."""
    monkeypatch.setenv("OPENAI_API_KEY", "your-api-key")
    place = Loopback(repository)
    place.urls = {name: served.urls[_NAMES[name]] for name in PORTS}
    with TaskRegistryClient(place.urls["registry"]) as registry:
        for task_id, spec_name in (("1.1", "chat-app"), ("test", "chat-app")):
            task = {"task_id": task_id, "spec_name": spec_name, "title": "t", "description": "d", "repo_url": "/r"}
            registry.register_task(TaskContext(**task))  # type: ignore[arg-type]
    with serving(lambda request: place.script("model", request)) as model:
        place.urls["model"] = model.url
        monkeypatch.setenv("OPENAI_BASE_URL", f"{model.url}/v1")
        yield place


def snippets(language: str) -> list[Block]:
    blocks = Document(migration_guide()).blocks
    return [block for block in blocks if block.language == language and not is_old_side(block)]


class AtRepository(Loopback):
    """As its base, with a repository that is here in the place of the guide's."""

    def placed(self, text: str) -> str:
        return super().placed(text).replace(GUIDE_REPOSITORY_URL, str(self.checkout))


def run(place: Loopback, block: Block) -> dict[str, Any]:
    return AtRepository(place.checkout, place.answer, place.sent, place.asked, place.urls).run(block)


def test_every_python_snippet_runs_against_the_services(place: Loopback) -> None:
    blocks = snippets("python")
    assert len(blocks) == 8
    left = [run(place, block) for block in blocks]
    (result,) = [names["result"] for names in left if "result" in names]
    assert (result.status, result.error, result.reported) == ("done", None, "yes")
    assert files_at(place.checkout, "feature/task-1.1-database-schema")["user.py"] == b"class User:\n    pass\n"
    with TaskRegistryClient(place.urls["registry"]) as registry:
        assert registry.get_task("1.1").status == "done"
        assert registry.get_task("test").status == "running"
        events = [event.event_type for event in registry.list_events("1.1")]
        recorded = [(one.type, one.uri) for one in registry.list_artifacts("1.1")]
    assert events[0] == "implementation_started"
    assert {"run_started", "branch_delivered", "run_finished"} <= set(events)
    assert ("diff", "s3://...") in recorded
    assert {"log", "transcript"} <= {kind for kind, _ in recorded}
    with RepoPoolClient(place.urls["pool"]) as pool:
        (slots,) = [one.slots for one in pool.pools_status()]
        assert [slot.state for slot in slots] == ["available"]


def curl(place: Loopback, line: str, **values: str) -> str:
    for service, port in PORTS.items():
        line = line.replace(f"http://localhost:{port}", place.urls[service])
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    done = subprocess.run(
        ["sh", "-c", f"{line} --silent --show-error --fail"], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_every_curl_line_works_as_printed(place: Loopback) -> None:
    lines = [line for block in snippets("bash") for line in block.commands if line.startswith("curl ")]
    mine = [line for line in lines if "localhost" in line]
    assert len(mine) == 5
    with RepoPoolClient(place.urls["pool"], network_retry_count=0) as pool:
        held = [pool.allocate_slot(str(place.checkout), "runner-1").slot_id for _ in range(5)]
        with pytest.raises(SlotAllocationError, match="No available slots"):
            pool.allocate_slot(str(place.checkout), "runner-2", timeout_seconds=0)
        answers = [curl(place, line, slot_id=held[0]) for line in mine]
        assert all('"status":"ok"' in answer for answer in answers[:3])
        assert held[0] in answers[3]
        assert pool.allocate_slot(str(place.checkout), "runner-2", timeout_seconds=5).slot_id == held[0]
