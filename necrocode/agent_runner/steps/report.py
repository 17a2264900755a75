"""Report: the task registry hears that the run started, what happened, and, last of all, how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from necrocode.agent_runner.models import Artifact, TaskContext
    from necrocode.agent_runner.protocols import TaskRegistry


class Reporter:
    """One run's voice in the registry.

    Events are sent as they happen; one that cannot be sent is kept, and sent with the final report.
    """

    def __init__(self, registry: TaskRegistry, task: TaskContext, run_id: str, runner_id: str) -> None:
        self._registry = registry
        self._task = task
        self._identity = {"run_id": run_id, "runner_id": runner_id}
        self._unsent: list[tuple[str, dict[str, Any]]] = []
        self._is_cut_off = False
        self._reported_artifacts = 0
        self._has_told_the_end = False
        self.has_started = False
        """Whether the registry has heard that the task is running."""

    def started(self) -> None:
        """The task is running now. Raises ``ServiceError`` and its kin: a run that nobody can see is not begun."""
        self.has_started = True  # before the call: an interrupted one may have arrived
        try:
            self._status("running", {})
        except RunnerError:
            self.has_started = False
            raise
        self.event("run_started", {})

    def event(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Something happened. Never raises."""
        self._unsent.append((event_type, {**self._identity, **data}))
        if not self._is_cut_off:  # a registry that is down is not asked again until the end
            try:
                self._flush()
            except RunnerError:
                self._is_cut_off = True

    def finished(
        self,
        status: str,
        artifacts: Sequence[Artifact],
        summary: Mapping[str, Any],
        *,
        on_trouble: Callable[[str], None],
    ) -> bool:
        """The final report: artifacts, unsent events, then the status. Whether it arrived.

        Called again after an interruption, it goes on with what has not been sent.
        """
        try:
            for artifact in artifacts[self._reported_artifacts :]:
                self._registry.add_artifact(
                    self._task.task_id,
                    artifact.type,
                    artifact.uri,
                    artifact.size_bytes,
                    {**self._identity, "sha256": artifact.sha256},
                    spec_name=self._task.spec_name,
                )
                self._reported_artifacts += 1
            if not self._has_told_the_end:
                self._unsent.append(("run_finished", {**self._identity, "status": status, **summary}))
                self._has_told_the_end = True
            self._flush()
            self._status(status, summary)
        except RunnerError as error:
            on_trouble(f"The task registry does not have the final status {status!r}: {error}")
            return False
        return True

    def _flush(self) -> None:
        while self._unsent:
            event_type, data = self._unsent[0]
            self._registry.add_event(self._task.task_id, event_type, data, spec_name=self._task.spec_name)
            self._unsent.pop(0)

    def _status(self, status: str, metadata: Mapping[str, Any]) -> None:
        metadata = {**self._identity, **metadata}
        self._registry.update_task_status(self._task.task_id, status, metadata, spec_name=self._task.spec_name)
