"""Hunks: the lines of a diff that start with a blank, ``-`` or ``+``, read as one edit each.

A hunk is read by the counts of its header where they are true. Models cannot count: where the counts are wrong, or
there are none, a hunk goes on for as long as its lines look like a hunk's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.models import TextEdit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_CHANGES = 10_000
"""How many changes, or edits of one file, one answer may hold."""
_NUMBERS = re.compile(r"^@@ *-(\d{1,9})(?:,(\d{1,9}))? +\+(\d{1,9})(?:,(\d{1,9}))? *@@ ?(.*)")
_WORDS = re.compile(r"\w")


@dataclass(frozen=True)
class Header:
    """What stands on a hunk's ``@@`` line."""

    numbers: tuple[int, int, int, int] | None
    """Where and how long the old and the new lines are; None where it does not say."""
    heading: str

    @classmethod
    def of(cls, line: str) -> Header:
        """The header on a line that begins with ``@@``."""
        if found := _NUMBERS.match(line):
            old, new = (int(found[at]) for at in (1, 3))
            counts = [1 if found[at] is None else int(found[at]) for at in (2, 4)]
            return cls((old, counts[0], new, counts[1]), found[5].strip())
        heading = line.strip().strip("@").strip()
        has_words = _WORDS.search(heading) is not None and not re.match(r"-\d", heading)
        return cls(None, heading if has_words else "")


@dataclass
class HunkLines:
    """The two sides of a hunk, growing line by line."""

    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    states_newline: bool = False
    _last: str = " "

    def add(self, sign: str, text: str) -> None:
        r"""One line, its sign taken off; a sign of ``\`` says that the line before it has no end."""
        if sign == "\\":
            self.states_newline = True
            for side in self._sides(self._last):
                if side:
                    side[-1] = side[-1].removesuffix("\r\n" if text.endswith("\r\n") else "\n")
            return
        self._last = sign
        for side in self._sides(sign):
            if side and not side[-1].endswith("\n"):
                side[-1] += "\n"
            side.append(text)

    def _sides(self, sign: str) -> tuple[list[str], ...]:
        return {"-": (self.old,), "+": (self.new,)}.get(sign, (self.old, self.new))

    @property
    def changes_nothing(self) -> bool:
        """Whether both sides are the same."""
        return self.old == self.new

    def edit(self, header: Header, *, line: int | None = None, is_patch: bool = False) -> TextEdit:
        """The hunk as an edit; ``is_patch`` for one of a patch envelope, whose texts always end their lines."""
        search = "".join(self.old)
        is_lost = header.numbers is None and not search.strip() and not header.heading
        return TextEdit(
            search=search,
            replace="".join(self.new),
            line=line,
            heading="" if is_patch else header.heading,
            at_end=is_lost,
            final_newline="added" if is_patch else "stated" if self.states_newline else "kept",
        )


class Hunk(NamedTuple):
    """A hunk that was read, and the line after it."""

    lines: HunkLines
    counts_are_true: bool
    end: int


def read_hunk(
    lines: Sequence[str], start: int, header: Header, ends_at: Callable[[int], bool], *, is_lenient: bool
) -> Hunk:
    """The hunk whose first line (after its header) is at ``start``.

    ``ends_at`` says whether a line begins something else; ``is_lenient`` takes a line without a sign for one that
    stays, as models forget the blank before it.
    """
    counted = None if header.numbers is None else _by_counts(lines, start, header.numbers, ends_at)
    return counted or _by_looks(lines, start, ends_at, is_lenient=is_lenient)


def _by_counts(
    lines: Sequence[str], start: int, numbers: tuple[int, int, int, int], ends_at: Callable[[int], bool]
) -> Hunk | None:
    """The hunk as long as its header says; None when its lines do not add up to that, or more of them follow."""
    _, old_left, _, new_left = numbers
    read = HunkLines()
    position = start
    while position < len(lines) and (old_left > 0 or new_left > 0 or lines[position].startswith("\\")):
        sign, text = signed(lines[position])
        if sign not in " -+\\":
            return None
        read.add(sign, text)
        old_left -= sign in " -"
        new_left -= sign in " +"
        position += 1
    if old_left or new_left:
        return None
    while position < len(lines) and lines[position].startswith("\\"):
        read.add(*signed(lines[position]))
        position += 1
    follows = position < len(lines) and lines[position][0] in " -+"
    if follows and not ends_at(position) and not _is_signature(lines, position):
        return None
    return Hunk(read, counts_are_true=True, end=position)


def _is_signature(lines: Sequence[str], at: int) -> bool:
    """Whether a mail ends here: two dashes alone on a line, then git's version or nothing."""
    after = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return lines[at].rstrip() == "--" and (not after or re.match(r"\d+\.\d", after) is not None)


def _by_looks(lines: Sequence[str], start: int, ends_at: Callable[[int], bool], *, is_lenient: bool) -> Hunk:
    """The hunk up to where something else begins; empty lines at its end are not of it."""
    position = start
    signs: list[tuple[str, str]] = []
    last = 0
    while position < len(lines) and not ends_at(position):
        sign, text = signed(lines[position])
        if sign not in " -+\\":
            if not is_lenient:
                break
            sign, text = " ", lines[position]
        signs.append((sign, text))
        position += 1
        if lines[position - 1].strip("\r\n"):
            last = len(signs)
    read = HunkLines()
    for sign, text in signs[:last]:
        read.add(sign, text)
    return Hunk(read, counts_are_true=False, end=position)


def signed(line: str) -> tuple[str, str]:
    """A hunk line's sign and text; an empty line is one that stays, whose blank was cut off."""
    if not line.strip("\r\n"):
        return " ", line
    return line[0], line[1:] if line.endswith("\n") else f"{line[1:]}\n"


def check_count(count: int) -> None:
    """Refuse more changes or edits than one answer may hold, before they fill the memory."""
    if count > MAX_CHANGES:
        raise MalformedAnswerError(f"The model's answer holds {count} changes or more; at most {MAX_CHANGES} may be.")
