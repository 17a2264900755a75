from __future__ import annotations

import pytest

from necrocode.agent_runner import ChangeRejectedError, TextEdit
from necrocode.agent_runner.generation.file_lines import Effort
from necrocode.agent_runner.generation.matching import apply_edits
from necrocode.agent_runner.generation.refusals import RefusedFile, feedback_of, message_of
from tests.support.pace import is_within


def edit(search: str, replace: str, **more: object) -> TextEdit:
    return TextEdit.model_validate({"search": search, "replace": replace, **more})


def new_text(text: str, *edits: TextEdit, in_order: bool = False) -> str:
    result = apply_edits(text, edits, in_order=in_order)
    assert not result.refusals, [refusal.explained() for refusal in result.refusals]
    return result.text


def reasons(text: str, *edits: TextEdit, in_order: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    result = apply_edits(text, edits, in_order=in_order)
    assert result.text == text
    return [(refusal.reason, refusal.lines) for refusal in result.refusals]


CODE = """\
class A:
    def one(self):
        x = "it's"
        return x

    def two(self):
        x = 'two – 2'

        return x
"""


# --- the ladder


@pytest.mark.parametrize(
    ("search", "replace", "wanted"),
    [
        ('        x = "it\'s"\n', '        x = "its"\n', ('"it\'s"', '"its"')),  # as it is
        ('        x = "it\'s"  \n', '        x = "its"\n', ('"it\'s"', '"its"')),  # blanks at the end
        ('x = "it\'s"\n', 'x = "its"\n', ('"it\'s"', '"its"')),  # no indentation
        ('    x = "it’s"\n', '    x = "its"\n', ('"it\'s"', '"its"')),  # a typographic apostrophe
        ("def two(self):\n    x = 'two - 2'\n", "def two(self):\n    x = 2\n", ("'two – 2'", "2")),  # a dash
        ("\n        x = 'two – 2'\n        return x\n", "\n        x = 2\n        return x\n", ("'two – 2'", "2")),
        ("    def two(self):\n        x = 'two – 2'\n\n\n        return x\n",
         "    def two(self):\n        x = 2\n\n\n        return x\n", ("'two – 2'", "2")),  # another blank line
    ],
)  # fmt: skip
def test_an_edit_is_found_in_spite_of_small_differences(search: str, replace: str, wanted: tuple[str, str]) -> None:
    assert new_text(CODE, edit(search, replace)) == CODE.replace(*wanted)


def test_what_an_edit_leaves_out_stays() -> None:
    search = "    def one(self):\n        ...\n    def two(self):\n"
    replace = "    def first(self):\n        ...\n    def second(self):\n"
    assert new_text(CODE, edit(search, replace)) == CODE.replace("one(", "first(").replace("two(", "second(")


@pytest.mark.parametrize("replace", ["    def first(self):\n", "    ...\n    def first(self):\n    # ...\n"])
def test_an_edit_that_leaves_out_on_one_side_alone_is_refused(replace: str) -> None:
    assert reasons(CODE, edit("    def one(self):\n    # ...\n    def two(self):\n", replace)) == [("missing", ())]


@pytest.mark.parametrize("search", ["function f() {\n...\n  return 1;\n", "  a();\n...\n  return 1;\n"])
def test_what_is_left_out_does_not_reach_into_another_function(search: str) -> None:
    text = "function f() {\n  a();\n}\nfunction h() {\n  return 1;\n}\n"
    assert reasons(text, edit(search, search.replace("1", "2"))) == [("missing", ())]
    text = "function f() {\n  a();\n  b();\n\n  return 1;\n}\n"
    assert new_text(text, edit(search, search.replace("1", "2"))) == text.replace("1", "2")


def test_what_is_left_out_holds_no_dots_of_the_files_own() -> None:
    stub = "class A:\n    def f(self):\n        ...\n    def g(self):\n        ...\n    def h(self):\n        ...\n"
    search = "    def f(self):\n        ...\n    def h(self):\n"
    assert reasons(stub, edit(search, search.replace("h(", "k("))) == [("missing", ())]


def test_other_marks_in_a_quoted_line_are_forgiven_and_the_line_stays() -> None:
    text = "def f(x):\n    # The square, of the given number.\n    y = x * x\n    return y\n"
    search = text.replace("square, of", "square of").replace("number.", "number")
    assert new_text(text, edit(search, search.replace("return y", "return y + 1"))) == text.replace(
        "return y", "return y + 1"
    )


def test_two_lines_are_too_few_to_be_nearly_the_same() -> None:
    text = "# Returns the square of the given number, whatever it is.\nfirst_value = call(1)\nsecond_value = call(2)\n"
    search = "# Returns the square of the given number whatever it is.\nfirst_value = call(1)\n"
    assert reasons(text, edit(search, search.replace("1", "5"))) == [("missing", ())]
    longer = f"{search}second_value = call(2)\n"
    assert new_text(text, edit(longer, longer.replace("1", "5"))) == text.replace("1", "5")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("encode", "decode"), ("valid", "invalid"), ("a == b", "a != b"), ("1.5", "15"), ("returns", "return")],
)
def test_another_word_number_or_operator_in_a_quoted_line_is_another_place(said: str, meant: str) -> None:
    text = f"def f(x):\n    # Whether all of it is so when this is given: {meant}, and so on\n    y = x\n    return y\n"
    search = text.replace(f": {meant},", f": {said},")
    assert reasons(text, edit(search, search.replace("return y", "return y + 1"))) == [("missing", ())]


@pytest.mark.parametrize(
    ("quoted", "written"),
    [
        ("    y = x * x + 1\n", "    y = x * x + 1\n"),  # other code
        ("    # Returns the square of 2 numbers.\n    y = x * x\n", "    # Returns the square of 2 numbers.\n"),
    ],
)
def test_another_line_of_code_or_another_number_is_another_place(quoted: str, written: str) -> None:
    text = "def f(x):\n    # Returns the square of 1 number.\n    y = x * x\n    return y\n"
    search, replace = f"def f(x):\n{quoted}    return y\n", f"def f(x):\n{written}    return y + 1\n"
    assert reasons(text, edit(search, replace)) == [("missing", ())]


def test_a_near_line_that_the_edit_changes_is_not_near_enough() -> None:
    text = "# one two three\n# The answer to all questions is here.\n# four five six\n"
    search = text.replace("questions", "question")
    assert reasons(text, edit(search, search.replace("here", "there"))) == [("missing", ())]


def test_of_two_near_places_neither_is_taken() -> None:
    block = "# The answer to all questions, is here.\nfirst_value = function(1)\nsecond_value = g(2)\n"
    search = block.replace("questions,", "questions")
    assert reasons(block + "z = 0\n" + block, edit(search, search.replace("g(2)", "g(3)"))) == [("ambiguous", (1, 5))]


# --- one place, or none


def test_several_places_are_a_refusal_with_their_lines() -> None:
    assert reasons(CODE, edit("        return x\n", "        return y\n")) == [("ambiguous", (4, 9))]


def test_places_that_differ_in_indentation_are_several_when_the_search_has_neither() -> None:
    assert reasons("if a:\n    x()\n  x()\n", edit("      x()\n", "      y()\n")) == [("ambiguous", (2, 3))]


def test_the_exact_place_is_preferred_to_those_that_are_only_alike() -> None:
    assert new_text("x \nx\n", edit("x\n", "y\n")) == "x \ny\n"


def test_a_line_number_chooses_only_when_it_hits_a_place() -> None:
    assert new_text("x\na\nx\n", edit("x\n", "y\n", line=3)) == "x\na\ny\n"
    assert reasons("x\na\nx\n", edit("x\n", "y\n", line=2)) == [("ambiguous", (1, 3))]


def test_the_order_of_hunks_chooses_when_it_leaves_one_place() -> None:
    text = "x\na\nx\nb\n"
    assert new_text(text, edit("a\n", "A\n"), edit("x\n", "y\n"), edit("b\n", "B\n"), in_order=True) == "x\nA\ny\nB\n"
    assert reasons(text, edit("x\n", "y\n"), edit("b\n", "B\n"), in_order=True) == [("ambiguous", (1, 3))]
    assert reasons(text, edit("a\n", "A\n"), edit("x\n", "y\n")) == [("ambiguous", (1, 3))]


def test_as_many_equal_hunks_as_places_have_one_place_each() -> None:
    assert new_text("x\nx\n", edit("x\n", "1\n"), edit("x\n", "2\n"), in_order=True) == "1\n2\n"


def test_hunks_that_are_not_in_order_are_found_where_they_are() -> None:
    assert new_text("a\nb\n", edit("b\n", "B\n"), edit("a\n", "A\n"), in_order=True) == "A\nB\n"


def test_an_anchor_chooses_the_place_under_it() -> None:
    change = edit("        return x\n", "        return y\n", anchors=("def two(self):",))
    assert new_text(CODE, change) == CODE[:-2] + "y\n"
    assert reasons(CODE, edit("        return x\n", "", anchors=("def three",))) == [("unanchored", ())]
    assert reasons(CODE, edit('        x = "it\'s"\n', "", anchors=("def two",))) == [("unanchored", ())]


def test_anchors_narrow_each_other_down() -> None:
    text = "class A:\n    def f():\n        x\nclass B:\n    def f():\n        x\n"
    assert new_text(text, edit("        x\n", "        y\n", anchors=("class B", "def f"))) == text[:-2] + "y\n"
    assert reasons(text, edit("        x\n", "        y\n", anchors=("def f",))) == [("ambiguous", (3, 6))]


def test_a_heading_helps_but_may_be_wrong() -> None:
    search, replace = "        return x\n", "        return y\n"
    assert new_text(CODE, edit(search, replace, heading="def two(self):")) == CODE[:-2] + "y\n"
    assert new_text(CODE, edit('        x = "it\'s"\n', "", heading="imports")) == CODE.replace(
        '        x = "it\'s"\n', ""
    )


def test_at_the_end_means_there() -> None:
    assert new_text("x\nx\n", edit("x\n", "y\n", at_end=True)) == "x\ny\n"
    assert reasons("x\nb\n", edit("x\n", "y\n", at_end=True)) == [("not at the end", ())]


def test_every_place_can_be_meant() -> None:
    assert new_text("x\nxx\nx\n", edit("x", "y", whole_lines=False, every=True)) == "y\nyy\ny\n"
    assert new_text("foo\n" * 400, edit("foo", "bar", whole_lines=False, every=True)) == "bar\n" * 400
    assert new_text("foo\n" * 400, edit("foo\n", "bar\n", every=True)) == "bar\n" * 400
    assert new_text("  foo\n" * 400, edit("foo \n", "bar\n", every=True)) == "  bar\n" * 400
    assert new_text("aaa\n", edit("aa", "b", whole_lines=False, every=True)) == "ba\n"


def test_a_part_of_a_line_must_be_there_once_too() -> None:
    assert new_text("a = f(1)\nb = f(2)\n", edit("f(2)", "g(2)", whole_lines=False)) == "a = f(1)\nb = g(2)\n"
    assert reasons("a = f(1)\nb = f(2)\n", edit("f(", "g(", whole_lines=False)) == [("ambiguous", (1, 2))]
    assert new_text("if a:\n    b()\n", edit("if a:\n  b()", "if a:\n  c()", whole_lines=False)) == "if a:\n    c()\n"


@pytest.mark.parametrize("text", ["max = 10\n", "x = 10\n", "max = 1\n"])
def test_a_part_of_a_word_or_number_is_no_place(text: str) -> None:
    assert reasons(text, edit("x = 1", "x = 2", whole_lines=False)) == [("cut", ())]
    assert new_text(f"{text}x = 1\n", edit("x = 1", "x = 2", whole_lines=False)) == f"{text}x = 2\n"
    assert new_text("名前を変える\n", edit("前を", "札を", whole_lines=False)) == "名札を変える\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [("x\na\nb\na", (2, 4)), ("\ufeffa\nb\na\n", (1, 3)), ("\ufeffa\nb\na", (1, 3)), ("a\r\nb\na", (1, 3))],
)
def test_the_first_and_the_last_line_are_places_like_others(text: str, lines: tuple[int, ...]) -> None:
    assert reasons(text, edit("a\n", "Z\n")) == [("ambiguous", lines)]


def test_a_part_with_its_line_break_may_be_the_last_line_without_one() -> None:
    assert reasons("x\na\nb\na", edit("a\n", "Z\n", whole_lines=False)) == [("ambiguous", (2, 4))]
    assert new_text("a\na", edit("a\n", "Z\n", whole_lines=False, every=True)) == "Z\nZ"


def test_blank_lines_alone_are_no_place_unless_there_is_one_such() -> None:
    assert new_text("a\n\nb\n", edit("\n", "\nc\n")) == "a\n\nc\nb\n"
    assert reasons("a\n\nb\n\n", edit("\n", "\nc\n")) == [("ambiguous", (2, 4))]


# --- several edits


def test_edits_are_found_in_the_text_as_it_was() -> None:
    assert new_text("a\nb\n", edit("a\n", "b\n"), edit("b\n", "c\n")) == "b\nc\n"


def test_an_edit_may_build_on_the_one_before_it() -> None:
    assert new_text("a\n", edit("a\n", "a\nb\n"), edit("b\n", "c\n")) == "a\nc\n"


def test_hunks_that_overlap_are_refused() -> None:
    overlapping = edit("a\nb\n", "A\nb\n"), edit("b\nc\n", "b\nC\n")
    assert reasons("a\nb\nc\n", *overlapping, in_order=True) == [("overlapping", (2,))]
    assert new_text("a\nb\nc\n", *overlapping) == "A\nb\nC\n"


def test_one_refused_edit_refuses_all() -> None:
    assert reasons("a\nb\n", edit("a\n", "A\n"), edit("z\n", "Z\n")) == [("missing", ())]


# --- what is kept


@pytest.mark.parametrize(
    ("text", "search", "replace", "wanted"),
    [
        ("a\r\nb\r\n", "a\n", "1\n2\n", "1\r\n2\r\nb\r\n"),
        ("a\r\nb\r\n", "a\r\nb\r\n", "a\nb\r\n", "a\nb\r\n"),  # a diff that is about line ends
        ("a\r\nb\nc\n", "a\nb\n", "a\nx\nb\n", "a\r\nx\r\nb\nc\n"),
        ("a\r\nb\r\nc\n", "c\n", "c\nd\n", "a\r\nb\r\nc\nd\n"),
        ("a\rb\rc\r", "b\n", "x\ny\n", "a\rx\ry\rc\r"),
        ("\ufeffa\nb\n", "a\n", "c\n", "\ufeffc\nb\n"),
        ("\ufeffa\nb\n", "\ufeffa\n", "c\n", "c\nb\n"),  # a diff that takes the mark away
        ("\ufeffa\r\n", "a\n", "c\n", "\ufeffc\r\n"),
        ("a\nb", "b\n", "c\n", "a\nc"),
        ("a\nb", "a\n", "x\n", "x\nb"),
        ("a\nb", "b\n", "b\nc\n", "a\nb\nc"),
        ("a\r\nb", "b\n", "b\nc\n", "a\r\nb\r\nc"),
        ("a\nb\n", "b\n", "", "a\n"),
        ("a\tb\x0c\n", "a\tb\x0c\n", "c\n", "c\n"),
        ("a\x0cb\nc\n", "c\n", "d\n", "a\x0cb\nd\n"),
        ("a\u2028b\nc\u0085\n", "c\u0085\n", "d\n", "a\u2028b\nd\n"),
    ],
)
def test_line_ends_marks_and_the_end_of_the_file_are_kept(text: str, search: str, replace: str, wanted: str) -> None:
    assert new_text(text, edit(search, replace)) == wanted


@pytest.mark.parametrize(
    ("manner", "search", "replace", "wanted"),
    [
        ("stated", "b", "b\n", "a\nb\n"),
        ("stated", "b", "c", "a\nc"),
        ("added", "b\n", "c\n", "a\nc\n"),
        ("added", "a\n", "x\n", "x\nb\n"),
    ],
)
def test_a_format_may_say_how_the_file_ends(manner: str, search: str, replace: str, wanted: str) -> None:
    assert new_text("a\nb", edit(search, replace, final_newline=manner)) == wanted


@pytest.mark.parametrize(
    ("text", "search", "replace", "wanted"),
    [
        ("\tif a:\n\t\tb()\n", "if a:\n    b()\n", "if a:\n    b()\n    if c:\n        d()\n",
         "\tif a:\n\t\tb()\n\t\tif c:\n\t\t\td()\n"),
        ("\tb()\n", "    b()\n", "    if a:\n        b()\n", "\tif a:\n\t\tb()\n"),
        ("class A:\n    def f():\n        b()\n", "  def f():\n    b()\n", "  def f():\n    c()\n    d()\n",
         "class A:\n    def f():\n        c()\n        d()\n"),
        ("if x:\n        b()\n", "    b()\n", "    b()\n\n    c()\n", "if x:\n        b()\n\n        c()\n"),
        ("        b()\n", "    b()\n", "    b()\nc()\n", "        b()\n    c()\n"),
    ],
)  # fmt: skip
def test_new_lines_are_indented_as_the_file_is(text: str, search: str, replace: str, wanted: str) -> None:
    assert new_text(text, edit(search, replace)) == wanted


def test_lines_that_are_indented_by_no_one_rule_are_refused() -> None:
    text = "def f():\n    a()\n        b()\n"
    assert reasons(text, edit("a()\nb()\n", "a()\nc()\n")) == [("missing", ())]


def test_lines_that_an_edit_only_quotes_stay_as_the_file_has_them() -> None:
    text = "x = “a”  \ny = 1\n"
    assert new_text(text, edit('x = "a"\ny = 1\n', 'x = "a"\ny = 2\n')) == "x = “a”  \ny = 2\n"


def test_blank_lines_that_only_the_file_has_stay_or_go_with_their_lines() -> None:
    assert new_text("a\n\nb\nc\n", edit("a\nb\nc\n", "a\nb\nd\n")) == "a\n\nb\nd\n"
    assert new_text("k\na\n\nb\nc\n", edit("k\na\nb\nc\n", "k\nc\n")) == "k\nc\n"
    assert new_text("a\n\nb\n", edit("a\nb\n", "a\nx\n\nb\n")) == "a\n\nx\n\nb\n"
    assert reasons("a\n\nb\n", edit("a\nb\n", "a\nx\nb\n")) == [("missing", ())]  # before the blank line, or after?


# --- an edit without a search


def test_without_a_search_a_file_is_filled_or_added_to_at_its_end() -> None:
    assert new_text("", edit("", "a\n")) == "a\n"
    assert new_text("a\n", edit("", "b\n", at_end=True)) == "a\nb\n"
    assert new_text("a", edit("", "b\n", at_end=True)) == "a\nb"
    assert new_text("a\nb\n", edit("", "x\n", line=2)) == "a\nx\nb\n"
    assert new_text("a\nb\n", edit("", "x\n", line=3)) == "a\nb\nx\n"
    assert reasons("a\n", edit("", "b\n")) == [("nowhere", ())]
    assert reasons("a\n", edit("", "b\n", line=9)) == [("nowhere", ())]


# --- what the model is told


def test_a_refusal_shows_the_nearest_lines_and_what_held() -> None:
    edits = (
        edit("    def one(self):\n", "    def first(self):\n"),
        edit("        y = two2\n        return x\n", "z\n"),
    )
    refusals = apply_edits(CODE, edits).refusals
    files = [RefusedFile("a.py", len(edits), refusals)]
    text = feedback_of(files)
    assert message_of(files) == "Edit 2 of a.py cannot be applied: its search text is not in the file."
    for part in (
        "Edit 2 was refused",
        "y = two2",
        "     4 |         return x",
        "would have held: 1",
        "Nothing of your",
    ):
        assert part in text
    assert text.endswith("Send the whole answer again, with every edit, the mended and the others.")


def test_a_refusal_says_that_the_change_is_there_already() -> None:
    (refusal,) = apply_edits("a = 2\n", [edit("a = 1\n", "a = 2\n")]).refusals
    assert refusal.is_there_already
    assert "has the replacement already" in refusal.explained()


def test_a_word_of_the_file_is_not_the_replacement_of_a_whole_line() -> None:
    (refusal,) = apply_edits("max = 2\n", [edit("a = 1\n", "x = 2\n")]).refusals
    assert not refusal.is_there_already


def test_feedback_is_bounded_whatever_the_edits_hold() -> None:
    text = "".join(f"{'word ' * 1000}{number}\n" for number in range(100))
    edits = [edit(f"{'word ' * 5000}x{number}\n" * 20, "y\n") for number in range(30)]
    refusals = apply_edits(text, edits).refusals
    files = [RefusedFile(f"{'p' * 1000}{number}.py", len(edits), refusals) for number in range(30)]
    assert len(feedback_of(files)) < 40_000
    assert len(message_of(files)) < 600


# --- bounds


class Counted(Effort):
    def __init__(self) -> None:
        super().__init__()
        self.spent = 0

    def spend(self, amount: int) -> None:
        self.spent += amount
        super().spend(amount)


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("x\n", "x\n"),
        ("\n", "\n"),
        ("x\ny\n", "y\ny\n"),
        ("# the answer to all the questions is here\n", "# the answer to all the question is here\n"),
        ("a\n...\n", "a\n...\nb\n"),
        ("    x\n", "x\n  y\n"),
    ],
)
@pytest.mark.parametrize("count", [1, 300])
def test_looking_takes_effort_in_proportion_to_the_file(text: str, search: str, count: int) -> None:
    def effort(size: int) -> int:
        counted = Counted()
        apply_edits(text * size, [edit(search * count, "z\n", anchors=(text.strip(),))], effort=counted)
        return counted.spent

    assert effort(40_000) <= effort(20_000) * 2.5 + 1000


@pytest.mark.parametrize("line", ["# the answer to all the questions is here, in line {}\n", "value_{} = f({})  # x\n"])
def test_a_megabyte_of_near_matches_is_looked_through_in_time(line: str) -> None:
    text = "".join(line.replace("{}", str(number)) for number in range(30_000))
    search = text[: len(text) // 2].replace("all", "al").replace("# x", "#x")
    edits = [edit(search, f"{search}\n"), *(edit(search[number:2000], "x\n") for number in range(0, 1000, 50))]
    assert is_within(10, lambda: apply_edits(text, edits))


def test_comparing_the_two_sides_of_edits_is_counted_too() -> None:
    sides = [("".join("ab"[(at * step) % 7 % 2] + "\n" for at in range(490))) for step in (1, 3)]
    with pytest.raises(ChangeRejectedError, match="take too long to find"):
        apply_edits(sides[0].replace("\n", "  \n"), [edit(sides[0], f"x\n{sides[1]}y\n")], effort=Effort(10_000_000))


def test_too_much_to_look_through_is_refused() -> None:
    with pytest.raises(ChangeRejectedError, match="take too long to find"):
        apply_edits(
            "ab\nb\n" * 10_000, [edit(f"b\nb{number}\n", "") for number in range(100)], effort=Effort(1_000_000)
        )
