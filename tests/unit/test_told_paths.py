"""Which file a fenced block is, by the line before it."""

from __future__ import annotations

import pytest

from necrocode.agent_runner import MalformedAnswerError
from necrocode.agent_runner.generation.edit_formats import parse_answer


def written(text: str) -> dict[str, str | None]:
    return {change.file_path: change.content for change in parse_answer(text).changes}


@pytest.mark.parametrize("line", [
    "Here is the updated `src/app.py`:", "Here's the full, updated code for `src/app.py`:", "Updated `src/app.py`:",
    "### 1. Update `src/app.py`", "### Backend changes (`src/app.py`)", "**Step 2: Create `src/app.py`**",
    "`src/app.py` (new file):", "`src/app.py` - the main module", "1. `src/app.py`: add the route",
    "Create `src/app.py` with the following content:", "The complete `src/app.py` file:", "Now `src/app.py`:",
    "Here is the updated src/app.py:", "Sure! Here is the updated `src/app.py` file with the requested changes:",
    "File: src/app.py (new)", "### **src/app.py**", "__src/app.py__", "*src/app.py*",
    "After (`src/app.py`):", "更新後の `src/app.py`:", "- **`src/app.py`**:", "> src/app.py", "filename: src/app.py",
])  # fmt: skip
def test_a_line_that_names_a_file_is_understood(line: str) -> None:
    assert written(f"{line}\n```python\nx = 1\n```\n") == {"src/app.py": "x = 1\n"}


@pytest.mark.parametrize("path", [
    "__init__.py", "_config.yml", "__main__.py", "__tests__/a.js", "pkg/_x_", "pkg/__init__.py", "_a_.py",
    "app/(auth)/page.tsx", "app/@modal/(.)photo/[id]/page.tsx", "Vagrantfile",
])  # fmt: skip
@pytest.mark.parametrize("line", ["{}", "### {}", "**{}**", "- {}", "# {}", "{}:", "`{}`", "File: {}", "**File: `{}`**",
                                  "Here is the new `{}`:"])  # fmt: skip
def test_a_name_keeps_its_underscores_and_brackets(path: str, line: str) -> None:
    assert written(f"{line.format(path)}\n```\nx\n```\n") == {path: "x\n"}


@pytest.mark.parametrize("line", ["File: it's.py", "`it's.py`", "Here is the new `it's.py`:"])
def test_a_name_with_an_apostrophe_is_understood_where_it_is_marked(line: str) -> None:
    assert written(f"{line}\n```\nx\n```\n") == {"it's.py": "x\n"}


@pytest.mark.parametrize("line", [
    "Expected output of `b.py`:", "Run `b.py`:", "Now in `b.py` you can write:", "Example usage of `b.py`:", "Node.js",
    "### Node.js", "and/or", "Here is the Node.js code:",
    "Before (`b.py`):", "The old `b.py`:", "`b.py` (before):", "This leaves `b.py` alone.",
    "`b.py` の実行結果:", "When you run `b.py`, it prints:",
])  # fmt: skip
def test_a_block_that_is_only_about_a_file_is_not_that_file(line: str) -> None:
    assert written(f"a.py\n```\nx\n```\n\n{line}\n```python\ny\n```\n") == {"a.py": "x\n"}
    with pytest.raises(MalformedAnswerError, match="holds no change"):
        parse_answer(f"{line}\n```python\ny\n```\n")


@pytest.mark.parametrize("line", [
    "In `b.py`:", "Add this to `b.py`:", "Tests for `b.py`:", "The `main` function in `b.py`:",
    "Move it from `b.py` to `c.py`:",
    "Here are the changes to `b.py`:", "The fix for `b.py`:", "Updated code in `b.py`:",
    "I have changed the way in which the main module in `b.py` works:",
])  # fmt: skip
def test_a_block_that_may_be_a_file_or_a_part_of_it_is_refused_with_what_to_write(line: str) -> None:
    for before in ("", "a.py\n```\nx\n```\n\n"):
        with pytest.raises(MalformedAnswerError, match=r"not clear whether .* File: b\.py"):
            parse_answer(f"{before}{line}\n```python\ny\n```\n")


def test_a_block_about_a_file_that_the_answer_changes_elsewhere_is_an_illustration() -> None:
    text = "File: b.py\n```\nx\n```\n\nThe `main` function in `b.py`:\n```python\ny\n```\n"
    assert written(text) == {"b.py": "x\n"}


def test_the_text_before_and_after_is_one_change() -> None:
    text = "Before (`a.py`):\n```python\nx\n```\nAfter (`a.py`):\n```python\ny\n```\n"
    assert written(text) == {"a.py": "y\n"}
