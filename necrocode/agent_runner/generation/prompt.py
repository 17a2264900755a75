"""What the model is told: how to answer, what to do, and what it may look at."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.answer_forms import system_prompt
from necrocode.agent_runner.generation.shown_files import fenced, rendered
from necrocode.agent_runner.models import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.answer_forms import EditFormat
    from necrocode.agent_runner.generation.pieces import Context
    from necrocode.agent_runner.models import TaskContext

_MAX_LISTED_NAMES = 200
_CLOSING = "Answer in the form that you were told, with the files that must change."
# Small models delete and rename files nobody spoke of once they have read how: they read it where a task may need it.
_MAY_REMOVE = re.compile(
    r"(?i)delet|remov|renam|\bmov(?:e|ing)|drop|get rid|clean ?up|unused|obsolete|no longer|merge|restructur|reorgani"
    r"|削除|消し|消す|消去|取り除|除去|不要|廃止|改名|リネーム|名前を変|名称を変|移動|移す|移し|統合|整理"
)


def free_messages(prompt: str, workspace_path: Path | None, *, edit_format: EditFormat) -> tuple[Message, ...]:
    """The conversation for a prompt of the caller's own, with the names of the workspace's files under it.

    A workspace that is not there adds nothing; ``.git`` and all but the first 200 names are left out.
    """
    names = _file_names(workspace_path) if workspace_path is not None and workspace_path.is_dir() else []
    listing = "\n\n# Files of the workspace\n\n" + "\n".join(names) if names else ""
    return (
        _standing(edit_format, prompt),
        Message(role="user", content=f"{prompt}{listing}"),
    )


def _standing(edit_format: EditFormat, asked: str) -> Message:
    with_removals = _MAY_REMOVE.search(asked) is not None
    return Message(role="system", content=system_prompt(edit_format, with_removals=with_removals))


def _file_names(workspace: Path) -> list[str]:
    names: list[str] = []
    for folder, folders, files in os.walk(workspace):
        folders[:] = sorted(name for name in folders if name != ".git")
        names += [(Path(folder, name)).relative_to(workspace).as_posix() for name in sorted(files)]
        if len(names) >= _MAX_LISTED_NAMES:
            break
    return names[:_MAX_LISTED_NAMES]


def task_messages(
    task: TaskContext,
    context: Context,
    *,
    instructions: str = "",
    test_commands: Sequence[str] = (),
    failing: str = "",
    closing: str = _CLOSING,
    edit_format: EditFormat,
) -> tuple[Message, ...]:
    """The conversation that asks for a task's change set: the standing part first, so that endpoints can cache it.

    ``failing`` says how the test commands fail before the change, ``closing`` what to do now.
    """
    parts = [f"# Task {task.task_id}: {task.title}\n\n{task.description.strip()}"]
    if task.acceptance_criteria:
        parts.append("Acceptance criteria:\n" + "\n".join(f"- {criterion}" for criterion in task.acceptance_criteria))
    if instructions.strip():
        parts.append(f"Instructions of this project:\n{instructions.strip()}")
    if test_commands:
        parts.append("The change will be checked with:\n" + "\n".join(f"- {command}" for command in test_commands))
    if failing:
        parts.append(f"Before the change it fails like this:\n{fenced(failing)}")
    asked = "\n\n".join(parts)
    return (
        _standing(edit_format, asked),
        Message(role="user", content=f"{rendered(context)}\n\n{asked}\n\n{closing}"),
    )
