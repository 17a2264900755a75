"""``requirements.md``: numbered acceptance criteria under numbered requirements."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from necrocode.agent_runner.kiro_spec.lines import Line, lines_of, normal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
_NUMBERED_HEADING = re.compile(r"(?:requirements?|要件|要求)?\s*([0-9]+(?:\.[0-9]+)*)(?![0-9a-z])", re.IGNORECASE)
_CRITERIA_HEADING = re.compile(r"acceptance|受け?入れ?", re.IGNORECASE)
_ITEM = re.compile(
    r"(?:[-*+]\s+)?(?:\*\*|__)?([0-9０-９]+(?:[.．][0-9０-９]+)*)"
    r"(?:[.):]?(?:\*\*|__)?\s+|[．）：、]\s*)(\S.*)"  # "1. text", "1) text"; after "１．" no space is usual
)


class Criteria:
    """The acceptance criteria of a spec, by number: ``2.1`` is the first one of requirement 2."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self._of_requirement: dict[str, list[str]] = defaultdict(list)
        for number in texts:
            self._of_requirement[number.rpartition(".")[0]].append(number)

    def named(self, references: Iterable[str]) -> tuple[str, ...]:
        """Those that are named, each with its number; the number of a requirement names all of its own."""
        numbers: dict[str, None] = {}
        for reference in references:
            own = [reference] if reference in self.texts else self._of_requirement.get(reference, [])
            numbers.update(dict.fromkeys(own))
        return tuple(f"{number} {self.texts[number]}" for number in numbers)


def read_criteria(data: bytes, *, file: str = "requirements.md") -> Criteria:
    """The criteria in the file; ``TaskContextValidationError`` when it is not UTF-8 text."""
    reader = _Reader()
    for line in lines_of(data, file):
        reader.take(line)
    return Criteria({number: text for own in reader.found.values() for number, text in own.items()})


class _Reader:
    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}
        """Criteria by requirement and number."""
        self._requirement: str | None = None
        self._level = 0
        self._item_indent: int | None = None
        self._number: str | None = None
        """Of the criterion that the next indented line belongs to."""

    def take(self, line: Line) -> None:
        heading = None if line.is_opaque else _HEADING.fullmatch(line.content)
        if heading is not None:
            self._begin(level=len(heading[1]), title=normal(heading[2]))
        elif self._requirement is not None and line.content:
            self._take_text(line, self._requirement)

    def _begin(self, *, level: int, title: str) -> None:
        numbered = _NUMBERED_HEADING.match(title)
        self._number = self._item_indent = None
        if numbered is not None:
            self._requirement, self._level = numbered[1], level
            self.found.setdefault(numbered[1], {})
        elif level <= self._level:
            self._requirement = None
        elif self._requirement is not None and _CRITERIA_HEADING.search(title):
            self.found[self._requirement] = {}  # a numbered list before this heading was something else

    def _take_text(self, line: Line, requirement: str) -> None:
        found = self.found[requirement]
        item = None if line.is_opaque else _ITEM.fullmatch(line.content)
        if item is not None and (self._item_indent is None or line.indent <= self._item_indent):
            self._item_indent = line.indent
            number = normal(item[1])
            self._number = number if number.startswith(f"{requirement}.") else f"{requirement}.{number}"
            found[self._number] = item[2]
        elif self._number is not None and line.indent > (self._item_indent or 0):
            found[self._number] += f"\n{line.content}"
        else:
            self._number = None
