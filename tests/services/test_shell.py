from __future__ import annotations

import asyncio
import json
import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import requests
from fastapi import APIRouter, Body, Query
from pydantic import BaseModel

from necrocode.agent_runner import (
    IdempotencyKeyReusedError,
    ServiceConnectionError,
    StaleLeaseError,
    StorageFullError,
)
from necrocode.services._app import Service, create_app
from necrocode.services._edge import RateLimit
from necrocode.services._headers import IdempotencyKey, LeaseEpoch
from necrocode.services._idempotency import KEPT_SECONDS, AnsweredWrites
from tests.support.clocks import FakeClock
from tests.support.served import served

TOKEN = "a-token-for-tests"


class Thing(BaseModel):
    name: str
    size: int


def toy(*, check: Callable[[], Any] | None = None) -> Service:
    router = APIRouter()

    @router.post("/things", status_code=201)
    async def make(thing: Thing, key: IdempotencyKey = None, epoch: LeaseEpoch = None) -> dict[str, Any]:
        return {"name": thing.name, "key": key, "epoch": epoch}

    @router.get("/things/{name}")
    async def find(name: str, limit: Annotated[int, Query(ge=1, le=10)] = 5) -> dict[str, Any]:
        if name == "stale":
            raise StaleLeaseError("The lease is over.")
        if name == "broken":
            raise KeyError("a defect, with the password https://user:hunter22@host")
        return {"name": name, "limit": limit}

    @router.delete("/things/{name}")
    async def remove(name: str) -> dict[str, str]:
        return {"removed": name}

    @router.post("/echo")
    async def echo(body: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
        return {"body": body}

    async def fine() -> None:
        return None

    return Service("toy", "Toy", ("b", "a"), router, check=check or fine, max_body_bytes=1000)


@pytest.fixture
def url() -> Iterator[str]:
    with served(create_app(toy(), token=TOKEN)) as running:
        yield running


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        one.headers["Authorization"] = f"Bearer {TOKEN}"
        yield one


def is_problem(answer: requests.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["type"]) == (status, status, slug)
    assert body["title"]
    assert body["detail"]
    return body


def test_health_needs_no_token_and_lists_what_the_service_can(url: str) -> None:
    answer = requests.get(f"{url}/health", timeout=5)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["service"], body["capabilities"]) == ("ok", "toy", ["a", "b"])
    assert body["version"]


def test_a_store_that_does_not_answer_makes_health_503() -> None:
    async def down() -> None:
        raise ServiceConnectionError("The database is down.")

    with served(create_app(toy(check=down))) as url:
        answer = requests.get(f"{url}/health", timeout=5)
    assert is_problem(answer, 503, "store-unavailable")["detail"] == "The database is down."
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("given", [None, "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Basic {TOKEN}", "Bearer "])
@pytest.mark.parametrize("path", ["/things/a", "/metrics", "/nowhere"])
def test_everything_else_needs_the_token(url: str, path: str, given: str | None) -> None:
    answer = requests.get(f"{url}{path}", headers={"Authorization": given} if given else {}, timeout=5)
    is_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_without_a_token_everybody_may_call() -> None:
    with served(create_app(toy())) as url:
        assert requests.get(f"{url}/things/a", timeout=5).json() == {"name": "a", "limit": 5}


def test_errors_are_problems(url: str, session: requests.Session) -> None:
    is_problem(session.get(f"{url}/things/stale", timeout=5), 409, "stale-lease")
    is_problem(session.get(f"{url}/nowhere", timeout=5), 404, "not-found")
    refused = session.put(f"{url}/things/a", timeout=5)
    is_problem(refused, 405, "method-not-allowed")
    assert refused.headers["Allow"] == "DELETE, GET"
    wrong = is_problem(session.get(f"{url}/things/a?limit=11", timeout=5), 400, "invalid-request")
    assert [one["field"] for one in wrong["errors"]] == ["limit"]
    wrong = is_problem(session.post(f"{url}/things", json={"name": 1}, timeout=5), 422, "invalid-request")
    assert sorted(one["field"] for one in wrong["errors"]) == ["name", "size"]
    wrong = is_problem(session.post(f"{url}/things", data=b"{nope", timeout=5), 422, "invalid-request")


def test_a_wrong_value_is_not_echoed(url: str, session: requests.Session) -> None:
    answer = session.post(f"{url}/things", json={"name": "n", "size": "hunter22"}, timeout=5)
    assert "hunter22" not in answer.text


def test_a_defect_is_a_500_that_tells_nothing_and_is_logged(
    url: str, session: requests.Session, caplog: pytest.LogCaptureFixture
) -> None:
    answer = session.get(f"{url}/things/broken", timeout=5)
    body = is_problem(answer, 500, "internal-error")
    assert "hunter22" not in answer.text
    assert answer.headers["X-Request-Id"] in body["detail"]
    assert any(answer.headers["X-Request-Id"] in record.getMessage() for record in caplog.records)


def test_bodies_are_bounded_with_and_without_a_length(url: str, session: requests.Session) -> None:
    is_problem(session.post(f"{url}/things", data=b"x" * 1001, timeout=5), 413, "content-too-large")
    chunks = (b"x" * 100 for _ in range(11))
    is_problem(session.post(f"{url}/things", data=chunks, timeout=5), 413, "content-too-large")
    just_fits = json.dumps({"name": "n" * (1000 - len('{"name": "", "size": 1}')), "size": 1})
    assert session.post(f"{url}/things", data=just_fits, timeout=5).status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_a_key_that_is_none_is_refused(url: str, session: requests.Session, key: str) -> None:
    answer = session.post(
        f"{url}/things", json={"name": "n", "size": 1}, headers={"Idempotency-Key": key.encode()}, timeout=5
    )
    is_problem(answer, 400, "invalid-request")


def test_headers_reach_the_service(url: str, session: requests.Session) -> None:
    answer = session.post(
        f"{url}/things",
        json={"name": "n", "size": 1},
        headers={"Idempotency-Key": "k-1", "X-Lease-Epoch": "7"},
        timeout=5,
    )
    assert answer.json() == {"name": "n", "key": "k-1", "epoch": 7}


def test_a_post_without_body_and_content_type_is_taken(url: str, session: requests.Session) -> None:
    assert session.post(f"{url}/echo", timeout=5).json() == {"body": None}
    typeless = requests.Request("POST", f"{url}/echo", data=b'{"a": 1}', headers=dict(session.headers)).prepare()
    assert "Content-Type" not in typeless.headers
    assert session.send(typeless, timeout=5).json() == {"body": {"a": 1}}


def test_openapi_tells_of_problems_and_of_the_token(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=5).json()
    assert document["security"] == [{"token": []}]
    answers = document["paths"]["/things"]["post"]["responses"]
    assert {"201", "400", "401", "413", "422", "429", "500", "503"} <= set(answers)
    for status, answer in answers.items():
        if status != "201":
            assert set(answer["content"]) == {"application/problem+json"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_each_request_is_one_line_of_json_in_the_access_log(
    session: requests.Session, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "necrocode.services.access"), served(create_app(toy(), token=TOKEN)) as url:
        answer = session.get(f"{url}/things/a?limit=3", timeout=5)
    (record,) = (one for one in caplog.records if one.name == "necrocode.services.access")
    line = json.loads(record.getMessage())
    assert (line["service"], line["method"], line["path"], line["status"]) == ("toy", "GET", "/things/a", 200)
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert line["sent_bytes"] == len(answer.content)
    assert TOKEN not in record.getMessage()


def test_metrics_count_by_route_not_by_path(url: str, session: requests.Session) -> None:
    for name in ("a", "b", "stale"):
        session.get(f"{url}/things/{name}", timeout=5)
    text = session.get(f"{url}/metrics", timeout=5).text
    assert 'necrocode_http_requests_total{method="GET",route="/things/{name}",status="200"} 2.0' in text
    assert 'necrocode_http_requests_total{method="GET",route="/things/{name}",status="409"} 1.0' in text
    assert "necrocode_uptime_seconds" in text


def test_a_client_that_asks_too_often_is_told_to_wait() -> None:
    with served(create_app(toy(), rate_limit_per_second=1)) as url:
        answers = [requests.get(f"{url}/health", timeout=5) for _ in range(4)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    refused = next(answer for answer in answers if answer.status_code != 200)
    is_problem(refused, 429, "too-many-requests")
    assert int(refused.headers["Retry-After"]) >= 1


def test_rates_are_counted_for_each_client_and_refill_with_time() -> None:
    clock = FakeClock()
    rates = RateLimit(10, clock)
    assert [rates.wait_seconds("a") for _ in range(20)] == [0.0] * 20
    assert rates.wait_seconds("a") == pytest.approx(0.1)
    assert rates.wait_seconds("b") == 0
    clock.sleep(0.1)
    assert rates.wait_seconds("a") == 0
    assert rates.wait_seconds("a") > 0


def test_clients_beyond_the_ten_thousandth_push_the_longest_unseen_out() -> None:
    rates = RateLimit(1, FakeClock())
    for number in range(10_002):
        rates.wait_seconds(str(number))
    assert len(rates._buckets) == 10_000


def test_noise_instead_of_http_does_no_harm(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert requests.get(f"{url}/health", timeout=5).status_code == 200


# --- answered writes


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def answered(tmp_path: Path, clock: FakeClock) -> AnsweredWrites:
    return AnsweredWrites(tmp_path / "deep" / "answers.db", clock=clock)


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> dict[str, int]:
        self.calls += 1
        await asyncio.sleep(0)
        return {"call": self.calls}


def test_a_key_gets_its_first_answer_again_also_from_another_process(
    answered: AnsweredWrites, tmp_path: Path, clock: FakeClock
) -> None:
    write = Counted()
    assert asyncio.run(answered.once("k", "f", write)) == {"call": 1}
    assert asyncio.run(answered.once("k", "f", write)) == {"call": 1}
    other = AnsweredWrites(tmp_path / "deep" / "answers.db", clock=clock)
    assert asyncio.run(other.once("k", "f", write)) == {"call": 1}
    assert asyncio.run(other.once(None, "f", write)) == {"call": 2}
    assert asyncio.run(other.once("k2", "f", write)) == {"call": 3}


def test_a_key_with_another_request_is_refused(answered: AnsweredWrites) -> None:
    write = Counted()
    asyncio.run(answered.once("k", "f", write))
    with pytest.raises(IdempotencyKeyReusedError):
        asyncio.run(answered.once("k", "g", write))
    assert write.calls == 1


def test_requests_with_one_key_at_once_are_one_write(answered: AnsweredWrites) -> None:
    write = Counted()

    async def many() -> list[Any]:
        return await asyncio.gather(*(answered.once("k", "f", write) for _ in range(20)))

    assert asyncio.run(many()) == [{"call": 1}] * 20
    assert answered._locks == {}


def test_a_failed_write_may_be_tried_again(answered: AnsweredWrites) -> None:
    async def fails() -> None:
        raise StaleLeaseError("no")

    with pytest.raises(StaleLeaseError):
        asyncio.run(answered.once("k", "f", fails))
    assert asyncio.run(answered.once("k", "f", Counted())) == {"call": 1}


def test_a_write_whose_answer_cannot_be_kept_is_undone(answered: AnsweredWrites, tmp_path: Path) -> None:
    undone: list[Any] = []

    async def write() -> dict[str, int]:
        (tmp_path / "deep/answers.db").write_bytes(b"no database at all" * 100)
        return {"call": 1}

    async def undo(answer: Any) -> None:
        undone.append(answer)

    with pytest.raises(ServiceConnectionError, match="cannot be used"):
        asyncio.run(answered.once("k", "f", write, undo=undo))
    assert undone == [{"call": 1}]
    with pytest.raises(ServiceConnectionError, match="sets the file aside"):
        asyncio.run(answered.once("k", "f", Counted()))


def test_a_full_disk_is_told_as_such(answered: AnsweredWrites, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 4")  # what SQLite says then is what it says of a full disk
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)

    async def write() -> str:
        return "x" * 100_000

    with pytest.raises(StorageFullError, match="Make room"):
        asyncio.run(answered.once("k", "f", write))


def test_a_damaged_file_of_answers_is_set_aside_at_the_start(
    answered: AnsweredWrites, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write = Counted()
    asyncio.run(answered.once("k", "f", write))
    asyncio.run(answered.prepare())
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["answers.db"]
    assert asyncio.run(answered.once("k", "f", write)) == {"call": 1}
    file = tmp_path / "deep/answers.db"
    damaged = file.read_bytes()[:100] + b"\xff" * 4000
    file.write_bytes(damaged)
    with pytest.raises(ServiceConnectionError):
        asyncio.run(answered.check())
    asyncio.run(answered.prepare())
    asyncio.run(answered.check())
    (aside,) = (tmp_path / "deep").glob("answers.db.damaged-*")
    assert aside.read_bytes() == damaged
    assert "were damaged" in caplog.text
    assert asyncio.run(answered.once("k", "f", write)) == {"call": 2}


def test_answers_that_cannot_be_kept_anywhere_are_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    answered = AnsweredWrites(tmp_path / "file" / "answers.db")
    asyncio.run(answered.prepare())
    assert "will be refused" in caplog.text


def test_answers_are_kept_for_a_day(answered: AnsweredWrites, clock: FakeClock) -> None:
    write = Counted()
    asyncio.run(answered.once("k", "f", write))
    clock.sleep(KEPT_SECONDS - 1)
    assert asyncio.run(answered.once("k", "f", write)) == {"call": 1}
    clock.sleep(2)
    assert asyncio.run(answered.once("k", "another", write)) == {"call": 2}


def test_methods_that_nobody_knows_are_counted_as_one(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    for method in ("PURGE", "LOCK", "MKCOL"):  # parsers differ in whether they take any word as a method
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{method} /things/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 401")
    text = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=5).text
    assert 'method="(other)"' in text
    assert "PURGE" not in text
