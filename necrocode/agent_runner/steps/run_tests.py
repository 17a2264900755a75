"""Test: run the task's commands over a throw-away copy of the committed change, and judge it by what its base said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing
from necrocode.agent_runner._git import Author, GitError
from necrocode.agent_runner.errors import RunnerTimeoutError, TamperedTestsError, TestExecutionError
from necrocode.agent_runner.verdict.base_runs import BaseRuns
from necrocode.agent_runner.verdict.comparison import (
    is_success,
    lost_cases,
    make_verdict,
    newly_failing,
    with_lost_tests,
    with_second_run,
)
from necrocode.agent_runner.verdict.detection import can_be_used, detect_test_commands, is_proven
from necrocode.agent_runner.verdict.missing_programs import missing_program
from necrocode.agent_runner.verdict.tamper import TreeFiles, removed_files, tamper_report
from necrocode.agent_runner.verdict.test_run import TestRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.protocols import Sandbox
    from necrocode.agent_runner.results import ImplementationResult
    from necrocode.agent_runner.steps.setup import Setups
    from necrocode.agent_runner.test_results import CommandResult, PassRule, TamperReport, TestResult
    from necrocode.agent_runner.workspace import Workspace

_BY_CASES: PassRule = "no-new-failures"
_MAX_TOLD_NAMES = 5
_NOBODY = Author("necrocode", "necrocode@localhost", 0)  # of a commit that is tested and never delivered


@dataclass(frozen=True)
class TestPlan:
    """Which tests judge the change of a run, and what they said before it."""

    __test__ = False  # pytest: the name starts with "Test", but this is no test

    commands: tuple[str, ...]
    """Empty: nothing is tested."""
    pass_rule: PassRule = "exit-code"  # noqa: S105  a rule on passing, no password
    base: TestResult | None = None
    """None: how the base fares is not known."""
    detected: str = ""
    """Why these commands, where the task names none."""
    is_proven: bool = True
    """False: on the base they came to run no test, so that they count only if they do on the change."""

    @property
    def must_pass(self) -> bool:
        """Whether a change has to mend what fails on the base."""
        return self.pass_rule != _BY_CASES

    def counts(self, result: TestResult) -> bool:
        """Whether the result says something of a change: not where no test could be run, neither before nor after."""
        return self.is_proven or result.success or is_proven(result)


def plan_tests(
    task: TaskContext,
    workspace: Workspace,
    sandbox: Sandbox,
    *,
    config: RunnerConfig,
    redactor: Redactor,
    deadline: Deadline,
    on_note: Callable[[str], None],
    on_trouble: Callable[[str], None],
    setups: Setups | None = None,
) -> TestPlan:
    """The task's commands, or those that the project's files suggest, and what they say on the base.

    The checkout must hold the base, or be a brought one, whose files git moves there. Commands that nobody asked for
    are used only where the base shows that they work, or fails before they come to run a test; they ask for no more
    than that nothing fails anew. Otherwise nothing is tested, and ``on_trouble`` says why.
    ``TestExecutionError`` where the program of a command that the task names is not there; ``SetupError`` where what
    ``setups`` has to do for the base fails.
    """
    commands, detected = task.test_commands, ""
    if not commands and config.detect_tests and config.test_base:
        tree = workspace.objects.tree_of(workspace.base_commit)
        paths = workspace.repository.files(tree, deadline=deadline)
        found = detect_test_commands(paths, TreeFiles(workspace.objects, tree).read)
        commands, detected = found.commands, found.why
    if not commands:
        on_trouble(untested(config))
        return TestPlan((), config.pass_rule)
    set_up_base(workspace, setups, deadline)
    if not config.test_base:
        return TestPlan(tuple(commands), config.pass_rule)
    rule: PassRule = "no-new-failures" if detected else config.pass_rule
    environment = config.test_environment
    runner = TestRunner(sandbox, workspace.objects, environment, redactor, deadline, rule == _BY_CASES, setups)
    runs = BaseRuns(config.state_dir / "base-tests", deadline.clock)
    base = runs.result(workspace, commands, runner, on_note=on_note)
    if not detected:
        _refuse_missing_programs(base)
        return TestPlan(tuple(commands), rule, base)
    if base is None or not can_be_used(base):
        on_trouble(
            f"Nothing is tested: `{'`, `'.join(commands)}` was found ({detected}), but does not work on the base."
        )
        return TestPlan(())
    return TestPlan(tuple(commands), rule, base, detected, is_proven(base))


def set_up_base(workspace: Workspace, setups: Setups | None, deadline: Deadline) -> None:
    """Have what the base's tests need, made from the base's own files; errors as in :func:`plan_tests`."""
    if workspace.is_brought and workspace.objects.resolve("HEAD") != workspace.base_commit:
        _place(workspace, workspace.base_commit, "it was to be tested before the change", deadline)
    if setups is not None:
        setups.prepare()


def untested(config: RunnerConfig) -> str:
    """Why nothing is tested where a task names no commands and none were found."""
    off = next((name for name in ("detect_tests", "test_base") if not getattr(config, name)), None)
    why = f"{off} is off" if off else "no project file tells of any"
    return f"Nothing is tested: the task names no test commands, and {why}."


def run_tests(
    task: TaskContext,
    workspace: Workspace,
    implementation: ImplementationResult,
    sandbox: Sandbox,
    *,
    environment: Mapping[str, str],
    redactor: Redactor,
    deadline: Deadline,
    plan: TestPlan | None = None,
    setups: Setups | None = None,
) -> TestResult:
    """Let git write the commit's files into the slot, run the test commands over a layer on top, and judge the change.

    What fails anew is run a second time. Where the change touches the tests that it passes, the base's version of them
    is run on it too. ``plan`` None: the task's own commands by their exit codes, with no base. Failing tests are a
    result. ``TestExecutionError`` when the commands could not be run at all, ``ChangedSetupError`` when what
    ``setups`` has to do for the change's dependencies fails.
    """
    plan = plan or TestPlan(tuple(task.test_commands))
    is_by_cases = plan.pass_rule == _BY_CASES
    runner = TestRunner(sandbox, workspace.objects, environment, redactor, deadline, is_by_cases, setups)
    kept = f"the commit is kept under {implementation.ref}"
    _place(workspace, implementation.commit, kept, deadline)
    fail_fast = task.fail_fast and not is_by_cases
    result = _judged(runner.run(plan.commands, workspace.path, implementation.tree, fail_fast=fail_fast), plan)
    if _is_worth_another(result, plan, deadline):
        second = runner.run(plan.commands, workspace.path, implementation.tree, fail_fast=fail_fast)
        result = _judged(with_second_run(result, second), plan)
    workspace.check_hold()  # another holder may have written to the slot meanwhile: then it was not this tree
    if plan.base is None:
        _refuse_missing_programs(result)
    tamper = _tampering(workspace, implementation, plan, result)
    result = result.model_copy(update={"tamper": tamper, "detected": plan.detected})
    if tamper is None or not result.success or not (tamper.tests or tamper.configuration):
        return result
    try:
        under_base = _under_base_tests(workspace, implementation, tamper, plan, runner, fail_fast=fail_fast)
    finally:
        _place(workspace, implementation.commit, kept, deadline)
    return result.model_copy(update={"base_version": under_base})


def refuse_tampering(result: TestResult) -> None:
    """Return unless the change touches what it is judged by in a way that ``tamper: refuse`` forbids."""
    tamper = result.tamper
    if tamper is None or not result.success:  # failing tests are told as such
        return
    deciding = (*tamper.configuration, *tamper.ci)
    if deciding:
        raise TamperedTestsError(
            f"The change touches {_listed(deciding)}, which decides what is tested.",
            hint="Look at the diff; if the task is to change that, run it with tamper: flag.",
        )
    if tamper.lost:
        raise TamperedTestsError(
            f"The change removes or disables tests: {_listed(tamper.lost)}.",
            hint="Look at the diff; if the task is to remove them, run it with tamper: flag.",
        )
    if result.base_version is None or not result.base_version.success:
        raise TamperedTestsError(
            f"The change touches {_listed(tamper.tests)}, and fails the tests as they were before it.",
            hint="Look at the diff; if the task is to change those tests, run it with tamper: flag.",
        )


def test_warnings(result: TestResult) -> tuple[str, ...]:
    """What is to be told of tests besides whether they passed; secrets are masked in ``result`` already."""
    verdict, tamper, warnings = result.verdict, result.tamper, []
    warnings += [f"`{one.command}`: {one.report_note}." for one in result.commands if one.report_note]
    warnings += [f"`{one.command}` exited with 0 and ran no test." for one in result.commands if _ran_nothing(one)]
    if verdict is not None:
        if verdict.flaky.count:
            warnings.append(f"Flaky on the same files: {_listed(verdict.flaky.names, verdict.flaky.count)}.")
        if verdict.missing.count:
            names = _listed(verdict.missing.names, verdict.missing.count)
            warnings.append(f"Ran before the change and not after it: {names}.")
        if result.success and verdict.pre_existing.count:
            names = _listed(verdict.pre_existing.names, verdict.pre_existing.count)
            warnings.append(f"Failing as before the change: {names}.")
    if tamper is not None:
        under_base = result.base_version
        how = "" if under_base is None else f" With these as they were, the tests {_word(under_base)}."
        warnings.append(f"The change touches what it is judged by: {_listed(tamper.paths)}.{how}")
        if removed := tuple(path for path in tamper.tests if path in tamper.lost):
            warnings.append(f"The change removes tests: {_listed(removed)}.")
    return tuple(warnings)


test_warnings.__test__ = False  # type: ignore[attr-defined]  # pytest: as above


def _word(result: TestResult) -> str:
    return "pass too" if result.success else "FAIL"


def _ran_nothing(command: CommandResult) -> bool:
    """Whether a command that is known to report on tests ended well without any."""
    return command.passed_at_once and command.report != "" and not command.ran_tests


def failure_text(result: TestResult) -> str:
    """What to tell of tests that said no: the first command that failed, how, and the last line it wrote."""
    failing = [command for command in result.commands if not command.passed]
    # The first, but for one that was cut off.
    failed = max(failing, key=lambda command: command.timed_out, default=None)
    if failed is None:
        return "The tests failed."
    stopped = "ran out of the task's time" if failed.timed_out else f"was stopped at a limit ({failed.stopped_by})"
    how = stopped if failed.exit_code is None else f"exited with {failed.exit_code}"
    how += " and came to no test" if failed.came_to_no_test else ""
    lines = [line.strip() for line in failed.output.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    return f"The tests failed: `{failed.command}` {how}{last}"


def refuse_cut_off(result: TestResult) -> None:
    """Return unless the task's time was over before the tests were: ``RunnerTimeoutError``."""
    if result.is_cut:
        raise RunnerTimeoutError(
            failure_text(result),
            hint="Raise timeout_seconds. `necrocode resume` with the run's id tests the same commit again.",
        )


def _place(workspace: Workspace, commit: str, hint: str, deadline: Deadline) -> None:
    """Let git write the commit's files into the checkout."""
    try:
        if workspace.is_brought:
            deadline.check("write the changed files")
            with closing(deadline) as end:  # cut in the middle, it would leave the caller's files half changed
                workspace.repository.check_out(commit, deadline=end)
        else:
            workspace.check_hold()
            workspace.repository.reset_hard(commit, deadline=deadline)
    except GitError as error:
        raise TestExecutionError(
            f"The changed files cannot be written into {workspace.path}: {error}",
            hint=f"Mend that and run the task again; {hint}.",
        ) from error


def _refuse_missing_programs(result: TestResult | None) -> None:
    """Raise ``TestExecutionError`` where a command can never be run, whatever the change is."""
    missing = None if result is None else missing_program(result)
    if missing is not None:
        command, program = missing
        raise TestExecutionError(
            f"The test command `{command}` cannot be run: there is no program {program}, or it cannot be executed.",
            hint="Correct the command, install the program, or put its folder on the PATH (test_environment).",
        )


def _judged(result: TestResult, plan: TestPlan) -> TestResult:
    result = result if plan.base is None else with_lost_tests(plan.base, result)
    success = is_success(result, plan.base, asked_for=len(plan.commands), rule=plan.pass_rule)
    verdict = None if plan.base is None else make_verdict(plan.base, result)
    return result.model_copy(update={"success": success, "pass_rule": plan.pass_rule, "verdict": verdict})


def _is_worth_another(result: TestResult, plan: TestPlan, deadline: Deadline) -> bool:
    """Whether something fails anew, and there is time to see whether it does so twice."""
    return (
        plan.base is not None
        and not result.success
        and not any(command.timed_out for command in result.commands)
        and newly_failing(plan.base, result)
        and deadline.remaining_seconds() > result.duration_seconds
    )


def _tampering(
    workspace: Workspace, implementation: ImplementationResult, plan: TestPlan, result: TestResult
) -> TamperReport | None:
    objects = workspace.objects
    before = TreeFiles(objects, objects.tree_of(implementation.base_commit))
    after = TreeFiles(objects, implementation.tree)
    report = tamper_report(implementation.files, before.read, after.read, commands=plan.commands)
    if report is None or not result.success or not (report.tests or report.configuration):
        return report
    cases = () if plan.base is None else lost_cases(plan.base, result)
    return report.model_copy(update={"lost": (*removed_files(implementation.files, before, after), *cases)})


def _under_base_tests(
    workspace: Workspace,
    implementation: ImplementationResult,
    tamper: TamperReport,
    plan: TestPlan,
    runner: TestRunner,
    *,
    fail_fast: bool,
) -> TestResult:
    """What the tests say of the change when what it did to them is undone, in a commit of its own."""
    objects = workspace.objects
    base = TreeFiles(objects, objects.tree_of(implementation.base_commit))
    try:
        commit = workspace.repository.write_commit(
            implementation.commit,
            base.restoring(tamper.paths),
            ref=f"{implementation.ref}-base-tests",
            message="The change under the base's version of the tests that it touches\n",
            author=_NOBODY,
            deadline=runner.deadline,
        )
    except GitError as error:
        raise TestExecutionError(f"The base's version of the tests cannot be put back: {error}") from error
    _place(workspace, commit, f"the commit is kept under {implementation.ref}", runner.deadline)
    result = runner.run(plan.commands, workspace.path, objects.tree_of(commit), fail_fast=fail_fast)
    return _judged(result, plan).model_copy(update={"detected": plan.detected})


def _listed(names: tuple[str, ...], count: int = 0) -> str:
    more = max(count, len(names)) - _MAX_TOLD_NAMES
    return ", ".join(names[:_MAX_TOLD_NAMES]) + (f" and {more} more" if more > 0 else "")
