"""Reports read off what a tool prints: libtest (``cargo test``) and ``python -m unittest -v``.

Tests print between these lines, so each is believed only where the tool's own totals say the same; otherwise
:class:`UnreadableReport`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import plain
from necrocode.agent_runner.verdict.cases import CaseBook, UnreadableReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from necrocode.agent_runner.test_results import CaseStatus, TestCase

_CARGO_BEGIN = re.compile(r"^running (\d{1,9}) tests?$")
_CARGO_END = re.compile(r"^test result: (?:ok|FAILED)\. (\d{1,9}) passed; (\d{1,9}) failed; (\d{1,9}) ignored;")
_CARGO_DETAILS = re.compile(r"^---- (.+) stdout ----$")
_DOC_LINE = re.compile(r" \(line \d+\)")
_CARGO_STATUS: dict[str, CaseStatus] = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
_LONGEST_LINE = 2_000
_HASH_DIGITS = 16


def parse_cargo(output: str) -> tuple[TestCase, ...]:
    """The cases in the output of ``cargo test``: ``crate target::module::name``."""
    book = CaseBook()
    details = _cargo_details(output)
    label, expected, seen = "", 0, Counter[str]()
    for line in _lines(output):
        if found := _cargo_target(line.strip()):
            label = found
        elif begin := _CARGO_BEGIN.match(line):
            expected, seen = int(begin[1]), Counter()
        elif expected and (case := _cargo_case(line)):
            name, word = case
            seen[word] += 1
            text = details.get(name, "") if word == "FAILED" else ""
            name = f"{label}::{_DOC_LINE.sub('', name)}"
            book.add(name, _CARGO_STATUS[word], message=_panic(text), details=text)
        elif end := _CARGO_END.match(line):
            if [seen["ok"], seen["FAILED"], seen["ignored"]] != [int(number) for number in end.groups()]:
                raise UnreadableReport("and the tool's own totals differ")
            expected = 0
    if expected:
        raise UnreadableReport("ends before the tool's own totals")
    if not len(book):
        raise UnreadableReport("names no test case")
    return book.cases()


def _cargo_target(line: str) -> str:
    """What runs next, from ``Running unittests src/lib.rs (target/debug/deps/shop-0123456789abcdef)``."""
    if line.startswith("Doc-tests "):
        return f"{line.split()[1]} doc"
    if not line.startswith("Running "):
        return ""
    source, parenthesis, path = line.removeprefix("Running ").rpartition(" (")
    crate, _, mark = path.rstrip(")").rpartition("/")[2].removesuffix(".exe").rpartition("-")
    if len(mark) != _HASH_DIGITS or not set(mark) <= set("0123456789abcdef"):
        return ""
    return f"{crate} {source}" if parenthesis else crate


def _cargo_case(line: str) -> tuple[str, str] | None:
    name, dots, word = line.removeprefix("test ").partition(" ... ")
    word = word.partition(",")[0]
    if not line.startswith("test ") or not dots or word not in _CARGO_STATUS:
        return None
    return name.removesuffix(" - should panic"), word


def _cargo_details(output: str) -> dict[str, str]:
    """What each failing case printed, by its name."""
    found: dict[str, list[str]] = {}
    into: list[str] | None = None
    for line in _lines(output):
        if head := _CARGO_DETAILS.match(line):
            into = found.setdefault(head[1], [])
        elif line in {"failures:", "successes:"}:
            into = None
        elif into is not None:
            into.append(line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def _panic(text: str) -> str:
    """The line or two of a panic that say what was expected."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("note: ")]
    start = next((number for number, line in enumerate(lines) if "panicked at" in line), 0)
    return " ".join(lines[start : start + 4])


# "test_add (test_calc.AddTest.test_add)"; before Python 3.11 "test_add (test_calc.AddTest)". A docstring's first line
# may stand between that and the dots, and so may whatever the test prints.
_UNITTEST_CASE = re.compile(r"^(\w+) \(([\w.]+)\)(?: .*)?$")
_UNITTEST_HEAD = re.compile(r"^(FAIL|ERROR|UNEXPECTED SUCCESS): (\w+) \(([\w.]+)\)")
_UNITTEST_RAN = re.compile(r"^Ran (\d{1,9}) tests? in ")
_UNITTEST_END = re.compile(r"^(?:OK|FAILED|NO TESTS RAN)(?: \((.*)\))?$")
_UNITTEST_TOTAL = re.compile(r"(failures|errors|skipped|expected failures|unexpected successes)=(\d{1,9})")
NOT_IMPORTED = "unittest.loader._FailedTest."
"""What unittest puts before the name of a module that it could not import."""
_FIXTURES = ("setUpClass", "tearDownClass", "setUpModule", "tearDownModule")
_UNITTEST_STATUS: dict[str, CaseStatus] = {
    "ok": "passed", "FAIL": "failed", "ERROR": "error", "skipped": "skipped", "expected failure": "skipped",
    "unexpected success": "failed",
}  # fmt: skip


def parse_unittest(output: str) -> tuple[TestCase, ...]:
    """The cases in the output of ``python -m unittest -v``: ``module.Class.test_name``."""
    lines = list(_lines(output))
    ran, totals = _unittest_totals(lines)
    body = lines[: next((number for number, line in enumerate(lines) if line == "=" * 70), len(lines))]
    results = _unittest_results(body)
    failing = _unittest_failing(lines)
    counted = Counter(status for status in results.values())
    agrees = (
        len([name for name in results if not name.endswith(_FIXTURES)]) == ran
        and counted["skipped"] == totals["skipped"] + totals["expected failures"]
        and all(name in failing for name, status in results.items() if status in {"failed", "error"})
        and sum(1 for _ in failing) <= totals["failures"] + totals["errors"] + totals["unexpected successes"]
        and bool(failing) == bool(totals["failures"] + totals["errors"] + totals["unexpected successes"])
    )
    if not agrees:
        raise UnreadableReport("and the tool's own totals differ")
    book = CaseBook()
    for name, status in results.items():
        if name not in failing:
            book.add(name, status)
    for name, (status, text) in failing.items():
        book.add(name, status, message=_last_line(text), details=text, ran=not name.startswith(NOT_IMPORTED))
    return book.cases()


def _unittest_totals(lines: list[str]) -> tuple[int, Mapping[str, int]]:
    ran = [int(found[1]) for line in lines if (found := _UNITTEST_RAN.match(line))]
    ends = [found for line in lines[-5:] if (found := _UNITTEST_END.match(line))]
    if len(ran) != 1 or len(ends) != 1:
        raise UnreadableReport("has not the one ending that the tool writes")
    return ran[0], Counter({name: int(number) for name, number in _UNITTEST_TOTAL.findall(ends[0][1] or "")})


def _unittest_results(lines: Iterable[str]) -> dict[str, CaseStatus]:
    """What follows each case's name, at the latest before the next name; a failing subtest fails its case."""
    results: dict[str, CaseStatus] = {}
    name: str | None = None
    for line in lines:
        if case := _UNITTEST_CASE.match(line.partition(" ... ")[0].rstrip()):
            name = _unittest_name(case[1], case[2])
        word = line.rpartition("... ")[2]
        status = _UNITTEST_STATUS.get("skipped" if word.startswith(("skipped '", 'skipped "')) else word)
        if name is not None and status is not None and results.get(name) not in {"failed", "error"}:
            results[name] = status
    return results


def _unittest_failing(lines: list[str]) -> dict[str, tuple[CaseStatus, str]]:
    """The traceback of each failing case, by name, from the sections between double and single rules."""
    found: dict[str, tuple[CaseStatus, list[str]]] = {}
    into: list[str] | None = None
    for number, line in enumerate(lines):
        head = _UNITTEST_HEAD.match(line)
        if head and number and lines[number - 1] == "=" * 70:
            status: CaseStatus = "error" if head[1] == "ERROR" else "failed"
            into = found.setdefault(_unittest_name(head[2], head[3]), (status, []))[1]
        elif _UNITTEST_RAN.match(line):
            into = None
        elif into is not None and line not in {"=" * 70, "-" * 70}:
            into.append(line)
    return {name: (status, "\n".join(text).strip()) for name, (status, text) in found.items()}


def _unittest_name(method: str, place: str) -> str:
    return place if place.endswith(f".{method}") or place == method else f"{place}.{method}"


def _last_line(text: str) -> str:
    """What a traceback ends with: the exception, with the lines that belong to it."""
    lines = text.splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=-1)
    said = [line for line in lines[start + 1 :] if line and not line.startswith(" ")]
    return "\n".join(said[:3])


def _lines(output: str) -> Iterable[str]:
    """The lines without colours, cut to what any line that is looked for may have."""
    return (line[:_LONGEST_LINE] for line in plain(output).splitlines())
