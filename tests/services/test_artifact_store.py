from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import ArtifactStoreClient, LocalArtifactStore, StorageFullError
from necrocode.agent_runner.clients._artifact_names import id_of
from necrocode.services._app import create_app
from necrocode.services.artifact_store import CAPABILITIES, artifact_store_service
from tests.support.clocks import FakeClock
from tests.support.served import served

RAW = random.Random(3).randbytes(3_000_000)  # noqa: S311  the same bytes every time
TEXT = b"".join(b"line %d\n" % number for number in range(300_000))
QUOTA_BYTES = 20_000_000
MAX_UPLOAD_BYTES = 30_000_000


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path / "store", compress=True, quota_bytes=QUOTA_BYTES)


@pytest.fixture
def serve(store: LocalArtifactStore, tmp_path: Path) -> Callable[..., Any]:
    def serving(**options: Any) -> Any:
        service = artifact_store_service(
            store, answers_file=tmp_path / "answers.db", max_upload_bytes=MAX_UPLOAD_BYTES, **options
        )
        return served(create_app(service))

    return serving


@pytest.fixture
def url(serve: Callable[..., Any]) -> Iterator[str]:
    with serve() as running:
        yield running


def post(url: str, *parts: tuple[str, Any], headers: dict[str, str] | None = None) -> requests.Response:
    return requests.post(f"{url}/artifacts", files=list(parts), headers=headers, timeout=30)


def put_in(url: str, content: bytes, kind: str = "log") -> dict[str, Any]:
    answer = post(url, ("file", ("f", content)), ("type", (None, kind)))
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def is_problem(answer: requests.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["type"]) == (status, slug), body
    return body


# --- what goes in


def test_the_guides_upload_is_answered_as_the_wire_says(url: str) -> None:
    metadata = json.dumps({"task_id": "1.1", "spec_name": "chat", "run_id": "r"})
    answer = post(url, ("file", ("d.patch", b"diff")), ("type", (None, "diff")), ("metadata", (None, metadata)))
    artifact_id = id_of("chat/1.1/r/diff.patch")
    assert answer.status_code == 201
    assert answer.json() == {
        "uri": f"{url}/artifacts/{artifact_id}",
        "artifact_id": artifact_id,
        "sha256": hashlib.sha256(b"diff").hexdigest(),
        "size_bytes": 4,
    }


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_parts_of_the_form_may_come_in_any_order(url: str, order: tuple[int, ...]) -> None:
    parts = [
        ("file", ("f", RAW)),
        ("type", (None, "log")),
        ("metadata", (None, '{"task_id": "日本"}')),
        ("sha256", (None, hashlib.sha256(RAW).hexdigest())),
    ]
    answer = post(url, *(parts[number] for number in order))
    assert answer.status_code == 201
    assert requests.get(answer.json()["uri"], timeout=30).content == RAW


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([("type", (None, "log"))], "file"),
        ([("file", ("f", b"x"))], "type"),
        ([("file", ("f", b"x")), ("type", (None, "log")), ("metadata", (None, "{"))], "metadata"),
        ([("file", ("f", b"x")), ("type", (None, "log")), ("metadata", (None, "[1]"))], "metadata"),
        ([("file", ("f", b"x")), ("type", (None, "log")), ("metadata", (None, "[" * 100_000))], "metadata"),
        ([("file", ("f", b"x")), ("type", (None, "log")), ("metadata", (None, b'"' + b"x" * 1_100_000))], "metadata"),
        ([("file", ("f", b"x")), ("type", (None, b"\xff"))], "type"),
        ([("file", ("f", b"x")), ("file", ("f", b"x")), ("type", (None, "log"))], "file"),
        ([("file", ("f", b"x")), ("type", (None, "log")), ("type", (None, "log"))], "type"),
        ([("file", ("f", b"x")), *((f"part{number}", (None, "x")) for number in range(20))], "body"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_by_field(
    url: str, store: LocalArtifactStore, parts: list[Any], field: str
) -> None:
    wrong = is_problem(post(url, *parts), 422, "invalid-request")
    assert [one["field"] for one in wrong["errors"]] == [field]
    assert store.usage().count == 0
    assert _drafts(store) == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut o'),
        ("multipart/form-data; boundary=x", b""),
        ("", b"x"),
    ],
)
def test_a_body_that_is_no_form_is_refused(url: str, store: LocalArtifactStore, content_type: str, body: bytes) -> None:
    answer = requests.post(f"{url}/artifacts", data=body, headers={"Content-Type": content_type}, timeout=30)
    is_problem(answer, 422, "invalid-request")
    assert _drafts(store) == []


def test_another_sha256_than_was_sent_is_refused_and_leaves_nothing(url: str, store: LocalArtifactStore) -> None:
    answer = post(url, ("file", ("f", b"x")), ("type", (None, "log")), ("sha256", (None, "0" * 64)))
    assert "nothing was stored" in is_problem(answer, 422, "artifact-not-stored")["detail"]
    assert store.usage().count == 0
    assert _drafts(store) == []


def test_the_same_key_with_another_upload_is_refused(url: str) -> None:
    key = {"Idempotency-Key": "one"}
    first = post(url, ("file", ("f", b"x")), ("type", (None, "log")), headers=key)
    again = post(url, ("type", (None, "log")), ("file", ("g", b"x")), headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    other = post(url, ("file", ("f", b"y")), ("type", (None, "log")), headers=key)
    is_problem(other, 422, "idempotency-key-reused")


def test_what_is_too_large_is_413(url: str, store: LocalArtifactStore) -> None:
    with ArtifactStoreClient(url, network_retry_count=0) as client, pytest.raises(Exception, match=r"413|connect"):
        client.upload("log", bytes(MAX_UPLOAD_BYTES + 3_000_000))
    assert store.usage().count == 0


def test_what_turns_out_too_large_is_413_too(url: str, store: LocalArtifactStore) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(33):
            yield bytes(1_000_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = requests.post(f"{url}/artifacts", data=body(), headers=headers, timeout=30)
    except requests.ConnectionError:
        pass  # the service hung up while the body was still coming
    else:
        is_problem(answer, 413, "content-too-large")
    assert store.usage().count == 0
    _eventually(lambda: _drafts(store) == [])


def test_without_room_it_is_507_though_the_body_was_still_coming(url: str, store: LocalArtifactStore) -> None:
    content = random.Random(4).randbytes(QUOTA_BYTES + 5_000_000)  # noqa: S311  incompressible
    is_problem(post(url, ("file", ("f", content)), ("type", (None, "log"))), 507, "storage-full")
    with ArtifactStoreClient(url) as client, pytest.raises(StorageFullError):
        client.upload_stream("log", io.BytesIO(content))
    assert store.usage().count == 0
    assert _drafts(store) == []
    put_in(url, RAW)


def test_an_upload_that_is_cut_off_leaves_nothing(url: str, store: LocalArtifactStore) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    head = (
        "POST /artifacts HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 9000000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not an orderly end
            connection.sendall(head.encode() + RAW)
    _eventually(lambda: _drafts(store) == [])
    assert store.usage().count == 0
    put_in(url, b"x")


# --- what comes out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, bytes]]]:
    """One artifact that is kept as it is, and one that is compressed, by name."""
    folder = tmp_path_factory.mktemp("two")
    service = artifact_store_service(
        LocalArtifactStore(folder / "store", compress=True), answers_file=folder / "answers.db"
    )
    with served(create_app(service)) as url:
        yield {name: (put_in(url, content)["uri"], content) for name, content in (("raw", RAW), ("gzip", TEXT))}


@pytest.mark.parametrize("name", ["raw", "gzip"])
def test_the_whole_is_served_as_it_was_given(two: dict[str, tuple[str, bytes]], name: str) -> None:
    uri, content = two[name]
    answer = requests.get(uri, timeout=30)
    assert (answer.status_code, answer.content == content) == (200, True)
    assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["Content-Length"] == str(len(content))
    assert (answer.headers["Accept-Ranges"], "Content-Encoding" in answer.headers) == ("bytes", False)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    head = requests.head(uri, timeout=30)
    assert (head.status_code, head.content) == (200, b"")
    for header in ("ETag", "Content-Length", "Accept-Ranges", "Content-Type"):
        assert head.headers[header] == answer.headers[header]


@pytest.mark.parametrize("name", ["raw", "gzip"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 3_100_000), length=st.integers(1, 3_000_000))
def test_any_range_is_that_part(two: dict[str, tuple[str, bytes]], name: str, start: int, length: int) -> None:
    uri, content = two[name]
    answer = requests.get(uri, headers={"Range": f"bytes={start}-{start + length - 1}"}, timeout=30)
    if start >= len(content):
        assert answer.status_code == 416
        return
    wanted = content[start : start + length]
    assert (answer.status_code, answer.content == wanted) == (206, True)
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(content)}"
    assert answer.headers["Content-Length"] == str(len(wanted))


@pytest.mark.parametrize("name", ["raw", "gzip"])
@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=-99999999", slice(0, None)),
        ("Bytes = 1 - 3", slice(1, 4)),
        ("bytes=0-99999999", slice(0, None)),
    ],
)
def test_open_and_suffix_ranges(two: dict[str, tuple[str, bytes]], name: str, asked: str, part: slice) -> None:
    uri, content = two[name]
    answer = requests.get(uri, headers={"Range": asked}, timeout=30)
    assert (answer.status_code, answer.content == content[part]) == (206, True)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=5-4", "bytes=-", "bytes=a-b", "bytes", ""])
def test_what_is_no_single_range_is_answered_with_the_whole(two: dict[str, tuple[str, bytes]], asked: str) -> None:
    uri, content = two["raw"]
    answer = requests.get(uri, headers={"Range": asked}, timeout=30)
    assert (answer.status_code, answer.content == content) == (200, True)


@pytest.mark.parametrize("asked", ["bytes=3000000-", "bytes=-0", f"bytes={10**17}-"])
def test_a_range_outside_is_416(two: dict[str, tuple[str, bytes]], asked: str) -> None:
    answer = requests.get(two["raw"][0], headers={"Range": asked}, timeout=30)
    is_problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["Content-Range"] == "bytes */3000000"


def test_an_empty_artifact_has_no_ranges(url: str) -> None:
    uri = put_in(url, b"")["uri"]
    assert requests.get(uri, headers={"Range": "bytes=0-0"}, timeout=30).status_code == 416
    assert requests.get(uri, timeout=30).content == b""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("known", "status"), [("{}", 304), ("W/{}", 304), ('"other", {}', 304), ("*", 304), ('"other"', 200), ("", 200)]
)
def test_what_the_caller_has_is_not_sent_again(
    two: dict[str, tuple[str, bytes]], method: str, known: str, status: int
) -> None:
    uri, content = two["raw"]
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    answer = requests.request(method, uri, headers={"If-None-Match": known.format(etag)}, timeout=30)
    assert (answer.status_code, answer.headers["ETag"]) == (status, etag)
    assert status == 200 or not answer.content


def test_a_range_of_another_version_is_answered_with_the_whole(two: dict[str, tuple[str, bytes]]) -> None:
    uri, content = two["raw"]
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    for said, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200)):
        answer = requests.get(uri, headers={"Range": "bytes=0-4", "If-Range": said}, timeout=30)
        assert answer.status_code == status


def test_what_is_damaged_is_no_200(url: str, store: LocalArtifactStore, tmp_path: Path) -> None:
    uri = put_in(url, RAW[:100])["uri"]
    (found,) = (tmp_path / "store").rglob("log.txt")
    found.write_bytes(RAW[1:101])
    is_problem(requests.get(uri, timeout=30), 410, "artifact-damaged")
    found.unlink()
    is_problem(requests.get(uri, timeout=30), 404, "artifact-not-found")
    assert len(store.verify().missing) == 1


def test_a_large_damaged_artifact_is_never_sent_to_its_end(url: str, tmp_path: Path) -> None:
    uri = put_in(url, RAW)["uri"]
    (found,) = (tmp_path / "store").rglob("log.txt")
    found.write_bytes(RAW[::-1])
    with pytest.raises(requests.RequestException):
        requests.get(uri, timeout=30)


@pytest.mark.parametrize("artifact_id", ["a!b", "a.b", "x" * 1401, "%20"])
def test_an_id_that_cannot_be_is_refused_by_name(url: str, artifact_id: str) -> None:
    wrong = is_problem(requests.get(f"{url}/artifacts/{artifact_id}", timeout=30), 400, "invalid-request")
    assert [one["field"] for one in wrong["errors"]] == ["artifact_id"]


@pytest.mark.parametrize("path", ["..%2F..%2Fetc%2Fpasswd", "../../etc/passwd", "%2e%2e", id_of("../../etc/passwd")])
def test_no_id_leads_out_of_the_store(url: str, path: str) -> None:
    request = requests.Request("GET", url).prepare()
    request.url = f"{url}/artifacts/{path}"
    with requests.Session() as session:
        assert session.send(request, timeout=30).status_code in {400, 404}


# --- filters


@pytest.mark.parametrize(
    "query", ["tsak_id=1", "spec_name=a&limit=5", "spec_name=a&cursor=x", "since=yesterday", "until=0.5"]
)
def test_a_deletion_with_a_misspelt_filter_deletes_nothing(url: str, store: LocalArtifactStore, query: str) -> None:
    store.upload("log", b"x", {"spec_name": "a"})
    is_problem(requests.delete(f"{url}/artifacts?{query}", timeout=30), 400, "invalid-request")
    is_problem(requests.delete(f"{url}/artifacts", timeout=30), 400, "invalid-request")
    assert store.usage().count == 1


def test_times_in_a_filter_need_a_zone(url: str) -> None:
    answer = requests.get(f"{url}/artifacts?since=2026-01-01T00:00:00", timeout=30)
    is_problem(answer, 400, "invalid-request")
    answer = requests.get(f"{url}/artifacts", params={"since": "2026-01-01T00:00:00+09:00"}, timeout=30)
    assert answer.json() == {"items": [], "next_cursor": None}


# --- the service itself


def test_health_lists_what_it_can(url: str) -> None:
    assert set(requests.get(f"{url}/health", timeout=30).json()["capabilities"]) == set(CAPABILITIES)


def test_a_store_that_cannot_be_written_to_is_503(tmp_path: Path) -> None:
    root = tmp_path / "store"
    service = artifact_store_service(LocalArtifactStore(root), answers_file=tmp_path / "a.db")
    with served(create_app(service)) as url:
        shutil.rmtree(root)
        root.write_text("")
        assert requests.get(f"{url}/health", timeout=30).status_code == 503
        answer = post(url, ("file", ("f", b"x")), ("type", (None, "log")))
        is_problem(answer, 500, "artifact-not-stored")


def test_a_public_url_is_what_uris_begin_with(serve: Callable[..., Any]) -> None:
    with serve(public_url="https://artifacts.example/base/") as url:
        body = put_in(url, b"x")
        assert body["uri"] == f"https://artifacts.example/base/artifacts/{body['artifact_id']}"
        with ArtifactStoreClient(url) as client:
            assert client.download(body["uri"]) == b"x"


def test_metrics_count_what_went_in_and_out(url: str) -> None:
    uri = put_in(url, b"12345")["uri"]
    requests.get(uri, timeout=30)
    requests.get(uri, headers={"Range": "bytes=0-1"}, timeout=30)
    requests.delete(uri, timeout=30)
    lines = requests.get(f"{url}/metrics", timeout=30).text.splitlines()
    for line in ("uploads_total 1.0", "uploaded_bytes_total 5.0", "downloads_total 2.0", "downloaded_bytes_total 7.0",
                 "deletions_total 1.0"):  # fmt: skip
        assert f"necrocode_artifact_{line}" in lines


def test_a_service_sweeps_by_itself_and_goes_on_after_trouble(tmp_path: Path) -> None:
    clock = FakeClock()
    swept = threading.Event()

    class Watched(LocalArtifactStore):
        failures = 1

        def sweep(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise StorageFullError("a sweep that fails")
            report = super().sweep()
            if report.deleted:
                swept.set()
            return report

    store = Watched(tmp_path / "store", clock=clock)
    store.upload("log", b"x")
    clock.seconds += 8 * 24 * 3600
    service = artifact_store_service(store, answers_file=tmp_path / "a.db", sweep_every_seconds=0.01)
    with served(create_app(service)):
        assert swept.wait(30)
    assert store.usage().count == 0


def test_many_uploads_at_once_never_pass_the_quota(url: str, store: LocalArtifactStore) -> None:
    def one(number: int) -> int:
        content = random.Random(number).randbytes(3_000_000)  # noqa: S311  incompressible
        return post(url, ("file", ("f", content)), ("type", (None, f"t{number}"))).status_code

    threads_answers: list[int] = []
    threads = [threading.Thread(target=lambda n=n: threads_answers.append(one(n))) for n in range(10)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(threads_answers) <= {201, 507}
    assert 507 in threads_answers
    assert store.usage().stored_bytes <= QUOTA_BYTES
    assert store.usage().count == threads_answers.count(201) >= 1


def _drafts(store: LocalArtifactStore) -> list[Path]:
    return list(Path(store._blobs.named()).glob("+drafts/*"))


def _eventually(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(1000):
        if holds():
            return
        waiting.wait(0.01)
    assert holds()
