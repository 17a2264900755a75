from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from necrocode.agent_runner import LocalRepoPool, RepoPoolClient, SlotAllocationError
from necrocode.agent_runner._clock import Clock
from necrocode.agent_runner._git import Git
from necrocode.services._app import create_app
from necrocode.services.repo_pool import repo_pool_service
from tests.contracts.lost_answers import lose_answers
from tests.contracts.repo_pool_contract import SLOTS, OpenPool, RepoPoolContract
from tests.contracts.repo_pools_contract import RepoPoolsContract
from tests.support.clocks import FakeClock
from tests.support.served import served
from tests.support.wire_service import PoolService

TOKEN = "a-token-for-tests"


@pytest.fixture
def open_embedded(tmp_path: Path) -> OpenPool:
    def open_pool(clock: Clock, pool_size: int) -> LocalRepoPool:
        return LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=pool_size, clock=clock)

    return open_pool


class TestLocalRepoPool(RepoPoolsContract):
    @pytest.fixture
    def open_pool(self, open_embedded: OpenPool) -> OpenPool:
        return open_embedded

    @pytest.fixture
    def unusable(self, tmp_path: Path) -> LocalRepoPool:
        (tmp_path / "file").write_text("")
        return LocalRepoPool(tmp_path / "file" / "pool", Git(tmp_path / "git"))


class TestRepoPoolClientOfAnotherService(RepoPoolContract):
    """One that has nothing but what runners need."""

    @pytest.fixture
    def open_pool(self, open_embedded: OpenPool) -> Iterator[OpenPool]:
        with ExitStack() as stack:

            def open_pool(clock: Clock, pool_size: int) -> RepoPoolClient:
                service = stack.enter_context(PoolService(open_embedded(clock, pool_size), token=TOKEN))
                return stack.enter_context(RepoPoolClient(service.url, token=TOKEN, clock=FakeClock()))

            yield open_pool

    @pytest.fixture
    def unusable(self) -> Iterator[RepoPoolClient]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with RepoPoolClient(f"http://127.0.0.1:{unused.getsockname()[1]}", clock=FakeClock()) as nobody_there:
                yield nobody_there

    def test_an_allocation_whose_answer_is_lost_takes_one_slot(self, pool: RepoPoolClient, repository: Path) -> None:
        lose_answers(pool, 2)
        for _ in range(SLOTS):
            pool.allocate_slot(str(repository), "me")
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")

    def test_the_client_remembers_the_token(self, pool: RepoPoolClient, repository: Path) -> None:
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        lose_answers(pool)
        pool.release_slot(slots[0].slot_id)
        assert pool.allocate_slot(str(repository), "you").slot_id == slots[0].slot_id


class TestRepoPoolClient(RepoPoolsContract):
    @pytest.fixture
    def open_pool(self, open_embedded: OpenPool) -> Iterator[OpenPool]:
        with ExitStack() as stack:

            def open_pool(clock: Clock, pool_size: int) -> RepoPoolClient:
                service = repo_pool_service(open_embedded(clock, pool_size), clock=clock)
                url = stack.enter_context(served(create_app(service, token=TOKEN)))
                return stack.enter_context(RepoPoolClient(url, token=TOKEN, clock=FakeClock()))

            yield open_pool

    @pytest.fixture
    def unusable(self, tmp_path: Path) -> Iterator[RepoPoolClient]:
        (tmp_path / "file").write_text("")
        pool = LocalRepoPool(tmp_path / "file" / "pool", Git(tmp_path / "git"))
        with served(create_app(repo_pool_service(pool))) as url, RepoPoolClient(url, clock=FakeClock()) as client:
            yield client

    def test_an_allocation_whose_answer_is_lost_takes_one_slot(self, pool: RepoPoolClient, repository: Path) -> None:
        lose_answers(pool, 2)
        slots = [pool.allocate_slot(str(repository), "me") for _ in range(SLOTS)]
        assert len({slot.slot_id for slot in slots}) == SLOTS
        with pytest.raises(SlotAllocationError):
            pool.allocate_slot(str(repository), "me")
