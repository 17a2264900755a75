"""A ``tasks.md`` and a task registry, brought to say the same.

The file decides what the tasks are, the registry how they stand:

- A task that is ``done`` or ``running`` in the registry gets the box ``[x]`` or ``[-]``, whatever was in it.
- A box ticked by hand makes a task ``done`` that is not running. By hand means: the box was not ticked when file and
  registry last agreed, so a task that the registry has put back since then loses its tick instead.
- Other marks that a person made stay, and mean nothing to the registry. To take a tick away does not undo a task.
- The box of a task that is made of sub-tasks follows those of its sub-tasks that are not optional.
"""

from __future__ import annotations

import contextlib
import graphlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.kiro_spec import marked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from necrocode.agent_runner.kiro_spec import KiroSpec
    from necrocode.agent_runner.kiro_spec.tasks_file import Mark
    from necrocode.agent_runner.records import TaskDefinition, TaskRecord, TaskSet, TaskSetRecord

_FILE_METADATA = ("requirements", "part_of", "optional")  # what the file alone decides
_WAY_TO_DONE = {
    "blocked": ("ready", "running", "done"),
    "ready": ("running", "done"),
    "failed": ("running", "done"),
    "cancelled": ("running", "done"),
}


class SpecRegistry(Protocol):
    """What is asked of a registry here; ``LocalTaskRegistry`` and ``TaskRegistryClient`` are such."""

    def get_taskset(self, spec_name: str) -> TaskSetRecord:
        """The spec and its tasks; ``TaskNotFoundError`` where there is no such spec."""

    def create_taskset(self, taskset: TaskSet) -> TaskSetRecord:
        """Put a spec and its tasks in, or bring them up to date; what was worked on keeps its state."""

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord:
        """The task's record."""

    def update_task_status(
        self, task_id: str, status: str, metadata: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Move the task to a state."""

    def add_event(
        self, task_id: str, event_type: str, data: Mapping[str, Any] | None = None, *, spec_name: str | None = None
    ) -> None:
        """Append an event to the task's history."""


@dataclass(frozen=True)
class SyncPlan:
    """What has to be done for file and registry to agree."""

    task_set: TaskSet | None
    """To be put into the registry; None where it has these definitions."""
    new: tuple[str, ...]
    """Tasks that the registry does not have yet."""
    removed: tuple[str, ...]
    """Waiting tasks of the registry that the file does not have any more."""
    ticked: tuple[str, ...]
    """Tasks that become done, for their boxes were ticked by hand; each after those that it depends on."""
    boxes: Mapping[str, Mark]
    """Boxes of the file that change, and to what."""
    agreed: Mapping[str, Mark]
    """The ticks and in-progress marks that file and registry agree on when all this is done."""

    @property
    def is_empty(self) -> bool:
        """Whether they agree already."""
        return self.task_set is None and not self.ticked and not self.boxes

    def agreed_without_boxes(self, before: Mapping[str, Mark]) -> dict[str, Mark]:
        """What is agreed on when the registry is brought up to date and the file is not; ``before`` as it was."""
        kept = {task_id: mark for task_id, mark in before.items() if task_id in self.boxes}
        return kept | {task_id: mark for task_id, mark in self.agreed.items() if task_id not in self.boxes}


def plan_sync(spec: KiroSpec, known: TaskSetRecord | None, agreed: Mapping[str, Mark]) -> SyncPlan:
    """What has to be done; ``known`` is the registry's own record, ``agreed`` the marks when they last agreed."""
    records = {task.task_id: task for task in known.tasks} if known is not None else {}
    defined = {task.task_id for task in spec.task_set.tasks}
    told: dict[str, Mark] = {
        task_id: _mark_of(records[task_id].status) if task_id in records else " " for task_id in defined
    }
    ticked = tuple(
        task_id
        for task_id in _dependencies_first(spec.task_set)
        if told[task_id] == " " and spec.tasks[task_id].mark == "x" and agreed.get(task_id) != "x"
    )
    told |= dict.fromkeys(ticked, "x")
    after: dict[str, Mark] = {
        task_id: "-" if _is_own(spec, task_id, mark, agreed) else mark for task_id, mark in told.items()
    }
    after |= _of_groups(spec, after)
    return SyncPlan(
        task_set=_changed_task_set(spec.task_set, records, is_known=known is not None),
        new=tuple(task.task_id for task in spec.task_set.tasks if task.task_id not in records),
        removed=tuple(_waiting_without(defined, records)),
        ticked=ticked,
        boxes={task_id: after[task_id] for task_id, task in spec.tasks.items() if after[task_id] != task.mark},
        agreed={task_id: mark for task_id, mark in told.items() if mark != " "},
    )


def apply_to_registry(plan: SyncPlan, registry: SpecRegistry, spec_name: str) -> None:
    """Put the definitions into the registry, and make done what was ticked by hand, as the tasks' histories tell.

    A task that a runner has begun meanwhile is left alone: the next plan sees it running.
    """
    if plan.task_set is not None:
        registry.create_taskset(plan.task_set)
    for task_id in plan.ticked:
        status = registry.get_task(task_id, spec_name=spec_name).status
        for step in _WAY_TO_DONE.get(status, ()):
            registry.update_task_status(task_id, step, spec_name=spec_name)
        if status in _WAY_TO_DONE:
            registry.add_event(task_id, "done_by_hand", {"status_before": status}, spec_name=spec_name)


def write_boxes(file: Path, spec: KiroSpec, plan: SyncPlan) -> None:
    """Set the boxes in the file, replacing it at once and keeping its mode; not a byte besides changes.

    ``ConfigurationError`` when the file is no longer what ``spec`` was read from; it is left as it is then.
    """
    if not plan.boxes:
        return
    target = file.resolve()  # a link stays a link
    content = marked(spec.data, spec.tasks.values(), plan.boxes)
    try:
        part = _written_beside(target, content)
        try:
            if target.read_bytes() != spec.data:
                raise ConfigurationError(f"{file} was changed meanwhile; nothing in it was touched.", hint="Try again.")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Cannot write {file}: {error.strerror}.") from error


class SyncMemory:
    """What file and registry agreed on last, kept in a folder of ours; without it every tick counts as made by hand."""

    def __init__(self, folder: Path, file: Path, registry: str) -> None:
        self._about = {"file": str(file.resolve()), "registry": registry}
        name = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self._path = folder / f"{name[:32]}.json"

    def read(self) -> dict[str, Mark]:
        """The marks that were agreed on, by task id."""
        try:
            marks: dict[str, Mark] = json.loads(self._path.read_bytes())["marks"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(
                f"Cannot read {self._path}, which holds the last state of {self._about['file']}: {error}.",
                hint="Delete it: every ticked box then counts as ticked by hand.",
            ) from error
        return marks

    def write(self, marks: Mapping[str, Mark]) -> None:
        """Remember these marks."""
        text = json.dumps({**self._about, "marks": dict(marks)}, ensure_ascii=False, indent=2)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _written_beside(self._path, text.encode()).replace(self._path)
        except OSError as error:
            raise ConfigurationError(f"Cannot write {self._path}: {error.strerror}.") from error


def _mark_of(status: str) -> Mark:
    return "x" if status == "done" else "-" if status == "running" else " "


def _is_own(spec: KiroSpec, task_id: str, mark: Mark, agreed: Mapping[str, Mark]) -> bool:
    """Whether a person, not a runner, is at work on the task."""
    return mark == " " and spec.tasks[task_id].mark == "-" and agreed.get(task_id) != "-"


def _dependencies_first(task_set: TaskSet) -> Iterable[str]:
    return graphlib.TopologicalSorter({task.task_id: task.dependencies for task in task_set.tasks}).static_order()


def _of_groups(spec: KiroSpec, marks: Mapping[str, Mark]) -> dict[str, Mark]:
    """The marks of tasks that are made of sub-tasks."""
    parts = spec.parts
    groups: dict[str, Mark] = {}
    for task_id in reversed(list(spec.tasks)):  # a sub-task comes after what it is a part of
        if task_id in parts:
            own = {marks.get(part) or groups[part] for part in parts[task_id]}
            groups[task_id] = "x" if own == {"x"} else " " if own == {" "} else "-"
    return groups


def _waiting_without(defined: set[str], records: Mapping[str, TaskRecord]) -> Iterator[str]:
    waiting = (task for task in records.values() if task.status in {"blocked", "ready"})
    return (task.task_id for task in waiting if task.task_id not in defined)


def _changed_task_set(task_set: TaskSet, records: Mapping[str, TaskRecord], *, is_known: bool) -> TaskSet | None:
    """The set with what only the registry knows, such as priorities; None when the registry has it already."""
    merged = tuple(_merged(task, records.get(task.task_id)) for task in task_set.tasks)
    defined = {task.task_id for task in merged}
    is_same = all(task.task_id in records and _is_same(task, records[task.task_id]) for task in merged)
    if is_known and is_same and not any(_waiting_without(defined, records)):
        return None
    return task_set.model_copy(update={"tasks": merged})


def _merged(task: TaskDefinition, record: TaskRecord | None) -> TaskDefinition:
    if record is None:
        return task
    kept = {name: value for name, value in record.metadata.items() if name not in _FILE_METADATA}
    own = {"required_skill": record.required_skill, "priority": record.priority, "metadata": kept | task.metadata}
    return task.model_copy(update=own)


def _is_same(task: TaskDefinition, record: TaskRecord) -> bool:
    names = ("title", "description", "acceptance_criteria", "dependencies", "metadata")
    return all(getattr(task, name) == getattr(record, name) for name in names)


def _written_beside(file: Path, content: bytes) -> Path:
    """A new file in the same folder with the content on disk, and the mode and owner of ``file`` where that exists."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    part = file.with_name(os.path.basename(name))  # noqa: PTH119  of a name, not a path
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123  a descriptor
            if file.exists():
                status = file.stat()
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, status.st_mode & 0o7777)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
