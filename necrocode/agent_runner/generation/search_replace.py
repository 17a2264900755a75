"""Search/replace blocks: the lines to find between ``<<<<<<< SEARCH`` and ``=======``, then those to write."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.diff_signs import without_added_signs
from necrocode.agent_runner.models import TextEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_NEWLINE = "\\ No newline at end of file"
_HEAD = re.compile(r"^([ \t]*)(<{5,9})(?: ?(SEARCH|ORIGINAL|HEAD|OLD|BEFORE|CURRENT)\b[ \t>:]*(\S[^\r\n]*)?)?\s*$")
_END = re.compile(r"^([ \t]*)(>{5,9})(?: ?(?:REPLACE|UPDATED|NEW|AFTER|HEAD|MODIFIED|CHANGED)\b[^\r\n]*|[ \t]*)\s*$")
_DIVIDER = re.compile(r"^([ \t]*)(={5,9})\s*$")
_SURE_LABELS = {"SEARCH", "ORIGINAL"}


class SearchReplace(NamedTuple):
    """One block, and the line after it."""

    edit: TextEdit
    path: str
    """The path on the opening marker's own line; mostly empty."""
    end: int


class Blocks:
    """The search/replace blocks among the lines of an answer."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._heads: dict[int, re.Match[str]] = {}
        self._dividers: list[int] = []
        self._was_read = False
        self._ends: dict[int, list[int]] = {}
        for number, line in enumerate(lines):
            if "<<<<<" in line and (found := _HEAD.match(line)):
                self._heads[number] = found
            elif "=====" in line and _DIVIDER.match(line):
                self._dividers.append(number)
            elif ">>>>>" in line and (found := _END.match(line)):
                self._ends.setdefault(len(found[2]), []).append(number)

    def begins(self, at: int) -> bool:
        """Whether a block's opening marker is on this line."""
        return at in self._heads

    def is_whole(self, at: int) -> bool:
        """Whether the opening marker on this line is more than text: it says SEARCH, or a closing one follows."""
        head = self._heads[at]
        ends = self._ends.get(len(head[2]), [])
        return head[3] in _SURE_LABELS or bisect_left(ends, at) < len(ends)

    def is_left_over(self, at: int) -> bool:
        """Whether a line that no block has taken is a closing marker: a block before it was then cut short."""
        if ">>>>>" not in self._lines[at] or not (found := _END.match(self._lines[at])):
            return False
        return self._was_read or "REPLACE" in found[0]

    def read(self, at: int) -> SearchReplace | None:
        """The block that begins here; None for a marker that is only text.

        :class:`MalformedAnswerError` for one that surely is a block and is never closed, or has no one middle.
        """
        head = self._heads[at]
        ends = self._ends.get(len(head[2]), [])
        index = bisect_left(ends, at)
        end = ends[index] if index < len(ends) else None
        dividers = [] if end is None else self._middles(head, at, end)
        if end is None or not dividers:
            if head[3] in _SURE_LABELS:
                raise MalformedAnswerError(
                    f"The search/replace block in line {at + 1} of the model's answer has no line"
                    f" {'=' * len(head[2])} and then {'>' * len(head[2])} REPLACE after it: it looks cut."
                )
            return None
        if len(dividers) > 1:
            raise MalformedAnswerError(
                f"The search/replace block in line {at + 1} of the model's answer has {len(dividers)} lines like"
                f" {'=' * len(head[2])}: write the markers of that block with another number (5 to 9) of < = and >."
            )
        self._was_read = True
        search, replace = self._lines[at + 1 : dividers[0]], self._lines[dividers[0] + 1 : end]
        return SearchReplace(_edit(search, replace), (head[4] or "").strip("`*\"' "), end + 1)

    def _middles(self, head: re.Match[str], start: int, end: int) -> list[int]:
        """The lines between that may be the middle: of the markers' own length where there are any such."""
        between = self._dividers[bisect_left(self._dividers, start) : bisect_left(self._dividers, end)]
        texts = {number: self._lines[number].rstrip() for number in between}
        same = [number for number in between if texts[number] == head[1] + "=" * len(head[2])]
        return same or [number for number in between if texts[number].strip("=") == head[1]] or between


def _edit(search: Sequence[str], replace: Sequence[str]) -> TextEdit:
    states = [bool(side) and side[-1].rstrip() == NO_NEWLINE for side in (search, replace)]
    old, new = (
        "".join(side[:-1]).removesuffix("\n") if stated else "".join(side)
        for side, stated in zip((search, replace), states, strict=True)
    )
    if not old.strip():
        old = ""  # blank lines are no place
        new = without_added_signs(new)
    return TextEdit(search=old, replace=new, final_newline="stated" if any(states) else "kept")
