"""What of an answer is the change set, and where its parts end."""

from __future__ import annotations

import json

import pytest

from necrocode.agent_runner import EmptyAnswerError, MalformedAnswerError
from necrocode.agent_runner.generation.edit_formats import parse_answer
from tests.support.pace import is_within

FILE = "File: a.py\n```python\nx = 1\n```\n"
SURE = {"explanation": "", "changes": [{"operation": "create", "file_path": "b.py", "content": "y\n"}]}


def written(text: str) -> dict[str, str | None]:
    return {change.file_path: change.content for change in parse_answer(text).changes}


# --- thoughts


@pytest.mark.parametrize("text", [
    f"I try:\nFile: a.py\n```python\ndraft\n```\nNo.\n</think>\n\n{FILE}",
    f"File: b.py\n```\ndraft\n```\nso done.</think>\n{FILE}",
    f"<think>\nFile: b.py\n```\ndraft\n```\n</think>\n{FILE}",
    f"<think>File: b.py\n```\ndraft, not closed\n</think>\n{FILE}",
    f"<think>one</think>\nFile: b.py\n```\ndraft\n```\n</think>\n{FILE}",
    f"{FILE}\n<think>\nFile: b.py\n```\nz\n```\n</think>\nDone.",
    f"<thinking>hm</thinking>{FILE}",
])  # fmt: skip
def test_drafts_in_thoughts_are_not_the_answer(text: str) -> None:
    assert written(text) == {"a.py": "x = 1\n"}


def test_a_tag_in_a_text_is_text() -> None:
    content = 'text.split("</think>")\n<think>\n</think>\n'
    assert written(f"I strip `</think>` and the </think> tag.\n\nFile: a.py\n```\n{content}```\n") == {"a.py": content}
    assert written(json.dumps({"changes": [{"file_path": "a.py", "content": content}]})) == {"a.py": content}


@pytest.mark.parametrize(("text", "reason"), [
    (f"<think>\n{FILE}", "never ends it"),
    (f"File: b.py\n```\ndraft\n</think>\n{FILE}", "cannot be told apart|looks cut"),
])  # fmt: skip
def test_thoughts_without_an_end_are_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswerError, match=reason):
        parse_answer(text)


def test_nothing_but_thoughts_is_an_empty_answer() -> None:
    with pytest.raises(EmptyAnswerError):
        parse_answer(f"{FILE}</think>\n")


@pytest.mark.parametrize("piece", ["<think>\n", "</think>\n", "<think>a</think>", "a</think>\n", "```\n</think>\n"])
def test_tags_are_read_in_time(piece: str) -> None:
    def read() -> None:
        with pytest.raises((MalformedAnswerError, EmptyAnswerError)):
            parse_answer(piece * (250_000 // len(piece)))

    assert is_within(5, read)


# --- JSON that is talked about


@pytest.mark.parametrize("sample", [
    '{"file": "report.txt", "content": "abc"}', '{"files": ["dist"]}', '{"changes": []}', "[1, 2", '{"a": 1}',
])  # fmt: skip
@pytest.mark.parametrize("language", ["json", ""])
def test_json_beside_a_file_is_no_change(sample: str, language: str) -> None:
    assert written(f"{FILE}\nThe endpoint then answers:\n\n```{language}\n{sample}\n```\n") == {"a.py": "x = 1\n"}


def test_a_change_set_in_json_beside_a_file_is_refused() -> None:
    with pytest.raises(MalformedAnswerError, match="write all in one form"):
        parse_answer(f"{FILE}\n```json\n{json.dumps(SURE)}\n```\n")


def test_of_several_json_blocks_the_one_in_the_form_that_was_asked_for_counts() -> None:
    block = f"```json\n{json.dumps(SURE)}\n```\n"
    for text in (f'```json\n{{"files": ["dist"]}}\n```\n\n{block}', f"{block}\nAgain:\n\n{block}",
                 f"Here is the change for `b.py`:\n{block}"):  # fmt: skip
        assert written(text) == {"b.py": "y\n"}
    with pytest.raises(MalformedAnswerError, match="several JSON objects"):
        parse_answer(f"{block}\n{block.replace('b.py', 'c.py')}")


# --- where a file ends


@pytest.mark.parametrize("text", [
    "README.md\n```markdown\n# T\n\n```\nplain\n```\n\nend\n```\n",
    "README.md\n```markdown\n# T\n\n```\nsrc/\nsrc/a.py\n```\n\nend\n```\n",
    "README.md\n```markdown\n# T\n```bash\nx\n```\n\n```\nplain\n```\nend\n```\n",
    "README.md\n```markdown\n```\na\n```\nb\n```\nc\n```\nd\n```\n",
    'a.py\n```python\n"""\n```\nx\n```\n"""\n```\n',
    f"README.md\n```markdown\n# T\n\n```\nplain\n```\n\nend\n```\n\n{FILE}",
])  # fmt: skip
def test_a_file_that_is_cut_at_a_fence_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(MalformedAnswerError, match="four backticks"):
        parse_answer(text)


@pytest.mark.parametrize("after", [
    "", "\nb.py\n```\ny\n```\n", "File: b.py\n```\ny\n```\n", "**b.py**\n```\ny\n```\n",
    "\nRun:\n\n```bash\nmake\n```\n",
    "b.py\n```python\ny\n```\n",
])  # fmt: skip
def test_files_after_a_markdown_file_are_read(after: str) -> None:
    wanted = {"README.md": "# T\n", **({"b.py": "y\n"} if "b.py" in after else {})}
    assert written(f"README.md\n```markdown\n# T\n```\n{after}") == wanted


@pytest.mark.parametrize("after", ["\nOutput:\n```\n3\n```\n", "Output:\n```\n3\n```\n", "\nIt says\n\n```\n3\n```\n"])
def test_a_bare_block_that_is_talked_about_after_a_file_is_none(after: str) -> None:
    assert written(f"{FILE}{after}") == {"a.py": "x = 1\n"}


# --- markers


@pytest.mark.parametrize("text", [
    "a.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>>\nc\n>>>>>>> REPLACE\n",
    "a.py\n```\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>>\nc\n>>>>>>> REPLACE\n```\n",
    "a.py\n<<<<<<< SEARCH\n<<<<<<< HEAD\na\n=======\nb\n>>>>>>> HEAD\n=======\nb\n>>>>>>> REPLACE\n",
])  # fmt: skip
def test_a_closing_marker_that_is_left_over_is_refused(text: str) -> None:
    with pytest.raises(MalformedAnswerError, match="belongs to no search/replace block"):
        parse_answer(text)


def test_a_file_that_begins_with_a_conflict_is_written() -> None:
    content = "<<<<<<< HEAD\na\n=======\nb\n>>>>>>> feature\n"
    assert written(f"File: conflict.txt\n```\n{content}```\n") == {"conflict.txt": content}


# --- fences in lists


@pytest.mark.parametrize(("block", "content"), [
    ("   ```python\n   def f():\n\n       return 1\n   ```\n", "def f():\n\n    return 1\n"),
    ("  ```\n    x\n  y\n  ```\n", "  x\ny\n"),
    ("   ```python\ndef f():\n    return 1\n   ```\n", "def f():\n    return 1\n"),
])  # fmt: skip
def test_a_block_in_a_list_loses_its_fences_indentation(block: str, content: str) -> None:
    assert written(f"1. `a.py`:\n{block}") == {"a.py": content}


# --- directives, and routes


@pytest.mark.parametrize("line", [
    "- `DELETE /users/42`", "- DELETE /users", "DELETE /users/{id}", "- DELETE users/:id", "* **DELETE** /users?all=1",
])  # fmt: skip
def test_a_route_is_not_deleted(line: str) -> None:
    assert written(f"{FILE}\nThe API has now:\n\n{line}\n") == {"a.py": "x = 1\n"}


@pytest.mark.parametrize("line", ["DELETE /old.py", "- DELETE `src/old.py`", "DELETE Makefile"])
def test_a_file_is_deleted(line: str) -> None:
    assert len(written(f"{FILE}\n{line}\n")) == 2


# --- diffs beside


HEADER = "--- a/a.py\n+++ b/a.py\n"


def test_more_hunks_of_the_file_of_the_last_diff_are_read() -> None:
    text = f"```diff\n{HEADER}@@ -1 +1 @@\n-a\n+b\n```\n\nAnd:\n\n```diff\n@@ -9 +9 @@\n-c\n+d\n```\n"
    changes = parse_answer(text).changes
    assert [(change.file_path, change.edits[0].search) for change in changes] == [("a.py", "a\n"), ("a.py", "c\n")]


@pytest.mark.parametrize("header", ["", "@@ -1 +1 @@\n", f"{HEADER}@@ -1 +1 @@\n", "@@\n"])
def test_a_diff_that_shows_what_a_whole_file_has_changed_is_no_change(header: str) -> None:
    assert written(f"{FILE}\nWhat changed:\n\n```diff\n{header}-x = 0\n+x = 1\n```\n") == {"a.py": "x = 1\n"}


@pytest.mark.parametrize("lines", ["-x = 0\n+x = 2\n", "-x = 1\n+\n"])
def test_a_diff_of_no_file_that_says_something_new_is_refused(lines: str) -> None:
    with pytest.raises(MalformedAnswerError, match="names no file"):
        parse_answer(f"{FILE}\nAnd:\n\n```diff\n{lines}```\n")


def test_a_closing_tag_is_a_line_of_a_diff() -> None:
    text = "```diff\n--- a/a.html\n+++ b/a.html\n@@ -1,4 +1,4 @@\n<div>\n-a\n+b\n</div>\n-c\n+d\n```\n"
    (change,) = parse_answer(text).changes
    assert change.edits[0].replace == "<div>\nb\n</div>\nd\n"
