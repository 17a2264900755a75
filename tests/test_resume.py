"""Runs that are killed and go on: nothing is paid for twice, and one thing comes of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import (
    BudgetConfig,
    JournalError,
    LLMConfig,
    LocalTaskRegistry,
    ScriptedLLM,
    ServiceConnectionError,
    TruncatedAnswerError,
    _durable,
)
from necrocode.agent_runner._journal_file import Entry, JournalFile, line_of, read_journal
from tests.support.bench import BRANCH, GOOD_ANSWER, SECRET, USELESS_ANSWER
from tests.support.bench import Bench as RunBench
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.killed_runs import Start, in_processes
from tests.support.model_server import as_asked, completion
from tests.support.repositories import CALC_TEST_COMMAND, commit_files, git

ENTRIES = [
    "run", "claim", "workspace", "plan", "answer", "commit", "committed", "tests", "answer", "commit", "committed",
    "tests", "delivered", "result", "told", "ended",
]  # fmt: skip
AN_ANSWER_IS_ASKED_AGAIN = {4, 8}
"""Killed before these are written: the model has answered, and nobody knows."""


def mending(request: Request) -> Answer:
    """A useless answer to the first question, a good one to the repair round."""
    is_repair = len(request.json["messages"]) > 2
    return as_asked(request, completion(GOOD_ANSWER if is_repair else USELESS_ANSWER))


class Bench:
    """A repository, a model, and processes that work on one task in a state folder each."""

    def __init__(self, folder: Path, repository: Path, model: ScriptedServer) -> None:
        self.folder = folder
        self.repository = repository
        self.model = model
        self.count = 0

    def start(self, place: str, **changes: Any) -> Start:
        self.count += 1
        task = {
            "task_id": "1.1",
            "spec_name": place,
            "title": "Mend add",
            "description": "add() subtracts.",
            "repo_url": str(self.repository),
            "test_commands": ["grep -rq 'a + b' ."],
            **changes.pop("task", {}),
        }
        out = str(self.folder / f"out-{self.count}.json")
        return Start(str(self.folder / place), task, f"{self.model.url}/v1", out, **changes)

    def questions(self, place: str) -> int:
        """How often the model was asked for that task: its prompt names the repository's file alike for all."""
        return sum(f"[{place}]" in json.dumps(request.json) for request in self.model.requests)

    def kept_refs(self, place: str) -> list[str]:
        (mirror,) = (self.folder / place).glob("pool/*/mirror.git")
        return git(mirror, "for-each-ref", "--format=%(refname)", "refs/necrocode/runs").split()

    def told(self, place: str) -> tuple[str, int, list[str]]:
        """Status of the task, how often its end was told, and the types of its artifacts."""
        with LocalTaskRegistry(f"sqlite:///{self.folder / place / 'registry.db'}") as registry:
            status = registry.get_task("1.1", spec_name=place).status
            events = [one.event_type for one in registry.list_events("1.1", spec_name=place)]
            types = sorted(one.type for one in registry.list_artifacts("1.1", spec_name=place))
        return status, events.count("run_finished"), types

    def journal_ids(self, place: str) -> list[str]:
        return [path.parent.name for path in sorted((self.folder / place).glob("runs/*/journal"))]


@pytest.fixture
def bench(tmp_path: Path, repository: Path) -> Any:
    with serving(mending) as model:
        yield Bench(tmp_path, repository, model)


def test_a_whole_run_journals_each_step(bench: Bench) -> None:
    (told,) = in_processes([bench.start("whole")], bench.folder)
    assert told["kinds"] == ENTRIES
    assert told["result"]["success"]
    assert not told["result"]["resumed"]


def check_kills(bench: Bench, kills: list[tuple[int, bool]]) -> None:
    """Kill a run around each of these entries, let another process go on, and look at what came of it."""
    places = {f"{'before' if before else 'after'}-{number}": (number, before) for number, before in kills}
    starts = []
    for place, (number, before) in places.items():
        task = {"description": f"add() subtracts. [{place}]"}
        starts += [
            bench.start(place, task=task, kill_at=number, before=before),
            bench.start(place, task=task, resume="all" if number % 2 else None),
        ]
    told = in_processes(starts, bench.folder)
    for (place, (number, before)), killed, resumed in zip(places.items(), told[::2], told[1::2], strict=True):
        at_the_end = {"claim", "result", "told"}  # the end may be found anew until the outbox has it
        written = [kind for kind in killed["kinds"] + resumed["kinds"] if kind not in at_the_end]
        assert written == [kind for kind in ENTRIES if kind not in at_the_end], place
        assert killed["kinds"] == ENTRIES[: number + (not before)], place
        result = resumed["result"]
        assert result["success"], (place, result["error"])
        assert result["resumed"], place
        assert not [one for one in result["warnings"] if "journal" in one], place
        (run_id,) = bench.journal_ids(place)
        assert result["run_id"] == run_id, place
        paid_twice = before and number in AN_ANSWER_IS_ASKED_AGAIN
        assert bench.questions(place) == 2 + paid_twice, place
        assert result["usage"]["calls"] == 2, place
        assert bench.kept_refs(place) == [f"refs/necrocode/runs/{run_id}/{number}" for number in (1, 2)], place
        branch = f"feature/task-{place}-1.1-mend-add"
        assert git(bench.repository, "rev-parse", branch) == result["impl_result"]["commit"], place
        assert [one["outcome"] for one in result["rounds"]] == ["tests-failed", "accepted"], place
        assert bench.told(place) == ("done", 1, ["diff", "log", "manifest", "test", "transcript"]), place


def test_a_killed_run_goes_on_and_pays_for_no_journalled_answer_twice(bench: Bench) -> None:
    check_kills(bench, [(number, False) for number in (2, 3, 6, 11, 12, 13)] + [(11, True), (14, True)])


@pytest.mark.soak
def test_a_run_killed_around_any_entry_goes_on(bench: Bench) -> None:
    after = [(number, False) for number in range(len(ENTRIES) - 1)]
    check_kills(bench, after + [(number, True) for number in range(1, len(ENTRIES))])


class Down(LocalTaskRegistry):
    """A registry that cannot be reached."""

    def register_task(self, task: Any) -> None:  # noqa: ARG002
        raise ServiceConnectionError("down")


# --- in this process: what is in a journal, and what is made of it


class Stopped(BaseException):
    """A process that dies, as far as a run can tell."""


@pytest.fixture
def runs(repository: Path, state_dir: Path) -> Runs:
    return Runs(repository, state_dir)


class Runs(RunBench):
    """Runs that are cut off after an entry of their journal, as if the process had died there."""

    def interrupted(self, kind: str, *answers: Any, count: int = 1, **options: Any) -> Path:
        """The journal of a run that was cut off after ``count`` entries of a kind."""
        seen: list[str] = []
        append = JournalFile.append

        def append_or_stop(file: JournalFile, entry: Entry) -> None:
            if seen.count(kind) == count:
                return  # the dead write nothing
            append(file, entry)
            seen.append(entry.kind)
            if seen.count(kind) == count:
                os.close(file._descriptor)
                file._descriptor = os.memfd_create("dead")
                raise Stopped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JournalFile, "append", append_or_stop)
            with pytest.raises(Stopped):
                self.run(*answers, **options)
        return self.journal

    @property
    def journal(self) -> Path:
        (path,) = self.state_dir.glob("runs/*/journal")
        return path

    def kinds(self) -> list[str]:
        return [entry.kind for entry in read_journal(self.journal.read_bytes()).entries]


def test_a_run_that_ended_is_not_gone_on_with(runs: Runs) -> None:
    first = runs.run(GOOD_ANSWER)
    second = runs.run(GOOD_ANSWER)
    assert first.run_id != second.run_id
    assert not second.resumed
    with pytest.raises(JournalError, match="is done: there is nothing to go on with"):
        runs.orchestrator(ScriptedLLM([])).resume(first.run_id)


def test_an_unknown_run_and_a_name_that_is_a_path_are_told(runs: Runs) -> None:
    runner = runs.orchestrator(ScriptedLLM([]))
    with pytest.raises(JournalError, match="There is no journal of a run '20260101T000000Z-0000'"):
        runner.resume("20260101T000000Z-0000")
    for name in ("../../etc/passwd", "", "..", "a/b", "x" * 500):
        with pytest.raises(JournalError, match="There is no run"):
            runner.resume(name)


@pytest.mark.parametrize("kind", ["answer", "tests"])
def test_a_resumed_run_is_replayed_with_each_commit_under_the_claim_it_was_made_under(runs: Runs, kind: str) -> None:
    runs.interrupted(kind, USELESS_ANSWER, GOOD_ANSWER)
    resumed = runs.run(GOOD_ANSWER)
    assert resumed.success, resumed.error
    assert resumed.lease_epoch == 2
    found = runs.orchestrator(ScriptedLLM([])).replay(resumed.run_id)
    assert found.same, found.divergence
    assert found.notes == ()


def test_another_task_starts_afresh_and_the_interrupted_run_is_superseded(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    result = runs.run(GOOD_ANSWER, task=runs.task(description="add() must add."))
    assert result.success, result.error
    assert not result.resumed
    assert "superseded" in str(read_journal(journal.read_bytes()).entries[-1])
    assert runs.run(GOOD_ANSWER).run_id not in {result.run_id, journal.parent.name}


def test_a_run_that_never_began_supersedes_none(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    with Down(f"sqlite:///{runs.state_dir / 'down.db'}") as registry:
        changed = runs.task(description="add() must add.")
        assert not runs.run(GOOD_ANSWER, task=changed, services={"task_registry": registry}).success
    (result,) = runs.orchestrator(ScriptedLLM([])).resume_all()
    assert (result.run_id, result.success, result.resumed) == (journal.parent.name, True, True)


def test_tests_that_the_time_has_cut_off_are_run_again(runs: Runs) -> None:
    gate = runs.state_dir.parent / "gate"
    task = runs.task(test_commands=[f"test -e {gate} || sleep 600"], timeout_seconds=3)
    cut = runs.run(GOOD_ANSWER, task=task, sandbox="none")
    assert cut.error_details is not None
    assert (cut.error_details.type, cut.error_details.step) == ("RunnerTimeoutError", "test")
    runner = runs.orchestrator(ScriptedLLM([]), sandbox="none")
    found = runner.replay(cut.run_id)
    assert found.same, found.divergence
    gate.touch()
    result = runner.resume(cut.run_id)
    assert (result.status, result.resumed) == ("done", True), result.error
    assert runner.replay(cut.run_id).same


def test_a_superseded_run_can_still_be_gone_on_with_by_its_id(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    runs.run(USELESS_ANSWER, task=runs.task(description="add() must add."), max_repair_rounds=0)
    result = runs.orchestrator(ScriptedLLM([])).resume(journal.parent.name)
    assert (result.success, result.resumed) == (True, True)


def test_an_interrupted_run_whose_task_another_has_done_since_changes_nothing(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    runs.run(GOOD_ANSWER + "\n", task=runs.task(description="add() must add."))
    tip = git(runs.repository, "rev-parse", runs.task().branch)
    result = runs.orchestrator(ScriptedLLM([])).resume(journal.parent.name)
    assert (result.status, result.reported) == ("failed", "no")
    assert "another run has done its task since" in (result.error or "")
    assert git(runs.repository, "rev-parse", runs.task().branch) == tip
    assert not runs.orchestrator(ScriptedLLM([])).interrupted_runs()


def test_a_run_goes_on_in_its_own_slot_though_nothing_else_tells_that_it_died(runs: Runs) -> None:
    runs.interrupted("answer", GOOD_ANSWER, outbox_max_bytes=0, pool_size=1, slot_timeout_seconds=0)
    result = runs.run(outbox_max_bytes=0, pool_size=1, slot_timeout_seconds=0)
    assert (result.success, result.resumed) == (True, True), result.error


def test_the_base_stays_where_it_was_though_its_branch_has_moved(runs: Runs) -> None:
    runs.interrupted("answer", GOOD_ANSWER)
    base = git(runs.repository, "rev-parse", "main")
    commit_files(runs.repository, {"other.txt": "new\n"})
    result = runs.run()
    assert result.success, result.error
    assert git(runs.repository, "rev-parse", f"{BRANCH}^") == base


def test_a_base_that_is_gone_is_told_and_the_run_starts_anew(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    git(runs.repository, "commit", "--amend", "--quiet", "-m", "another history")
    git(runs.repository, "reflog", "expire", "--expire=now", "--all")
    git(runs.repository, "gc", "--quiet", "--prune=now")
    shutil.rmtree(runs.state_dir / "pool")
    result = runs.run(GOOD_ANSWER)
    assert result.success, result.error
    assert result.run_id == journal.parent.name
    assert any("its base commit" in warning and "is gone" in warning for warning in result.warnings)
    assert result.usage.calls == 2  # what was paid for, was


def test_changed_settings_ask_the_model_anew_and_say_so(runs: Runs) -> None:
    runs.interrupted("committed", USELESS_ANSWER)
    result = runs.run(GOOD_ANSWER, llm_config=LLMConfig(model="another"))
    assert result.success, result.error
    assert any("the model is asked anew from there" in warning for warning in result.warnings)
    refs = git(
        next(runs.state_dir.glob("pool/*/mirror.git")), "for-each-ref", "--format=%(refname)", "refs/necrocode/runs"
    )
    assert [ref.rpartition("/")[2] for ref in refs.split()] == ["1", "1-2"]


def test_a_budget_counts_what_was_spent_before_once(runs: Runs) -> None:
    budget = BudgetConfig(max_calls=2)
    runs.interrupted("answer", USELESS_ANSWER, GOOD_ANSWER, budget=budget, count=2)
    result = runs.run(budget=budget)
    assert result.success, result.error
    assert result.usage.calls == 2
    assert runs.run(GOOD_ANSWER, budget=budget).usage.calls == 1


def test_candidates_that_were_answered_are_not_asked_again(runs: Runs) -> None:
    llm = LLMConfig(candidates=3)
    runs.interrupted("commit", *[USELESS_ANSWER] * 2, GOOD_ANSWER, llm_config=llm)
    result = runs.run(llm_config=llm)
    assert result.success, result.error
    assert result.usage.calls == 3


def test_an_error_that_was_paid_for_is_not_asked_for_again(runs: Runs) -> None:
    cut = TruncatedAnswerError("cut")
    cut.prompt_tokens, cut.completion_tokens = 100, 50
    runs.interrupted("answer", cut)
    result = runs.run(GOOD_ANSWER)
    assert result.success, result.error
    assert [one.outcome for one in result.rounds] == ["unanswered", "accepted"]
    assert result.usage.calls == 2


def test_an_endpoint_that_was_down_is_asked_again(runs: Runs) -> None:
    runs.interrupted("answer", ServiceConnectionError("down"), max_repair_rounds=0)
    result = runs.run(GOOD_ANSWER, max_repair_rounds=0)
    assert result.success, result.error


def test_an_answer_with_a_secret_is_kept_masked_and_asked_for_again(runs: Runs) -> None:
    llm = LLMConfig(api_key=SECRET)
    journal = runs.interrupted("answer", f"{GOOD_ANSWER}\nthe key is {SECRET}", llm_config=llm)
    assert SECRET not in journal.read_text()
    result = runs.run(GOOD_ANSWER, llm_config=llm)
    assert result.success, result.error


def test_no_secret_of_task_settings_or_errors_is_in_a_journal(runs: Runs) -> None:
    llm = LLMConfig(api_key=SECRET, headers={"X-Token": f"{SECRET}-2"})
    task = runs.task(description=f"use {SECRET}", metadata={"key": SECRET}, test_commands=[f": {SECRET}"])
    error = TruncatedAnswerError(f"cut after {SECRET}")
    runs.run(error, GOOD_ANSWER, task=task, llm_config=llm, service_token=f"{SECRET}-3")
    content = runs.journal.read_text()
    assert SECRET not in content
    assert stat.S_IMODE(runs.journal.stat().st_mode) & 0o077 == 0


def test_a_task_with_a_secret_goes_on_when_it_is_run_again_and_not_by_its_id(runs: Runs) -> None:
    llm, task = LLMConfig(api_key=SECRET), runs.task(test_commands=[f": {SECRET}", CALC_TEST_COMMAND])
    journal = runs.interrupted("answer", GOOD_ANSWER, task=task, llm_config=llm)
    with pytest.raises(JournalError, match="holds a secret, which its journal does not"):
        runs.orchestrator(ScriptedLLM([]), llm_config=llm).resume(journal.parent.name)
    result = runs.run(task=task, llm_config=llm)
    assert (result.success, result.resumed) == (True, True), result.error


def test_a_brought_checkout_goes_on_from_its_base_and_gets_its_head_back(runs: Runs) -> None:
    task = runs.task(repo_url=None, slot_path=runs.repository, branch_name="work")
    runs.interrupted("tests", USELESS_ANSWER, task=task)
    git(runs.repository, "checkout", "--quiet", "--detach", "main~0")  # as a killed process leaves it
    result = runs.run("nothing that could be read", task=task, max_repair_rounds=1)
    assert not result.success
    assert result.resumed
    assert git(runs.repository, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_a_journal_that_cannot_be_written_is_told_and_the_run_goes_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def full_after_three(descriptor: int, content: bytes) -> None:
        written.append(content)
        if len(written) > 3:
            os.write(descriptor, content[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.write(descriptor, content)

    monkeypatch.setattr(_durable, "append", full_after_three)
    result = runs.run(USELESS_ANSWER, GOOD_ANSWER)
    assert result.success, result.error
    assert [warning for warning in result.warnings if "No space left on device" in warning]
    assert len([warning for warning in result.warnings if "journal" in warning]) == 1
    assert not read_journal(runs.journal.read_bytes()).is_torn


def test_without_a_folder_for_journals_a_run_says_so_and_goes_on(runs: Runs) -> None:
    runs.state_dir.mkdir()
    (runs.state_dir / "runs").write_text("in the way")
    result = runs.run(GOOD_ANSWER)
    assert result.success, result.error
    assert [warning for warning in result.warnings if "The run has no journal" in warning]


def test_a_run_that_did_not_begin_leaves_no_journal(runs: Runs) -> None:
    with Down(f"sqlite:///{runs.state_dir / 'down.db'}") as registry:
        assert not runs.run(GOOD_ANSWER, services={"task_registry": registry}).success
    assert not list((runs.state_dir / "runs").glob("*"))


def test_a_resumed_run_that_cannot_begin_stays_resumable(runs: Runs) -> None:
    runs.interrupted("answer", GOOD_ANSWER)
    with Down(f"sqlite:///{runs.state_dir / 'down.db'}") as registry:
        assert not runs.run(services={"task_registry": registry}).success
    assert runs.run().success


def test_a_run_under_way_is_not_gone_on_with(runs: Runs) -> None:
    found: list[Any] = []

    def answer(_messages: Any) -> str:
        other = runs.orchestrator(ScriptedLLM([GOOD_ANSWER]), pool_size=5)
        (run,) = other.interrupted_runs()
        found.append(run)
        with pytest.raises(JournalError, match="is under way in another process"):
            other.resume(run.run_id)
        found.append(other.run(runs.task()))
        return GOOD_ANSWER

    result = runs.run(answer)
    assert result.success, result.error
    assert found[0].is_running
    assert found[1].error_details.type == "TaskLeasedError"
    assert found[1].run_id != result.run_id
    assert len(list(runs.state_dir.glob("runs/*"))) == 1


def test_old_journals_are_swept_but_none_that_is_held(runs: Runs) -> None:
    runs.run(GOOD_ANSWER)
    old = runs.journal
    os.utime(old, (0, 0))

    def answer(_messages: Any) -> str:
        held = next(path for path in runs.state_dir.glob("runs/*/journal") if path != old)
        os.utime(held, (0, 0))
        runs.orchestrator(ScriptedLLM([])).interrupted_runs()
        assert held.exists()
        assert not old.parent.exists()
        return GOOD_ANSWER

    assert runs.orchestrator(ScriptedLLM([answer]), journal_keep_days=36_500).run(runs.task()).success


# --- damage


def test_a_torn_tail_is_cut_at_every_byte_of_it(runs: Runs) -> None:
    content = runs.interrupted("answer", GOOD_ANSWER).read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    whole = read_journal(content)
    for cut in range(start, len(content)):
        reading = read_journal(content[:cut])
        assert reading.entries == whole.entries[:-1]
        assert reading.is_torn == (cut > start)
        assert not reading.is_damaged
    runs.journal.write_bytes(content[:-5])
    result = runs.run(GOOD_ANSWER)
    assert result.success, result.error
    assert result.usage.calls == 1
    assert read_journal(runs.journal.read_bytes()).is_torn is False


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_lost_and_doubled_bytes_are_never_believed(data: st.DataObject) -> None:
    digest, lines = "", []
    for number in range(5):
        line, digest = line_of(Entry("answer", str(number), "b", {"text": "x" * number}), digest)
        lines.append(line)
    content = b"".join(lines)
    whole = read_journal(content).entries
    place = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(place, min(len(content), place + 90)))
    changed = content[:place] + data.draw(st.binary(max_size=90)) + content[end:]
    reading = read_journal(changed)
    assert reading.entries == whole[: len(reading.entries)]
    if not changed.startswith(content):
        assert len(reading.entries) < 5


@given(st.binary(max_size=500))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_without_an_error(content: bytes) -> None:
    assert read_journal(content).entries == ()


def test_a_damaged_middle_is_told_kept_aside_and_done_again(runs: Runs) -> None:
    journal = runs.interrupted("tests", GOOD_ANSWER)
    content = journal.read_bytes()
    place = content.index(b'"answer"')
    journal.write_bytes(content[:place] + b"?" + content[place + 1 :])
    result = runs.run(GOOD_ANSWER)
    assert result.success, result.error
    assert any("was damaged" in warning for warning in result.warnings)
    assert (journal.parent / "journal.damaged").read_bytes().startswith(content[:place])
    assert result.usage.calls == 1


def test_a_journal_damaged_from_its_beginning_cannot_be_resumed(runs: Runs) -> None:
    journal = runs.interrupted("answer", GOOD_ANSWER)
    journal.write_bytes(b"?" + journal.read_bytes())
    (found,) = runs.orchestrator(ScriptedLLM([])).interrupted_runs()
    assert (found.run_id, found.is_damaged, found.is_running) == (journal.parent.name, True, False)
    with pytest.raises(JournalError, match="damaged from its beginning"):
        runs.orchestrator(ScriptedLLM([])).resume(journal.parent.name)
    assert runs.run(GOOD_ANSWER).success


def test_no_other_file_gets_a_journals_mode(tmp_path: Path) -> None:
    """Not even where somebody has put another file on its descriptor's number."""
    file, other = JournalFile.opened(tmp_path / "journal", is_new=True), tmp_path / "other"
    assert file is not None
    other.touch(mode=0o644)
    with other.open() as opened:
        os.dup2(opened.fileno(), file._descriptor)
    file.mark_ended()
    file.mark_open()
    file.close()
    file.close()
    file.mark_ended()
    assert (other.stat().st_mode & 0o777, file.path.stat().st_mode & 0o777) == (0o644, 0o600)
