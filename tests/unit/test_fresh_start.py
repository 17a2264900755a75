"""Which code is left out of a file that a model is to write anew in parts."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necrocode.agent_runner.generation.fresh_start import is_of_wrong_code, without_blamed
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
'''
LEFT_OUT = "# ... omitted: it was wrong"
WITHOUT_ADD = PYTHON.replace("        self.sum = price\n        return self.sum\n", f"        {LEFT_OUT}\n")
WITHOUT_IS_EMPTY = PYTHON.replace("        count = self.sum - 1\n        return count == 0\n", f"        {LEFT_OUT}\n")
WITHOUT_TOTAL = PYTHON.replace("    first = cart.sum\n    return first\n", f"    {LEFT_OUT}\n")


@pytest.mark.parametrize(
    ("failing", "text", "names"),
    [
        ("shop/cart.py:12: in add\nThe total is_empty", WITHOUT_ADD, ("add",)),
        ('  File "shop/cart.py", line 20, in is_empty\n> total()', WITHOUT_IS_EMPTY, ("is_empty",)),
        ("cart = Cart()\ncart.add(3)\n>   assert total(cart) == 3\nE   assert 4 == 3", WITHOUT_TOTAL, ("total",)),
        ("test_shop::test_it: add gives 4", WITHOUT_ADD, ("add",)),
    ],
)
def test_what_a_traceback_or_a_failing_line_is_about_is_left_out(
    failing: str, text: str, names: tuple[str, ...]
) -> None:
    assert without_blamed("shop/cart.py", PYTHON, failing) == (text, names)


def test_several_functions_may_be_meant_but_not_many() -> None:
    hollowed = without_blamed("cart.py", PYTHON, "add and total and unused")
    assert hollowed is not None
    assert (hollowed.text.count(LEFT_OUT), hollowed.names) == (2, ("add", "total"))
    many = "".join(f"def f{number}():\n    x = 1\n    return x\n" for number in range(4))
    assert without_blamed("a.py", many, "f0 f1 f2 f3") is None


def test_where_no_function_is_named_it_is_the_only_one() -> None:
    only = "def f():\n    x = 1\n    return x\n"
    assert without_blamed("a.py", only, "1 != 2") == (f"def f():\n    {LEFT_OUT}\n", ("f",))
    assert without_blamed("a.py", only + only.replace("f", "g"), "1 != 2") is None


@pytest.mark.parametrize(
    ("path", "head", "code", "rest"),
    [
        ("a.js", "export class A {\n  /** adds */\n  add(a, b) {\n", "    const c = a;\n    return c;\n", "  }\n}\n"),
        ("a.ts", "const add = (a: number) => {\n", "  let c = a;\n  return c;\n", "};\n"),
        ("a.go", "package a\n\nfunc add(a int) int {\n", "\tc := a\n\treturn c\n", "}\n"),
        ("a.rs", "impl A {\n    fn add(&self) -> i32 {\n", "        let c = 1;\n        c\n", "    }\n}\n"),
        ("A.java", "class A {\n  int add(int a) {\n", "    int c = a;\n    return c;\n", "  }\n}\n"),
        ("a.c", "int add(int a)\n{\n", "    int c = a;\n    return c;\n", "}\n"),
        ("a.rb", "class A\n  def add(a)\n", "    c = a\n    c\n", "  end\nend\n"),
    ],
)
def test_in_other_languages_too(path: str, head: str, code: str, rest: str) -> None:
    hollowed = without_blamed(path, head + code + rest, "1 != 2 in add")
    assert hollowed is not None
    mark = "#" if path.endswith(".rb") else "//"
    indent = code[: len(code) - len(code.lstrip())]
    assert hollowed == (f"{head}{indent}{mark} ... omitted: it was wrong\n{rest}", ("add",))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "def f():\n    pass\n"),
        ("a.py", 'def f():\n    """Say it."""\n'),
        ("a.py", 'def f():\n    """Say\n    it.'),
        ("a.py", "class A:\n    x = 1\n    y = 2\n"),
        ("a.go", "package a\n\ntype A struct {\n\tx int\n\ty int\n}\n"),
        ("a.txt", "def f():\n    x = 1\n    return x\n"),
        ("a.py", ""),
    ],
)
def test_where_there_is_nothing_to_leave_out_there_is_none(path: str, text: str) -> None:
    assert without_blamed(path, text, "f A x") is None


@given(st.lists(st.sampled_from([*PYTHON.splitlines(keepends=True), '"""', "(", "\r\n", "é\n", "\x00"])).map("".join))
@example('def f():\n    """')
@example("def f():\n\n\n")
def test_whatever_the_text_the_other_lines_stay_in_their_order(text: str) -> None:
    hollowed = without_blamed("a.py", text, "add total is_empty")
    if hollowed is not None:
        rest = iter(text.split("\n"))
        kept = [line for line in hollowed.text.split("\n") if line.strip() != LEFT_OUT]
        assert all(line in rest for line in kept)
        assert 1 <= hollowed.text.count(LEFT_OUT) == len(hollowed.names) <= 3


def test_hostile_text_takes_little_time() -> None:
    for text in (
        "def f(\n" * 20_000,
        "def f():\n  x\n  y\n" * 5000,
        '"""' * 50_000,
        "class A:\n def f(self):\n" * 5000,
    ):
        assert is_within(5, lambda: without_blamed("a.py", text, "> " * 50_000 + 'a.py", line ' * 10_000))  # noqa: B023


@pytest.mark.parametrize(
    ("asked", "failing", "is_fault"),
    [
        ("Fix add: it subtracts", "assert 1 == 2", True),
        ("add() is broken", "AttributeError: 'NoneType' object has no attribute 'x'", True),
        ("合計の不具合を直す", "assert 1 == 2", True),
        ("Add a function total", "assert 1 == 2", False),
        ("Fix the missing total", "ImportError: cannot import name 'total'", False),
        ("Fix the cart", "AttributeError: 'Cart' object has no attribute 'total'", False),
        ("Fix add", "", False),
    ],
)
def test_only_wrong_code_is_at_fault_not_missing_code(asked: str, failing: str, is_fault: bool) -> None:
    assert is_of_wrong_code(asked, failing) is is_fault
