"""One task, from a registry entry to a tested commit on a branch."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.errors import JournalError
from necrocode.agent_runner.generation.budget import ProcessBudget
from necrocode.agent_runner.journals import task_of
from necrocode.agent_runner.reconcile import reconcile
from necrocode.agent_runner.replay import ReplayResult, read, replay, repositories_of
from necrocode.agent_runner.run_record import Progress, RunInterrupted, RunRecord
from necrocode.agent_runner.task_run import TaskRun
from necrocode.agent_runner.wiring import Services, build_services, flush

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.journals import InterruptedRun
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.outbox.folder import FlushReport
    from necrocode.agent_runner.protocols import ArtifactStore, LanguageModel, RepoPool, Sandbox, TaskRegistry
    from necrocode.agent_runner.results import RunnerResult


class RunnerOrchestrator:
    """Runs tasks: one per call of :meth:`run`; several threads may call it at once.

    Services that are not passed in are made from ``config`` (None: embedded defaults) at the first run.
    ``on_progress`` is told when a step begins and when it ends; one that raises is not told again.
    """

    def __init__(
        self,
        config: RunnerConfig | None = None,
        *,
        task_registry: TaskRegistry | None = None,
        repo_pool: RepoPool | None = None,
        artifact_store: ArtifactStore | None = None,
        llm: LanguageModel | None = None,
        sandbox: Sandbox | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.config = config or RunnerConfig()
        self.runner_id = self.config.runner_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._clock = clock
        self._on_progress = on_progress or (lambda _progress: None)
        self._wire = partial(
            build_services,
            self.config,
            clock,
            task_registry=task_registry,
            repo_pool=repo_pool,
            artifact_store=artifact_store,
            llm=llm,
            sandbox=sandbox,
        )
        self._services: Services | None = None
        self._running = _Running()
        self._starting = threading.Lock()
        self._budget = ProcessBudget(self.config.budget, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened for the runs, but nothing that was passed in; a later run opens it anew."""
        services, self._services = self._services, None
        if services is not None:
            services.close()

    def run(self, task_context: TaskContext, *, cancellation: Cancellation | None = None) -> RunnerResult:
        """Do the task, and say what came of it.

        Everything that goes wrong is told by the result, and by the registry where that can be reached. Only an
        interruption (Ctrl-C) is raised, as :class:`RunInterrupted`, after the same clean-up. ``cancellation`` ends the
        run as :meth:`cancel` does, and may be requested before it begins.
        """
        return self._begin(task_context, cancellation)

    def resume(self, run_id: str, *, cancellation: Cancellation | None = None) -> RunnerResult:
        """Go on with a run that was interrupted, without paying again for what it has in its journal.

        The result has the same ``run_id``, and ``resumed`` is true. A run that has failed or was cancelled may be gone
        on with too: then only what went wrong is done again. ``JournalError`` where there is nothing to go on with.
        """
        journal = self._started().journals.opened(run_id)
        try:
            return self._begin(task_of(journal), cancellation, journal)
        finally:
            journal.close()

    def resume_all(self) -> tuple[RunnerResult, ...]:
        """Go on with every run of this state folder that was interrupted, one after the other, the oldest first.

        One that another process has taken meanwhile, or whose task holds a secret, is passed over.
        """
        results = []
        for run in self.interrupted_runs():
            with suppress(JournalError):
                results.append(self.resume(run.run_id))
        return tuple(results)

    def interrupted_runs(self) -> tuple[InterruptedRun, ...]:
        """The runs of this state folder that have begun and not ended, those under way among them."""
        return self._started().journals.unfinished()

    def replay(self, run: str | Path, *, repository: Path | None = None) -> ReplayResult:
        """Do a run again from its journal, offline, and say what came out otherwise than it did then, if anything.

        ``run`` is a run's id, or the path of a journal that somebody has sent; ``repository`` one that has the
        run's base commit, None: this runner's own are looked through. Nothing is written that lasts. ``JournalError``
        where it cannot be replayed.
        """
        services = self._wire()
        try:
            reading = read(run if isinstance(run, Path) else services.journals.existing(run))
            own = repositories_of(reading, getattr(services.repo_pool, "root", None))
            return replay(reading, own if repository is None else [repository], services.redactor)
        finally:
            services.close()

    def cancel(
        self,
        run_id: str | None = None,
        *,
        task_id: str | None = None,
        spec_name: str | None = None,
        reason: str = "The caller asked the run to stop.",
    ) -> tuple[str, ...]:
        """Ask runs of this orchestrator to stop, from any thread; the ids of those that were under way and are asked.

        All of them, or those that have the given run id, task id and spec name. Each ends within about a second with
        status ``cancelled``, and ``reason`` as its error; what the model has produced is kept, the slot is given back,
        and the registry is told. A run that has delivered its branch stays ``done``.
        """
        asked = [record for record in self._running.records() if _is_meant(record, run_id, task_id, spec_name)]
        for record in asked:
            record.cancellation.request(reason)
        return tuple(record.run_id for record in asked)

    def _begin(
        self, task: TaskContext, cancellation: Cancellation | None, journal: Journal | None = None
    ) -> RunnerResult:
        record = RunRecord(task, self.runner_id, self._clock, self._on_progress)
        record.cancellation = cancellation or record.cancellation
        with self._running.including(record):
            return self._run(record, journal)

    def _run(self, record: RunRecord, journal: Journal | None) -> RunnerResult:
        try:
            run = TaskRun(record, self.config, self._started(), self._budget, journal)
            with run.limits():
                self._run_steps(run)
        except KeyboardInterrupt as stop:
            record.cancel()
            raise RunInterrupted(record.result()) from stop
        except Exception as error:  # noqa: BLE001  the one place that turns any error into a result
            record.fail(error)
        return record.result()

    def flush_outbox(self) -> FlushReport:
        """Send what earlier runs with this state folder could not tell or store, and clean up after those that died.

        Every run does so too, beside its own work. Raises :class:`ConfigurationError` alone: what could not be sent is
        told by the report.
        """
        services = self._started()
        return flush(services.outbox, services.task_registry, services.artifact_store, services.git)

    def _started(self) -> Services:
        """The services; at the first use, after what dead runners have left was put right."""
        with self._starting:
            if self._services is None:
                services = self._wire()
                reconcile(services.outbox, services.repo_pool, self.config.state_dir / "layers")
                services.journals.sweep(self.config.journal_keep_days, is_needed=services.outbox.has_book)
                self._services = services
            return self._services

    @staticmethod
    def _run_steps(run: TaskRun) -> None:
        """The steps, in order, and the one way out: whatever happens, outputs are stored and the end is reported."""
        try:
            if run.is_concluded():
                return
            run.prepare()
            with run.allocate() as workspace:
                solver = run.solver(workspace)
                solver.examine()
                while solver.goes_on:
                    with solver.attempt():
                        solver.generate()
                        solver.apply()
                        solver.test()
                if solver.concludes():
                    run.deliver(workspace)
        except BaseException as error:
            run.record.stop(error)
            raise
        finally:
            run.finish()


class _Running:
    """The runs that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, RunRecord] = {}

    @contextmanager
    def including(self, record: RunRecord) -> Iterator[None]:
        with self._lock:
            self._records[id(record)] = record
        try:
            with record.cancellation.calling(lambda: record.log(f"asked to stop: {record.cancellation.reason}")):
                yield
        finally:
            with self._lock:
                self._records.pop(id(record), None)

    def records(self) -> list[RunRecord]:
        with self._lock:
            return list(self._records.values())


def _is_meant(record: RunRecord, run_id: str | None, task_id: str | None, spec_name: str | None) -> bool:
    wanted = ((run_id, record.run_id), (task_id, record.task.task_id), (spec_name, record.task.spec_name))
    return all(asked is None or asked == known for asked, known in wanted)
