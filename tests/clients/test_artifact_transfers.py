"""Large uploads and downloads of ``ArtifactStoreClient`` over connections that break."""

from __future__ import annotations

import hashlib
import io
import random
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from necrocode.agent_runner import (
    ArtifactFilter,
    ArtifactStoreClient,
    ArtifactUploadError,
    ServiceConnectionError,
    ServiceError,
)
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, Request, serving

RAW = random.Random(6).randbytes(12_000_000)  # noqa: S311  the same bytes every time


def client(url: str, **options: Any) -> ArtifactStoreClient:
    return ArtifactStoreClient(url, clock=FakeClock(), **options)


def taken(request: Request) -> Answer:
    """Answer an upload as a service does."""
    boundary = request.headers["content-type"].rpartition("boundary=")[2].encode()
    parts = dict(re.findall(rb'name="(\w+)"[^\0]*?\r\n\r\n(.*?)\r\n--' + boundary, request.body, re.DOTALL))
    content = parts[b"file"]
    digest = hashlib.sha256(content).hexdigest()
    assert parts[b"sha256"].decode() == digest
    body = {"uri": "u", "artifact_id": "i", "sha256": digest, "size_bytes": len(content)}
    return Answer(201, body)


class Breaking(HTTPAdapter):
    """Breaks off the first uploads when a part of the body has been sent."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count
        self.sent: list[int] = []

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        if self.left:
            self.left -= 1
            body: Any = request.body
            pieces = iter(body)
            self.sent.append(sum(len(next(pieces)) for _ in range(4)))
            raise requests.ConnectionError("reset")
        return super().send(request, *arguments, **options)


@pytest.mark.parametrize("start", [0, 7])
def test_an_upload_that_breaks_off_begins_again_from_where_the_file_stood(tmp_path: Path, start: int) -> None:
    (tmp_path / "source").write_bytes(RAW)
    breaking = Breaking(2)
    with serving(taken) as server, client(server.url) as store, (tmp_path / "source").open("rb") as source:
        store._http._session.mount("http://", breaking)
        source.seek(start)
        stored = store.upload_stream("raw", source)
        keys = {request.headers["idempotency-key"] for request in server.requests}
    assert stored.sha256 == hashlib.sha256(RAW[start:]).hexdigest()
    assert stored.size_bytes == len(RAW) - start
    assert len(breaking.sent) == 2
    assert len(keys) == 1


def test_an_upload_that_is_never_answered_ends_with_a_connection_error() -> None:
    with serving([Answer(drop=True)]) as server, client(server.url, network_retry_count=1) as store:
        with pytest.raises(ServiceConnectionError):
            store.upload_stream("raw", io.BytesIO(RAW))
        assert len(server.requests) == 2


def test_a_pipe_is_kept_for_the_next_try_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    real = tempfile.TemporaryFile

    def watched(*arguments: Any) -> Any:
        kept.append(real(*arguments))
        return kept[-1]

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    with serving(taken) as server, client(server.url) as store:
        store._http._session.mount("http://", Breaking(1))
        assert store.upload_stream("raw", Pipe(RAW)).size_bytes == len(RAW)
    assert [one.closed for one in kept] == [True]


def test_a_file_that_shrinks_is_an_upload_error_and_is_not_tried_again() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) if self.tell() < 9_000_000 else b""

    with serving(taken) as server, client(server.url) as store:
        with pytest.raises(ArtifactUploadError, match="became shorter"):
            store.upload_stream("raw", Shrinking(RAW))
        assert len(server.requests) <= 1


@pytest.mark.parametrize("answer", [{}, {"uri": 7}, {"uri": "u", "size_bytes": 3}, {"uri": "u", "sha256": "x"}])
def test_an_answer_that_is_no_receipt_is_an_upload_error(answer: dict[str, Any]) -> None:
    with (
        serving([Answer(201, answer)]) as server,
        client(server.url) as store,
        pytest.raises(ArtifactUploadError, match="The artifact store"),
    ):
        store.upload_stream("raw", io.BytesIO(b"x" * 10))


def test_a_service_that_says_only_the_uri_is_enough() -> None:
    with serving([Answer(201, {"uri": "http://x/artifacts/some-id"})]) as server, client(server.url) as store:
        stored = store.upload_stream("raw", io.BytesIO(b"x"))
    assert (stored.artifact_id, stored.sha256) == ("some-id", hashlib.sha256(b"x").hexdigest())


# --- downloads


@pytest.mark.parametrize("before", [b"", b"what was there"])
def test_a_download_that_breaks_off_begins_again(tmp_path: Path, before: bytes) -> None:
    answers = [Answer(body=RAW, cut=5_000_000), Answer(503), Answer(body=RAW, cut=0), Answer(body=RAW)]
    with serving(answers) as server, client(server.url) as store, (tmp_path / "copy").open("w+b") as copy:
        copy.write(before)
        store.download_to("id", copy)
        assert len(server.requests) == 4
    assert (tmp_path / "copy").read_bytes() == before + RAW


def test_what_cannot_be_rewound_is_not_written_twice() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    target = Pipe()
    with (
        serving([Answer(body=RAW, cut=5_000_000), Answer(body=RAW)]) as server,
        client(server.url) as store,
        pytest.raises(ServiceError, match="cannot be rewound"),
    ):
        store.download_to("id", target)
    assert target.getvalue() == RAW[: len(target.getvalue())]


def test_a_download_that_cannot_be_written_is_a_service_error() -> None:
    class Full(io.BytesIO):
        def write(self, _chunk: Any, /) -> int:
            raise OSError(28, "No space left on device")

    with (
        serving([Answer(body=RAW)]) as server,
        client(server.url) as store,
        pytest.raises(ServiceError, match="No space left"),
    ):
        store.download_to("id", Full())


def test_a_download_is_checked_against_the_etag() -> None:
    good = f'"{hashlib.sha256(RAW).hexdigest()}"'
    answers = [Answer(body=RAW, headers={"ETag": good}), Answer(body=RAW[1:], headers={"ETag": good})]
    answers.append(Answer(body=b"x", headers={"ETag": '"of some other kind"'}))
    with serving(answers) as server, client(server.url) as store:
        assert store.download("id") == RAW
        with pytest.raises(ServiceError, match="came with the sha256"):
            store.download("id")
        assert store.download("id") == b"x"


@pytest.mark.parametrize("answer", [[], {"items": [{}]}, "text"])
def test_an_answer_that_does_not_fit_is_a_service_error(answer: Any) -> None:
    with serving([Answer(body=answer if answer != "text" else '"text"')]) as server, client(server.url) as store:
        for ask in (store.find, store.usage, store.sweep, lambda: store.delete_matching(ArtifactFilter(tag="x"))):
            if answer == {"items": [{}]} and ask is not store.find:
                continue
            with pytest.raises(ServiceError, match="is no"):
                ask()  # type: ignore[operator]


def test_threads_share_a_client() -> None:
    with serving(taken) as server, client(server.url) as store:
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda: results.append(store.upload_stream("raw", io.BytesIO(RAW)).sha256))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert results == [hashlib.sha256(RAW).hexdigest()] * 4
