"""A spec's folder, read into the ``TaskSet`` that a registry takes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import TaskContextValidationError
from necrocode.agent_runner.kiro_spec.lines import MAX_FILE_BYTES, problem
from necrocode.agent_runner.kiro_spec.requirements_file import Criteria, read_criteria
from necrocode.agent_runner.kiro_spec.tasks_file import WrittenTask, read_tasks
from necrocode.agent_runner.records import TaskDefinition, TaskSet
from necrocode.agent_runner.task_graph import find_cycle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TASKS_FILE, REQUIREMENTS_FILE = "tasks.md", "requirements.md"

_MOST_CRITERIA = 500  # of one task
_MOST_DEPENDENCIES = 1_000_000  # of all tasks together: "_Depends: 1_" in each of many tasks multiplies
_LONGEST_GROUP_TEXT = 4_000


@dataclass(frozen=True)
class KiroSpec:
    """What the files of a spec say."""

    task_set: TaskSet
    tasks: Mapping[str, WrittenTask]
    """Every task of the file, those that are made of sub-tasks included, in its order."""
    data: bytes
    """The bytes of ``tasks.md``."""

    @property
    def parts(self) -> dict[str, list[str]]:
        """For every task that is made of sub-tasks: those of its direct sub-tasks that must be done, by id.

        All of them where every one is optional.
        """
        direct: dict[str, list[WrittenTask]] = {}
        for task in self.tasks.values():
            if task.parent is not None:
                direct.setdefault(task.parent, []).append(task)
        return {
            task_id: [part.task_id for part in parts if not part.is_optional] or [part.task_id for part in parts]
            for task_id, parts in direct.items()
        }


def tasks_file_of(path: Path) -> Path:
    """The ``tasks.md`` of a spec that is named by its folder or by that file."""
    return path / TASKS_FILE if path.is_dir() else path


def load_spec(path: Path, *, spec_name: str | None = None) -> KiroSpec:
    """The spec in a folder, or of a ``tasks.md``; its name is the folder's unless one is given.

    Raises ``TaskContextValidationError`` for what cannot be read, naming file and line.
    """
    tasks_file = tasks_file_of(path)
    data = _content(tasks_file)
    if data is None:
        raise TaskContextValidationError(
            f"There is no {tasks_file}.", hint="Name a folder such as .kiro/specs/my-spec."
        )
    requirements_file = tasks_file.with_name(REQUIREMENTS_FILE)
    requirements = _content(requirements_file)
    return read_spec(
        data,
        spec_name or tasks_file.resolve().parent.name,
        criteria=None if requirements is None else read_criteria(requirements, file=str(requirements_file)),
        file=str(tasks_file),
    )


def read_spec(data: bytes, spec_name: str, *, criteria: Criteria | None = None, file: str = TASKS_FILE) -> KiroSpec:
    """The spec that the bytes of a ``tasks.md`` describe.

    A task that is made of sub-tasks is no task of the set, for there is nothing to do in it besides them: what it says,
    requires and depends on holds for each of its sub-tasks, and a dependency on it is one on all of these that are not
    optional. Where the file names no dependencies at all, tasks wait for each other in the order in which they are
    written, optional ones holding up nobody. Raises ``TaskContextValidationError``, naming file and line.
    """
    tasks = read_tasks(data, file=file)
    if not tasks:
        raise problem(file, 1, "there is no task in it; one is written as '- [ ] 1.1 Title'")
    builder = _Builder(tasks, criteria or Criteria({}), file)
    return KiroSpec(TaskSet(spec_name=spec_name, tasks=tuple(builder.definitions())), tasks, data)


def _content(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for a writer
            raise TaskContextValidationError(f"{path} is no ordinary file.")
        with path.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TaskContextValidationError(f"Cannot read {path}: {error.strerror}.") from error


class _Builder:
    """From tasks as they are written to definitions."""

    def __init__(self, tasks: Mapping[str, WrittenTask], criteria: Criteria, file: str) -> None:
        self._tasks = tasks
        self._criteria = criteria
        self._file = file
        self._leaves = _leaves(tasks)

    def definitions(self) -> Iterator[TaskDefinition]:
        """The definitions, in the order of the file."""
        dependencies = self._dependencies()
        for task_id, needed in dependencies.items():
            yield self._definition(self._tasks[task_id], needed)

    def _definition(self, task: WrittenTask, dependencies: tuple[str, ...]) -> TaskDefinition:
        lines = [task, *self._groups_of(task)]
        requirements = next((one.requirements for one in lines if one.requirements), [])
        criteria = self._criteria.named(requirements)
        if len(criteria) > _MOST_CRITERIA:
            raise problem(self._file, task.line, f"task {task.task_id} names more than {_MOST_CRITERIA} criteria")
        try:
            return TaskDefinition(
                task_id=task.task_id,
                title=task.title,
                description=self._description(task),
                acceptance_criteria=criteria,
                dependencies=dependencies,
                metadata=self._metadata(task, requirements),
            )
        except TaskContextValidationError as error:
            raise problem(self._file, task.line, f"task {task.task_id}: {str(error).rstrip('.')}") from None

    def _metadata(self, task: WrittenTask, requirements: list[str]) -> dict[str, Any]:
        about: dict[str, Any] = {}
        if requirements:
            about["requirements"] = list(dict.fromkeys(requirements))
        if task.parent is not None:
            about["part_of"] = task.parent
        if self._is_optional(task):
            about["optional"] = True
        return about

    def _description(self, task: WrittenTask) -> str:
        """The task's own text, and that of the task it is a part of, for it would be hard to understand without."""
        if task.parent is None:
            return task.description
        group = self._tasks[task.parent]
        text = group.description
        shown = text if len(text) <= _LONGEST_GROUP_TEXT else f"{text[:_LONGEST_GROUP_TEXT]}…"
        return "\n\n".join(part for part in (task.description, f"Part of {group.task_id} {group.title}", shown) if part)

    def _groups_of(self, task: WrittenTask) -> Iterator[WrittenTask]:
        while task.parent is not None:
            task = self._tasks[task.parent]
            yield task

    def _dependencies(self) -> dict[str, tuple[str, ...]]:
        """What each task of the set waits for."""
        if all(task.depends is None for task in self._tasks.values()):
            return self._in_written_order()
        found: dict[str, tuple[str, ...]] = {}
        room = _MOST_DEPENDENCIES
        for task_id, task in self._tasks.items():
            if self._leaves[task_id] == [task_id]:
                found[task_id] = self._dependencies_of(task)
                room -= len(found[task_id])
                if room < 0:
                    raise problem(self._file, task.line, f"there are more than {_MOST_DEPENDENCIES} dependencies")
        self._refuse_cycle(found)
        return found

    def _dependencies_of(self, task: WrittenTask) -> tuple[str, ...]:
        needed: dict[str, None] = {}
        for source in (task, *self._groups_of(task)):
            for name in source.depends or ():
                if name not in self._tasks:
                    raise self._unknown(source, name)
                needed.update(dict.fromkeys(self._leaves[name]))
        return tuple(needed)

    def _unknown(self, task: WrittenTask, name: str) -> TaskContextValidationError:
        near = get_close_matches(name, list(self._tasks)[:1000], n=1)
        suggestion = f" (did you mean {near[0]}?)" if near else ""
        return problem(
            self._file, task.line, f"task {task.task_id} depends on {name}, which is not in the file{suggestion}"
        )

    def _in_written_order(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        before: tuple[str, ...] = ()
        for task_id in self._tasks:
            if self._leaves[task_id] == [task_id]:
                found[task_id] = before
                before = before if self._is_optional(self._tasks[task_id]) else (task_id,)
        return found

    def _is_optional(self, task: WrittenTask) -> bool:
        return task.is_optional or any(group.is_optional for group in self._groups_of(task))

    def _refuse_cycle(self, dependencies: Mapping[str, tuple[str, ...]]) -> None:
        cycle = find_cycle(dependencies)
        if cycle is not None:
            path = " -> ".join(cycle)
            raise problem(self._file, self._tasks[cycle[0]].line, f"these tasks wait for each other: {path}")


def _leaves(tasks: Mapping[str, WrittenTask]) -> dict[str, list[str]]:
    """For every task, what has to be done for it: itself, or those parts that are not optional, at whatever depth."""
    groups = {task.parent for task in tasks.values()}
    required: dict[str, list[str]] = {task_id: [] for task_id in tasks}
    optional: dict[str, list[str]] = {task_id: [] for task_id in tasks}
    for task_id, task in tasks.items():
        if task_id in groups:
            continue
        required[task_id].append(task_id)
        is_optional, group = task.is_optional, task.parent
        while group is not None:
            (optional if is_optional else required)[group].append(task_id)
            is_optional, group = is_optional or tasks[group].is_optional, tasks[group].parent
    return {task_id: required[task_id] or optional[task_id] for task_id in tasks}
