"""What goes wrong below an artifact store: disks, buckets, deaths, many at once."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    ArtifactDamagedError,
    ArtifactFilter,
    ArtifactNotFoundError,
    ArtifactUploadError,
    AuthenticationError,
    ConfigurationError,
    LocalArtifactStore,
    RunnerConfig,
    RunnerError,
    S3ArtifactStore,
    ServiceError,
    StorageFullError,
)
from necrocode.agent_runner.clients import _artifact_folder, _artifact_s3
from necrocode.agent_runner.wiring import build_services
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.s3_server import S3Server, s3_server

PLACE = {"task_id": "1.1", "spec_name": "chat", "run_id": "run-1"}
RAW = random.Random(5).randbytes(20_000_000)  # noqa: S311  the same bytes every time


class LaterClock(FakeClock):
    """The machine's time, some days ahead."""

    def __init__(self, days: float) -> None:
        super().__init__()
        self._days = days

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self._days)


def everything(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not file.startswith("+locks/"))


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("compress", [False, True])
def test_a_full_disk_is_a_typed_error_and_nothing_is_half_there(small_disk: Path, compress: bool) -> None:
    store = LocalArtifactStore(small_disk / "store", compress=compress)
    kept = store.upload("log", b"kept", PLACE)
    with pytest.raises(StorageFullError) as caught:
        store.upload("raw", RAW, PLACE)
    assert "store" in str(caught.value)
    assert everything(small_disk / "store") == ["chat/1.1/run-1/log.txt", "chat/1.1/run-1/log.txt.json"]
    assert store.download(kept) == b"kept"
    store.upload("raw", RAW[:1_000_000], PLACE)


@pytest.mark.parametrize("call", range(3))
@pytest.mark.parametrize(("number", "error"), [(errno.EIO, ArtifactUploadError), (errno.ENOSPC, StorageFullError)])
def test_an_fsync_that_fails_is_a_typed_error_and_nothing_is_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, number: int, error: type[Exception]
) -> None:
    store = LocalArtifactStore(tmp_path)
    store.upload("log", b"kept", PLACE)
    real, calls = os.fsync, iter(range(100))

    def failing(descriptor: int) -> None:
        if next(calls) == call:  # the artifact, its description, their folder
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(_artifact_folder.os, "fsync", failing)
    with pytest.raises(error):
        store.upload("diff", b"lost", PLACE)
    monkeypatch.undo()
    assert everything(tmp_path) == ["chat/1.1/run-1/log.txt", "chat/1.1/run-1/log.txt.json"]
    assert [store.download(one.uri) for one in store.find().items] == [b"kept"]


def test_a_disk_that_cannot_be_read_is_a_service_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalArtifactStore(tmp_path)
    uri = store.upload("log", b"x", PLACE)

    def broken(_path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(ServiceError, match="Input/output error") as caught:
        store.download(uri)
    assert not isinstance(caught.value, ArtifactNotFoundError)


def test_what_only_looks_like_an_artifact_is_left_alone(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    store.upload("log", b"x", PLACE)
    (tmp_path / "notes.txt").write_text("somebody's")
    (tmp_path / "chat" / "1.1" / "run-1" / "folder").mkdir()
    (tmp_path / "chat" / "1.1" / "run-1" / "folder" / "deep").write_text("somebody's")
    (tmp_path / "chat" / "1.1" / "run-1" / "bell\a").write_text("somebody's")
    (tmp_path / "chat" / "link").symlink_to("/")
    assert store.usage().count == 1
    assert store.verify().orphans == ()
    LocalArtifactStore(tmp_path, clock=LaterClock(2)).sweep()
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "chat" / "1.1" / "run-1" / "folder" / "deep").exists()


def test_a_folder_at_an_artifacts_place_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "chat" / "1.1" / "run-1" / "log.txt").mkdir(parents=True)
    store = LocalArtifactStore(tmp_path)
    uri = store.upload("log", b"x", PLACE)
    assert uri.endswith("log-2.txt")
    assert store.download(uri) == b"x"


def test_after_too_many_versions_it_is_an_upload_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.clients._artifact_names.MOST_VERSIONS", 3)
    store = LocalArtifactStore(tmp_path)
    for number in range(2):
        store.upload("log", b"%d" % number, PLACE)
    with pytest.raises(ArtifactUploadError, match="3 versions"):
        store.upload("log", b"2", PLACE)


# --- what deaths leave behind

DIES_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from necrocode.agent_runner import ArtifactFilter, LocalArtifactStore

CHANGES = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}

def work(store):
    place = {"spec_name": "a", "task_id": "1"}
    first = store.upload("log", b"first" * 1000, place)
    store.upload("log", b"second" * 1000, place)
    store.tag(first, ["x"])
    store.upload("diff", b"d", place)
    store.delete(first)
    store.delete_matching(ArtifactFilter(spec_name="a", type="log"))

for step in range(1, 500):
    root = Path(sys.argv[1]) / str(step)  # a folder each: what deaths leave behind makes the way longer
    kept = LocalArtifactStore(root).upload("log", b"kept", {"spec_name": "kept"})
    child = os.fork()
    if child == 0:
        left = step
        def hook(event, arguments):
            global left
            if event in CHANGES or (event == "open" and isinstance(arguments[1], str) and "x" in arguments[1]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        work(LocalArtifactStore(root))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    store = LocalArtifactStore(root)
    report = store.verify()
    assert (report.damaged, report.missing) == ((), ()), (step, report)
    assert store.download(kept) == b"kept"
    for one in store.walk():
        store.download(one.uri)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        print(step)
        sys.exit()
sys.exit("it never came to its end")
"""


def test_a_death_before_any_change_on_disk_leaves_whole_artifacts_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIES_AT_EVERY_STEP, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    leftovers = 0
    for root in tmp_path.iterdir():
        leftovers += LocalArtifactStore(root, retention_days={}, clock=LaterClock(1.1)).sweep().leftovers
        assert LocalArtifactStore(root).verify().orphans == ()
        assert not list(root.glob("+drafts/*"))
    assert leftovers > 5


def test_what_is_tagged_while_it_is_being_swept_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalArtifactStore(tmp_path)
    uri = store.upload("log", b"x", PLACE)
    later = LocalArtifactStore(tmp_path, clock=LaterClock(8))
    found = list(later.walk())
    store.tag(uri, ["keep"])
    monkeypatch.setattr(later, "walk", lambda *_: iter(found))
    assert later.sweep().deleted == 0
    assert store.download(uri) == b"x"


def test_leftovers_are_swept_after_a_day_and_not_before(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path, retention_days={})
    kept = store.upload("log", b"kept", PLACE)
    (tmp_path / "chat" / "1.1" / "run-1" / "diff.patch").write_bytes(b"no description")
    with store.receive() as dead:
        dead.write(b"half an uplo")
        assert store.sweep().leftovers == 0
        assert store.verify().orphans == ("chat/1.1/run-1/diff.patch",)
        report = LocalArtifactStore(tmp_path, retention_days={}, clock=LaterClock(1.1)).sweep()
        assert (report.deleted, report.leftovers) == (0, 2)
        with pytest.raises(ArtifactUploadError):
            dead.finish("log", PLACE)  # what was swept is not stored as if it were there
    assert everything(tmp_path) == ["chat/1.1/run-1/log.txt", "chat/1.1/run-1/log.txt.json"]
    assert store.download(kept) == b"kept"


def test_retention_is_as_configured(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LocalArtifactStore(tmp_path, retention_days={"transcript": 1}, clock=clock)
    for kind in ("log", "transcript"):
        store.upload(kind, b"x", PLACE)
    clock.seconds += 400 * 24 * 3600
    assert store.sweep().deleted == 1
    assert [one.type for one in store.find().items] == ["log"]


# --- many at once


def test_uploads_and_deletions_at_once_lose_and_invent_nothing(tmp_path: Path) -> None:
    stores = [LocalArtifactStore(tmp_path) for _ in range(2)]  # as two processes would

    def work(number: int) -> list[str]:
        store, kept = stores[number % 2], []
        for turn in range(15):
            uri = store.upload("log", b"%d" % (turn % 3), PLACE)
            if number % 4 == 0:
                with suppress(ArtifactNotFoundError):  # another was faster
                    store.delete(uri)
            else:
                kept.append(uri)
        return kept

    results = at_once(work, range(8))
    assert not [one for one in results if isinstance(one, Exception)]
    report = stores[0].verify()
    assert (report.damaged, report.missing, report.orphans) == ((), (), ())
    for one in stores[0].walk():
        assert stores[0].download(one.uri) in {b"0", b"1", b"2"}


def test_the_quota_is_never_passed_by_uploads_at_once(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path, quota_bytes=5_000_000)

    def work(number: int) -> str:
        return store.upload("raw", RAW[number : number + 1_000_000], {"run_id": number})

    results = at_once(work, range(12))
    assert sum(isinstance(one, str) for one in results) == store.usage().count <= 5
    assert {type(one) for one in results if not isinstance(one, str)} == {StorageFullError}
    assert store.usage().stored_bytes <= 5_000_000


def test_what_another_process_frees_is_seen_after_a_minute(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LocalArtifactStore(tmp_path, quota_bytes=1000, clock=clock)
    uri = store.upload("raw", RAW[:1000], PLACE)
    LocalArtifactStore(tmp_path).delete(uri)
    with pytest.raises(StorageFullError):
        store.upload("raw", RAW[:999], PLACE)
    clock.seconds += 61
    store.upload("raw", RAW[:999], PLACE)


def test_a_compressed_artifact_counts_what_it_takes(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path, compress=True, quota_bytes=100_000)
    stored = store.upload_stream("log", io.BytesIO(b"line\n" * 1_000_000), PLACE)
    usage = store.usage()
    assert usage.size_bytes == stored.size_bytes == 5_000_000
    assert usage.stored_bytes == sum(blob.stat().st_size for blob in tmp_path.rglob("log.txt")) < 50_000
    with pytest.raises(StorageFullError):
        store.upload("raw", RAW[:100_000], PLACE)
    assert store.find().items[0].encoding == "gzip"


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 100), slice(20, None), slice(0, 0)])
def test_a_damaged_compressed_artifact_is_found_out(tmp_path: Path, damage: slice) -> None:
    store = LocalArtifactStore(tmp_path, compress=True)
    uri = store.upload("log", b"".join(b"%d\n" % number for number in range(500_000)), PLACE)
    (file,) = tmp_path.rglob("log.txt")
    file.write_bytes(file.read_bytes()[damage])
    with pytest.raises(ArtifactDamagedError):
        store.download(uri)
    assert len(store.verify().damaged) == 1


@pytest.mark.parametrize("metadata", [{"x": "y" * 1_000_001}, {"x": float("nan")}, {"x": [1e400]}])
def test_metadata_that_are_too_much_or_no_json_are_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    store = LocalArtifactStore(tmp_path)
    with pytest.raises(ArtifactUploadError) as caught:
        store.upload("log", b"x", metadata)
    assert caught.value.status_code == 400
    assert everything(tmp_path) == []


# --- buckets


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.new_bucket()


def spooled(folder: Path) -> list[Path]:
    return list(folder.glob("*"))


def test_a_multipart_upload_that_fails_is_aborted(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path, network_retry_count=0)
    client: Any = store._blobs._client  # type: ignore[attr-defined]
    for broken in ("upload_part", "complete_multipart_upload"):
        with monkeypatch.context() as patch:
            patch.setattr(client, broken, lambda **_: s3.client().get_object(Bucket=bucket, Key="fails"))
            with pytest.raises(RunnerError):
                store.upload("raw", RAW, PLACE)
        assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    assert spooled(tmp_path) == []
    assert store.usage().count == 0
    assert store.download(store.upload("raw", RAW, PLACE)) == RAW


def test_stale_multipart_uploads_are_swept(s3: S3Server, bucket: str) -> None:
    for key in ("mine/a/b/c/raw.bin", "another/x"):
        s3.client().create_multipart_upload(Bucket=bucket, Key=key)
    assert S3ArtifactStore(f"s3://{bucket}/mine").sweep().leftovers == 1  # moto dates all of them 2010
    left = s3.client().list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [one["Key"] for one in left] == ["another/x"]


def test_a_spooled_upload_has_no_name_that_a_death_could_leave_behind(bucket: str, tmp_path: Path) -> None:
    with S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path).receive() as incoming:
        incoming.write(RAW)
        assert spooled(tmp_path) == []
        assert incoming.finish("raw", PLACE).size_bytes == len(RAW)


@pytest.mark.parametrize("size", [0, 1, 5_000_000, 20_000_000])
def test_a_file_on_disk_is_not_spooled_and_is_stored_from_where_it_stands(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "source").write_bytes(b"before" + RAW[:size])
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    store = S3ArtifactStore(f"s3://{bucket}")
    with (tmp_path / "source").open("rb") as source:
        source.seek(6)
        stored = store.upload_stream("raw", source, PLACE)
    assert store.download(stored.uri) == RAW[:size]


def test_what_is_unpacked_while_it_is_read_is_stored_unpacked(bucket: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "source.gz", "wb", compresslevel=1) as packed:
        packed.write(RAW)
    store = S3ArtifactStore(f"s3://{bucket}")
    with gzip.open(tmp_path / "source.gz", "rb") as source:
        assert store.download(store.upload_stream("raw", source, PLACE).uri) == RAW
    with io.BufferedReader(gzip.open(tmp_path / "source.gz", "rb")) as source:  # type: ignore[type-var]
        assert store.upload_stream("raw", source, PLACE).sha256 == hashlib.sha256(RAW).hexdigest()


@pytest.mark.parametrize("size", [2_000_000, 20_000_000])
def test_a_file_on_disk_with_another_hash_than_announced_is_refused_whole(
    s3: S3Server, bucket: str, tmp_path: Path, size: int
) -> None:
    (tmp_path / "source").write_bytes(RAW[:size])
    store = S3ArtifactStore(f"s3://{bucket}")
    for wrong in ({"sha256": "0" * 64}, {"size_bytes": 1}):
        with (tmp_path / "source").open("rb") as source, pytest.raises(ArtifactUploadError) as caught:
            store.upload_stream("raw", source, PLACE, **wrong)  # type: ignore[arg-type]
        assert caught.value.status_code == 422
        assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)
    with (tmp_path / "source").open("rb") as source:
        assert store.download(store.upload_stream("raw", source, PLACE).uri) == RAW[:size]


def test_a_file_on_disk_that_would_pass_the_quota_is_refused_before_it_is_sent(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(RAW)
    store = S3ArtifactStore(f"s3://{bucket}", quota_bytes=len(RAW) - 1)
    with (tmp_path / "source").open("rb") as source, pytest.raises(StorageFullError):
        store.upload_stream("raw", source, PLACE)
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)


def test_a_file_on_disk_that_cannot_be_read_to_its_end_is_refused_whole(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    class Breaking(io.FileIO):
        fails_with: Exception | None = None

        def read(self, size: int | None = -1, /) -> bytes:  # type: ignore[override]
            if self.tell() < 1_500_000:
                return super().read(size) or b""
            if self.fails_with is not None:
                raise self.fails_with
            return b""

    (tmp_path / "source").write_bytes(RAW[:3_000_000])
    store = S3ArtifactStore(f"s3://{bucket}")
    for error, words in ((None, "became shorter"), (OSError(errno.EIO, "Input/output error"), "Input/output error")):
        with Breaking(str(tmp_path / "source")) as source:
            source.fails_with = error
            with pytest.raises(ArtifactUploadError, match=words):
                store.upload_stream("raw", source, PLACE)  # type: ignore[arg-type]
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)


def test_a_file_that_changes_while_it_is_uploaded_is_refused(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3ArtifactStore(f"s3://{bucket}")
    client: Any = store._blobs._client  # type: ignore[attr-defined]
    real = client.put_object

    def meddling(**asked: Any) -> Any:
        (tmp_path / "source").write_bytes(RAW[:2_000_000][::-1])
        os.utime(tmp_path / "source", (1, 1))
        return real(**asked)

    monkeypatch.setattr(client, "put_object", meddling)
    (tmp_path / "source").write_bytes(RAW[:2_000_000])
    with (tmp_path / "source").open("rb") as source, pytest.raises(ArtifactUploadError, match="was changed"):
        store.upload_stream("raw", source, PLACE)
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)


def test_the_same_large_artifact_at_once_is_one(bucket: str, tmp_path: Path) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path)
    uris = at_once(lambda _: store.upload("raw", RAW, PLACE), range(3))
    assert len(set(map(str, uris))) == 1
    assert store.usage().count == 1
    other = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path)
    assert other.upload("raw", RAW, PLACE) == uris[0]
    assert other.upload("raw", RAW[::-1], PLACE).endswith("raw-2.bin")


def test_a_service_without_conditional_writes_is_asked_beforehand(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path, network_retry_count=0)
    client: Any = store._blobs._client  # type: ignore[attr-defined]
    real = client.put_object

    def old(**asked: Any) -> Any:
        if "IfNoneMatch" in asked:
            code = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise client.exceptions.ClientError(code, "PutObject")
        return real(**asked)

    monkeypatch.setattr(client, "put_object", old)
    uris = [store.upload("log", content, PLACE) for content in (b"1", b"2", b"1")]
    assert [store.download(uri) for uri in uris] == [b"1", b"2", b"1"]
    assert uris[0] == uris[2]
    client.put_object(Bucket=bucket, Key="chat/1.1/run-1/diff.patch", Body=b"somebody's")
    assert store.upload("diff", b"x", PLACE).endswith("diff-2.patch")


def test_conflicts_are_tried_again_a_few_times(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path, network_retry_count=0)
    client: Any = store._blobs._client  # type: ignore[attr-defined]
    real, conflicts = client.put_object, iter(range(2))

    def busy(**asked: Any) -> Any:
        if "IfNoneMatch" in asked and next(conflicts, None) is not None:
            code = {"Error": {"Code": "ConditionalRequestConflict"}, "ResponseMetadata": {"HTTPStatusCode": 409}}
            raise client.exceptions.ClientError(code, "PutObject")
        return real(**asked)

    monkeypatch.setattr(client, "put_object", busy)
    assert store.download(store.upload("log", b"1", PLACE)) == b"1"
    conflicts = iter(range(100))
    with pytest.raises(ServiceError, match="ConditionalRequestConflict"):
        store.upload("diff", b"1", PLACE)


def test_an_object_that_came_out_shorter_is_refused_and_removed(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path)
    client: Any = store._blobs._client  # type: ignore[attr-defined]
    real = client.put_object
    monkeypatch.setattr(client, "put_object", lambda **asked: real(**{**asked, "Body": asked["Body"][:-1]}))
    with pytest.raises(ArtifactUploadError, match="kept 9 of 10 bytes"):
        store.upload("log", b"x" * 10, PLACE)
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)


def test_wrong_credentials_are_an_authentication_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for ask in (
        lambda store: store.upload("log", b"x", PLACE),
        lambda store: store.find(),
        lambda store: store.ensure_available(),
    ):
        with pytest.raises(AuthenticationError) as caught:
            ask(S3ArtifactStore(f"s3://{bucket}"))
        assert "wrong" not in str(caught.value)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AuthenticationError, match="no credentials"):
        S3ArtifactStore(f"s3://{bucket}").upload("log", b"x", PLACE)


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_a_service_error() -> None:
    with pytest.raises(ServiceError):
        S3ArtifactStore("s3://no-such-bucket").ensure_available()
    with pytest.raises(ServiceError):
        S3ArtifactStore("s3://no-such-bucket").upload("log", b"x", PLACE)


@pytest.mark.parametrize("url", ["s3:///prefix", "s3://", "http://bucket", "s3://bucket?x=1", "bucket"])
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket"):
        S3ArtifactStore(url)


def test_without_boto3_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "necrocode.agent_runner.clients._artifact_s3", None)
    with pytest.raises(ConfigurationError, match=r"necrocode\[s3\]"):
        S3ArtifactStore("s3://bucket")


def test_a_spool_that_is_full_is_a_typed_error(bucket: str, small_disk: Path) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=small_disk)
    with pytest.raises(StorageFullError, match="spool"):
        store.upload("raw", RAW, PLACE)
    assert spooled(small_disk) == []


def test_s3cmd_reads_what_the_store_wrote(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    store = S3ArtifactStore(f"s3://{bucket}/some/prefix", spool_dir=tmp_path / "spool")
    contents = {"diff": b"diff --git a/x b/x\n", "raw": RAW, "カバレッジ": "日本語".encode(), "log": b""}
    for kind, content in contents.items():
        uri = store.upload(kind, content, {"spec_name": "仕様 書", "task_id": "1.1", "run_id": "r"})
        host = s3.url.removeprefix("http://")
        command = [
            str(Path(sys.executable).with_name("s3cmd")), "--config=/dev/null", f"--access_key={s3.access_key}",
            f"--secret_key={s3.secret_key}", f"--host={host}", f"--host-bucket={host}", "--no-ssl",
            "--region=us-east-1", "get", uri, str(tmp_path / "copy"), "--force",
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "copy").read_bytes() == content


def test_a_compressed_object_says_so_to_others(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path, compress=True)
    text = b"".join(b"%d %d\n" % (number, number * number) for number in range(2_000_000))
    for content in (b"line\n" * 1000, text[:9_000_000], text):
        stored = store.upload_stream("log", io.BytesIO(content), PLACE)
        found = s3.client().get_object(Bucket=bucket, Key=stored.uri.removeprefix(f"s3://{bucket}/"))
        assert found["ContentEncoding"] == "gzip"
        assert gzip.decompress(found["Body"].read()) == content
        assert store.download(stored.uri) == content
    raw = store.upload_stream("raw", io.BytesIO(RAW), PLACE)
    assert "ContentEncoding" not in s3.client().head_object(Bucket=bucket, Key=raw.uri.removeprefix(f"s3://{bucket}/"))


def test_parts_grow_so_that_ten_thousand_are_enough(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_artifact_s3, "_MOST_PARTS", 2)
    store = S3ArtifactStore(f"s3://{bucket}", spool_dir=tmp_path)
    assert store.download(store.upload("raw", RAW, PLACE)) == RAW
    assert store.find(ArtifactFilter(type="raw")).items[0].stored_bytes == len(RAW)


def test_an_s3_url_in_the_settings_is_a_bucket(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    config = RunnerConfig(artifact_store_url=f"s3://{bucket}/runs", state_dir=tmp_path)
    store = build_services(config, FakeClock()).artifact_store
    uri = store.upload("log", b"x", PLACE)
    assert uri == f"s3://{bucket}/runs/chat/1.1/run-1/log.txt"
    assert s3.client().get_object(Bucket=bucket, Key="runs/chat/1.1/run-1/log.txt")["Body"].read() == b"x"


@pytest.mark.parametrize("setting", ["task_registry_url", "repo_pool_url"])
def test_only_artifacts_go_to_a_bucket(setting: str, tmp_path: Path) -> None:
    config = RunnerConfig(**{setting: "s3://bucket", "state_dir": tmp_path})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=setting):
        build_services(config, FakeClock())
