"""Reports in JSON: the event stream of ``go test -json`` (cmd/test2json), and jest's ``--json`` file."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.verdict.cases import MAX_CASES, CaseBook, UnreadableReport, group_name, seconds_of

if TYPE_CHECKING:
    from necrocode.agent_runner.test_results import CaseStatus, TestCase

_GO_STATUS: dict[str, CaseStatus] = {"pass": "passed", "fail": "failed", "skip": "skipped"}
_JEST_STATUS: dict[str, CaseStatus] = {
    "passed": "passed", "failed": "failed", "pending": "skipped", "skipped": "skipped", "todo": "skipped",
    "disabled": "skipped", "focused": "passed",
}  # fmt: skip
_GO_PROGRESS = ("=== RUN", "=== PAUSE", "=== CONT", "=== NAME")
# Before Go 1.24 a package that cannot be built is told in this line alone, which is no event.
_GO_NOT_BUILT = re.compile(r"^FAIL\t(\S{1,500}) \[(?:build|setup) failed\]")
_GO_REASON = re.compile(r"^\s+\S{1,200}\.go:\d{1,9}: ")
_MAX_GO_LINES = 500_000
_MAX_JSON_BYTES = 16 * 1024 * 1024  # parsed it may take twenty times as much


@dataclass
class _GoTest:
    """What has been heard of one test, or (``name`` empty) of one package."""

    package: str
    name: str
    status: CaseStatus | None = None
    seconds: float | None = None
    output: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.output)


def parse_go(content: bytes, *, verbose: bool = False) -> tuple[tuple[TestCase, ...], str]:
    """The cases in an event stream, and the text that ``go test`` would have written to its standard output.

    ``verbose``: with ``-v``, so of passing tests too. A package that could not be built or died is a case of its own.
    """
    tests, order = _heard(content)
    if not tests:
        raise UnreadableReport("holds no events")
    book = CaseBook()
    failing_packages = {one.package for one in tests.values() if one.name and one.status == "failed"}
    for one in tests.values():
        if one.name:
            _add_go_test(book, one)
        elif one.status == "failed" and one.package not in failing_packages:
            book.add(one.package, "error", message=_first_line(one.text), details=one.text, ran=False)
    return book.cases(), _go_text(tests, order, verbose=verbose)


def _heard(content: bytes) -> tuple[dict[tuple[str, str], _GoTest], list[tuple[str, str, str]]]:
    """Everything by package and test, and all output in order: (package, test, text)."""
    tests: dict[tuple[str, str], _GoTest] = {}
    order: list[tuple[str, str, str]] = []
    if content.count(b"\n") > _MAX_GO_LINES:
        raise UnreadableReport(f"holds more than {_MAX_GO_LINES} lines")
    for line in io.StringIO(content.decode(errors="replace"), newline=None):
        event = _object(line) if line.startswith("{") else {}
        package, name, action = (_text(event.get(key)) for key in ("Package", "Test", "Action"))
        if action == "build-output":
            package, action = _text(event.get("ImportPath")).partition(" ")[0], "output"
        if not action:
            order.append(("", "", line))
            if found := _GO_NOT_BUILT.match(line):
                tests[found[1], ""] = _GoTest(found[1], "", "failed", output=[line])
            continue
        one = tests.setdefault((package, name), _GoTest(package, name))
        if len(tests) > 2 * MAX_CASES:
            raise UnreadableReport(f"holds more than {MAX_CASES} test cases")
        if action == "output":
            one.output.append(_text(event.get("Output")))
            order.append((package, name, one.output[-1]))
        elif action in _GO_STATUS:
            one.status, one.seconds = _GO_STATUS[action], seconds_of(event.get("Elapsed"))
    return tests, order


def _add_go_test(book: CaseBook, one: _GoTest) -> None:
    status = one.status or "error"  # it began and never ended: the process died
    telling = [line for line in one.output if not line.lstrip().startswith((*_GO_PROGRESS, "--- "))]
    book.add(
        f"{one.package}.{one.name}",
        status,
        message=_go_reason(telling) or ("it did not end" if one.status is None else ""),
        details="".join(telling),
        duration_seconds=one.seconds,
    )


def _go_reason(lines: list[str]) -> str:
    """What the test itself says is wrong, rather than what it printed before."""
    told = (line for line in lines if _GO_REASON.match(line) or line.startswith("panic: "))
    return next(told, _first_line("".join(lines))).strip()


def _go_text(tests: dict[tuple[str, str], _GoTest], order: list[tuple[str, str, str]], *, verbose: bool) -> str:
    def is_shown(package: str, name: str, text: str) -> bool:
        if verbose:
            return True
        one = tests.get((package, name))
        if one is not None and name:
            return one.status not in {"passed", "skipped"} and not text.startswith(_GO_PROGRESS)
        return one is None or one.status == "failed" or text != "PASS\n"

    return "".join(text for package, name, text in order if is_shown(package, name, text))


def parse_jest(content: bytes, top: str) -> tuple[TestCase, ...]:
    """The cases in a file of ``--outputFile``; ``top`` is the folder that paths are shown relative to."""
    if len(content) > _MAX_JSON_BYTES:
        raise UnreadableReport(f"is larger than {_MAX_JSON_BYTES} bytes")
    report = _object(content.decode(errors="replace"))
    suites = report.get("testResults")
    if not isinstance(suites, list):
        raise UnreadableReport("is no whole JSON of jest")
    book = CaseBook()
    for suite in suites:
        if not isinstance(suite, dict) or not isinstance(cases := suite.get("assertionResults"), list):
            raise UnreadableReport("is not in the shape that jest writes")
        file = _text(suite.get("name"))
        file = group_name(file.removeprefix(f"{top.rstrip('/')}/") if top else file)
        if not cases and suite.get("status") == "failed":
            message = _text(suite.get("message"))
            book.add(file, "error", message=_first_line(message), details=message, ran=False)
        for case in cases:
            _add_jest_case(book, file, case)
    return book.cases()


def _add_jest_case(book: CaseBook, file: str, case: object) -> None:
    if not isinstance(case, dict) or _text(case.get("status")) not in _JEST_STATUS:
        raise UnreadableReport("is not in the shape that jest writes")
    messages = case.get("failureMessages")
    text = "\n".join(map(_text, messages)) if isinstance(messages, list) else ""
    milliseconds = seconds_of(case.get("duration"))
    book.add(
        f"{file} > {_text(case.get('fullName')) or _text(case.get('title'))}",
        _JEST_STATUS[case["status"]],
        message=_first_line(text),
        details=text,
        duration_seconds=None if milliseconds is None else milliseconds / 1000,
    )


def _object(text: str) -> dict[str, Any]:
    """The JSON object that the text is; an empty one where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # cut, no JSON, or nested without end
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
