"""Replays: a run done again from its journal, with nothing but git objects at hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import JournalError, LLMConfig, RunnerConfig, RunnerOrchestrator, ScriptedLLM
from necrocode.agent_runner._journal_file import Entry, line_of, read_journal
from necrocode.agent_runner.generation import prompt
from necrocode.cli import main
from tests.support.bench import GOOD_ANSWER, USELESS_ANSWER, Bench
from tests.support.repositories import git


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


def journal_of(bench: Bench) -> Path:
    (path,) = bench.state_dir.glob("runs/*/journal")
    return path


def altered(path: Path, kind: str, **changes: Any) -> Path:
    """A copy of a journal, whole by its digests, with other data in its first entry of that kind."""
    lines, digest, is_done = [], "", False
    for entry in read_journal(path.read_bytes()).entries:
        if entry.kind == kind and not is_done:
            entry, is_done = Entry(entry.kind, entry.key, entry.basis, entry.data | changes), True  # noqa: PLW2901
        line, digest = line_of(entry, digest)
        lines.append(line)
    copy = path.with_name("altered")
    copy.write_bytes(b"".join(lines))
    return copy


def replayer(folder: Path) -> RunnerOrchestrator:
    """A runner of its own, with nothing in its state folder."""
    return RunnerOrchestrator(RunnerConfig(state_dir=folder))


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        ((GOOD_ANSWER,), {}),
        ((USELESS_ANSWER, GOOD_ANSWER), {"test_base": True}),
        ((USELESS_ANSWER, USELESS_ANSWER, GOOD_ANSWER), {"llm_config": LLMConfig(candidates=3)}),
        (("nothing to read", USELESS_ANSWER), {"max_repair_rounds": 1}),
        (("nothing to read",), {"max_repair_rounds": 0}),
    ],
    ids=["done", "repaired", "candidates", "failed", "unusable"],
)
def test_a_replay_comes_to_the_same(bench: Bench, answers: tuple[Any, ...], settings: dict[str, Any]) -> None:
    result = bench.run(*answers, **settings)
    found = bench.orchestrator(ScriptedLLM([])).replay(result.run_id)
    assert found.same, found.divergence
    assert found.run_id == result.run_id
    assert found.notes == ()


def test_a_journal_alone_is_replayed_with_a_clone_of_the_repository(bench: Bench, tmp_path: Path) -> None:
    bench.run(USELESS_ANSWER, GOOD_ANSWER, test_base=True)
    sent = tmp_path / "sent.journal"
    sent.write_bytes(journal_of(bench).read_bytes())
    clone = tmp_path / "clone"
    git(bench.repository, "clone", "--quiet", "--bare", ".", str(clone))
    refs = git(clone, "for-each-ref"), git(bench.repository, "for-each-ref")
    shutil.rmtree(bench.state_dir)
    bench.repository.rename(tmp_path / "elsewhere")
    found = replayer(tmp_path / "other-state").replay(sent, repository=clone)
    assert found.same, found.divergence
    assert (git(clone, "for-each-ref"), git(tmp_path / "elsewhere", "for-each-ref")) == refs
    assert not list((tmp_path / "other-state").glob("*"))


def test_a_replay_writes_nothing(bench: Bench) -> None:
    result = bench.run(USELESS_ANSWER, GOOD_ANSWER)

    def everything() -> dict[Path, bytes]:
        files = (path for place in (bench.state_dir, bench.repository) for path in place.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if not path.name.startswith("registry.db")}

    before = everything()
    bench.orchestrator(ScriptedLLM([])).replay(result.run_id)
    assert everything() == before


def test_another_prompt_is_the_first_divergence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench.run(USELESS_ANSWER, GOOD_ANSWER)
    messages = prompt.task_messages
    monkeypatch.setattr("necrocode.agent_runner.steps.generate.task_messages", lambda task, *rest, **more: messages(
        task.model_copy(update={"title": "Another"}), *rest, **more))  # fmt: skip
    found = bench.orchestrator(ScriptedLLM([])).replay(result.run_id)
    assert found.divergence is not None
    assert (found.divergence.kind, found.divergence.key) == ("answer", "1")
    assert found.divergence.recorded.startswith("message 2: ")


def test_another_commit_is_told_with_both_ids(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    found = bench.orchestrator(ScriptedLLM([])).replay(altered(journal_of(bench), "committed", commit="0" * 40))
    assert found.divergence is not None
    assert found.divergence.recorded == f"commit: {'0' * 40}"
    assert result.impl_result is not None
    assert found.divergence.now == f"commit: {result.impl_result.commit}"


def test_another_outcome_is_told(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    rounds = [one.model_dump() | {"outcome": "tests-failed"} for one in result.rounds]
    found = bench.orchestrator(ScriptedLLM([])).replay(altered(journal_of(bench), "result", rounds=rounds))
    assert found.divergence is not None
    assert "tests-failed" in found.divergence.recorded
    assert "accepted" in found.divergence.now


def test_a_run_that_would_now_go_on_has_diverged(bench: Bench) -> None:
    bench.run(USELESS_ANSWER, max_repair_rounds=0)
    header = read_journal(journal_of(bench).read_bytes()).header
    path = altered(journal_of(bench), "run", settings=header["settings"] | {"max_repair_rounds": 3})
    found = bench.orchestrator(ScriptedLLM([])).replay(path)
    assert found.divergence is not None
    assert (found.divergence.recorded, found.divergence.now) == (
        "the run ended: TestsFailed", "it goes on, with answer 2",
    )  # fmt: skip


def test_an_interrupted_run_is_replayed_as_far_as_it_goes(bench: Bench, tmp_path: Path) -> None:
    bench.run(USELESS_ANSWER, GOOD_ANSWER)
    lines = journal_of(bench).read_bytes().splitlines(keepends=True)
    for count in range(3, len(lines) + 1):
        cut = tmp_path / "cut"
        cut.write_bytes(b"".join(lines[:count]) + lines[count - 1][:9])
        found = bench.orchestrator(ScriptedLLM([])).replay(cut)
        assert found.same, found.divergence
        assert "cut short" in found.notes[0]


@pytest.mark.parametrize("content", [b"", b"\0" * 900, b"5 0123 {}\n", b"{}\n" * 3])
def test_what_is_no_journal_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "journal"
    file.write_bytes(content)
    with pytest.raises(JournalError, match="is no journal"):
        replayer(tmp_path / "state").replay(file)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("run", {"task": None}), ("run", {"task": {"title": 1}}), ("run", {"settings": {"pool_size": "x"}}),
        ("run", {"playbook": []}), ("workspace", {"base_commit": "--all"}), ("answer", {"answer": {"text": None}}),
        ("answer", {"answer": None}), ("plan", {"commands": 5}), ("tests", {"result": {"commands": 5}}),
        ("commit", {"message": 5}), ("result", {"rounds": 5}), ("result", {"rounds": [5]}),
    ],
)  # fmt: skip
def test_a_forged_journal_raises_nothing_but_its_own_error(bench: Bench, kind: str, changes: dict[str, Any]) -> None:
    bench.run(GOOD_ANSWER, test_base=True)
    path = altered(journal_of(bench), kind, **changes)
    try:
        found = bench.orchestrator(ScriptedLLM([])).replay(path)
    except JournalError:
        return
    assert not found.same or kind == "commit"


def test_without_the_base_commit_there_is_no_replay(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(GOOD_ANSWER)
    other = tmp_path / "other"
    git(bench.repository, "init", "--quiet", str(other))
    with pytest.raises(JournalError, match="is in none of the repositories here"):
        bench.orchestrator(ScriptedLLM([])).replay(result.run_id, repository=other)
    with pytest.raises(JournalError, match="There is no journal of a run"):
        bench.orchestrator(ScriptedLLM([])).replay("20260101T000000Z-00")


# --- the commands


def test_the_commands_list_resume_and_replay(
    bench: Bench, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(bench.state_dir))
    run_id = bench.run(GOOD_ANSWER).run_id
    assert main(["resume"]) == 0
    assert capsysbinary.readouterr().out == b"There are no interrupted runs.\n"
    assert main(["replay", run_id]) == 0
    assert capsysbinary.readouterr().out.startswith(f"the same: run {run_id}".encode())
    assert main(["replay", str(altered(journal_of(bench), "committed", commit="0" * 40)), "--json"]) == 1
    assert json.loads(capsysbinary.readouterr().out)["divergence"]["kind"] == "committed"
    assert main(["resume", "--all", "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out) == {"schema_version": 1, "runs": []}
    assert main(["replay", "nothing"]) == 2
    assert b"There is no journal of a run 'nothing'" in capsysbinary.readouterr().err
    assert main(["resume", run_id]) == 2
    assert b"is done" in capsysbinary.readouterr().err
    assert main(["resume", run_id, "--all", "--json"]) == 2
    assert json.loads(capsysbinary.readouterr().out)["error_details"]["type"] == "ConfigurationError"
    path = journal_of(bench)
    path.chmod(0o600)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))  # all but its end
    assert main(["resume", "--json"]) == 0
    (run,) = json.loads(capsysbinary.readouterr().out)["runs"]
    assert (run["run_id"], run["answers"], run["is_running"]) == (run_id, 1, False)
    assert main(["resume", "--all", "--quiet"]) == 0
    assert f"resumed    run {run_id}" in capsysbinary.readouterr().out.decode()
