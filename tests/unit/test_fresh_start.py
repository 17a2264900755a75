"""Which function is left out of a file for a model to write anew, and that it is not lost."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.fresh_start import (
    LeftOut,
    is_to_mend,
    refuse_blind_edits,
    refuse_omission,
    without_blamed,
)
from necrocode.agent_runner.models import CodeChange, TextEdit
from tests.support.pace import is_within

PYTHON = '''\
import os


class Cart:
    """What is bought."""

    def add(self, price):
        """Add a price.

        It is in cents.
        """
        self.sum = price
        return self.sum

    @property
    def is_empty(
        self,
    ):
        count = self.sum - 1
        return count == 0


def total(cart):

    first = cart.sum
    return first


def unused(): return 1


class Bill:
    def rounded(self):
        return round(self.tax)
'''
LEFT_OUT = "# ... omitted: it was wrong"
WITHOUT_ADD = PYTHON.replace("        self.sum = price\n        return self.sum\n", f"        {LEFT_OUT}\n")
WITHOUT_IS_EMPTY = PYTHON.replace("        count = self.sum - 1\n        return count == 0\n", f"        {LEFT_OUT}\n")
WITHOUT_TOTAL = PYTHON.replace("    first = cart.sum\n    return first\n", f"    {LEFT_OUT}\n")
TEST = "from shop.cart import total\n\n\ndef test_it():\n    assert total(1) == 2\n"


def left_out(*tracebacks: str, path: str = "shop/cart.py", text: str = PYTHON, **others: str) -> LeftOut | None:
    files = {
        path: text,
        "test_cart.py": TEST,
        "README.md": "total",
        **{f"{k}.py": other for k, other in others.items()},
    }
    return without_blamed(files, tracebacks)


@pytest.mark.parametrize(
    ("traceback", "text", "name"),
    [
        ("test_cart.py:5: \nshop/cart.py:13: in add\nThe total is_empty", WITHOUT_ADD, ("Cart", "add")),
        ('  File "shop/cart.py", line 20, in is_empty\n> total()', WITHOUT_IS_EMPTY, ("Cart", "is_empty")),
        ("./shop/cart.py:25: TypeError\nshop/cart.py:26: in total", WITHOUT_TOTAL, ("total",)),
        (">   assert total(cart) == 3\nE   assert 4 == 3\n\ntest_cart.py:5: AssertionError", WITHOUT_TOTAL, ("total",)),
        ('  File "test_cart.py", line 4, in test_it\n    self.assertTrue(total(c))\nNo add', WITHOUT_TOTAL, ("total",)),
        (">   assert shop.cart.total(c) == len(c)", WITHOUT_TOTAL, ("total",)),
        ('>   assert total("add") == 4', WITHOUT_TOTAL, ("total",)),
        ("AttributeError: 'NoneType' object has no attribute 'x'\n> total(1)", WITHOUT_TOTAL, ("total",)),
        ("/usr/lib/python3/json/decoder.py:3: in decode\n> total(1)", WITHOUT_TOTAL, ("total",)),
    ],
)
def test_the_function_of_a_traceback_or_of_a_failing_line_is_left_out(
    traceback: str, text: str, name: tuple[str, ...]
) -> None:
    for found in (left_out(traceback), left_out(traceback, traceback)):
        assert found is not None
        assert (found.path, found.text, found.name) == ("shop/cart.py", text, name)


@pytest.mark.parametrize(
    ("traceback", "why"),
    [
        ("shop/cart.py:13: in add\nshop/cart.py:26: in total", "two functions of the traceback"),
        ("> assert total(c) == add(1)", "two on the failing line"),
        ("> assert total(c)\n> assert add(1)", "two failing lines"),
        ("> assert total(unused())", "one of two has no inside to leave out"),
        ("> assert unused() == 2", "it is on one line"),
        ("> assert Bill().rounded()", "a class is called too"),
        ("> c.add(1)", "sets have that method too"),
        ("> assert total(\n", "the first of several lines"),
        ("> with total(1):", "no whole statement"),
        ("> assert total(1)(2)", "what is called has no name"),
        ("> assert x == 1", "nothing is called"),
        ("test_cart.py:5: AssertionError", "a test's line"),
        ("my/shop/cart.py:13: in add\n> total(1)", "a file that was not shown"),
        ("../shop/cart.py:13: in add\n> total(1)", "another file"),
        ("shop/cart.py:131: in add\n> total(1)", "no such line"),
        ("shop/cart.py:3: in <module>\n> total(1)", "no function"),
        ("INFO shop:shop/cart.py:13 seen", "a log's line"),
        ("shop/cart.py:13:5: error: Incompatible return value", "a checker's line"),
        ("…\nshop/cart.py:13: in add", "the beginning of the traceback is not known"),
        ("The command `add` exited with 1.\ntest_add: add gives 4", "nothing but words"),
        ("> total(1)\nE   ImportError: cannot import name 'x'", "something is missing"),
        ("> total(1)\nE   NameError: name 'x' is not defined", "something is missing"),
        ("> total(1)\nE   AttributeError: 'Cart' object has no attribute 'x'", "something is missing"),
        ("> total(1)\nE   TypeError: total() takes 0 positional arguments but 1 was given", "something is missing"),
        ("", "nothing"),
    ],
)
def test_in_doubt_nothing_is_left_out(traceback: str, why: str) -> None:
    assert left_out(traceback) is None, why


def test_all_cases_have_to_be_about_the_same_function() -> None:
    assert left_out("> total(1)", "> total(2)") is not None
    assert left_out("> total(1)", "shop/cart.py:13: in add") is None
    assert left_out("> total(1)", "who knows") is None
    assert left_out() is None


TIMES = "def times(a, b):\n    c = a + b\n    return c\n"


def test_all_files_are_looked_at() -> None:
    assert left_out("> assert times(total(1), 2) == 6", mul=TIMES) is None
    assert left_out("mul.py:2: TypeError\nshop/cart.py:13: in add", mul=TIMES) is None
    assert left_out("> total(1)", broken="def f(:\n") is None
    found = left_out("> assert times(1, 2) == 2", mul=TIMES)
    assert found is not None
    assert (found.path, found.name) == ("mul.py", ("times",))


@pytest.mark.parametrize(
    "other",
    [
        "class A:\n    def times(self):\n        return 1\n",
        "if x:\n    def times(a):\n        return a\n",
        "try:\n    pass\nexcept ImportError:\n    def times(a):\n        return a\n",
        "times = lambda a: a\n",
        "def make():\n    def times(a):\n        return a\n    return times\n",
        "class times:\n    pass\n",
    ],
)
def test_where_something_else_has_its_name_nothing_is_left_out(other: str) -> None:
    assert left_out("> times(1)", mul=TIMES) is not None
    assert left_out("> times(1)", mul=TIMES, other=other) is None
    assert left_out("mul.py:2: TypeError", mul=TIMES + other) is None


def test_a_test_is_never_left_out() -> None:
    for path, text in {
        "test_mul.py": TIMES,
        "mul.py": TIMES.replace("times", "test_times"),
        "sum.py": "class TestTimes:\n    def check(self):\n        c = 1\n        return c\n",
    }.items():
        assert left_out(f"{path}:2: AssertionError", f"{path}:2: AssertionError", path=path, text=text) is None


@pytest.mark.parametrize(
    ("head", "code", "rest"),
    [
        ("def f(a):\n    '''Adds.'''\n", "    return {\n        1: a,\n    }\n", "\n\nx = f(1)\n"),
        ("async def f(a):\n    # Adds.\n", "    end = a\n    await end  # it\n", "    # done\n"),
        ("def f(a):\r\n", "    x = 1\r\n    return x\r\n", "x = 1\r\n"),
        ("def f(a):\n", "    x = 1\n    return x", ""),
        ("def f(a,\n      b):\n    'a' 'b'\n\n", "    @a\n    def g():\n        return 1\n    return g\n", "y = 1\n"),
        ("@a(1)\ndef f(é='é'):\n", "    x = 'é'; y = '''\n  )\n'''\n    return x\n", "\ndef g(): pass\n"),
        ("def f():\n", "\tif 1:\n\t\treturn 1\n", "\n"),
    ],
)
def test_nothing_but_the_inside_is_left_out(head: str, code: str, rest: str) -> None:
    found = left_out("> f(1)", path="a.py", text=head + code + rest)
    assert found is not None
    indent, end = code[: len(code) - len(code.lstrip())], "\r\n" if "\r\n" in code else "\n"
    end = end if code.endswith("\n") else ""
    assert found.text == f"{head}{indent}{LEFT_OUT}{end}{rest}"
    assert found.stub == f"{head}{indent}pass{end}{rest}"


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    pass\n",
        "def f():\n    # not\n    pass  # yet\n",
        'def f():\n    """Say it."""\n    raise NotImplementedError("later")\n',
        'def f():\n    """Say it."""\n',
        'def f():\n    """Say it."""; x = 1\n    return x\n',
        "def f(a,\n      b): return {\n    a: b}\n",
        "class f:\n    x = 1\n    y = 2\n",
        "if 1:\n    def f():\n        x = 1\n        return x\n",
        "x = 1\rdef f():\n    x = 1\n    return x\n",
        "def f():\n" + "    x = 1\n" * 41,
        "def f(:\n    x = 1\n    return x\n",
        "def f():\n    x = 1\n    return '\0'\n",
        "",
    ],
)
def test_where_the_inside_cannot_surely_be_told_nothing_is_left_out(text: str) -> None:
    assert left_out("> f(1)", path="a.py", text=text) is None


def test_only_python_is_left_out() -> None:
    text = "function total(a) {\n  const c = a;\n  return c;\n}\n"
    assert without_blamed({"a.js": text}, ["  > 4 | expect(total(1)).toBe(2)\n at total (a.js:2:3)"]) is None


@given(
    st.lists(st.sampled_from([*PYTHON.splitlines(keepends=True), '"""', "(", "\r\n", "é\n", "\x00"])).map("".join),
    st.sampled_from(["> total(1)", "> is_empty(1)", "a.py:3: in x", "a.py:14: in x"]),
)
@example(PYTHON, "> total(1)")
@example('def total():\n    """', "> total(1)")
def test_whatever_the_text_the_rest_is_as_it_was(text: str, traceback: str) -> None:
    found = without_blamed({"a.py": text}, [traceback])
    if found is not None:
        before, mark, after = found.text.partition(LEFT_OUT)
        assert mark
        assert text.startswith(before.rstrip(" "))
        assert text.endswith(after)
        assert len(before.rstrip(" ") + after) < len(text)


def test_hostile_text_takes_little_time() -> None:
    hostile = [
        "def add(\n" * 20_000,
        "def f():\n  x\n  y\n" * 5000,
        '"""' * 50_000,
        "class A:\n def add(self):\n" * 5000,
        "\\\n" * 30_000,
        "(" * 100_000,
        "x = " + "-" * 100_000 + "1\n",
    ]
    traceback = "> " * 50_000 + 'a.py", line ' * 10_000 + "a/" * 50_000 + "\n> add(" + "(" * 50_000 + "\n> f(1)"
    for text in hostile:
        assert is_within(5, lambda: without_blamed({"a.py": text}, [traceback, "> f(1)"]))  # noqa: B023


# --- what comes back


def omission(text: str = WITHOUT_ADD) -> LeftOut:
    return LeftOut("shop/cart.py", text, text, ("Cart", "add"))


@pytest.mark.parametrize(
    "inside",
    [
        LEFT_OUT, "pass  # ... omitted: it was wrong", "return  # ... omitted: it was wrong", "...", "pass",
        "# omitted: it was wrong\n        pass", '"""... omitted: it was wrong"""', "return None", "pass  # ... rest",
        "self.sum += price  # omitted: it was wrong", "raise NotImplementedError", "raise NotImplementedError('x')",
    ],
)  # fmt: skip
def test_a_function_that_comes_back_without_an_inside_is_refused(inside: str) -> None:
    with pytest.raises(ChangeRejectedError, match=r"leaves out what `Cart\.add` in shop/cart\.py does"):
        refuse_omission(omission(), WITHOUT_ADD.replace(LEFT_OUT, inside).encode())


def test_so_is_a_file_without_the_function() -> None:
    for content in (None, b"", b"def plus(price):\n    return price\n"):
        with pytest.raises(ChangeRejectedError, match="leaves out"):
            refuse_omission(omission(), content)


@pytest.mark.parametrize(
    "inside", ["self.sum += price", "x = 1\n        return x", "return self.sum // price", "return {}", "raise E"]
)
def test_a_function_that_does_something_is_taken(inside: str) -> None:
    refuse_omission(omission(), WITHOUT_ADD.replace(LEFT_OUT, inside).encode())


@pytest.mark.parametrize(
    "content", ["class Cart:\n    add = sum\n", "try:\n    import x\nexcept E:\n    def add(a):\n        return a\n"]
)
def test_it_may_be_defined_in_another_way(content: str) -> None:
    refuse_omission(omission(), content.encode())


def test_edits_of_a_file_that_was_not_shown_whole_are_refused() -> None:
    edit = CodeChange(operation="edit", file_path="./shop/cart.py", edits=(TextEdit(search="a", replace="b"),))
    with pytest.raises(ChangeRejectedError, match="to be written whole"):
        refuse_blind_edits(omission(), [edit])
    whole = CodeChange(operation="modify", file_path="shop/cart.py", content="x = 1\n")
    refuse_blind_edits(omission(), [whole, edit.model_copy(update={"file_path": "cart.py"})])


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
