"""``tasks.md``: the tasks as they are written, each with its box, its details and whom it names."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import Literal

from necrocode.agent_runner._names import check_task_id
from necrocode.agent_runner.kiro_spec.lines import BULLET, SPACE, Line, lines_of, normal, problem

Mark = Literal[" ", "x", "-"]

MAX_DEPTH = 20
_MARKS: dict[str, Mark] = {" ": " ", "x": "x", "X": "x", "-": "-", "~": "-"}
_STATUS = {" ": "ready", "x": "done", "-": "running"}

_BOX = re.compile(rf"([{SPACE}]*[-*+][{SPACE}]+\[)(.)\](?=$|[{SPACE}*\\0-9０-９])(.*)")
_NUMBER = re.compile(r"([0-9０-９]+(?:[.．][0-9０-９]+)*)([.．:：)）、]?)(?![!-~])(.*)")
_FIELD = re.compile(
    r"(?P<requirements>requirements?|validates|要件|要求)|(?P<depends>depends(?:\s+on)?|dependenc(?:y|ies)|依存(?:関係|タスク|先)?)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[,、;・\s]+")
_KIND_WORD = re.compile(r"^(?:tasks?|requirements?|タスク|要件|要求)", re.IGNORECASE)
_NOTHING = {"", "and", "none", "n/a", "-", "なし", "無し", "と", "および", "及び"}
_EMPHASIS = "_* \t"
_LONGEST_SHOWN = 60
_TASK_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)*")


@dataclass
class WrittenTask:
    """A task as the file has it."""

    task_id: str
    title: str
    mark: Mark
    """What is in the box: ``x`` done, ``-`` in progress (also written ``~``), else a space."""
    offset: int
    """Of the mark's byte in the file."""
    line: int
    is_optional: bool
    """Written ``- [ ]*``."""
    parent: str | None
    """The task of which this is a part."""
    depth: int
    """0 for a task that is part of no other."""
    requirements: list[str] = field(default_factory=list)
    depends: list[str] | None = None
    """None where the task names no dependencies; empty where it says that it has none."""
    details: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """What the box says: ``ready``, ``running`` or ``done``."""
        return _STATUS[self.mark]

    @property
    def description(self) -> str:
        """The details below the task, without what is a field of its own."""
        return textwrap.dedent("\n".join(self.details)).strip("\n")


def read_tasks(data: bytes, *, file: str = "tasks.md") -> dict[str, WrittenTask]:
    """The tasks by id, in the order of the file.

    A task is a list item with a box and a number; one with a longer number (1.2 of 1), or else one that is indented
    below another, is part of that one. ``TaskContextValidationError`` names file and line for a task without number or
    title, a number used twice, a mark or a field that cannot be read, and for a file that is not UTF-8 text.
    """
    reader = _Reader(file)
    for line in lines_of(data, file):
        reader.take(line)
    return reader.tasks


class _Reader:
    def __init__(self, file: str) -> None:
        self.tasks: dict[str, WrittenTask] = {}
        self._file = file
        self._open: list[tuple[int, WrittenTask]] = []
        """The tasks that an indented line may belong to, with their columns, outermost first."""
        self._last: WrittenTask | None = None
        """The task above, while no heading has come since."""
        self._owner: WrittenTask | None = None
        """Whose detail the line before was."""
        self._is_in_block = False
        """Whether the line before is code or comment."""

    def take(self, line: Line) -> None:
        if line.is_opaque:
            self._take_detail(line)
        else:
            self._take_text(line)
        self._is_in_block = line.is_opaque

    def _take_text(self, line: Line) -> None:
        if (box := _BOX.fullmatch(line.text)) is not None:
            self._take_task(line, box)
        elif line.content.startswith("#"):
            self._open, self._last, self._owner = [], None, None
        elif line.content:
            self._take_detail(line)
        elif self._last is not None:
            self._last.details.append("")
            self._owner = None

    def _take_task(self, line: Line, box: re.Match[str]) -> None:
        rest = box[3].lstrip(SPACE)
        is_optional = rest.startswith(("*", "\\*")) and not rest.startswith("**")
        written = rest.removeprefix("\\").removeprefix("*") if is_optional else rest
        task_id, title = self._numbered(line, box[2], written)
        self._close_down_to(line.indent)
        parent = self._parent(task_id, line)
        task = WrittenTask(
            task_id=task_id,
            title=title,
            mark=_MARKS[box[2]],
            offset=line.offset + len(box[1].encode()),
            line=line.number,
            is_optional=is_optional,
            parent=None if parent is None else parent.task_id,
            depth=0 if parent is None else parent.depth + 1,
        )
        if task.depth > MAX_DEPTH:
            raise problem(self._file, line.number, f"task {task_id} is nested deeper than {MAX_DEPTH} levels")
        self.tasks[task_id] = self._last = self._owner = task
        self._open.append((line.indent, task))

    def _numbered(self, line: Line, mark: str, text: str) -> tuple[str, str]:
        text = text.strip()
        emphasis = next((sign for sign in ("**", "__") if text.startswith(sign)), None)
        found = _NUMBER.fullmatch(text.replace(emphasis, "", 2) if emphasis else text)
        if found is None:
            raise problem(self._file, line.number, f"the task {_shown(text)} has no number; write '- [ ] 1.1 Title'")
        task_id, title = normal(found[1]), found[3].strip()
        try:
            check_task_id(task_id)
        except ValueError as error:
            raise problem(self._file, line.number, f"the number of the task {error}") from None
        if mark not in _MARKS:
            raise problem(self._file, line.number, f"task {task_id}: {mark!r} in the box is none of ' ', x, - and ~")
        if not title:
            raise problem(self._file, line.number, f"task {task_id} has no title")
        if (other := self.tasks.get(task_id)) is not None:
            raise problem(self._file, line.number, f"the number {task_id} is used in line {other.line} already")
        return task_id, title

    def _close_down_to(self, indent: int) -> None:
        while self._open and self._open[-1][0] >= indent:
            self._open.pop()

    def _parent(self, task_id: str, line: Line) -> WrittenTask | None:
        """The task above with the longest number that this one's begins with; else the one it is indented below."""
        parts = task_id.split(".")
        for length in range(len(parts) - 1, 0, -1):
            if (task := self.tasks.get(".".join(parts[:length]))) is not None:
                return task
        return self._open[-1][1] if self._open and line.indent else None

    def _take_detail(self, line: Line) -> None:
        if not line.is_opaque and self._take_field(line):
            return
        is_continuation = self._owner is not None and not BULLET.match(line.content)
        if not (is_continuation or self._is_in_block):
            self._close_down_to(line.indent)
            self._owner = self._open[-1][1] if self._open else None
        if self._owner is not None:
            self._owner.details.append(line.text)

    def _take_field(self, line: Line) -> bool:
        """Whether the line is a field such as ``- _Depends: 1.1_``; it counts wherever it stands below its task."""
        text = BULLET.sub("", line.content, count=1) if BULLET.match(line.content) else line.content
        if self._last is None or not text.startswith(("_", "*")):
            return False
        name, colon, value = normal(text).strip(_EMPHASIS).partition(":")
        kind = _FIELD.fullmatch(name.strip(_EMPHASIS))
        if kind is None or not colon:
            return False
        task = next((task for indent, task in reversed(self._open) if indent < line.indent), self._last)
        words = _words(value)
        if kind["requirements"]:
            task.requirements += words
        else:
            task.depends = [*(task.depends or ()), *(self._task_number(word, line) for word in words)]
        return True

    def _task_number(self, word: str, line: Line) -> str:
        if not _TASK_NUMBER.fullmatch(word):
            raise problem(
                self._file, line.number, f"cannot read the dependency {_shown(word)}; write '_Depends: 1.1, 1.2_'"
            )
        return word


def _words(value: str) -> list[str]:
    """The numbers in a field, without the words around them."""
    bare = (_KIND_WORD.sub("", part.strip(_EMPHASIS), count=1).rstrip(".") for part in _SEPARATOR.split(value))
    return [word for word in bare if word.casefold() not in _NOTHING]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")
