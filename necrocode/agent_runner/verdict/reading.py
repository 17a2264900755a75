"""What a command's report says, where it can be relied on; else why not, and the exit code stands alone.

A report never outweighs an exit code: tests write both, but only the code is the process's own last word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from necrocode.agent_runner._process import HeadAndTail
from necrocode.agent_runner._text import plain
from necrocode.agent_runner.verdict.asking import GO_FILE, JEST_FILE, PYTEST_FILE, TOP_FILE
from necrocode.agent_runner.verdict.cases import UnreadableReport
from necrocode.agent_runner.verdict.json_reports import parse_go, parse_jest
from necrocode.agent_runner.verdict.junit import parse_junit
from necrocode.agent_runner.verdict.text_reports import parse_cargo, parse_unittest

if TYPE_CHECKING:
    from necrocode.agent_runner.test_results import CommandResult, TestCase
    from necrocode.agent_runner.verdict.asking import AskedCommand

_RENDERED_BYTES = 1_000_000
# What tools write because they were asked for a file, and npm because of our options. The folder's name is the
# sandbox's: "reports-" and a random part.
_OUR_TRACES = (
    re.compile(r"^-+ generated xml file: [^\n]*/reports-\w+/pytest\.xml -+\n?", re.MULTILINE),
    re.compile(
        r"^Test results written to: [^\n]*/reports-\w+/jest\.json\n?|^JUNIT report written to [^\n]*\n?", re.MULTILINE
    ),
    re.compile(r" --json --outputFile=[^\s]*/reports-\w+/jest\.json"),
    re.compile(r" --reporter=default --reporter=junit --outputFile\.junit=[^\s]*/reports-\w+/vitest\.xml"),
)
_PYTEST_SUMMARY = re.compile(
    r"^=* ?((?:\d{1,9} [a-z]{3,15}(?: [a-z]{3,15})?, ){0,12}\d{1,9} [a-z]{3,15}) in \d[\d.]*s\b"
)
_PYTEST_COUNT = re.compile(r"(\d+) (failed|errors?|passed)\b")
_MAX_LINE = 400
_PYTEST_CUT = re.compile(r"^!+ (?:stopping after |\S{0,60}(?:Interrupted: |KeyboardInterrupt |Exit: )).*!$")


def with_cases(result: CommandResult, asked: AskedCommand, command: str) -> CommandResult:
    """The result under the command's own name, with what its report says; nothing collected is kept.

    ``report_note`` says why a report that was to be expected is not used, and what of one does not fit the exit code.
    """
    output = result.output
    for trace in _OUR_TRACES:
        output = trace.sub("", output)
    cases: tuple[TestCase, ...] = ()
    report = note = ""
    if asked.kind == "go":
        output = _go_output(result, asked)
    if result.timed_out:
        note = "stopped at the time limit: what its report says would not be all"
    else:
        try:
            report, cases = _read(result, asked)
        except UnreadableReport as error:
            note = f"the report {error}; the exit code stands alone"
    return result.model_copy(
        update={
            "command": command,
            "output": output,
            "cases": cases,
            "report": report,
            "report_note": note or _contradiction(result.exit_code, cases),
            "ended_early": _ended_early(output, asked),
            "collected": {},
        }
    )


def _read(result: CommandResult, asked: AskedCommand) -> tuple[str, tuple[TestCase, ...]]:
    """The report's name, and its cases; empty where none was to be expected."""
    files = result.collected
    if asked.kind == "go":
        if GO_FILE not in files:
            raise UnreadableReport("was not written")
        return "go", parse_go(files[GO_FILE], verbose=asked.is_verbose)[0]
    if asked.kind == "jest":
        if JEST_FILE not in files:
            raise UnreadableReport("was not written")
        return "jest", parse_jest(files[JEST_FILE], files.get(TOP_FILE, b"").decode(errors="replace").strip())
    xml = {path: content for path, content in files.items() if path.endswith(".xml")}
    if xml:
        cases = parse_junit(xml.values())
        if PYTEST_FILE in xml:
            _check_pytest(result.output, cases)
        return "junit", cases
    if asked.kind in {"cargo", "unittest"}:
        if result.truncated_bytes:
            raise UnreadableReport("is the output, and that was too long to be kept whole")
        return asked.kind, (parse_cargo if asked.kind == "cargo" else parse_unittest)(result.output)
    if asked.kind:
        raise UnreadableReport("was not written")
    return "", ()


def _check_pytest(output: str, cases: tuple[TestCase, ...]) -> None:
    """One file holds what the last pytest of a command wrote: where there were two, it is not all."""
    lines = (plain(line[:_MAX_LINE]) for line in output.splitlines())
    summaries = [found[1] for line in lines if (found := _PYTEST_SUMMARY.match(line))]
    if len(summaries) > 1:
        raise UnreadableReport("is the last of several that the command wrote")
    if summaries:
        counted = dict.fromkeys(("failed", "error", "passed"), 0)
        for number, word in _PYTEST_COUNT.findall(summaries[0]):
            counted[word.removesuffix("s")] += int(number)
        failing = sum(case.is_failing for case in cases)
        told = counted["failed"] + counted["error"]
        if failing > told or bool(failing) != bool(told):
            raise UnreadableReport("and the tool's own totals differ")


def _ended_early(output: str, asked: AskedCommand) -> bool:
    """Whether pytest says that it did not come to all tests."""
    lines = (plain(line[:_MAX_LINE]) for line in output.splitlines() if "!" in line)
    return asked.kind in {"", "pytest"} and any(map(_PYTEST_CUT.match, lines))


def _contradiction(exit_code: int | None, cases: tuple[TestCase, ...]) -> str:
    failing = sum(case.is_failing for case in cases)
    if not cases:
        return ""
    if exit_code == 0 and failing:
        return f"exited with 0, though its report names {failing} failing"
    if exit_code != 0 and not failing:
        return f"exited with {exit_code}, though its report names no failing case"
    return ""


def _go_output(result: CommandResult, asked: AskedCommand) -> str:
    """What people would have seen, had the events not been asked for; what went to standard error follows."""
    try:
        text = parse_go(result.collected.get(GO_FILE, b""), verbose=asked.is_verbose)[1]
    except UnreadableReport:
        text = result.collected.get(GO_FILE, b"").decode(errors="replace")
    kept = HeadAndTail(_RENDERED_BYTES)
    kept.write(text.encode(errors="replace"))
    return kept.content().decode(errors="replace") + result.output
