from __future__ import annotations

import json
import math
import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import (
    Artifact,
    CommandResult,
    ErrorDetails,
    ImplementationResult,
    PushResult,
    RunnerResult,
    TaskContext,
    TaskContextValidationError,
    TestResult,
)
from necrocode.agent_runner.models import DEFAULT_TASK_TIMEOUT_SECONDS
from necrocode.agent_runner.results import RESULT_SCHEMA_VERSION

NEEDED = {"task_id": "1.1", "spec_name": "chat", "title": "Add login", "description": "D", "repo_url": "/r"}
CIRCLE: dict[str, Any] = {}
CIRCLE["again"] = CIRCLE


def task(**changes: Any) -> TaskContext:
    return TaskContext(**(NEEDED | changes))


def refused(**changes: Any) -> str:
    with pytest.raises(TaskContextValidationError) as caught:
        task(**changes)
    return str(caught.value)


# --- a task


def test_what_a_task_needs_is_enough() -> None:
    made = task()
    assert (made.branch, made.timeout_seconds, made.fail_fast) == (
        "feature/task-chat-1.1-add-login", DEFAULT_TASK_TIMEOUT_SECONDS, True,
    )  # fmt: skip
    assert (made.test_commands, made.dependencies, made.metadata) == ((), (), {})


@pytest.mark.parametrize("name", ["task_id", "spec_name", "title", "description"])
def test_each_missing_field_is_told(name: str) -> None:
    with pytest.raises(TaskContextValidationError) as caught:
        TaskContext(**{key: value for key, value in NEEDED.items() if key != name})
    assert str(caught.value) == f"Invalid task: {name} is missing."


def test_all_missing_fields_are_told_at_once() -> None:
    with pytest.raises(TaskContextValidationError) as caught:
        TaskContext()  # type: ignore[call-arg]
    assert str(caught.value) == (
        "Invalid task: task_id is missing; spec_name is missing; title is missing; description is missing."
    )


def test_a_task_needs_a_place() -> None:
    assert refused(repo_url=None) == (
        "Invalid task: either repo_url (a slot is allocated for it) or slot_path (a checkout you bring) is needed."
    )
    assert "give slot_path with it" in refused(slot_id="s")
    assert task(repo_url=None, slot_path="/checkout", slot_id="s").slot_path == Path("/checkout")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_id", ""), ("task_id", "-1"), ("task_id", "a/b"), ("task_id", ".."), ("task_id", "1..2"),
        ("task_id", "1 "), ("task_id", "1\n"), ("task_id", "仕"), ("task_id", "a" * 129), ("task_id", 1.1),
        ("task_id", None), ("spec_name", ""), ("spec_name", "a/b"), ("spec_name", "../x"), ("spec_name", "_a"),
        ("spec_name", "a b"), ("spec_name", "a" * 129), ("spec_name", 7), ("title", ""), ("title", "  "),
        ("title", "two\nlines"), ("title", "bell\a"), ("title", "line\u2028end"), ("title", "a" * 501),
        ("title", "half\ud83d"), ("description", None), ("description", "a" * 200_001), ("branch_name", "--force"),
        ("branch_name", "a..b"), ("branch_name", ""), ("branch_name", "refs/heads/a"), ("repo_url", "ext::sh -c id"),
        ("repo_url", "--upload-pack=id"), ("repo_url", "ftp://host/r"), ("repo_url", "~no-such-user/r"),
        ("base_ref", "HEAD~1"), ("base_ref", "a:b"), ("base_ref", ""), ("test_commands", "pytest"),
        ("test_commands", None), ("test_commands", [""]), ("test_commands", ["a\0b"]), ("test_commands", [5]),
        ("acceptance_criteria", "one"), ("acceptance_criteria", {"a": 1}), ("dependencies", 5),
        ("related_files", ["/etc/passwd"]), ("related_files", ["../x"]), ("related_files", [".git/config"]),
        ("timeout_seconds", 0), ("timeout_seconds", -1), ("timeout_seconds", math.inf), ("timeout_seconds", math.nan),
        ("timeout_seconds", 7 * 86_400 + 1), ("timeout_seconds", "soon"), ("max_tokens", 0), ("max_tokens", 1.5),
        ("fail_fast", "perhaps"), ("slot_path", 5), ("slot_path", "\0"), ("slot_path", "~no-such-user/x"),
        ("playbook_path", "~no-such-user/x"), ("metadata", ["a"]), ("metadata", {"a": math.nan}),
        ("metadata", CIRCLE), ("metadata", {("a", "b"): 1}), ("metadata", None), ("required_skill", 5),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_error_that_names_its_field(name: str, value: Any) -> None:
    told = refused(**{name: value})
    assert told.startswith(f"Invalid task: {name}")
    assert told.count(" (got ") <= 1
    assert len(told) < 500


@pytest.mark.parametrize(("wrong", "near"), [("test_comands", "test_commands"), ("repository", None), ("id", None)])
def test_an_unknown_key_names_the_nearest_or_all(wrong: str, near: str | None) -> None:
    told = refused(**{wrong: "x"})
    assert f"unknown key {wrong!r} (" in told
    assert (f"did you mean {near!r}?" if near else "known: acceptance_criteria, ") in told


def test_a_password_in_a_repository_url_is_refused_and_not_told() -> None:
    told = refused(repo_url="https://me:made-up-s3cr3t@host/r")
    assert "GIT_TOKEN" in told
    assert "s3cr3t" not in told


def test_values_that_people_write_are_understood() -> None:
    made = task(
        title="  ログイン画面を追加  ", test_commands=["pytest -q"], dependencies=("0",), acceptance_criteria=[...],
        base_ref="refs/heads/dev", spec_name="チャット_1.0", repo_url="~/r", slot_path="~/c", timeout_seconds="60",
        metadata={"due": date(2026, 1, 1), "path": Path("/x")},
    )  # fmt: skip
    home = os.environ["HOME"]
    assert made.title == "ログイン画面を追加"
    assert (made.test_commands, made.dependencies, made.acceptance_criteria) == (("pytest -q",), ("0",), ())
    assert (made.base_ref, made.repo_url, str(made.slot_path)) == ("dev", f"{home}/r", f"{home}/c")
    assert made.branch == "feature/task-チャット-1-0-1.1-ログイン画面を追加"
    assert task(branch_name="mine").branch == "mine"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=130), st.text(max_size=130), st.text(max_size=502))
def test_every_task_that_is_taken_has_a_branch(task_id: str, spec_name: str, title: str) -> None:
    try:
        made = task(task_id=task_id or "1", spec_name=spec_name or "仕様", title=title)
    except TaskContextValidationError:
        return
    assert task(branch_name=made.branch).branch == made.branch


def test_a_task_cannot_be_changed() -> None:
    made = task()
    with pytest.raises(ValueError, match="frozen"):
        made.title = "other"  # type: ignore[misc]


# --- a task file


def test_paths_in_a_task_file_start_at_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "tasks/one.yaml"
    file.parent.mkdir()
    file.write_text(
        "task_id: '1.10'\nspec_name: s\ntitle: 表題\ndescription: |\n  one\n  two\n"
        "repo_url: ../repo\nslot_path: checkout\nplaybook_path: ~/playbook.yaml\n",
        encoding="utf-8",
    )
    made = TaskContext.from_yaml(file)
    assert (made.task_id, made.title, made.description) == ("1.10", "表題", "one\ntwo\n")
    assert made.repo_url == str(tmp_path / "repo")
    assert made.slot_path == tmp_path / "tasks/checkout"
    assert made.playbook_path == Path(os.environ["HOME"]) / "playbook.yaml"


def test_urls_and_absolute_paths_in_a_task_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    head = "task_id: a\nspec_name: s\ntitle: t\ndescription: d\n"
    file.write_text(f"{head}repo_url: git@host:a/b.git\nslot_path: /checkout\n")
    made = TaskContext.from_yaml(str(file))
    assert (made.repo_url, made.slot_path) == ("git@host:a/b.git", Path("/checkout"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "task_id is missing"),
        ("- a", "must hold a mapping"),
        ("task_id: a\ntask_id: b", "'task_id' is given twice"),
        ("task_id: 1.10", "put it in quotes"),
        ("slot_path: ~no-such-user/x", "no home folder"),
        ("repo_url: [a]", "repo_url"),
        ("slot_path: [a]", "slot_path"),
        ("metadata: &x {again: *x}", "its aliases stand for more than"),
    ],
)
def test_a_wrong_task_file_is_told(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(content)
    with pytest.raises(TaskContextValidationError, match=words):
        TaskContext.from_yaml(file)


def test_a_task_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaskContextValidationError, match=r"Cannot read the task file .*none.yaml"):
        TaskContext.from_yaml(tmp_path / "none.yaml")


# --- a result


@pytest.fixture
def result() -> RunnerResult:
    return RunnerResult(
        success=False, status="failed", runner_id="r", run_id="x", task_id="1", spec_name="仕様", branch="日本語",
        started_at=datetime(2026, 1, 1, tzinfo=UTC), duration_seconds=1.5, timings={"prepare": 0.1, "test": 1.0},
        artifacts=(Artifact(type="diff", uri="file:///日本/diff", size_bytes=2**40, sha256="0" * 64),),
        error="TestsFailed", error_details=ErrorDetails(type="TestsFailed", message="\U0001f600\n", step="test"),
        impl_result=ImplementationResult(base_commit="a", commit="b", ref="c", tree="d", files=("a.py", "日本.py")),
        test_result=TestResult(
            success=False, sandbox="none", layer="copy", tree="d", duration_seconds=1.0,
            commands=(CommandResult(command="a", exit_code=None, duration_seconds=1.0, output="\0\x1b"),),
        ),
        push_result=PushResult(branch="b", commit="c", repository="/r", pushed=True), reported="no", warnings=("w",),
    )  # fmt: skip


def test_a_result_survives_json(result: RunnerResult) -> None:
    text = result.model_dump_json()
    assert RunnerResult.model_validate_json(text) == result
    assert RunnerResult.model_validate(json.loads(text)) == result


def test_a_results_json_is_for_programs(result: RunnerResult) -> None:
    data = json.loads(result.model_dump_json())
    assert data["schema_version"] == RESULT_SCHEMA_VERSION == 1
    assert data["started_at"] == "2026-01-01T00:00:00Z"
    assert data["test_result"]["commands"][0]["exit_code"] is None
    assert set(data) == set(RunnerResult.model_fields)


def test_a_newer_result_can_be_read(result: RunnerResult) -> None:
    data = json.loads(result.model_dump_json()) | {"added_later": 1}
    data["test_result"]["added_later"] = 1
    assert RunnerResult.model_validate(data) == result


def test_a_result_cannot_be_changed(result: RunnerResult) -> None:
    with pytest.raises(ValueError, match="frozen"):
        result.success = True  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        result.artifacts[0].uri = "x"  # type: ignore[misc]


def test_a_result_of_no_known_status_is_refused(result: RunnerResult) -> None:
    with pytest.raises(ValueError, match="status"):
        RunnerResult.model_validate(result.model_dump() | {"status": "perhaps"})


# --- hostile values


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def shared(levels: int) -> list[Any]:
    """A few objects that JSON would write out as ten to the power of ``levels`` of them."""
    value: list[Any] = ["lol"]
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (nested(65), "nested more than 64 deep"),
        (nested(600), "nested more than 64 deep"),
        (nested(100_000), "nested more than 64 deep"),
        ({"a": shared(12)}, "holds more than 100000 values"),
        ({"a": [0] * 100_001}, "holds more than 100000 values"),
        ({"a": "x" * 1_000_001}, "or 1000000 characters"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"a": [{"\udfff": 1}]}, "lone surrogate"),
        ({"a": float("nan")}, "must be what JSON can hold"),
        ({"a": 10**5000}, "must be what JSON can hold"),
    ],
)
def test_metadata_that_no_registry_could_hold_is_refused(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskContextValidationError, match=f"metadata: .*{words}"):
        TaskContext(**NEEDED, metadata=metadata)


def test_metadata_within_bounds_are_taken() -> None:
    assert TaskContext(**NEEDED, metadata=nested(64) | {"when": date(2026, 1, 1), "many": [0] * 1000}).metadata["many"]


@pytest.mark.parametrize("name", ["title", "description", "required_skill", "slot_path", "acceptance_criteria"])
def test_half_a_character_is_refused_by_name(name: str) -> None:
    value = ("a\ud800",) if name == "acceptance_criteria" else "a\ud800"
    with pytest.raises(TaskContextValidationError, match=f"{name}: holds half a character") as caught:
        TaskContext(**NEEDED | {name: value})
    str(caught.value).encode()


def test_a_number_too_long_to_be_written_is_refused_like_any_other() -> None:
    with pytest.raises(TaskContextValidationError, match="max_tokens"):
        TaskContext(**NEEDED, max_tokens=-(10**5000))


def test_a_result_with_what_others_said_can_always_be_written() -> None:
    artifact = Artifact(type="log", uri="x://\ud800", size_bytes=1, sha256="\udfff")
    command = CommandResult(command="c", exit_code=0, duration_seconds=0.1, output="\ud800")
    push = PushResult(branch="b", commit="c", repository="/\udc80", pushed=True)
    for made in (artifact, command, push):
        assert "\ufffd" in made.model_dump_json()
