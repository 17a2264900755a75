"""What a task's text gives away, and what ties files together."""

from __future__ import annotations

import pytest

from necrocode.agent_runner.generation.chunks import cut_up
from necrocode.agent_runner.generation.clues import Clues, Place
from necrocode.agent_runner.generation.links import LinkIndex, subject_of
from necrocode.agent_runner.generation.outline import outline
from tests.support.pace import is_within


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('  File "/usr/lib/src/a.py", line 12, in go', Place("/usr/lib/src/a.py", 12, "go")),
        ("src/a.py:34: AssertionError", Place("src/a.py", 34, "")),
        ("    at run (/app/lib/a.js:5:13)", Place("/app/lib/a.js", 5, "")),
        ("    at com.acme.Thing.run(Thing.java:77)", Place("Thing.java", 77, "")),
        ("  --> src/main.rs:8:5", Place("src/main.rs", 8, "")),
        ("\tmain.go:19 +0x1d", Place("main.go", 19, "")),
        ("see https://example.com/o/r/blob/main/src/a.py#L40", Place("example.com/o/r/blob/main/src/a.py", 40, "")),
        ("C:\\work\\a.cs:3", Place("/work/a.cs", 3, "")),
    ],
)
def test_lines_that_traces_and_links_point_at(text: str, place: Place) -> None:
    assert place in Clues("t", text).places


def test_names_and_words_of_a_task() -> None:
    clues = Clues("Wrong total", "Wrong total: `Ledger.add_row()` and parseInvoice, --dry-run, row_sum; see pkg.mod.")
    assert {"add_row", "parseInvoice", "dry-run", "row_sum"} <= set(clues.names)
    assert clues.words["total"] > clues.words["invoic"]
    assert "pkg.mod" in clues.dotted


@pytest.mark.parametrize(
    "text",
    ["a/" * 60_000, "a." * 60_000, "`" * 120_000, "_" * 120_000, "aA" * 60_000, "(" * 120_000, 'File "' * 20_000],
)
def test_hostile_text_takes_no_time(text: str) -> None:
    clues = Clues("t", text)
    assert len(clues.words) + len(clues.names) + len(clues.places) + len(clues.path_like) + len(clues.dotted) < 70_000
    assert is_within(3, lambda: Clues("t", text))
    imports = f"import {text}\nfrom {text} import {text}"
    assert is_within(3, lambda: LinkIndex(["a/b.py"]).imported_by("a/b.py", imports))


TREE = [
    "pkg/__init__.py",
    "pkg/core.py",
    "pkg/sub/util.py",
    "lib/thing.ts",
    "lib/index.ts",
    "inc/x.h",
    "com/acme/Thing.java",
]


@pytest.mark.parametrize(
    ("path", "text", "imported"),
    [
        ("pkg/core.py", "from pkg.sub import util\n", ["pkg/sub/util.py"]),
        ("pkg/core.py", "from .sub.util import f, g\n", ["pkg/sub/util.py"]),
        ("pkg/core.py", "import os, sys\n", []),
        ("lib/index.ts", "import { a } from './thing'\n", ["lib/thing.ts"]),
        ("lib/thing.ts", "const a = require('../lib')\n", []),
        ("inc/y.c", '#include "inc/x.h"\n', ["inc/x.h"]),
        ("com/acme/Other.java", "import com.acme.Thing;\n", ["com/acme/Thing.java"]),
    ],
)
def test_imports_are_followed_within_the_tree(path: str, text: str, imported: list[str]) -> None:
    assert LinkIndex(TREE).imported_by(path, text) == imported


def test_files_are_found_by_what_a_text_calls_them() -> None:
    index = LinkIndex([*TREE, *(f"d{number}/same.py" for number in range(9))])
    assert index.named("pkg/core.py") == ["pkg/core.py"]
    assert index.named("core.py") == ["pkg/core.py"]
    assert index.named("/usr/site-packages/pkg/sub/util.py") == ["pkg/sub/util.py"]
    assert index.named("other/core.py") == []
    assert index.named("same.py") == []
    assert index.module("pkg.sub.util.f") == ["pkg/sub/util.py"]
    assert index.module("np.zeros") == []


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("t/test_a.py", "a"),
        ("a_test.go", "a"),
        ("a.spec.ts", "a"),
        ("ATests.cs", "a"),
        ("a.py", ""),
        ("a/b_spec.rb", "b"),
    ],
)
def test_what_a_test_file_is_about(path: str, subject: str) -> None:
    assert subject_of(path) == subject


SOURCES = {
    "a.py": ("@dec\ndef f():\n    pass\n\nclass A:\n    x = 1\n\n    def g(self):\n        pass\n", ["f", "A", "A.g"]),
    "a.ts": (
        "export class A {\n  g() { return 1 }\n}\nexport const f = () => 1\nfunction h() {}\n",
        ["A", "A.g", "f", "h"],
    ),
    "a.go": ("package a\n\ntype T struct {\n\tx int\n}\n\nfunc (t T) G() {}\n", ["T", "G"]),
    "a.rs": ("struct S;\nimpl S {\n    fn g(&self) {}\n}\nfn f() {}\n", ["S", "S", "S.g", "f"]),
    "A.java": ("class A {\n  int f;\n  void g() {}\n}\n", ["A", "A.g"]),
    "a.cpp": (
        "namespace n {\nclass A {\n  void g() {}\n};\n}\nint f(int x) { return x; }\n",
        ["n", "n.A", "n.A.g", "f"],
    ),
    "a.rb": ("class A\n  def g\n  end\nend\n", ["A", "A.g"]),
}


@pytest.mark.parametrize("path", SOURCES)
def test_definitions_are_told_with_what_they_are_in(path: str) -> None:
    text, expected = SOURCES[path]
    assert [".".join([*symbol.holders, symbol.name]) for symbol in outline(path, text.encode())] == expected


def test_a_definition_begins_at_its_decorators_and_ends_at_its_last_line() -> None:
    function = outline("a.py", SOURCES["a.py"][0].encode())[0]
    assert (function.start, function.body, function.end) == (1, 3, 3)


@pytest.mark.parametrize("path", SOURCES)
def test_chunks_cover_every_line_that_is_not_blank_and_none_twice(path: str) -> None:
    text = SOURCES[path][0] + "\n\n" + "x = 1\n" * 200
    lines = text.split("\n")
    chunks = cut_up(lines, outline(path, text.encode()))
    covered = [line for chunk in chunks for line in range(chunk.start, chunk.end + 1)]
    assert len(covered) == len(set(covered))
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= set(covered)


@pytest.mark.parametrize("text", ["class A:\n" * 2000, "def f():\n " * 3000, "{" * 50_000, "class A {" * 5000])
@pytest.mark.parametrize("path", ["a.py", "a.ts", "a.cpp"])
def test_hostile_source_is_outlined_within_bounds(path: str, text: str) -> None:
    assert is_within(10, lambda: cut_up(text.split("\n"), outline(path, text.encode())))
