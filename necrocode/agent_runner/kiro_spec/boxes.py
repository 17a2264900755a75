"""Setting the boxes of ``tasks.md``: one byte for each, and not a byte besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from necrocode.agent_runner.kiro_spec.tasks_file import Mark, WrittenTask


def marked(data: bytes, tasks: Iterable[WrittenTask], marks: Mapping[str, Mark]) -> bytes:
    """The file with these marks, by task id; ``tasks`` are those that ``read_tasks`` found in the same bytes.

    A box that says the same already keeps its character, such as ``X`` or ``~``.
    """
    changed = bytearray(data)
    for task in tasks:
        mark = marks.get(task.task_id, task.mark)
        if mark != task.mark:
            changed[task.offset] = ord(mark)
    return bytes(changed)
