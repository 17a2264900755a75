"""What the journal has of the steps between the model's answers: the plan of the tests, the commits, the results."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._git import Author
from necrocode.agent_runner._journal_file import basis_of
from necrocode.agent_runner.results import PushResult
from necrocode.agent_runner.steps.apply import commit_changes, commit_message
from necrocode.agent_runner.steps.run_tests import TestPlan
from necrocode.agent_runner.test_results import TestResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import FileChange
    from necrocode.agent_runner._journal_file import Fields
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.fencing import Fence
    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.models import LLMResponse, TaskContext
    from necrocode.agent_runner.results import ImplementationResult
    from necrocode.agent_runner.workspace import Workspace


@dataclass(frozen=True)
class KeptWork:
    """Each step is done once in a run, however often it is interrupted: what is journalled is taken from there."""

    journal: Journal
    config: RunnerConfig
    task: TaskContext
    base_commit: str
    redactor: Redactor
    fence: Fence | None = None
    """What the run's writes carry now."""

    def plan(self, make: Callable[[Callable[[str], None]], TestPlan], *, on_trouble: Callable[[str], None]) -> TestPlan:
        """Which tests judge the change; ``make`` says so where it is not journalled, and is given an ``on_trouble``."""
        basis = basis_of(self.base_commit, self.task.test_commands, self.task.setup_commands, self._settings())
        data = self.journal.recorded("plan", "", basis)
        if data is not None and (plan := self._plan_from(data)) is not None:
            for trouble in data.get("troubles", ()):
                on_trouble(str(trouble))
            return plan
        troubles: list[str] = []

        def tell(trouble: str) -> None:
            troubles.append(self.redactor.text(trouble))
            on_trouble(trouble)

        plan = make(tell)
        self.journal.record("plan", "", basis, **self._plan_data(plan), troubles=troubles)
        return plan

    def _plan_data(self, plan: TestPlan) -> Fields:
        return {
            "commands": [self.redactor.text(command) for command in plan.commands],
            "pass_rule": plan.pass_rule,
            "base": None if plan.base is None else plan.base.model_dump(mode="json"),
            "detected": plan.detected,
            "is_proven": plan.is_proven,
        }

    def _plan_from(self, data: Fields) -> TestPlan | None:
        """The plan; None where it cannot be read, or had a secret in commands that the task does not name."""
        with suppress(ValueError, LookupError, TypeError):
            commands = tuple(map(str, data["commands"]))
            if [self.redactor.text(command) for command in self.task.test_commands] == list(commands):
                commands = tuple(self.task.test_commands)
            elif any("***" in command for command in commands):
                return None
            base = None if data["base"] is None else TestResult.model_validate(data["base"])
            return TestPlan(commands, data["pass_rule"], base, str(data["detected"]), bool(data["is_proven"]))
        return None

    def commit(
        self,
        workspace: Workspace,
        changes: Sequence[FileChange],
        response: LLMResponse,
        *,
        number: int,
        run_id: str,
        deadline: Deadline,
    ) -> ImplementationResult:
        """The planned changes of answer ``number`` as a commit, kept under a ref of the run.

        Message and time are those with which it was first made, so that it gets the same id.
        """
        begun: Fields = {
            "message": commit_message(self.config, self.task, run_id, self.fence),
            "when": int(deadline.clock.now().timestamp()),
            "fence": None if self.fence is None else self.fence.model_dump(),
        }
        before = self.journal.recorded("commit", str(number))
        if before is not None and self._is_ours_since(before.get("fence")):
            begun |= {name: before[name] for name, one in begun.items() if isinstance(before.get(name), type(one))}
        self.journal.record("commit", str(number), **begun)
        message, when = begun["message"], begun["when"]
        made = commit_changes(
            workspace,
            changes,
            ref=f"refs/necrocode/runs/{run_id}/{number}",
            message=message,
            author=Author(self.config.commit_author_name, self.config.commit_author_email, when),
            response=response,
            deadline=deadline,
            protected=self.config.protected_paths,
        )
        self.journal.record("committed", str(number), commit=made.commit, tree=made.tree, ref=made.ref)
        return made

    def _is_ours_since(self, was: object) -> bool:
        """Whether nobody else can have claimed the task since: each claim from that on was this run's."""
        if self.fence is None or not isinstance(was, dict):
            return was is None and self.fence is None
        lineage, epoch, since = self.fence.lineage, self.fence.epoch, was.get("epoch")
        entries = (entry for entry in self.journal.reading.entries if entry.kind in {"run", "claim"})
        claims = [fence for entry in entries if isinstance(fence := entry.data.get("fence"), dict)]
        ours = {claim.get("epoch") for claim in claims if claim.get("lineage") == lineage} | {epoch}
        if was.get("lineage") != lineage or not isinstance(since, int) or epoch - since >= len(ours):
            return False
        return all(number in ours for number in range(since, epoch + 1))

    def tests(self, plan: TestPlan, tree: str, make: Callable[[], TestResult]) -> TestResult:
        """What the tests say of a tree; ``make`` runs them where that is not journalled.

        Tests that the task's time has cut off are not: a run that goes on has its time anew, and runs them again.
        """
        base = None if plan.base is None else plan.base.model_dump(mode="json")
        commands = (*self.task.setup_commands, "", *plan.commands)
        basis = basis_of(self.base_commit, commands, plan.pass_rule, base, self.task.fail_fast, self._settings())
        data = self.journal.recorded("tests", tree, basis)
        if data is not None:
            with suppress(ValueError):
                return TestResult.model_validate(data.get("result"))
        result = make()
        if not result.is_cut:
            self.journal.record("tests", tree, basis, result=result.model_dump(mode="json"))
        return result

    def _settings(self) -> Fields:
        names = ("detect_tests", "test_base", "pass_rule", "tamper", "test_environment", "sandbox", "sandbox_network")
        return {name: getattr(self.config, name) for name in names}


def delivered_before(journal: Journal, made: ImplementationResult, branch: str, *, push: bool) -> PushResult | None:
    """Where the interrupted run has delivered this very commit: by now that branch is others' business."""
    data = journal.recorded("delivered")
    if data is None or (data.get("branch"), data.get("commit")) != (branch, made.commit):
        return None
    with suppress(ValueError):
        result = PushResult.model_validate(data)
        return result if result.pushed or not push else None
    return None
