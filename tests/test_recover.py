"""Work is found again after every end of a run, and what a dead runner has left is put right at the next start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from necrocode.agent_runner import LocalRepoPool, RunnerConfig, RunnerOrchestrator, ScriptedLLM
from necrocode.agent_runner._clock import SYSTEM_CLOCK
from necrocode.agent_runner._git import Git
from necrocode.agent_runner.reconcile import reconcile
from necrocode.agent_runner.recovery import chosen_work, kept_work, mirrors, newest_patch, prune
from necrocode.agent_runner.sandbox.layer import open_layer, sweep_layers
from necrocode.agent_runner.wiring import build_services
from necrocode.cli import main
from tests.support.bench import BRANCH, GOOD_ANSWER, USELESS_ANSWER, Bench
from tests.support.repositories import FIXED_CALC, commit_files, files_at, git, make_repository


@pytest.fixture
def bench(repository: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(state_dir))
    return Bench(repository, state_dir)


def own_git(bench: Bench) -> Git:
    return Git(bench.state_dir / "git")


def pool_of(bench: Bench) -> Path:
    return bench.state_dir / "pool"


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["recover", *words])
    out, err = capsys.readouterr()
    return code, out, err


# --- finding and restoring


def test_every_answer_of_every_run_is_listed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    failed = bench.run(USELESS_ANSWER, USELESS_ANSWER.replace("0", "1"), max_repair_rounds=1)
    done = bench.run(GOOD_ANSWER)
    code, out, _ = command(capsys, "--json")
    works = json.loads(out)["work"]
    assert code == 0
    found = [(work["run_id"], work["answer"], work["branches"]) for work in works]
    assert sorted(found, key=lambda one: one[0] == done.run_id) == [
        (failed.run_id, 1, []), (failed.run_id, 2, []), (done.run_id, 1, [BRANCH]),
    ]  # fmt: skip
    assert {work["subject"] for work in works} == {"feat(task-1.1): Mend add"}
    assert all(work["ref"].startswith("refs/necrocode/runs/") for work in works)
    code, out, _ = command(capsys)
    assert (code, out.count("\n")) == (0, 6)
    assert f"on {BRANCH}" in out


@pytest.mark.usefixtures("bench")
def test_a_run_that_is_not_kept_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys) == (0, "no work is kept here\n", "")
    code, out, err = command(capsys, "nope")
    assert (code, out) == (2, "")
    assert "No work of the run 'nope' is kept here" in err


def test_with_a_pool_service_its_mirror_is_to_be_named(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bench.run(GOOD_ANSWER)
    (mirror,) = mirrors(pool_of(bench))
    monkeypatch.setenv("REPO_POOL_URL", "http://127.0.0.1:9")
    assert command(capsys)[1].startswith("no work is known here. The pool is a service")
    code, _, err = command(capsys, done.run_id)
    assert (code, "--repository" in err) == (2, True)
    assert command(capsys, done.run_id, "--repository", str(mirror))[0] == 0


def test_a_failed_runs_work_becomes_a_branch_where_it_is_wanted(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = bench.run(USELESS_ANSWER, max_repair_rounds=0)
    other = make_repository(tmp_path / "elsewhere", {"x": "y"})
    for target in (bench.repository, other):
        code, _, err = command(capsys, failed.run_id, "--branch", "rescued", "--repository", str(target))
        assert (code, err) == (0, "")
        assert b"return 0" in files_at(target, "rescued")["calc.py"]
    code, _, err = command(capsys, failed.run_id, "--branch", "rescued", "--repository", str(other))
    assert code == 2
    assert "has a branch 'rescued' already" in err


@pytest.mark.parametrize("name", ["--force", "a..b", "x.lock", "HEAD", "@{u}"])
def test_a_branch_of_an_impossible_name_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str], name: str) -> None:
    bench.run(USELESS_ANSWER, max_repair_rounds=0)
    (work,) = kept_work(own_git(bench), mirrors(pool_of(bench)))
    code, _, err = command(capsys, work.run_id, f"--branch={name}", "--repository", str(bench.repository))
    assert (code, "Cannot make the branch" in err) == (2, True)


def test_a_patch_is_written_once_and_applies(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = bench.run(GOOD_ANSWER)
    file = tmp_path / "rescued.patch"
    assert command(capsys, result.run_id, "--patch", str(file))[0] == 0
    git(bench.repository, "apply", str(file))
    assert (bench.repository / "calc.py").read_text() == FIXED_CALC
    code, _, err = command(capsys, result.run_id, "--patch", str(file))
    assert (code, "Cannot write" in err) == (2, True)


def test_a_brought_checkout_is_looked_in_when_it_is_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(repo_url=None, slot_path=bench.repository))
    assert json.loads(command(capsys, "--json")[1])["work"] == []
    _, out, _ = command(capsys, result.run_id, "--json", "--repository", str(bench.repository))
    assert [work["run_id"] for work in json.loads(out)["work"]] == [result.run_id]
    assert command(capsys, result.run_id, "--branch", "again", "--repository", str(bench.repository))[0] == 0
    assert git(bench.repository, "rev-parse", "again") == git(bench.repository, "rev-parse", BRANCH)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", "--branch", "b"], "No work of the run 'nothing' is kept here"),
        (["--branch", "b"], "need RUN_ID"),
        (["--prune-older-than", "0"], "must be from 1"),
        (["--repository", "/nowhere/at/all"], "There is no repository at /nowhere/at/all"),
        (["--repository", "/"], "Cannot read the repository /"),
    ],
)
def test_what_cannot_be_done_is_said(
    bench: Bench, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    code, _, err = command(capsys, *words)
    assert (bench.state_dir.exists(), code) == (True, 2)
    assert told in err


def test_kept_work_outlives_cleaned_slots_fetches_that_prune_and_smaller_pools(bench: Bench) -> None:
    first = bench.run(USELESS_ANSWER, max_repair_rounds=0)
    git(bench.repository, "branch", "gone")
    for number in range(2):
        bench.run(GOOD_ANSWER, task=bench.task(task_id=f"{number}", branch_name=f"b{number}"))
    git(bench.repository, "branch", "-D", "gone")
    commit_files(bench.repository, {"more": "x"})
    pool = LocalRepoPool(pool_of(bench), own_git(bench))
    slots = [pool.allocate_slot(str(bench.repository), "h") for _ in range(2)]
    for slot in slots:
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
    (shown,) = pool.pools_status()
    pool.resize_pool(shown.name, 1)
    pool.reconcile()
    (mirror,) = mirrors(pool_of(bench))
    git(mirror, "gc", "--quiet", "--prune=now")
    works = kept_work(own_git(bench), [mirror])
    assert len(works) == 3
    assert b"return 0" in newest_patch(own_git(bench), slots[0].slot_path, first.run_id)


def test_old_work_is_forgotten_only_when_asked_for(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(GOOD_ANSWER)
    assert command(capsys, "--prune-older-than", "1")[1] == "0 commits are kept no longer\n"
    works = kept_work(own_git(bench), mirrors(pool_of(bench)))
    assert prune(own_git(bench), works, datetime.now(UTC) + timedelta(days=1)) == 1
    assert kept_work(own_git(bench), mirrors(pool_of(bench))) == ()


def test_one_of_several_answers_can_be_chosen(bench: Bench) -> None:
    result = bench.run(USELESS_ANSWER, USELESS_ANSWER.replace("0", "1"), max_repair_rounds=1)
    works = kept_work(own_git(bench), mirrors(pool_of(bench)))
    assert chosen_work(works, result.run_id).answer == 2
    assert chosen_work(works, result.run_id, 1).answer == 1
    with pytest.raises(Exception, match="No work of answer 7 of the run"):
        chosen_work(works, result.run_id, 7)


# --- after a death

CHILD = """
import sys
from necrocode.agent_runner import RunnerConfig, RunnerOrchestrator, ScriptedLLM, TaskContext

state, repository, answer, command = sys.argv[1:]
task = TaskContext(task_id="1.1", spec_name="calc", title="Mend add", description="d", repo_url=repository,
                   test_commands=[command])
config = RunnerConfig(state_dir=state, test_base=False, sandbox="none")
RunnerOrchestrator(config, llm=ScriptedLLM([answer])).run(task)
"""


@contextmanager
def killed_in_its_tests(bench: Bench, mark: Path) -> Iterator[int]:
    """A runner that was killed while its tests ran; the number of the test process that is left."""
    test = f"echo $$ > {mark}.new; mv {mark}.new {mark}; cd /; exec sleep 600"
    command = [sys.executable, "-c", CHILD, str(bench.state_dir), str(bench.repository), GOOD_ANSWER, test]
    with subprocess.Popen(command) as runner:
        while runner.poll() is None and not mark.exists():
            os.sched_yield()
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    orphan = int(mark.read_text())
    try:
        yield orphan
    finally:
        if psutil.pid_exists(orphan):
            os.kill(orphan, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_new_runner_cleans_up_after_one_that_was_killed_in_its_tests(bench: Bench, tmp_path: Path) -> None:
    with killed_in_its_tests(bench, tmp_path / "mark") as orphan:
        (held,) = bench.slots()
        assert (held["state"], is_running(orphan)) == ("allocated", True)
        assert len(list((bench.state_dir / "layers").iterdir())) == 1
        runner = bench.orchestrator(ScriptedLLM([]))
        runner.flush_outbox()
        assert not is_running(orphan)
        assert list((bench.state_dir / "layers").iterdir()) == []
        (free,) = bench.slots()
        assert (free["state"], free["epoch"]) == ("available", held["epoch"])
        with bench.registry as registry:
            (record,) = registry.list_artifacts("1.1", spec_name="calc")
        assert record.type == "diff"
        assert b"+    return a + b" in Path(record.uri.removeprefix("file://")).read_bytes()
        assert list((bench.state_dir / "outbox").glob("*.spool")) == []
        assert runner.flush_outbox().delivered == 0
    assert [work.answer for work in kept_work(own_git(bench), mirrors(pool_of(bench)))] == [1]


@pytest.mark.parametrize("notices", ["flush", "run of another task"])
def test_a_runner_that_started_before_another_died_gives_back_its_slot_too(
    bench: Bench, tmp_path: Path, notices: str
) -> None:
    runner = bench.orchestrator(ScriptedLLM([GOOD_ANSWER]))
    runner.flush_outbox()
    with killed_in_its_tests(bench, tmp_path / "mark"):
        (held,) = bench.slots()
        if notices == "flush":
            runner.flush_outbox()
        else:
            assert runner.run(bench.task(task_id="2", test_commands=[])).success
        assert {slot["state"] for slot in bench.slots()} == {"available"}, held
    assert list((bench.state_dir / "outbox").glob("*.spool")) == []


def test_work_that_died_before_it_was_written_down_is_found_by_its_ref(bench: Bench, tmp_path: Path) -> None:
    with killed_in_its_tests(bench, tmp_path / "mark"):
        (spool,) = (bench.state_dir / "outbox").glob("*.spool")
        content = spool.read_bytes()
        cut = content.rfind(b"\nN1 ", 0, content.index(b'{"kind":"work"'))
        spool.write_bytes(content[: cut + 1])
        bench.orchestrator(ScriptedLLM([])).flush_outbox()
    with bench.registry as registry:
        assert [one.type for one in registry.list_artifacts("1.1", spec_name="calc")] == ["diff"]


def test_what_a_living_runner_holds_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    looked: list[Any] = []

    def answer(_messages: Any) -> str:
        with open_layer(bench.repository, bench.state_dir / "layers"):
            with RunnerOrchestrator(RunnerConfig(state_dir=bench.state_dir), llm=ScriptedLLM([])) as other:
                looked.append(other.flush_outbox())
            services = build_services(RunnerConfig(state_dir=bench.state_dir), SYSTEM_CLOCK)
            layers = bench.state_dir / "layers"
            looked.append(reconcile(services.outbox, services.repo_pool, layers, is_thorough=True))
            services.close()
            looked.append([slot["state"] for slot in bench.slots()])
        return GOOD_ANSWER

    result = bench.run(answer)
    assert (result.status, result.reported) == ("done", "yes")
    assert (looked[0].delivered, looked[1], looked[2]) == (0, [], ["allocated"])
    assert tmp_path.exists()


def test_the_slots_of_a_dead_holder_are_given_back_and_no_others(bench: Bench) -> None:
    pool = LocalRepoPool(pool_of(bench), own_git(bench))
    dead = [pool.allocate_slot(str(bench.repository), "dead") for _ in range(2)]
    living = pool.allocate_slot(str(bench.repository), "living")
    assert sorted(pool.release_abandoned("dead")) == sorted(slot.slot_id for slot in dead)
    assert pool.release_abandoned("dead") == []
    assert pool.get_slot(living.slot_id).holder == "living"
    assert {pool.get_slot(slot.slot_id).state for slot in dead} == {"available"}


def test_leftovers_in_pool_and_layers_are_removed_by_the_command(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(GOOD_ANSWER)
    (mirror,) = mirrors(pool_of(bench))
    lock, draft = mirror / "packed-refs.lock", mirror.parent / "mirror-00.tmp"
    lock.write_text("")
    draft.mkdir()
    dead, orphan = bench.state_dir / "layers/layer-dead", mirror.parent / "slots/unknown-slot-9"
    for folder in (dead, orphan):
        (folder / "upper").mkdir(parents=True)
    code, out, _ = command(capsys, "--reconcile")
    assert code == 0
    assert "layer-dead: removed" in out
    assert "unknown-slot-9: a folder of no slot, removed" in out
    assert not any(path.exists() for path in (lock, draft, dead, orphan))
    assert command(capsys, "--reconcile")[1] == "nothing was left\n"


def test_a_process_that_only_looks_like_one_of_a_layer_lives_on(tmp_path: Path) -> None:
    layer = tmp_path / "layer-dead"
    layer.mkdir()
    other = {**os.environ, "NECROCODE_REPORTS": f"{layer}-of-another/reports"}
    with subprocess.Popen(["sleep", "600"], env=other, cwd="/") as bystander:
        assert sweep_layers(tmp_path) == ["layer-dead: removed"]
        assert bystander.poll() is None
        bystander.kill()
