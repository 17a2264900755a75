"""One task, from a registry entry to a tested commit on a branch."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.generation.budget import ProcessBudget
from necrocode.agent_runner.reconcile import reconcile
from necrocode.agent_runner.run_record import Progress, RunInterrupted, RunRecord
from necrocode.agent_runner.task_run import TaskRun
from necrocode.agent_runner.wiring import Services, build_services, flush

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner.models import RunnerResult, TaskContext
    from necrocode.agent_runner.outbox.folder import FlushReport
    from necrocode.agent_runner.protocols import ArtifactStore, LanguageModel, RepoPool, Sandbox, TaskRegistry


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
        record = RunRecord(task_context, self.runner_id, self._clock, self._on_progress)
        record.cancellation = cancellation or record.cancellation
        with self._running.including(record):
            return self._run(record)

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

    def _run(self, record: RunRecord) -> RunnerResult:
        try:
            run = TaskRun(record, self.config, self._started(), self._budget)
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
                self._services = services
            return self._services

    @staticmethod
    def _run_steps(run: TaskRun) -> None:
        """The steps, in order, and the one way out: whatever happens, outputs are stored and the end is reported."""
        try:
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
        self._records: dict[str, RunRecord] = {}

    @contextmanager
    def including(self, record: RunRecord) -> Iterator[None]:
        with self._lock:
            self._records[record.run_id] = record
        try:
            with record.cancellation.calling(lambda: record.log(f"asked to stop: {record.cancellation.reason}")):
                yield
        finally:
            with self._lock:
                self._records.pop(record.run_id, None)

    def records(self) -> list[RunRecord]:
        with self._lock:
            return list(self._records.values())


def _is_meant(record: RunRecord, run_id: str | None, task_id: str | None, spec_name: str | None) -> bool:
    wanted = ((run_id, record.run_id), (task_id, record.task.task_id), (spec_name, record.task.spec_name))
    return all(asked is None or asked == known for asked, known in wanted)
