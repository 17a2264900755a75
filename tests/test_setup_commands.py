"""Runs whose tests need something installed: where it comes from, how long it is kept, and what becomes of failures."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import ScriptedLLM
from tests.support.bench import GOOD_ANSWER, SECRET, USELESS_ANSWER, Bench, artifacts
from tests.support.repositories import CALC_TEST_COMMAND, commit_files, git, make_repository

INSTALL = (
    "! grep -q broken requirements.txt && mkdir -p .deps && cp requirements.txt .deps/installed"
    " && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n' > .deps/stamp"
)
USE = "cmp requirements.txt .deps/installed && echo stamp=$(cat .deps/stamp)"
NEW_NEEDS = "requirements.txt\n```\nten==11\n```\n"
BROKEN_NEEDS = "requirements.txt\n```\nbroken\n```\n"
SETTLED = {"sandbox": "none", "detect_tests": False}


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    commit_files(repository, {"requirements.txt": "ten==10\n"})
    return Bench(repository, state_dir)


def run(bench: Bench, *answers: Any, task: dict[str, Any] | None = None, **settings: Any) -> Any:
    commands = {"setup_commands": [INSTALL], "test_commands": [USE, CALC_TEST_COMMAND]}
    task = {"task_id": f"t{len(list(bench.state_dir.glob('artifacts/**/*.log*')))}"} | commands | (task or {})
    return bench.run(*answers, task=bench.task(**task), **(SETTLED | settings))


def stamp(result: Any) -> str:
    assert result.success, result.error
    found = re.search(r"stamp=(\w{32})", result.test_result.commands[0].output)
    assert found is not None
    return found[1]


def setups(result: Any) -> int:
    """How often the commands were run."""
    return artifacts(result)["log"].count("set up what the tests need")


# --- where it comes from


@pytest.mark.parametrize("sandbox", ["none", "auto"])
def test_what_was_set_up_once_is_there_in_every_run_of_the_tests_and_in_later_runs(bench: Bench, sandbox: str) -> None:
    first = run(bench, USELESS_ANSWER, GOOD_ANSWER, sandbox=sandbox, test_base=True)
    assert (setups(first), len(first.rounds)) == (1, 2)
    commit_files(bench.repository, {"other.py": "x = 1\n"})
    second = run(bench, GOOD_ANSWER, sandbox=sandbox, task={"task_id": "2"})
    assert (setups(second), stamp(second)) == (0, stamp(first))
    assert git(bench.repository, "status", "--porcelain") == ""


def test_another_dependency_file_command_or_setting_is_another_set_up(bench: Bench) -> None:
    stamps = [stamp(run(bench, GOOD_ANSWER))]
    commit_files(bench.repository, {"sub/package-lock.json": "{}"})
    stamps.append(stamp(run(bench, GOOD_ANSWER, task={"task_id": "2"})))
    stamps.append(stamp(run(bench, GOOD_ANSWER, task={"task_id": "3", "setup_commands": [f"{INSTALL} && true"]})))
    stamps.append(stamp(run(bench, GOOD_ANSWER, task={"task_id": "4"}, test_environment={"A": "b"})))
    stamps.append(stamp(run(bench, GOOD_ANSWER, task={"task_id": "5"}, setup_files=("calc.*",))))
    assert len(set(stamps)) == len(stamps)
    assert stamp(run(bench, GOOD_ANSWER, task={"task_id": "6"})) == stamps[1]


def test_a_tree_without_a_dependency_file_shares_with_its_like_alone(tmp_path: Path, state_dir: Path) -> None:
    bench = Bench(make_repository(tmp_path / "repo"), state_dir)
    install = {"setup_commands": ["date +%N > made"], "test_commands": ["cat made"]}
    first = run(bench, GOOD_ANSWER, task=install)
    assert setups(run(bench, GOOD_ANSWER, task=install | {"task_id": "2"})) == 0
    commit_files(bench.repository, {"other.py": "x = 1\n"})
    assert setups(first) == setups(run(bench, GOOD_ANSWER, task=install | {"task_id": "3"})) == 1


def test_another_repository_or_base_shares_nothing(bench: Bench, tmp_path: Path) -> None:
    first = stamp(run(bench, GOOD_ANSWER))
    git(bench.repository, "branch", "theirs")
    assert stamp(run(bench, GOOD_ANSWER, task={"task_id": "2", "base_ref": "theirs"})) != first
    git(tmp_path, "clone", "--quiet", str(bench.repository), str(tmp_path / "other"))
    assert stamp(run(bench, GOOD_ANSWER, task={"task_id": "3", "repo_url": str(tmp_path / "other")})) != first


def test_a_brought_checkout_is_set_up_in_every_run(bench: Bench) -> None:
    bring = {"slot_path": bench.repository, "repo_url": None}
    first = run(bench, USELESS_ANSWER, GOOD_ANSWER, task=bring, push=False, test_base=True)
    git(bench.repository, "checkout", "--quiet", "main")
    second = run(bench, GOOD_ANSWER, task=bring | {"task_id": "2"}, push=False)
    assert setups(first) == setups(second) == 1
    assert stamp(first) != stamp(second)
    assert list((bench.state_dir / "setups").glob("draft-*")) == []


def test_a_playbook_may_name_the_commands(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "book.yaml").write_text(f"setup_commands: [{INSTALL!r}]\ntest_commands: [{USE!r}]\n")
    task = {"playbook_path": tmp_path / "book.yaml", "setup_commands": [], "test_commands": []}
    assert stamp(run(bench, GOOD_ANSWER, task=task))


def test_nothing_is_set_up_where_nothing_is_tested(bench: Bench) -> None:
    result = run(bench, GOOD_ANSWER, task={"test_commands": [], "setup_commands": ["false"]})
    assert (result.success, setups(result)) == (True, 0)


# --- changes


def test_a_change_of_the_dependencies_is_tested_with_its_own_and_poisons_nobody(bench: Bench) -> None:
    base = run(bench, GOOD_ANSWER)
    changed = run(bench, GOOD_ANSWER + NEW_NEEDS, task={"task_id": "2"}, test_base=True)
    assert (setups(changed), stamp(changed) != stamp(base)) == (1, True)
    assert stamp(run(bench, GOOD_ANSWER, task={"task_id": "3"})) == stamp(base)
    again = run(bench, GOOD_ANSWER + NEW_NEEDS, task={"task_id": "4"})
    assert stamp(again) not in {stamp(changed), stamp(base)}, "what a change installed is shown to no other run"
    assert len(list((bench.state_dir / "setups").glob("*/entry.json"))) == 1


def test_dependencies_that_cannot_be_installed_go_back_to_the_model(bench: Bench) -> None:
    llm = ScriptedLLM([GOOD_ANSWER + BROKEN_NEEDS, GOOD_ANSWER])
    task = bench.task(setup_commands=[f"{INSTALL} || {{ echo no such thing as broken; exit 3; }}"], test_commands=[USE])
    result = bench.orchestrator(llm, **SETTLED).run(task)
    assert result.success, result.error
    assert [one.outcome for one in result.rounds] == ["unusable", "accepted"]
    told = llm.calls[1][-1].content
    assert "can no longer be installed" in told
    assert "no such thing as broken" in told
    assert result.impl_result is not None
    assert result.impl_result.files == ("calc.py",)


def test_without_another_round_they_are_the_runs_error(bench: Bench) -> None:
    result = run(bench, GOOD_ANSWER + BROKEN_NEEDS, max_repair_rounds=0)
    assert result.error_details is not None
    assert (result.status, result.error_details.type) == ("failed", "ChangedSetupError")
    assert result.impl_result is not None, "the work is kept"


# --- failures before any change


def test_a_set_up_that_fails_on_the_base_is_no_failure_of_tests_and_costs_no_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", SECRET)
    command = f"seq 300\necho {SECRET}; echo no route to the index; exit 4"
    result = run(bench, GOOD_ANSWER, task={"setup_commands": [command]})
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("SetupError", "examine")
    assert "exited with 4: 300 | *** | no route to the index. Mend setup_commands" in str(result.error)
    assert "\n" not in str(result.error)
    assert "\n299\n300\n***\nno route" in artifacts(result)["log"]
    assert SECRET not in result.model_dump_json()
    assert (result.test_result, result.usage.calls) == (None, 0)
    assert list((bench.state_dir / "setups").glob("*/entry.json")) == []


def test_limits_hold_for_set_up_commands_too(bench: Bench) -> None:
    flood = run(bench, GOOD_ANSWER, task={"setup_commands": ["yes"]}, max_test_output_bytes=100_000)
    assert "was stopped at a limit (output-limit)" in str(flood.error)
    assert str(flood.error).endswith("| y. Raise max_test_output_bytes, or have setup_commands need less.")
    slow = run(bench, GOOD_ANSWER, task={"setup_commands": ["sleep 600"], "timeout_seconds": 3, "task_id": "2"})
    assert slow.status == "failed"


def test_of_runs_at_once_one_sets_up(bench: Bench) -> None:
    results: list[Any] = []
    orchestrator = bench.orchestrator(ScriptedLLM([GOOD_ANSWER] * 3), **SETTLED)

    def work(number: int) -> None:
        install = {"setup_commands": [f"{INSTALL} && sleep 0.3"], "test_commands": [USE]}
        results.append(orchestrator.run(bench.task(task_id=f"1.{number}", **install)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({stamp(result) for result in results}) == 1
    assert sum(map(setups, results)) == 1
