"""Sending what a run has to tell: in order, each thing under its own key, until it is taken or refused for good."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._bounded import in_time
from necrocode.agent_runner._text import shown
from necrocode.agent_runner.errors import (
    AmbiguousTaskError,
    AuthenticationError,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    RunnerError,
    ServiceConnectionError,
    StaleLeaseError,
    TaskContextValidationError,
    TaskNotFoundError,
)
from necrocode.agent_runner.outbox.book import ORDER, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from necrocode.agent_runner.outbox.book import Entry, Kind, RunBook
    from necrocode.agent_runner.protocols import ArtifactStore, TaskRegistry

_LONGEST_REASON = 1000
_FINAL = (
    AmbiguousTaskError,
    IllegalTransitionError,
    StaleLeaseError,
    TaskContextValidationError,
    TaskNotFoundError,
)
# What another token, or another moment, may change: RFC 9110, RFC 6585.
_PASSING_STATUSES = frozenset({401, 403, 407, 408, 423, 425, 429})
_CLIENT_ERRORS = range(400, 500)


class Sender:
    """Sends to one registry and one store. One that could not be reached is not asked again.

    ``on_defect`` is told what an object that was passed in raises against its Protocol. Every write is made inside of a
    ``guard``.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        store: ArtifactStore,
        *,
        on_defect: Callable[[Exception], None] = lambda _error: None,
        is_over: Callable[[], bool] = lambda: False,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._registry = registry
        self._store = store
        self._on_defect = on_defect
        self._is_over = is_over
        self._guard = guard
        self._down: dict[bool, RunnerError] = {}

    def send(self, book: RunBook, kinds: tuple[Kind, ...] = ORDER) -> RunnerError | None:
        """Send what waits; what held it up, or None when nothing waits any more.

        What comes later is not sent before all that comes earlier has arrived, or was refused for good.
        """
        for kind in kinds:
            trouble: RunnerError | None = None
            for entry in book.waiting(kind):
                if self._is_over():
                    return ServiceConnectionError("There was no time left to send it.")
                trouble = self._sent(book, entry) or trouble
                if isinstance(trouble, ServiceConnectionError):
                    break
            if trouble is not None:
                return trouble
        return None

    def try_again(self) -> None:
        """Ask services again that could not be reached."""
        self._down.clear()

    def _sent(self, book: RunBook, entry: Entry) -> RunnerError | None:
        is_upload = entry.kind in {"upload", "manifest"}
        if entry.kind == "record" and not book.told_of(entry)["uri"]:
            book.refuse(entry, "Its artifact was not stored.")
            return None
        if is_upload in self._down:
            return self._down[is_upload]
        try:
            with self._guard():
                self._send(book, entry)
        except IdempotencyKeyReusedError:  # it arrived before, told in other words
            book.done(entry)
        except RunnerError as error:
            if not is_final(error):
                if isinstance(error, ServiceConnectionError):
                    self._down[is_upload] = error
                return error
            book.refuse(entry, shown(str(error), _LONGEST_REASON))
        except Exception as error:  # noqa: BLE001  the caller's object, and the other entries must be sent
            self._on_defect(error)
            book.refuse(entry, shown(f"Unexpected {type(error).__name__}: {error}", _LONGEST_REASON))
        return None

    def _send(self, book: RunBook, entry: Entry) -> None:
        body = entry.body
        if entry.kind == "upload":
            uri = self._stored(body, book.content_of(entry))
            book.done(entry, uri=str(uri))
        elif entry.kind == "manifest":
            content = manifest(book, entry)
            uri = self._stored(body, content)
            book.done(entry, uri=str(uri), content=content)
        else:
            self._tell(book, entry)
            book.done(entry)

    def _stored(self, body: Mapping[str, Any], content: bytes) -> str:
        work = partial(self._store.upload, body["type"], content, body["metadata"])
        return in_time(work, doing=f"store the {body['type']} artifact")

    def _tell(self, book: RunBook, entry: Entry) -> None:
        """Tell the registry."""
        body, task_id, place = entry.body, book.run.task_id, {"spec_name": book.run.spec_name}
        known = {"idempotency_key": entry.key, "lease_epoch": entry.epoch}
        if entry.kind == "record":
            of = book.told_of(entry)
            metadata = body["metadata"] | {"sha256": of["sha256"]}
            given = (task_id, of["type"], of["uri"], of["size_bytes"], metadata)
            called(self._registry.add_artifact, given, place, **known)
        elif entry.kind == "event":
            data = body["data"] | (_inventory(book) if body.get("is_last") else {})
            called(self._registry.add_event, (task_id, body["event_type"], data), place, **known)
        else:
            metadata = body["metadata"] | _inventory(book)
            called(self._registry.update_task_status, (task_id, body["status"], metadata), place, **known)


def is_final(error: RunnerError) -> bool:
    """Whether the same thing will be refused however often it is sent."""
    if isinstance(error, AuthenticationError):  # another token may be given
        return False
    status = error.status_code
    is_refusal = status in _CLIENT_ERRORS and status not in _PASSING_STATUSES
    return is_refusal or isinstance(error, _FINAL)


def _inventory(book: RunBook) -> dict[str, Any]:
    """What was uploaded: how much, and how to tell whether it is still that."""
    stored = [artifact.model_dump() for artifact in book.uploaded()]
    return {"artifact_count": len(stored), "artifacts": stored}


def called(method: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any], **optional: object) -> object:
    """Call a service's method, with those of the ``optional`` arguments that it knows."""
    known = {name: value for name, value in optional.items() if value is not None and _takes(method, name)}
    return in_time(partial(method, *given, **named, **known), doing="tell the task registry")


def _takes(method: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # built-in callables may not say
        return False
    return name in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
