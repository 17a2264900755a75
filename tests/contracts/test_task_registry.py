from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import AuthenticationError, LocalTaskRegistry, ServiceError, TaskRegistryClient
from tests.contracts.lost_answers import lose_answers
from tests.contracts.task_registry_contract import TaskRegistryContract, task
from tests.support.clocks import FakeClock
from tests.support.wire_service import RegistryService

TOKEN = "a-token-for-tests"


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[LocalTaskRegistry]:
    with LocalTaskRegistry(f"sqlite:///{tmp_path / 'state' / 'registry.db'}") as registry:
        yield registry


@pytest.fixture
def service(embedded: LocalTaskRegistry) -> Iterator[RegistryService]:
    with RegistryService(embedded, token=TOKEN) as running:
        yield running


@pytest.fixture
def client(service: RegistryService) -> Iterator[TaskRegistryClient]:
    with TaskRegistryClient(service.url, token=TOKEN, clock=FakeClock()) as connected:
        yield connected


class TestLocalTaskRegistry(TaskRegistryContract):
    @pytest.fixture
    def registry(self, embedded: LocalTaskRegistry) -> LocalTaskRegistry:
        return embedded

    @pytest.fixture
    def records(self, tmp_path: Path) -> Iterator[LocalTaskRegistry]:
        """A second one on the same file: what it sees is on disk."""
        with LocalTaskRegistry(f"sqlite:///{tmp_path / 'state' / 'registry.db'}") as other:
            yield other

    @pytest.fixture
    def unreachable(self, tmp_path: Path) -> Iterator[LocalTaskRegistry]:
        (tmp_path / "file").write_text("")
        with LocalTaskRegistry(f"sqlite:///{tmp_path / 'file' / 'registry.db'}") as registry:
            yield registry


class TestTaskRegistryClient(TaskRegistryContract):
    @pytest.fixture
    def registry(self, client: TaskRegistryClient) -> TaskRegistryClient:
        return client

    @pytest.fixture
    def records(self, client: TaskRegistryClient) -> TaskRegistryClient:
        return client

    @pytest.fixture
    def unreachable(self) -> Iterator[TaskRegistryClient]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            with TaskRegistryClient(url, clock=FakeClock()) as nobody_there:
                yield nobody_there

    def test_a_report_whose_answer_is_lost_has_one_effect(
        self, client: TaskRegistryClient, embedded: LocalTaskRegistry
    ) -> None:
        client.register_task(task())
        lose_answers(client, 2)
        client.add_event("1.1", "e")
        lose_answers(client)
        client.add_artifact("1.1", "log", "u")
        lose_answers(client)
        client.update_task_status("1.1", "running")
        lose_answers(client)
        client.update_task_status("1.1", "done")
        assert len(embedded.list_events("1.1")) == 1
        assert len(embedded.list_artifacts("1.1")) == 1
        assert (embedded.get_task("1.1").status, embedded.get_task("1.1").attempt) == ("done", 1)

    def test_a_key_is_good_for_one_request(self, client: TaskRegistryClient, monkeypatch: pytest.MonkeyPatch) -> None:
        client.register_task(task())
        monkeypatch.setattr("necrocode.agent_runner.clients._http.uuid.uuid4", lambda: "the-same")
        client.add_event("1.1", "one")
        with pytest.raises(ServiceError) as caught:
            client.add_event("1.1", "two")
        assert caught.value.status_code == 422
        assert [event.event_type for event in client.list_events("1.1")] == ["one"]

    def test_the_token_is_needed(self, service: RegistryService) -> None:
        with TaskRegistryClient(service.url, clock=FakeClock()) as stranger, pytest.raises(AuthenticationError):
            stranger.add_event("1.1", "e")
