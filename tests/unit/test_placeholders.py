from __future__ import annotations

import pytest

from necrocode.agent_runner import ChangeRejectedError
from necrocode.agent_runner.generation.placeholders import refuse_placeholders
from necrocode.agent_runner.models import CodeChange, TextEdit

OLD = "import os\n\n\ndef a():\n    return 1\n\n\ndef b():\n    return 2\n"


def refuse(line: str, old: str | None = OLD) -> None:
    change = CodeChange(operation="modify", file_path="a.py", content=f"def a():\n    return 3\n\n\n{line}\n")
    refuse_placeholders([change], lambda _path: old)


@pytest.mark.parametrize(
    "line",
    [
        "# ... rest of the code ...",
        "# ... existing code ...",
        "    # ... (rest of the class remains unchanged)",
        "// ... existing methods ...",
        "// rest of the file unchanged",
        "/* ... other functions stay the same ... */",
        "<!-- ... remaining content ... -->",
        "# …existing imports…",
        "# ... 以下同じ",
        "# 既存のコードはそのまま",
        "-- ... previous statements unchanged",
        "{/* ... existing code ... */}",
    ],
)
def test_a_comment_in_the_place_of_code_is_refused_and_quoted_to_the_model(line: str) -> None:
    with pytest.raises(ChangeRejectedError) as caught:
        refuse(line)
    assert line.strip() in (caught.value.feedback or "")


@pytest.mark.parametrize(
    "line",
    [
        "# the rest of the arguments are passed on",
        "# wait for the remaining tests",
        "x = [...]  # existing code",
        "# ...",
        "def rest(*other): ...",
        "# existing code paths are kept in sync with b()",
        "print('... rest of the code ...')",
    ],
)
def test_ordinary_comments_and_code_are_no_placeholders(line: str) -> None:
    refuse(line)


def test_a_comment_that_the_file_has_already_may_stay() -> None:
    refuse("# ... existing code ...", f"{OLD}\n# ... existing code ...\n")


def test_a_new_file_may_say_what_it_likes() -> None:
    refuse("# ... existing code ...", None)


def test_the_new_side_of_an_edit_is_looked_at_too() -> None:
    edit = TextEdit(search="    return 1\n", replace="    return 3\n    # ... existing code ...\n")
    with pytest.raises(ChangeRejectedError):
        refuse_placeholders([CodeChange(operation="edit", file_path="a.py", edits=(edit,))], lambda _path: OLD)


def dotted(search: str, replace: str, *, path: str = "a.py", in_order: bool = False) -> None:
    edits = (TextEdit(search=search, replace=replace),)
    change = CodeChange(operation="edit", file_path=path, edits=edits, in_order=in_order)
    refuse_placeholders([change], lambda _path: OLD)


@pytest.mark.parametrize(
    ("search", "replace"),
    [
        ("def f():\n    a()\n    b()\n", "def f():\n    ...\n"),
        ("def f():\n    a()\n    b()\n", "def f(x):\n    ...\n"),
        ("def f():\n    a()\n", "def f():\n    a()\n    c()\n    ...\n"),
        ("    a()\n    b()\n", "    c()\n    ...\n    d()\n"),
    ],
)
def test_dots_in_the_place_of_lines_are_refused(search: str, replace: str) -> None:
    with pytest.raises(ChangeRejectedError, match="in the place of code"):
        dotted(search, replace)
    dotted(search, replace, in_order=True)
    dotted(search, replace, path="docs/index.rst")


@pytest.mark.parametrize(
    ("search", "replace"),
    [
        ("class P:\n    x: int\n", "class P:\n    x: int\n\n    def f(self) -> int:\n        ...\n"),
        ("def f():\n    ...\n", "def g():\n    ...\n"),
        ("def f():\n    ...\n    b()\n", "def f():\n    ...\n    c()\n"),
        ("", "def f():\n    ...\n"),
    ],
)
def test_the_dots_of_a_new_stub_and_of_the_search_may_stay(search: str, replace: str) -> None:
    dotted(search, replace)
