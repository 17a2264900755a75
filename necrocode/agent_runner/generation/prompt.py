"""What the model is told: how to answer, what to do, and what it may look at."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.models import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.context import Context
    from necrocode.agent_runner.models import TaskContext

_MAX_LISTED_NAMES = 200
_ROLE = (
    "You are a careful software engineer. You get files of a git repository and a task. Do the whole task, and nothing"
    " besides: keep all text that the task does not ask to change. Write complete, working code."
)
_JSON_FORMAT = """Answer with one JSON object and nothing else:
{"explanation": "what you did, in one sentence",
 "changes": [{"operation": "modify", "file_path": "src/hello.py", "content": "the whole new text of the file"}]}
operation is create or modify. content is the whole text of the file from its first line to its last: no parts, no
diffs, no fences around it. Leave out files that do not change."""
_JSON_REMOVALS = """
If the task asks to delete a file, operation is delete, with content null. If it asks to rename or move a file,
operation is rename, new_path is the new path, and content is null unless the text changes too."""
_TEXT_FORMAT = """Write every file that must change in full, each with its path on the line before, like this:

File: src/hello.py
```python
def hello():
    return "hello"
```

Write the file from its first line to its last: no parts, no diffs, no "...". A new file is written in the same way.
Leave out files that do not change. If a file's text has three backticks in a row, fence it with four."""
_TEXT_REMOVALS = """
To delete a file, write only the line: DELETE src/old.py
To rename or move a file, write only the line: RENAME src/old.py -> src/new.py"""
# Small models delete and rename files nobody spoke of once they have read how: they read it where a task may need it.
_MAY_REMOVE = re.compile(
    r"(?i)delet|remov|renam|\bmov(?:e|ing)|drop|get rid|clean ?up|unused|obsolete|no longer|merge|restructur|reorgani"
    r"|削除|消し|消す|消去|取り除|除去|不要|廃止|改名|リネーム|名前を変|名称を変|移動|移す|移し|統合|整理"
)


def system_prompt(answer_format: Literal["json", "text"], *, with_removals: bool = False) -> str:
    """The standing instruction: the role, and the form of the answer."""
    wanted, removals = (_JSON_FORMAT, _JSON_REMOVALS) if answer_format == "json" else (_TEXT_FORMAT, _TEXT_REMOVALS)
    return f"{_ROLE}\n\n{wanted}{removals if with_removals else ''}"


def as_text_request(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation for an endpoint without structured output: it asks for fenced files instead of JSON."""
    text_for = {system_prompt("json", with_removals=w): system_prompt("text", with_removals=w) for w in (False, True)}
    return tuple(
        message.model_copy(update={"content": text_for[message.content]}) if message.content in text_for else message
        for message in messages
    )


def free_messages(
    prompt: str, workspace_path: Path | None, *, answer_format: Literal["json", "text"]
) -> tuple[Message, ...]:
    """The conversation for a prompt of the caller's own, with the names of the workspace's files under it.

    A workspace that is not there adds nothing; ``.git`` and all but the first 200 names are left out.
    """
    names = _file_names(workspace_path) if workspace_path is not None and workspace_path.is_dir() else []
    listing = "\n\n# Files of the workspace\n\n" + "\n".join(names) if names else ""
    return (
        _standing(answer_format, prompt),
        Message(role="user", content=f"{prompt}{listing}"),
    )


def _standing(answer_format: Literal["json", "text"], asked: str) -> Message:
    with_removals = _MAY_REMOVE.search(asked) is not None
    return Message(role="system", content=system_prompt(answer_format, with_removals=with_removals))


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
    answer_format: Literal["json", "text"],
) -> tuple[Message, ...]:
    """The conversation that asks for a task's change set: the standing part first, so that endpoints can cache it.

    ``failing`` says how the test commands fail before the change.
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
    closing = "Answer in the form that you were told, with the files that must change."
    return (
        _standing(answer_format, asked),
        Message(role="user", content=f"{_files(context)}\n\n{asked}\n\n{closing}"),
    )


def _files(context: Context) -> str:
    parts = ["# Files of the repository", "\n".join(context.paths) or "(the repository is empty)"]
    if context.paths_left_out:
        parts.append(f"... and {context.paths_left_out} more")
    parts += [f"File: {piece.path}\n{fenced(piece.text)}" for piece in context.pieces]
    return "\n\n".join(parts)


def fenced(text: str) -> str:
    """The text in a fence longer than any run of backticks at the start of one of its lines."""
    longest = max((len(line.lstrip()) - len(line.lstrip().lstrip("`")) for line in text.split("\n")), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{fence}"
