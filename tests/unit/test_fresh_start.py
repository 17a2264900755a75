"""When the only function of a file is left out for a model to write anew, and that it is not lost."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.fresh_start import (
    LeftOut,
    is_to_mend,
    refuse_omission,
    refuse_unwritten,
    without_blamed,
)
from necrocode.agent_runner.models import CodeChange, TextEdit
from tests.support.pace import is_within

PATH = "shop/cart.py"
SOURCE = """\
import os
from math import ceil

UNUSED = 1


def total(cart, factor=1):
    \"\"\"The sum.\"\"\"
    first = cart.sum
    if first is None:
        raise ValueError(cart)
    return ceil(first)
"""
LEFT_OUT = "# ... omitted: the tests fail with it"
INSIDE = SOURCE.partition('sum."""\n')[2]
TEST = """\
from shop.cart import total
from shop.other import given


def helper():
    return given()


def test_total():
    assert total(1) == 2
"""
FAILED = ">       assert total(1) == 2\nE       assert 1 == 2\n\ntest_cart.py:10: AssertionError"


def left_out(*tracebacks: str, path: str = PATH, text: str = SOURCE, **others: str) -> LeftOut | None:
    files = {
        path: text,
        "test_cart.py": TEST,
        "README.md": "total",
        **{f"{k}.py": other for k, other in others.items()},
    }
    return without_blamed(files, path, tracebacks)


@pytest.mark.parametrize(
    "traceback",
    [
        FAILED,
        "test_cart.py:10: in test_total\n    assert total(1) == 2\nshop/cart.py:9: in total\n    first = cart.sum",
        "test_cart.py:10: \n_ _ _\n>       first = cart.sum\nE       KeyError\n\n./shop/cart.py:9: KeyError",
        '  File "test_cart.py", line 10, in test_total\n    self.assertTrue(total(c))\nAssertionError: 1 != 2',
        '  File "shop/cart.py", line 12, in total\n    return ceil(first)\nTypeError: x',
        "> assert shop.cart.total(c) == len(c)",
        "> assert cart.total(c) == [c for c in x]",
        '> assert total("given") == 4',
        "> total(1)\nE   AttributeError: 'NoneType' object has no attribute 'x'",
        "/usr/lib/python3/json/decoder.py:3: in decode\n> total(1)",
        "> total(1)\nshop/cart.py:9: DeprecationWarning: old\nINFO shop:shop/cart.py:13 seen",
    ],
)
def test_what_every_failing_case_is_about_is_left_out(traceback: str) -> None:
    for found in (left_out(traceback), left_out(traceback, FAILED), left_out(traceback, other="def f():\n    pass\n")):
        assert found is not None
        assert (found.path, found.name) == (PATH, "total")
        assert found.text == SOURCE.replace(INSIDE, f"    {LEFT_OUT}\n")


@pytest.mark.parametrize(
    ("traceback", "why"),
    [
        ("> assert subprocess.total(1) == 3", "a method of something else"),
        ("> assert cart(1).total(1) == 3", "a method of something else"),
        ("> assert total(1) == helper()", "something else is called"),
        ("> assert sorted(total(1), key=helper)", "something else is given to it"),
        ("> assert raises(E, total, five())", "it is not called, but given to another function"),
        ("> assert map(total, total(1))", "it is given to another function too"),
        ("> assert total(1).given == 3", "an attribute that another file defines"),
        ("> assert total(1)\n> assert x(1)", "another line failed too"),
        ("> assert total(\n", "the first of several lines"),
        ("> with total(1):", "no whole statement"),
        ("> assert x == 1", "nothing is called"),
        ("test_cart.py:10: AssertionError", "nothing is called"),
        ("test_cart.py:6: in helper\n    return given()\n" + FAILED, "a line that is of no test"),
        ("shop/other.py:3: in given\n    x\n" + FAILED, "a file that was not shown"),
        ("app/latest.py:3: in given\n    x\n" + FAILED, "a file that was not shown"),
        ("../shop/cart.py:9: in total\n" + FAILED, "another file"),
        ("my/shop/cart.py:9: in total\n" + FAILED, "another file"),
        ("shop/cart.py:9: in total\n    something = else_()\n" + FAILED, "another file of that name"),
        ("shop/cart.py:9: in other\n    first = cart.sum\n" + FAILED, "another function"),
        ("shop/cart.py:11: in total\n    raise ValueError(cart)\n" + FAILED, "it is raised on purpose"),
        ("shop/cart.py:7: in <module>\n    def total(cart, factor=1):\n" + FAILED, "its head"),
        ("shop/cart.py:4: in <module>\n    UNUSED = 1\n" + FAILED, "no function"),
        ("shop/cart.py:131: in total\n" + FAILED, "no such line"),
        ("shop/cart.py:9:5: error: Incompatible return value", "a checker's line"),
        ("shop/cart.py:9: error: Incompatible return value", "a checker's line"),
        ("…\n" + FAILED, "the beginning of the traceback is not known"),
        ("The command `total` exited with 1.\ntest_total: total(1) gives 4", "nothing but words"),
        (FAILED + "\nImportError: cannot import name 'x'", "something is missing"),
        (FAILED + "\nNameError: name 'x' is not defined", "something is missing"),
        (FAILED + "\nAttributeError: 'Cart' object has no attribute 'x'", "something is missing"),
        (FAILED + "\nTypeError: total() takes 0 positional arguments but 1 was given", "something is missing"),
        (FAILED + "\n  | ExceptionGroup: two", "several failures"),
        ("", "nothing"),
    ],
)
def test_in_doubt_nothing_is_left_out(traceback: str, why: str) -> None:
    assert left_out(traceback, other="def given():\n    pass\n") is None, why
    assert left_out(FAILED, traceback, other="def given():\n    pass\n") is None, why


def test_without_any_failing_case_nothing_is_left_out() -> None:
    assert left_out() is None


@pytest.mark.parametrize(
    "more",
    [
        "def other():\n    pass\n",
        "class Cart:\n    pass\n",
        "if os:\n    def other():\n        pass\n",
        "ceil = 1\n",
    ],
)
def test_the_file_defines_nothing_else_that_may_be_wrong(more: str) -> None:
    assert left_out(FAILED, text=f"{SOURCE}\n\n{more}") is None


@pytest.mark.parametrize(
    "other",
    ["def ceil(a):\n    return a\n", "class ceil:\n    pass\n", "def total():\n    pass\n", "total = 1\n", "def f(:\n"],
)
def test_nor_does_another_file_that_was_shown(other: str) -> None:
    assert left_out(FAILED, other=other) is None
    assert left_out(FAILED, other="def first():\n    pass\n") is not None  # which is a variable here


def test_what_is_no_function_at_the_top_level_is_not_left_out() -> None:
    for text in (
        "class A:\n    def total(self):\n        x = 1\n        return x\n",
        "total = lambda: 1\n",
        "",
        "(" * 300,
    ):
        assert left_out(FAILED, text=text) is None
    assert without_blamed({"README.md": "x"}, PATH, [FAILED]) is None


def test_a_test_is_never_left_out() -> None:
    text = "def test_x():\n    c = 1\n    assert c == 2\n"
    for path in ("test_mul.py", "mul.py"):
        assert left_out(f"> test_x()\n{path}:2: in test_x\n    c = 1", path=path, text=text) is None
    for path in ("tests/mul.py", "test_mul.py"):
        assert left_out("> total(1)", path=path) is None


@pytest.mark.parametrize(
    ("head", "code", "rest"),
    [
        ("def total(a):\n    '''Adds.'''\n", "    return {\n        1: a,\n    }\n", "\n\n"),
        ("async def total(a):\n    # Adds.\n", "    end = a\n    await end  # it\n", "    # done\n"),
        ("def total(a):\r\n", "    x = 1\r\n    return x\r\n", "# x\r\n"),
        ("def total(a):\n", "    x = 1\n    return x", ""),
        ("def total(a,\n      b):\n    'a' 'b'\n\n", "    @a\n    def g():\n        return 1\n    return g\n", "\n"),
        ("@a(1)\ndef total(é='é'):\n", "    x = 'é'; y = '''\n  )\n'''\n    return x\n", "\nprint(1)\n"),
        ("def total():\n", "\tif 1:\n\t\treturn 1\n", "\n"),
    ],
)
def test_nothing_but_the_inside_is_left_out(head: str, code: str, rest: str) -> None:
    found = left_out(FAILED, text=head + code + rest)
    assert found is not None
    indent, end = code[: len(code) - len(code.lstrip())], "\r\n" if "\r\n" in code else "\n"
    end = end if code.endswith("\n") else ""
    assert found.text == f"{head}{indent}{LEFT_OUT}{end}{rest}"
    assert found.stub == f"{head}{indent}pass{end}{rest}"


@pytest.mark.parametrize(
    "text",
    [
        "def total():\n    pass\n",
        "def total():\n    # not\n    pass  # yet\n",
        'def total():\n    """Say it."""\n    raise NotImplementedError("later")\n',
        'def total():\n    """Say it."""\n',
        'def total():\n    """Say it."""; x = 1\n    return x\n',
        "def total(a,\n      b): return {\n    a: b}\n",
        "def total(): return 1\n",
        "def total():\n    return 1\n",
        "if 1:\n    def total():\n        x = 1\n        return x\n",
        "x = 1\rdef total():\n    x = 1\n    return x\n",
        "def total():\n" + "    x = 1\n" * 41,
        "def total(:\n    x = 1\n    return x\n",
        "def total():\n    x = 1\n    return '\0'\n",
    ],
)
def test_where_the_inside_cannot_surely_be_told_nothing_is_left_out(text: str) -> None:
    assert left_out(FAILED, text=text) is None


@given(st.lists(st.sampled_from([*SOURCE.splitlines(keepends=True), '"""', "(", "\r\n", "é\n", "\x00"])).map("".join))
@example(SOURCE)
@example('def total():\n    """')
def test_whatever_the_text_the_rest_is_as_it_was(text: str) -> None:
    found = without_blamed({"a.py": text}, "a.py", [FAILED])
    if found is not None:
        before, mark, after = found.text.partition(LEFT_OUT)
        assert mark
        assert text.startswith(before.rstrip(" "))
        assert text.endswith(after)
        assert len(before.rstrip(" ") + after) < len(text)


def test_hostile_text_takes_little_time() -> None:
    hostile = [
        "def total(\n" * 20_000,
        "def f():\n  x\n  y\n" * 5000,
        '"""' * 50_000,
        "class A:\n def total(self):\n" * 5000,
        "\\\n" * 30_000,
        "(" * 100_000,
        "x = " + "-" * 100_000 + "1\n",
        SOURCE,
    ]
    long = "> " * 50_000 + 'a.py", line ' * 10_000 + "a/" * 50_000 + "\n> add(" + "(" * 50_000
    many = [f"> total({number})\n" * 300 for number in range(200)]
    for text in hostile:
        assert is_within(5, lambda: without_blamed({"a.py": text}, "a.py", [*many, long, FAILED]))  # noqa: B023


# --- what comes back

OMISSION = LeftOut(PATH, "", "", "total")


def written(inside: str) -> str:
    return SOURCE.replace(INSIDE, f"    {inside}\n")


@pytest.mark.parametrize(
    "inside", ["...", "pass", '"""Later."""', "return", "pass  # ... rest", "raise NotImplementedError('x')"]
)
def test_a_function_that_comes_back_without_an_inside_is_refused(inside: str) -> None:
    for mark in ("", "\ufeff"):
        with pytest.raises(ChangeRejectedError, match=r"leaves out what `total` in shop/cart\.py does"):
            refuse_omission(OMISSION, f"{mark}{written(inside)}".encode())


def test_so_is_a_file_without_the_function() -> None:
    for content in (None, b"", b"def plus(price):\n    return price\n", b"if x:\n    def total():\n        pass\n"):
        with pytest.raises(ChangeRejectedError, match="leaves out"):
            refuse_omission(OMISSION, content)


@pytest.mark.parametrize("inside", ["cart += 1", "return None", "return {}", "return '''a'''", "raise E", "return ("])
def test_a_function_that_does_something_is_taken(inside: str) -> None:
    refuse_omission(OMISSION, written(inside).encode())


@pytest.mark.parametrize(
    "content",
    ["total = sum\n", "from a import total\n", "try:\n    import x\nexcept E:\n    def total(a):\n        a\n"],
)
def test_it_may_be_defined_in_another_way(content: str) -> None:
    refuse_omission(OMISSION, content.encode())


def test_what_is_no_new_text_of_the_file_is_refused() -> None:
    edit = CodeChange(operation="edit", file_path=f"./{PATH}", edits=(TextEdit(search="a", replace="b"),))
    with pytest.raises(ChangeRejectedError, match="to be written whole"):
        refuse_unwritten(OMISSION, [edit])
    whole = CodeChange(operation="modify", file_path=PATH, content=written("return 1"))
    refuse_unwritten(OMISSION, [whole, edit.model_copy(update={"file_path": "cart.py"})])


@pytest.mark.parametrize("inside", [LEFT_OUT, f"pass  {LEFT_OUT}", f"{LEFT_OUT}\n    return 1"])
def test_the_note_has_to_go(inside: str) -> None:
    with pytest.raises(ChangeRejectedError, match="write the code of `total` in its place, and leave the note out"):
        refuse_unwritten(OMISSION, [CodeChange(operation="modify", file_path=PATH, content=written(inside))])


@pytest.mark.parametrize(
    ("asked", "is_fault"),
    [
        ("Fix add: it subtracts", True),
        ("add() has a bug", True),
        ("合計の不具合を直す", True),
        ("Add a function total", False),
        ("Add a fixture loader with a fixed width, failover, correction factors and a debug flag", False),
        ("Implement linear regression; it never crashes where a check fails on wrong or broken links", False),
        ("エラー処理を追加する。失敗したら戻る", False),
    ],
)
def test_only_a_task_that_is_to_mend_something_is_one(asked: str, is_fault: bool) -> None:
    assert is_to_mend(asked) is is_fault
