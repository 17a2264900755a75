"""Search/replace blocks whose lines carry the signs of a diff."""

from __future__ import annotations

import pytest

from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.matching import Edited, apply_edits

CODE = "import os\n\n\nclass A:\n    def f(self):\n        x = 1\n        return x\n"
LIST = "# Shopping\n\n- milk\n- bread\n"
PATCH = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n+new\n"


def block(search: str, replace: str) -> str:
    return f"File: a.py\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def edited(text: str, search: str, replace: str) -> Edited:
    (change,) = parse_answer(block(search, replace)).changes
    return apply_edits(text, change.edits)


@pytest.mark.parametrize(
    ("search", "replace", "wanted"),
    [
        ("-        x = 1\n", "+        x = 2\n", CODE.replace("1", "2")),
        ("-x = 1\n", "+x = 2\n", CODE.replace("1", "2")),
        ("- x = 1\n", "+ x = 2\n", CODE.replace("1", "2")),
        ("     def f(self):\n-        x = 1\n", "     def f(self):\n+        x = 2\n", CODE.replace("1", "2")),
        ("         x = 1\n", "         x = 1\n+        y = 2\n", CODE.replace("x = 1\n", "x = 1\n        y = 2\n")),
        ("-import os\n", "", CODE.replace("import os\n", "")),
        ("         x = 1\n-        return x\n", "         x = 1\n", CODE.replace("        return x\n", "")),
        ("-import os\n-\n-\n class A:\n", "+import re\n+\n+\n class A:\n", CODE.replace("os", "re")),
        (" import os\n\n\n class A:\n", " import os\n+import re\n\n\n class A:\n", CODE.replace("os", "os\nimport re")),
    ],
)
def test_signs_are_taken_off_where_the_file_has_the_lines_without_them(search: str, replace: str, wanted: str) -> None:
    assert edited(CODE, search, replace) == Edited(wanted)


@pytest.mark.parametrize(
    ("search", "replace"),
    [
        ("import os\n", "+import re\n"),
        ("import os\n", "import os\n+import re\n"),
        ("import os\n", "-import os\n+import re\n"),
        ("        x = 1\n", "+        x = 2\n"),
        ("        x = 1\n", "        x = 1\n+       y = 2\n"),
        ("import os\n", "+ import re\n"),
        ("import os\n", "+- x\n"),
        ("-        x = 1\n", "        x = 2\n"),
        ("-import os\n", "import re\n"),
    ],
)
def test_signs_on_one_side_alone_are_refused(search: str, replace: str) -> None:
    result = edited(CODE, search, replace)
    assert result.text == CODE
    assert [refusal.reason in {"signed", "missing"} for refusal in result.refusals] == [True]


def test_an_item_of_a_list_that_is_given_a_sign_is_refused() -> None:
    assert [refusal.reason for refusal in edited("- a: 1\n", "- a: 1\n", "- a: 1\n+- b: 2\n").refusals] == ["signed"]


def test_the_refusal_says_what_to_leave_out() -> None:
    (refusal,) = edited(CODE, "import os\n", "+import re\n").refusals
    assert "Write the lines as they stand in the file, without + and - in front." in refusal.explained()


@pytest.mark.parametrize(
    ("text", "search", "replace", "wanted"),
    [
        (LIST, "- milk\n", "+ milk\n", LIST.replace("- milk", "+ milk")),
        ("-1\n2\n", "-1\n", "+1\n", "+1\n2\n"),
        ("i = 0\n", "i = 0\n", "i = 0\n++i\n", "i = 0\n++i\n"),
        (LIST, "- milk\n", "- cream\n", LIST.replace("milk", "cream")),
        (LIST, "- milk\n", "", LIST.replace("- milk\n", "")),
        (LIST, "# Shopping\n", "# Shopping\n\n+ eggs\n", LIST.replace("Shopping\n", "Shopping\n\n+ eggs\n")),
        (PATCH, "-old\n", "-older\n", PATCH.replace("-old", "-older")),
        (PATCH, "-old\n", "-old\n+newer\n", PATCH.replace("-old\n", "-old\n+newer\n")),
        (PATCH, "+new\n", "+newer\n", PATCH.replace("+new\n", "+newer\n")),
        ("+81 1\nx\n", "x\n", "+81 2\n", "+81 1\n+81 2\n"),
        ("a = (b\n     + c)\n", "     + c)\n", "     + d)\n", "a = (b\n     + d)\n"),
        ("- a: 1\n  b: 2\n", "- a: 1\n  b: 2\n", "- a: 1\n  b: 3\n", "- a: 1\n  b: 3\n"),
    ],
)
def test_signs_that_are_the_files_own_stay(text: str, search: str, replace: str, wanted: str) -> None:
    assert edited(text, search, replace) == Edited(wanted)


def test_lines_that_are_there_with_and_without_signs_are_refused() -> None:
    text = "  - a\n\nb\n\na\n"
    assert [refusal.reason for refusal in edited(text, "-a\n", "+c\n").refusals] == []
    assert [refusal.reason for refusal in edited("  - a\n\n a\n", "- a\n", "+ c\n").refusals] == ["signed"]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("+def f():\n+\n+    return 1\n", "def f():\n\n    return 1\n"),
        ("+ def f():\n+     return 1\n", "def f():\n    return 1\n"),
        ("+ milk\n+ bread\n", "+ milk\n+ bread\n"),
        ("+a\nb\n", "+a\nb\n"),
        ("\n", "\n"),
    ],
)
def test_a_new_file_has_no_sign_in_front_of_each_line(said: str, written: str) -> None:
    (change,) = parse_answer(block("", said)).changes
    assert change.edits[0].replace == written


def test_a_whole_line_of_code_that_json_gives_a_sign_is_refused_and_a_part_of_one_is_not() -> None:
    def of_json(search: str, replace: str) -> Edited:
        edits = f'[{{"search": "{search}", "replace": "{replace}"}}]'
        answer = f'{{"changes": [{{"operation": "edit", "file_path": "a.py", "edits": {edits}}}]}}'
        return apply_edits(CODE, parse_answer(answer).changes[0].edits)

    assert of_json("import os", "+import re").refusals
    assert of_json("-import os", "+import re").text == CODE.replace("os", "re")
    assert of_json("x = ", "+x = ").text == CODE.replace("x = ", "+x = ")
