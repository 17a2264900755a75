"""What tests said: of each command, of each test case, and of a change against its base."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from necrocode.agent_runner._strict import Value, Writable

CaseStatus = Literal["passed", "failed", "error", "skipped"]
StopReason = Literal["timeout", "cpu-limit", "oom", "process-limit", "output-limit", "disk-limit"]
PassRule = Literal["exit-code", "no-new-failures"]


class TestCase(Value):
    """One test case, as the tool's own report tells it."""

    __test__: ClassVar[bool] = False  # pytest: the name starts with "Test", but this is no test

    name: Writable
    """Names the case within its command, the same in every run: ``tests.test_cart.TestCart::test_total[2]``."""
    status: CaseStatus
    """``error``: it did not come to a judgement, as when a module cannot be imported."""
    message: Writable = ""
    """Of a failing case: what was expected, in a line or two."""
    details: Writable = ""
    """Of a failing case: the end of its traceback."""
    duration_seconds: float | None = None
    ran: bool = True
    """False: it stands for a file or package of which no test was run, for it could not be imported or built."""

    @property
    def is_failing(self) -> bool:
        """Whether it failed, or could not be run."""
        return self.status in {"failed", "error"}


class CommandResult(Value):
    """One test command."""

    command: str
    exit_code: int | None
    """None when the command was stopped at a limit; negative: the signal that ended it."""
    duration_seconds: float
    output: Writable
    """Standard output and error in order, the middle left out where it was too long."""
    truncated_bytes: int = 0
    timed_out: bool = False
    stopped_by: StopReason | None = None
    """The limit that the command met and was stopped at: ``timeout`` (then ``timed_out`` too), ``cpu-limit``, ``oom``
    (memory), ``process-limit``, ``output-limit`` or ``disk-limit``; None: it ended by itself."""
    cases: tuple[TestCase, ...] = ()
    """What is known of single test cases, each named once; empty where no report can be relied on."""
    report: str = ""
    """Where the cases come from: ``junit``, ``go``, ``cargo``, ``jest``, ``unittest``; empty: there are none."""
    report_note: Writable = ""
    """Why there are no cases although a report was looked for, or what about the report does not fit the exit code."""
    came_to_no_test: bool = False
    """Whether it exited with 0 without a known test, though it ran some on the base: then it counts as failed."""
    ended_early: bool = False
    """Whether the tool says that it ended before all tests had run, as pytest does with ``-x`` or after an error in a
    module."""
    rerun: CommandResult | None = None
    """The second run on the same tree, where the first one failed anew; what passes in it is flaky."""
    collected: dict[str, bytes] = Field(default_factory=dict, exclude=True, repr=False)
    """The files that a sandbox was asked to bring back, by their paths; never part of a stored result."""

    @property
    def passed(self) -> bool:
        """Whether it exited with 0, at the latest in its second run; and ran tests, where it did on the base."""
        return self.passed_at_once or (self.rerun is not None and self.rerun.passed_at_once)

    @property
    def passed_at_once(self) -> bool:
        """The same for the first run alone."""
        return self.exit_code == 0 and not self.came_to_no_test

    @property
    def failing(self) -> tuple[TestCase, ...]:
        """The cases that failed, or could not be run."""
        return tuple(case for case in self.cases if case.is_failing)

    @property
    def ran_tests(self) -> bool:
        """Whether a single test is known to have been run."""
        return any(case.ran and case.status != "skipped" for case in self.cases)


class CaseList(Value):
    """Names of test cases in order; the first two hundred of them, and how many there are.

    A command of which no cases are known stands for itself, as ``$ command``.
    """

    count: int = 0
    names: tuple[Writable, ...] = ()


class Verdict(Value):
    """A change judged by what the tests say on its base and on itself."""

    basis: Literal["cases", "mixed", "exit-code"]
    """Whether single test cases are known on both sides: for every command, for some, or for none."""
    base_tree: str
    """The id of the git tree that the change was made from, as it was tested."""
    tree: str
    """The id of the git tree that was judged."""
    passed: int
    """How many cases pass now."""
    fixed: CaseList
    """They failed on the base, and pass now."""
    newly_broken: CaseList
    """They fail now, in the second run too, and did not fail on the base."""
    pre_existing: CaseList
    """They fail now, and failed on the base."""
    flaky: CaseList
    """They failed in the first run and passed in the second, on the same tree."""
    missing: CaseList
    """They ran on the base, and did not now: gone, skipped, or not reached."""
    new: CaseList
    """They run now, and did not on the base."""


class TamperReport(Value):
    """What a change does to that by which it is judged."""

    tests: tuple[Writable, ...] = ()
    """Test files of the base that it changes, moves or removes."""
    configuration: tuple[Writable, ...] = ()
    """Files that decide which tests run, and how."""
    ci: tuple[Writable, ...] = ()
    """Files that decide what continuous integration does."""
    lost: tuple[Writable, ...] = ()
    """Of a change that passes: test files that it removes, and the first two hundred test cases that ran on the base
    and, with it, are gone or skipped. What it only moves is not among them."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.tests, *self.configuration, *self.ci)


class TestResult(Value):
    """What the tests said about one tree."""

    __test__: ClassVar[bool] = False  # pytest: as above

    success: bool
    """Whether the tests count as passed, by the rule that the settings name."""
    commands: tuple[CommandResult, ...]
    sandbox: str
    """What the commands were held in: ``none`` means a plain process with an allow-listed environment."""
    layer: str
    """Where they ran: ``overlay`` (a copy-on-write layer) or ``copy``; both are dropped afterwards."""
    tree: str
    """The id of the git tree that was tested."""
    duration_seconds: float
    pass_rule: PassRule = "exit-code"  # noqa: S105  a rule on passing, no password
    """By which rule ``success`` was decided."""
    detected: str = ""
    """Why these commands, where the task named none and they were found by the project's files."""
    verdict: Verdict | None = None
    """The comparison with the base; None where the base was not tested."""
    tamper: TamperReport | None = None
    """What the change does to the tests that judge it; None: nothing."""
    base_version: TestResult | None = None
    """The changed code under the base's version of the tests that it touched; None where that was not run."""

    @property
    def is_cut(self) -> bool:
        """Whether the task's time was over before the tests were: then they have not judged the tree."""
        return not self.success and any(command.timed_out for command in self.commands)
