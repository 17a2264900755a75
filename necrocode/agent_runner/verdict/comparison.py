"""A change against its base, by what the tests said of both: pure, and the same for the same inputs."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.test_results import CaseList, CommandResult, Verdict
from necrocode.agent_runner.verdict.text_reports import NOT_IMPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from necrocode.agent_runner.test_results import PassRule, TestResult

MAX_LISTED = 200
"""How many names each list of a verdict holds; its count says how many there are."""

LOST_NOTE = "exited with 0 without a word on any test, though it ran tests before the change: it counts as failed"

_Outcome = Literal["passes", "fails", "skips"]


@dataclass
class Comparison:
    """One command on both sides, by names of cases."""

    has_cases: bool
    is_whole: bool = False
    """Whether tests were run now, and nothing says that others were not."""
    passed: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    newly_broken: set[str] = field(default_factory=set)
    pre_existing: set[str] = field(default_factory=set)
    flaky: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    new: set[str] = field(default_factory=set)

    @property
    def is_no_worse(self) -> bool:
        """Whether a failing command may be accepted: by cases alone, all of which failed on the base, none vanished.

        One that was broken off, or came to no test at all, says nothing of the others.
        """
        explained = any(not name.startswith("$ ") for name in self.pre_existing)
        unexplained = any(name.startswith("$ ") for name in self.pre_existing)
        is_known = self.has_cases and self.is_whole and explained and not unexplained
        return is_known and not self.newly_broken and not self.missing


def compare_commands(base: TestResult, result: TestResult) -> list[Comparison]:
    """Each command that ran on both sides, in order. A later one that only one side came to is not compared."""
    return [_compare(*pair) for pair in zip(base.commands, result.commands, strict=False)]


def make_verdict(base: TestResult, result: TestResult) -> Verdict:
    """The comparison of all commands; with none in common, its basis is ``exit-code`` and its lists are empty."""
    compared = compare_commands(base, result)
    with_cases = [one.has_cases for one in compared]

    def listed(name: str) -> CaseList:
        return case_list(set().union(*(getattr(one, name) for one in compared)))

    return Verdict(
        basis="cases" if with_cases and all(with_cases) else "mixed" if any(with_cases) else "exit-code",
        base_tree=base.tree,
        tree=result.tree,
        passed=sum(len(one.passed) for one in compared),
        fixed=listed("fixed"),
        newly_broken=listed("newly_broken"),
        pre_existing=listed("pre_existing"),
        flaky=listed("flaky"),
        missing=listed("missing"),
        new=listed("new"),
    )


def case_list(names: Iterable[str]) -> CaseList:
    """The names in order, the first of them only where there are many."""
    ordered = sorted(names)
    return CaseList(count=len(ordered), names=tuple(ordered[:MAX_LISTED]))


def with_lost_tests(base: TestResult, result: TestResult) -> TestResult:
    """The result, each command marked that exited with 0 and came to no test, though it ran some on the base.

    Code under test can end the process before the tests begin, or be loaded in place of the test tool; then an exit
    code of 0 says nothing.
    """
    commands = [
        _lost(command) if counterpart is not None and counterpart.ran_tests else command
        for command, counterpart in zip_longest(result.commands, base.commands[: len(result.commands)])
    ]
    return result.model_copy(update={"commands": tuple(commands)})


def newly_failing(base: TestResult, result: TestResult) -> bool:
    """Whether something fails that did not on the base: then it is worth a second run."""
    return any(one.newly_broken for one in compare_commands(base, result))


def lost_cases(base: TestResult, result: TestResult) -> tuple[str, ...]:
    """The first of the cases that ran on the base and are gone or skipped now, in order.

    One that came back under the same name in another file or class is not lost.
    """
    compared = [one for one in compare_commands(base, result) if one.has_cases]
    missing = set[str]().union(*(one.missing for one in compared))
    back = {_last_name(name) for one in compared for name in one.new & one.passed}
    return case_list(name for name in missing if _last_name(name) not in back).names


def _last_name(name: str) -> str:
    """The case's own name, without what it is in."""
    plain, bracket, parameters = name.partition("[")
    return re.split(r"::|\.| > ", plain)[-1] + bracket + parameters


def with_second_run(first: TestResult, second: TestResult) -> TestResult:
    """The first run, each command that failed in either with its second beside it.

    Commands that only the second run came to are taken from there: in the first one, a failure stood before them.
    """
    commands = [
        one if one.passed_at_once and other.passed_at_once else one.model_copy(update={"rerun": other})
        for one, other in zip(first.commands, second.commands, strict=False)
    ]
    rest = first.commands[len(commands) :] or second.commands[len(commands) :]
    return first.model_copy(
        update={
            "commands": (*commands, *rest),
            "duration_seconds": first.duration_seconds + second.duration_seconds,
        }
    )


def is_success(result: TestResult, base: TestResult | None, *, asked_for: int, rule: PassRule) -> bool:
    """Whether the tests count as passed by ``rule``, where ``asked_for`` commands were to be run.

    ``exit-code``: each of them exited with 0, at the latest in its second run, and ran tests where it did on the base
    (see :func:`with_lost_tests`). ``no-new-failures``: one that did not is accepted too when its cases are known on
    both sides, each that fails now failed on the base, and none vanished.
    """
    if len(result.commands) < asked_for:
        return False
    if rule == "exit-code" or base is None:
        return all(command.passed for command in result.commands)
    compared = compare_commands(base, result)
    return len(compared) == len(result.commands) and all(
        command.passed or (not command.timed_out and one.is_no_worse)
        for command, one in zip(result.commands, compared, strict=True)
    )


def _compare(base: CommandResult, command: CommandResult) -> Comparison:
    has_cases = bool(base.cases and command.cases)
    now, flaky = _settled(command, by_case=has_cases)
    before = _settled(base, by_case=has_cases)[0]
    if has_cases and (_is_unexplained(base) or _is_unexplained(command)):
        now |= _by_exit_code(command, command.passed)
        before |= _by_exit_code(command, base.passed)
    compared = Comparison(has_cases, command.ran_tests and not command.ended_early, flaky=flaky)
    for name, outcome in now.items():
        was = before.get(name)
        if outcome == "fails":
            (compared.pre_existing if was == "fails" else compared.newly_broken).add(name)
        elif outcome == "passes":
            compared.passed.add(name)
            if was == "fails" and name not in flaky:
                compared.fixed.add(name)
        if was is None or (was == "skips" != outcome):
            compared.new.add(name)
    if command.came_to_no_test and not command.passed:
        before, now = _by_case(base), {}
    gone = {name for name, was in before.items() if was != "skips" and now.get(name, "skips") == "skips"}
    not_run = {case.name for case in base.cases if not case.ran}
    runnable = _taken_apart(gone & not_run, now)
    compared.fixed |= runnable
    compared.missing |= gone - runnable
    return compared


def _taken_apart(groups: set[str], names: Iterable[str]) -> set[str]:
    """Those of the files and packages that could not be run of which there are single cases now."""
    ordered = sorted(names)
    found = set()
    for group in groups:
        beginning = group.removeprefix(NOT_IMPORTED)
        for separator in ("::", ".", " > "):
            place = bisect_left(ordered, beginning + separator)
            if place < len(ordered) and ordered[place].startswith(beginning + separator):
                found.add(group)
    return found


def _settled(command: CommandResult, *, by_case: bool) -> tuple[dict[str, _Outcome], set[str]]:
    """What each case comes to over both runs, and those on which the runs do not agree."""
    first, second = command, command.rerun
    if not by_case:
        flaky = {f"$ {command.command}"} if second is not None and not first.passed_at_once and second.passed else set()
        return _by_exit_code(command, command.passed), flaky
    outcomes = _by_case(first)
    if second is None or not (second.cases or second.passed):
        return outcomes, set()
    again: Mapping[str, _Outcome] = _by_case(second) if second.cases else dict.fromkeys(outcomes, "passes")
    flaky = {name for name in outcomes.keys() & again.keys() if {outcomes[name], again[name]} == {"passes", "fails"}}
    late: dict[str, _Outcome] = {name: outcome for name, outcome in again.items() if name not in outcomes}
    return outcomes | dict.fromkeys(flaky, "passes") | late, flaky


def _lost(command: CommandResult) -> CommandResult:
    """The command, and its second run, each marked if it exited with 0 and came to no test."""
    rerun = None if command.rerun is None else _lost(command.rerun)
    if command.exit_code != 0 or command.ran_tests:
        return command.model_copy(update={"rerun": rerun})
    why = f" ({command.report_note})" if command.report_note and not command.came_to_no_test else ""
    note = command.report_note if command.came_to_no_test else f"{LOST_NOTE}{why}"
    return command.model_copy(update={"rerun": rerun, "came_to_no_test": True, "report_note": note})


def _by_case(command: CommandResult) -> dict[str, _Outcome]:
    return {
        case.name: "fails" if case.is_failing else "passes" if case.status == "passed" else "skips"
        for case in command.cases
    }


def _by_exit_code(command: CommandResult, passed: bool) -> dict[str, _Outcome]:  # noqa: FBT001  it reads as a sentence
    return {f"$ {command.command}": "passes" if passed else "fails"}


def _is_unexplained(command: CommandResult) -> bool:
    """Whether it failed and no case of it did: a module that was not collected, a coverage threshold."""
    return not command.passed and not command.failing
