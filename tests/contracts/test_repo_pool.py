from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from necrocode.agent_runner import LocalRepoPool, RepoPoolClient, SlotAllocationError
from necrocode.agent_runner._clock import Clock
from necrocode.agent_runner._git import Git
from tests.contracts.lost_answers import lose_answers
from tests.contracts.repo_pool_contract import SLOTS, OpenPool, RepoPoolContract
from tests.support.clocks import FakeClock
from tests.support.wire_service import PoolService

TOKEN = "a-token-for-tests"


@pytest.fixture
def open_embedded(tmp_path: Path) -> OpenPool:
    def open_pool(clock: Clock, pool_size: int) -> LocalRepoPool:
        return LocalRepoPool(tmp_path / "pool", Git(tmp_path / "git"), pool_size=pool_size, clock=clock)

    return open_pool


class TestLocalRepoPool(RepoPoolContract):
    @pytest.fixture
    def open_pool(self, open_embedded: OpenPool) -> OpenPool:
        return open_embedded

    @pytest.fixture
    def unusable(self, tmp_path: Path) -> LocalRepoPool:
        (tmp_path / "file").write_text("")
        return LocalRepoPool(tmp_path / "file" / "pool", Git(tmp_path / "git"))


class TestRepoPoolClient(RepoPoolContract):
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
