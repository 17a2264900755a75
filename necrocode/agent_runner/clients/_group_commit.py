"""One writer for SQLite: what waits is done together, in one transaction, and known to be durable when answered.

SQLite has one write lock, and a commit that survives a power failure costs far more than the work in it. So a thread
takes whatever has queued up, does each operation in a savepoint of its own, and commits once. First come, first served.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from necrocode.agent_runner.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner.clients._registry_sql import Transaction

    Operation = Callable[[Transaction], Any]

_LARGEST_BATCH = 256
_Result = TypeVar("_Result")


class WriteConnection(Protocol):
    """A connection that the writer holds while it lives."""

    @property
    def transaction(self) -> Transaction: ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open: SQLite ends one by itself when the disk is full or fails."""

    def check(self) -> None:
        """``ServiceConnectionError`` when what is written to it would be read by nobody."""

    def close(self) -> None:
        """Give the connection back."""


@dataclass
class _Job:
    operation: Operation
    future: Future[Any] = field(default_factory=Future)


class GroupWriter:
    """Takes write operations from any thread; ``connect`` makes the one connection, at the first of them."""

    def __init__(self, connect: Callable[[], WriteConnection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Job | None] | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] | None = None
        _WRITERS.add(self)

    def submit(self, operation: Callable[[Transaction], _Result]) -> Future[_Result]:
        """The operation's result, once it is committed. Cancelling works until the operation's turn has come."""
        job = _Job(operation)
        with self._lock:
            if self._queue is None:
                self._queue = SimpleQueue()
                self._stop = weakref.finalize(self, self._queue.put, None)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=_work, args=(self._queue, self._connect), name="necrocode-registry-writer", daemon=True
                )
                self._thread.start()
            self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Do what has been submitted, and stop; a later operation starts anew."""
        with self._lock:
            thread, stop = self._thread, self._stop
            self._queue = self._thread = self._stop = None
        if thread is not None and stop is not None:
            stop()
            thread.join()

    def forget_in_child(self) -> None:
        """Be as new in a child process, which has neither the thread nor a right to its connection."""
        self._lock = threading.Lock()
        self._queue = self._thread = self._stop = None


_WRITERS: weakref.WeakSet[GroupWriter] = weakref.WeakSet()


def _forget_all() -> None:
    for writer in list(_WRITERS):
        writer.forget_in_child()


os.register_at_fork(after_in_child=_forget_all)


def _work(queue: SimpleQueue[_Job | None], connect: Callable[[], WriteConnection]) -> None:
    connection: WriteConnection | None = None
    stopped = False
    while not stopped:
        jobs, stopped = _next_batch(queue)
        if not jobs:
            continue
        try:
            connection = connection or connect()
            connection.check()
            outcomes = _outcomes(connection, [job.operation for job in jobs])
            connection.check()
        except Exception as error:  # noqa: BLE001  whoever waits for an answer would wait for ever
            outcomes = [error] * len(jobs)
            _give_up(connection)
            connection = None
        _answer(jobs, outcomes)
    _give_up(connection)


def _give_up(connection: WriteConnection | None) -> None:
    if connection is not None:
        with suppress(Exception):  # it was of no more use anyway
            connection.close()


def _next_batch(queue: SimpleQueue[_Job | None]) -> tuple[list[_Job], bool]:
    """Wait for a job and take those behind it too; and whether it is the last batch."""
    jobs: list[_Job] = []
    try:
        while len(jobs) < _LARGEST_BATCH:
            job = queue.get(block=not jobs)
            if job is None:
                return jobs, True
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
    except Empty:
        pass
    return jobs, False


@dataclass
class _Done:
    value: Any


def _outcomes(connection: WriteConnection, operations: Sequence[Operation]) -> list[_Done | Exception]:
    """What came of each operation, all committed; a lost transaction is done again, one operation at a time."""
    transaction = connection.transaction
    try:
        transaction.command("BEGIN IMMEDIATE")
    except ServiceError as error:  # another process keeps the lock: it would, for each of them
        return [error] * len(operations)
    try:
        outcomes = [_in_savepoint(connection, operation) for operation in operations]
        transaction.command("COMMIT")
    except ServiceError as error:
        if connection.in_transaction:
            transaction.command("ROLLBACK")
        if len(operations) == 1:
            return [error]
        return [_outcomes(connection, [operation])[0] for operation in operations]
    return outcomes


def _in_savepoint(connection: WriteConnection, operation: Operation) -> _Done | Exception:
    transaction = connection.transaction
    transaction.command("SAVEPOINT operation")
    try:
        outcome: _Done | Exception = _Done(operation(transaction))
    except Exception as error:
        if not connection.in_transaction:
            raise _lost(error) from error
        transaction.command("ROLLBACK TO operation")
        outcome = error
    transaction.command("RELEASE operation")
    return outcome


def _lost(error: Exception) -> ServiceError:
    return error if isinstance(error, ServiceError) else ServiceError(f"The transaction was lost: {error}.")


def _answer(jobs: Sequence[_Job], outcomes: Sequence[_Done | Exception]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, _Done):
            job.future.set_result(outcome.value)
        else:
            job.future.set_exception(outcome)
