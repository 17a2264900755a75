from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import ArtifactStoreClient, LocalArtifactStore
from tests.contracts.artifact_store_contract import HOSTILE_NAMES, PLACE, ArtifactStoreContract, Read
from tests.contracts.lost_answers import lose_answers
from tests.support.clocks import FakeClock
from tests.support.wire_service import StoreService

TOKEN = "a-token-for-tests"


@pytest.fixture
def embedded(tmp_path: Path) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path / "store")


class TestLocalArtifactStore(ArtifactStoreContract):
    @pytest.fixture
    def store(self, embedded: LocalArtifactStore) -> LocalArtifactStore:
        return embedded

    @pytest.fixture
    def read(self, embedded: LocalArtifactStore) -> Read:
        return embedded.download

    @pytest.fixture
    def unusable(self, tmp_path: Path) -> LocalArtifactStore:
        (tmp_path / "file").write_text("")
        return LocalArtifactStore(tmp_path / "file" / "store")

    def test_nothing_is_written_outside_the_folder(self, store: LocalArtifactStore, tmp_path: Path) -> None:
        for name in HOSTILE_NAMES:
            store.upload(name, b"x", {"task_id": name, "spec_name": name, "run_id": name})
        assert [path.name for path in tmp_path.iterdir()] == ["store"]


class TestArtifactStoreClient(ArtifactStoreContract):
    @pytest.fixture
    def store(self, embedded: LocalArtifactStore) -> Iterator[ArtifactStoreClient]:
        with (
            StoreService(embedded, token=TOKEN) as service,
            ArtifactStoreClient(service.url, token=TOKEN, clock=FakeClock()) as client,
        ):
            yield client

    @pytest.fixture
    def read(self, store: ArtifactStoreClient) -> Read:
        return lambda uri: store.download(uri.rpartition("/artifacts/")[2])

    @pytest.fixture
    def unusable(self) -> Iterator[ArtifactStoreClient]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with ArtifactStoreClient(f"http://127.0.0.1:{unused.getsockname()[1]}", clock=FakeClock()) as nobody_there:
                yield nobody_there

    def test_an_upload_whose_answer_is_lost_is_stored_once(self, store: ArtifactStoreClient, tmp_path: Path) -> None:
        lose_answers(store, 2)
        store.upload("log", b"x", PLACE)
        assert len(list((tmp_path / "store").rglob("log*.txt"))) == 1
