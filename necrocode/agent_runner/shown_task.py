"""The task as a model may be shown it, and as it may be stored: nothing in it that nobody sees, and no secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from necrocode.agent_runner._invisible import invisible_in, told, visible

if TYPE_CHECKING:
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.playbook import Playbook


def readable(task: TaskContext, playbook: Playbook) -> tuple[TaskContext, Playbook, tuple[str, ...]]:
    """Both as people see them, who wrote or approved them; and a warning for each text that held more than that."""
    criteria = tuple(task.acceptance_criteria)
    texts = {
        "The task's title": [task.title],
        "The task's description": [task.description],
        "The task's acceptance criteria": criteria,
        "The playbook's instructions": [playbook.instructions],
    }
    found = {what: invisible_in(text) for what, text in texts.items()}
    seen = {
        "title": visible(task.title).strip(),
        "description": visible(task.description),
        "acceptance_criteria": tuple(map(visible, criteria)),
    }
    warnings = tuple(
        f"{what} held characters that nobody sees; the model is not shown them: {told(hidden)}."
        for what, hidden in found.items()
        if hidden
    )
    if hidden := invisible_in([*task.test_commands, *task.setup_commands]):
        warned = (
            f"The task's commands hold characters that nobody sees: {told(hidden)}. They run as they are, and may do"
            " something else than they seem to."
        )
        warnings = (*warnings, warned)
    playbook = playbook.model_copy(update={"instructions": visible(playbook.instructions)})
    return task.model_copy(update=seen), playbook, warnings


def masked(task: TaskContext, redactor: Redactor) -> TaskContext:
    """The task with secrets masked in all that is shown, stored or committed; the test commands run as they are."""
    return task.model_copy(
        update={
            "title": redactor.text(task.title),
            "description": redactor.text(task.description),
            "acceptance_criteria": tuple(map(redactor.text, task.acceptance_criteria)),
            "metadata": redactor.data(json.loads(json.dumps(task.metadata, default=str))),
        }
    )
