"""What a call to a service takes along, and over which connection it goes."""

from __future__ import annotations

import base64

import pytest

from necrocode.agent_runner import ServiceError, TaskRegistryClient
from tests.support.http_server import Answer, serving


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving([Answer(200, {})]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with TaskRegistryClient("http://registry.example") as client:
            client.update_task_status("1", "done")
    assert [request.path for request in proxy.requests] == ["http://registry.example/tasks/1/status"]


def test_a_host_that_the_environment_excepts_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving([Answer(200, {})]) as server, TaskRegistryClient(server.url) as client:
        client.update_task_status("1", "done")
    assert len(server.requests) == 1


def test_a_ca_bundle_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    client = TaskRegistryClient("https://127.0.0.1:9", network_retry_count=0)
    with client, pytest.raises(OSError, match=r"/nowhere/ca\.pem"):
        client.update_task_status("1", "done")


def test_a_cookie_of_the_service_comes_back_with_the_next_call() -> None:
    answers = [Answer(200, {}, headers={"Set-Cookie": "node=a"})]
    with serving(answers) as server, TaskRegistryClient(server.url) as client:
        client.update_task_status("1", "done")
        client.update_task_status("1", "done")
    assert [request.headers.get("cookie") for request in server.requests] == [None, "node=a"]


def test_name_and_password_of_the_url_are_not_sent_where_there_is_a_token() -> None:
    with serving([Answer(200, {})]) as server:
        url = server.url.replace("://", "://user:word@")
        with TaskRegistryClient(url, token="tok-en-123456") as client:
            client.update_task_status("1", "done")
    sent = server.requests[0].headers["authorization"]
    assert sent == "Bearer tok-en-123456"
    assert base64.b64encode(b"user:word").decode() not in str(server.requests[0].headers)


def test_a_closed_client_opens_its_connections_again() -> None:
    with serving([Answer(200, {})]) as server, TaskRegistryClient(server.url, network_retry_count=0) as client:
        client.update_task_status("1", "done")
        client.close()
        client.update_task_status("1", "done")
    assert len(server.requests) == 2


def test_query_and_body_go_along_as_before() -> None:
    with serving([Answer(201, {})]) as server, TaskRegistryClient(server.url) as client:
        client.add_event("a", "e", {"text": "é"}, spec_name="s&t")
        with pytest.raises(ServiceError, match="no JSON"):
            client.add_event("1", "e", {"n": float("nan")})
    (request,) = server.requests
    assert request.path == "/tasks/a/events?spec_name=s%26t"
    assert request.json == {"event_type": "e", "data": {"text": "é"}}
    assert request.headers["content-type"] == "application/json"
