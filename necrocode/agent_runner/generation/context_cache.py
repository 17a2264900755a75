"""Contexts that were chosen before, kept by tree and task: a candidate or a second try needs no new search."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.generation.pieces import Context, Piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner.models import TaskContext

_FORM = "4"
"""Goes up when contexts are chosen differently: what an older version has kept is then not found."""
_MOST_IN_MEMORY = 16
_MOST_ON_DISK = 200
_MAX_BYTES = 16_000_000
_PIECE_TYPES = {
    "path": str, "text": str, "why": str, "kind": str, "start_line": int, "end_line": int, "line_count": int,
    "score": float, "is_meant": bool,
}  # fmt: skip
_KINDS = ("whole", "excerpt", "map")


class ContextCache:
    """Contexts in memory and in a folder (None: in memory alone). Thread-safe; several processes may share the folder.

    A context with a secret in it, as ``redact`` knows them, is kept in memory alone.
    A file that is damaged, or cannot be read or written, is as if it were not there: the cache is never what fails.
    """

    def __init__(self, folder: Path | None, redact: Callable[[str], str] = lambda text: text) -> None:
        self._folder = folder
        self._redact = redact
        self._in_memory: OrderedDict[str, Context] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> Context | None:
        """What was kept under a key."""
        with self._lock:
            if key in self._in_memory:
                self._in_memory.move_to_end(key)
                return self._in_memory[key]
        context = self._read(key)
        if context is not None:
            self._remember(key, context)
        return context

    def put(self, key: str, context: Context) -> None:
        """Keep a context; one that was chosen under trouble (with notes) is not kept."""
        if context.notes:
            return
        self._remember(key, context)
        if self._folder is not None:
            with suppress(OSError):
                self._write(self._folder, key, context)

    def _remember(self, key: str, context: Context) -> None:
        with self._lock:
            self._in_memory[key] = context
            self._in_memory.move_to_end(key)
            while len(self._in_memory) > _MOST_IN_MEMORY:
                self._in_memory.popitem(last=False)

    def _read(self, key: str) -> Context | None:
        if self._folder is None:
            return None
        try:
            with (self._folder / f"{key}.json").open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except OSError:
            return None
        digest, _, body = content.partition(b"\n")
        if digest != _digest(body):
            return None
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            return _from_data(json.loads(body))
        return None

    def _write(self, folder: Path, key: str, context: Context) -> None:
        body = json.dumps(asdict(context), ensure_ascii=True).encode()
        texts = (*context.paths, *(piece.text for piece in context.pieces))
        if len(body) >= _MAX_BYTES or any(self._redact(text) != text for text in texts):
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f".{key}.{secrets.token_hex(8)}.tmp"
        try:
            draft.touch(mode=0o600)
            draft.write_bytes(_digest(body) + b"\n" + body)
            draft.replace(folder / f"{key}.json")
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        _drop_oldest(folder)


def context_key(task: TaskContext, tree: str, budget_tokens: int) -> str:
    """What a context depends on, as one name."""
    fields = [_FORM, tree, budget_tokens, task.title, task.description, task.acceptance_criteria, task.test_commands]
    text = json.dumps([*fields, task.related_files], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _from_data(data: Any) -> Context:  # noqa: ANN401  whatever the file holds
    pieces = tuple(_piece(piece) for piece in data["pieces"])
    paths, missing, gaps = (_texts(data[name]) for name in ("paths", "missing", "gaps"))
    left_out, in_map = data["paths_left_out"], data["paths_in_map"]
    if not (isinstance(left_out, int) and isinstance(in_map, int)):
        raise TypeError("number")
    return Context(paths, left_out, pieces, missing, gaps, in_map)


def _piece(data: Any) -> Piece:  # noqa: ANN401
    if set(data) != set(_PIECE_TYPES) or data["kind"] not in _KINDS:
        raise ValueError("piece")
    if not all(isinstance(data[name], (kind, int) if kind is float else kind) for name, kind in _PIECE_TYPES.items()):
        raise TypeError("piece")
    return Piece(**data)


def _texts(values: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not all(isinstance(value, str) for value in values):
        raise TypeError("text")
    return tuple(values)


def _drop_oldest(folder: Path) -> None:
    kept = [entry for entry in os.scandir(folder) if entry.name.endswith((".json", ".tmp"))]
    if len(kept) <= _MOST_ON_DISK:
        return
    kept.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime)
    for entry in kept[: len(kept) - _MOST_ON_DISK]:
        Path(entry.path).unlink(missing_ok=True)
