"""Failing tests as a model is to read them, and as they are told apart: most telling lines first, bounded, plain."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import plain, shown
from necrocode.agent_runner.verdict.cases import bounded_tail
from necrocode.agent_runner.verdict.comparison import compare_commands

if TYPE_CHECKING:
    from collections.abc import Iterable

    from necrocode.agent_runner.test_results import CommandResult, TestCase, TestResult

MAX_FEEDBACK_TOKENS = 1_500
"""About how many tokens a feedback has, at four characters of ASCII or one other to a token."""
_CHARACTERS_PER_TOKEN = 4
_MAX_CASES = 8
_MAX_NAMES = 20
_CASE_CHARACTERS = 1_200
_OUTPUT_CHARACTERS = 4_000
_DETAILS_CHARACTERS = 12_000
"""Of how much of a case's traceback repetitions are looked for."""
_MESSAGE_BEGINNING = 60
_LONGEST_REPETITION = 12
"""So many lines; a frame of a traceback has two to six."""
_LEAST_REPETITIONS = 3
_ERROR_MARK = re.compile(r"^E   +", re.MULTILINE)
"""With which pytest begins a message's lines in a traceback."""
# Folders of a layer (sandbox/layer.py) are new in every run: paths in it are shown from the checkout's top.
_LAYER_TOP = re.compile(r"[^\s'\"(:]{0,300}/layer-[\w]{1,20}/top(?:/|\b)")
_LAYER = re.compile(r"[^\s'\"(:]{0,300}/layer-[\w]{1,20}/")
# What differs between two runs of the same failure.
_ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]{6,16}\b")
_VARYING = (
    (re.compile(r"0x[0-9a-fA-F]{4,16}"), "0x"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"), "<time>"),
    (re.compile(r"\b\d{1,9}(?:[.,]\d{1,9})? ?(?:ms|milliseconds|s|secs?|seconds|µs|us|ns|m)\b"), "<duration>"),
    (re.compile(r"(?:/tmp|/var/tmp|/private/var)/[^\s'\":,)]{1,300}"), "<temporary>"),
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"\b(?:pid|PID|port|seed|Process|thread|Thread)([ =:#-]{1,3})\d{1,20}"), "<number>"),
)


def failure_feedback(result: TestResult, base: TestResult | None) -> str:
    """What failed, for a model that is to mend its change; empty when nothing did.

    The first failing command with its exit code, its failing cases with message and the end of the traceback, first
    those that did not fail on the base; the others are set aside, by name alone, only where the rule does so too.
    Without cases the end of the output. Secrets are masked already.
    """
    failed = [(number, command) for number, command in enumerate(result.commands) if not command.passed]
    if not failed:
        return ""
    compared = [] if base is None else compare_commands(base, result)
    number, command = next(
        (one for one in failed if one[0] < len(compared) and compared[one[0]].newly_broken), failed[0]
    )
    old = compared[number].pre_existing if number < len(compared) else set()
    known = old if result.pass_rule == "no-new-failures" else set()  # noqa: S105  a rule on passing
    failing = [case for case in command.failing if case.name not in known and not _passed_again(command, case)]
    failing.sort(key=lambda case: case.name in old)
    lines = [f"The command `{_told(command.command)[:300]}` {ending(command)}."]
    if command.report_note:
        lines.append(f"({_told(command.report_note)})")
    if number < len(compared) and compared[number].missing:
        lines.append(f"Ran before the change and not now: {_names(compared[number].missing)}")
    lines += _told_cases(failing) if failing else []
    newly = [case.name for case in failing if case.name not in old]
    if 0 < len(newly) < len(failing):
        lines.append(f"Of these, not failing before the change: {_names(newly)}")
    if not failing or command.report_note:
        lines.append(f"The end of its output:\n{_told(bounded_tail(command.output, _OUTPUT_CHARACTERS))}")
    if already := sorted(name for name in known if not name.startswith("$ ")):
        lines.append(f"These failed before the change as well, and do not count against it: {_names(already)}")
    return _within("\n".join(lines), MAX_FEEDBACK_TOKENS)


def tracebacks(result: TestResult) -> tuple[str, ...]:
    """What each failing case says; empty where a command failed without saying it of each."""
    failed = [command for command in result.commands if not command.passed]
    cases = [case for command in failed for case in command.failing]
    is_known = all(command.failing and not command.report_note for command in failed)
    return (
        tuple(_told(f"{one.details}\n{one.message}") for one in cases)
        if is_known and all(one.details for one in cases)
        else ()
    )


def failure_signature(result: TestResult) -> str:
    """The same text for the same failure: of commands, exit codes, failing cases and messages, but no time or address.

    Empty when nothing failed.
    """
    parts: list[str] = []
    for command in result.commands:
        if command.passed:
            continue
        parts += [command.command, str(command.exit_code)]
        parts += [f"{case.name}\0{_steady(case.message)}" for case in command.failing]
        if not command.failing:
            parts.append(_steady(bounded_tail(command.output, _OUTPUT_CHARACTERS)))
    return hashlib.sha256("\1".join(parts).encode(errors="surrogatepass")).hexdigest() if parts else ""


def _told_cases(failing: list[TestCase]) -> list[str]:
    lines = [f"{len(failing)} failing test case{'s' if len(failing) != 1 else ''}:"]
    for case in failing[:_MAX_CASES]:
        message = _told(case.message)
        details = _once(_told(bounded_tail(case.details, _DETAILS_CHARACTERS)))
        details = bounded_tail(details, _CASE_CHARACTERS)
        lines.append(f"\n- {case.name}")
        if message and not _holds(details, message):
            lines.append(f"  {message}")
        if details:
            lines.append(details)
    if rest := failing[_MAX_CASES:]:
        lines.append(f"\nand {len(rest)} more: {_names(case.name for case in rest)}")
    return lines


def _holds(details: str, message: str) -> bool:
    """Whether the traceback says the message too, however the lines of it are set in."""
    beginning = "".join(message.split())[:_MESSAGE_BEGINNING]
    return beginning in "".join(_ERROR_MARK.sub("", details).split())


def _once(text: str) -> str:
    """The text with lines that come several times in a row, as the frames of a recursion do, only once."""
    lines = text.split("\n")
    kept: list[str] = []
    at = 0
    while at < len(lines):
        length, count = next(
            (
                (length, count)
                for length in range(1, _LONGEST_REPETITION + 1)
                if lines[at].strip() and (count := _repetitions(lines, at, length)) >= _LEAST_REPETITIONS
            ),
            (1, 1),
        )
        if count > 1:  # said before the lines: where only the end of the text is shown, it is not left behind
            kept.append(f"[{count} times:]" if length == 1 else f"[{count} times these {length} lines:]")
        kept += lines[at : at + length]
        at += length * count
    return "\n".join(kept)


def _repetitions(lines: list[str], start: int, length: int) -> int:
    """How many times these lines stand there one after the other."""
    count = 1
    while lines[start : start + length] == lines[(at := start + count * length) : at + length]:
        count += 1
    return count


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(listed[:_MAX_NAMES]) + more


def _passed_again(command: CommandResult, case: TestCase) -> bool:
    """Whether it is flaky: it passed in the second run."""
    again = () if command.rerun is None else command.rerun.cases
    return any(other.name == case.name and not other.is_failing for other in again)


def ending(command: CommandResult) -> str:
    """How a command that failed has ended, in a few words."""
    if command.timed_out:
        return "did not end in time"
    if command.stopped_by is not None:
        return f"was stopped at a limit ({command.stopped_by})"
    if command.exit_code is not None and command.exit_code < 0:
        return f"was ended by signal {-command.exit_code}"
    return f"exited with {command.exit_code}"


def _told(text: str) -> str:
    """Text of tests as a model, and a person behind it, may read it: no colours or control characters, short paths.

    No addresses in memory either: they differ from run to run, and with them every question to a model would.
    """
    readable = shown(_LAYER.sub("", _LAYER_TOP.sub("", plain(text))), len(text) + 1)
    return _ADDRESS.sub("0x...", readable)


def _steady(text: str) -> str:
    text = _told(text)
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return " ".join(text.split())


def _within(text: str, tokens: int) -> str:
    """The beginning of the text, as far as the tokens go, ended at a line."""
    if _tokens(text) <= tokens:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _tokens(text[:middle]) <= tokens else (low, middle - 1)
    return f"{text[:low].rpartition(chr(10))[0] or text[:low]}\n…"


def _tokens(text: str) -> int:
    wide = sum(not character.isascii() for character in text)
    return wide + (len(text) - wide) // _CHARACTERS_PER_TOKEN
