"""Answers applied to files in memory, by the code that applies them to a commit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from necrocode.agent_runner._git import MODE_FILE, MODE_TREE, FileChange, TreeEntry
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.models import CodeChange
from necrocode.agent_runner.steps.apply import Limits, plan_changes

LIMITS = Limits(max_changed_files=10_000, max_file_bytes=50_000_000, max_total_bytes=100_000_000)


class MemoryObjects:
    """A tree's objects in memory, read as :class:`necrocode.agent_runner._git.ObjectReader` reads git's."""

    def __init__(self, files: Mapping[str, bytes], modes: Mapping[str, str] | None = None) -> None:
        self._blobs: dict[str, bytes] = {}
        self._trees: dict[str, dict[str, TreeEntry]] = {"": {}}
        for path, content in files.items():
            *folders, name = path.split("/")
            tree = ""
            for folder in folders:
                inner = f"{tree}/{folder}"
                self._trees[tree][folder] = TreeEntry(MODE_TREE, inner)
                self._trees.setdefault(inner, {})
                tree = inner
            oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._blobs[oid] = content
            self._trees[tree][name] = TreeEntry((modes or {}).get(path, MODE_FILE), oid)

    def entries(self, tree: str) -> Mapping[str, TreeEntry]:
        """The entries of a folder."""
        return self._trees[tree]

    def blob(self, oid: str) -> bytes:
        """A file's bytes."""
        return self._blobs[oid]


def planned(
    files: Mapping[str, bytes], *changes: CodeChange, already: Mapping[str, FileChange] | None = None
) -> tuple[FileChange, ...]:
    """What changes do to these files."""
    return plan_changes(changes, MemoryObjects(files), "", LIMITS, already=already or {})  # type: ignore[arg-type]


def applied(files: Mapping[str, bytes], answer: str) -> dict[str, bytes]:
    """The files after an answer; raises as reading and applying do."""
    objects = MemoryObjects(files)
    result = dict(files)
    for change in plan_changes(parse_answer(answer).changes, objects, "", LIMITS):  # type: ignore[arg-type]
        if change.removes:
            del result[change.path]
        else:
            result[change.path] = (
                objects.blob(change.oid) if change.content is None and change.oid else change.content or b""
            )
    return result


def encoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Texts as bytes."""
    return {path: text.encode() for path, text in texts.items()}
