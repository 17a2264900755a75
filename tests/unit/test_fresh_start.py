"""Which function is left out of a file for a model to write anew, and that it is not lost."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.fresh_start import (
    LeftOut,
    is_of_wrong_code,
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


def left_out(failing: str, path: str = "shop/cart.py", text: str = PYTHON, **others: str) -> LeftOut | None:
    return without_blamed({path: text, **{f"{name}.py": other for name, other in others.items()}}, failing)


@pytest.mark.parametrize(
    ("failing", "text", "name"),
    [
        ("shop/cart.py:13: in add\nThe total is_empty", WITHOUT_ADD, ("Cart", "add")),
        ('  File "shop/cart.py", line 20, in is_empty\n> total()', WITHOUT_IS_EMPTY, ("Cart", "is_empty")),
        ("./shop/cart.py:27: TypeError\nshop/cart.py:26: in total", WITHOUT_TOTAL, ("total",)),
        ("cart = Cart()\ncart.add(3)\n>   assert total(cart) == 3\nE   assert 4 == 3", WITHOUT_TOTAL, ("total",)),
        ('  File "test_cart.py", line 4, in test_it\n    self.assertTrue(total(c))\nNo add', WITHOUT_TOTAL, ("total",)),
        ("    3 | add(1)\n  > 4 | expect(total(c)).toBe(1)", WITHOUT_TOTAL, ("total",)),
    ],
)
def test_the_function_of_a_traceback_or_of_a_failing_line_is_left_out(
    failing: str, text: str, name: tuple[str, ...]
) -> None:
    found = left_out(failing)
    assert found is not None
    assert (found.path, found.text, found.name) == ("shop/cart.py", text, name)
    assert found.inside in PYTHON


@pytest.mark.parametrize(
    ("failing", "why"),
    [
        ("shop/cart.py:13: in add\nshop/cart.py:26: in total", "two functions of the traceback"),
        ("> assert total(c) == add(1)", "two on the failing line"),
        ("> assert total(c)\n> assert c.add(1)", "two failing lines"),
        ("> assert total(unused())", "one of two has no inside to leave out"),
        ("> assert unused() == 2", "it is on one line"),
        ("> assert Bill().rounded()", "hardly anything to leave out"),
        ("test_cart.py:13: AssertionError", "another file"),
        ("my/shop/cart.py:13: in add", "another file"),
        ("/usr/lib/shop/cart.py:13: in add", "another file"),
        ("shop/cart.py:13: DeprecationWarning: old", "no failure"),
        ("shop/cart.py:131: in add", "no such line"),
        ("shop/cart.py:3: in <module>", "no function"),
        ("The command `add` exited with 1.\ntest_add: add gives 4", "nothing but words"),
        ("> x", "nothing"),
        ("", "nothing"),
    ],
)
def test_in_doubt_nothing_is_left_out(failing: str, why: str) -> None:
    assert left_out(failing) is None, why


def test_all_files_are_looked_at() -> None:
    times = "def times(a, b):\n    c = a + b\n    return c\n"
    assert left_out("> assert times(add(1, 2), 2) == 6", mul=times) is None
    assert left_out("mul.py:2: TypeError\nshop/cart.py:13: in add", mul=times) is None
    found = left_out("> assert times(1, 2) == 2", mul=times)
    assert found is not None
    assert (found.path, found.name) == ("mul.py", ("times",))


def test_of_two_functions_of_one_name_it_is_neither() -> None:
    two = "".join(f"class {name}:\n    def f(self):\n        x = 1\n        return x\n" for name in "AB")
    assert left_out("> A().f()", "a.py", two) is None
    again = "def f():\n    x = 1\n    return x\n" * 2
    assert left_out("a.py:2: TypeError", "a.py", again) is None


@pytest.mark.parametrize(
    ("path", "head", "code", "rest"),
    [
        ("a.js", "class A {\n  /** adds */\n  add(a) {\n", "    const c = a;\n    return c;\n", "  }\n  sub() {}\n}\n"),
        ("a.js", "const add = (a) => {\n", "  let c = a;\n  return c;\n", "}, sub = (b) => { return b; }, L = 10;\n"),
        (
            "a.js",
            "function add(a) {\n",
            "  let c = a;\n  return c; // it\n",
            "}\nfunction sub(a) { return a; }\n",
        ),
        (
            "a.ts",
            "const add = (a: number) => {\n",
            "  let c = a;\n  return c;\n",
            "};\ntype H = (a: number) => void;\n",
        ),
        ("a.go", "package a\n\nfunc add(a int) int {\n", "\tc := a\n\treturn c\n", "}\n\ntype (\n\tT func(a int)\n)\n"),
        ("a.rs", "impl A {\n    fn add(&self) -> i32 {\n", "        let c = 1;\n        c\n", "    }\n}\n"),
        ("A.java", "class A {\n  int add(int a) {\n", "    int c = a;\n    return c;\n", "  }\n}\n"),
        ("a.c", "int add(int a)\n{\n", "    int c = a;\n    return c;\n", "}\n"),
        ("a.cpp", "int A::add(int a) {\n", "    int c = a;\n    return c;\n", "}\n"),
        ("a.cs", "class A {\n  int add(int a) {\n", "    int c = a;\n    return c;\n", "  }\n}\n"),
        ("a.php", "<?php\nfunction add($a) {\n", "    $c = $a;\n    return $c;\n", "}\n"),
        ("a.swift", "func add(a: Int) -> Int {\n", "    let c = a\n    return c\n", "}\n"),
        ("a.sh", "add() {\n", "  echo 1\n  echo 2\n", "}\n"),
        ("a.py", "def add(a):\n    '''Adds.'''\n", "    return {\n        1: a,\n    }\n", "\n\nx = add(1)\n"),
        ("a.py", "async def add(a):\n    # Adds.\n", "    end = a\n    end  # it\n", "\n"),
        ("a.py", "def add(a):\r\n", "    x = 1\r\n    return x\r\n", "x = 1\r\n"),
        ("a.py", "def add(a):\n", "    x = 1\n    return x", ""),
    ],
)
def test_nothing_but_the_inside_is_left_out(path: str, head: str, code: str, rest: str) -> None:
    found = left_out("> add(1)", path, head + code + rest)
    assert found is not None
    mark = "#" if path.endswith((".py", ".sh")) else "//"
    indent, end = code[: len(code) - len(code.lstrip())], "\r\n" if "\r\n" in code else "\n"
    assert (found.text, found.inside) == (f"{head}{indent}{mark} ... omitted: it was wrong{end}{rest}", code)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "def add():\n    pass\n"),
        ("a.py", "def add():\n    # not\n    pass  # yet\n"),
        ("a.py", 'def add():\n    """Say it."""\n'),
        ("a.py", 'def add():\n    """Say it."""; x = 1\n    return x\n'),
        ("a.py", 'def add():\n    """Say\n    it.'),
        ("a.py", "def add(a,\n        b): return {\n    a: b}\n"),
        ("a.py", "class add:\n    x = 1\n    y = 2\n"),
        ("a.py", "x = 1\ndef add(:\n    x = 1\n    return x\n"),
        ("a.go", "package a\n\ntype add struct {\n\tx int\n\ty int\n}\n"),
        ("a.kt", "class add(val a: Int) {\n    fun f() {\n        a\n    }\n    fun g() {\n        a\n    }\n}\n"),
        ("a.kt", "fun add(a: Int): Int {\n    val c = a\n    return c\n}\n"),
        ("a.scala", "object A {\n  def add(a: Int): Int =\n    val c = a\n    c\n  def g(a: Int) = {\n    a\n  }\n}\n"),
        ("a.cpp", "int add(int a) try {\n  a++;\n  return a;\n} catch (...) {\n  return 1;\n}\n"),
        ("a.c", "int add(int a) {\n#ifdef A\n  return 1;\n}\n#else\n  return 2;\n}\n#endif\n"),
        ("a.js", "function add(a) {\n  let c = a;\n  return c;\n} // end\n"),
        ("a.js", "function add(a) { a++;\n  return a; }\n"),
        ("a.rb", "def add(a)\n  c = a\n  c\nend\n"),
        ("a.sh", "add() {\n  echo 1\n  echo 2; } > out\n"),
        ("a.php", "<?php function add($a) { ?>\n<b>x</b>\n<?php } ?>\n"),
        ("a.txt", "def add():\n    x = 1\n    return x\n"),
        ("a.py", ""),
    ],
)
def test_where_the_inside_cannot_surely_be_told_nothing_is_left_out(path: str, text: str) -> None:
    assert left_out("> add(1)", path, text) is None


@given(
    st.lists(st.sampled_from([*PYTHON.splitlines(keepends=True), '"""', "(", "\r\n", "é\n", "\x00"])).map("".join),
    st.sampled_from(["> add", "> total", "> is_empty", "a.py:3: in x", "a.py:14: in x"]),
)
@example(PYTHON, "> add")
@example('def add():\n    """', "> add")
def test_whatever_the_text_the_rest_is_as_it_was(text: str, failing: str) -> None:
    found = left_out(failing, "a.py", text)
    if found is not None:
        before, mark, after = found.text.partition(LEFT_OUT)
        assert mark
        assert text == f"{before.rstrip(' ')}{found.inside}{after.removeprefix(chr(13)).removeprefix(chr(10))}"


def test_hostile_text_takes_little_time() -> None:
    hostile = [
        "def add(\n" * 20_000,
        "def f():\n  x\n  y\n" * 5000,
        '"""' * 50_000,
        "class A:\n def add(self):\n" * 5000,
    ]
    failing = "> " * 50_000 + 'a.py", line ' * 10_000 + "\n> add"
    for text in hostile:
        assert is_within(5, lambda: left_out(failing, "a.py", text))  # noqa: B023


# --- what comes back


def omission(text: str = WITHOUT_ADD) -> LeftOut:
    return LeftOut("shop/cart.py", text, text, "", ("Cart", "add"))


@pytest.mark.parametrize(
    "inside",
    [
        LEFT_OUT, "pass  # ... omitted: it was wrong", "return  # ... omitted: it was wrong", "...", "pass",
        "# omitted: it was wrong\n        pass", '"""... omitted: it was wrong"""', "return None", "pass  # ... rest",
        "self.sum += price  # omitted: it was wrong", "raise NotImplementedError",
    ],
)  # fmt: skip
def test_a_function_that_comes_back_without_an_inside_is_refused(inside: str) -> None:
    with pytest.raises(ChangeRejectedError, match=r"leaves out what `Cart\.add` in shop/cart\.py does"):
        refuse_omission(omission(), WITHOUT_ADD.replace(LEFT_OUT, inside).encode())


def test_so_is_a_file_without_the_function() -> None:
    for content in (None, b"", b"def add(price):\n    return price\n"):
        with pytest.raises(ChangeRejectedError, match="leaves out"):
            refuse_omission(omission(), content)


@pytest.mark.parametrize("inside", ["self.sum += price", "x = 1\n        return x", "return self.sum // price"])
def test_a_function_that_does_something_is_taken(inside: str) -> None:
    refuse_omission(omission(), WITHOUT_ADD.replace(LEFT_OUT, inside).encode())


def test_edits_of_a_file_that_was_not_shown_whole_are_refused() -> None:
    edit = CodeChange(operation="edit", file_path="./shop/cart.py", edits=(TextEdit(search="a", replace="b"),))
    with pytest.raises(ChangeRejectedError, match="to be written whole"):
        refuse_blind_edits(omission(), [edit])
    whole = CodeChange(operation="modify", file_path="shop/cart.py", content="x = 1\n")
    refuse_blind_edits(omission(), [whole, edit.model_copy(update={"file_path": "cart.py"})])


@pytest.mark.parametrize(
    ("asked", "failing", "is_fault"),
    [
        ("Fix add: it subtracts", "assert 1 == 2", True),
        ("add() is broken", "AttributeError: 'NoneType' object has no attribute 'x'", True),
        ("合計の不具合を直す", "assert 1 == 2", True),
        ("total is wrong", "TypeError: Cannot read properties of undefined (reading 'x')", True),
        ("Add a function total", "assert 1 == 2", False),
        ("Add a fixture loader with a fixed width, failover, correction factors and a debug flag", "1 != 2", False),
        ("Fix the missing total", "ImportError: cannot import name 'total'", False),
        ("Fix the cart", "AttributeError: 'Cart' object has no attribute 'total'", False),
        ("Fix total", "NoMethodError: undefined method `total'", False),
        ("Fix total", "Call to undefined function total()", False),
        ("Fix total", "Property 'total' does not exist on type 'Cart'", False),
        ("Fix total", "error[E0425]: cannot find function `total` in this scope", False),
        ("Fix total", "undefined reference to `total'", False),
        ("Fix total", "c.total undefined (type Cart has no field or method total)", False),
        ("Fix total", "total() takes 1 positional argument but 2 were given", False),
        ("Fix add", "", False),
    ],
)
def test_only_wrong_code_is_at_fault_not_missing_code(asked: str, failing: str, is_fault: bool) -> None:
    assert is_of_wrong_code(asked, failing) is is_fault
