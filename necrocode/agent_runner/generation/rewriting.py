"""The new text of a place that was found: the file's own lines where the edit leaves them, the edit's where not.

A place may have been found with other blanks, line ends or quotes than the edit has. What the edit does not change
then stays as the file has it, and what it writes takes the file's indentation and line ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.file_lines import BOM, body_of, end_of, indent_of, split_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from necrocode.agent_runner.generation.file_lines import Effort, FileLines
    from necrocode.agent_runner.models import TextEdit

    Reindent = Callable[[str], str]

_MOST_CELLS = 250_000
"""How many pairs of lines are compared to find out which of them an edit keeps."""
_EFFORT_OF_CELL = 800


@dataclass(frozen=True)
class Said:
    """An edit's two texts as lines."""

    search: tuple[str, ...]
    """The bodies of the lines to find."""
    replace: tuple[str, ...]
    """The bodies of the lines to write."""
    effort: Effort
    """What the comparing of the two is counted by."""

    @classmethod
    def of(cls, search: str, replace: str, effort: Effort) -> Said:
        """The lines of two texts."""
        old, new = (tuple(map(body_of, split_lines(text.removeprefix(BOM)))) for text in (search, replace))
        return cls(old, new, effort)

    @cached_property
    def kept(self) -> tuple[tuple[int, int], ...]:
        """Line by line, its number in ``search`` and in ``replace``; -1 where that side does not have it."""
        return tuple(_pairs(self.search, self.replace, self.effort))

    @cached_property
    def staying(self) -> frozenset[int]:
        """The lines of ``search`` that the edit only quotes."""
        return frozenset(old for old, new in self.kept if old >= 0 and new >= 0)

    @property
    def only_removes(self) -> bool:
        """Whether nothing is written that was not there."""
        return all(old >= 0 for old, _ in self.kept)


def _pairs(old: Sequence[str], new: Sequence[str], effort: Effort) -> Iterator[tuple[int, int]]:
    """A longest common subsequence of two runs of lines, from the first to the last line."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        yield start, start
        start += 1
    tail = 0
    while tail < min(len(old), len(new)) - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    olds, news = range(start, len(old) - tail), range(start, len(new) - tail)
    at, by = start, start
    for one, other in (*_middle_pairs(old, new, olds, news, effort), (olds.stop, news.stop)):
        yield from ((number, -1) for number in range(at, one))
        yield from ((-1, number) for number in range(by, other))
        if one < olds.stop:
            yield one, other
        at, by = one + 1, other + 1
    for back in range(tail, 0, -1):
        yield len(old) - back, len(new) - back


def _middle_pairs(
    old: Sequence[str], new: Sequence[str], olds: Sequence[int], news: Sequence[int], effort: Effort
) -> Iterator[tuple[int, int]]:
    """The lines that stay among those in the middle; none where comparing them all would take too long."""
    shared = {old[at] for at in olds}.intersection(new[at] for at in news)
    olds, news = [at for at in olds if old[at] in shared], [at for at in news if new[at] in shared]
    if len(olds) * len(news) > _MOST_CELLS:
        return
    effort.spend(len(olds) * len(news) * _EFFORT_OF_CELL)
    longest = [[0] * (len(news) + 1) for _ in range(len(olds) + 1)]
    for i in range(len(olds) - 1, -1, -1):
        below, row, wanted = longest[i + 1], longest[i], old[olds[i]]
        for j in range(len(news) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if wanted == new[news[j]] else max(below[j], row[j + 1])
    i = j = 0
    while i < len(olds) and j < len(news):
        if old[olds[i]] == new[news[j]]:
            yield olds[i], news[j]
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1


def rewritten(
    file: FileLines,
    said: Said,
    aligned: Sequence[int | None],
    lines: range,
    *,
    edit: TextEdit,
    reindent: Reindent | None,
) -> str:
    """The text that stands in the place of these lines of the file.

    ``aligned`` has the file's line for each line of ``said.search``; None for a blank one that the file does not have.
    """
    out: list[str] = []
    new_lines: list[str] = []
    position = lines.start
    is_removing = False
    for old, new in said.kept:
        if old < 0:
            body = said.replace[new]
            new_lines.append((reindent(body) if reindent else body) + _end_near(file, position, lines.start))
            continue
        at = aligned[old]
        if at is None:
            continue
        between = file.lines[position:at]  # blank lines that only the file has
        if is_removing and new < 0 and not new_lines:
            between = []  # they go with the lines around them
        ends_blank = bool(new_lines) and not is_removing and not new_lines[-1].strip()
        out += [*between, *new_lines] if ends_blank and new_lines[0].strip() else [*new_lines, *between]
        new_lines = []
        if new >= 0:
            out.append(file.lines[at])
        is_removing = new < 0
        position = at + 1
    out += [*new_lines, *file.lines[position : lines.stop]]
    return _with_bom(file, lines, "".join(_with_ends(file, out, lines, edit)), edit)


def is_torn(said: Said, aligned: Sequence[int | None]) -> bool:
    """Whether new lines might stand before or after a blank line that only the file has, and nothing tells which."""
    position: int | None = None
    new_lines: list[str] = []
    is_telling = True
    for old, new in said.kept:
        if old < 0:
            new_lines.append(said.replace[new])
            continue
        at = aligned[old]
        if at is None:
            continue
        has_gap = position is not None and at > position
        if has_gap and new_lines and not is_telling and new_lines[0].strip() and new_lines[-1].strip():
            return True
        is_telling = new < 0 or not said.search[old].strip()  # a line that goes, or a blank one, is their place
        position, new_lines = at + 1, []
    return False


def _with_bom(file: FileLines, lines: range, text: str, edit: TextEdit) -> str:
    """The text with a byte order mark where the file has one, unless the edit is about the mark."""
    if lines.start:
        return text
    has, said, wanted = (one.startswith(BOM) for one in (file.text, edit.search, edit.replace))
    is_stated = said == has and wanted != said
    return (BOM if has != is_stated else "") + text.removeprefix(BOM)


def _end_near(file: FileLines, position: int, start: int) -> str:
    """The end that a new line gets: that of the line before it in the place, else of the next one."""
    for number in (position - 1 if position > start else position, position, position - 1):
        if 0 <= number < len(file.lines) and (end := end_of(file.lines[number])):
            return end
    return file.common_end


def _with_ends(file: FileLines, out: Sequence[str], lines: range, edit: TextEdit) -> Iterable[str]:
    """Each line with an end, but for a last line of the file that shall have none."""
    bodies = [line if end_of(line) else line + file.common_end for line in out]
    wanted = edit.replace.endswith("\n") if edit.final_newline != "kept" else file.ends_in_newline
    if bodies and lines.stop == len(file.lines) and not wanted:
        bodies[-1] = body_of(bodies[-1])
    return bodies


def reindenter(said: Sequence[str], found: Sequence[str], written: Sequence[str], unit: str) -> Reindent | None:
    """What makes ``written`` lines, indented as ``said`` is, indented as ``found`` is; None when that is not one rule.

    The rule: the same depth, counted in each side's own unit (``unit`` is the file's); or the same blanks in front of
    every line.
    """
    pairs = {(indent_of(one), indent_of(other)) for one, other in zip(said, found, strict=True) if other.strip()}
    if all(one == other for one, other in pairs):
        return str
    our_unit = _unit([indent_of(line) for line in (*said, *written) if line.strip()])
    if our_unit and unit and our_unit != unit and all(_is_as_deep(pair, our_unit, unit) for pair in pairs):
        return _Shift("", "", our_unit, unit)
    ours, theirs = _common_start([one for one, _ in pairs]), _common_start([other for _, other in pairs])
    deeper = {(one[len(ours) :], other[len(theirs) :]) for one, other in pairs}
    if all(one == other for one, other in deeper):
        return _Shift(ours, theirs, "", "")
    units = _unit([one for one, _ in deeper]), _unit([other for _, other in deeper])
    if not all(units) or not all(_is_as_deep(pair, *units) for pair in deeper):
        return None
    return _Shift(ours, theirs, *units)


def _is_as_deep(pair: tuple[str, str], our_unit: str, their_unit: str) -> bool:
    (ours, our_over), (theirs, their_over) = (
        divmod(len(indent), len(unit)) for indent, unit in zip(pair, (our_unit, their_unit), strict=True)
    )
    return ours == theirs and not our_over and not their_over


def _common_start(indents: Sequence[str]) -> str:
    """The blanks that all indentations begin with."""
    low, high = min(indents, default=""), max(indents, default="")  # all others sort between these two
    return next((low[:at] for at, blank in enumerate(low) if blank != high[at]), low)


def _unit(indents: Sequence[str]) -> str:
    """One step of an indentation; empty when there is none, or it is not of one kind of blank."""
    size = gcd(*map(len, indents))
    kinds = set("".join(indents))
    return kinds.pop() * size if size and len(kinds) == 1 else ""


@dataclass(frozen=True)
class _Shift:
    """From one indentation to another: what comes first in every line, and one step of each (empty: as it is)."""

    ours: str
    theirs: str
    our_unit: str
    their_unit: str

    def __call__(self, body: str) -> str:
        indent = indent_of(body)
        if indent == body:
            return body if not indent else ""
        if not indent.startswith(self.ours):
            return f"{self._shallower(indent)}{body[len(indent) :]}"
        rest = indent[len(self.ours) :]
        our_unit, their_unit = self._units(rest)
        if our_unit:
            steps, over = divmod(len(rest), len(our_unit))
            rest = their_unit * steps + rest[len(rest) - over :]
        return f"{self.theirs}{rest}{body[len(indent) :]}"

    def _units(self, rest: str) -> tuple[str, str]:
        if self.our_unit or not self.ours or not self.theirs:
            return self.our_unit, self.their_unit
        size, over = divmod(len(self.ours), len(self.theirs))
        if set(self.ours) == set(rest) == {" "} and set(self.theirs) == {"\t"} and size and not over:
            return " " * size, "\t"
        return "", ""

    def _shallower(self, indent: str) -> str:
        """Less deep than every line that was found: as much less of what the file has."""
        less = len(self.ours) - len(indent)
        return self.theirs[: max(0, len(self.theirs) - less)] if less > 0 else indent
