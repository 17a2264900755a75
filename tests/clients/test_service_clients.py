"""The three HTTP clients on the wire."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import responses

from necrocode.agent_runner import (
    AmbiguousTaskError,
    ArtifactNotFoundError,
    ArtifactStoreClient,
    ArtifactUploadError,
    AuthenticationError,
    ConfigurationError,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    RateLimitError,
    RepoPoolClient,
    ServiceConnectionError,
    ServiceError,
    SlotAllocationError,
    SlotNotFoundError,
    StaleLeaseError,
    TaskContext,
    TaskNotFoundError,
    TaskRegistryClient,
)
from necrocode.agent_runner.clients import _http
from necrocode.agent_runner.clients._http import ServiceHttp
from tests.support.clocks import FakeClock
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.http_server import Answer, serving

REGISTRY, POOL, STORE = "http://localhost:8001", "http://localhost:8002", "http://localhost:8003"
TASK = TaskContext(task_id="1.1", spec_name="chat", title="T", description="D", repo_url="/r")


def registry(clock: FakeClock | None = None, **options: Any) -> TaskRegistryClient:
    return TaskRegistryClient(base_url=REGISTRY, clock=clock or FakeClock(), **options)


def sent(call: int = 0) -> Any:
    return json.loads(responses.calls[call].request.body or b"null")


def problem(status: int, slug: str, detail: str = "why") -> dict[str, Any]:
    return {"status": status, "json": {"type": slug, "title": "t", "status": status, "detail": detail}}


# --- the requests that the migration guide's snippets send


@responses.activate
def test_the_guides_registry_calls_send_the_fixed_requests() -> None:
    responses.put(f"{REGISTRY}/tasks/1.1/status", json={})
    responses.post(f"{REGISTRY}/tasks/1.1/events", json={"sequence": 1}, status=201)
    responses.post(f"{REGISTRY}/tasks/1.1/artifacts", json={}, status=201)
    client = TaskRegistryClient(base_url="http://localhost:8001")
    client.update_task_status(task_id="1.1", status="in_progress")
    client.add_event(task_id="1.1", event_type="implementation_started", data={})
    client.add_artifact(task_id="1.1", artifact_type="diff", uri="s3://...", size_bytes=1024)
    assert [call.request.url for call in responses.calls] == [
        f"{REGISTRY}/tasks/1.1/status", f"{REGISTRY}/tasks/1.1/events", f"{REGISTRY}/tasks/1.1/artifacts",
    ]  # fmt: skip
    assert [sent(0), sent(1), sent(2)] == [
        {"status": "in_progress", "metadata": {}},
        {"event_type": "implementation_started", "data": {}},
        {"type": "diff", "uri": "s3://...", "size_bytes": 1024},
    ]


@responses.activate
def test_the_guides_pool_calls_send_the_fixed_requests() -> None:
    responses.post(f"{POOL}/slots/allocate", json={"slot_id": "s-1", "slot_path": "/w", "lease_token": "t"}, status=201)
    responses.post(f"{POOL}/slots/s-1/release", json={})
    client = RepoPoolClient(base_url="http://localhost:8002")
    allocation = client.allocate_slot(repo_url="https://github.com/user/repo.git", required_by="runner-1")
    client.release_slot(allocation.slot_id)
    assert sent(0) == {"repo_url": "https://github.com/user/repo.git", "required_by": "runner-1"}
    assert sent(1) == {"lease_token": "t"}
    assert allocation.slot_path == Path("/w")


@responses.activate
def test_the_guides_upload_sends_the_fixed_multipart_form() -> None:
    responses.post(f"{STORE}/artifacts", json={"uri": "s3://b/1"}, status=201)
    client = ArtifactStoreClient(base_url="http://localhost:8003")
    uri = client.upload(artifact_type="diff", content=b"diff content", metadata={"task_id": "1.1"})
    assert uri == "s3://b/1"
    body = responses.calls[0].request.body
    assert b'name="file"' in body
    assert b"diff content" in body
    assert b'name="type"\r\n\r\ndiff\r\n' in body
    assert b'name="metadata"\r\n\r\n{"task_id": "1.1"}\r\n' in body


# --- the rest of the calls


@responses.activate
def test_registering_needs_the_ability_and_sends_the_whole_task() -> None:
    responses.get(f"{REGISTRY}/health", json={"status": "ok", "capabilities": ["register-task"]})
    responses.put(f"{REGISTRY}/tasks/1.1", json={})
    client = registry()
    client.register_task(TASK)
    client.register_task(TASK)
    assert [call.request.method for call in responses.calls] == ["GET", "PUT", "PUT"]
    assert responses.calls[1].request.url == f"{REGISTRY}/tasks/1.1?spec_name=chat"
    assert sent(1)["description"] == "D"


@responses.activate
@pytest.mark.parametrize("health", [{"json": {"status": "ok"}}, {"status": 404}, {"json": [1]}])
def test_a_service_without_the_ability_is_not_asked_and_that_is_said_once(
    health: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    responses.get(f"{REGISTRY}/health", **health)
    client = registry()
    with caplog.at_level(logging.WARNING):
        client.register_task(TASK)
        client.register_task(TASK)
    assert [record.message for record in caplog.records] == [
        "The task registry at http://localhost:8001 cannot 'register-task'; going on without it."
    ]
    assert len(responses.calls) == 1


@responses.activate
def test_spec_name_odd_ids_and_metadata_go_where_they_belong() -> None:
    responses.put(f"{REGISTRY}/tasks/a_b/status", json={})
    responses.post(f"{REGISTRY}/tasks/1/artifacts", json={})
    with pytest.raises(TaskNotFoundError, match="No task can be called"):
        registry().update_task_status("a/b?", "done")
    registry().update_task_status("a_b", "done", {"k": 1}, spec_name="仕様")
    registry().add_artifact("1", "log", "u", metadata={"sha256": "x"}, spec_name="s")
    assert responses.calls[0].request.url.endswith("/tasks/a_b/status?spec_name=%E4%BB%95%E6%A7%98")
    assert sent(1) == {"type": "log", "uri": "u", "size_bytes": None, "metadata": {"sha256": "x"}}


@responses.activate
def test_records_are_read_over_all_pages() -> None:
    task = {"task_id": "1", "spec_name": "s", "status": "done"}
    responses.get(f"{REGISTRY}/tasks/1", json=task)
    event = {"sequence": 1, "task_id": "1", "spec_name": "s", "event_type": "e"}
    responses.get(f"{REGISTRY}/tasks/1/events", json={"items": [event], "next_cursor": "c"})
    responses.get(f"{REGISTRY}/tasks/1/events", json={"items": [{**event, "sequence": 2}], "next_cursor": None})
    artifact = {"task_id": "1", "spec_name": "s", "type": "log", "uri": "u"}
    responses.get(f"{REGISTRY}/tasks/1/artifacts", json={"items": [artifact]})
    client = registry()
    assert client.get_task("1", spec_name="s").status == "done"
    assert [event.sequence for event in client.list_events("1")] == [1, 2]
    assert "cursor=c" in responses.calls[2].request.url
    assert client.list_artifacts("1")[0].uri == "u"


@responses.activate
def test_records_of_another_shape_are_service_errors() -> None:
    responses.get(f"{REGISTRY}/tasks/1", json={"id": 1})
    responses.get(f"{REGISTRY}/tasks/1/events", json=[])
    with pytest.raises(ServiceError, match="no TaskRecord"):
        registry().get_task("1")
    with pytest.raises(ServiceError, match="without items"):
        registry().list_events("1")


@responses.activate
def test_allocation_wishes_are_sent_and_every_field_is_read() -> None:
    answer = {
        "slot_id": "s", "slot_path": "/w", "base_commit": "abc", "epoch": 3, "lease_token": "t",
        "expires_at": "2026-01-01T00:00:00Z", "extra": 1,
    }  # fmt: skip
    responses.post(f"{POOL}/slots/allocate", json=answer, status=201)
    client = RepoPoolClient(POOL)
    allocation = client.allocate_slot("r", "me", base_ref="main", timeout_seconds=0, lease_seconds=60)
    expected = {"repo_url": "r", "required_by": "me", "base_ref": "main", "timeout_seconds": 0, "lease_seconds": 60}
    assert sent(0) == expected
    assert (allocation.base_commit, allocation.epoch) == ("abc", 3)


@responses.activate
def test_leases_are_renewed_where_the_service_has_them() -> None:
    responses.get(f"{POOL}/health", json={"capabilities": ["slot-leases"]})
    responses.post(f"{POOL}/slots/s/lease", json={})
    client = RepoPoolClient(POOL)
    client.renew_lease("s", "t")
    client.renew_lease("s", "t", lease_seconds=9)
    assert [sent(1), sent(2)] == [{"lease_token": "t"}, {"lease_token": "t", "lease_seconds": 9}]


@responses.activate
def test_leases_are_left_alone_where_the_service_has_none() -> None:
    responses.get(f"{POOL}/health", json={"status": "ok"})
    RepoPoolClient(POOL).renew_lease("s", "t")
    assert len(responses.calls) == 1


@responses.activate
def test_a_slot_of_another_client_is_released_by_force() -> None:
    responses.post(f"{POOL}/slots/s/release", body=b"")
    RepoPoolClient(POOL).release_slot("s")
    assert sent(0) == {}


@responses.activate
def test_pool_look_ups() -> None:
    responses.get(f"{POOL}/slots/s", json={"slot_id": "s", "state": "available"})
    responses.get(f"{POOL}/pools/status", json={"pools": []})
    client = RepoPoolClient(POOL)
    assert (client.get_slot("s").slot_id, client.get_slot("s").state) == ("s", "available")
    assert client.pools_status() == ()
    responses.replace(responses.GET, f"{POOL}/pools/status", json=[])
    with pytest.raises(ServiceError, match="without a list of pools"):
        client.pools_status()


@responses.activate
def test_an_allocation_without_a_path_is_a_service_error() -> None:
    responses.post(f"{POOL}/slots/allocate", json={"slot_id": "s"})
    with pytest.raises(ServiceError, match="without slot_id and slot_path"):
        RepoPoolClient(POOL).allocate_slot("r", "me")


@responses.activate
def test_an_upload_is_checked_against_what_was_sent() -> None:
    content = b"x" * 10
    good = {"uri": "u", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": 10}
    client = ArtifactStoreClient(STORE)
    for answer, complaint in (
        ({**good, "sha256": "0"}, "with sha256 0"),
        ({**good, "size_bytes": 9}, "has 9 bytes"),
        ({}, "without a URI"),
    ):
        responses.upsert(responses.POST, f"{STORE}/artifacts", json=answer)
        with pytest.raises(ArtifactUploadError, match=complaint):
            client.upload("log", content)
    responses.upsert(responses.POST, f"{STORE}/artifacts", json=good)
    assert client.upload("log", content) == "u"


@responses.activate
def test_a_refused_upload_is_an_upload_error_with_its_status() -> None:
    responses.post(f"{STORE}/artifacts", **problem(507, "storage-full", "the quota of 1 GB is used up"))
    with pytest.raises(ArtifactUploadError, match="quota of 1 GB") as caught:
        ArtifactStoreClient(STORE).upload("log", b"")
    assert caught.value.status_code == 507


@responses.activate
def test_the_store_is_available_when_it_answers() -> None:
    responses.get(f"{STORE}/health", json={"status": "ok"})
    ArtifactStoreClient(STORE).ensure_available()
    responses.replace(responses.GET, f"{STORE}/health", status=404)
    ArtifactStoreClient(STORE).ensure_available()
    responses.replace(responses.GET, f"{STORE}/health", status=401)
    with pytest.raises(AuthenticationError):
        ArtifactStoreClient(STORE).ensure_available()


@responses.activate
def test_an_artifact_is_downloaded_by_its_id() -> None:
    responses.get(f"{STORE}/artifacts/a%2F1", body=b"\0bytes")
    responses.get(f"{STORE}/artifacts/none", status=404)
    client = ArtifactStoreClient(STORE)
    assert client.download("a/1") == b"\0bytes"
    with pytest.raises(ArtifactNotFoundError):
        client.download("none")


# --- errors


@responses.activate
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(404, "task-not-found"), TaskNotFoundError),
        ({"status": 404, "body": "Not Found"}, TaskNotFoundError),
        (problem(409, "stale-lease"), StaleLeaseError),
        (problem(409, "https://necrocode.dev/problems/stale-lease"), StaleLeaseError),
        (problem(409, "ambiguous-task"), AmbiguousTaskError),
        (problem(409, "illegal-transition"), IllegalTransitionError),
        (problem(409, "about:blank"), IllegalTransitionError),
        (problem(401, "unauthorized"), AuthenticationError),
        (problem(403, "forbidden"), AuthenticationError),
        (problem(422, "idempotency-key-reused"), IdempotencyKeyReusedError),
        ({"status": 400, "json": ["odd"]}, ServiceError),
        ({"status": 400, "body": b"\xff\xfe"}, ServiceError),
        ({"status": 302, "headers": {"Location": "http://elsewhere/"}}, ServiceError),
    ],
)
def test_refusals_become_typed_errors_and_are_not_tried_again(answer: dict[str, Any], error: type[Exception]) -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", **answer)
    with pytest.raises(error) as caught:
        registry().update_task_status("1", "done")
    assert type(caught.value) is error
    assert caught.value.status_code == answer["status"]  # type: ignore[attr-defined]
    assert len(responses.calls) == 1
    assert "task registry at http://localhost:8001" in str(caught.value)


@responses.activate
def test_an_html_error_page_becomes_one_short_line() -> None:
    page = "<html><body>" + "<p>gateway</p>\n" * 1000 + "</body></html>"
    responses.put(f"{REGISTRY}/tasks/1/status", status=400, body=page, content_type="text/html")
    with pytest.raises(ServiceError) as caught:
        registry().update_task_status("1", "done")
    assert str(caught.value) == (
        "The task registry at http://localhost:8001 answered 400 to PUT /tasks/1/status: Bad Request"
    )


@responses.activate
def test_a_long_plain_error_is_cut() -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", status=400, body="x" * 100_000)
    with pytest.raises(ServiceError) as caught:
        registry().update_task_status("1", "done")
    assert len(str(caught.value)) < 700


@responses.activate
def test_a_page_in_place_of_json_asks_whether_the_url_is_right() -> None:
    responses.get(f"{REGISTRY}/tasks/1", body="<html>hello</html>")
    with pytest.raises(ServiceError, match="Is this the right URL"):
        registry().get_task("1")


@responses.activate
def test_no_slot_is_told_in_the_guides_words_and_asked_for_once() -> None:
    responses.post(f"{POOL}/slots/allocate", **problem(503, "no-available-slots", "all 5 are in use"))
    with pytest.raises(SlotAllocationError, match=r"^No available slots: all 5 are in use"):
        RepoPoolClient(POOL, clock=FakeClock()).allocate_slot("r", "me")
    assert len(responses.calls) == 1
    responses.replace(
        responses.POST, f"{POOL}/slots/allocate", **problem(503, "no-available-slots", "No available slots for r")
    )
    with pytest.raises(SlotAllocationError, match=r"^No available slots for r"):
        RepoPoolClient(POOL).allocate_slot("r", "me")


@responses.activate
def test_an_unknown_slot_is_its_own_error() -> None:
    responses.get(f"{POOL}/slots/x", status=404)
    with pytest.raises(SlotNotFoundError):
        RepoPoolClient(POOL).get_slot("x")


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must start with http"):
        TaskRegistryClient("localhost:8001")


# --- tokens


@responses.activate
def test_the_token_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    responses.put(f"{REGISTRY}/tasks/1/status", **problem(400, "x", "you sent Bearer tok-en-123456"))
    with pytest.raises(ServiceError) as caught:
        registry(token="tok-en-123456").update_task_status("1", "done")
    assert responses.calls[0].request.headers["Authorization"] == "Bearer tok-en-123456"
    assert "tok-en" not in str(caught.value)
    with pytest.raises(ServiceError):
        registry().update_task_status("1", "done")
    assert "Authorization" not in responses.calls[1].request.headers


@responses.activate
def test_a_redirect_does_not_carry_the_token_away() -> None:
    responses.get(f"{REGISTRY}/tasks/1", status=302, headers={"Location": "http://evil.example/"})
    with pytest.raises(ServiceError, match="redirects are not followed"):
        registry(token="tok-en-123456").get_task("1")
    assert len(responses.calls) == 1


# --- retries


@responses.activate
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_trouble_is_tried_again_with_the_same_key(status: int, clock: FakeClock) -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", status=status)
    responses.put(f"{REGISTRY}/tasks/1/status", status=status)
    responses.put(f"{REGISTRY}/tasks/1/status", json={})
    registry(clock).update_task_status("1", "done")
    keys = {call.request.headers["Idempotency-Key"] for call in responses.calls}
    assert (len(responses.calls), len(keys)) == (3, 1)
    assert all(0 <= wait <= 0.8 for wait in clock.sleeps)


@responses.activate
def test_two_calls_have_two_keys() -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", json={})
    client = registry()
    client.update_task_status("1", "done")
    client.update_task_status("1", "done")
    assert len({call.request.headers["Idempotency-Key"] for call in responses.calls}) == 2


@responses.activate
@pytest.mark.parametrize("count", [0, 2])
def test_lasting_trouble_is_an_error_after_the_configured_tries(count: int, clock: FakeClock) -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", status=500, body="boom")
    with pytest.raises(ServiceError, match="answered 500 to PUT /tasks/1/status: boom") as caught:
        registry(clock, network_retry_count=count).update_task_status("1", "done")
    assert caught.value.retryable
    assert len(responses.calls) == count + 1
    assert len(clock.sleeps) == count


@responses.activate
def test_lasting_rate_limits_are_their_own_error() -> None:
    responses.put(f"{REGISTRY}/tasks/1/status", status=429)
    with pytest.raises(RateLimitError):
        registry(network_retry_count=0).update_task_status("1", "done")


@responses.activate
@pytest.mark.parametrize(
    ("value", "waited"), [("7", 7.0), ("date", 20.0), ("past", 0.0), ("999999", 60.0), ("soon", None), ("", None)]
)
def test_retry_after_is_honoured_up_to_a_limit(value: str, waited: float | None, clock: FakeClock) -> None:
    dates = {"date": timedelta(seconds=20), "past": timedelta(days=-1)}
    header = format_datetime(clock.now() + dates[value], usegmt=True) if value in dates else value
    responses.put(f"{REGISTRY}/tasks/1/status", status=503, headers={"Retry-After": header})
    responses.put(f"{REGISTRY}/tasks/1/status", json={})
    registry(clock).update_task_status("1", "done")
    assert clock.sleeps == [waited] if waited is not None else clock.sleeps[0] <= 0.4


def test_retry_after_without_a_time_zone_is_utc(clock: FakeClock) -> None:
    when = (clock.now() + timedelta(seconds=5)).strftime("%a, %d %b %Y %H:%M:%S -0000")
    with serving([Answer(503, headers={"Retry-After": when}), Answer(200, {})]) as server:
        TaskRegistryClient(server.url, clock=clock).update_task_status("1", "done")
    assert clock.sleeps == [5.0]


def test_a_refused_connection_is_told_in_the_guides_words(clock: FakeClock) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceConnectionError) as caught:
            TaskRegistryClient(url, clock=clock, network_retry_count=1).update_task_status("1", "done")
    assert str(caught.value) == (f"Failed to connect to {url} (task registry): is it running? try: curl {url}/health")
    assert isinstance(caught.value, ConnectionError)
    assert len(clock.sleeps) == 1


def test_an_answer_that_does_not_come_is_a_connection_error(clock: FakeClock) -> None:
    release = threading.Event()
    with serving([Answer(wait=release)]) as server:
        client = TaskRegistryClient(server.url, clock=clock, network_retry_count=0, timeout_seconds=0.1)
        with pytest.raises(ServiceConnectionError, match=r"did not answer PUT /tasks/1/status within 0\.1 seconds"):
            client.update_task_status("1", "done")
        release.set()


def test_an_answer_that_breaks_off_is_tried_again(clock: FakeClock) -> None:
    answers = [Answer(200, {"status": "done"}, cut=5), Answer(drop=True), Answer(200, {"status": "done"})]
    with serving(answers) as server, TaskRegistryClient(server.url, clock=clock) as client:
        client.update_task_status("1", "done")
        assert len(server.requests) == 3
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_an_answer_that_always_breaks_off_is_a_connection_error(clock: FakeClock) -> None:
    with serving([Answer(200, {"status": "done"}, cut=5)]) as server:
        with pytest.raises(ServiceConnectionError, match=r"broke off its answer|Failed to connect"):
            TaskRegistryClient(server.url, clock=clock, network_retry_count=1).update_task_status("1", "done")
        assert len(server.requests) == 2


@responses.activate
def test_the_lease_epoch_travels_as_a_header() -> None:
    responses.put(f"{REGISTRY}/x", json={})
    http = ServiceHttp(REGISTRY, "task registry", not_found=TaskNotFoundError)
    http.write("PUT", "/x", epoch=7)
    assert responses.calls[0].request.headers["X-Lease-Epoch"] == "7"


def test_connections_are_reused() -> None:
    with serving([Answer(200, {})]) as server, TaskRegistryClient(server.url) as client:
        client.update_task_status("1", "done")
        client.update_task_status("1", "done")
        assert len(client._http._session.adapters["http://"].poolmanager.pools) == 1  # type: ignore[attr-defined]


# --- hostile answers


@pytest.mark.parametrize(
    "header",
    ["²", "9" * 5000, "Mon, 99999999999999999999 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT",
     "Mon, 01 Jan 2001 00:00:00 -99999999999999", "Mon, 01 Jan 0001 00:00:00 +2359", "1 1 1 1 1", "-5", "nan"],
)  # fmt: skip
def test_an_odd_retry_after_costs_a_pause_and_no_more(header: str, clock: FakeClock) -> None:
    with serving([Answer(429, headers={"Retry-After": header}), Answer(200, {})]) as server:
        TaskRegistryClient(server.url, clock=clock).update_task_status("1", "done")
    assert 0 <= clock.sleeps[0] <= 60


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"detail":' * 100_000, b"\xff" * 1000, b'{"a":' + b"9" * 6000 + b"}"]
)
def test_json_that_cannot_be_read_is_a_service_error(status: int, body: bytes, clock: FakeClock) -> None:
    with serving([Answer(status, body)]) as server, pytest.raises(ServiceError) as caught:
        TaskRegistryClient(server.url, clock=clock).get_task("1")
    assert len(str(caught.value)) < 1000


def test_a_problem_is_told_without_escapes_and_half_characters(clock: FakeClock) -> None:
    detail = "\x1b[31m\u202ered\ud800" + "x" * 10_000
    with serving([Answer(409, {"detail": detail})]) as server, pytest.raises(ServiceError) as caught:
        TaskRegistryClient(server.url, clock=clock).update_task_status("1", "done")
    assert "\\x1b[31m\\u202ered\\ud800" in str(caught.value)
    assert len(str(caught.value).encode()) < 1000


@pytest.mark.parametrize("name", ["slot_id", "slot_path", "lease_token", "repo_url", "base_commit"])
@pytest.mark.parametrize("value", ["/a\0b", "/\ud800"])
def test_an_allocation_that_no_system_call_takes_is_a_service_error(name: str, value: str, clock: FakeClock) -> None:
    answer = {"slot_id": "s", "slot_path": "/x"} | {name: value}
    with serving([Answer(201, answer)]) as server, pytest.raises(ServiceError, match="allocation"):
        RepoPoolClient(server.url, clock=clock).allocate_slot("r", "me")


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_an_answer_that_is_too_large_is_given_up_at_the_limit(
    encoding: str, status: int, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "MAX_ANSWER_BYTES", 1_000_000)
    body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(b" " * 5_000_000)
    with serving([Answer(status, body, headers={"Content-Encoding": encoding})]) as server:
        with pytest.raises(ServiceError, match="too large"):
            TaskRegistryClient(server.url, clock=clock).get_task("1")
        assert len(server.requests) == 1


def test_answers_are_read_inflated(clock: FakeClock) -> None:
    body = gzip.compress(json.dumps({"task_id": "1", "spec_name": "s", "status": "ready", "title": "日本"}).encode())
    with serving([Answer(200, body, headers={"Content-Encoding": "gzip"})]) as server:
        assert TaskRegistryClient(server.url, clock=clock).get_task("1").title == "日本"


@contextmanager
def dripping(beginning: bytes, drop: bytes) -> Iterator[str]:
    """A service whose answer begins with these bytes and then goes on, a little at a time, for 5 seconds."""

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + beginning)
            for _ in range(100):
                try:
                    connection.sendall(drop)
                except OSError:
                    return
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [(b"Content-Length: 1000\r\n\r\n", b" "), (b"\r\n", b" "), (b"X-Slow: ", b"a"), (b"", b"X: y\r\n"),
     (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")],
)  # fmt: skip
def test_an_answer_that_drips_is_hung_up_on_when_its_time_is_over(
    beginning: bytes, drop: bytes, clock: FakeClock
) -> None:
    started = time.monotonic()
    with dripping(beginning, drop) as url:
        client = TaskRegistryClient(url, clock=clock, network_retry_count=0, timeout_seconds=0.2)
        with pytest.raises(ServiceConnectionError, match=r"did not answer .* within 0\.2 seconds"):
            client.get_task("1")
        assert time.monotonic() - started < 3


def test_the_time_of_an_answer_counts_on_a_connection_that_is_used_again(clock: FakeClock) -> None:
    release = threading.Event()
    with serving([Answer(200, {}), Answer(200, {}, wait=release)]) as server:
        client = TaskRegistryClient(server.url, clock=clock, network_retry_count=0, timeout_seconds=0.3)
        client.update_task_status("1", "done")
        with pytest.raises(ServiceConnectionError, match=r"within 0\.3 seconds"):
            client.update_task_status("1", "done")
        release.set()


@pytest.mark.parametrize("fault", ["cut_request", "cut_response"])
def test_what_is_cut_on_the_way_is_a_broken_connection_however_early(fault: Fault) -> None:
    with serving([Answer(200, {"status": "done"})]) as server, FaultProxy(server.url) as proxy:
        proxy.fault = fault
        registry = TaskRegistryClient(proxy.url, network_retry_count=0)
        with pytest.raises(ServiceConnectionError) as caught:
            registry.update_task_status("1", "done")
        assert caught.value.retryable
