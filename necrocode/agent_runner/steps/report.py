"""Report: the task registry hears that the run started, what happened, and, last of all, how it ended.

What there is to tell is put into the outbox before it is sent, and leaves it when it has arrived.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.outbox.book import RunBook, RunIdentity, manifest_entries, upload_entries
from necrocode.agent_runner.outbox.delivery import Sender, called

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.fencing import Fence
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.outbox.book import Entry, Kind
    from necrocode.agent_runner.outbox.folder import Outbox
    from necrocode.agent_runner.protocols import ArtifactStore, TaskRegistry
    from necrocode.agent_runner.results import Artifact

_UPLOADS: tuple[Kind, ...] = ("upload", "manifest")
SETTLE_SECONDS = 5.0
"""How long a run waits at most for what earlier runs of its task have to tell."""


class Reporter:
    """One run's voice in the registry, and its way into the store. Not thread-safe.

    Events are sent as they happen; one that cannot be sent is sent with the final report, or from the outbox later.
    ``on_trouble`` is told what could not be sent or kept, ``on_defect`` what objects that were passed in raise.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        store: ArtifactStore,
        outbox: Outbox,
        task: TaskContext,
        run: RunIdentity,
        *,
        clock: Clock,
        redact: Callable[[Any], Any],
        on_trouble: Callable[[str], None],
        on_defect: Callable[[Exception], None],
    ) -> None:
        self._registry = registry
        self._store = store
        self._task = task
        self._outbox = outbox
        self._clock = clock
        self._redact = redact
        self._on_trouble = on_trouble
        self._identity = {"run_id": run.run_id, "runner_id": run.runner_id}
        self._book = RunBook(run)
        self._guard: Callable[[], AbstractContextManager[None]] = nullcontext
        self._fence: Fence | None = None
        self._sender = Sender(registry, store, on_defect=on_defect, guard=self._writing)
        self._is_cut_off = False
        self.has_started = False
        """Whether the registry has heard that the task is running."""

    @property
    def _epoch(self) -> int | None:
        return None if self._fence is None else self._fence.epoch

    @property
    def _metadata(self) -> dict[str, Any]:
        """What the artifacts' metadata says of the lease."""
        return {} if self._fence is None else self._fence.metadata()

    def writes_under(self, fence: Fence, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """From here on every write carries the epoch of this lease, and is made inside of a ``guard``."""
        self._fence, self._guard = fence, guard

    def _writing(self) -> AbstractContextManager[None]:
        return self._guard()

    def started(self) -> None:
        """The task is running now. Raises ``ServiceError`` and its kin: a run that nobody can see is not begun."""
        task = self._task
        self.has_started = True  # before the call: an interrupted one may have arrived
        try:
            with self._guard():
                given, place = (task.task_id, "running", dict(self._identity)), {"spec_name": task.spec_name}
                called(self._registry.update_task_status, given, place, lease_epoch=self._epoch)
        except RunnerError:
            self.has_started = False
            raise
        self._outbox.overtake(task.spec_name, task.task_id)
        self.goes_on()
        self.event("run_started", {})

    def tell_of_earlier_runs(self) -> None:
        """Before the task is taken: what its earlier runs could not tell, where a service takes that in time."""
        if not self._outbox.has_waiting(but=self._book.run.run_id):
            return
        is_late = threading.Event()
        sender = Sender(self._registry, self._store, is_over=is_late.is_set)
        task = (self._task.spec_name, self._task.task_id)
        thread = threading.Thread(target=self._outbox.send_of_task, args=(*task, sender), daemon=True)
        thread.start()
        thread.join(SETTLE_SECONDS)
        is_late.set()

    def goes_on(self) -> None:
        """The registry has heard of the run: from here on it tells, and what it told before it died is known."""
        self.has_started = True
        try:
            self._book = self._outbox.open_book(self._book.run)
            self._book.lives()
            for entry in self._book.waiting():  # told before it died, and due under the lease that it has now
                entry.epoch = self._epoch
        except OSError as error:
            self._told_unkept(error)

    def takes_up(self, fence: Fence | None) -> bool:
        """Go on with the telling of a run that has ended; whether its end is in the outbox, or was told from there."""
        if fence is not None:
            self._fence = fence
        if self._outbox.has_book(self._book.run.run_id):
            self.goes_on()
        return self._book.is_sealed

    @property
    def is_kept(self) -> bool:
        """Whether the end of the run outlives this process, or was told."""
        ends = [entry for entry in self._book.entries.values() if entry.kind == "status"]
        return all(entry.record is not None or entry.state != "waiting" for entry in ends)

    def works_at(self, repository: str) -> None:
        """Where the run works, for whoever looks for its work should it die. Never raises."""
        try:
            self._book.keep_place(repository)
        except OSError as error:
            self._told_unkept(error)

    def event(self, event_type: str, data: Mapping[str, Any], *, work: bytes = b"") -> None:
        """Something happened. Never raises.

        ``work``: the patch that the run has come to, which is stored should it die.
        """
        patch = self._patch(work) if work else None
        self._keep([patch, self._event(event_type, data)], is_durable=self._is_cut_off or patch is not None)
        if not self._is_cut_off:  # a registry that is down is not asked again until the end
            self._is_cut_off = self._sender.send(self._book, ("event",)) is not None
            if self._is_cut_off:
                self._sync()

    def _patch(self, work: bytes) -> Entry | None:
        return self._book.entry("work", {"type": "diff", "metadata": self._metadata}, work, epoch=self._epoch)

    def _sync(self) -> None:
        try:
            self._book.sync()
        except OSError as error:
            self._told_unkept(error)

    def _event(self, event_type: str, data: Mapping[str, Any], *, is_last: bool = False) -> Entry | None:
        told = {**self._identity, "at": self._clock.now().isoformat(), **self._redact(dict(data))}
        body = {"event_type": event_type, "data": told, "is_last": is_last}
        return self._book.entry("event", body, epoch=self._epoch)

    def ends(self, status: str, summary: Mapping[str, Any], outputs: Sequence[tuple[str, bytes]]) -> None:
        """The run has ended like this, and these are its (type, content): from here on nothing of it is lost.

        Nothing is sent yet. The first end counts.
        """
        book = self._book
        if not book.is_sealed:
            book.forget_unkept()
            upload_entries(book, outputs, self._metadata, epoch=self._epoch)
            manifest_entries(book, [artifact_type for artifact_type, _ in outputs], self._metadata, self._epoch)
            told = self._redact(dict(summary))
            self._event("run_finished", {"status": status, **told}, is_last=True)
            body = {"status": status, "metadata": {**self._identity, **told}}
            book.entry("status", body, epoch=self._epoch)
        self._keep([entry for entry in book.entries.values() if entry.state == "waiting" and entry.record is None])

    def upload(self) -> tuple[Artifact, ...]:
        """Send the artifacts; those that are stored."""
        self._sender.try_again()
        trouble = self._sender.send(self._book, _UPLOADS)
        for entry in self._book.entries.values():
            if entry.kind in _UPLOADS and entry.state != "done":
                why = entry.reason if entry.state == "refused" else f"{trouble} It is {self._fate(entry)}."
                self._on_trouble(f"The {entry.body['type']} artifact was not stored: {why}")
        return self._book.uploaded()

    def report(self) -> Literal["yes", "pending", "no"]:
        """Send the rest; whether the registry has the end of the run, will be told it later, or will not."""
        trouble = self._sender.send(self._book)
        for status in (entry for entry in self._book.entries.values() if entry.kind == "status"):
            if status.state == "done":
                return "yes"
            behind = "it waits for the artifacts, which are sent first. " if self._book.waiting(*_UPLOADS) else ""
            why = status.reason if status.state == "refused" else f"{behind}{trouble} It is {self._fate(status)}."
            told = status.body["status"]
            self._on_trouble(f"The task registry does not have the final status {told!r}: {why}")
            return "pending" if status.state == "waiting" and status.record is not None else "no"
        return "no"

    def close(self) -> None:
        """Leave what has not arrived to later runs."""
        self._outbox.close_book(self._book)

    def _fate(self, entry: Entry) -> str:
        return "kept, and sent later (necrocode outbox flush)" if entry.record is not None else "lost"

    def _keep(self, entries: list[Entry | None], *, is_durable: bool = True) -> None:
        """Put entries on disk; where there is no room for all, those that are small.

        An event that is sent at once need not outlive a power failure as well: each would wait for the disk.
        """
        new = [entry for entry in entries if entry is not None]
        large = [entry for entry in new if entry.content]
        small = [entry for entry in new if not entry.content and entry.kind not in {"record", "manifest"}]
        try:
            size = sum(len(entry.content) for entry in large)
            if large and size > self._outbox.room():
                limit = self._outbox.max_bytes
                raise OSError(0, f"it may hold {limit} bytes (outbox_max_bytes), and {size} more are too many")  # noqa: TRY301  one way out
            self._book.keep(new, is_durable=is_durable)
        except OSError as error:
            self._told_unkept(error)
            try:
                self._book.keep(small, is_durable=is_durable)
            except OSError as again:
                self._told_unkept(again)

    def _told_unkept(self, error: OSError) -> None:
        self._on_trouble(
            f"The outbox cannot keep all that this run has to tell: {error.strerror or error}."
            " It is sent all the same, but lost if a service cannot be reached."
        )
