from __future__ import annotations

from pathlib import Path

import pytest

from necrocode.agent_runner import TaskContext, TaskContextValidationError
from necrocode.agent_runner.playbook import Playbook, load_playbook, with_playbook


def task(**changes: object) -> TaskContext:
    values = {"task_id": "1", "spec_name": "s", "title": "t", "description": "d", "repo_url": "/r"}
    return TaskContext(**(values | changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "playbook.yaml"


def test_a_task_without_a_playbook_has_an_empty_one() -> None:
    assert load_playbook(task()) == Playbook() == Playbook(test_commands=[], related_files=[...])
    assert with_playbook(task(), Playbook()) == task()


def test_a_playbook_is_read(file: Path) -> None:
    file.write_text(
        "name: 規約\ninstructions: |\n  Use tabs.\n  日本語で。\ntest_commands: [pytest]\nrelated_files: [a.md]\n",
        encoding="utf-8",
    )
    found = load_playbook(task(playbook_path=file))
    assert (found.name, found.instructions) == ("規約", "Use tabs.\n日本語で。\n")
    assert (found.test_commands, found.related_files) == (("pytest",), ("a.md",))


def test_an_empty_file_is_an_empty_playbook(file: Path) -> None:
    file.write_text("")
    assert load_playbook(task(playbook_path=file)) == Playbook()


def test_a_tasks_own_commands_go_first_and_files_are_joined() -> None:
    playbook = Playbook(test_commands=["make test"], related_files=["b.md", "a.md", "b.md"])
    assert with_playbook(task(), playbook).test_commands == ("make test",)
    merged = with_playbook(task(test_commands=["own"], related_files=["a.md"]), playbook)
    assert (merged.test_commands, merged.related_files) == (("own",), ("a.md", "b.md"))
    assert merged.model_copy(update={"test_commands": ("own",), "related_files": ("a.md",)}) == task(
        test_commands=["own"], related_files=["a.md"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("instruction: x", "Invalid playbook: unknown key 'instruction' .did you mean 'instructions'?"),
        ("test_commands: pytest", "Invalid playbook: test_commands: must be a list of texts"),
        ("instructions: [a]", "Invalid playbook: instructions"),
        ("name: 1.0", "put it in quotes"),
        ("- a", "The playbook .* must hold a mapping"),
        ("name: a\nname: b", "The playbook .* 'name' is given twice"),
        ("a: [", "The playbook .* is not valid YAML"),
        (f"instructions: {'x' * 100_001}", "instructions: String should have at most 100000"),
    ],
)
def test_a_wrong_playbook_is_a_wrong_task(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    with pytest.raises(TaskContextValidationError, match=words):
        load_playbook(task(playbook_path=file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("related_files: [../../etc/passwd]", "related_files"),
        ("related_files: [/etc/passwd]", "related_files"),
        ("related_files: [.git/config]", "related_files"),
        ('test_commands: [""]', "test_commands"),
        ('test_commands: ["a\\0b"]', "test_commands"),
    ],
)
def test_a_playbook_is_held_to_the_rules_of_a_task(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    with pytest.raises(TaskContextValidationError, match=words):
        load_playbook(task(playbook_path=file))


def test_a_playbook_that_is_not_there_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskContextValidationError, match="Cannot read the playbook"):
        load_playbook(task(playbook_path=file))
    with pytest.raises(TaskContextValidationError, match="Is a directory"):
        load_playbook(task(playbook_path=tmp_path))
