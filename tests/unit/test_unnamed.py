"""Blocks without a path: taken for the one file that they surely are, and for none in every doubt."""

from __future__ import annotations

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
        (SUMS.replace("-", "+"), "web/sums.js"),
        (TOOLS.replace("return shape", "return shape.circle"), "src/tools.py"),
    ],
)
def test_a_block_that_defines_all_that_one_file_does_is_that_file(text: str, path: str) -> None:
    assert owner(text) == path


@pytest.mark.parametrize(
    "text",
    [
        MENDED.replace("from math import pi\n", ""),
        MENDED.replace("SIDES = 4\n", ""),
        MENDED.partition("def circle")[0],
        MENDED.replace("def area", "def surface"),
        MENDED.replace("return pi", "return (pi"),
        "def circle_of(n):\n    import shapes\n    print(shapes.circle(n))\n",
        OUTLINE,
        "circle\n",
        "",
    ],
    ids=[
        "an import is gone", "a constant is gone", "a function is gone", "a method has another name", "does not parse",
        "another function of that name", "an outline", "a file without definitions", "nothing",
    ],
)  # fmt: skip
def test_a_block_that_may_be_something_else_is_no_file(text: str) -> None:
    assert owner(text) is None


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
        ("See `sums.js`: calling Array.map is not needed.", True),
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
