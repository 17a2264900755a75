"""The Task Registry service as a stranger sees it: its wire, its OpenAPI document, its stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests

from necrocode.agent_runner import LocalTaskRegistry, TaskRegistryClient
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from necrocode.services._app import create_app
from necrocode.services.task_registry import CAPABILITIES, task_registry_service
from tests.support.postgres import empty_database
from tests.support.served import served
from tests.support.serving import necrocode_serve


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalTaskRegistry]:
    if request.param == "sqlite":
        with LocalTaskRegistry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
            yield registry
        return
    with empty_database() as url, LocalTaskRegistry(url) as registry:
        yield registry


@pytest.fixture
def url(registry: LocalTaskRegistry) -> Iterator[str]:
    tasks = (TaskDefinition(task_id="1", title="T"), TaskDefinition(task_id="2", dependencies=("1",)))
    registry.create_taskset(TaskSet(spec_name="s", tasks=tasks))
    with served(create_app(task_registry_service(registry))) as url:
        yield url


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


DEEP = nested(300)
RING = {"task_id": "1", "dependencies": ["1"]}


def problem(answer: requests.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"]


def test_health_lists_what_the_service_can(url: str) -> None:
    answer = requests.get(f"{url}/health", timeout=10).json()
    assert (answer["service"], answer["status"]) == ("task-registry", "ok")
    assert answer["capabilities"] == sorted(CAPABILITIES)


def test_the_old_calls_answer_as_they_always_did(url: str) -> None:
    answer = requests.put(f"{url}/tasks/1/status", json={"status": "in_progress", "metadata": {"a": 1}}, timeout=10)
    assert (answer.status_code, answer.json()["status"], answer.json()["metadata"]) == (200, "running", {"a": 1})
    answer = requests.post(f"{url}/tasks/1/events", json={"event_type": "e", "data": {"n": 1}}, timeout=10)
    assert (answer.status_code, answer.json()["event_type"], answer.json()["sequence"]) == (201, "e", 1)
    body: dict[str, Any] = {"type": "log", "uri": "file:///l", "size_bytes": 3}
    answer = requests.post(f"{url}/tasks/1/artifacts", json=body, timeout=10)
    assert (answer.status_code, answer.json()["uri"]) == (201, "file:///l")
    answer = requests.put(f"{url}/tasks/1/status", json={"status": "ready"}, headers={"X-Lease-Epoch": "0"}, timeout=10)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("PUT", "/tasks/1/status", {"status": "done"}, (409, "illegal-transition")),
        ("PUT", "/tasks/9/status", {"status": "done"}, (404, "task-not-found")),
        ("PUT", "/tasks/1/status", {"status": "unheard"}, (400, "invalid-request")),
        ("PUT", "/tasks/1/status", {}, (422, "invalid-request")),
        ("PUT", "/tasks/1/status", {"status": "running", "metadata": {"a": "\ud800"}}, (422, "invalid-request")),
        ("POST", "/tasks/1/events", {"event_type": "e", "data": {"\udfff": 1}}, (422, "invalid-request")),
        ("POST", "/tasks/1/events", {"event_type": "e", "data": DEEP}, (422, "invalid-request")),
        ("POST", "/tasks/1/artifacts", {"type": "log", "uri": "u", "metadata": DEEP}, (422, "invalid-request")),
        ("PUT", "/tasks/1?spec_name=../x", {}, (400, "invalid-request")),
        ("GET", "/tasks/-x", None, (400, "invalid-request")),
        ("GET", "/tasks?limit=1001", None, (400, "invalid-request")),
        ("GET", "/tasks?cursor=nonsense", None, (400, "invalid-request")),
        ("GET", "/tasksets/none", None, (404, "task-not-found")),
        ("GET", "/tasksets/s/graph?format=png", None, (400, "invalid-request")),
        ("POST", "/tasksets", {"spec_name": "x", "tasks": [RING]}, (422, "invalid-task")),
        ("POST", "/tasksets", {"spec_name": "a/b", "tasks": []}, (422, "invalid-task")),
        ("POST", "/tasks/claim", {"runner_id": "r", "lease_seconds": 0}, (422, "invalid-request")),
        ("POST", "/tasks/1/lease", {"lease_token": "x"}, (409, "stale-lease")),
        ("DELETE", "/tasks/1/lease", None, (400, "invalid-request")),
        ("POST", "/tasks/1/retry", None, (409, "illegal-transition")),
        ("GET", "/events?since=yesterday", None, (400, "invalid-request")),
        ("GET", "/events?since=1", None, (400, "invalid-request")),
        ("GET", "/events?since=0001-01-01T00:00:00%2B14:00", None, (400, "invalid-request")),
        ("GET", "/events?until=9999-12-31T23:59:59-14:00", None, (400, "invalid-request")),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(url: str, method: str, path: str, body: Any, expected: tuple[int, str]) -> None:
    assert problem(requests.request(method, f"{url}{path}", json=body, timeout=10)) == expected


def test_a_key_gives_the_first_answer_again_with_its_status(url: str) -> None:
    def post(body: dict[str, Any]) -> requests.Response:
        return requests.post(f"{url}/tasks/1/events", json=body, headers={"Idempotency-Key": "k"}, timeout=10)

    first = post({"event_type": "e"})
    again = post({"event_type": "e"})
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert problem(post({"event_type": "other"})) == (422, "idempotency-key-reused")


@pytest.mark.parametrize(
    ("format", "media_type", "start"),
    [
        ("json", "application/json", "{"),
        ("mermaid", "text/vnd.mermaid", "flowchart"),
        ("dot", "text/vnd.graphviz", "digraph"),
    ],
)
def test_the_graph_comes_in_three_forms(url: str, format: str, media_type: str, start: str) -> None:  # noqa: A002
    answer = requests.get(f"{url}/tasksets/s/graph", params={"format": format}, timeout=10)
    assert answer.headers["Content-Type"].startswith(media_type)
    assert answer.text.startswith(start)


def test_claims_answer_204_when_there_is_none(url: str) -> None:
    def claim() -> requests.Response:
        return requests.post(f"{url}/tasks/claim", json={"runner_id": "r", "lease_seconds": 60}, timeout=10)

    assert set(claim().json()["lease"]) == {"token", "epoch", "lineage", "expires_at", "cancel_requested"}
    assert (claim().status_code, claim().content) == (204, b"")


def test_the_stream_begins_now_or_where_one_was(url: str, registry: LocalTaskRegistry) -> None:
    registry.add_event("1", "before")
    stream = requests.get(f"{url}/events/stream", stream=True, timeout=30)
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    lines = stream.iter_lines(chunk_size=1)
    assert next(lines) == b"retry: 1000"
    registry.add_event("1", "now")
    told = [line for line in islice(lines, 4) if line]
    assert told[0] == b"id: 2"
    assert json.loads(told[1].removeprefix(b"data: "))["event_type"] == "now"
    stream.close()
    with TaskRegistryClient(url) as client:
        assert [event.event_type for event in islice(client.follow_events(after=0), 2)] == ["before", "now"]
    assert problem(
        requests.get(f"{url}/events/stream", headers={"Last-Event-ID": "x"}, timeout=10)
    ) == (400, "invalid-request")  # fmt: skip


def test_a_stream_ends_with_the_service(tmp_path: Path) -> None:
    arguments = ["task-registry", "--port", "0", "--data-dir", str(tmp_path / "data"), "--no-access-log"]
    with necrocode_serve(tmp_path, *arguments) as service:
        stream = requests.get(f"{service.urls['task-registry']}/events/stream", stream=True, timeout=30)
        lines = stream.iter_lines(chunk_size=1)
        assert next(lines) == b"retry: 1000"
        service.process.terminate()
        assert all(line == b"" or line.startswith(b":") for line in lines), "and the answer ends whole"
        assert service.process.wait(30) in {0, 143}


def test_what_an_older_release_took_in_spoils_no_answer_and_no_stream(url: str, registry: LocalTaskRegistry) -> None:
    for number in range(3):
        registry.add_event("1", f"e{number}")
    with registry.store.connection() as connection:
        for number, stored in enumerate(('{"a": "\\ud800b"}', json.dumps(nested(300))), 1):
            connection.exec_driver_sql(f"UPDATE events SET data = '{stored}' WHERE sequence = {number}")  # noqa: S608
        connection.exec_driver_sql("""UPDATE tasks SET metadata = '{"\\udfff": 1}'""")
    answer = requests.get(f"{url}/tasks/1/events", timeout=10)
    assert answer.status_code == 200
    assert answer.json()["items"][0]["data"] == {"a": "\ufffdb"}
    assert requests.get(f"{url}/events", timeout=10).json()["items"][1]["data"]["a"]
    answer = requests.put(f"{url}/tasks/1/status", json={"status": "running"}, timeout=10)
    assert (answer.status_code, answer.json()["metadata"]) == (200, {"\ufffd": 1})
    with TaskRegistryClient(url) as client:
        assert [event.event_type for event in islice(client.follow_events(after=0), 3)] == ["e0", "e1", "e2"]
