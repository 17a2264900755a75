from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from necrocode.agent_runner import (
    ConfigurationError,
    LocalRepoPool,
    PoolDefinition,
    PoolSet,
    RepoPoolClient,
    RepositoryNotFoundError,
    SlotAllocation,
)
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner._git import Git
from necrocode.services._app import create_app
from necrocode.services._pool_sources import AllowedSources
from necrocode.services.repo_pool import read_pools_file, repo_pool_service
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import git, make_repository
from tests.support.served import served
from tests.support.trees import make_deep

WITHIN_SECONDS = 30


class Bench:
    """A pool, and services over it."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self._stack = stack

    def pool(self, size: int = 2, clock: Clock = SYSTEM_CLOCK) -> LocalRepoPool:
        return LocalRepoPool(self.place / "pool", Git(self.place / "git"), pool_size=size, clock=clock)

    def serve(self, pool: LocalRepoPool | None = None, **options: Any) -> str:
        service = repo_pool_service(pool or self.pool(), **options)
        return self._stack.enter_context(served(create_app(service)))

    def client(self, url: str) -> RepoPoolClient:
        return self._stack.enter_context(RepoPoolClient(url))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def until(is_so: Callable[[], object]) -> None:
    """Look again and again, for a bounded time, at what another thread does."""
    end = time.monotonic() + WITHIN_SECONDS
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.02)


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], check=True, capture_output=True, timeout=30)
    return json.loads(done.stdout)


def wanted(repository: Path, **more: Any) -> dict[str, Any]:
    return {"repo_url": str(repository), "required_by": "me", **more}


def post(url: str, path: str, body: Any = None, **headers: str) -> requests.Response:
    return requests.post(f"{url}{path}", json=body, headers=headers, timeout=60)


# --- as the guide says


def test_the_guides_commands_work_as_printed(bench: Bench, repository: Path) -> None:
    url = bench.serve()
    assert curl(f"{url}/pools/status") == {"pools": []}
    slot = post(url, "/slots/allocate", wanted(repository)).json()
    shown = curl(f"{url}/pools/status")["pools"][0]
    assert (shown["counts"]["allocated"], shown["slots"][0]["holder"]) == (1, "me")
    assert "lease_token" not in json.dumps(shown)
    answer = curl("-X", "POST", f"{url}/slots/{slot['slot_id']}/release")
    assert answer == {"slot_id": slot["slot_id"], "state": "available"}
    shown = curl(f"{url}/slots/{slot['slot_id']}")
    assert (shown["last_end"], shown["last_holder"], shown["last_end_by"]) == ("forced", "me", "127.0.0.1")


def test_an_allocation_says_all_that_a_runner_needs(bench: Bench, repository: Path) -> None:
    answer = post(bench.serve(), "/slots/allocate", wanted(repository, lease_seconds=60))
    assert answer.status_code == 201
    assert {"slot_id", "slot_path", "base_commit", "epoch", "lease_token", "expires_at"} <= answer.json().keys()
    assert git(Path(answer.json()["slot_path"]), "rev-parse", "HEAD") == answer.json()["base_commit"]


def test_none_free_says_when_to_ask_again(bench: Bench, repository: Path) -> None:
    url = bench.serve(bench.pool(1))
    assert post(url, "/slots/allocate", wanted(repository)).status_code == 201
    answer = post(url, "/slots/allocate", wanted(repository))
    assert (answer.status_code, answer.json()["type"]) == (503, "no-available-slots")
    assert int(answer.headers["Retry-After"]) > 0


def test_health_lists_what_it_can(bench: Bench) -> None:
    health = requests.get(f"{bench.serve()}/health", timeout=5).json()
    assert (health["service"], health["capabilities"]) == ("repo-pool", ["pools", "slot-leases"])


def test_health_says_when_the_folder_cannot_be_used(bench: Bench) -> None:
    (bench.place / "file").write_text("")
    url = bench.serve(LocalRepoPool(bench.place / "file" / "pool", Git(bench.place / "git")))
    answer = requests.get(f"{url}/health", timeout=5)
    assert (answer.status_code, answer.json()["type"]) == (503, "workspace-preparation-failed")


# --- answers that are lost, and callers that leave


def test_the_same_key_gets_the_same_slot(bench: Bench, repository: Path) -> None:
    url = bench.serve()
    first, second = (post(url, "/slots/allocate", wanted(repository), **{"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json() == second.json()
    other = post(url, "/slots/allocate", wanted(repository, base_ref="main"), **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["type"]) == (422, "idempotency-key-reused")
    again = post(bench.serve(), "/slots/allocate", wanted(repository), **{"Idempotency-Key": "k"})
    assert again.json() == first.json()
    (shown,) = bench.pool().pools_status()
    assert shown.use.allocations == 1


def hang_up_while_waiting(url: str, body: dict[str, Any], is_waiting: Callable[[], object]) -> None:
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST /slots/allocate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        until(is_waiting)


class Watched(LocalRepoPool):
    """Says how many allocations wait, or are made."""

    running = 0

    def allocate_slot_while(self, *arguments: Any, **options: Any) -> SlotAllocation:
        self.running += 1
        try:
            return super().allocate_slot_while(*arguments, **options)
        finally:
            self.running -= 1


def test_a_caller_that_hangs_up_while_it_waits_gets_no_slot(bench: Bench, repository: Path) -> None:
    pool = Watched(bench.place / "pool", Git(bench.place / "git"), pool_size=1)
    url = bench.serve(pool)
    slot = post(url, "/slots/allocate", wanted(repository)).json()
    hang_up_while_waiting(url, wanted(repository, timeout_seconds=600), lambda: pool.running == 1)
    until(lambda: pool.running == 0)
    post(url, f"/slots/{slot['slot_id']}/release", {"lease_token": slot["lease_token"]})
    assert pool.get_slot(slot["slot_id"]).state == "available"
    assert post(url, "/slots/allocate", wanted(repository)).status_code == 201


def test_a_caller_that_hangs_up_while_its_slot_is_made_holds_none(bench: Bench, repository: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    is_wanted: list[Callable[[], bool]] = []

    class Slow(Watched):
        def allocate_slot_while(self, *arguments: Any, **options: Any) -> SlotAllocation:
            is_wanted.append(arguments[0])
            return super().allocate_slot_while(*arguments, **options)

        def _handed_out(self, *arguments: Any) -> Any:
            entered.set()
            assert go_on.wait(WITHIN_SECONDS)
            return super()._handed_out(*arguments)

    pool = Slow(bench.place / "pool", Git(bench.place / "git"), pool_size=1)
    url = bench.serve(pool)
    hang_up_while_waiting(url, wanted(repository), entered.is_set)
    until(lambda: not is_wanted[0]())
    go_on.set()
    until(lambda: pool.running == 0)
    assert pool.pools_status()[0].counts["available"] == 1


def test_the_end_of_the_service_ends_the_waiting(bench: Bench, repository: Path) -> None:
    pool = Watched(bench.place / "pool", Git(bench.place / "git"), pool_size=1)
    service = repo_pool_service(pool)
    answers: list[int] = []
    with served(create_app(service)) as url:
        post(url, "/slots/allocate", wanted(repository))

        def wait() -> None:
            answers.append(post(url, "/slots/allocate", wanted(repository, timeout_seconds=600)).status_code)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: pool.running == 1)
        service.stopping.set()
        requests.get(f"{url}/health", timeout=5)
        thread.join(WITHIN_SECONDS)
    assert answers == [503]


def test_waiting_allocations_do_not_keep_a_release_waiting(bench: Bench, repository: Path) -> None:
    pool = Watched(bench.place / "pool", Git(bench.place / "git"), pool_size=1)
    url = bench.serve(pool)
    first = bench.client(url).allocate_slot(str(repository), "first")

    def work(number: int) -> str:
        client = bench.client(url)
        if number == 0:
            until(lambda: pool.running == 23)
            client.release_slot(first.slot_id, lease_token=first.lease_token)
            return "released"
        slot = client.allocate_slot(str(repository), f"{number}", timeout_seconds=60)
        client.release_slot(slot.slot_id)
        return "allocated"

    assert at_once(work, range(24)) == ["released", *["allocated"] * 23]


def test_24_callers_get_24_slots_of_a_new_repository(bench: Bench, repository: Path) -> None:
    client = bench.client(bench.serve(bench.pool(24)))
    slots = at_once(lambda number: client.allocate_slot(str(repository), f"{number}"), range(24))
    made = [slot for slot in slots if isinstance(slot, SlotAllocation)]
    assert len(made) == 24, slots
    assert len({slot.slot_id for slot in made}) == len({slot.slot_path for slot in made}) == 24
    for slot in made:
        assert git(slot.slot_path, "status", "--porcelain", "--ignored") == ""


@pytest.mark.filterwarnings("default")
def test_every_answer_is_as_documented(bench: Bench) -> None:
    schema = schemathesis.openapi.from_url(f"{bench.serve(allowed_sources=[])}/openapi.json")
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        seen.add(f"{operation.method.upper()} {operation.path}")

        @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def is_as_documented(case: Any) -> None:
            case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance])  # no repository is allowed

        is_as_documented()
    assert {"POST /slots/allocate", "GET /pools/status", "DELETE /pools/{name}", "POST /slots/{slot_id}/lease"} <= seen


# --- upkeep


def test_leases_that_end_are_reclaimed_without_a_caller(bench: Bench, repository: Path) -> None:
    clock = FakeClock()
    pool = bench.pool(2, clock)
    url = bench.serve(pool, sweep_seconds=0.02)
    slot = bench.client(url).allocate_slot(str(repository), "gone", lease_seconds=60)
    clock.sleep(61)
    until(lambda: pool.get_slot(slot.slot_id).state == "available")
    assert pool.get_slot(slot.slot_id).last_end == "expired"


def test_pools_of_the_file_are_made_and_filled_at_the_start(bench: Bench, repository: Path) -> None:
    other = make_repository(bench.place / "other")
    pools = PoolSet(pool_size=1, pools=(PoolDefinition(repo_url=str(repository), name="mine", pool_size=2),
                                        PoolDefinition(repo_url="/none/here"),
                                        PoolDefinition(repo_url=str(other))))  # fmt: skip
    pool = bench.pool()
    pool.create_pool(str(repository), pool_size=5)
    bench.serve(pool, pools=pools)
    until(lambda: sum(one.counts["available"] for one in pool.pools_status()) == 3)
    sizes = {one.repo_url: (one.name == "mine", one.pool_size) for one in pool.pools_status()}
    assert sizes == {str(repository): (True, 2), str(other): (False, 1), "/none/here": (False, 1)}


def test_metrics_count_slots_use_and_times(bench: Bench, repository: Path) -> None:
    url = bench.serve(bench.pool(1))
    client = bench.client(url)
    client.create_pool(str(repository), name="mine", pool_size=1)
    client.allocate_slot(str(repository), "me")
    assert post(url, "/slots/allocate", wanted(repository)).status_code == 503
    assert post(url, "/slots/allocate", wanted(Path("/none"))).status_code == 422
    lines = requests.get(f"{url}/metrics", timeout=5).text.splitlines()
    for line in (
        'necrocode_pool_slots{pool="mine",state="allocated"} 1.0',
        'necrocode_pool_slots{pool="mine",state="quarantined"} 0.0',
        'necrocode_pool_allocations_total{pool="mine"} 1.0',
        'necrocode_pool_fetches_total{pool="mine"} 1.0',
        'necrocode_pool_allocation_seconds_count{outcome="allocated"} 1.0',
        'necrocode_pool_allocation_seconds_count{outcome="none-free"} 1.0',
        'necrocode_pool_allocation_seconds_count{outcome="failed"} 1.0',
    ):
        assert line in lines


def test_a_damaged_pool_does_not_hide_the_other_metrics(bench: Bench, repository: Path) -> None:
    url = bench.serve(sweep_seconds=0.02)
    bench.client(url).allocate_slot(str(repository), "me")
    (file,) = (bench.place / "pool").glob("*/pool.json")
    file.write_text("{")
    assert "necrocode_http_requests_total" in requests.get(f"{url}/metrics", timeout=5).text
    assert "damaged" in requests.get(f"{url}/pools/status", timeout=5).json()["pools"][0]["trouble"]


# --- where repositories may come from


@pytest.mark.parametrize(
    "url",
    ["https://github.com/a/b", "ssh://git@GitHub.com/a", "git@github.com:a/b.git", "https://github.com:8443/a",
     "https://only.example.com:8443/a", "http://[::1]:80/a", "/srv/git", "/srv/git/a.git", "file:///srv/git/a%20b"],
)  # fmt: skip
def test_allowed_sources_pass(url: str) -> None:
    AllowedSources(["github.com", "only.example.com:8443", "[::1]", "/srv/git"]).check(url)
    AllowedSources(None).check(url)


@pytest.mark.parametrize(
    "url",
    ["https://evil.com/a", "https://github.com.evil.com/a", "https://evil.com/github.com", "https://a.github.com/a",
     "https://only.example.com/a", "https://only.example.com:1/a", "git@evil.com:github.com/a", "/srv/git2/a", "/srv",
     "/srv/git/../../etc", "file:///etc", "file://github.com.evil.com/srv/git", "relative", "https://[x/", "~nobody/x",
     "", "https:///a", "\0"],
)  # fmt: skip
def test_other_sources_are_refused(url: str) -> None:
    allowed = AllowedSources(["github.com", "only.example.com:8443", "/srv/git"])
    with pytest.raises(RepositoryNotFoundError, match="does not allow"):
        allowed.check(url)
    with pytest.raises(RepositoryNotFoundError):
        AllowedSources([]).check(url)


def test_a_link_out_of_an_allowed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/out").symlink_to("/etc")
    with pytest.raises(RepositoryNotFoundError):
        AllowedSources([str(tmp_path / "in")]).check(str(tmp_path / "in/out"))


@pytest.mark.parametrize("entry", ["https://github.com", "*", "", "a b", "-x"])
def test_an_entry_that_is_no_source_is_told(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a host nor"):
        AllowedSources([entry])


def test_the_service_takes_what_its_operator_allows(bench: Bench, repository: Path) -> None:
    other = make_repository(bench.place / "allowed" / "repo")
    url = bench.serve(allowed_sources=[str(bench.place / "allowed")])
    assert post(url, "/slots/allocate", wanted(other)).status_code == 201
    for path, body in (("/slots/allocate", wanted(repository)), ("/pools", {"repo_url": str(repository)})):
        answer = post(url, path, body)
        assert (answer.status_code, answer.json()["type"]) == (422, "repository-not-found")
    assert len(bench.pool().pools_status()) == 1


# --- the pools file


def test_a_pools_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(
        "pool_size: 10\npools:\n- repo_url: https://h/a\n  name: a\n  pool_size: 3\n- repo_url: https://h/b\n"
    )
    read = read_pools_file(file)
    assert (read.pool_size, [(one.name, one.pool_size) for one in read.pools]) == (10, [("a", 3), (None, None)])
    file.write_text("")
    assert read_pools_file(file) == PoolSet()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("pool_sise: 1", "unknown key 'pool_sise' .did you mean 'pool_size'"),
        ("pools: [{repo_ulr: x}]", "did you mean 'repo_url'"),
        ("pools: [{repo_url: x, pool_size: 0}]", "pool_size"),
        ("pools: [{repo_url: x, name: a/b}]", "name"),
        ("pools: x", "pools"),
        ("pools: [x]", "pools"),
        ("- x", "mapping"),
    ],
)
def test_a_pools_file_that_is_wrong_is_told(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=told):
        read_pools_file(file)


@pytest.mark.parametrize(
    "url",
    [
        "file://git.example.com/srv/secret.git",
        "ssh://evil.com%2f@git.example.com/x",
        "ssh://evil.com%3a22%2fx@git.example.com/y",
        "git://127.0.0.1%2f@git.example.com/x",
        "ssh://a%40evil.com%2f@git.example.com/x",
    ],
)
def test_a_url_that_git_takes_to_another_place_than_it_seems_is_not_allowed(url: str) -> None:
    with pytest.raises(RepositoryNotFoundError):
        AllowedSources(["git.example.com"]).check(url)


# --- what must not take it down


def test_a_tree_of_any_depth_in_a_slot_keeps_no_service_from_its_start(bench: Bench, repository: Path) -> None:
    first = bench.pool(1)
    slot = first.allocate_slot(str(repository), "me")
    make_deep(slot.slot_path)
    first.release_slot(slot.slot_id, lease_token=slot.lease_token)
    url = bench.serve(bench.pool(1))
    again = post(url, "/slots/allocate", wanted(repository))
    assert again.status_code == 201, again.text
    other = bench.pool(1)
    post(bench.serve(other), f"/slots/{slot.slot_id}/release")
    until(lambda: other.reclaim_expired() == [] and not list((other.root / ".trash").iterdir()))
    assert requests.get(f"{bench.serve()}/health", timeout=5).status_code == 200


def test_no_slot_is_lost_when_its_answer_cannot_be_kept(
    bench: Bench, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = bench.pool(1)
    url = bench.serve(pool)
    allocate = pool.allocate_slot_while

    def then_break(*arguments: Any, **options: Any) -> SlotAllocation:
        slot = allocate(*arguments, **options)
        (pool.root / ".answered.db").write_bytes(b"no database at all" * 100)
        return slot

    monkeypatch.setattr(pool, "allocate_slot_while", then_break)
    answer = post(url, "/slots/allocate", wanted(repository), **{"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["type"]) == (503, "store-unavailable")
    assert pool.pools_status()[0].counts["allocated"] == 0
    assert requests.get(f"{url}/health", timeout=5).status_code == 503
    monkeypatch.undo()
    url = bench.serve(bench.pool(1))
    assert requests.get(f"{url}/health", timeout=5).status_code == 200
    assert post(url, "/slots/allocate", wanted(repository), **{"Idempotency-Key": "k"}).status_code == 201


@pytest.mark.parametrize("damage", ["{", "[" * 100_000, '{"slots": [], "pool_size": "x"}', '{"slots": [{"state": 1}]}'])
def test_a_damaged_pool_is_shown_and_the_others_go_on(bench: Bench, tmp_path: Path, damage: str) -> None:
    clock = FakeClock()
    pool = bench.pool(1, clock)
    good, bad = (str(make_repository(tmp_path / name)) for name in ("good", "bad"))
    slot = pool.allocate_slot(good, "me", lease_seconds=10)
    pool.allocate_slot(bad, "you")
    (file,) = pool.root.glob("bad-*/pool.json")
    file.write_text(damage)
    named = PoolSet(pools=(PoolDefinition(repo_url=bad), PoolDefinition(repo_url=good, name="good")))
    url = bench.serve(pool, pools=named, sweep_seconds=3600)
    shown = {one["name"]: one for one in requests.get(f"{url}/pools/status", timeout=5).json()["pools"]}
    assert "damaged" in shown[file.parent.name]["trouble"]
    assert (shown["good"]["trouble"], shown["good"]["counts"]["allocated"]) == (None, 1)
    metrics = requests.get(f"{url}/metrics", timeout=5).text
    assert f'necrocode_pool_damaged{{pool="{file.parent.name}"}} 1.0' in metrics
    assert 'necrocode_pool_slots{pool="good",state="allocated"} 1.0' in metrics
    clock.sleep(11)
    assert pool.reclaim_expired() == [slot.slot_id]
    assert post(url, "/pools", {"repo_url": str(tmp_path / "third"), "name": "third"}).status_code == 201
    assert requests.patch(f"{url}/pools/good", json={"pool_size": 3}, timeout=5).status_code == 200
    answer = requests.patch(f"{url}/pools/{file.parent.name}", json={"pool_size": 3}, timeout=5)
    assert (answer.status_code, "is damaged" in answer.json()["detail"]) == (500, True)


# --- URLs that git refuses, and hosts that do not answer


@pytest.mark.parametrize(
    "url",
    ["SSH://127.0.0.1:1/x", "FILE:///srv/x", " https://127.0.0.1:1/x", "https://127.0.0.1:1/x ",
     "ssh://-oProxyCommand=x@127.0.0.1:1/x", "https://127.0.0.1:99999/x", "https://a b/x"],
)  # fmt: skip
def test_a_url_that_git_refuses_is_the_callers_mistake(bench: Bench, url: str) -> None:
    service = bench.serve()
    answer = post(service, "/slots/allocate", {"repo_url": url, "required_by": "me"})
    assert (answer.status_code, answer.json()["type"]) == (422, "repository-not-found"), answer.text
    with pytest.raises(RepositoryNotFoundError):
        bench.client(service).allocate_slot(url, "me")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "git://127.0.0.1:1/x", "ssh://127.0.0.1:1/x"])
def test_a_remote_that_does_not_answer_may_do_so_later(bench: Bench, url: str) -> None:
    answer = post(bench.serve(), "/slots/allocate", {"repo_url": url, "required_by": "me"})
    assert (answer.status_code, answer.json()["type"]) == (503, "workspace-preparation-failed"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
