"""Answers applied to files: in memory, and to trees of a real repository."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from necrocode.agent_runner._git import Git, ObjectReader, Repository
from necrocode.agent_runner.errors import EditRejectedError
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.edited_bytes import edited_bytes
from necrocode.agent_runner.generation.file_lines import Effort
from necrocode.agent_runner.models import CodeChange
from necrocode.agent_runner.steps.apply import Limits, plan_changes
from tests.support.repositories import git

Files = Mapping[str, bytes]
LIMITS = Limits(max_changed_files=10_000, max_file_bytes=50_000_000, max_total_bytes=100_000_000)


def encoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Texts as bytes."""
    return {path: text.encode() for path, text in texts.items()}


def edited(files: Files, changes: Iterable[CodeChange]) -> dict[str, bytes]:
    """The files after these changes, without the rules on paths and trees; ``EditRejectedError`` for a refused edit."""
    result = dict(files)
    for change in changes:
        if change.operation == "delete":
            del result[change.file_path]
        elif change.content is not None:
            result[change.file_path] = change.content.encode()
        else:
            old = result.pop(change.file_path, b"")
            new, refusals = edited_bytes(
                old, change.edits, in_order=change.in_order, effort=Effort(), path=change.file_path
            )
            if refusals:
                raise EditRejectedError(refusals[0].explained())
            result[change.new_path or change.file_path] = new
    return result


class Trees:
    """Many small trees in one repository."""

    def __init__(self, path: Path, trees: Sequence[Mapping[str, bytes]]) -> None:
        path.mkdir()
        git(path, "init", "--quiet", "--bare")
        stream = b"".join(self._commit(number, files) for number, files in enumerate(trees))
        subprocess.run(["git", "-C", str(path), "fast-import", "--quiet"], input=stream, check=True)
        home = Git(path.with_name(f"{path.name}-home"))
        home.prepare()
        self._repository = Repository(home, path, bare=True)

    @staticmethod
    def _commit(number: int, files: Files) -> bytes:
        head = f"commit refs/heads/t{number}\ncommitter A <a@localhost> 0 +0000\ndata 0\n".encode()
        parts = (
            b"M 100644 inline " + _quoted(path) + b"\ndata %d\n" % len(content) + content + b"\n"
            for path, content in files.items()
        )
        return head + b"".join(parts) + b"\n"

    @contextmanager
    def objects(self) -> Iterator[ObjectReader]:
        """The repository's objects."""
        with self._repository.objects() as objects:
            yield objects


def _quoted(path: str) -> bytes:
    return b'"' + path.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def applied(objects: ObjectReader, number: int, files: Files, answer: str) -> dict[str, bytes]:
    """The files of a tree after an answer, by all rules of apply; raises as reading and applying do."""
    result: dict[str, Any] = dict(files)
    tree = objects.tree_of(f"refs/heads/t{number}")
    for change in plan_changes(parse_answer(answer).changes, objects, tree, LIMITS):
        if change.removes:
            del result[change.path]
        else:
            result[change.path] = objects.blob(change.oid) if change.oid else change.content or b""
    return result
