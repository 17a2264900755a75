from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import (
    AuthenticationError,
    LocalTaskRegistry,
    ServiceError,
    TaskRegistryClient,
)
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
from tests.contracts.lost_answers import lose_answers
from tests.contracts.spec_budgets_contract import ANSWER, SpecBudgetsContract, reserve
from tests.contracts.task_leases_contract import TaskLeasesContract
from tests.contracts.task_queue_contract import TaskQueueContract
from tests.contracts.task_registry_contract import TaskRegistryContract, task
from tests.support.clocks import FakeClock
from tests.support.postgres import empty_database
from tests.support.served import served

TOKEN = "a-token-for-tests"


class _OnSqlite:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'state' / 'registry.db'}"


class _OnPostgres:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        with empty_database() as url:
            yield url


class _Embedded:
    @pytest.fixture
    def registry(self, url: str, clock: FakeClock) -> Iterator[LocalTaskRegistry]:
        with LocalTaskRegistry(url, clock=clock) as registry:
            yield registry

    @pytest.fixture
    def records(self, url: str) -> Iterator[LocalTaskRegistry]:
        """A second one on the same database: what it sees is on disk."""
        with LocalTaskRegistry(url) as other:
            yield other


class _OverHttp:
    @pytest.fixture
    def embedded(self, url: str, clock: FakeClock) -> Iterator[LocalTaskRegistry]:
        with LocalTaskRegistry(url, clock=clock) as registry:
            yield registry

    @pytest.fixture
    def service_url(self, embedded: LocalTaskRegistry) -> Iterator[str]:
        with served(create_app(task_registry_service(embedded), token=TOKEN)) as url:
            yield url

    @pytest.fixture
    def registry(self, service_url: str) -> Iterator[TaskRegistryClient]:
        with TaskRegistryClient(service_url, token=TOKEN, clock=FakeClock()) as client:
            yield client

    @pytest.fixture
    def records(self, registry: TaskRegistryClient) -> TaskRegistryClient:
        return registry

    @pytest.fixture
    def unreachable(self) -> Iterator[TaskRegistryClient]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            with TaskRegistryClient(url, clock=FakeClock()) as nobody_there:
                yield nobody_there

    def test_a_report_whose_answer_is_lost_has_one_effect(
        self, registry: TaskRegistryClient, embedded: LocalTaskRegistry
    ) -> None:
        registry.register_task(task())
        lose_answers(registry, 2)
        registry.add_event("1.1", "e")
        lose_answers(registry)
        registry.add_artifact("1.1", "log", "u")
        lose_answers(registry)
        registry.update_task_status("1.1", "running")
        lose_answers(registry)
        registry.update_task_status("1.1", "done")
        assert len(embedded.list_events("1.1")) == 1
        assert len(embedded.list_artifacts("1.1")) == 1
        assert (embedded.get_task("1.1").status, embedded.get_task("1.1").attempt) == ("done", 1)

    def test_a_claim_whose_answer_is_lost_is_the_same_claim(self, registry: TaskRegistryClient) -> None:
        registry.register_task(task())
        registry.register_task(task("1.2"))
        lose_answers(registry)
        claimed = registry.claim_task("r", lease_seconds=60)
        assert claimed is not None
        assert (claimed.task_id, claimed.attempt, claimed.lease.epoch) == ("1.1", 1, 1)
        assert registry.get_task("1.2").status == "ready"

    def test_a_reservation_whose_answer_is_lost_is_the_same_reservation(
        self, registry: TaskRegistryClient, embedded: LocalTaskRegistry
    ) -> None:
        lose_answers(registry, 2)
        assert reserve(registry, "a", max_calls=1).granted
        lose_answers(registry)
        registry.settle_budget("chat", "a", ANSWER)
        assert embedded.budget_usage("chat").spent == ANSWER

    def test_the_token_is_needed(self, service_url: str) -> None:
        with TaskRegistryClient(service_url, clock=FakeClock()) as stranger, pytest.raises(AuthenticationError):
            stranger.add_event("1.1", "e")

    def test_a_service_with_the_plain_calls_alone_says_what_it_cannot(self, registry: TaskRegistryClient) -> None:
        registry._http._capabilities = frozenset()
        registry.register_task(task())
        with pytest.raises(ServiceError, match="cannot 'claims'"):
            registry.claim_task("r", lease_seconds=1)
        with pytest.raises(ServiceError, match="cannot keep budgets"):
            registry.budget_usage("chat")


class TestSqliteRegistry(
    _OnSqlite, _Embedded, TaskRegistryContract, TaskQueueContract, TaskLeasesContract, SpecBudgetsContract
):
    @pytest.fixture
    def unreachable(self, tmp_path: Path) -> Iterator[LocalTaskRegistry]:
        (tmp_path / "file").write_text("")
        with LocalTaskRegistry(f"sqlite:///{tmp_path / 'file' / 'registry.db'}") as registry:
            yield registry


class TestPostgresRegistry(
    _OnPostgres, _Embedded, TaskRegistryContract, TaskQueueContract, TaskLeasesContract, SpecBudgetsContract
):
    @pytest.fixture
    def unreachable(self, tmp_path: Path) -> Iterator[LocalTaskRegistry]:
        with LocalTaskRegistry(f"postgresql://nobody@/none?host={tmp_path}") as registry:
            yield registry


class TestSqliteRegistryOverHttp(
    _OnSqlite, _OverHttp, TaskRegistryContract, TaskQueueContract, TaskLeasesContract, SpecBudgetsContract
):
    pass


@pytest.mark.soak  # each side of it is tested by itself
class TestPostgresRegistryOverHttp(
    _OnPostgres, _OverHttp, TaskRegistryContract, TaskQueueContract, TaskLeasesContract, SpecBudgetsContract
):
    pass


def test_a_database_without_an_encoding_works_too() -> None:
    options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with empty_database(options) as url, LocalTaskRegistry(url) as registry:
        registry.register_task(task(title="データベース"))
        assert registry.get_task("1.1").title == "データベース"


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "a%20b", "スペース あり", "a:b"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with LocalTaskRegistry(f"sqlite:///{tmp_path / name / 'registry.db'}") as registry:
        registry.register_task(task())
    assert (tmp_path / name / "registry.db").is_file()
