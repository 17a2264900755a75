"""A run that is asked to stop at its end, one of several runs, and runs whose time is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    Cancellation,
    LocalArtifactStore,
    LocalTaskRegistry,
    RunnerResult,
    ScriptedLLM,
    _bounded,
)
from tests.support.bench import GOOD_ANSWER, Bench, artifacts
from tests.support.cancelling import (
    SOON_SECONDS,
    Bell,
    Stopwatch,
    assert_cancelled,
    hanging_git,
    note_processes,
    processes_left,
)
from tests.support.http_server import Answer, Request, serving


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


# --- the end


def test_a_delivered_run_stays_done_and_a_store_that_hangs_does_not_keep_it(
    bench: Bench, watch: Stopwatch, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounded, "CLEAN_UP_SECONDS", 0.5)

    def script(request: Request) -> Answer:
        if request.method == "GET":
            return Answer(200, {"status": "ok"})
        watch.hang()
        return Answer(200, wait=release)

    with serving(script) as server:
        result = watch.run(bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), artifact_store_url=server.url), bench.task())
        release.set()
    assert (result.status, result.reported, watch.seconds < SOON_SECONDS) == ("done", "pending", True)
    assert any("artifact was not stored" in warning for warning in result.warnings)


def test_a_registry_that_hangs_at_the_end_keeps_no_cancelled_run_for_long(
    bench: Bench, watch: Stopwatch, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounded, "CLEAN_UP_SECONDS", 0.5)

    def script(request: Request) -> Answer:
        if watch.hangs.is_set():
            return Answer(200, wait=release)
        return Answer(200, {}) if request.method != "GET" else Answer(200, {"status": "ok", "capabilities": []})

    def answer(_messages: Any) -> str:
        watch.hang()
        release.wait(60)
        return GOOD_ANSWER

    with serving(script) as server:
        result = watch.run(bench.orchestrator(ScriptedLLM([answer]), task_registry_url=server.url), bench.task())
        release.set()
    assert_cancelled(bench, result, watch, "generate")
    assert result.reported == "pending"
    assert set(artifacts(result)) == {"log", "transcript", "manifest"}
    bench.assert_nothing_is_left()


def test_a_store_object_that_hangs_is_left_behind_and_the_end_is_told_later(
    bench: Bench, watch: Stopwatch, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounded, "CLEAN_UP_SECONDS", 0.5)

    class Stuck(LocalArtifactStore):
        def upload(self, *arguments: Any, **options: Any) -> str:
            watch.hang()
            release.wait(60)
            return super().upload(*arguments, **options)

    store = Stuck(bench.state_dir / "artifacts")
    result = watch.run(bench.orchestrator(ScriptedLLM(["no change"]), {"artifact_store": store}), bench.task())
    assert (result.status, result.reported, watch.seconds < SOON_SECONDS) == ("failed", "pending", True)
    release.set()
    with bench.orchestrator(ScriptedLLM([])) as later:
        later.flush_outbox()
    assert bench.status() == "failed"


def test_a_cancellation_during_the_last_report_comes_too_late(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, tell = Cancellation(), LocalTaskRegistry.update_task_status

    def told(self: Any, task_id: str, status: str, *arguments: Any, **options: Any) -> None:
        if status == "done":
            asked.request("Too late.")
        tell(self, task_id, status, *arguments, **options)

    monkeypatch.setattr(LocalTaskRegistry, "update_task_status", told)
    result = bench.orchestrator(ScriptedLLM([GOOD_ANSWER])).run(bench.task(), cancellation=asked)
    assert (result.status, result.error, result.reported, bench.status()) == ("done", None, "yes", "done")


# --- which runs


def test_one_of_several_runs_is_cancelled_by_its_task_and_the_others_go_on(bench: Bench) -> None:
    both_ask, release = threading.Barrier(3), threading.Event()

    def answer(_messages: Any) -> str:
        both_ask.wait(60)
        release.wait(60)
        return GOOD_ANSWER

    orchestrator = bench.orchestrator(ScriptedLLM([answer, answer]))
    results: dict[str, RunnerResult] = {}

    def run(task_id: str) -> None:
        results[task_id] = orchestrator.run(bench.task(task_id=task_id))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("1", "2")]
    for thread in threads:
        thread.start()
    both_ask.wait(60)
    assert orchestrator.cancel(task_id="3") == ()
    assert orchestrator.cancel(task_id="1", spec_name="other") == ()
    (run_id,) = orchestrator.cancel(task_id="1", spec_name="calc")
    threads[0].join()
    assert orchestrator.cancel(run_id) == ()
    release.set()
    threads[1].join()
    assert {name: one.status for name, one in results.items()} == {"1": "cancelled", "2": "done"}
    assert results["1"].run_id == run_id


def test_the_first_reason_counts_and_secrets_in_it_are_masked(bench: Bench) -> None:
    asked = Cancellation()

    def answer(_messages: Any) -> str:
        asked.request("Bearer sk-abcdefghijklmnopqrstuvwxyz0123456789 asked.")
        asked.request("Another one.")
        return GOOD_ANSWER

    result = bench.orchestrator(ScriptedLLM([answer])).run(bench.task(), cancellation=asked)
    assert result.status == "cancelled"
    assert result.error is not None
    assert "sk-abc" not in result.model_dump_json()
    assert "sk-abc" not in artifacts(result)["log"]


# --- the deadline takes the same way


@pytest.mark.parametrize(
    ("step", "verb"), [("allocate", "fetch"), ("allocate", "reset"), ("apply", "fast-import"), ("deliver", "push")]
)
def test_at_the_deadline_git_is_killed_and_the_work_kept(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, verb: str
) -> None:
    note_processes()
    monkeypatch.setenv("PATH", hanging_git(tmp_path, verb, Bell(tmp_path, lambda: None)))
    task = bench.task(timeout_seconds=3, test_commands=["true"])
    result = bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), sandbox="none").run(task)
    assert result.error_details is not None
    assert (result.status, result.error_details.type) == ("failed", "RunnerTimeoutError")
    assert result.error_details.step == step
    assert result.duration_seconds < 3 + SOON_SECONDS
    assert processes_left() == []
    assert bench.status() == "failed"
    bench.assert_nothing_is_left()


def test_at_the_deadline_services_and_models_are_not_waited_for(bench: Bench, release: threading.Event) -> None:
    def script(request: Request) -> Answer:
        return Answer(200, {"status": "ok"}) if request.path.endswith("/health") else Answer(200, wait=release)

    def answer(_messages: Any) -> str:
        release.wait(60)
        return GOOD_ANSWER

    with serving(script) as server:
        for settings, step in (({"repo_pool_url": server.url}, "allocate"), ({}, "generate")):
            result = bench.orchestrator(ScriptedLLM([answer]), **settings).run(bench.task(timeout_seconds=1.5))
            assert result.error_details is not None
            assert (result.error_details.type, result.error_details.step) == ("RunnerTimeoutError", step)
            assert result.duration_seconds < 1.5 + SOON_SECONDS
        release.set()
