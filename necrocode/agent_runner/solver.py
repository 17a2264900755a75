"""The middle of a run: ask the model, apply its answer, test it; and with what went wrong, ask again."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import filterfalse
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import (
    ChangedSetupError,
    ImplementationError,
    RunnerError,
    TamperedTestsError,
)
from necrocode.agent_runner.generation.blind_rewrites import SMALL_FILE_LINES, refuse_blind_rewrites
from necrocode.agent_runner.generation.fresh_start import refuse_omission, refuse_unwritten
from necrocode.agent_runner.generation.placeholders import refuse_placeholders
from necrocode.agent_runner.generation.ranking import is_test
from necrocode.agent_runner.generation.repair import (
    broken_code,
    failed_tests_reply,
    is_mendable,
    refused_answer_reply,
    unchanged_files_reply,
)
from necrocode.agent_runner.generation.syntax import newly_broken
from necrocode.agent_runner.questions import Questions
from necrocode.agent_runner.results import ErrorDetails
from necrocode.agent_runner.steps.apply import (
    Limits,
    plan_changes,
    refuse_protected,
    refuse_secrets,
    with_protection,
)
from necrocode.agent_runner.steps.hidden_text import hidden_text
from necrocode.agent_runner.steps.run_tests import (
    TestPlan,
    failure_text,
    plan_tests,
    refuse_cut_off,
    refuse_tampering,
    run_tests,
    set_up_base,
    test_warnings,
    untested,
)
from necrocode.agent_runner.verdict.feedback import failure_feedback, failure_signature
from necrocode.agent_runner.verdict.tamper import TreeFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.attempts import Attempt, Attempts, Outcome
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.results import ImplementationResult
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.generate import Asker
    from necrocode.agent_runner.steps.kept import KeptWork
    from necrocode.agent_runner.steps.report import Reporter
    from necrocode.agent_runner.steps.setup import Setups
    from necrocode.agent_runner.wiring import Services
    from necrocode.agent_runner.workspace import Workspace

_OF_THE_ANSWER = (ChangedSetupError, ImplementationError, TamperedTestsError)


@dataclass
class Solver:
    """The attempts of one run at its task. Each step puts what it made on the record."""

    record: RunRecord
    config: RunnerConfig
    services: Services
    task: TaskContext
    instructions: str
    """The playbook's, for the model."""
    workspace: Workspace
    reporter: Reporter
    deadline: Deadline
    asker: Asker
    attempts: Attempts
    kept: KeptWork
    """What an interrupted run has done of this already."""
    setups: Setups
    plan: TestPlan = field(default_factory=lambda: TestPlan(()))
    """Which tests judge the change; :meth:`examine` makes it."""
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        self.questions = Questions(
            record=self.record,
            llm=self.config.llm_config,
            services=self.services,
            task=self.task,
            instructions=with_protection(self.instructions, self.config),
            workspace=self.workspace,
            deadline=self.deadline,
            asker=self.asker,
            count=self.attempts.candidates,
            plan=lambda: self.plan,
        )

    @property
    def goes_on(self) -> bool:
        """Whether the model is to be asked: for the first time, or once more."""
        has_time = not self.attempts.made or self.deadline.remaining_seconds() > 0
        return has_time and self.attempts.has_another

    def examine(self) -> None:
        """What tests there are, and what they say before the change."""
        record, config = self.record, self.config
        for path in filterfalse(os.path.lexists, config.sandbox_read_paths):
            record.warn(f"sandbox_read_paths names {path}, which is not there.")
        if not self.task.test_commands and not (config.test_base and config.detect_tests):
            record.warn(untested(config))
            return
        if not config.test_base and not self.task.setup_commands:
            self.plan = TestPlan(tuple(self.task.test_commands), config.pass_rule)
            return
        with record.step("examine"):
            if self.task.setup_commands:  # a plan from the journal must not leave it to a change to set up the base
                set_up_base(self.workspace, self.setups, self.deadline)
            plan = partial(
                plan_tests,
                self.task,
                self.workspace,
                self.services.sandbox,
                config=config,
                redactor=self.services.redactor,
                deadline=self.deadline,
                on_note=record.log,
                setups=self.setups,
            )
            self.plan = self.kept.plan(lambda tell: plan(on_trouble=tell), on_trouble=record.warn)
            record.detail = _told_of(self.plan)
        if self.plan.detected:
            record.log(f"the task names no tests: {', '.join(self.plan.commands)} was found, for {self.plan.detected}")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One answer of the model. Its faults are told to the model, and end the run only when there are no more turns.

        Services that fail end it at once, unless another answer to the same question is still at hand.
        """
        attempt = self.attempts.begin(self.questions.asked().opening_for, self.questions.anew)
        if attempt.round:
            how = ": anew, without the code that fails" if attempt.conversation.left_out else ""
            self.record.log(f"repair round {attempt.round} of at most {self.config.max_repair_rounds}{how}")
        try:
            yield
        except RunnerError as error:
            attempt.error, attempt.message = error, str(error)
            is_final = self.deadline.remaining_seconds() <= 0 or not self.attempts.has_others
            if self.deadline.cancellation.is_requested:
                raise
            if is_final and not isinstance(error, _OF_THE_ANSWER):
                raise
            reply = self._told(self._refusal(attempt, error)) if is_mendable(error) else ""
            outcome: Outcome = "unusable" if attempt.answer_text else "unanswered"
            outcome = "unparsable" if attempt.is_broken else outcome
            self.attempts.reject(attempt, outcome, str(error), reply, signature=str(error))
        finally:
            self.record.rounds = self.attempts.summaries(self.record.shown)

    def generate(self) -> None:
        """The model's answer, read."""
        attempt = self.attempts.current
        with self.record.step("generate"):
            answer = self.questions.answer(attempt)
            for name in answer.left_out:
                self.record.warn(f"The model endpoint does not take llm.{name}: the model is asked without.")
            attempt.answer_text = self.services.redactor.text(answer.text)
            attempt.response = response = self.questions.asked().read(
                answer, attempt.before, attempt.conversation.left_out
            )
            self.record.detail = f"{response.model}: {response.tokens_used} tokens, {response.edit_format} format"

    def apply(self) -> None:
        """The change set as a commit; it is on the record from here on, whatever follows."""
        attempt, record, workspace = self.attempts.current, self.record, self.workspace
        assert attempt.response is not None  # noqa: S101  generate comes first
        with record.step("apply"):
            base_tree = workspace.objects.tree_of(workspace.base_commit)
            base = TreeFiles(workspace.objects, base_tree)
            self._refuse_losses(attempt, base)
            attempt.changes = plan_changes(
                attempt.response.code_changes,
                workspace.objects,
                base_tree,
                Limits.of(self.config),
                already={change.path: change for change in attempt.before},
            )
            self._refuse_omissions(attempt)
            refuse_protected(attempt.changes, self.config)
            attempt.keeps_secrets = refuse_secrets(attempt.changes, base, self.services.redactor.secrets_in)
            attempt.implementation = record.implementation = self.kept.commit(
                workspace,
                attempt.changes,
                attempt.response,
                number=attempt.number,
                run_id=record.run_id,
                deadline=self.deadline,
            )
            commit = record.implementation.commit
            attempt.diff = record.diff = workspace.repository.diff(
                workspace.base_commit, commit, deadline=self.deadline
            )
            count = len(attempt.changes)
            record.detail = f"{count} file{'s' if count != 1 else ''} in {commit[:12]}"
            self.reporter.event(
                "implementation_completed",
                {"commit": commit, "files": list(record.implementation.files), "round": attempt.round},
                work=attempt.diff,
            )
            self._check_syntax(attempt, base)

    def test(self) -> None:
        """What the tests say of it; a task without test commands is taken at the model's word."""
        attempt, record = self.attempts.current, self.record
        if not self.plan.commands:
            record.log("no test commands: nothing was tested")
            attempt.outcome = "accepted"
            return
        with record.step("test"):
            made = _made(attempt)
            run = partial(
                run_tests,
                self.task,
                self.workspace,
                made,
                self.services.sandbox,
                environment=self.config.test_environment,
                redactor=self.services.redactor,
                deadline=self.deadline,
                plan=self.plan,
                setups=self.setups,
            )
            tests = self.kept.tests(self.plan, made.tree, run)
            if not self.plan.counts(tests):
                record.warn(f"Nothing was tested: no test of {_listed(self.plan.commands)} could be run.")
                record.detail = "no test could be run"
                attempt.outcome = "accepted"
                return
            attempt.tests = record.tests = tests
            record.detail = "passed" if tests.success else ""
            record.step_failure = None if tests.success else failure_text(tests)
            self.reporter.event(
                "tests_completed", {"success": tests.success, "tree": tests.tree, "round": attempt.round}
            )
            attempt.outcome = attempt.outcome if tests.success else "tests-failed"
            refuse_cut_off(tests)
            if self.config.tamper == "refuse":
                refuse_tampering(tests)
        if tests.success:
            attempt.outcome = "accepted"
            return
        signature = failure_signature(tests)
        form, feedback = self._form(attempt), failure_feedback(tests, self.plan.base)
        attempt.has_same_lines = self._changes_only_blank_lines(attempt)
        attempt.fails_as_before = self.plan.base is not None and signature == failure_signature(self.plan.base)
        if attempt.is_copy:
            reply = unchanged_files_reply(form, feedback)
        else:
            reply = failed_tests_reply(feedback, form, is_as_before=attempt.fails_as_before)
        self.attempts.reject(attempt, "tests-failed", failure_text(tests), self._told(reply), signature=signature)

    def concludes(self) -> bool:
        """Whether an answer did. The best one is on the record from here on, and what was wrong with it."""
        best, record = self.attempts.best, self.record
        record.implementation, record.tests, record.diff = best.implementation, best.tests, best.diff
        if (last := self.attempts.current) is not best:
            record.log(f"the last answer was no better than an earlier one: {last.message}")
        self._point_out(best)
        if best.outcome == "accepted":
            return True
        if best.implementation is None and self.plan.base is not None and self.plan.base.success:
            record.warn("The tests pass before the change already: perhaps there is nothing to do.")
        if best.error is not None:
            raise best.error
        record.fail_with(ErrorDetails(type="TestsFailed", message=best.message, step="test"))
        return False

    def _refusal(self, attempt: Attempt, error: RunnerError) -> str:
        """What to tell of an answer that was not applied; the files are as on the base, unless an earlier one was."""
        failing = "" if attempt.before else self.questions.asked().failing
        return refused_answer_reply(error, self._form(attempt), failing)

    def _form(self, attempt: Attempt) -> str:
        """How to answer, with the first of the changed files that is no test."""
        paths = sorted((change.path for change in attempt.changes), key=is_test)
        if attempt.unseen is not None:
            paths = [attempt.unseen.path]
        return self.questions.asked().form(paths[0] if paths else "")

    def _changes_only_blank_lines(self, attempt: Attempt) -> bool:
        """Whether the files are as they were but for blank lines and blanks at lines' ends: a copy of them."""
        base = self._base_files()
        return all(
            change.content is not None
            and (old := base.read(change.path)) is not None
            and _written_lines(old) == _written_lines(change.content)
            for change in attempt.changes
        )

    def _base_files(self) -> TreeFiles:
        objects = self.workspace.objects
        return TreeFiles(objects, objects.tree_of(self.workspace.base_commit))

    def _told(self, reply: str) -> str:
        """A reply as the model may have it: it quotes files and output, whose secrets have names or are masked."""
        return self.questions.asked().stand_ins.hidden(reply)

    def _refuse_losses(self, attempt: Attempt, base: TreeFiles) -> None:
        """Refuse new text that would lose what the model has not seen of a file, or has left out."""
        assert attempt.response is not None  # noqa: S101  generate comes first
        context = self.questions.asked().context
        own = {change.path for change in attempt.before if base.read(change.path) is None}

        def is_long(path: str) -> bool:
            text = base.read(path)
            return text is not None and text.count(b"\n") > SMALL_FILE_LINES

        def text_of(path: str) -> str | None:
            content = base.read(path)
            return None if content is None else content.decode(errors="replace")

        changes = attempt.response.code_changes
        if attempt.unseen is not None:
            refuse_unwritten(attempt.unseen, changes)
        refuse_blind_rewrites(changes, context.whole_paths | own, context.part_paths, is_long)
        refuse_placeholders(changes, text_of, unseen=attempt.unseen.path if attempt.unseen is not None else "")

    def _refuse_omissions(self, attempt: Attempt) -> None:
        """Refuse a file that is still without what the question left out."""
        if (left_out := attempt.conversation.left_out) is not None:
            for change in attempt.written_anew:
                refuse_omission(left_out, change.content)

    def _check_syntax(self, attempt: Attempt, base: TreeFiles) -> None:
        """Have code mended that parsed before; in the last round the tests, where there are any, have the last word."""
        broken = [
            breakage
            for change in attempt.changes
            if change.content is not None
            and (breakage := newly_broken(change.path, base.read(change.path), change.content)) is not None
        ]
        if not broken:
            return
        attempt.is_broken = True
        error = broken_code(broken)
        has_turns = self.attempts.has_pending or attempt.round < self.config.max_repair_rounds
        if has_turns or not self.plan.commands:
            raise error
        self.record.warn(str(error))

    def _point_out(self, attempt: Attempt) -> None:
        """What people should look at before they merge."""
        if attempt.implementation is None:
            return
        if self.services.redactor.text(shown := attempt.diff.decode(errors="replace")) != shown:
            self.record.warn("The diff holds text that looks like a secret; it is stored as it is, to be whole.")
        for warning in hidden_text(attempt.changes, self._base_files()):
            self.record.warn(warning)
        for path in attempt.keeps_secrets:
            self.record.warn(f"{path} holds a secret of this runner, as the repository has it already.")
        for path in attempt.implementation.protected_files:
            self.record.warn(f"The change touches the protected file {path}: look at it before merging.")
        if (left_out := attempt.conversation.left_out) is not None and attempt.written_anew:
            self.record.warn(
                f"The model wrote {left_out.name} in {left_out.path} anew, without having seen its old code:"
                " look at whether it still does what no test asks for."
            )
        for warning in () if attempt.tests is None else test_warnings(attempt.tests):
            self.record.warn(warning)


def _written_lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.split(b"\n") if line.strip()]


def _listed(commands: tuple[str, ...]) -> str:
    return ", ".join(f"`{command}`" for command in commands)


def _told_of(plan: TestPlan) -> str:
    if not plan.commands:
        return "no tests"
    if plan.base is None:
        return "not known how the tests fare before the change"
    return f"before the change the tests {'pass' if plan.base.success else 'fail'}"


def _made(attempt: Attempt) -> ImplementationResult:
    if attempt.implementation is None:  # pragma: no cover - the orchestrator's order rules it out
        raise AssertionError("apply comes first")
    return attempt.implementation
