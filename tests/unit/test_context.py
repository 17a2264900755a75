from __future__ import annotations

from typing import Literal

import pytest

from necrocode.agent_runner import TaskContext
from necrocode.agent_runner.generation import context as context_module
from necrocode.agent_runner.generation.answer_forms import as_text_request, system_prompt
from necrocode.agent_runner.generation.context import Context, estimate_tokens, select_context
from necrocode.agent_runner.generation.prompt import fenced, task_messages


def task(description: str = "", **fields: object) -> TaskContext:
    values = {"task_id": "1", "spec_name": "s", "title": "T", "description": description, "repo_url": "/r", **fields}
    return TaskContext(**values)


def select(files: dict[str, str | bytes], budget: int = 10_000, **fields: object) -> Context:
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    sizes = {path: len(content) for path, content in contents.items()}
    return select_context(task(**fields), sizes, contents.__getitem__, budget_tokens=budget)  # type: ignore[arg-type]


def shown(context: Context) -> list[str]:
    return [piece.path for piece in context.pieces]


def test_a_small_repository_is_shown_whole() -> None:
    context = select({"b.py": "b", "a.py": "a"}, description="anything")
    assert context.paths == ("a.py", "b.py")
    assert sorted(shown(context)) == ["a.py", "b.py"]
    assert context.paths_left_out == 0


def test_related_files_come_first_then_named_ones_then_the_nearest_by_their_words() -> None:
    files = {
        "z/related.py": "x",
        "named.py": "y",
        "near.py": "def parse_invoice_total(): pass",
        "far.py": "def something_else(): pass",
    }
    context = select(files, description="Fix the invoice total; see named.py", related_files=["z/related.py"])
    assert shown(context) == ["z/related.py", "named.py", "near.py", "far.py"]
    assert [piece.why for piece in context.pieces[:3]] == [
        "related_files",
        "named in the task",
        "shares words with the task",
    ]


def test_nothing_is_shown_past_the_budget_but_smaller_files_still_fit() -> None:
    files = {"big_invoice.py": "invoice " * 1000, "small.py": "pass\n"}
    context = select(files, budget=50, description="invoice")
    assert shown(context) == ["small.py"]


def test_camel_case_and_snake_case_words_meet() -> None:
    files = {"one.py": "class HTTPServerError: pass", "two.py": "class Unrelated: pass"}
    assert shown(select(files, description="http_server_error"))[0] == "one.py"


def test_japanese_words_meet() -> None:
    files = {"one.py": "# 請求書の合計を計算する", "two.py": "# 利用者を登録する"}
    assert shown(select(files, description="請求書の合計が違う"))[0] == "one.py"


def test_binary_foreign_and_huge_files_are_listed_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "MAX_SHOWN_FILE_BYTES", 100)
    files = {"binary.dat": b"\0\1", "sjis.txt": "日本".encode("cp932"), "huge.txt": "x" * 101, "a.py": "a"}
    context = select(files, related_files=["binary.dat", "missing.py"])
    assert shown(context) == ["a.py"]
    assert len(context.paths) == len(files)


def test_a_byte_order_mark_is_not_shown() -> None:
    assert select({"a.py": "\ufeffx"}).pieces[0].text == "x"


def test_a_large_repository_lists_the_paths_nearest_to_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "MAX_LISTED_PATHS", 3)
    files = {f"deep/folder/file{number}.py": "x" for number in range(10)} | {"billing/invoice.py": "x"}
    context = select(files, description="invoice")
    assert "billing/invoice.py" in context.paths
    assert len(context.paths) == 3
    assert context.paths_left_out == 8


def test_an_empty_repository_gives_an_empty_context() -> None:
    assert select({}) == Context((), 0, ())


def test_a_path_that_is_part_of_another_word_is_not_named() -> None:
    context = select({"a.py": "x"}, description="see beta.py and a.pyc")
    assert [piece.why for piece in context.pieces] == ["shares words with the task"]


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("日本", 2), ("abcd日本", 3)])
def test_tokens_are_estimated_by_script(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


# --- prompt


def test_the_prompt_holds_task_criteria_instructions_commands_and_files() -> None:
    asked = task("Do it.", acceptance_criteria=["It works."])
    context = select({"a.py": "x = 1"})
    system, user = task_messages(
        asked, context, instructions="Use tabs.", test_commands=["pytest -q"], edit_format="files"
    )
    assert system.role == "system"
    assert system.content == system_prompt("files")
    for part in ("# Task 1: T", "Do it.", "- It works.", "Use tabs.", "- pytest -q", "File: a.py\n```\nx = 1\n```"):
        assert part in user.content


@pytest.mark.parametrize(
    "words", ["Delete a.py.", "Rename a.py to b.py.", "a.py を削除してください。", "Clean up a.py."]
)
@pytest.mark.parametrize("form", ["json", "files"])
def test_how_to_delete_and_rename_is_said_where_the_task_may_need_it(
    words: str, form: Literal["json", "files"]
) -> None:
    system, _ = task_messages(task(words), select({"a.py": "x = 1"}), edit_format=form)
    assert system.content == system_prompt(form, with_removals=True)
    assert ("delete" if form == "json" else "DELETE src/old.py") in system.content
    assert as_text_request([system])[0].content == system_prompt("files", with_removals=True)


def test_words_in_the_files_do_not_count_as_the_tasks() -> None:
    system, _ = task_messages(task("Do it."), select({"a.py": "# delete this"}), edit_format="files")
    assert "DELETE" not in system.content


def test_the_json_prompt_says_json_for_endpoints_that_insist_on_the_word() -> None:
    assert "JSON" in system_prompt("json")


def test_the_prompt_says_how_many_paths_it_leaves_out_and_that_a_repository_is_empty() -> None:
    _, user = task_messages(task(), Context(("a",), 5, ()), edit_format="json")
    assert "... and 5 more" in user.content
    _, user = task_messages(task(), Context((), 0, ()), edit_format="json")
    assert "(the repository is empty)" in user.content


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb\n") == "`````\na\n````\nb\n`````"
    assert fenced("") == "```\n```"
    assert fenced("no newline") == "```\nno newline\n```"
