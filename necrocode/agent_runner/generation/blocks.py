"""Fenced blocks in an answer, by CommonMark's rules (section 4.5).

Every line is read once, and where a block ends is looked up and not searched for: an answer is somebody else's text,
and one of many half-open fences would else take minutes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.generation.told_paths import looks_like_path

if TYPE_CHECKING:
    from collections.abc import Sequence

_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})([^\n]*)")


class Block(NamedTuple):
    """One fenced block."""

    language: str
    path: str
    """The file it holds, by its info string or the line before it; empty where neither names one."""
    content: str
    lead: str = ""
    """The last line of text before it, since the last change or block."""


class Fence(NamedTuple):
    """A line that may open or close a block."""

    marks: str
    info: str
    indent: int = 0
    """How many blanks stand before it."""


class Fences:
    """The fences of an answer, by line."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._by_line = {number: fence for number, line in enumerate(lines) if (fence := _fence(line)) is not None}
        self._longest_first = sorted((-len(fence.marks), number) for number, fence in self._by_line.items())
        self._ends: dict[str, _Ends] = {}

    def opening(self, number: int) -> Fence | None:
        """The fence that a line opens a block with."""
        return self._by_line.get(number)

    def closing(self, start: int, opening: Fence) -> int | None:
        """The line at or after ``start`` that closes a block opened before it."""
        marks = opening.marks
        if marks not in self._ends:  # all fences together are looked at no more often than they have marks
            long_enough = self._longest_first[: bisect_left(self._longest_first, (1 - len(marks), -1))]
            numbers = sorted(number for _, number in long_enough if self._by_line[number].marks[0] == marks[0])
            self._ends[marks] = _Ends(numbers, [not self._by_line[number].info for number in numbers])
        return self._ends[marks].after(start)


class _Ends:
    """For each fence that is long enough: where a block ends for which it is the first one inside.

    Models forget that a fence in the file's own text needs a longer fence around it; a fence inside that opens a block
    with an info string (as documentation has it) is therefore taken together with the next bare one. So a block ends
    at a bare fence that comes first, or directly after another bare one; where there is none such, at the first bare.
    """

    def __init__(self, numbers: Sequence[int], is_bare: Sequence[bool]) -> None:
        self._numbers = numbers
        self._ends: list[int | None] = [None] * len(numbers)
        after_pair: int | None = None
        first_bare: int | None = None
        for index in range(len(numbers) - 1, -1, -1):
            if is_bare[index]:
                first_bare = numbers[index]
                after_pair = numbers[index + 1] if is_bare[index + 1 : index + 2] == [True] else after_pair
                self._ends[index] = numbers[index]
            else:
                self._ends[index] = first_bare if after_pair is None else after_pair

    def after(self, start: int) -> int | None:
        """The end of a block whose text begins at line ``start``."""
        index = bisect_left(self._numbers, start)
        return self._ends[index] if index < len(self._ends) else None


def _fence(line: str) -> Fence | None:
    found = _FENCE.match(line)
    if found is None or (found[2][0] == "`" and "`" in found[3]):
        return None
    return Fence(found[2], found[3].strip(" \t\r"), len(found[1]))


def text_of(lines: Sequence[str], opening: Fence) -> str:
    """A block's text, without the blanks that its fence has before it, where every line has them too.

    CommonMark takes off as many as there are. Models also indent a fence and not the text in it: that is kept.
    """
    indent = " " * opening.indent
    if indent and all(line.startswith(indent) or not line.strip() for line in lines):
        return "".join(line.removeprefix(indent) if line.strip() else line.lstrip(" ") for line in lines)
    return "".join(lines)


def path_in_info(info: str) -> tuple[str, str]:
    """(language, path) of an info string: ``python``, ``python src/a.py``, ``python:src/a.py``, ``src/a.py``."""
    language, _, rest = info.partition(" ")
    rest = re.sub(r"^(?:title|file|filename|path)\s*=\s*", "", rest.strip().strip("{}")).strip("\"'")
    if rest:
        return language.casefold(), rest if looks_like_path(rest) else ""
    head, colon, tail = language.partition(":")
    if colon and looks_like_path(tail):
        return head.casefold(), tail
    if "/" in language or re.search(r"\.\w+$", language):
        return "", language
    return language.casefold(), ""
