from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import ArtifactStoreClient, LocalArtifactStore, S3ArtifactStore
from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore
from necrocode.services._app import create_app
from necrocode.services.artifact_store import artifact_store_service
from tests.contracts.artifact_fence_contract import ArtifactFenceContract
from tests.contracts.artifact_keeping_contract import QUOTA_BYTES, ArtifactKeepingContract
from tests.contracts.artifact_store_contract import HOSTILE_NAMES, PLACE
from tests.contracts.lost_answers import lose_answers
from tests.support.clocks import FakeClock
from tests.support.s3_server import S3Server, s3_server
from tests.support.served import served

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@contextmanager
def client_of(store: SidecarArtifactStore, folder: Path) -> Iterator[ArtifactStoreClient]:
    service = artifact_store_service(store, answers_file=folder / "answers.db")
    with (
        served(create_app(service, token=TOKEN)) as url,
        ArtifactStoreClient(url, token=TOKEN, clock=FakeClock()) as client,
    ):
        yield client


class InFolder(ArtifactKeepingContract):
    compress = False

    @pytest.fixture
    def backing(self, tmp_path: Path, clock: FakeClock) -> SidecarArtifactStore:
        self.root = tmp_path / "store"
        return LocalArtifactStore(self.root, compress=self.compress, quota_bytes=QUOTA_BYTES, clock=clock)

    def overwrite(self, key: str, content: bytes | None) -> None:
        file = self.root / key
        file.unlink(missing_ok=True)
        if content is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


class InBucket(ArtifactKeepingContract):
    @pytest.fixture
    def backing(
        self, s3: S3Server, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> SidecarArtifactStore:
        self.bucket, self.s3_client = s3.new_bucket(), s3.client()
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        spool = tmp_path / "spool"
        return S3ArtifactStore(f"s3://{self.bucket}/some/prefix", spool_dir=spool, quota_bytes=QUOTA_BYTES, clock=clock)

    def overwrite(self, key: str, content: bytes | None) -> None:
        where: dict[str, Any] = {"Bucket": self.bucket, "Key": f"some/prefix/{key}"}
        if content is None:
            self.s3_client.delete_object(**where)
        else:
            self.s3_client.put_object(**where, Body=content)


class Embedded(ArtifactKeepingContract):
    @pytest.fixture
    def keeper(self, backing: SidecarArtifactStore) -> SidecarArtifactStore:
        return backing


class Served(ArtifactKeepingContract):
    @pytest.fixture
    def keeper(self, backing: SidecarArtifactStore, tmp_path: Path) -> Iterator[ArtifactStoreClient]:
        with client_of(backing, tmp_path) as client:
            yield client

    @pytest.fixture
    def unusable(self) -> Iterator[ArtifactStoreClient]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with ArtifactStoreClient(f"http://127.0.0.1:{unused.getsockname()[1]}", clock=FakeClock()) as nobody_there:
                yield nobody_there

    def test_an_upload_whose_answer_is_lost_is_stored_once(self, keeper: ArtifactStoreClient) -> None:
        lose_answers(keeper, 2)
        uri = keeper.upload("log", b"x", PLACE)
        assert [one.uri for one in keeper.find().items] == [uri]

    def test_a_deletion_whose_answer_is_lost_is_answered_as_the_first_time(self, keeper: ArtifactStoreClient) -> None:
        uri = keeper.upload("log", b"x", PLACE)
        lose_answers(keeper, 2)
        assert keeper.delete(uri).deleted == 1


class TestLocalArtifactStore(InFolder, Embedded, ArtifactFenceContract):
    @pytest.fixture
    def unusable(self, tmp_path: Path) -> LocalArtifactStore:
        (tmp_path / "file").write_text("")
        return LocalArtifactStore(tmp_path / "file" / "store")

    def test_nothing_is_written_outside_the_folder(self, keeper: SidecarArtifactStore, tmp_path: Path) -> None:
        for name in HOSTILE_NAMES:
            keeper.upload(name, b"x", {"task_id": name, "spec_name": name, "run_id": name})
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    def test_people_can_open_the_files(self, keeper: SidecarArtifactStore) -> None:
        keeper.upload("log", b"line\n" * 1000, PLACE)
        assert (self.root / "chat" / "1.1" / "run-1" / "log.txt").read_bytes() == b"line\n" * 1000


class TestS3ArtifactStore(InBucket, Embedded, ArtifactFenceContract):
    @pytest.fixture
    def unusable(self, backing: SidecarArtifactStore) -> S3ArtifactStore:  # noqa: ARG002  it sets the credentials
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            return S3ArtifactStore("s3://bucket", endpoint_url=url, network_retry_count=0, timeout_seconds=2)


class TestServedFolder(InFolder, Served, ArtifactFenceContract):
    compress = True


@pytest.mark.soak  # each side of it is tested by itself
class TestServedBucket(InBucket, Served, ArtifactFenceContract):
    pass
