"""One task, from a registry entry to a tested commit on a branch."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.errors import JournalError
from necrocode.agent_runner.generation.budget import ProcessBudget
from necrocode.agent_runner.journals import task_of
from necrocode.agent_runner.replay import ReplayResult, read, replay
from necrocode.agent_runner.run_record import Progress, RunInterrupted, RunRecord
from necrocode.agent_runner.task_run import TaskRun
from necrocode.agent_runner.wiring import Services, build_services

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.journals import InterruptedRun
    from necrocode.agent_runner.models import RunnerResult, TaskContext
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

    def run(self, task_context: TaskContext) -> RunnerResult:
        """Do the task, and say what came of it.

        Everything that goes wrong is told by the result, and by the registry where that can be reached. Only an
        interruption (Ctrl-C) is raised, as :class:`RunInterrupted`, after the same clean-up.
        """
        return self._run(task_context, None)

    def resume(self, run_id: str) -> RunnerResult:
        """Go on with a run that was interrupted, without paying again for what it has in its journal.

        The result has the same ``run_id``, and ``resumed`` is true. A run that has failed or was cancelled may be gone
        on with too: then only what went wrong is done again. ``JournalError`` where there is nothing to go on with.
        """
        journal = self._wired().journals.opened(run_id)
        try:
            return self._run(task_of(journal), journal)
        finally:
            journal.close()

    def resume_all(self) -> tuple[RunnerResult, ...]:
        """Go on with every run of this state folder that was interrupted, one after the other, the oldest first."""
        results = []
        for run in self.interrupted_runs():
            with suppress(JournalError):  # another process has taken it meanwhile, or it needs its task: see the log
                results.append(self.resume(run.run_id))
        return tuple(results)

    def interrupted_runs(self) -> tuple[InterruptedRun, ...]:
        """The runs of this state folder that have begun and not ended, those under way among them."""
        return self._wired().journals.unfinished()

    def replay(self, run: str | Path, *, repository: Path | None = None) -> ReplayResult:
        """Do a run again from its journal, offline, and say what came out otherwise than it did then, if anything.

        ``run`` is a run's id, or the path of a journal that somebody has sent; ``repository`` one that has the
        run's base commit, None: this runner's own are looked through. Nothing is written that lasts. ``JournalError``
        where it cannot be replayed.
        """
        services = self._wired()
        reading = read(run if isinstance(run, Path) else services.journals.path(run))
        pools: Path | None = getattr(services.repo_pool, "root", None)
        task = reading.header.get("task")
        named = [task.get(name) for name in ("slot_path", "repo_url")] if isinstance(task, dict) else []
        own = [Path(one) for one in named if isinstance(one, str) and one.startswith("/")]
        own += sorted(pools.glob("*/mirror.git")) if pools is not None else []
        return replay(reading, own if repository is None else [repository], services.redactor)

    def _wired(self) -> Services:
        if self._services is None:
            self._services = self._wire()
            self._services.journals.sweep(self.config.journal_keep_days, is_needed=lambda _run_id: False)
        return self._services

    def _run(self, task_context: TaskContext, journal: Journal | None) -> RunnerResult:
        record = RunRecord(task_context, self.runner_id, self._clock, self._on_progress)
        try:
            self._run_steps(TaskRun(record, self.config, self._wired(), self._budget, journal))
        except KeyboardInterrupt as stop:
            record.cancel()
            raise RunInterrupted(record.result()) from stop
        except Exception as error:  # noqa: BLE001  the one place that turns any error into a result
            record.fail(error)
        return record.result()

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
