"""Only what a change newly breaks is told, and nothing that is right in some version of a language."""

from __future__ import annotations

import pytest

from necrocode.agent_runner.generation import grammars
from necrocode.agent_runner.generation.syntax import MAX_CHECKED_BYTES, newly_broken
from tests.support.pace import is_within

GOOD = {
    "a.py": "def f(x):\n    return x\n",
    "a.js": "function f(x) { return x; }\n",
    "a.jsx": "const a = <b>{c}</b>;\n",
    "a.ts": "function f(x: number): number { return x; }\n",
    "a.tsx": "const a = <b>{c as number}</b>;\n",
    "a.go": "package a\n\nfunc f(x int) int { return x }\n",
    "a.rs": "fn f(x: i32) -> i32 { x }\n",
    "A.java": "class A { int f(int x) { return x; } }\n",
    "a.c": "int f(int x) { return x; }\n",
    "a.cpp": "class A { int f(int x) { return x; } };\n",
    "a.cs": "class A { int F(int x) { return x; } }\n",
    "a.rb": "def f(x)\n  x\nend\n",
    "a.php": "<?php\nfunction f($x) { return $x; }\n",
    "a.sh": 'f() { echo "$1"; }\n',
    "a.json": '{"a": [1, 2]}\n',
    "a.toml": 'a = [1, 2]\n[b]\nc = "d"\n',
    "a.css": "a { color: red; }\n",
    "a.kt": "fun f(x: Int): Int { return x }\n",
    "a.scala": "object A { def f(x: Int): Int = { x } }\n",
    "a.swift": "func f(x: Int) -> Int { return x }\n",
}
BAD = {
    "a.toml": 'a = [1, 2\n[b\nc = "d"\n',
    "a.json": '{"a": [1, 2}\n',
    "a.rb": "def f(x)\n  x\n",
    "a.css": "a { color: red; \n",
    "a.jsx": "const a = <b>{c}</d;\n",
    "a.tsx": "const a = <b>{c as number</b>;\n",
    "a.py": "def f(x:\n    return x\n",
}


@pytest.mark.parametrize("path", GOOD)
def test_what_parses_is_not_broken_and_what_newly_does_not_is(path: str) -> None:
    good = GOOD[path].encode()
    bad = BAD.get(path, GOOD[path].replace("}", "").replace(")", "")).encode()
    assert newly_broken(path, good, good) is None
    breakage = newly_broken(path, good, bad)
    assert breakage is not None
    assert path in breakage.message
    assert breakage.line >= 1
    assert "\n" not in breakage.message


@pytest.mark.parametrize("path", GOOD)
def test_what_was_broken_before_is_not_told(path: str) -> None:
    bad = BAD.get(path, GOOD[path].replace("}", "").replace(")", "")).encode()
    assert newly_broken(path, bad, bad + b"\n") is None


def test_the_message_for_python_is_the_interpreters_with_line_and_text() -> None:
    breakage = newly_broken("a.py", b"x = 1\n", b"x = 1\ny = (2\nz = 3\n")
    assert breakage is not None
    assert (breakage.line, breakage.text) == (2, "y = (2")
    assert breakage.message == "a.py, line 2: '(' was never closed: y = (2"


@pytest.mark.parametrize(
    "text",
    [
        "def f():\nreturn 1\n",
        "def f():\n    x = 1\n      y = 2\n",
        "if a:\n        x = 1\n    y = 2\n",
        "f() = 3\n",
        "f(a=1, 2)\n",
        "x = = 1\n",
        'x = "abc\n',
    ],
)
def test_python_that_no_version_takes_is_broken(text: str) -> None:
    assert newly_broken("a.py", b"x = 1\n", text.encode()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "type Point = tuple[float, float]\n",  # 3.12
        "def first[T](items: list[T]) -> T:\n    return items[0]\n",  # 3.12
        "x = f'{a['b']}'\n",  # 3.12
        "match a:\n    case [1, *_]:\n        pass\n",
        "async def f():\n    return [x async for x in y]\n",
        "\ufeffx = 1\n",
        "x = 1\r\ny = 2\r\n",
        "x = '\\d'\n",  # a warning at most
        "",
    ],
)
def test_python_of_any_version_is_not_called_broken(text: str) -> None:
    assert newly_broken("a.py", b"x = 1\n", text.encode()) is None
    assert newly_broken("a.py", None, text.encode()) is None


def test_old_python_that_was_there_may_stay() -> None:
    old = b"try:\n    pass\nexcept E, e:\n    print 'x'\n"
    assert newly_broken("a.py", old, old.replace(b"'x'", b"'y'")) is None


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.unknown", b"((("),
        ("Makefile", b"((("),
        ("a.py", b"\xff\xfe((("),
        ("a.py", b"(" * (MAX_CHECKED_BYTES + 1)),
        ("page.html", b"<p>{% if x %}</div>"),
        ("a.yaml", b"a: {{ b }}\nc: [\n"),
        ("tsconfig.json", b'{\n  // a comment\n  "a": 1\n}\n'),
        ("web/tsconfig.app.json", b'{\n  "a": ["x", /* one, */],\n  "b": "//no, }", // two\n}\n'),
        (".vscode/settings.json", b'{"a": 1,}'),
        ("a.js", b"// @flow\nfunction f(x: number): ?string { return null; }\nexport type A = {| a: 1 |};\n"),
        ("a.jsx", b"/**\n * Copyright.\n * @flow strict\n */\nopaque type A = number;\n"),
        ("tests/data/bad_syntax.py", b"def f(:\n"),
        ("pkg/tests/unit/cases/one.js", b"function {"),
        ("parser/testdata/bad.go", b"package {"),
        ("src/__fixtures__/x.json", b"{"),
    ],
)
def test_what_cannot_be_judged_is_not_told(path: str, content: bytes) -> None:
    assert newly_broken(path, None, content) is None


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tsconfig.json", b'{"a": [1, 2}'),
        ("tsconfig.json", b'{"a": 1,, }'),
        ("package.json", b'{"a": 1,}'),
        ("a.js", b"// flow\nfunction f( { }\n"),
        ("src/data/a.py", b"def f(:\n"),
        ("tests/test_a.py", b"def f(:\n"),
        ("latest/data/a.py", b"def f(:\n"),
    ],
)
def test_what_only_looks_like_what_cannot_be_judged_is_told(path: str, content: bytes) -> None:
    assert newly_broken(path, None, content) is not None


def test_the_lines_of_json_with_comments_are_counted_as_they_are() -> None:
    breakage = newly_broken("tsconfig.json", None, b'{\n  /* one\n  two */\n  "a": [1,\n  "b": 2}\n')
    assert breakage is not None
    assert breakage.line >= 4


def test_a_grammar_that_is_not_installed_means_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grammars._GRAMMARS, "zz", ("tree_sitter_that_is_nowhere", "language"))
    assert newly_broken("a.zz", None, b"(((") is None


@pytest.mark.parametrize(
    "content",
    [
        b"(" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"{'a':" * 50_000,
        b"if x:\n" * 40_000,
        b"\0" * 1000,
        b"/*" * 50_000,
        b"," * 100_000,
    ],
)
@pytest.mark.parametrize("path", ["a.py", "a.js", "a.json", "a.cpp", "a.rb", "tsconfig.json"])
def test_hostile_text_ends_soon_and_raises_nothing(path: str, content: bytes) -> None:
    assert is_within(20, lambda: newly_broken(path, b"", content))
