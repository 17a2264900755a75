"""A repository, and what is chosen from it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from necrocode.agent_runner import TaskContext
from necrocode.agent_runner._git import Git, Repository
from necrocode.agent_runner.generation.context import select_context
from necrocode.agent_runner.generation.pieces import Context
from tests.support.repositories import make_repository

Files = dict[str, str | bytes]
FILLER = "".join(f"def filler_{number}(value):\n    return value + {number}\n\n\n" for number in range(120))


def task(description: str = "", **fields: object) -> TaskContext:
    values = {"task_id": "1", "spec_name": "s", "title": "T", "description": description, "repo_url": "/r", **fields}
    return TaskContext(**values)  # type: ignore[arg-type]


class ContextBench:
    """A repository, and choices from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git = Git(folder / "home")
        self.git.prepare()
        self.repository: Repository | None = None
        self._numbers = count()

    def has(self, files: Files) -> Repository:
        self.repository = Repository(self.git, make_repository(self.folder / f"repo{next(self._numbers)}", files))
        return self.repository

    def select_from(self, files: Files, budget: int = 10_000, **fields: Any) -> Context:
        self.has(files)
        return self.select(budget, **fields)

    def select(self, budget: int = 10_000, tree: str = "HEAD", **fields: Any) -> Context:
        assert self.repository is not None
        options = {name: fields.pop(name) for name in ("seconds", "clock") if name in fields}
        with self.repository.objects() as objects:
            oid = objects.tree_of(tree)
            return select_context(task(**fields), self.repository, objects, oid, budget_tokens=budget, **options)


def large(**more: str) -> Files:
    return {**{f"src/other_{number}.py": FILLER for number in range(8)}, **more}


def shown(context: Context) -> list[str]:
    return list(dict.fromkeys(piece.path for piece in context.pieces if piece.path))
