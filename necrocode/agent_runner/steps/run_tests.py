"""Test: run the task's commands over a throw-away copy of the committed change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner._git import GitError
from necrocode.agent_runner.errors import TestExecutionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.models import ImplementationResult, TaskContext, TestResult
    from necrocode.agent_runner.protocols import Sandbox
    from necrocode.agent_runner.workspace import Workspace


def run_tests(
    task: TaskContext,
    workspace: Workspace,
    implementation: ImplementationResult,
    sandbox: Sandbox,
    *,
    environment: Mapping[str, str],
    redact: Callable[[str], str],
    deadline: Deadline,
) -> TestResult:
    """Let git write the commit's files into the slot, and run the test commands over a layer on top of it.

    Failing tests are a result. ``TestExecutionError`` when the commands could not be run at all.
    """
    try:
        if workspace.is_brought:
            workspace.repository.check_out(implementation.commit, deadline=deadline)
        else:
            workspace.check_hold()
            workspace.repository.reset_hard(implementation.commit, deadline=deadline)
    except GitError as error:
        raise TestExecutionError(
            f"The changed files cannot be written into {workspace.path}: {error}",
            hint=f"Mend that and run the task again; the commit is kept under {implementation.ref}.",
        ) from error
    result = sandbox.run_tests(
        task.test_commands,
        workspace.path,
        tree=implementation.tree,
        environment=environment,
        fail_fast=task.fail_fast,
        deadline=deadline,
    )
    workspace.check_hold()  # another holder may have written to the slot meanwhile: then it was not this tree
    commands = tuple(
        one.model_copy(update={"command": redact(one.command), "output": redact(one.output)}) for one in result.commands
    )
    return result.model_copy(update={"commands": commands})


def failure_text(result: TestResult) -> str:
    """What to tell of tests that said no: the first command that failed, how, and the last line it wrote."""
    failed = next((command for command in result.commands if command.exit_code != 0), None)
    if failed is None:
        return "The tests failed."
    how = "ran out of the task's time" if failed.timed_out else f"exited with {failed.exit_code}"
    lines = [line.strip() for line in failed.output.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    return f"The tests failed: `{failed.command}` {how}{last}"
