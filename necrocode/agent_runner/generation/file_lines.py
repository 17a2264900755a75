"""A file's text as lines that are found fast, by their exact text or by what is left of it after folding.

Every line is folded and numbered once; a run of lines is then looked for as a text of one character per line, which
takes time in proportion to the file's length, whatever the file and the search hold.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Fold = Callable[[str], str]

BOM = "\ufeff"
MOST_PLACES = 32
"""How many places of one text are looked for; more make it no less ambiguous."""
_MOST_EFFORT = 4_000_000_000
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_OLD_MAC_LINE = re.compile(r"[^\r]*\r|[^\r]+")
# What models and their tokenizers write in the place of a character that is not on a keyboard, and the other way round.
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"
_SINGLE_QUOTES, _DOUBLE_QUOTES = "\u2018\u2019\u201a\u201b\u2032\u02bc", "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_FOLDED = {
    **dict.fromkeys(map(ord, _DASHES), "-"),
    **dict.fromkeys(map(ord, _SINGLE_QUOTES), "'"),
    **dict.fromkeys(map(ord, _DOUBLE_QUOTES), '"'),
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _INVISIBLE), None),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms of ASCII
    0x2026: "...",
}


def plain(body: str) -> str:
    """The line as it is."""
    return body


def without_trailing_blanks(body: str) -> str:
    """The line without blanks at its end."""
    return body.rstrip()


def without_indentation(body: str) -> str:
    """The line without blanks at either end."""
    return body.strip()


def punctuation_folded(body: str) -> str:
    """The line without blanks at either end, its quotes, dashes, spaces and full-width forms as ASCII has them."""
    return body.strip() if body.isascii() else body.translate(_FOLDED).strip()


def split_lines(text: str) -> list[str]:
    r"""The lines of a text with their ends: ``\n`` ends a line, and ``\r`` alone where the text has no other."""
    pattern = _OLD_MAC_LINE if "\r" in text and "\n" not in text else _LINE
    return pattern.findall(text)


def body_of(line: str) -> str:
    """A line without its end."""
    return line[: len(line) - len(end_of(line))]


def end_of(line: str) -> str:
    r"""A line's end: ``\n``, ``\r\n``, ``\r`` (of an old Macintosh), or empty in a last line without one."""
    if line.endswith("\n"):
        return "\r\n" if line.endswith("\r\n") else "\n"
    return "\r" if line.endswith("\r") else ""


def indent_of(body: str) -> str:
    """The blanks at a line's beginning."""
    return body[: len(body) - len(body.lstrip())]


class Effort:
    """How much may be looked through for one answer: a few seconds' worth."""

    def __init__(self, most: int = _MOST_EFFORT) -> None:
        self._left = most

    def spend(self, amount: int) -> None:
        """Count what is looked through; ``ChangeRejectedError`` once it is too much."""
        self._left -= amount
        if self._left < 0:
            raise ChangeRejectedError(
                "The answer's edits take too long to find in their files.",
                hint="Send fewer and longer edits, or the whole file.",
            )


class FileLines:
    """The lines of one text, and where runs of lines are in it."""

    def __init__(self, text: str, effort: Effort) -> None:
        self.text = text
        self.effort = effort
        self._coded: dict[tuple[Fold, bool], tuple[dict[str, str], str]] = {}

    @cached_property
    def lines(self) -> list[str]:
        """The lines with their ends, a byte order mark at the beginning included."""
        self.effort.spend(len(self.text))
        return split_lines(self.text)

    @cached_property
    def bodies(self) -> list[str]:
        """The lines without their ends and without a byte order mark."""
        bodies = list(map(body_of, self.lines))
        if bodies:
            bodies[0] = bodies[0].removeprefix(BOM)
        return bodies

    @cached_property
    def starts(self) -> list[int]:
        """Where in the text each line begins, and after the last one, where the text ends."""
        return [0, *accumulate(map(len, self.lines))]

    @cached_property
    def filled(self) -> list[int]:
        """The numbers of the lines that are not blank."""
        return [number for number, body in enumerate(self.bodies) if body and not body.isspace()]

    @cached_property
    def common_end(self) -> str:
        r"""The line end that most lines have; ``\n`` where there is none."""
        if "\n" not in self.text:
            return "\r" if "\r" in self.text else "\n"
        return "\r\n" if self.text.count("\r\n") * 2 > self.text.count("\n") else "\n"

    @cached_property
    def indent_unit(self) -> str:
        """What the file's lines are mostly indented by, more than the line before them; empty when none is."""
        depths = [indent_of(self.bodies[number]) for number in self.filled]
        steps = Counter(two[len(one) :] for one, two in pairwise(depths) if two != one and two.startswith(one))
        return steps.most_common(1)[0][0] if steps else ""

    @property
    def ends_in_newline(self) -> bool:
        """Whether the last line has an end."""
        return bool(end_of(self.text[-1:]))

    def line_at(self, offset: int) -> int:
        """The number, from 0, of the line that a place in the text is in."""
        self.effort.spend(offset)
        return self.text.count("\n", 0, offset)

    def find(
        self, fold: Fold, wanted: Sequence[str], *, skip_blank: bool = False, most: int = MOST_PLACES
    ) -> list[int]:
        """The lines at which a run of lines begins, each line compared after ``fold``; at most ``most``.

        With ``skip_blank`` neither side's blank lines count, and the numbers are those of :attr:`filled`.
        """
        table, codes = self._codes(fold, skip_blank=skip_blank)
        try:
            needle = "".join(map(table.__getitem__, map(fold, wanted)))
        except KeyError:
            return []
        return list(islice(self.occurrences(codes, needle), most))

    def occurrences(self, text: str, needle: str) -> Iterator[int]:
        """Where ``needle`` is in ``text``, overlapping ones too."""
        at = -1
        while True:
            found = text.find(needle, at + 1)
            self.effort.spend((len(text) if found < 0 else found) - at)
            if found < 0:
                return
            yield (at := found)

    def holders(self, fold: Fold, body: str) -> list[int]:
        """The lines that are this one after ``fold``; at most :data:`MOST_PLACES`."""
        return self.find(fold, [body])

    def _codes(self, fold: Fold, *, skip_blank: bool) -> tuple[dict[str, str], str]:
        key = (fold, skip_blank)
        if key not in self._coded:
            self.effort.spend(len(self.text))
            table: dict[str, str] = {}
            bodies = [self.bodies[number] for number in self.filled] if skip_blank else self.bodies
            if len(bodies) > sys.maxunicode:
                raise ChangeRejectedError(f"A file of {len(bodies)} lines is too long to be edited.")
            codes = [table.setdefault(folded, chr(len(table))) for folded in map(fold, bodies)]
            self._coded[key] = table, "".join(codes)
        return self._coded[key]
