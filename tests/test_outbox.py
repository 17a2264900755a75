"""Whole runs whose services fail at the end: nothing is lost, everything arrives in order, and once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    IllegalTransitionError,
    LocalArtifactStore,
    LocalTaskRegistry,
    RunnerConfig,
    RunnerOrchestrator,
    ScriptedLLM,
    ServiceConnectionError,
    StorageFullError,
    TaskContext,
    TaskRegistryClient,
)
from necrocode.agent_runner.outbox.folder import Outbox, OutboxRun
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
from tests.contracts.lost_answers import lose_answers
from tests.support.bench import BRANCH, GOOD_ANSWER, SECRET, Bench
from tests.support.failing import Failing, down
from tests.support.served import served
from tests.support.serving import necrocode_serve

STORY = [
    "run_started", "slot_allocated", "implementation_started", "implementation_completed", "branch_delivered",
    "run_finished",
]  # fmt: skip
WRITES = ("add_event", "add_artifact", "update_task_status")


class Quick(Bench):
    """Runs without tests: what there is to tell is the same."""

    def task(self, **changes: Any) -> TaskContext:
        return super().task(**{"test_commands": [], **changes})

    def orchestrator(self, llm: Any, services: dict[str, Any] | None = None, **settings: Any) -> RunnerOrchestrator:
        return super().orchestrator(llm, services, **{"detect_tests": False, **settings})


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Quick(repository, state_dir)


def outbox(bench: Bench) -> Outbox:
    return Outbox(bench.state_dir / "outbox", 256_000_000)


def kept(bench: Bench) -> tuple[OutboxRun, ...]:
    return outbox(bench).runs()


def spools(bench: Bench) -> list[Path]:
    return sorted((bench.state_dir / "outbox").glob("**/*.spool"))


def records(bench: Bench) -> list[str]:
    with bench.registry as registry:
        return sorted(one.type for one in registry.list_artifacts("1.1", spec_name="calc"))


def metadata(bench: Bench) -> dict[str, Any]:
    with bench.registry as registry:
        return registry.get_task("1.1", spec_name="calc").metadata


def store(bench: Bench) -> LocalArtifactStore:
    return LocalArtifactStore(bench.state_dir / "artifacts")


class Recording:
    """A registry that notes what it was told, and with which key."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.calls: list[tuple[str, str, str | None]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in WRITES:
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments[1], options.get("idempotency_key")))
            return method(*arguments, **options)

        return call


def after_the_run_began(bench: Bench, *methods: str) -> Failing:
    """A registry that cannot be reached any more once it has heard that the task runs."""
    return Failing(bench.registry, down, *methods, after=1)


# --- the good case


def test_a_run_that_could_tell_everything_leaves_nothing_behind(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    assert (result.reported, kept(bench), spools(bench)) == ("yes", (), [])


def test_the_end_carries_what_was_uploaded_and_comes_last(bench: Bench) -> None:
    registry = Recording(bench.registry)
    result = bench.run(GOOD_ANSWER, services={"task_registry": registry})
    told = metadata(bench)
    assert told["artifact_count"] == 4
    assert {(one["type"], one["uri"], one["sha256"], one["size_bytes"]) for one in told["artifacts"]} == {
        (one.type, one.uri, one.sha256, one.size_bytes) for one in result.artifacts
    }
    names = [name for name, _, _ in registry.calls]
    assert names[-6:] == ["add_artifact"] * 4 + ["add_event", "update_task_status"]
    keys = [key for _, _, key in registry.calls[1:]]
    assert len(set(keys)) == len(keys)
    assert all(key is not None and key.startswith(result.run_id) for key in keys)


def test_what_is_kept_is_for_this_user_alone_and_holds_no_secret(bench: Bench) -> None:
    task = bench.task(description=f"Use {SECRET} for it.")
    result = bench.run(
        GOOD_ANSWER, task=task, services={"task_registry": after_the_run_began(bench, *WRITES)}, service_token=SECRET
    )
    (file,) = spools(bench)
    assert result.reported == "pending"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert SECRET.encode() not in file.read_bytes()


# --- services that are down at the end


def test_a_registry_that_is_down_at_the_end_is_told_by_the_flush_in_order_and_once(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, services={"task_registry": after_the_run_began(bench, *WRITES)})
    assert (result.status, result.reported) == ("done", "pending")
    assert bench.status() == "running"
    (waiting,) = kept(bench)
    assert (waiting.run_id, waiting.task_id, waiting.spec_name, waiting.state) == (
        result.run_id, "1.1", "calc", "waiting",
    )  # fmt: skip
    assert [entry.kind for entry in waiting.entries] == ["record"] * 4 + ["event"] * 6 + ["status"]
    registry = Recording(bench.registry)
    flushed = bench.orchestrator(ScriptedLLM([]), {"task_registry": registry}).flush_outbox()
    assert (flushed.delivered, flushed.waiting, flushed.rejected, flushed.troubles) == (11, 0, 0, ())
    assert [name for name, _, _ in registry.calls] == ["add_artifact"] * 4 + ["add_event"] * 6 + ["update_task_status"]
    assert (bench.status(), bench.events(), records(bench)) == (
        "done",
        STORY,
        ["diff", "log", "manifest", "transcript"],
    )
    assert bench.orchestrator(ScriptedLLM([])).flush_outbox().delivered == 0
    assert spools(bench) == []


def test_the_same_keys_are_used_however_often_it_is_tried(bench: Bench) -> None:
    first, second = Recording(after_the_run_began(bench, *WRITES)), Recording(Failing(bench.registry, down, *WRITES))
    bench.run("rubbish", max_repair_rounds=0, services={"task_registry": first})
    report = bench.orchestrator(ScriptedLLM([]), {"task_registry": second}).flush_outbox()
    assert report.waiting > 0
    assert "Failed to connect" in report.troubles[0]
    third = Recording(bench.registry)
    bench.orchestrator(ScriptedLLM([]), {"task_registry": third}).flush_outbox()
    assert {key for _, _, key in second.calls} < {key for _, _, key in third.calls}
    assert bench.status() == "failed"


def test_the_next_run_sends_what_the_last_one_could_not(bench: Bench) -> None:
    registry = after_the_run_began(bench, *WRITES)
    first = bench.run(GOOD_ANSWER, services={"task_registry": registry})
    second = bench.run(GOOD_ANSWER, task=bench.task(task_id="2"))
    assert (first.reported, second.reported, bench.status(), spools(bench)) == ("pending", "yes", "done", [])


def test_before_a_task_is_run_again_the_registry_hears_how_it_ended_before(bench: Bench) -> None:
    bench.run("rubbish", max_repair_rounds=0, services={"task_registry": after_the_run_began(bench, *WRITES)})
    registry = Recording(bench.registry)
    assert bench.run(GOOD_ANSWER, services={"task_registry": registry}).reported == "yes"
    states = [told for name, told, _ in registry.calls if name == "update_task_status"]
    assert states == ["failed", "running", "done"]


def test_an_end_that_cannot_be_told_before_the_task_runs_again_is_given_up_and_shown(bench: Bench) -> None:
    """Told afterwards it would end the new run."""
    bench.run(
        "rubbish", max_repair_rounds=0, runner_id="r", services={"task_registry": after_the_run_began(bench, *WRITES)}
    )
    events_down = Failing(bench.registry, down, "add_event")
    second = bench.run(GOOD_ANSWER, runner_id="r", services={"task_registry": events_down})
    assert second.reported == "pending"
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert bench.status() == "done"
    (rejected,) = kept(bench)
    assert (rejected.state, rejected.entries[-1].kind) == ("rejected", "status")
    assert "A later run of the task" in str(rejected.entries[-1].reason)


def test_a_store_that_is_down_at_the_end_gets_its_bytes_later_and_the_end_waits_for_it(bench: Bench) -> None:
    broken = Failing(store(bench), down, "upload", after=1)
    result = bench.run(GOOD_ANSWER, services={"artifact_store": broken})
    assert (result.status, result.reported, [one.type for one in result.artifacts]) == ("done", "pending", ["diff"])
    assert "The transcript artifact was not stored: Failed to connect" in result.warnings[1]
    assert "kept, and sent later" in result.warnings[1]
    assert "final status 'done': it waits for the artifacts, which are sent first. Failed to" in result.warnings[-1]
    assert (bench.status(), records(bench)) == ("running", [])
    assert bench.orchestrator(ScriptedLLM([])).flush_outbox().waiting == 0
    assert (bench.status(), records(bench)) == ("done", ["diff", "log", "manifest", "transcript"])
    told = {one["type"]: one for one in metadata(bench)["artifacts"]}
    assert len(json.loads(store(bench).download(told["transcript"]["uri"]))["calls"]) == 1
    assert len(list(store(bench).walk())) == 4


def test_a_full_store_is_tried_again_later(bench: Bench) -> None:
    full = Failing(store(bench), lambda: StorageFullError("no room", status_code=507), "upload")
    assert bench.run(GOOD_ANSWER, services={"artifact_store": full}).reported == "pending"
    assert bench.orchestrator(ScriptedLLM([])).flush_outbox().waiting == 0
    assert bench.status() == "done"


def test_a_registry_process_that_is_gone_at_the_end_and_comes_back(bench: Bench, tmp_path: Path) -> None:
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--data-dir", str(tmp_path / "data")) as first:
        url = first.urls["task-registry"]

        def answer(_messages: Any) -> str:
            first.stop(signal.SIGKILL)
            return GOOD_ANSWER

        settings = {"task_registry_url": url, "network_retry_count": 0}
        result = bench.run(answer, **settings)
    assert (result.status, result.reported) == ("done", "pending")
    assert BRANCH in bench.branches()
    port = url.rpartition(":")[2]
    with necrocode_serve(tmp_path, "task-registry", "--port", port, "--data-dir", str(tmp_path / "data")):
        for _ in range(2):
            bench.orchestrator(ScriptedLLM([]), **settings).flush_outbox()
        with TaskRegistryClient(url) as registry:
            assert registry.get_task("1.1", spec_name="calc").status == "done"
            assert [one.event_type for one in registry.list_events("1.1", spec_name="calc")] == STORY
            assert len(registry.list_artifacts("1.1", spec_name="calc")) == 4
    assert kept(bench) == ()


def test_what_arrived_although_its_answer_was_lost_is_there_once(bench: Bench, tmp_path: Path) -> None:
    with (
        LocalTaskRegistry(f"sqlite:///{tmp_path / 'r.db'}") as inner,
        served(create_app(task_registry_service(inner))) as url,
        TaskRegistryClient(url, network_retry_count=0) as client,
    ):

        def answer(_messages: Any) -> str:
            lose_answers(client, 1000)
            return GOOD_ANSWER

        result = bench.run(answer, services={"task_registry": client})
        assert result.reported == "pending"
        with TaskRegistryClient(url) as healed:
            bench.orchestrator(ScriptedLLM([]), {"task_registry": healed}).flush_outbox()
        assert [one.event_type for one in inner.list_events("1.1", spec_name="calc")] == STORY
        assert len(inner.list_artifacts("1.1", spec_name="calc")) == 4
        assert inner.get_task("1.1", spec_name="calc").status == "done"


def test_a_registry_without_keys_and_epochs_is_told_all_the_same(bench: Bench) -> None:
    told: list[str] = []

    class Plain:
        def register_task(self, task: Any) -> None:
            told.append(task.task_id)

        def update_task_status(self, *given: Any, spec_name: Any = None) -> None:
            told.append(f"{given[1]} of {spec_name}")

        def add_event(self, *given: Any, spec_name: Any = None) -> None:
            told.append(f"{given[1]} of {spec_name}")

        def add_artifact(self, *given: Any, spec_name: Any = None) -> None:
            told.append(f"{given[1]} of {spec_name}")

    assert bench.run(GOOD_ANSWER, services={"task_registry": Plain()}).reported == "yes"
    assert told[-2:] == ["run_finished of calc", "done of calc"]


def test_an_end_is_not_given_up_for_a_run_that_could_not_begin(bench: Bench) -> None:
    bench.run("rubbish", max_repair_rounds=0, services={"task_registry": after_the_run_began(bench, *WRITES)})
    for methods in (("register_task", *WRITES), WRITES):
        second = bench.run(GOOD_ANSWER, services={"task_registry": Failing(bench.registry, down, *methods)})
        assert (second.status, second.reported) == ("failed", "no")
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert (bench.status(), kept(bench)) == ("failed", ())


# --- what is refused for good


def test_what_is_refused_for_good_is_shown_with_its_reason_and_blocks_nobody(bench: Bench) -> None:
    def stale() -> IllegalTransitionError:
        return IllegalTransitionError("the task is not running", status_code=409)

    refusing = Failing(bench.registry, stale, *WRITES, after=2)
    first = bench.run(GOOD_ANSWER, services={"task_registry": refusing})
    assert (first.status, first.reported) == ("done", "no")
    assert any(
        "does not have the final status 'done': the task is not running" in warning for warning in first.warnings
    )
    second = bench.run(GOOD_ANSWER, task=bench.task(task_id="2"))
    assert second.reported == "yes"
    (rejected,) = kept(bench)
    assert (rejected.run_id, rejected.state) == (first.run_id, "rejected")
    assert {entry.reason for entry in rejected.entries} == {"the task is not running"}
    assert len(store(bench).find().items) == 8
    outbox(bench).drop(first.run_id)
    assert kept(bench) == ()


def test_what_was_refused_can_be_sent_once_more(bench: Bench) -> None:
    refusing = Failing(bench.registry, lambda: IllegalTransitionError("no", status_code=409), *WRITES, after=1)
    first = bench.run(GOOD_ANSWER, services={"task_registry": refusing})
    outbox(bench).take_back(first.run_id)
    report = bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert (report.waiting, report.rejected, kept(bench)) == (0, 0, ())
    assert (bench.status(), bench.events(), len(records(bench))) == ("done", STORY, 4)


def test_a_defect_of_a_callers_store_keeps_the_end_from_nothing(bench: Bench) -> None:
    broken = Failing(store(bench), ZeroDivisionError, "upload")
    result = bench.run(GOOD_ANSWER, services={"artifact_store": broken})
    assert (result.status, result.reported, result.artifacts) == ("done", "yes", ())
    (rejected,) = kept(bench)
    assert {entry.kind for entry in rejected.entries} == {"upload", "record", "manifest"}
    outbox(bench).take_back(result.run_id)
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert len(records(bench)) == 4


def test_dropping_what_is_not_there_says_so(bench: Bench) -> None:
    for run_id in ("nothing", "../../etc/passwd", ""):
        with pytest.raises(Exception, match="holds nothing"):
            outbox(bench).drop(run_id)
        with pytest.raises(Exception, match="was refused"):
            outbox(bench).take_back(run_id)


# --- two at once, and deaths


def test_two_that_flush_at_once_deliver_everything_once(bench: Bench) -> None:
    for number in range(4):
        registry = after_the_run_began(bench, *WRITES)
        bench.run(GOOD_ANSWER, task=bench.task(task_id=f"{number}"), services={"task_registry": registry})
        for file in spools(bench):  # not yet for the next of these runs to send
            file.rename(bench.state_dir / file.name)
    for file in bench.state_dir.glob("*.spool"):
        file.rename(bench.state_dir / "outbox" / file.name)
    registry = Recording(bench.registry)
    runners = [bench.orchestrator(ScriptedLLM([]), {"task_registry": registry}) for _ in range(3)]
    threads = [threading.Thread(target=runner.flush_outbox) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [key for _, _, key in registry.calls]
    assert (len(keys), len(set(keys)), spools(bench)) == (44, 44, [])


CHILD = """
import os, signal, sys
from necrocode.agent_runner import LocalTaskRegistry, RunnerConfig, RunnerOrchestrator, ScriptedLLM, TaskContext
from necrocode.agent_runner.journal import Journal

class Killing(LocalTaskRegistry):
    def update_task_status(self, task_id, status, *arguments, **options):
        if status == "done" and sys.argv[4] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().update_task_status(task_id, status, *arguments, **options)
        if status == "done":
            os.kill(os.getpid(), signal.SIGKILL)

state, repository, answer = sys.argv[1:4]
record = Journal.record
if sys.argv[4] == "untold":
    Journal.record = lambda self, kind, *given, **data: (
        os.kill(os.getpid(), signal.SIGKILL) if kind == "told" else record(self, kind, *given, **data)
    )
task = TaskContext(task_id="1.1", spec_name="calc", title="Mend add", description="d", repo_url=repository)
runner = RunnerOrchestrator(
    RunnerConfig(state_dir=state, test_base=False, detect_tests=False), llm=ScriptedLLM([answer]),
    task_registry=Killing(f"sqlite:///{state}/registry.db"),
)
runner.run(task)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_runner_killed_while_it_reports_has_lost_nothing_and_doubled_nothing(bench: Bench, moment: str) -> None:
    command = [sys.executable, "-c", CHILD, str(bench.state_dir), str(bench.repository), GOOD_ANSWER, moment]
    killed = subprocess.run(command, check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert bench.status() == ("running" if moment == "before" else "done")
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert (bench.status(), records(bench), spools(bench)) == ("done", ["diff", "log", "manifest", "transcript"], [])
    assert bench.events() == STORY


@pytest.mark.parametrize(("answer", "status"), [(GOOD_ANSWER, "done"), ("I would rather not.", "failed")])
def test_an_end_that_another_process_has_told_is_not_told_twice(bench: Bench, answer: str, status: str) -> None:
    command = [sys.executable, "-c", CHILD, str(bench.state_dir), str(bench.repository), answer, "untold"]
    assert subprocess.run(command, check=False, env=os.environ).returncode == -signal.SIGKILL
    (file,) = spools(bench)
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    told = bench.events()
    result = bench.orchestrator(ScriptedLLM([])).resume(file.stem)
    assert (result.status, result.reported, result.resumed) == (status, "yes", True)
    assert (bench.events(), bench.status(), spools(bench)) == (told, status, [])
    assert bench.orchestrator(ScriptedLLM([])).interrupted_runs() == ()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_whose_spool_is_damaged_tells_its_end_from_its_journal(bench: Bench, moment: str) -> None:
    command = [sys.executable, "-c", CHILD, str(bench.state_dir), str(bench.repository), GOOD_ANSWER, moment]
    subprocess.run(command, check=False, env=os.environ)
    (file,) = spools(bench)
    content = file.read_bytes()
    middle = content.index(b'"kind":"upload"')
    file.write_bytes(content[:middle] + b"X" + content[middle + 1 :])
    result = bench.orchestrator(ScriptedLLM([])).resume(file.stem)
    assert (result.status, result.reported, result.resumed) == ("done", "yes", True)
    assert bench.status() == "done"
    assert [one.state for one in kept(bench)] == ["damaged"]
    if moment == "after":
        assert any("was damaged" in one for one in result.warnings)
    assert {"diff", "log", "manifest", "transcript"} <= set(records(bench))


def test_a_torn_spool_is_cut_and_a_damaged_one_put_aside_and_neither_blocks_others(bench: Bench) -> None:
    files: list[Path] = []
    for number in range(3):
        registry = after_the_run_began(bench, *WRITES)
        bench.run(GOOD_ANSWER, task=bench.task(task_id=f"{number}"), services={"task_registry": registry})
        files += [file.rename(bench.state_dir / file.name) for file in spools(bench)]
    torn, damaged, whole = files
    torn.write_bytes(torn.read_bytes()[:-200])
    content = damaged.read_bytes()
    middle = content.index(b'"run_finished"')
    damaged.write_bytes(content[:middle] + b"?" + content[middle + 1 :])
    for file in (torn, damaged, whole):
        file.rename(bench.state_dir / "outbox" / file.name)
    (bench.state_dir / "outbox" / "rubbish.spool").write_bytes(b"rubbish")
    assert bench.orchestrator(ScriptedLLM([])).flush_outbox().waiting == 0
    with bench.registry as registry:
        states = [registry.get_task(f"{number}", spec_name="calc").status for number in range(3)]
    assert states == ["done", "running", "done"]
    assert [(run.run_id, run.state) for run in kept(bench)] == [(damaged.stem, "damaged")]


# --- no room


def test_a_folder_that_cannot_be_used_is_a_warning_and_the_report_is_sent_all_the_same(bench: Bench) -> None:
    bench.state_dir.mkdir()
    (bench.state_dir / "outbox").write_text("in the way")
    result = bench.run(GOOD_ANSWER)
    assert (result.status, result.reported) == ("done", "yes")
    assert any("The outbox cannot keep all" in warning for warning in result.warnings)
    assert bench.events() == STORY


def test_without_an_outbox_what_cannot_be_sent_is_said_to_be_lost(bench: Bench) -> None:
    registry = after_the_run_began(bench, *WRITES)
    result = bench.run(GOOD_ANSWER, services={"task_registry": registry}, outbox_max_bytes=0)
    assert result.reported == "no"
    assert any("It is lost" in warning for warning in result.warnings)
    assert not (bench.state_dir / "outbox").exists()


def test_a_full_outbox_keeps_what_is_small_and_says_what_it_could_not_keep(bench: Bench) -> None:
    broken = Failing(store(bench), down, "upload")
    result = bench.run(
        GOOD_ANSWER, services={"artifact_store": broken}, outbox_max_bytes=5_000, llm_config={"model": "m"}
    )
    assert result.reported == "pending"
    assert any("outbox_max_bytes" in warning for warning in result.warnings)
    assert any(
        "transcript artifact was not stored" in warning and "It is lost" in warning for warning in result.warnings
    )
    bench.orchestrator(ScriptedLLM([])).flush_outbox()
    assert bench.status() == "done"
    assert metadata(bench)["artifact_count"] == 0


# --- waiting


def test_a_service_that_hangs_holds_no_run_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.outbox.background.LONGEST_WAIT_SECONDS", 0.05)
    bench.run(GOOD_ANSWER, services={"task_registry": after_the_run_began(bench, *WRITES)})
    let_go = threading.Event()

    class Hanging(LocalTaskRegistry):
        def add_artifact(self, task_id: str, *arguments: Any, **options: Any) -> None:
            if task_id == "1.1":
                let_go.wait(30)
            super().add_artifact(task_id, *arguments, **options)

    registry = Hanging(f"sqlite:///{bench.state_dir / 'registry.db'}")
    runner = bench.orchestrator(ScriptedLLM([GOOD_ANSWER]), {"task_registry": registry})
    result = runner.run(bench.task(task_id="2"))
    assert (result.status, result.reported, len(spools(bench))) == ("done", "yes", 1)
    let_go.set()
    runner.close()
    registry.close()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        if "outbox" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


def test_a_run_waits_for_the_disk_only_a_few_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    bench.run(GOOD_ANSWER)
    assert len(calls) == 3


def test_the_service_connection_error_of_the_flush_is_told(bench: Bench) -> None:
    bench.run(GOOD_ANSWER, services={"task_registry": after_the_run_began(bench, *WRITES)})
    config = RunnerConfig(state_dir=bench.state_dir, task_registry_url="http://127.0.0.1:9", network_retry_count=0)
    with RunnerOrchestrator(config, llm=ScriptedLLM([])) as runner:
        report = runner.flush_outbox()
    assert (report.delivered, report.waiting) == (0, 11)
    assert "Failed to connect to http://127.0.0.1:9" in report.troubles[0]
    assert isinstance(down(), ServiceConnectionError)
