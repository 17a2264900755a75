"""One task's run: every step with its inputs bound. The order is the orchestrator's."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.attempts import Attempts
from necrocode.agent_runner.errors import RepositoryNotFoundError, StaleLeaseError
from necrocode.agent_runner.generation.budgeted_model import BudgetedModel
from necrocode.agent_runner.journal import Journal
from necrocode.agent_runner.journals import header_of
from necrocode.agent_runner.models import RunnerResult
from necrocode.agent_runner.playbook import load_playbook, with_playbook
from necrocode.agent_runner.shown_task import masked, readable
from necrocode.agent_runner.solver import Solver
from necrocode.agent_runner.steps.allocate import brought_workspace, leased_workspace
from necrocode.agent_runner.steps.deliver import deliver
from necrocode.agent_runner.steps.generate import Asker, Transcript, spent_before
from necrocode.agent_runner.steps.kept import KeptWork, delivered_before
from necrocode.agent_runner.steps.lease import held_task, still_fenced
from necrocode.agent_runner.steps.report import Reporter
from necrocode.agent_runner.steps.setup import Setups
from necrocode.agent_runner.steps.upload import manifest, upload
from necrocode.agent_runner.test_results import TestResult
from necrocode.agent_runner.workspace import StartPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.generation.budget import ProcessBudget
    from necrocode.agent_runner.models import ImplementationResult, TaskContext
    from necrocode.agent_runner.playbook import Playbook
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.lease import HeldTask
    from necrocode.agent_runner.wiring import Services
    from necrocode.agent_runner.workspace import Workspace


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
        self._journal = journal or services.journals.found(self._header, on_note=record.log) or Journal(record.run_id)
        self._is_concluded = False
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
        self._deadline = Deadline(self._task.timeout_seconds, record.clock)
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
        self._reporter = Reporter(services.task_registry, self._task, record.run_id, record.runner_id)
        self._held: HeldTask | None = None
        self._to_the_end = ExitStack()

    def is_concluded(self) -> bool:
        """Whether the interrupted run had come to its end, which is only still to be told."""
        data = self._journal.result
        if data is None:
            return False
        try:
            result = RunnerResult.model_validate(data)
        except ValueError:
            return False
        tested = None if result.impl_result is None else self._journal.reading.tests(result.impl_result.tree)
        with suppress(ValueError):
            self.record.restore(result, None if tested is None else TestResult.model_validate(tested))
            registry = still_fenced(self._services.task_registry, result.lease_epoch, self._deadline)
            self._reporter = Reporter(registry, self._task, self.record.run_id, self.record.runner_id)
            self._is_concluded = self._reporter.has_started = True
        return self._is_concluded

    def prepare(self) -> None:
        """Look whether outputs can be stored and the model asked, take the task, tell that it runs; then begin."""
        with self.record.step("prepare"):
            self._services.artifact_store.ensure_available()
            if self._task.test_commands:
                self._services.sandbox.ensure_available()
            self._budget.check()
            check: Callable[[], None] | None = getattr(self._services.llm, "check", None)
            if check is not None:
                check()
            self._take_task()
            self._begin_journal()
            self._reporter.started()
            if not self._journal.is_resumed:  # what a resumed run has paid for already may be all that it needs
                self._budget.check_room()

    def _begin_journal(self) -> None:
        """From here on the run can go on after its process has died."""
        fence = self.record.fence
        data = None if fence is None else fence.model_dump()
        if self._journal.is_resumed:
            self._journal.record("claim", str(len(self._journal.reading.entries)), fence=data)
            return
        header = {**self._header, "runner_id": self.record.runner_id, "fence": data}
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
            self._reporter = Reporter(self._held.registry, self._task, record.run_id, record.runner_id)
            self._deadline.cancellation.check()  # the registry may not want it to begin at all

    @contextmanager
    def allocate(self) -> Iterator[Workspace]:
        """The workspace, given back at the end on every path."""
        with ExitStack() as stack:
            with self.record.step("allocate"):
                workspace = self._allocated(stack)
                self.record.detail = f"{workspace.slot_id} at {workspace.base_commit[:12]}"
            self._setups = stack.enter_context(self._setups_for(workspace))
            self._reporter.event("slot_allocated", {"slot_id": workspace.slot_id})
            yield workspace

    def _allocated(self, stack: ExitStack) -> Workspace:
        """A workspace at the base of the interrupted run, where that still can be had; else at today's."""
        start = StartPoint.of(self._journal.recorded("workspace"))
        try:
            workspace = stack.enter_context(self._workspace(start))
        except RepositoryNotFoundError as error:
            if start is None:
                raise
            self._journal.forget_all(f"its base commit {start.base_commit[:12]} is gone ({error})")
            workspace = stack.enter_context(self._workspace(None))
        if start is not None and workspace.base_commit != start.base_commit:
            self._journal.forget_all(f"the workspace is at {workspace.base_commit[:12]} instead of its base commit")
        self._journal.record("workspace", base_commit=workspace.base_commit, head=workspace.head)
        return workspace

    def _workspace(self, start: StartPoint | None) -> AbstractContextManager[Workspace]:
        return workspace_for(
            self._task,
            self._services,
            self._config,
            holder=self.record.runner_id,
            deadline=self._deadline,
            on_trouble=self.record.warn,
            start=start,
        )

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
            made = self._implementation()
            record.push = delivered_before(self._journal, made, record.task.branch, push=self._config.push) or deliver(
                workspace,
                made,
                record.task.branch,
                push=self._config.push,
                committer_email=self._config.commit_author_email,
                deadline=self._deadline,
                fence=record.fence,
                check_hold=self._check_task,
            )
            record.detail = f"{record.push.branch} in {record.redact(record.push.repository)}"
        record.push = record.push.model_copy(update={"repository": record.redact(record.push.repository)})
        self._journal.record("delivered", **record.push.model_dump(mode="json"))
        record.status = "done"
        self._reporter.event("branch_delivered", {"branch": record.push.branch, "commit": record.push.commit})

    def _check_task(self) -> None:
        """Return while the task is this run's; ``StaleLeaseError`` once it may be another's."""
        if self._held is not None:
            self._held.hold.check()

    def finish(self) -> None:
        """Store what there is and report the end, where the registry has heard of a beginning.

        An interruption meanwhile is kept until the report is through; a second one ends at once.
        """
        self._budget.close()
        self.record.usage = self._budget.usage
        try:
            with self._to_the_end:
                if self._reporter.has_started and not self._is_overtaken():
                    self._finish()
                elif not self._reporter.has_started and not self._journal.is_resumed:
                    self._services.journals.drop(self._journal)
        finally:
            self._journal.close()

    def _finish(self) -> None:
        try:
            if not self._is_concluded:
                self._upload()
                result = self.record.result().model_dump(mode="json", exclude={"test_result"})
                self._journal.record("result", **result)
        except BaseException as error:
            self.record.stop(error)
            raise
        finally:
            self._report_whatever_happens()

    def _is_overtaken(self) -> bool:
        """Whether the task may be another run's by now: then nothing more is written under this one's epoch."""
        try:
            self._check_task()
        except StaleLeaseError as error:
            self.record.fail(error)
            kept = "" if self.record.implementation is None else f"; the work is under {self.record.implementation.ref}"
            self.record.warn(f"Nothing was uploaded or reported: the task may be another run's by now{kept}.")
            return True
        return False

    def _report_whatever_happens(self) -> None:
        try:
            self._report()
        except KeyboardInterrupt:
            self.record.cancel()
            self._report()  # it goes on with what has not been sent
            raise

    def _upload(self) -> None:
        """Whatever there is, stored."""
        record = self.record
        outputs: list[tuple[str, bytes]] = []
        if record.diff:
            outputs.append(("diff", record.diff))
        if record.tests is not None:
            outputs.append(("test", _encoded(record.tests.model_dump_json(indent=1))))
        if self._transcript.calls:
            transcript = self._services.redactor.data(self._transcript.to_data())
            outputs.append(("transcript", _encoded(json.dumps(transcript, ensure_ascii=False, indent=1))))
        place = {"task_id": self._task.task_id, "spec_name": self._task.spec_name, "run_id": record.run_id}
        metadata = place | ({} if record.fence is None else record.fence.metadata())
        with record.step("upload"):
            outputs.append(("log", _encoded(record.log_text())))
            store = self._services.artifact_store
            stored = upload(store, outputs, metadata, on_trouble=record.warn)
            listing = [("manifest", manifest(metadata, outputs, stored))]
            record.artifacts = stored + upload(store, listing, metadata, on_trouble=record.warn)
            record.detail = f"{len(record.artifacts)} of {len(outputs) + 1} artifacts"

    def _report(self) -> None:
        """The end of the story, told to the registry."""
        record = self.record
        summary = {
            "branch": record.task.branch,
            "commit": None if record.implementation is None else record.implementation.commit,
            "tests_passed": None if record.tests is None else record.tests.success,
            "error": None if record.error is None else record.error.message,
        }
        with record.step("report"):
            record.reported = self._reporter.finished(record.status, record.artifacts, summary, on_trouble=record.warn)
            record.detail = record.status if record.reported else "not recorded"
        if record.reported:
            self._journal.end(record.status)

    def _implementation(self) -> ImplementationResult:
        if self.record.implementation is None:  # pragma: no cover - the orchestrator's order rules it out
            raise AssertionError("apply comes first")
        return self.record.implementation


def workspace_for(
    task: TaskContext,
    services: Services,
    config: RunnerConfig,
    *,
    holder: str,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
    only_reads: bool = False,
    start: StartPoint | None = None,
) -> AbstractContextManager[Workspace]:
    """The checkout that the task brings, or else a slot of the pool, for as long as the context lasts.

    ``only_reads``: nothing will be done in it, so that a checkout with uncommitted changes does too. ``start`` None: it
    starts from where the task says.
    """
    if task.slot_path is not None:
        return brought_workspace(
            task,
            services.git,
            deadline=deadline,
            on_trouble=on_trouble,
            only_reads=only_reads,
            start=start,
            pushes=config.push and not only_reads,
        )
    return leased_workspace(
        task,
        services.repo_pool,
        services.git,
        holder=holder,
        lease_seconds=config.lease_seconds,
        slot_timeout_seconds=config.slot_timeout_seconds,
        deadline=deadline,
        on_trouble=on_trouble,
        start=start,
    )


def _encoded(text: str) -> bytes:
    """UTF-8, whatever a file name or a model has put into the text."""
    return text.encode(errors="backslashreplace")
