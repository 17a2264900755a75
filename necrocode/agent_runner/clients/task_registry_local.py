"""The embedded task registry: SQLite through SQLAlchemy Core, safe for many threads and processes at once."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._task_states import FINISHED, canonical_status, check_transition
from necrocode.agent_runner.errors import (
    AmbiguousTaskError,
    ConfigurationError,
    ServiceConnectionError,
    ServiceError,
    TaskNotFoundError,
)
from necrocode.agent_runner.records import ArtifactRecord, EventRecord, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from necrocode.agent_runner.models import TaskContext

_BUSY_TIMEOUT_SECONDS = 30


class _UtcDateTime(sa.TypeDecorator[datetime]):
    """SQLite keeps no time zone: what comes back is in UTC, as it went in."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:  # noqa: ARG002  SQLAlchemy's signature
        return None if value is None else value.replace(tzinfo=UTC)


_metadata = sa.MetaData()
_key = (sa.Column("spec_name", sa.Text, primary_key=True), sa.Column("task_id", sa.Text, primary_key=True))
_tasks = sa.Table(
    "tasks",
    _metadata,
    *_key,
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("acceptance_criteria", sa.JSON, nullable=False),
    sa.Column("dependencies", sa.JSON, nullable=False),
    sa.Column("required_skill", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", _UtcDateTime, nullable=False),
    sa.Column("updated_at", _UtcDateTime, nullable=False),
)
_tasks_by_id = sa.Index("tasks_by_id", _tasks.c.task_id)


def _history_table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        _metadata,
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("spec_name", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        *columns,
        sa.Column("created_at", _UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(["spec_name", "task_id"], ["tasks.spec_name", "tasks.task_id"], ondelete="CASCADE"),
        sa.Index(f"{name}_by_task", "spec_name", "task_id", "sequence"),
        sqlite_autoincrement=True,
    )


_events = _history_table(
    "events", sa.Column("event_type", sa.Text, nullable=False), sa.Column("data", sa.JSON, nullable=False)
)
_artifacts = _history_table(
    "artifacts",
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("metadata", sa.JSON, nullable=False),
)


class LocalTaskRegistry:
    """A task registry in a database of our own; the Protocol is :class:`~necrocode.agent_runner.TaskRegistry`.

    ``url`` is ``sqlite:///relative`` or ``sqlite:////absolute/path``; folders and tables are made at the first use.
    Every method is one transaction, durable when it returns.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if not url.startswith("sqlite:///") or not url.removeprefix("sqlite:///"):
            raise ConfigurationError(f"The task registry URL {url!r} must be sqlite:///path, or http(s)://host:port.")
        self._file = Path(url.removeprefix("sqlite:///"))
        self._clock = clock
        self._engine = sa.create_engine(
            url,
            connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
            json_serializer=partial(json.dumps, allow_nan=False),  # NaN is no JSON: no other reader could read it
        )
        sa.event.listen(self._engine, "connect", _configure_connection)
        sa.event.listen(self._engine, "begin", _begin)
        self._is_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; a later call opens it again."""
        self._engine.dispose()

    def register_task(self, task: TaskContext) -> None:
        """Make the task known, or bring its record up to date; a finished one becomes ``ready`` again."""
        values = {
            "title": task.title,
            "description": task.description,
            "acceptance_criteria": list(task.acceptance_criteria),
            "dependencies": list(task.dependencies),
            "required_skill": task.required_skill,
            "metadata": task.metadata,
            "updated_at": self._clock.now(),
        }
        this = (_tasks.c.spec_name == task.spec_name) & (_tasks.c.task_id == task.task_id)
        with self._transaction() as connection:
            status = connection.execute(sa.select(_tasks.c.status).where(this)).scalar_one_or_none()
            if status is None:
                new = {"spec_name": task.spec_name, "task_id": task.task_id, "created_at": values["updated_at"]}
                connection.execute(sa.insert(_tasks).values(status="ready", attempt=0, **new, **values))
            else:
                status = "ready" if status in FINISHED else status
                connection.execute(sa.update(_tasks).where(this).values(status=status, **values))

    def update_task_status(
        self, task_id: str, status: str, metadata: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Move the task to a state; going to ``running`` from another counts as an attempt."""
        new = canonical_status(status)
        with self._transaction() as connection:
            task = self._find(connection, task_id, spec_name)
            check_transition(task_id, task.status, new)
            attempt = task.attempt + (new == "running" and task.status != "running")
            merged = {**task.metadata, **(metadata or {})}
            connection.execute(
                sa.update(_tasks)
                .where((_tasks.c.spec_name == task.spec_name) & (_tasks.c.task_id == task_id))
                .values(status=new, attempt=attempt, metadata=merged, updated_at=self._clock.now())
            )

    def add_event(
        self, task_id: str, event_type: str, data: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Append an event to the task's history."""
        self._append(_events, task_id, spec_name, event_type=event_type, data=dict(data or {}))

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
        values = {"type": artifact_type, "uri": uri, "size_bytes": size_bytes, "metadata": dict(metadata or {})}
        self._append(_artifacts, task_id, spec_name, **values)

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord:
        """The task's record; ``TaskNotFoundError``, ``AmbiguousTaskError``."""
        with self._transaction(read_only=True) as connection:
            return self._find(connection, task_id, spec_name)

    def list_events(self, task_id: str, *, spec_name: str | None = None) -> tuple[EventRecord, ...]:
        """The task's events, oldest first."""
        rows = self._history(_events, task_id, spec_name)
        return tuple(EventRecord.model_validate(dict(row)) for row in rows)

    def list_artifacts(self, task_id: str, *, spec_name: str | None = None) -> tuple[ArtifactRecord, ...]:
        """The task's artifact records, oldest first."""
        rows = self._history(_artifacts, task_id, spec_name)
        return tuple(ArtifactRecord.model_validate(dict(row)) for row in rows)

    def _append(self, table: sa.Table, task_id: str, spec_name: str | None, **values: Any) -> None:  # noqa: ANN401
        with self._transaction() as connection:
            task = self._find(connection, task_id, spec_name)
            place = {"spec_name": task.spec_name, "task_id": task_id, "created_at": self._clock.now()}
            connection.execute(sa.insert(table).values(**place, **values))

    def _history(self, table: sa.Table, task_id: str, spec_name: str | None) -> list[sa.RowMapping]:
        with self._transaction(read_only=True) as connection:
            task = self._find(connection, task_id, spec_name)
            this = (table.c.spec_name == task.spec_name) & (table.c.task_id == task_id)
            return list(connection.execute(sa.select(table).where(this).order_by(table.c.sequence)).mappings())

    @staticmethod
    def _find(connection: sa.Connection, task_id: str, spec_name: str | None) -> TaskRecord:
        query = sa.select(_tasks).where(_tasks.c.task_id == task_id)
        if spec_name is not None:
            query = query.where(_tasks.c.spec_name == spec_name)
        rows = connection.execute(query.order_by(_tasks.c.spec_name).limit(10)).mappings().all()
        if not rows:
            place = f" of spec {spec_name}" if spec_name else ""
            raise TaskNotFoundError(f"The task registry has no task {task_id}{place}.", status_code=404)
        if len(rows) > 1:
            specs = ", ".join(row["spec_name"] for row in rows)
            raise AmbiguousTaskError(
                f"The task id {task_id} names a task in each of the specs {specs}.",
                hint="Pass spec_name.",
                status_code=409,
            )
        return TaskRecord.model_validate(dict(rows[0]))

    @contextmanager
    def _transaction(self, *, read_only: bool = False) -> Iterator[sa.Connection]:
        try:
            if not self._is_ready:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._engine.begin() as connection:
                    _metadata.create_all(connection)
                self._is_ready = True
            with self._engine.execution_options(read_only=read_only).begin() as connection:
                yield connection
        except OSError as error:
            raise ServiceConnectionError(
                f"The embedded task registry cannot use {self._file}: {error.strerror}."
            ) from error
        except UnicodeError as error:
            raise ServiceError(
                f"The embedded task registry cannot keep text that is no valid Unicode: {error}.", status_code=400
            ) from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise ServiceError(f"The embedded task registry in {self._file} failed: {cause}.") from error


def _configure_connection(connection: Any, _record: object) -> None:  # noqa: ANN401  sqlite3's own connection
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    """Writers queue at the start of a transaction, not in its middle, where SQLite would refuse them (SQLITE_BUSY)."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
