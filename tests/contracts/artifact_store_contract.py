"""What every ``ArtifactStore`` does."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from necrocode.agent_runner import ArtifactStore, ArtifactUploadError, RunnerError, ServiceConnectionError
from tests.contracts.threads import at_once

Read = Callable[[str], bytes]
PLACE = {"task_id": "1.1", "spec_name": "chat", "run_id": "run-1"}
CONTENTS = {
    "empty": b"",
    "text": b"diff --git a/x b/x\n",
    "japanese": "日本語\r\n\U0001f600".encode(),
    "every byte": bytes(range(256)) * 3,
    "form-like": b'--boundary\r\nContent-Disposition: form-data; name="type"\r\n\r\nlog\r\n--boundary--\r\n',
    "line ends": b"\r\n\n\r\r\n",
    "large": random.Random(1).randbytes(5_000_000),  # noqa: S311  the same bytes every time
}
HOSTILE_NAMES = [
    "../../escape", "/etc/passwd", "a/b/c", "..", ".", "", " ", "a\0b", "a\nb", "-rf", "~", "C:\\x", "CON", "%2e%2e",
    "x" * 10_000, "仕様" * 200, "a;b", 'a"; name="file', "file:///x", "?a=b#c", ".hidden", "test.json",
]  # fmt: skip


class ArtifactStoreContract:
    """Inherit it, and say what the store under test is and how an artifact is read by its URI."""

    @pytest.fixture
    def store(self) -> ArtifactStore:
        """An empty store."""
        raise NotImplementedError

    @pytest.fixture
    def read(self) -> Read:
        """From the URI that ``store`` gave to the bytes."""
        raise NotImplementedError

    @pytest.fixture
    def unusable(self) -> ArtifactStore:
        """A store that cannot work where it is, or that is not there."""
        raise NotImplementedError

    # --- what was put in comes out

    @pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
    def test_the_bytes_come_back(self, store: ArtifactStore, read: Read, content: bytes) -> None:
        found = read(store.upload("log", content, PLACE))
        assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()

    @pytest.mark.parametrize("artifact_type", ["diff", "log", "test", "transcript", "screenshot", "カバレッジ"])
    def test_every_type_is_kept_apart(self, store: ArtifactStore, read: Read, artifact_type: str) -> None:
        one, other = store.upload(artifact_type, b"1", PLACE), store.upload("other", b"2", PLACE)
        assert one != other
        assert (read(one), read(other)) == (b"1", b"2")

    @pytest.mark.parametrize("metadata", [None, {}, {"task_id": "1"}, {"task_id": None, "run_id": 7}])
    def test_the_place_may_be_left_open(
        self, store: ArtifactStore, read: Read, metadata: dict[str, Any] | None
    ) -> None:
        assert read(store.upload("log", b"x", metadata)) == b"x"

    def test_metadata_may_hold_anything(self, store: ArtifactStore, read: Read) -> None:
        metadata = {**PLACE, "本文": "行\n\U0001f600", "nested": {"a": [1, None, 2.5]}, "long": "x" * 100_000}
        assert read(store.upload("log", b"x", metadata)) == b"x"

    def test_a_uri_is_one_line_of_ascii(self, store: ArtifactStore) -> None:
        uri = store.upload("ログ", b"x", {"task_id": "1 2", "spec_name": "仕様\n書", "run_id": "r"})
        assert uri.isascii()
        assert uri.isprintable()
        assert " " not in uri
        assert "://" in uri

    # --- the same name twice

    def test_the_same_content_again_has_the_same_uri(self, store: ArtifactStore, read: Read) -> None:
        uris = {store.upload("log", b"same", PLACE) for _ in range(3)}
        assert len(uris) == 1
        assert read(uris.pop()) == b"same"

    def test_other_content_under_the_same_name_replaces_nothing(self, store: ArtifactStore, read: Read) -> None:
        uris = [store.upload("log", f"{number}".encode(), PLACE) for number in range(4)]
        assert [read(uri) for uri in uris] == [b"0", b"1", b"2", b"3"]
        assert len(set(uris)) == 4
        assert store.upload("log", b"2", PLACE) == uris[2]

    @pytest.mark.parametrize("key", ["task_id", "spec_name", "run_id"])
    def test_places_do_not_mix(self, store: ArtifactStore, read: Read, key: str) -> None:
        one, other = store.upload("log", b"1", PLACE), store.upload("log", b"2", {**PLACE, key: "other"})
        assert (read(one), read(other)) == (b"1", b"2")

    # --- names that mean harm

    @pytest.mark.parametrize("key", ["type", "task_id", "spec_name", "run_id"])
    def test_a_hostile_name_is_refused_or_harmless(self, store: ArtifactStore, read: Read, key: str) -> None:
        before = store.upload("log", b"before", PLACE)
        for name in HOSTILE_NAMES:
            artifact_type, metadata = (name, PLACE) if key == "type" else ("log", {**PLACE, key: name})
            try:
                uri = store.upload(artifact_type, name.encode(), metadata)
            except ArtifactUploadError as error:
                assert error.retryable is False  # noqa: PT017  either outcome is right
            else:
                assert read(uri) == name.encode()
        assert read(before) == b"before"

    def test_hostile_names_do_not_meet_in_one_place(self, store: ArtifactStore, read: Read) -> None:
        names = ["a/b", "a%2Fb", "a%252Fb", "a b", "a+b", "a_b", "..", "%2E%2E", "no-task_id", ""]
        uris = {store.upload("log", name.encode(), {**PLACE, "task_id": name}): name for name in names}
        assert len(uris) == len(names)
        assert {read(uri).decode() for uri in uris} == set(names)

    @pytest.mark.parametrize(
        ("artifact_type", "metadata"),
        [
            ("half a pair \ud83d", PLACE),
            ("log", {**PLACE, "task_id": "half a pair \ud83d"}),
            ("log", {**PLACE, "note": "a byte of a file name \udcff"}),
            ("log", {**PLACE, "odd": {("a", "b"): 1}}),
        ],
    )
    def test_what_cannot_be_written_down_is_an_upload_error_at_most(
        self, store: ArtifactStore, read: Read, artifact_type: str, metadata: dict[str, Any]
    ) -> None:
        try:
            uri = store.upload(artifact_type, b"x", metadata)
        except ArtifactUploadError as error:
            assert error.retryable is False  # noqa: PT017  either outcome is right
        else:
            assert read(uri) == b"x"

    # --- many at once, and none there

    def test_eight_threads_with_one_artifact_get_one_uri(self, store: ArtifactStore, read: Read) -> None:
        content = CONTENTS["every byte"] * 100
        uris = at_once(lambda _: store.upload("log", content, PLACE), range(8))
        assert len(set(uris)) == 1
        assert read(str(uris[0])) == content

    def test_eight_threads_with_one_name_lose_nothing(self, store: ArtifactStore, read: Read) -> None:
        uris = at_once(lambda number: store.upload("log", b"%d" % number * 10_000, PLACE), range(8))
        assert [read(str(uri)) for uri in uris] == [b"%d" % number * 10_000 for number in range(8)]

    def test_a_store_that_can_work_is_available(self, store: ArtifactStore) -> None:
        for _ in range(2):
            store.ensure_available()

    def test_a_store_that_cannot_work_says_so_before_and_when_it_is_used(self, unusable: ArtifactStore) -> None:
        for ask in (unusable.ensure_available, lambda: unusable.upload("log", b"x", PLACE)):
            with pytest.raises(RunnerError) as caught:
                ask()
            assert isinstance(caught.value, (ArtifactUploadError, ServiceConnectionError))
