from __future__ import annotations

from typing import Literal

import pytest

from necrocode.agent_runner import TaskContext
from necrocode.agent_runner.generation.answer_forms import as_text_request, system_prompt
from necrocode.agent_runner.generation.pieces import Context, Piece
from necrocode.agent_runner.generation.prompt import task_messages

SHOWN = Context(("a.py",), 0, (Piece("a.py", "x = 1", "related_files"),))


def task(description: str = "", **fields: object) -> TaskContext:
    values = {"task_id": "1", "spec_name": "s", "title": "T", "description": description, "repo_url": "/r", **fields}
    return TaskContext(**values)  # type: ignore[arg-type]


def test_the_prompt_holds_task_criteria_instructions_commands_and_files() -> None:
    asked = task("Do it.", acceptance_criteria=["It works."])
    system, user = task_messages(
        asked, SHOWN, instructions="Use tabs.", test_commands=["pytest -q"], edit_format="files"
    )
    assert system.role == "system"
    assert system.content == system_prompt("files")
    for part in ("# Task 1: T", "Do it.", "- It works.", "Use tabs.", "- pytest -q", "File: a.py\n```\nx = 1\n```"):
        assert part in user.content


@pytest.mark.parametrize(
    "words", ["Delete a.py.", "Rename a.py to b.py.", "a.py を削除してください。", "Clean up a.py."]
)
@pytest.mark.parametrize("form", ["json", "files"])
def test_removals_are_explained_where_the_task_may_need_them(words: str, form: Literal["json", "files"]) -> None:
    system, _ = task_messages(task(words), SHOWN, edit_format=form)
    assert system.content == system_prompt(form, with_removals=True)
    assert ("delete" if form == "json" else "DELETE src/old.py") in system.content
    assert as_text_request([system])[0].content == system_prompt("files", with_removals=True)


def test_words_in_the_files_do_not_count_as_the_tasks() -> None:
    system, _ = task_messages(
        task("Do it."), Context(("a.py",), 0, (Piece("a.py", "# delete this", "w"),)), edit_format="files"
    )
    assert "DELETE" not in system.content


def test_the_json_prompt_says_json_for_endpoints_that_insist_on_the_word() -> None:
    assert "JSON" in system_prompt("json")


def test_the_prompt_says_how_many_paths_it_leaves_out_and_that_a_repository_is_empty() -> None:
    _, user = task_messages(task(), Context(("a",), 5, ()), edit_format="json")
    assert "... and 5 more" in user.content
    _, user = task_messages(task(), Context((), 0, ()), edit_format="json")
    assert "(the repository is empty)" in user.content
