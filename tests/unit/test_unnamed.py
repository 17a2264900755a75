"""Blocks without a path: taken for the one file that they surely are, and for none in every doubt."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from necrocode.agent_runner import MalformedAnswerError
from necrocode.agent_runner.generation.answer_reader import Reading
from necrocode.agent_runner.generation.blocks import Block
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.unnamed import file_without_name

SHAPES = '''"""Shapes."""

from math import pi

SIDES = 4


class Square:
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side * SIDES


def circle(radius):
    """The area."""
    return pi * radius
'''
MENDED = SHAPES.replace("* SIDES", "** 2").replace("pi * radius", "pi * radius**2")
OUTLINE = """\
from math import pi

SIDES = 4


class Square:
    def __init__(self): ...

    def area(self): ...


def circle(r): ...
"""
TOOLS = "def circle_of(shape):\n    return shape\n"
SUMS = "export function sum(a, b) {\n  return a - b;\n}\n"
FILES = {"src/shapes.py": SHAPES, "src/tools.py": TOOLS, "web/sums.js": SUMS, "notes.txt": "circle\n"}


def reading(*texts: str) -> Reading:
    return Reading((), tuple(Block("", "", text) for text in texts), (), "")


def owner(text: str, files: dict[str, str] | None = None) -> str | None:
    found = file_without_name(reading(text), FILES if files is None else files)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (MENDED, "src/shapes.py"),
        (SHAPES, "src/shapes.py"),
        (MENDED.partition("\n\n")[2], "src/shapes.py"),  # without the docstring
        (MENDED + "\n\ndef more():\n    return 1\n", "src/shapes.py"),
        ("# shapes.py\n" + MENDED, "src/shapes.py"),
        (SUMS.replace("-", "+"), "web/sums.js"),
        (TOOLS.replace("return shape", "return shape.circle"), "src/tools.py"),
    ],
)
def test_a_block_that_defines_all_that_one_file_does_is_that_file(text: str, path: str) -> None:
    assert owner(text) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (MENDED.replace("from math import pi\n", ""), "an import is gone"),
        (MENDED.replace("from math import pi\n", "").replace('    """The', '    from math import pi\n    """The'),
         "an import has moved into a function"),
        (MENDED.replace("SIDES = 4\n", ""), "a constant is gone"),
        (MENDED.partition("def circle")[0], "a function is gone"),
        (MENDED.replace("def area", "def surface"), "a method has another name"),
        (MENDED.replace("return pi", "return (pi"), "does not parse"),
        (MENDED.replace("return pi * radius**2", "..."), "a body is left out"),
        (MENDED.replace("return pi * radius**2", "raise NotImplementedError"), "a body is a stub"),
        (MENDED + "\nprint(circle(3))\n", "does more"),
        ("# src/shapes2.py\n" + MENDED, "its first line names another file"),
        ("# tests/test_shapes.py\n" + MENDED, "its first line names a test"),
        (OUTLINE, "an outline"),
        ("def circle_of(shape):\n    import shapes\n    print(shapes.circle(3))\n", "another function of that name"),
        ("circle\n", "a file without definitions"),
        ("", "nothing"),
    ],
    ids=lambda value: value if " " in value and len(value) < 40 else "",
)  # fmt: skip
def test_a_block_that_may_be_something_else_is_no_file(text: str, path: str) -> None:
    assert owner(text) is None, path


@pytest.mark.parametrize(
    ("path", "old", "gone"),
    [
        ("a.py", "class A:\n    x = 1\n    y = 2\n\n    def f(self):\n        return self.x\n", "    y = 2\n"),
        ("a.py", "class A:\n    @property\n    def f(self):\n        return 1\n", "    @property\n"),
        ("a.py", "# mypy: strict\ndef f(x):\n    return x\n", "# mypy: strict\n"),
        ("a.go", "package a\n\ntype P struct {\n\tX int\n\tY int\n}\n\nfunc F() int {\n\treturn 1\n}\n", "\tY int\n"),
        ("a.go", "//go:build linux\n\npackage a\n\nfunc F() int {\n\treturn 1\n}\n", "//go:build linux\n"),
        ("a.js", "'use strict';\nfunction f() {\n  return 1;\n}\n", "'use strict';\n"),
        ("A.java", "class A {\n  int f(int a) {\n    return 1;\n  }\n  int f(long a) {\n    return 2;\n  }\n}\n",
         "  int f(long a) {\n    return 2;\n  }\n"),
        ("a.c", "#include <stdio.h>\nint f(int a)\n{\n    return a;\n}\n", "#include <stdio.h>\n"),
        ("a.sh", "#!/bin/sh\nset -eu\n\ngreet() {\n  echo hi\n}\n", "set -eu\n"),
    ],
)  # fmt: skip
def test_every_line_outside_of_functions_has_to_stay(path: str, old: str, gone: str) -> None:
    assert gone in old
    assert (owner(old.replace(gone, ""), {path: old}), owner(old + "\n\n", {path: old})) == (None, path)


@pytest.mark.parametrize(
    ("answer", "is_taken"),
    [
        ("The sign is wrong.\n\n{code}\nRun it:\n\n```bash\nnode a.js\n```\n", True),
        ("It printed:\n\n```text\n-1\n```\n\nMended:\n\n{code}", True),
        ("Before:\n\n{old}\nAfter:\n\n{code}", True),
        ("The sign is not what it was meant to be.\n\n{code}", True),
        ("The current code:\n\n{code}\nIs right.\n", False),
        ("**Usage example**\n\n{code}", False),
        ("Do not do this:\n\n{code}", False),
        ("Don't do this:\n\n{code}", False),
        ("The sum:\n\n{code}\nAnd its caller:\n\n```js\nsum(1, 2);\n```\n", False),
        ("{code}\n```bash\ncat > b.js <<EOF\nEOF\n```\n", False),
        ("```text\n{bare}```\n", False),
    ],
)
def test_what_is_said_around_a_block_and_shown_beside_it_counts(answer: str, is_taken: bool) -> None:
    new = SUMS.replace("-", "+")
    text = answer.format(code=f"```js\n{new}```\n", old=f"```js\n{SUMS}```\n", bare=new)
    if is_taken:
        assert [change.content for change in parse_answer(text, {"a.js": SUMS}).changes] == [new]
    else:
        with pytest.raises(MalformedAnswerError):
            parse_answer(text, {"a.js": SUMS})


def test_hostile_answers_are_bounded() -> None:
    files = {f"m{number}.py": TOOLS * 500 for number in range(40)}
    started = time.monotonic()
    for text in ('f"{' * 30_000, TOOLS * 5000, "(" * 90_000, "x = 1\n"):
        answer = f"```python\n{text}```\n"
        with pytest.raises(MalformedAnswerError):
            parse_answer(answer * (1000 if len(text) < 10 else 1), files)
    for prose in ("a-" * 500_000, "a/" * 500_000, "a." * 500_000, "a.js " * 200_000):
        with suppress(MalformedAnswerError):
            parse_answer(f"{prose}\n\n```js\n{SUMS.replace('-', '+')}```\n", {"web/sums.js": SUMS})
    assert time.monotonic() - started < 60


def test_of_two_files_that_a_block_may_be_it_is_neither() -> None:
    assert owner(SUMS, {"a.js": SUMS, "b.js": SUMS}) is None
    assert file_without_name(reading(SUMS, SUMS + "\n"), {"a.js": SUMS}) is None


def test_an_answer_whose_only_code_names_no_file_changes_the_file_that_it_is() -> None:
    answer = f"The sign is wrong. The correct code:\n\n```js\n{SUMS.replace('-', '+')}```\n\nNow it adds.\n"
    parsed = parse_answer(answer, FILES)
    assert [(change.file_path, change.content) for change in parsed.changes] == [
        ("web/sums.js", SUMS.replace("-", "+")),
    ]
    assert (parsed.edit_format, parsed.explanation) == ("files", "The sign is wrong. The correct code: Now it adds.")
    with pytest.raises(MalformedAnswerError, match="no change"):
        parse_answer(answer)


def test_a_sentence_about_a_file_before_its_whole_text_is_no_doubt_any_more() -> None:
    answer = f"In `web/sums.js`:\n\n```js\n{SUMS.replace('-', '+')}```\n"
    with pytest.raises(MalformedAnswerError, match="not clear"):
        parse_answer(answer)
    assert [change.file_path for change in parse_answer(answer, FILES).changes] == ["web/sums.js"]


def test_beside_changes_that_name_their_files_a_block_without_a_name_is_only_shown() -> None:
    answer = f"It was:\n\n```js\n{SUMS}```\n\nsrc/tools.py\n```python\n{TOOLS}\n```\n"
    assert [change.file_path for change in parse_answer(answer, FILES).changes] == ["src/tools.py"]


@pytest.mark.parametrize(
    ("said", "is_taken"),
    [
        ("See `sums.js` and tests/sums.test.js: Node.js needs no Array.map here, self.c() neither.", True),
        ("This is the new module `web/products.js`, which has the sum too.", False),
        ("web/more/sums2.js\n\nIt has the sum too.", False),
    ],
)
def test_an_answer_that_speaks_of_another_source_file_may_be_about_that_one(said: str, is_taken: bool) -> None:
    answer = f"{said}\n\nHere:\n\n```js\n{SUMS.replace('-', '+')}```\n"
    if is_taken:
        assert [change.file_path for change in parse_answer(answer, FILES).changes] == ["web/sums.js"]
    else:
        with pytest.raises(MalformedAnswerError):
            parse_answer(answer, FILES)
