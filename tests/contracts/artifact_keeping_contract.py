"""What every artifact store of ours does beyond taking and giving: streams, search, tags, deletion, care, export."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest

from necrocode.agent_runner import (
    ArtifactFilter,
    ArtifactNotFoundError,
    ArtifactStoreClient,
    ArtifactUploadError,
    ServiceError,
    StorageFullError,
)
from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore
from tests.contracts.artifact_store_contract import PLACE, ArtifactStoreContract, Read
from tests.support.clocks import FakeClock

Keeper = SidecarArtifactStore | ArtifactStoreClient
RANDOM_BYTES = random.Random(2).randbytes(20_000_000)  # noqa: S311  the same bytes every time
QUOTA_BYTES = 100_000_000
DAY_SECONDS = 24 * 3600


class Pipe(io.RawIOBase):
    """A stream that can be read once."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._rest.readinto(buffer)


class ArtifactKeepingContract(ArtifactStoreContract):
    """Inherit it, and say besides what the artifacts' clock is, and how to damage what is stored.

    The store has a quota of ``QUOTA_BYTES`` and the usual retention.
    """

    @pytest.fixture
    def keeper(self) -> Keeper:
        """The same store as ``store``, with all its calls."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, keeper: Keeper) -> Keeper:
        return keeper

    @pytest.fixture
    def read(self, keeper: Keeper) -> Read:
        return keeper.download

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    def overwrite(self, key: str, content: bytes | None) -> None:
        """Put something else at a key, or nothing, behind the store's back."""
        raise NotImplementedError

    # --- streams

    @pytest.mark.parametrize("content", [b"", b"x", RANDOM_BYTES, b"text\n" * 2_000_000], ids=["0", "1", "raw", "text"])
    @pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
    def test_a_stream_is_stored_and_comes_back_as_a_stream(
        self, keeper: Keeper, tmp_path: Path, content: bytes, kind: type[IO[bytes]]
    ) -> None:
        stored = keeper.upload_stream("log", kind(content), PLACE)  # type: ignore[call-arg]
        assert (stored.size_bytes, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        with (tmp_path / "copy").open("w+b") as copy:
            keeper.download_to(stored.artifact_id, copy)
        assert (tmp_path / "copy").read_bytes() == content

    def test_a_stream_is_stored_from_where_it_stands(self, keeper: Keeper) -> None:
        source = io.BytesIO(b"read already, and the rest")
        source.seek(18)
        assert keeper.download(keeper.upload_stream("log", source, PLACE).uri) == b"the rest"

    def test_what_was_announced_is_checked_and_stored(self, keeper: Keeper) -> None:
        digest = hashlib.sha256(b"abc").hexdigest()
        stored = keeper.upload_stream("log", io.BytesIO(b"abc"), PLACE, sha256=digest.upper(), size_bytes=3)
        assert keeper.download(stored.uri) == b"abc"

    @pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size_bytes": 4}, {"sha256": "nonsense"}])
    def test_what_comes_otherwise_than_announced_is_refused_whole(self, keeper: Keeper, wrong: dict[str, str]) -> None:
        with pytest.raises(ArtifactUploadError) as caught:
            keeper.upload_stream("log", io.BytesIO(b"abc"), PLACE, **wrong)  # type: ignore[arg-type]
        assert (caught.value.status_code, caught.value.retryable) == (422, False)
        assert keeper.usage().count == 0
        assert keeper.verify().orphans == ()

    def test_a_source_that_breaks_leaves_nothing(self, keeper: Keeper) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() > 1_000_000:
                    raise OSError("the disk is gone")
                return super().read(size)

        with pytest.raises((OSError, ArtifactUploadError)):
            keeper.upload_stream("log", Broken(RANDOM_BYTES), PLACE)
        assert keeper.usage().count == 0
        assert keeper.verify().orphans == ()

    # --- one artifact, by id or URI

    def test_an_artifact_is_named_by_its_id_as_by_its_uri(self, keeper: Keeper) -> None:
        stored = keeper.upload_stream("log", io.BytesIO(b"x"), {"task_id": "a b", "spec_name": "仕様"})
        assert keeper.find().items[0].artifact_id == stored.artifact_id
        assert keeper.find().items[0].uri == stored.uri
        assert keeper.download(stored.artifact_id) == keeper.download(stored.uri) == b"x"
        assert keeper.tag(stored.uri, ["a"]) == keeper.tag(stored.artifact_id, ["a"])
        assert keeper.delete(stored.uri).deleted == 1

    @pytest.mark.parametrize(
        "reference",
        ["unknown", "a/b/c/d", "../../etc/passwd", "YS9iL2MvLi4", "Li4vLi4vZXRjL3Bhc3N3ZA", "file:///etc/passwd",
         "s3://other/a/b/c/log.txt", "http://127.0.0.1:1/artifacts/x", "x" * 500],
    )  # fmt: skip
    def test_what_is_no_artifact_is_not_found(self, keeper: Keeper, reference: str) -> None:
        keeper.upload("log", b"x", PLACE)
        for ask in (keeper.download, keeper.delete, lambda one: keeper.tag(one, [])):
            with pytest.raises(ArtifactNotFoundError):
                ask(reference)
        assert keeper.usage().count == 1

    def test_a_description_or_a_draft_is_no_artifact(self, keeper: Keeper) -> None:
        keeper.upload("log", b"x", PLACE)
        for key in ("chat/1.1/run-1/log.txt.json", "+drafts/a/b/c", "chat/1.1/run-1/+x"):
            with pytest.raises(ServiceError):
                keeper.download(_id(key))

    def test_other_metadata_make_another_artifact(self, keeper: Keeper) -> None:
        one = keeper.upload("log", b"same", {**PLACE, "round": 1})
        other = keeper.upload("log", b"same", {**PLACE, "round": 2})
        assert one != other
        assert keeper.upload("log", b"same", {**PLACE, "round": 1}) == one

    # --- search

    def _five(self, keeper: Keeper, clock: FakeClock) -> None:
        for number, (spec, task, kind) in enumerate(
            [("a", "1", "log"), ("a", "2", "diff"), ("a-b", "1", "log"), ("b", "1", "log"), ("b", "1", "test")]
        ):
            clock.seconds = 1000 + number
            keeper.upload(kind, b"%d" % number, {"spec_name": spec, "task_id": task, "run_id": f"r{number}"})

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({}, "01234"),
            ({"spec_name": "a"}, "01"),
            ({"task_id": "1"}, "0234"),
            ({"spec_name": "b", "task_id": "1"}, "34"),
            ({"spec_name": "b", "task_id": "1", "run_id": "r4"}, "4"),
            ({"run_id": "r2"}, "2"),
            ({"type": "log"}, "023"),
            ({"type": "log", "spec_name": "b"}, "3"),
            ({"tag": "no"}, ""),
            ({"spec_name": ""}, ""),
        ],
    )
    def test_a_search_finds_what_fits(
        self, keeper: Keeper, clock: FakeClock, wanted: dict[str, str], found: str
    ) -> None:
        self._five(keeper, clock)
        items = keeper.find(ArtifactFilter(**wanted)).items
        assert "".join(sorted(keeper.download(one.uri).decode() for one in items)) == found

    def test_a_search_knows_since_and_until(self, keeper: Keeper, clock: FakeClock) -> None:
        self._five(keeper, clock)
        start = clock.now() - timedelta(seconds=4)
        items = keeper.find(
            ArtifactFilter(since=start + timedelta(seconds=1), until=start + timedelta(seconds=3))
        ).items
        assert sorted(keeper.download(one.uri) for one in items) == [b"1", b"2"]

    @pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
    def test_pages_hold_everything_once_in_one_order(self, keeper: Keeper, clock: FakeClock, limit: int) -> None:
        self._five(keeper, clock)
        whole = [one.artifact_id for one in keeper.find().items]
        pages, cursor = [], None
        while True:
            page = keeper.find(limit=limit, cursor=cursor)
            pages += [one.artifact_id for one in page.items]
            assert len(page.items) <= limit
            cursor = page.next_cursor
            if cursor is None:
                break
        assert pages == whole
        assert [one.artifact_id for one in keeper.walk()] == whole
        assert len(whole) == 5

    @pytest.mark.parametrize("asked", [{"limit": 0}, {"limit": 1001}, {"cursor": "!"}, {"cursor": "x"}])
    def test_a_page_that_cannot_be_is_refused(self, keeper: Keeper, asked: dict[str, int]) -> None:
        with pytest.raises(ServiceError) as caught:
            keeper.find(**asked)  # type: ignore[arg-type]
        assert caught.value.status_code == 400

    def test_a_record_says_everything(self, keeper: Keeper, clock: FakeClock) -> None:
        metadata = {**PLACE, "本文": ["行", 1, None], "run_id": 7}
        uri = keeper.upload("カバレッジ", b"x" * 1000, metadata)
        record = keeper.find().items[0]
        assert (record.uri, record.type, record.metadata) == (uri, "カバレッジ", metadata)
        assert (record.spec_name, record.task_id, record.run_id) == ("chat", "1.1", "7")
        assert (record.size_bytes, record.sha256) == (1000, hashlib.sha256(b"x" * 1000).hexdigest())
        assert (record.tags, record.created_at) == ((), clock.now())

    # --- tags

    def test_tags_are_replaced_and_searched(self, keeper: Keeper) -> None:
        uri = keeper.upload("log", b"x", PLACE)
        assert keeper.tag(uri, ["release", "赤", "release"]).tags == ("release", "赤")
        assert [one.uri for one in keeper.find(ArtifactFilter(tag="赤")).items] == [uri]
        assert keeper.tag(uri, ["blue"]).tags == ("blue",)
        assert keeper.find(ArtifactFilter(tag="赤")).items == ()
        assert keeper.tag(uri, []).tags == ()
        assert keeper.download(uri) == b"x"

    def test_tags_outlive_another_upload_of_the_same(self, keeper: Keeper) -> None:
        uri = keeper.upload("log", b"x", PLACE)
        keeper.tag(uri, ["keep"])
        assert keeper.upload("log", b"x", PLACE) == uri
        assert keeper.find().items[0].tags == ("keep",)

    @pytest.mark.parametrize("tags", [[""], [" a"], ["a\nb"], ["x" * 101], [str(number) for number in range(51)]])
    def test_odd_tags_are_refused(self, keeper: Keeper, tags: list[str]) -> None:
        uri = keeper.upload("log", b"x", PLACE)
        with pytest.raises(ServiceError) as caught:
            keeper.tag(uri, tags)
        assert caught.value.status_code in {400, 422}
        assert keeper.find().items[0].tags == ()

    # --- deletion

    def test_what_is_deleted_is_gone_and_its_name_is_free(self, keeper: Keeper) -> None:
        uri = keeper.upload("log", b"0123456789", PLACE)
        other = keeper.upload("log", b"other", PLACE)
        assert keeper.delete(uri).model_dump() == {"deleted": 1, "freed_bytes": 10}
        with pytest.raises(ArtifactNotFoundError):
            keeper.download(uri)
        with pytest.raises(ArtifactNotFoundError):
            keeper.delete(uri)
        assert keeper.download(other) == b"other"
        assert keeper.upload("log", b"again", PLACE) == uri
        assert keeper.verify().orphans == ()

    def test_all_that_fit_are_deleted(self, keeper: Keeper, clock: FakeClock) -> None:
        self._five(keeper, clock)
        assert keeper.delete_matching(ArtifactFilter(spec_name="b")).model_dump() == {"deleted": 2, "freed_bytes": 2}
        assert keeper.delete_matching(ArtifactFilter(spec_name="b")).deleted == 0
        assert keeper.usage().count == 3

    def test_a_deletion_without_a_filter_is_refused(self, keeper: Keeper) -> None:
        keeper.upload("log", b"x", PLACE)
        with pytest.raises(ServiceError) as caught:
            keeper.delete_matching(ArtifactFilter())
        assert caught.value.status_code == 400
        assert keeper.usage().count == 1

    # --- usage and quota

    def test_usage_is_told_by_spec_and_type(self, keeper: Keeper, clock: FakeClock) -> None:
        assert keeper.usage().count == 0
        self._five(keeper, clock)
        keeper.upload("log", b"12345", None)
        usage = keeper.usage()
        assert (usage.count, usage.size_bytes, usage.quota_bytes) == (6, 10, QUOTA_BYTES)
        assert {name: share.size_bytes for name, share in usage.by_spec.items()} == {"": 5, "a": 2, "a-b": 1, "b": 2}
        assert {name: share.count for name, share in usage.by_type.items()} == {"diff": 1, "log": 4, "test": 1}

    def test_what_would_pass_the_quota_is_refused_whole(self, keeper: Keeper) -> None:
        uris = [
            keeper.upload("raw", RANDOM_BYTES[number:] + RANDOM_BYTES[:number], PLACE)
            for number in range(QUOTA_BYTES // len(RANDOM_BYTES))
        ]
        for _ in range(2):
            with pytest.raises(StorageFullError) as caught:
                keeper.upload("raw", os.urandom(1000), PLACE)
            assert (caught.value.status_code, caught.value.retryable) == (507, False)
        assert keeper.usage().count == len(uris)
        keeper.delete(uris[0])
        keeper.upload("raw", os.urandom(1000), PLACE)

    # --- care

    @pytest.mark.parametrize(("kind", "days"), [("log", 7), ("test", 14), ("diff", 30)])
    def test_a_sweep_takes_what_is_past_its_time(self, keeper: Keeper, clock: FakeClock, kind: str, days: int) -> None:
        uri = keeper.upload(kind, b"0123456789", PLACE)
        kept = keeper.upload(kind, b"kept", PLACE)
        keeper.upload("transcript", b"for ever", PLACE)
        keeper.tag(kept, ["keep"])
        clock.seconds += days * DAY_SECONDS - 1
        assert keeper.sweep().deleted == 0
        clock.seconds += 1
        report = keeper.sweep()
        assert (report.deleted, report.freed_bytes) == (1, 10)
        with pytest.raises(ArtifactNotFoundError):
            keeper.download(uri)
        assert keeper.download(kept) == b"kept"
        assert keeper.usage().count == 2

    def test_all_is_well_until_something_is_damaged(self, keeper: Keeper) -> None:
        ids = [
            keeper.upload_stream(kind, io.BytesIO(RANDOM_BYTES[:2_000_000]), PLACE).artifact_id
            for kind in ("diff", "log", "raw", "test")
        ]
        report = keeper.verify()
        assert (report.checked, report.checked_bytes) == (4, 8_000_000)
        assert (report.damaged, report.missing, report.orphans) == ((), (), ())
        self.overwrite("chat/1.1/run-1/diff.patch", RANDOM_BYTES[1:2_000_001])
        self.overwrite("chat/1.1/run-1/log.txt", None)
        self.overwrite("chat/1.1/run-1/raw.bin", RANDOM_BYTES[:1_999_999])
        self.overwrite("chat/1.1/run-1/test-2.json", b"nobody knows")
        self.overwrite("chat/1.1/run-1/test.json.json", b"{nonsense")
        report = keeper.verify(ArtifactFilter(spec_name="chat"))
        assert sorted(report.damaged) == sorted([ids[0], ids[2], ids[3]])
        assert report.missing == (ids[1],)
        assert report.orphans == ("chat/1.1/run-1/test-2.json",)
        for damaged in ids:
            with pytest.raises(ServiceError):
                keeper.download(damaged)

    def test_an_artifact_whose_bytes_were_lost_is_healed_by_another_upload(self, keeper: Keeper) -> None:
        uri = keeper.upload("log", b"x", PLACE)
        self.overwrite("chat/1.1/run-1/log.txt", None)
        assert keeper.upload("log", b"x", PLACE) == uri
        assert keeper.download(uri) == b"x"

    def test_a_leftover_of_a_dead_upload_is_passed_by(self, keeper: Keeper) -> None:
        self.overwrite("chat/1.1/run-1/log.txt", b"half an uplo")
        assert keeper.usage().count == 0
        uri = keeper.upload("log", b"x", PLACE)
        assert keeper.download(uri) == b"x"

    def test_a_description_of_the_first_version_of_this_software_is_read(self, keeper: Keeper) -> None:
        described = {
            "type": "log",
            "sha256": hashlib.sha256(b"old").hexdigest(),
            "size_bytes": 3,
            "created_at": "2026-01-01T00:00:00+00:00",
            "metadata": {**PLACE, "note": "x"},
        }
        self.overwrite("chat/1.1/run-1/log.txt", b"old")
        self.overwrite("chat/1.1/run-1/log.txt.json", json.dumps(described, indent=1).encode())
        record = keeper.find(ArtifactFilter(task_id="1.1")).items[0]
        assert keeper.download(record.uri) == b"old"
        assert keeper.upload("log", b"old", described["metadata"]) == record.uri  # type: ignore[arg-type]

    # --- export

    def test_an_export_holds_everything_and_a_list_of_it(
        self, keeper: Keeper, clock: FakeClock, tmp_path: Path
    ) -> None:
        self._five(keeper, clock)
        keeper.upload("raw", RANDOM_BYTES, {"spec_name": "../..", "task_id": "/etc", "run_id": "仕様"})
        with (tmp_path / "export.zip").open("w+b") as target:
            keeper.export(target)
        with zipfile.ZipFile(tmp_path / "export.zip") as archive:
            assert archive.testzip() is None
            listed = json.loads(archive.read("metadata.json"))["artifacts"]
            assert len(listed) == 6
            assert {one["file"] for one in listed} == set(archive.namelist()) - {"metadata.json"}
            for one in listed:
                assert hashlib.sha256(archive.read(one["file"])).hexdigest() == one["sha256"]
                assert not {".", "..", ""} & set(one["file"].split("/"))

    def test_an_export_of_nothing_is_an_archive_too(self, keeper: Keeper) -> None:
        target = io.BytesIO()
        keeper.export(target, ArtifactFilter(spec_name="none"))
        with zipfile.ZipFile(target) as archive:
            assert json.loads(archive.read("metadata.json")) == {"artifacts": []}

    def test_an_export_marks_what_is_damaged(self, keeper: Keeper) -> None:
        keeper.upload("log", b"good", {"spec_name": "b"})
        keeper.upload("log", b"good", {"spec_name": "a"})
        self.overwrite("a/no-task_id/no-run_id/log.txt", b"evil")
        target = io.BytesIO()
        keeper.export(target)
        with zipfile.ZipFile(target) as archive:
            listed = json.loads(archive.read("metadata.json"))["artifacts"]
            assert ["damaged" in one for one in listed] == [True, False]
            assert archive.read(listed[1]["file"]) == b"good"


def _id(key: str) -> str:
    from necrocode.agent_runner.clients._artifact_names import id_of  # noqa: PLC0415  private, and for this alone

    return id_of(key)
