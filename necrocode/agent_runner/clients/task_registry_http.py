"""The client of a Task Registry service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._http import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_TIMEOUT_SECONDS,
    ServiceClient,
    ServiceHttp,
)
from necrocode.agent_runner.errors import ServiceError, TaskNotFoundError
from necrocode.agent_runner.records import ArtifactRecord, EventRecord, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from necrocode.agent_runner.models import TaskContext

_PAGE_SIZE = 1000
_Record = TypeVar("_Record", TaskRecord, EventRecord, ArtifactRecord)


class TaskRegistryClient(ServiceClient):
    """Task states, events and artifact records; the Protocol is ``TaskRegistry``. Safe for several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._http = ServiceHttp(
            base_url,
            "task registry",
            not_found=TaskNotFoundError,
            token=token,
            network_retry_count=network_retry_count,
            timeout_seconds=timeout_seconds,
            clock=clock,
        )

    def register_task(self, task: TaskContext) -> None:
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
        path = f"/tasks/{_quoted(task.task_id)}"
        self._http.write("PUT", path, json_body=body, params={"spec_name": task.spec_name})

    def update_task_status(
        self, task_id: str, status: str, metadata: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Move the task to a state: ``blocked ready running done failed cancelled`` or one of their aliases."""
        body = {"status": status, "metadata": dict(metadata or {})}
        self._http.write("PUT", f"/tasks/{_quoted(task_id)}/status", json_body=body, params=_of_spec(spec_name))

    def add_event(
        self, task_id: str, event_type: str, data: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Append an event to the task's history."""
        body = {"event_type": event_type, "data": dict(data or {})}
        self._http.write("POST", f"/tasks/{_quoted(task_id)}/events", json_body=body, params=_of_spec(spec_name))

    def add_artifact(
        self,
        task_id: str,
        artifact_type: str,
        uri: str,
        size_bytes: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        spec_name: str | None = None,
    ) -> None:
        """Record where an artifact of the task is stored."""
        body: dict[str, Any] = {"type": artifact_type, "uri": uri, "size_bytes": size_bytes}
        if metadata:
            body["metadata"] = dict(metadata)
        self._http.write("POST", f"/tasks/{_quoted(task_id)}/artifacts", json_body=body, params=_of_spec(spec_name))

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord:
        """The task's record; ``TaskNotFoundError``, ``AmbiguousTaskError``."""
        answer = self._http.get(f"/tasks/{_quoted(task_id)}", params=_of_spec(spec_name))
        return _read(TaskRecord, answer)

    def list_events(self, task_id: str, *, spec_name: str | None = None) -> tuple[EventRecord, ...]:
        """The task's events, oldest first."""
        return tuple(_read(EventRecord, item) for item in self._all(task_id, "events", spec_name))

    def list_artifacts(self, task_id: str, *, spec_name: str | None = None) -> tuple[ArtifactRecord, ...]:
        """The task's artifact records, oldest first."""
        return tuple(_read(ArtifactRecord, item) for item in self._all(task_id, "artifacts", spec_name))

    def _all(self, task_id: str, what: str, spec_name: str | None) -> list[Any]:
        """The items of all pages; a page is ``{"items": […], "next_cursor": …}``."""
        items: list[Any] = []
        cursor: str | None = None
        while True:
            params = {**(_of_spec(spec_name) or {}), "limit": _PAGE_SIZE} | ({"cursor": cursor} if cursor else {})
            page = self._http.get(f"/tasks/{_quoted(task_id)}/{what}", params=params)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise ServiceError(f"The task registry answered a listing of {what} without items.")
            items += page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return items


def _quoted(task_id: str) -> str:
    return quote(task_id, safe="")


def _of_spec(spec_name: str | None) -> dict[str, str] | None:
    return None if spec_name is None else {"spec_name": spec_name}


def _read(kind: type[_Record], value: object) -> _Record:
    try:
        return kind.model_validate(value)
    except ValueError as error:
        raise ServiceError(f"The task registry answered something that is no {kind.__name__}.") from error
