"""The client of a Task Registry service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from necrocode.agent_runner import _names
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._http import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_TIMEOUT_SECONDS,
    ServiceHttp,
)
from necrocode.agent_runner.clients._registry_budget_http import SpecBudgetsClient
from necrocode.agent_runner.errors import ServiceError, TaskNotFoundError
from necrocode.agent_runner.records import (
    ArtifactRecord,
    ClaimedTask,
    EventPage,
    EventRecord,
    TaskLease,
    TaskPage,
    TaskRecord,
    TaskSetRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.records import TaskDefinition, TaskSet
    from necrocode.agent_runner.task_graph import TaskGraph

_PAGE_SIZE = 1000
_RECONNECT_SECONDS = 1.0
_DATA = "data: "
_Record = TypeVar("_Record", bound=BaseModel)


class TaskRegistryClient(SpecBudgetsClient):
    """Task states, events and artifact records; the Protocol is ``TaskRegistry``. Safe for several threads.

    The methods are those of :class:`~necrocode.agent_runner.LocalTaskRegistry`. One that needs an ability which the
    service does not list is a ``ServiceError`` that says so.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._http = ServiceHttp(
            base_url,
            "task registry",
            not_found=TaskNotFoundError,
            token=token,
            network_retry_count=network_retry_count,
            timeout_seconds=timeout_seconds,
            clock=clock,
        )

    # --- what every registry can do

    def update_task_status(
        self,
        task_id: str,
        status: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Move the task to a state: ``blocked ready running done failed cancelled`` or one of their aliases."""
        self._http.write(
            "PUT",
            f"{_path(task_id)}/status",
            json_body={"status": status, "metadata": dict(metadata or {})},
            params=_given(spec_name=spec_name),
            epoch=lease_epoch,
            idempotency_key=idempotency_key,
        )

    def add_event(
        self,
        task_id: str,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Append an event to the task's history."""
        self._http.write(
            "POST",
            f"{_path(task_id)}/events",
            json_body={"event_type": event_type, "data": dict(data or {})},
            params=_given(spec_name=spec_name),
            epoch=lease_epoch,
            idempotency_key=idempotency_key,
        )

    def add_artifact(
        self,
        task_id: str,
        artifact_type: str,
        uri: str,
        size_bytes: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
        lease_epoch: int | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Record where an artifact of the task is stored."""
        body: dict[str, Any] = {"type": artifact_type, "uri": uri, "size_bytes": size_bytes}
        if metadata:
            body["metadata"] = dict(metadata)
        self._http.write(
            "POST",
            f"{_path(task_id)}/artifacts",
            json_body=body,
            params=_given(spec_name=spec_name),
            epoch=lease_epoch,
            idempotency_key=idempotency_key,
        )

    # --- tasks

    def register_task(self, task: TaskContext, *, idempotency_key: str | None = None) -> None:
        """Make the task known; a service without the ability ``register-task`` knows its tasks already."""
        if not self._http.has("register-task"):
            return
        body = {
            "title": task.title,
            "description": task.description,
            "acceptance_criteria": list(task.acceptance_criteria),
            "dependencies": list(task.dependencies),
            "required_skill": task.required_skill,
            "metadata": task.metadata,
        }
        self._put(task.task_id, task.spec_name, body, idempotency_key)

    def put_task(self, task: TaskDefinition, *, spec_name: str, idempotency_key: str | None = None) -> TaskRecord:
        """Register or replace one task, its priority included; otherwise as :meth:`register_task`."""
        self._need("register-task")
        body = task.model_dump(mode="json", exclude={"task_id"})
        return _read(TaskRecord, self._put(task.task_id, spec_name, body, idempotency_key))

    def _put(self, task_id: str, spec_name: str, body: Mapping[str, Any], idempotency_key: str | None) -> object:
        params = {"spec_name": spec_name}
        answer: object = self._http.write(
            "PUT", _path(task_id), json_body=body, params=params, idempotency_key=idempotency_key
        )
        return answer

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord:
        """The task's record; ``TaskNotFoundError``, ``AmbiguousTaskError``."""
        return _read(TaskRecord, self._http.get(_path(task_id), params=_given(spec_name=spec_name)))

    def list_events(self, task_id: str, *, spec_name: str | None = None) -> tuple[EventRecord, ...]:
        """The task's events, oldest first."""
        return self._all(EventRecord, f"{_path(task_id)}/events", spec_name=spec_name)

    def list_artifacts(self, task_id: str, *, spec_name: str | None = None) -> tuple[ArtifactRecord, ...]:
        """The task's artifact records, oldest first."""
        return self._all(ArtifactRecord, f"{_path(task_id)}/artifacts", spec_name=spec_name)

    def list_tasks(self, *, status: str | None = None, spec_name: str | None = None) -> tuple[TaskRecord, ...]:
        """All tasks that fit, the oldest first."""
        self._need("search")
        return self._all(TaskRecord, "/tasks", status=status, spec_name=spec_name)

    def search_tasks(
        self,
        *,
        status: str | None = None,
        spec_name: str | None = None,
        required_skill: str | None = None,
        sort: str = "created",
        limit: int = 100,
        cursor: str | None = None,
    ) -> TaskPage:
        """A page of the tasks that fit, the oldest first, or with ``sort="priority"`` as they are claimed."""
        self._need("search")
        params = _given(
            status=status,
            spec_name=spec_name,
            required_skill=required_skill,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
        return _read(TaskPage, self._http.get("/tasks", params=params))

    def cancel_task(
        self, task_id: str, *, spec_name: str | None = None, idempotency_key: str | None = None
    ) -> TaskRecord:
        """Ask a running task to stop; one that does not run is ``cancelled`` at once."""
        return self._act("cancel", task_id, spec_name, idempotency_key)

    def retry_task(
        self, task_id: str, *, spec_name: str | None = None, idempotency_key: str | None = None
    ) -> TaskRecord:
        """Put a failed or cancelled task back; any other is ``IllegalTransitionError``."""
        return self._act("retry", task_id, spec_name, idempotency_key)

    def _act(self, action: str, task_id: str, spec_name: str | None, idempotency_key: str | None) -> TaskRecord:
        self._need("claims")
        params = _given(spec_name=spec_name)
        path = f"{_path(task_id)}/{action}"
        return _read(TaskRecord, self._http.write("POST", path, params=params, idempotency_key=idempotency_key))

    # --- specs

    def create_taskset(self, taskset: TaskSet, *, idempotency_key: str | None = None) -> TaskSetRecord:
        """Put a spec and its tasks in, or bring them up to date, in one transaction."""
        self._need("task-sets")
        body = taskset.model_dump(mode="json")
        return _read(
            TaskSetRecord, self._http.write("POST", "/tasksets", json_body=body, idempotency_key=idempotency_key)
        )

    def get_taskset(self, spec_name: str) -> TaskSetRecord:
        """The spec and its tasks; ``TaskNotFoundError`` where there is no such spec."""
        self._need("task-sets")
        return _read(TaskSetRecord, self._http.get(_spec_path(spec_name)))

    def task_graph(self, spec_name: str) -> TaskGraph:
        """The spec's tasks and who waits for whom."""
        from necrocode.agent_runner.task_graph import TaskGraph  # noqa: PLC0415  few ask for it

        self._need("graph")
        return _read(TaskGraph, self._http.get(f"{_spec_path(spec_name)}/graph"))

    # --- events of all tasks

    def search_events(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        spec_name: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> EventPage:
        """A page of all tasks' events, the oldest first; ``since`` is included, ``until`` is not."""
        self._need("events")
        times = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        params = _given(**times, spec_name=spec_name, limit=limit, cursor=cursor)
        return _read(EventPage, self._http.get("/events", params=params))

    def follow_events(self, *, after: int = 0, spec_name: str | None = None) -> Iterator[EventRecord]:
        """Every event with a number above ``after``, in order, each once; waits for more without end.

        A connection that breaks is opened again where it was; ``ServiceConnectionError`` when that stays impossible.
        """
        self._need("event-stream")
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            for line in self._http.lines("/events/stream", params=_given(spec_name=spec_name), headers=headers):
                if line.startswith(_DATA):
                    event = _read_json(EventRecord, line.removeprefix(_DATA))
                    after = event.sequence
                    yield event
            self._clock.sleep(_RECONNECT_SECONDS)

    # --- leases

    def claim_task(
        self,
        runner_id: str,
        *,
        lease_seconds: float,
        required_skills: Sequence[str] | None = None,
        spec_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> ClaimedTask | None:
        """The next task, held by the runner for ``lease_seconds`` unless renewed; None when there is none for it."""
        self._need("claims")
        skills = None if required_skills is None else list(required_skills)
        body = _given(runner_id=runner_id, lease_seconds=lease_seconds, required_skills=skills, spec_name=spec_name)
        answer = self._http.write("POST", "/tasks/claim", json_body=body, idempotency_key=idempotency_key)
        return None if answer is None else _read(ClaimedTask, answer)

    def claim_this_task(
        self,
        task_id: str,
        runner_id: str,
        *,
        lease_seconds: float,
        spec_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> ClaimedTask | None:
        """This very task, held by the runner; ``TaskLeasedError`` while another runner holds it.

        None where the service has not the abilities ``claim-task`` and ``leases``: then nobody holds a task.
        """
        if not (self._http.has("claim-task") and self._http.has("leases")):
            return None
        body = {"runner_id": runner_id, "lease_seconds": lease_seconds}
        path, params = f"{_path(task_id)}/claim", _given(spec_name=spec_name)
        answer = self._http.write("POST", path, json_body=body, params=params, idempotency_key=idempotency_key)
        return _read(ClaimedTask, answer)

    def renew_lease(
        self, task_id: str, lease_token: str, *, lease_seconds: float, spec_name: str | None = None
    ) -> TaskLease:
        """Hold the task for another ``lease_seconds``; ``StaleLeaseError`` when another runner has it by now."""
        self._need("leases")
        body = {"lease_token": lease_token, "lease_seconds": lease_seconds}
        path, params = f"{_path(task_id)}/lease", _given(spec_name=spec_name)
        return _read(TaskLease, self._http.write("POST", path, json_body=body, params=params))

    def release_task(self, task_id: str, lease_token: str, *, spec_name: str | None = None) -> TaskRecord:
        """Give the task back: it is ``ready`` for others, or ``cancelled`` where that was asked for. Idempotent."""
        self._need("leases")
        path, params = f"{_path(task_id)}/lease", _given(spec_name=spec_name)
        headers = {"X-Lease-Token": lease_token}
        return _read(TaskRecord, self._http.write("DELETE", path, params=params, headers=headers))

    # --- how answers are read

    def _need(self, capability: str) -> None:
        if not self._http.has(capability):
            raise ServiceError(f"The task registry at {self._http.base_url} cannot {capability!r}.")

    def _all(self, kind: type[_Record], path: str, **filters: str | None) -> tuple[_Record, ...]:
        """The items of all pages; a page is ``{"items": […], "next_cursor": …}``."""
        items: list[_Record] = []
        cursor: str | None = None
        while True:
            page = self._http.get(path, params=_given(**filters, limit=_PAGE_SIZE, cursor=cursor))
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise ServiceError(f"The task registry answered a listing of {path} without items.")
            items += [_read(kind, item) for item in page["items"]]
            cursor = page.get("next_cursor")
            if not cursor:
                return tuple(items)


def _path(task_id: str) -> str:
    """The task's path; ``TaskNotFoundError`` for what no task can be called."""
    try:
        return f"/tasks/{quote(_names.check_task_id(task_id), safe='')}"
    except ValueError as error:
        raise TaskNotFoundError(f"No task can be called {task_id!r}: it {error}.", status_code=404) from error


def _spec_path(spec_name: str) -> str:
    try:
        return f"/tasksets/{quote(_names.check_spec_name(spec_name), safe='')}"
    except ValueError as error:
        raise TaskNotFoundError(f"No spec can be called {spec_name!r}: it {error}.", status_code=404) from error


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _read(kind: type[_Record], value: object) -> _Record:
    return _checked(kind, kind.model_validate, value)


def _read_json(kind: type[_Record], text: str) -> _Record:
    return _checked(kind, kind.model_validate_json, text)


def _checked(kind: type[_Record], validate: Callable[[Any], _Record], value: object) -> _Record:
    try:
        return validate(value)
    except ValueError as error:
        raise ServiceError(f"The task registry answered something that is no {kind.__name__}.") from error
