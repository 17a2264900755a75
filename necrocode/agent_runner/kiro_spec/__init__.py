"""Specs as Kiro writes them (``.kiro/specs/{spec}/tasks.md`` and ``requirements.md``), read and their boxes set.

``read_spec`` goes from the files' bytes to a ``TaskSet``; ``marked`` goes back, changing single characters.
"""

from necrocode.agent_runner.kiro_spec.boxes import marked
from necrocode.agent_runner.kiro_spec.spec import KiroSpec, load_spec, read_spec, tasks_file_of
from necrocode.agent_runner.kiro_spec.tasks_file import WrittenTask, read_tasks

__all__ = ["KiroSpec", "WrittenTask", "load_spec", "marked", "read_spec", "read_tasks", "tasks_file_of"]
