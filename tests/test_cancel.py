"""A run that is asked to stop, in each of its steps, from another thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    Cancellation,
    LLMClient,
    LLMConfig,
    LocalRepoPool,
    LocalTaskRegistry,
    RunnerResult,
    ScriptedLLM,
    _bounded,
)
from necrocode.agent_runner._clock import SystemClock
from necrocode.agent_runner._git import Git
from tests.support.bench import BRANCH, GOOD_ANSWER, USELESS_ANSWER, Bench, artifacts
from tests.support.cancelling import (
    SOON_SECONDS,
    Bell,
    Stopwatch,
    assert_cancelled,
    assert_told,
    begun,
    full_backlog,
    hanging_git,
    processes_left,
)
from tests.support.http_server import Answer, Request, serving
from tests.support.model_server import chunk, completion, streaming
from tests.support.repositories import git


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What servers of a test wait for, instead of answering."""
    released = threading.Event()
    yield released
    released.set()


# --- prepare


def test_a_store_that_does_not_answer_keeps_no_cancelled_run(
    bench: Bench, watch: Stopwatch, release: threading.Event
) -> None:
    def script(_request: Request) -> Answer:
        watch.hang()
        return Answer(200, wait=release)

    model = ScriptedLLM([GOOD_ANSWER])
    with serving(script) as server:
        result = watch.run(bench.orchestrator(model, artifact_store_url=server.url), bench.task())
        assert_cancelled(bench, result, watch, "prepare")
        release.set()
    assert model.calls == []


@pytest.mark.parametrize("wait", ["3600", "0.4"])
def test_a_registry_that_asks_for_patience_keeps_no_cancelled_run(bench: Bench, watch: Stopwatch, wait: str) -> None:
    def script(_request: Request) -> Answer:
        watch.hang()
        return Answer(503, {}, headers={"Retry-After": wait})

    with serving(script) as server:
        orchestrator = bench.orchestrator(
            ScriptedLLM([]), task_registry_url=server.url, network_retry_count=20, request_timeout_seconds=60
        )
        assert_cancelled(bench, watch.run(orchestrator, bench.task()), watch, "prepare")


def test_a_service_that_cannot_be_connected_to_keeps_no_cancelled_run(bench: Bench, watch: Stopwatch) -> None:
    with full_backlog() as url:
        orchestrator = bench.orchestrator(ScriptedLLM([]), {"on_progress": begun(watch, "prepare", after=0.3)},
                                          task_registry_url=url)  # fmt: skip
        assert_cancelled(bench, watch.run(orchestrator, bench.task()), watch, "prepare")


@pytest.mark.parametrize("method", ["register_task", "claim_this_task", "budget_usage", "reserve_budget"])
def test_a_database_that_hangs_keeps_no_cancelled_run(
    bench: Bench, watch: Stopwatch, release: threading.Event, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(_bounded, "CLEAN_UP_SECONDS", 0.5)  # for the claim, which is asked for once more

    class Hanging(LocalTaskRegistry):
        pass

    def hang(*_anything: Any, **_more: Any) -> None:
        watch.hang()
        release.wait()

    setattr(Hanging, method, hang)
    with Hanging(f"sqlite:///{bench.state_dir / 'registry.db'}") as registry:
        orchestrator = bench.orchestrator(
            ScriptedLLM([]), {"task_registry": registry}, budget={"spec": {"max_calls": 5}}
        )
        result = watch.run(orchestrator, bench.task())
        release.set()
    assert (result.status, result.error) == ("cancelled", "Somebody asked.")
    assert watch.seconds < SOON_SECONDS


def test_a_run_that_is_cancelled_before_it_begins_asks_and_touches_nothing(bench: Bench) -> None:
    asked = Cancellation()
    asked.request("Nobody wants it any more.")
    model = ScriptedLLM([GOOD_ANSWER])
    result = bench.orchestrator(model).run(bench.task(), cancellation=asked)
    assert (result.status, result.error, result.reported) == ("cancelled", "Nobody wants it any more.", "no")
    assert model.calls == []
    assert list(bench.state_dir.glob("pool/*")) == []


# --- allocate


class ClockThatTells(SystemClock):
    """The machine's clock, which tells when something waits."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def wait(self, seconds: float, cancellation: Cancellation) -> None:
        self._tell()
        super().wait(seconds, cancellation)


def test_waiting_for_a_slot_ends(bench: Bench, watch: Stopwatch) -> None:
    clock = ClockThatTells(watch.hang)
    pool = LocalRepoPool(bench.state_dir / "pool", Git(bench.state_dir / "git"), pool_size=1, clock=clock)
    held = pool.allocate_slot(str(bench.repository), "somebody", lease_seconds=600)
    result = watch.run(bench.orchestrator(ScriptedLLM([]), {"repo_pool": pool}), bench.task())
    assert_cancelled(bench, result, watch, "allocate")
    (slot,) = bench.slots()
    assert (slot["holder"], slot["slot_id"]) == ("somebody", held.slot_id)
    pool.release_slot(held.slot_id, lease_token=held.lease_token)
    assert_told(bench, result)


def test_a_pool_service_that_does_not_answer_keeps_no_cancelled_run(
    bench: Bench, watch: Stopwatch, release: threading.Event
) -> None:
    def script(_request: Request) -> Answer:
        watch.hang()
        return Answer(200, wait=release)

    with serving(script) as server:
        result = watch.run(bench.orchestrator(ScriptedLLM([]), repo_pool_url=server.url), bench.task())
        assert_cancelled(bench, result, watch, "allocate")
        release.set()
    assert bench.status() == "cancelled"


def test_a_slot_that_arrives_after_the_cancellation_is_given_back(bench: Bench, watch: Stopwatch) -> None:
    pool = LocalRepoPool(bench.state_dir / "pool", Git(bench.state_dir / "git"))
    released, go_on = threading.Event(), threading.Event()

    class Deaf:
        """A pool of the caller's own, that knows of no cancellation."""

        def allocate_slot(self, *arguments: Any, **options: Any) -> Any:
            watch.hang()
            go_on.wait(60)
            with _bounded.within(_bounded.Deadline(60)):
                return pool.allocate_slot(*arguments, **options)

        def release_slot(self, *arguments: Any, **options: Any) -> None:
            pool.release_slot(*arguments, **options)
            released.set()

        def renew_lease(self, *arguments: Any, **options: Any) -> None:
            pool.renew_lease(*arguments, **options)

    result = watch.run(bench.orchestrator(ScriptedLLM([]), {"repo_pool": Deaf()}), bench.task())
    assert_cancelled(bench, result, watch, "allocate")
    go_on.set()
    assert released.wait(60)
    assert_told(bench, result)


@pytest.mark.parametrize(
    ("verb", "step"),
    [
        ("fetch", "allocate"), ("reset", "allocate"), ("grep", "generate"), ("ls-tree", "allocate"),
        ("fast-import", "apply"), ("diff-tree", "apply"), ("push", "deliver"),
    ],
)  # fmt: skip
def test_a_git_that_never_ends_is_killed_with_all_that_it_has_started(
    bench: Bench, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch, verb: str, step: str
) -> None:
    folder = bench.repository.parent
    monkeypatch.setenv("PATH", hanging_git(folder, verb, Bell(folder, watch.hang)))
    result = watch.run(bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), sandbox="none"), bench.task())
    assert_cancelled(bench, result, watch, step)
    assert_told(bench, result)
    if step == "deliver":
        assert result.impl_result is not None
        assert set(artifacts(result)) == {"diff", "test", "transcript", "log", "manifest"}


# --- generate


def silent(_request: Request, release: threading.Event) -> Answer:
    return Answer(200, completion(GOOD_ANSWER), wait=release)


def silent_in_the_middle(_request: Request, release: threading.Event) -> Answer:
    return streaming([chunk("calc.py\n"), release, chunk("never read")])


def asking_for_patience(_request: Request, release: threading.Event) -> Answer:
    del release
    return Answer(429, {"error": {"message": "later"}}, headers={"Retry-After": "200"})


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("answer", [silent, silent_in_the_middle, asking_for_patience])
def test_a_model_is_not_waited_for_any_longer(
    bench: Bench, watch: Stopwatch, release: threading.Event, answer: Any, candidates: int
) -> None:
    calls: list[Request] = []

    def script(request: Request) -> Answer:
        calls.append(request)
        if len(calls) == candidates:
            watch.hang()
        reply: Answer = answer(request, release)
        return reply

    with serving(script) as server:
        llm = LLMConfig(endpoint=f"{server.url}/v1", model="m", candidates=candidates)
        orchestrator = bench.orchestrator(LLMClient(llm), llm_config=llm)
        result = watch.run(orchestrator, bench.task())
        release.set()
    assert_cancelled(bench, result, watch, "generate")
    assert_told(bench, result)
    assert len(calls) == candidates
    transcript = json.loads(artifacts(result)["transcript"])
    assert [call["error"].partition(":")[0] for call in transcript["calls"]] == ["RunCancelledError"] * candidates


def test_a_model_that_cannot_be_connected_to_is_not_waited_for(bench: Bench, watch: Stopwatch) -> None:
    with full_backlog() as url:
        llm = LLMConfig(endpoint=f"{url}/v1", model="m")
        orchestrator = bench.orchestrator(LLMClient(llm), {"on_progress": begun(watch, "generate", after=1.5)})
        result = watch.run(orchestrator, bench.task())
    assert_cancelled(bench, result, watch, "generate")
    assert_told(bench, result)


def test_a_model_object_that_knows_of_no_cancellation_is_left_behind(
    bench: Bench, watch: Stopwatch, release: threading.Event
) -> None:
    def answer(_messages: Any) -> str:
        watch.hang()
        release.wait(60)
        return GOOD_ANSWER

    result = watch.run(bench.orchestrator(ScriptedLLM([answer])), bench.task())
    assert_cancelled(bench, result, watch, "generate")
    assert_told(bench, result)


def test_a_cancellation_between_two_answers_ends_the_run_and_keeps_the_work(bench: Bench) -> None:
    asked = Cancellation()

    def answer(_messages: Any) -> str:
        asked.request("Once is enough.")
        return USELESS_ANSWER

    model = ScriptedLLM([USELESS_ANSWER, answer, GOOD_ANSWER])
    result = bench.orchestrator(model, max_repair_rounds=2).run(bench.task(), cancellation=asked)
    assert (result.status, result.error, len(model.calls)) == ("cancelled", "Once is enough.", 2)
    assert result.impl_result is not None
    (mirror,) = bench.state_dir.glob("pool/*/mirror.git")
    assert git(mirror, "rev-parse", result.impl_result.ref) == result.impl_result.commit
    assert {"diff", "test", "transcript", "log", "manifest"} == set(artifacts(result))


# --- tests


@pytest.mark.parametrize("sandbox", ["none", "auto"])
@pytest.mark.parametrize("step", ["examine", "test"])
def test_tests_that_never_end_are_killed_with_all_their_processes(
    bench: Bench, watch: Stopwatch, release: threading.Event, sandbox: str, step: str
) -> None:
    # The inner one is in a session of its own, ignores what it can, and holds the output open.
    command = "trap '' TERM INT HUP; (trap '' TERM INT HUP; exec setsid sleep 98766) & sleep 98766; true"
    if sandbox == "none":
        command = command.replace("exec setsid", "exec")
    watcher = threading.Thread(target=hang_when_running, args=("sleep 98766", watch, release), daemon=True)
    watcher.start()
    orchestrator = bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), sandbox=sandbox, test_base=step == "examine")
    result = watch.run(orchestrator, bench.task(test_commands=[command]))
    release.set()
    watcher.join()
    assert_cancelled(bench, result, watch, step)
    assert_told(bench, result)
    assert (result.impl_result is not None) == (step == "test")
    orchestrator.close()


def hang_when_running(line: str, watch: Stopwatch, release: threading.Event) -> None:
    while line not in processes_left():
        if release.wait(0.02):
            return
    watch.hang()


def test_a_run_that_waits_for_anothers_tests_of_the_base_is_not_harmed_by_its_cancellation(
    bench: Bench, watch: Stopwatch, tmp_path: Path
) -> None:
    """The first run's tests of the base hang until it is cancelled; the second then makes them itself."""
    mark = tmp_path / "first"
    second_begins = threading.Event()
    bell = Bell(tmp_path, second_begins.set)
    command = f"if [ ! -e {mark} ]; then touch {mark}; echo >{bell.path}; sleep 98765; fi; true"
    task = bench.task(test_commands=[command])
    orchestrator = bench.orchestrator(
        ScriptedLLM([GOOD_ANSWER]), {"on_progress": lambda _: None}, test_base=True, sandbox="none"
    )
    results: list[RunnerResult] = []

    def second() -> None:
        second_begins.wait(60)
        waiting = bench.orchestrator(
            ScriptedLLM([GOOD_ANSWER]), {"on_progress": begun(watch, "examine", after=0.3)}, test_base=True,
            sandbox="none",
        )  # fmt: skip
        results.append(waiting.run(task.model_copy(update={"task_id": "2"})))

    other = threading.Thread(target=second)
    other.start()
    first = watch.run(orchestrator, task)
    other.join()
    assert_first = (first.status, results[0].status, results[0].test_result is not None)
    assert assert_first == ("cancelled", "done", True)
    assert results[0].test_result is not None
    assert results[0].test_result.verdict is not None


def test_a_brought_checkout_is_left_as_it_was(bench: Bench, watch: Stopwatch, tmp_path: Path) -> None:
    before = (git(bench.repository, "rev-parse", "HEAD"), git(bench.repository, "symbolic-ref", "HEAD"))
    bell = Bell(tmp_path, watch.hang)
    task = bench.task(slot_path=bench.repository, repo_url=None, test_commands=[f"echo >{bell.path}; sleep 98765"])
    result = watch.run(bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), sandbox="none"), task)
    assert_cancelled(bench, result, watch, "test")
    assert before == (git(bench.repository, "rev-parse", "HEAD"), git(bench.repository, "symbolic-ref", "HEAD"))
    assert git(bench.repository, "status", "--porcelain") == ""
    assert result.impl_result is not None
    assert git(bench.repository, "rev-parse", result.impl_result.ref) == result.impl_result.commit


@pytest.mark.parametrize("has_arrived", [True, False])
def test_a_push_that_is_cut_off_counts_if_it_has_arrived(bench: Bench, watch: Stopwatch, has_arrived: bool) -> None:
    bell = Bell(bench.repository.parent, watch.hang)
    hook = bench.repository / ".git" / "hooks" / ("post-receive" if has_arrived else "pre-receive")
    hook.write_text(f"#!/bin/sh\necho >{bell.path}\nexec sleep 98765\n")
    hook.chmod(0o755)
    result = watch.run(bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), sandbox="none"), bench.task())
    assert (result.status, BRANCH in bench.branches()) == (("done", True) if has_arrived else ("cancelled", False))
    assert bench.status() == result.status
    assert watch.seconds < SOON_SECONDS
    bench.assert_nothing_is_left()
