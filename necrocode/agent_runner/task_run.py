"""One task's run: every step with its inputs bound. The order is the orchestrator's."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing, outrun, within
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.attempts import Attempts
from necrocode.agent_runner.errors import (
    JournalError,
    RunCancelledError,
    RunnerError,
    RunnerTimeoutError,
)
from necrocode.agent_runner.generation.budgeted_model import BudgetedModel
from necrocode.agent_runner.journal import Journal
from necrocode.agent_runner.journals import header_of
from necrocode.agent_runner.outbox.book import RunIdentity
from necrocode.agent_runner.playbook import load_playbook, with_playbook
from necrocode.agent_runner.results import RunnerResult
from necrocode.agent_runner.run_end import RunEnd
from necrocode.agent_runner.shown_task import masked, readable
from necrocode.agent_runner.solver import Solver
from necrocode.agent_runner.steps.deliver import deliver, has_arrived
from necrocode.agent_runner.steps.generate import Asker, Transcript, spent_before
from necrocode.agent_runner.steps.kept import KeptWork, delivered_before
from necrocode.agent_runner.steps.lease import held_task
from necrocode.agent_runner.steps.report import Reporter
from necrocode.agent_runner.steps.setup import Setups
from necrocode.agent_runner.test_results import TestResult
from necrocode.agent_runner.work_places import first_or_same_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.generation.budget import ProcessBudget
    from necrocode.agent_runner.playbook import Playbook
    from necrocode.agent_runner.records import TaskRecord
    from necrocode.agent_runner.results import ImplementationResult, PushResult
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.lease import HeldTask
    from necrocode.agent_runner.wiring import Services
    from necrocode.agent_runner.workspace import Workspace

_ENDED = {"done", "failed", "cancelled"}


class TaskRun:
    """The steps of one run. Each puts what it made on ``record`` and raises ``RunnerError`` when it cannot.

    ``journal`` None: the run goes on from that of an interrupted run of the same task, where there is one.
    """

    def __init__(
        self,
        record: RunRecord,
        config: RunnerConfig,
        services: Services,
        budget: ProcessBudget,
        journal: Journal | None = None,
    ) -> None:
        record.redact = services.redactor.text
        self.record = record
        self._config = config
        self._services = services
        playbook = load_playbook(record.task)
        self._header = header_of(record.task, playbook, config, services.redactor)
        self._overtaken: tuple[str, ...] = ()
        self._is_passed_on = False
        if journal is None:
            journal, self._overtaken = services.journals.found(self._header, on_note=record.log)
        self._journal = journal or Journal(record.run_id)
        try:
            self._set_up(playbook, budget)
        except BaseException:
            self._journal.close()
            raise

    def _set_up(self, playbook: Playbook, budget: ProcessBudget) -> None:
        record, services, config = self.record, self._services, self._config
        if self._journal.is_resumed:
            record.resume(self._journal.run_id, self._journal.runner_id, self._journal.count_of_answers)
        self._journal.tell(record.warn)
        task, self._playbook, hidden = readable(with_playbook(record.task, playbook), playbook)
        self._task = masked(task, services.redactor)
        record.task = self._task
        for warning in hidden:
            record.warn(warning)
        self._deadline = Deadline(self._task.timeout_seconds, record.clock, record.cancellation)
        self._transcript = Transcript()
        self._budget = budget.of_run(
            spec_name=self._task.spec_name,
            run_id=record.run_id,
            registry=services.task_registry,
            llm=config.llm_config,
            on_trouble=record.warn,
        )
        self._budget.credit(spent_before(self._journal))
        self._model = BudgetedModel(services.llm, self._budget, max_tokens=config.llm_config.max_tokens)
        self._reporter = self._new_reporter()
        self._held: HeldTask | None = None
        self._to_the_end = ExitStack()

    def _new_reporter(self) -> Reporter:
        record, services, task = self.record, self._services, self._task
        started = record.started_at.isoformat()
        return Reporter(
            services.task_registry,
            services.artifact_store,
            services.outbox,
            task,
            RunIdentity(record.run_id, record.runner_id, task.spec_name, task.task_id, started),
            clock=record.clock,
            redact=services.redactor.data,
            on_trouble=record.warn,
            on_defect=record.fail,
        )

    def is_concluded(self) -> bool:
        """Whether the interrupted run had come to its end, which is only still to be told."""
        data, tests = self._journal.result, None
        if data is None:
            return False
        try:
            result = RunnerResult.model_validate(data)
            if result.impl_result is not None and (tests := self._journal.reading.tests(result.impl_result.tree)):
                tests = TestResult.model_validate(tests)
        except ValueError:
            return False
        has_book = self._services.outbox.has_book(self.record.run_id)
        if not self._reporter.takes_up(self._journal.fence):
            self._reporter.close()
            self._reporter = self._new_reporter()
            self._is_passed_on = self._was_told(has_book=has_book)
            if not self._is_passed_on:
                return False
        self.record.restore(result, tests if isinstance(tests, TestResult) else None)
        self._supersede()
        return True

    def _was_told(self, *, has_book: bool) -> bool:
        """Whether another process has passed the end on, with all of the book or, where that is damaged, a part."""
        is_told = self._journal.is_told
        if has_book and not is_told:
            return False
        known = self._known_to_registry()
        status = None if known is None else known.status
        if not is_told:  # it may have died just before it could note so
            return known is not None and status in _ENDED and known.metadata.get("run_id") == self.record.run_id
        if has_book and status in _ENDED:
            self.record.warn(
                "What this run had to tell was damaged (necrocode outbox list): the task registry has its end, but some"
                " of its artifacts may be missing."
            )
        return status in _ENDED or (status is None and not has_book)

    def _supersede(self) -> None:
        """Only a run that has begun takes the place of others: one that could not leaves them to be gone on with."""
        self._services.journals.supersede(self._overtaken, on_note=self.record.log)

    def _known_to_registry(self) -> TaskRecord | None:
        """The task as the registry has it; None where it does not say."""
        look: Callable[..., TaskRecord] | None = getattr(self._services.task_registry, "get_task", None)
        if look is None:
            return None
        try:
            return look(self._task.task_id, spec_name=self._task.spec_name)
        except RunnerError:
            return None

    def _refuse_what_others_have_done(self) -> None:
        """``JournalError`` for an interrupted run whose task another one has finished since."""
        known = self._known_to_registry() if self._journal.is_resumed else None
        if known is not None and known.status == "done":
            self._journal.end("superseded")
            raise JournalError(
                f"Run {self.record.run_id} was interrupted, and another run has done its task since.",
                hint="Run the task again, if it is to be done once more.",
            )

    @contextmanager
    def limits(self) -> Iterator[None]:
        """The services that are called inside end with the run's time, and with its cancellation."""
        with within(self._deadline):
            try:
                yield
            except KeyboardInterrupt:
                self._deadline.cancellation.request("The run was interrupted.")
                raise

    def prepare(self) -> None:
        """Look whether outputs can be stored and the model asked, take the task, tell that it runs; then begin."""
        with self.record.step("prepare"):
            outrun(self._deadline, self._services.artifact_store.ensure_available, doing="look for the artifact store")
            if self._task.test_commands:
                outrun(self._deadline, self._services.sandbox.ensure_available, doing="look for a sandbox")
                self._warn_of_the_sandbox()
            self._budget.check()
            check: Callable[[], None] | None = getattr(self._services.llm, "check", None)
            if check is not None:
                check()
            self._refuse_what_others_have_done()
            if not self._journal.is_resumed:
                self._reporter.tell_of_earlier_runs()
            self._begin_journal()
            self._take_task()
            self._reporter.started()
            self._supersede()
            self._services.flusher.start(own_run=self.record.run_id)
            if not self._journal.is_resumed:  # what a resumed run has paid for already may be all that it needs
                self._budget.check_room()

    def _warn_of_the_sandbox(self) -> None:
        warnings: Callable[[], tuple[str, ...]] | None = getattr(self._services.sandbox, "warnings", None)
        if warnings is not None:
            for warning in outrun(self._deadline, warnings, doing="look for a sandbox"):
                self.record.warn(warning)

    def _begin_journal(self) -> None:
        """From here on the run can go on after its process has died: even the lease that it is about to take."""
        if not self._journal.is_resumed:
            header = {**self._header, "runner_id": self.record.runner_id}
            self._journal = self._services.journals.begin(self.record.run_id, header)
            self._journal.tell(self.record.warn)

    def _take_task(self) -> None:
        record = self.record
        self._held = self._to_the_end.enter_context(
            held_task(
                self._task,
                self._services.task_registry,
                runner_id=record.runner_id,
                lease_seconds=self._config.lease_seconds,
                deadline=self._deadline,
                is_begun=lambda: self._reporter.has_started,
                on_note=record.log,
                on_trouble=record.warn,
            )
        )
        if self._held is not None:
            record.fence = self._held.fence
            self._journal.record("claim", str(len(self._journal.reading.entries)), fence=self._held.fence.model_dump())
            self._reporter.writes_under(self._held.fence, self._held.writing)
            self._deadline.cancellation.check()  # the registry may not want it to begin at all

    @contextmanager
    def allocate(self) -> Iterator[Workspace]:
        """The workspace, given back at the end on every path."""
        with ExitStack() as stack:
            with self.record.step("allocate"):
                workspace = first_or_same_workspace(
                    self._journal,
                    self._task,
                    self._services,
                    self._config,
                    record=self.record,
                    deadline=self._deadline,
                    stack=stack,
                )
                self.record.detail = f"{workspace.slot_id} at {workspace.base_commit[:12]}"
            self._reporter.works_at(str(workspace.path))
            self._setups = stack.enter_context(self._setups_for(workspace))
            self._reporter.event("slot_allocated", {"slot_id": workspace.slot_id})
            yield workspace

    def _setups_for(self, workspace: Workspace) -> Setups:
        return Setups(
            self._task,
            workspace,
            self._services.sandbox,
            config=self._config,
            redactor=self._services.redactor,
            deadline=self._deadline,
            on_note=self.record.log,
        )

    def solver(self, workspace: Workspace) -> Solver:
        """What asks the model, and applies and tests what it says."""
        llm = self._config.llm_config
        self._reporter.event("implementation_started", {"base_commit": workspace.base_commit})
        return Solver(
            record=self.record,
            config=self._config,
            services=self._services,
            task=self._task,
            instructions=self._playbook.instructions,
            workspace=workspace,
            reporter=self._reporter,
            deadline=self._deadline,
            asker=Asker(
                self._model,
                llm,
                self._task.max_tokens,
                self._deadline,
                self._services.redactor,
                self._journal,
                self._transcript,
            ),
            attempts=Attempts(self._config.max_repair_rounds, llm.candidates),
            kept=KeptWork(
                self._journal,
                self._config,
                self._task,
                workspace.base_commit,
                self._services.redactor,
                self.record.fence,
            ),
            setups=self._setups,
        )

    def deliver(self, workspace: Workspace) -> None:
        """The branch at the commit; with that the task is done."""
        record = self.record
        with record.step("deliver"):
            record.push = self._delivered(workspace)
            record.detail = f"{record.push.branch} in {record.redact(record.push.repository)}"
        record.push = record.push.model_copy(update={"repository": record.redact(record.push.repository)})
        self._journal.record("delivered", **record.push.model_dump(mode="json"))
        record.status = "done"
        self._reporter.event("branch_delivered", {"branch": record.push.branch, "commit": record.push.commit})

    def _delivered(self, workspace: Workspace) -> PushResult:
        made, branch, push = self._implementation(), self.record.task.branch, self._config.push
        if (before := delivered_before(self._journal, made, branch, push=push)) is not None:
            return before
        put = partial(
            deliver,
            workspace,
            made,
            branch,
            push=push,
            committer_email=self._config.commit_author_email,
            fence=self.record.fence,
            check_hold=self._check_task,
        )
        try:
            return put(deadline=self._deadline)
        except (RunCancelledError, RunnerTimeoutError):
            with closing(self._deadline) as end:
                if not has_arrived(workspace, made, branch, push=push, deadline=end):
                    raise
                return put(deadline=end)  # what is delivered is delivered: the rest of it is done too

    def _check_task(self) -> None:
        """Return while the task is this run's; ``StaleLeaseError`` once it may be another's."""
        if self._held is not None:
            self._held.hold.check()

    def finish(self) -> None:
        """Write down what there is to store and to report, then store and report it, where the registry has heard of a
        beginning.

        An interruption meanwhile is kept until the report is through; a second one ends at once.
        """  # noqa: D205  one sentence
        with closing(self._deadline):
            self._budget.close()
        self.record.usage = self._budget.usage
        try:
            if self._reporter.has_started:
                self._ending().tell()
            elif self._is_passed_on:
                self.record.reported = "yes"
                self._journal.end(self.record.status)
            elif not self._journal.is_resumed:
                self._services.journals.drop(self._journal)
        finally:
            self._journal.close()
            with closing(self._deadline):
                self._to_the_end.close()
        if self._reporter.has_started and not self._deadline.cancellation.is_requested:
            self._services.flusher.wait()

    def _implementation(self) -> ImplementationResult:
        if self.record.implementation is None:  # pragma: no cover - the orchestrator's order rules it out
            raise AssertionError("apply comes first")
        return self.record.implementation

    def _ending(self) -> RunEnd:
        return RunEnd(
            record=self.record,
            reporter=self._reporter,
            journal=self._journal,
            transcript=self._transcript,
            redactor=self._services.redactor,
            deadline=self._deadline,
            check_task=self._check_task,
        )
