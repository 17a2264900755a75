"""Whole runs on embedded services: every way in which one can end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    LLMConfig,
    LocalArtifactStore,
    LocalRepoPool,
    LocalTaskRegistry,
    Message,
    ModelAnswer,
    Progress,
    RunInterrupted,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    ServiceConnectionError,
    SlotAllocationError,
)
from necrocode.agent_runner._git import Git
from tests.support.bench import BRANCH, GOOD_ANSWER, SECRET, USELESS_ANSWER, Bench, artifacts
from tests.support.failing import Failing, down
from tests.support.repositories import (
    BROKEN_CALC,
    CALC_TEST,
    CALC_TEST_COMMAND,
    FIXED_CALC,
    commit_files,
    files_at,
    git,
    make_repository,
)


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


# --- a run that goes well


def test_a_task_becomes_a_tested_commit_on_a_branch(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    assert (result.success, result.status, result.error, result.reported, result.warnings) == (
        True, "done", None, "yes", (),
    )  # fmt: skip
    assert files_at(bench.repository, BRANCH) == {"calc.py": FIXED_CALC.encode(), "test_calc.py": CALC_TEST.encode()}
    assert git(bench.repository, "log", "-1", "--format=%s|%an|%ae|%cn|%ce", BRANCH) == (
        "feat(task-1.1): Mend add|necrocode|necrocode@localhost|necrocode|necrocode@localhost"
    )
    assert git(bench.repository, "rev-parse", f"{BRANCH}^") == git(bench.repository, "rev-parse", "main")
    assert result.push_result is not None
    assert result.push_result.pushed
    assert result.test_result is not None
    assert result.test_result.success
    assert result.test_result.tree == git(bench.repository, "rev-parse", f"{BRANCH}^{{tree}}")
    assert bench.status() == "done"
    bench.assert_nothing_is_left()


def test_the_steps_are_timed_and_shown_in_order(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, test_base=True)
    order = ["prepare", "allocate", "examine", "generate", "apply", "test", "deliver", "upload", "report"]
    assert list(result.timings) == order
    assert [progress.step for progress in bench.progress if progress.seconds is None] == order
    assert sum(result.timings.values()) <= result.duration_seconds


def test_artifacts_tell_the_whole_story(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    stored = artifacts(result)
    assert set(stored) == {"diff", "test", "transcript", "log", "manifest"}
    assert "-    return a - b\n+    return a + b\n" in stored["diff"]
    assert json.loads(stored["test"])["success"] is True
    (call,) = json.loads(stored["transcript"])["calls"]
    assert call["answer"]["text"] == GOOD_ANSWER
    assert "add() subtracts." in call["messages"][1]["content"]
    assert f"$ {CALC_TEST_COMMAND}" in stored["log"]
    with bench.registry as registry:
        recorded = registry.list_artifacts("1.1", spec_name="calc")
    assert {(one.type, one.uri, one.size_bytes) for one in recorded} == {
        (one.type, one.uri, one.size_bytes) for one in result.artifacts
    }


def test_the_diff_artifact_applies_to_the_base(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    git(bench.repository, "apply", "--check", "-", stdin=artifacts(result)["diff"].encode())


def test_the_registry_has_the_story_in_order(bench: Bench) -> None:
    bench.run(GOOD_ANSWER)
    assert bench.events() == [
        "run_started", "slot_allocated", "implementation_started", "implementation_completed", "tests_completed",
        "branch_delivered", "run_finished",
    ]  # fmt: skip


def test_the_result_survives_a_round_trip_through_json(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER)
    assert RunnerResult.model_validate_json(result.model_dump_json()) == result
    assert json.loads(result.model_dump_json())["schema_version"] == 1


def test_a_second_run_replaces_the_first_and_counts_as_an_attempt(bench: Bench) -> None:
    first, second = bench.run(GOOD_ANSWER), bench.run(GOOD_ANSWER)
    assert second.success
    assert first.run_id != second.run_id
    with bench.registry as registry:
        assert registry.get_task("1.1", spec_name="calc").attempt == 2
    assert len(bench.slots()) == 1


def test_the_commit_holds_exactly_the_declared_changes(bench: Bench) -> None:
    command = "echo junk > junk.txt && rm test_calc.py && echo '# edited' >> calc.py"
    result = bench.run(GOOD_ANSWER, task=bench.task(test_commands=[command, "test -f junk.txt"]))
    assert result.success
    assert set(files_at(bench.repository, BRANCH)) == {"calc.py", "test_calc.py"}


def test_author_and_message_can_be_chosen(bench: Bench) -> None:
    result = bench.run(
        GOOD_ANSWER,
        commit_author_name="山田 太郎",
        commit_author_email="taro@example.com",
        commit_message="{spec_name}/{task_id}: {title}\n\n{description}",
    )
    lineage = git(bench.repository, "log", "-1", "--format=%(trailers:key=Necrocode-Lineage,valueonly)", BRANCH)
    assert git(bench.repository, "log", "-1", "--format=%an <%ae>|%B", BRANCH) == (
        "山田 太郎 <taro@example.com>|calc/1.1: Mend add\n\nadd() subtracts.\n\n"
        f"Necrocode-Run: {result.run_id}\nNecrocode-Epoch: 1\nNecrocode-Lineage: {lineage}"
    )
    assert re.fullmatch("[0-9a-f]{16}", lineage)


def test_without_push_the_branch_stays_in_the_slots_repository(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, push=False)
    assert result.push_result is not None
    assert not result.push_result.pushed
    assert bench.branches() == ["main"]
    assert git(Path(result.push_result.repository), "rev-parse", BRANCH) == result.push_result.commit


def test_a_japanese_title_gives_a_readable_branch(bench: Bench) -> None:
    bench.run(GOOD_ANSWER, task=bench.task(title="データベーススキーマの実装"))
    assert "feature/task-calc-1.1-データベーススキーマの実装" in bench.branches()


def test_a_task_without_test_commands_is_delivered_untested(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(test_commands=[]), detect_tests=False)
    assert result.success
    assert result.test_result is None
    assert "nothing was tested" in artifacts(result)["log"]


def test_a_task_that_names_no_tests_gets_those_of_the_project(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(test_commands=[]), test_base=True)
    assert (result.success, result.warnings) == (True, ())
    assert result.test_result is not None
    assert [command.command for command in result.test_result.commands] == ["python -m unittest"]
    assert result.test_result.detected
    assert result.test_result.verdict is not None
    assert result.test_result.verdict.fixed.names == ("test_calc.AddTest.test_add",)


def test_base_ref_names_where_to_start(bench: Bench) -> None:
    git(bench.repository, "checkout", "--quiet", "-b", "release")
    release = commit_files(bench.repository, {"release.txt": "1"})
    git(bench.repository, "checkout", "--quiet", "main")
    bench.run(GOOD_ANSWER, task=bench.task(base_ref="release"))
    assert git(bench.repository, "rev-parse", f"{BRANCH}^") == release


def test_a_playbook_adds_instructions_and_tests(bench: Bench, tmp_path: Path) -> None:
    playbook = tmp_path / "playbook.yaml"
    playbook.write_text(f"instructions: Use four spaces.\ntest_commands: ['{CALC_TEST_COMMAND}']\n")
    llm = ScriptedLLM([GOOD_ANSWER])
    result = bench.orchestrator(llm).run(bench.task(test_commands=[], playbook_path=playbook))
    assert result.test_result is not None
    assert "Use four spaces." in llm.calls[0][1].content


def test_json_and_text_are_asked_for_as_configured(bench: Bench) -> None:
    for edit_format, phrase in (("files", "File: "), ("auto", "File: "), ("json", "one JSON object")):
        llm = ScriptedLLM([GOOD_ANSWER])
        bench.orchestrator(llm, llm_config=LLMConfig(edit_format=edit_format)).run(bench.task())
        assert phrase in llm.calls[0][0].content


def test_eight_tasks_at_once_share_the_pool_and_all_end_delivered(bench: Bench) -> None:
    orchestrator = bench.orchestrator(ScriptedLLM([GOOD_ANSWER] * 8), pool_size=3)
    results: list[RunnerResult] = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(orchestrator.run(bench.task(task_id=f"2.{n}"))))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.error for result in results] == [None] * 8
    assert len(bench.branches()) == 9
    assert len(bench.slots()) == 3
    bench.assert_nothing_is_left()


# --- a checkout that the caller brings


def test_a_brought_checkout_is_used_and_ends_on_the_branch(bench: Bench) -> None:
    (bench.repository / "untracked.txt").write_text("mine")
    task = bench.task(repo_url=None, slot_path=bench.repository, slot_id="slot-1", branch_name="feature/x")
    result = bench.run(GOOD_ANSWER, task=task)
    assert result.success
    assert git(bench.repository, "rev-parse", "--abbrev-ref", "HEAD") == "feature/x"
    assert (bench.repository / "calc.py").read_text() == FIXED_CALC
    assert (bench.repository / "untracked.txt").read_text() == "mine"
    assert not list(bench.state_dir.glob("pool/*"))


def test_a_brought_checkout_is_put_back_when_the_tests_fail(bench: Bench) -> None:
    result = bench.run(USELESS_ANSWER, task=bench.task(repo_url=None, slot_path=bench.repository))
    assert result.status == "failed"
    assert git(bench.repository, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert (bench.repository / "calc.py").read_text() == BROKEN_CALC
    assert git(bench.repository, "status", "--porcelain") == ""


def test_a_brought_checkout_pushes_to_its_origin(bench: Bench, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(bench.repository), "clone")
    result = bench.run(GOOD_ANSWER, task=bench.task(repo_url=None, slot_path=tmp_path / "clone"))
    assert result.push_result is not None
    assert result.push_result.repository == str(bench.repository)
    assert BRANCH in bench.branches()


def test_a_brought_checkout_with_uncommitted_work_is_refused_untouched(bench: Bench) -> None:
    (bench.repository / "calc.py").write_text("work in progress")
    result = bench.run(GOOD_ANSWER, task=bench.task(repo_url=None, slot_path=bench.repository))
    assert "uncommitted changes" in str(result.error)
    assert (bench.repository / "calc.py").read_text() == "work in progress"


def test_a_slot_path_that_is_no_checkout_is_refused(bench: Bench, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "does not exist"), (tmp_path, "not the top of a git checkout")):
        result = bench.run(GOOD_ANSWER, task=bench.task(repo_url=None, slot_path=path))
        assert reason in str(result.error)
        assert bench.status() == "failed"


def test_a_brought_checkout_is_put_back_when_the_push_fails(bench: Bench, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(bench.repository), "clone")
    git(tmp_path / "clone", "remote", "set-url", "origin", str(tmp_path / "gone"))
    task = bench.task(repo_url=None, slot_path=tmp_path / "clone")
    for _ in range(2):  # the second attempt finds everything as the first one did
        result = bench.run(GOOD_ANSWER, task=task)
        assert result.error_details is not None
        assert result.error_details.type == "PushError"
        assert git(tmp_path / "clone", "rev-parse", "--abbrev-ref", "HEAD") == "main"
        assert git(tmp_path / "clone", "status", "--porcelain") == ""


@pytest.mark.parametrize("commands", [[], ["true"]])
def test_a_brought_checkout_may_be_on_the_branch_itself(bench: Bench, commands: list[str]) -> None:
    task = bench.task(repo_url=None, slot_path=bench.repository, branch_name="main", test_commands=commands)
    result = bench.run(GOOD_ANSWER, task=task)
    assert (result.status, result.error) == ("done", None)
    assert git(bench.repository, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert (bench.repository / "calc.py").read_text() == FIXED_CALC
    assert git(bench.repository, "status", "--porcelain") == ""


@pytest.mark.parametrize("commands", [[], ["false"]])
def test_ignored_files_of_a_brought_checkout_are_kept(bench: Bench, commands: list[str]) -> None:
    commit_files(bench.repository, {".gitignore": "new.txt\n"})
    (bench.repository / "new.txt").write_text("mine")
    task = bench.task(repo_url=None, slot_path=bench.repository, test_commands=commands)
    result = bench.run("new.txt\n```\nthe model's\n```\n", task=task)
    assert result.status == "failed"
    assert "new.txt" in str(result.error)
    assert (bench.repository / "new.txt").read_text() == "mine"
    assert git(bench.repository, "rev-parse", "--abbrev-ref", "HEAD") == "main"


@pytest.mark.parametrize("commands", [[], ["true"]])
def test_an_untracked_file_in_the_way_is_named_and_kept(bench: Bench, commands: list[str]) -> None:
    (bench.repository / "new.txt").write_text("mine")
    task = bench.task(repo_url=None, slot_path=bench.repository, test_commands=commands)
    result = bench.run("new.txt\n```\nthe model's\n```\n", task=task, detect_tests=False)
    assert result.error_details is not None
    assert result.error_details.type == ("TestExecutionError" if commands else "PushError")
    assert "new.txt" in result.error_details.message
    assert result.error_details.hint
    assert (bench.repository / "new.txt").read_text() == "mine"


# --- what a caller passes in


def test_a_display_that_fails_is_left_out_and_the_run_goes_on(bench: Bench) -> None:
    def broken(_progress: Progress) -> None:
        raise BrokenPipeError("nobody is looking")

    result = bench.run(GOOD_ANSWER, services={"on_progress": broken})
    assert (result.status, result.reported) == ("done", "yes")
    assert [warning for warning in result.warnings if "display" in warning] == [
        "The progress display failed and was left out from then on: BrokenPipeError: nobody is looking"
    ]


def test_a_defect_of_an_object_passed_in_is_told_with_its_step(bench: Bench) -> None:
    def defect(_messages: Sequence[Message]) -> str:
        raise KeyError("x")

    result = bench.run(defect)
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("InternalError", "generate")


def test_the_end_is_reported_when_an_upload_breaks_in_an_unforeseen_way(bench: Bench) -> None:
    class Broken(LocalArtifactStore):
        def upload(self, *_arguments: Any, **_more: Any) -> str:
            raise ZeroDivisionError

    result = bench.run(GOOD_ANSWER, services={"artifact_store": Broken(bench.state_dir / "artifacts")})
    assert (result.status, result.error, result.reported) == ("done", None, "yes")
    assert any("Unexpected ZeroDivisionError" in warning for warning in result.warnings)
    assert bench.status() == "done"


def test_related_files_that_are_not_there_are_warned_about(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(related_files=["calc.py", "nothere.md"]))
    assert result.success
    assert result.warnings == ("The repository has no file nothere.md, which related_files names.",)


def test_a_repository_with_a_name_that_is_no_text_can_be_worked_on(bench: Bench) -> None:
    (bench.repository / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    commit_files(bench.repository, {})
    result = bench.run(GOOD_ANSWER)
    assert (result.status, result.reported) == ("done", "yes")


def test_no_secret_is_committed_as_the_name_of_a_renamed_file(bench: Bench) -> None:
    answer = json.dumps({"changes": [{"operation": "rename", "file_path": "calc.py", "new_path": f"{SECRET}.py"}]})
    result = bench.run(answer, llm_config=LLMConfig(api_key=SECRET))
    assert result.error_details is not None
    assert result.error_details.type == "ChangeRejectedError"
    assert SECRET not in result.model_dump_json()


def test_a_model_that_echoes_the_key_is_masked_wherever_it_is_told(bench: Bench) -> None:
    answer = ModelAnswer(text=f"I used {SECRET}.\n\n{GOOD_ANSWER}", model=f"model {SECRET}")
    result = bench.run(answer, llm_config=LLMConfig(api_key=SECRET))
    assert result.success
    assert SECRET not in f"{result.model_dump_json()}{bench.progress}{bench.events_with_data()}"


def test_a_key_of_the_environment_is_masked_as_it_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    result = bench.run(f"calc.py\n```python\nKEY = '{SECRET}'\n```\n")
    assert result.error_details is not None
    assert result.error_details.type == "ChangeRejectedError"


def test_a_defect_is_logged_without_secrets(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def defect(_messages: Sequence[Message]) -> str:
        raise KeyError(SECRET)

    bench.run(defect, llm_config=LLMConfig(api_key=SECRET))
    assert "KeyError" in caplog.text
    assert SECRET not in caplog.text


def test_a_diff_with_what_looks_like_a_secret_is_whole_and_told(bench: Bench) -> None:
    result = bench.run(f"{GOOD_ANSWER}\nconf.py\n```python\nURL = 'https://me:hunter22@host'\n```\n")
    assert result.success
    assert any("looks like a secret" in warning for warning in result.warnings)


SETTINGS = (
    'URL = "postgresql://app:hunter22@db/app"\nTOKEN = "ghp_0123456789012345678901234567890123456789"\nDEBUG = True\n'
)


def test_secrets_of_a_file_are_hidden_from_the_model_and_kept_in_the_file(bench: Bench) -> None:
    commit_files(bench.repository, {"settings.py": SETTINGS})
    asked: list[str] = []

    def answer(messages: Sequence[Message]) -> str:
        asked.append(messages[-1].content)
        shown = asked[0].partition("File: settings.py\n```\n")[2].partition("```")[0]
        return f"settings.py\n```python\n{shown.replace('True', 'False')}```\n"

    task = bench.task(description="In settings.py set DEBUG to False.", test_commands=["true"])
    result = bench.run(answer, task=task)
    assert result.success, result.error
    assert files_at(bench.repository, result.branch)["settings.py"] == SETTINGS.replace("True", "False").encode()
    assert "hunter22" not in asked[0]
    assert "ghp_" not in asked[0]
    assert "Names such as REDACTED_SECRET_1 stand for secrets" in asked[0]


def test_a_file_that_holds_a_secret_of_the_runner_can_be_edited_and_the_result_says_so(bench: Bench) -> None:
    commit_files(bench.repository, {"settings.py": f'KEY = "{SECRET}"\nDEBUG = True\n'})
    task = bench.task(description="In settings.py set DEBUG to False.", test_commands=["true"])
    answer = './settings.py\n```python\nKEY = "REDACTED_SECRET_1"\nDEBUG = False\n```\n'
    result = bench.run(answer, task=task, llm_config=LLMConfig(api_key=SECRET))
    assert result.success, result.error
    assert files_at(bench.repository, result.branch)["settings.py"] == f'KEY = "{SECRET}"\nDEBUG = False\n'.encode()
    assert any("settings.py holds a secret of this runner" in warning for warning in result.warnings)


def test_a_secret_is_not_moved_to_another_file(bench: Bench) -> None:
    commit_files(bench.repository, {"settings.py": SETTINGS})
    task = bench.task(description="Look at settings.py and write calc.py.")
    for name in ("REDACTED_SECRET_1", "REDACTED_SECRET_77"):
        result = bench.run(f"calc.py\n```python\nKEY = '{name}'\n```\n", task=task)
        assert result.error_details is not None
        assert result.error_details.type == "ChangeRejectedError"
        assert f"writes {name} into calc.py" in result.error_details.message


def test_an_orchestrator_that_is_closed_leaves_nothing_open(bench: Bench) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    bench.run(GOOD_ANSWER)
    before = open_files()
    for _ in range(5):
        with bench.orchestrator(ScriptedLLM([GOOD_ANSWER])) as orchestrator:
            assert orchestrator.run(bench.task()).success
    assert open_files() < before + 5  # a run that left something open would have left it five times


def test_a_closed_orchestrator_runs_again_and_leaves_what_was_passed_in_open(bench: Bench) -> None:
    with bench.registry as registry:
        orchestrator = bench.orchestrator(ScriptedLLM([GOOD_ANSWER] * 2), {"task_registry": registry})
        assert orchestrator.run(bench.task()).success
        orchestrator.close()
        orchestrator.close()
        assert registry.get_task("1.1").status == "done"
        assert orchestrator.run(bench.task()).success


# --- interruptions at the end


def interrupted_once(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """The function, interrupted at its first call, after it has done its work or before."""
    calls: list[None] = []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == 1 and not after:
            raise KeyboardInterrupt
        answer = function(*arguments, **more)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return answer

    return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["upload", "add_artifact"])
def test_a_delivered_run_that_is_interrupted_at_its_end_is_reported_as_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    owner = LocalArtifactStore if call == "upload" else LocalTaskRegistry
    monkeypatch.setattr(owner, call, interrupted_once(getattr(owner, call), after=after))
    with pytest.raises(RunInterrupted) as caught:
        bench.run(GOOD_ANSWER)
    assert (caught.value.result.status, caught.value.result.reported) == ("done", "yes")
    assert bench.status() == "done"
    assert BRANCH in bench.branches()


def test_a_run_that_is_interrupted_once_it_is_known_to_run_is_reported_as_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = interrupted_once(LocalTaskRegistry.update_task_status, after=True)
    monkeypatch.setattr(LocalTaskRegistry, "update_task_status", told)
    with pytest.raises(RunInterrupted):
        bench.run(GOOD_ANSWER)
    assert bench.status() == "cancelled"


# --- a run that does not


def test_failing_tests_are_a_result_and_nothing_is_delivered(bench: Bench) -> None:
    result = bench.run(USELESS_ANSWER)
    assert (result.success, result.status) == (False, "failed")
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("TestsFailed", "test")
    assert "exited with 1" in str(result.error)
    assert result.test_result is not None
    assert "AssertionError" in result.test_result.commands[0].output
    assert result.push_result is None
    assert bench.branches() == ["main"]
    assert bench.status() == "failed"
    assert set(artifacts(result)) == {"diff", "test", "transcript", "log", "manifest"}
    bench.assert_nothing_is_left()


def test_the_work_is_kept_under_a_ref_when_the_tests_fail(bench: Bench) -> None:
    result = bench.run(USELESS_ANSWER)
    assert result.impl_result is not None
    (mirror,) = bench.state_dir.glob("pool/*/mirror.git")
    assert git(mirror, "rev-parse", result.impl_result.ref) == result.impl_result.commit


def test_the_first_failing_command_ends_the_tests_unless_told_otherwise(bench: Bench) -> None:
    commands = ["false", "true"]
    fast = bench.run(GOOD_ANSWER, task=bench.task(test_commands=commands))
    slow = bench.run(GOOD_ANSWER, task=bench.task(test_commands=commands, fail_fast=False))
    assert fast.test_result is not None
    assert slow.test_result is not None
    assert [one.exit_code for one in fast.test_result.commands] == [1]
    assert [one.exit_code for one in slow.test_result.commands] == [1, 0]


def test_tests_that_never_end_are_stopped_at_the_tasks_time(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(test_commands=["sleep 600"], timeout_seconds=2))
    assert result.duration_seconds < 30
    assert "ran out of the task's time" in str(result.error)
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("RunnerTimeoutError", "test")
    assert result.test_result is not None
    assert [one.outcome for one in result.rounds] == ["tests-failed"]
    assert bench.status() == "failed"
    bench.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("answer", "error_type"),
    [
        ("I would rather not.", "MalformedAnswerError"),
        ("", "EmptyAnswerError"),
        ("../evil.py\n```\nx\n```\n", "ChangeRejectedError"),
        ("DELETE missing.py", "ChangeRejectedError"),
        (f"calc.py\n```\n{BROKEN_CALC}```\n", "NothingChangedError"),
        (
            ServiceConnectionError("Failed to connect to http://x (model endpoint): is it running?"),
            "ServiceConnectionError",
        ),
        (RuntimeError("a bug"), "InternalError"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_applied(bench: Bench, answer: Any, error_type: str) -> None:
    result = bench.run(answer)
    assert result.error_details is not None
    assert result.error_details.type == error_type
    assert result.impl_result is None
    assert bench.branches() == ["main"]
    assert bench.status() == "failed"
    assert "log" in artifacts(result)
    bench.assert_nothing_is_left()


def test_the_rubbish_that_a_model_said_is_in_the_transcript(bench: Bench) -> None:
    assert "I would rather not." in artifacts(bench.run("I would rather not."))["transcript"]


@pytest.mark.parametrize(
    ("changes", "error_type", "step"),
    [
        ({"repo_url": "/does/not/exist"}, "RepositoryNotFoundError", "allocate"),
        ({"base_ref": "no-such-branch"}, "RepositoryNotFoundError", "allocate"),
        ({"playbook_path": "/does/not/exist.yaml"}, "TaskContextValidationError", None),
    ],
)
def test_what_the_task_names_must_be_there(
    bench: Bench, changes: dict[str, Any], error_type: str, step: str | None
) -> None:
    result = bench.run(GOOD_ANSWER, task=bench.task(**changes))
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == (error_type, step)


def test_a_branch_with_other_peoples_commits_is_left_alone_and_the_work_is_kept(bench: Bench) -> None:
    git(bench.repository, "checkout", "--quiet", "-b", "feature/x")
    theirs = commit_files(bench.repository, {"theirs.txt": "x"})
    git(bench.repository, "checkout", "--quiet", "main")
    result = bench.run(GOOD_ANSWER, task=bench.task(branch_name="feature/x"))
    assert result.error_details is not None
    assert result.error_details.type == "PushError"
    assert git(bench.repository, "rev-parse", "feature/x") == theirs
    assert "diff" in artifacts(result)


def test_no_free_slot_is_told_and_no_slot_is_harmed(bench: Bench) -> None:
    pool = LocalRepoPool(bench.state_dir / "pool", Git(bench.state_dir / "git"), pool_size=1)
    held = pool.allocate_slot(str(bench.repository), "somebody", lease_seconds=600)
    result = bench.run(GOOD_ANSWER, pool_size=1, slot_timeout_seconds=0)
    assert result.error_details is not None
    assert result.error_details.type == "SlotAllocationError"
    assert str(result.error).startswith("No available slots")
    assert [slot["lease_token"] for slot in bench.slots()] == [held.lease_token]


# --- services that fail


def test_a_registry_that_is_down_at_the_start_means_that_nothing_is_begun(bench: Bench) -> None:
    llm = ScriptedLLM([GOOD_ANSWER])
    registry = Failing(bench.registry, down, "register_task")
    result = bench.orchestrator(llm, {"task_registry": registry}).run(bench.task())
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("ServiceConnectionError", "prepare")
    assert result.reported == "no"
    assert llm.calls == []
    assert not list(bench.state_dir.glob("pool/*"))


def test_a_store_that_is_down_at_the_start_means_that_no_answer_is_paid_for(bench: Bench) -> None:
    llm = ScriptedLLM([GOOD_ANSWER])
    store = Failing(LocalArtifactStore(bench.state_dir / "artifacts"), down, "ensure_available")
    result = bench.orchestrator(llm, {"artifact_store": store}).run(bench.task())
    assert result.error_details is not None
    assert result.error_details.type == "ServiceConnectionError"
    assert llm.calls == []


def test_a_registry_that_goes_down_in_between_is_a_warning_for_the_work_is_delivered(bench: Bench) -> None:
    registry = Failing(bench.registry, down, "add_event", "add_artifact", after=1)
    result = bench.run(GOOD_ANSWER, services={"task_registry": registry})
    assert result.success
    assert result.reported == "pending"
    assert "does not have the final status 'done'" in result.warnings[0]
    assert BRANCH in bench.branches()


def test_events_that_could_not_be_sent_arrive_with_the_final_report_in_order(bench: Bench) -> None:
    class Hiccup(Failing):
        pass

    registry = Hiccup(bench.registry, down, "add_event")
    registry._after = 1
    original = registry._error

    def once() -> BaseException:
        registry._names = ()
        return original()

    registry._error = once
    result = bench.run(GOOD_ANSWER, services={"task_registry": registry})
    assert result.reported == "yes"
    assert bench.events()[:3] == ["run_started", "slot_allocated", "implementation_started"]
    assert bench.events()[-1] == "run_finished"


def test_artifacts_that_cannot_be_stored_are_warnings(bench: Bench) -> None:
    store = Failing(LocalArtifactStore(bench.state_dir / "artifacts"), down, "upload", after=1)
    result = bench.run(GOOD_ANSWER, services={"artifact_store": store})
    assert result.success
    assert [artifact.type for artifact in result.artifacts] == ["diff"]
    assert "The test artifact was not stored: Failed to connect" in result.warnings[0]


def test_a_release_that_fails_hides_no_other_error(bench: Bench) -> None:
    pool = Failing(LocalRepoPool(bench.state_dir / "pool", Git(bench.state_dir / "git")), down, "release_slot")
    result = bench.run("rubbish", services={"repo_pool": pool})
    assert result.error_details is not None
    assert result.error_details.type == "MalformedAnswerError"
    assert "was not released" in result.warnings[0]


def test_a_defect_in_a_clean_up_step_hides_no_other_error(bench: Bench) -> None:
    store = Failing(LocalArtifactStore(bench.state_dir / "artifacts"), lambda: RuntimeError("boom"), "upload")
    result = bench.run("rubbish", services={"artifact_store": store})
    assert result.error_details is not None
    assert result.error_details.type == "MalformedAnswerError"
    assert "boom" in result.warnings[0]


def test_a_pool_without_leases_and_base_commits_will_do(bench: Bench) -> None:
    class Plain:
        def __init__(self, inner: LocalRepoPool) -> None:
            self.inner = inner
            self.released: list[str] = []

        def allocate_slot(self, *arguments: Any, **options: Any) -> Any:
            allocation = self.inner.allocate_slot(*arguments, **options)
            nothing = dict.fromkeys(["base_commit", "lease_token", "epoch", "expires_at", "repo_url"])
            return allocation.model_copy(update=nothing)

        def release_slot(self, slot_id: str, *, lease_token: str | None = None) -> None:
            self.released.append(slot_id)
            self.inner.release_slot(slot_id, lease_token=lease_token)

    pool = Plain(LocalRepoPool(bench.state_dir / "pool", Git(bench.state_dir / "git")))
    assert bench.run(GOOD_ANSWER, services={"repo_pool": pool}).success
    assert len(pool.released) == 1


# --- secrets


def test_a_secret_reaches_no_sink(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "tok-S3cret/value+1"
    monkeypatch.setenv("GIT_TOKEN", secret)
    command = f"echo leaked {secret}; env; exit 1"
    commit_files(bench.repository, {"notes.txt": f"the token is {secret}\n"})
    llm = ScriptedLLM([GOOD_ANSWER])
    result = bench.orchestrator(llm).run(
        bench.task(test_commands=[command], description=f"Use {secret}.", metadata={"k": [secret]})
    )
    everywhere = [result.model_dump_json(), *artifacts(result).values(), *(m.content for m in llm.calls[0])]
    with bench.registry as registry:
        everywhere += [event.model_dump_json() for event in registry.list_events("1.1", spec_name="calc")]
    assert [secret in text for text in everywhere if secret in text] == []
    assert "leaked ***" in artifacts(result)["log"]


def test_an_answer_that_would_commit_a_secret_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TOKEN", "tok-S3cret/value+1")
    result = bench.run("key.py\n```\nKEY = 'tok-S3cret/value+1'\n```\n")
    assert result.error_details is not None
    assert result.error_details.type == "ChangeRejectedError"


def test_tests_see_only_the_allowed_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HOME_MADE", "1")
    result = bench.run(GOOD_ANSWER, task=bench.task(test_commands=["env"]), test_environment={"EXTRA": "yes"})
    assert result.test_result is not None
    names = {line.split("=", 1)[0] for line in result.test_result.commands[0].output.splitlines()}
    assert "EXTRA" in names
    assert not names & {"OPENAI_API_KEY", "HOME_MADE"}


# --- interruptions


class Interrupting:
    """A model that sends this process a signal while it is asked."""

    def complete(self, _messages: Sequence[Any], **_options: Any) -> ModelAnswer:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal comes first")


def test_ctrl_c_releases_the_slot_reports_and_carries_the_result(bench: Bench) -> None:
    with pytest.raises(RunInterrupted) as caught:
        bench.orchestrator(Interrupting()).run(bench.task())
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result.status == "cancelled"
    assert caught.value.result.reported == "yes"
    assert bench.status() == "cancelled"
    bench.assert_nothing_is_left()


def test_ctrl_c_during_the_tests_kills_them(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"kill -INT {os.getpid()}; sleep 2; touch {mark}"
    with pytest.raises(RunInterrupted) as caught:
        bench.run(GOOD_ANSWER, task=bench.task(test_commands=[command]), sandbox="none")
    assert caught.value.result.impl_result is not None
    assert {artifact.type for artifact in caught.value.result.artifacts} >= {"diff", "log"}
    assert not mark.exists()
    bench.assert_nothing_is_left()


def test_ctrl_c_during_the_tests_of_the_base_kills_them(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"kill -INT {os.getpid()}; sleep 2; touch {mark}"
    with pytest.raises(RunInterrupted) as caught:
        bench.run(GOOD_ANSWER, task=bench.task(test_commands=[command]), test_base=True, sandbox="none")
    assert caught.value.result.status == "cancelled"
    assert not mark.exists()
    bench.assert_nothing_is_left()


def test_defaults_live_under_the_state_folder_in_the_home(bench: Bench) -> None:
    RunnerOrchestrator(llm=ScriptedLLM([GOOD_ANSWER])).run(bench.task())
    state = Path.home() / ".necrocode"
    assert {entry.name for entry in state.iterdir()} >= {"registry.db", "pool", "artifacts", "git", "layers"}


def test_no_network_and_no_files_before_the_first_run(tmp_path: Path) -> None:
    RunnerOrchestrator(RunnerConfig(state_dir=tmp_path / "state", task_registry_url="http://localhost:1"))
    assert not (tmp_path / "state").exists()


def test_slot_errors_are_typed() -> None:
    assert SlotAllocationError("No available slots").retryable


def test_several_repositories_do_not_mix(bench: Bench, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other" / "repo")
    assert bench.run(GOOD_ANSWER).success
    assert bench.run(GOOD_ANSWER, task=bench.task(repo_url=str(other))).success
    assert BRANCH in git(other, "branch", "--format=%(refname:short)")
