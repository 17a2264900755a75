"""A playbook: instructions and commands that many tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from necrocode.agent_runner._strict import StrictModel, read_yaml_mapping
from necrocode.agent_runner.errors import RunnerError, TaskContextValidationError
from necrocode.agent_runner.models import TextList, checked_commands, checked_related_files

if TYPE_CHECKING:
    from necrocode.agent_runner.models import TaskContext


class Playbook(StrictModel):
    """What a playbook file may say. A task's own commands and ``related_files`` come before the playbook's."""

    error_type: ClassVar[type[RunnerError]] = TaskContextValidationError
    what: ClassVar[str] = "playbook"

    name: str = ""
    """For people."""
    instructions: str = Field(default="", max_length=100_000)
    """Text for the model: the project's conventions."""
    test_commands: TextList = ()
    """Used for a task that names none."""
    setup_commands: TextList = ()
    """Used for a task that names none."""
    related_files: TextList = ()
    """Shown to the model besides the task's own."""

    @field_validator("test_commands", "setup_commands")
    @classmethod
    def _check_commands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_commands(value)

    @field_validator("related_files")
    @classmethod
    def _check_related_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_related_files(value)


def load_playbook(task: TaskContext) -> Playbook:
    """The task's playbook, an empty one where it names none; ``TaskContextValidationError`` for a bad file."""
    if task.playbook_path is None:
        return Playbook()
    values = read_yaml_mapping(task.playbook_path, what="playbook", error_type=TaskContextValidationError)
    return Playbook(**values)


def with_playbook(task: TaskContext, playbook: Playbook) -> TaskContext:
    """The task, completed from the playbook."""
    return task.model_copy(
        update={
            "test_commands": task.test_commands or playbook.test_commands,
            "setup_commands": task.setup_commands or playbook.setup_commands,
            "related_files": tuple(dict.fromkeys([*task.related_files, *playbook.related_files])),
        }
    )
