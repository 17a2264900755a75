"""Edits applied to a text: each to its one place, or refused, and then nothing is.

Where a text may be meant is :mod:`~necrocode.agent_runner.generation.places`' work. Here it is decided: an edit with
one place has it. Of several, only what the format itself says can choose: the line number of a diff, when one of the
places begins just there; the line that a patch or a diff gives as the place's heading; and the order of a diff's
hunks, when it leaves one place only. The first of several is never taken for being the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.diff_signs import read_without_signs
from necrocode.agent_runner.generation.file_lines import BOM, Effort, FileLines, end_of, indent_of
from necrocode.agent_runner.generation.places import Place, earliest, end_place, latest, line_place, places
from necrocode.agent_runner.generation.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from necrocode.agent_runner.models import TextEdit

_MOST_SCOPES = 32
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Edited:
    """What came of a text's edits."""

    text: str
    """The new text; the old one where an edit was refused."""
    refusals: tuple[Refusal, ...] = ()


def apply_edits(
    text: str, edits: Sequence[TextEdit], *, in_order: bool = False, effort: Effort | None = None
) -> Edited:
    """The text with all edits applied, or why not.

    All are looked for in the text as it was. Where that fails, edits that are not ``in_order`` are applied one after
    the other, each to what those before it have made. Kept of the text, where an edit does not say otherwise: line
    ends, each line's own; the byte order mark; the missing final newline; the way of indenting.
    """
    effort = effort or Effort()
    together = _Together(text, edits, effort)
    edited = together.edited(in_order=in_order)
    if not edited.refusals or in_order or len(edits) == 1:
        return edited
    in_turn = _in_turn(text, edits, effort)
    return edited if in_turn is None else Edited(in_turn)


def _in_turn(text: str, edits: Sequence[TextEdit], effort: Effort) -> str | None:
    for edit in edits:
        edited = _Together(text, [edit], effort).edited(in_order=False)
        if edited.refusals:
            return None
        text = edited.text
        effort.spend(len(text))
    return text


class _Together:
    """Edits that are all looked for in one text."""

    def __init__(self, text: str, edits: Sequence[TextEdit], effort: Effort) -> None:
        self._file = FileLines(text, effort)
        self._edits = edits
        self._refusals: list[Refusal] = []

    def edited(self, *, in_order: bool) -> Edited:
        found = [self._candidates(number, edit, is_diff=in_order) for number, edit in enumerate(self._edits)]
        if in_order and not self._refusals:
            found = _narrowed_by_order(found)
        chosen: list[tuple[Place, int]] = []
        for number, (edit, candidates) in enumerate(zip(self._edits, found, strict=True)):
            if len(candidates) > 1 and not edit.every:
                self._refuse(number, "ambiguous", candidates)
            chosen += ((place, number) for place in candidates)
        if not self._refusals:
            chosen.sort(key=lambda one: (one[0].start, one[0].end, one[1]))
            self._refuse_overlaps(chosen)
        if self._refusals:
            return Edited(self._file.text, tuple(self._refusals))
        text = _written(self._file.text, (place for place, _ in chosen))
        is_open = bool(text) and not end_of(text[-1])
        if is_open and any(edit.final_newline == "added" for edit in self._edits):
            text += self._file.common_end
        return Edited(text)

    def _candidates(self, number: int, edit: TextEdit, *, is_diff: bool) -> list[Place]:
        """The places that the edit may mean, by itself; a refusal is noted where there is none."""
        if not edit.search:
            return self._place_without_search(number, edit)
        found = places(edit, self._file)
        if not is_diff:
            unsigned = read_without_signs(edit, self._file, found)
            if unsigned is None:
                self._refuse(number, "signed", found)
                return []
            found = unsigned
        if not found:
            is_cut = not edit.whole_lines and edit.search in self._file.text
            self._refuse(number, "cut" if is_cut else "missing")
        if found and edit.anchors:
            found = self._anchored(found, edit)
            if not found:
                self._refuse(number, "unanchored")
        if found and edit.at_end:
            found = [place for place in found if not self._file.text[place.end :].strip()]
            if not found:
                self._refuse(number, "not at the end")
        return self._hinted(found, edit) if len(found) > 1 else found

    def _place_without_search(self, number: int, edit: TextEdit) -> list[Place]:
        file = self._file
        if not file.text.removeprefix(BOM):
            return [Place(len(file.text), len(file.text), lambda: edit.replace, is_exact=True)]
        if edit.line == 1 and self._has_some_of(edit.replace):
            self._refuse(number, "nowhere")  # the file's text, written as if it were a new one
            return []
        if edit.line is not None and 1 <= edit.line <= len(file.lines):
            return [line_place(edit, file, edit.line - 1)]
        if (edit.at_end and not edit.anchors) or edit.line == len(file.lines) + 1:
            return [end_place(edit, file)]
        self._refuse(number, "nowhere")
        return []

    def _has_some_of(self, text: str) -> bool:
        """Whether any line of a text, but for marks and blanks alone, is in the file already."""
        self._file.effort.spend(len(self._file.text))
        known = {body.strip() for body in self._file.bodies}
        return any(line.strip() in known and _WORD.search(line) for line in text.splitlines())

    def _anchored(self, found: Sequence[Place], edit: TextEdit) -> list[Place]:
        """The places under the edit's anchors: in the scope of the last one, else anywhere after it."""
        scopes = self._scopes(edit.anchors)
        starts = {place: self._file.line_at(place.start) for place in found}
        inside = [place for place in found if any(starts[place] in scope for scope in scopes)]
        first = min((scope.start for scope in scopes), default=len(self._file.lines))
        return inside or [place for place in found if starts[place] >= first]

    def _scopes(self, anchors: Sequence[str]) -> list[range]:
        """The lines from each occurrence of the anchors on, for as long as they are indented more deeply."""
        scopes = [range(len(self._file.lines))]
        for anchor in anchors:
            inside = [line for line in self._lines_like(anchor) if any(line in scope for scope in scopes)]
            scopes = [self._scope(line) for line in inside[:_MOST_SCOPES]]
        return scopes

    def _lines_like(self, anchor: str) -> list[int]:
        """The lines that are the anchor; else those that begin with it; else those that hold it."""
        wanted = anchor.strip()
        bodies = self._file.bodies
        self._file.effort.spend(len(self._file.text))
        for is_like in (str.__eq__, str.startswith, str.__contains__):
            if wanted and (found := [number for number, body in enumerate(bodies) if is_like(body.strip(), wanted)]):
                return found
        return []

    def _scope(self, line: int) -> range:
        bodies = self._file.bodies
        depth = len(indent_of(bodies[line]))
        for number in range(line + 1, len(bodies)):
            body = bodies[number]
            if body.strip() and len(indent_of(body)) <= depth and body.lstrip()[0] not in "{}()[]":
                self._file.effort.spend(number - line)
                return range(line, number)
        self._file.effort.spend(len(bodies) - line)
        return range(line, len(bodies))

    def _hinted(self, found: list[Place], edit: TextEdit) -> list[Place]:
        """The one of several places that a diff's line number or heading names; all of them when neither does."""
        if edit.line is not None:
            for place in found:
                if place.is_exact and self._file.line_at(place.start) == edit.line - 1:
                    return [place]
        if edit.heading:
            scopes = self._scopes([edit.heading])
            inside = [place for place in found if any(self._file.line_at(place.start) in scope for scope in scopes)]
            return inside or found
        return found

    def _refuse_overlaps(self, chosen: Iterable[tuple[Place, int]]) -> None:
        for (one, number), (other, next_number) in pairwise(chosen):
            if other.start < one.end and number != next_number:
                self._refuse(next_number, "overlapping", [other])

    def _refuse(self, number: int, reason: str, found: Sequence[Place] = ()) -> None:
        lines = tuple(self._file.line_at(place.start) + 1 for place in found)
        self._refusals.append(Refusal(number, self._edits[number], reason, lines, self._file))


def _narrowed_by_order(found: Sequence[list[Place]]) -> list[list[Place]]:
    """For each edit the places that are left when they come one after the other; all, when they do not."""
    first, last = earliest(found), latest(found)
    if first is None or last is None:
        return list(found)
    return [
        [place for place in candidates if low.start <= place.start <= high.start]
        for candidates, low, high in zip(found, first, last, strict=True)
    ]


def _written(text: str, chosen: Iterable[Place]) -> str:
    return "".join(_pieces(text, chosen))


def _pieces(text: str, chosen: Iterable[Place]) -> Iterator[str]:
    position = 0
    for place in chosen:
        yield text[position : place.start]
        yield place.write()
        position = place.end
    yield text[position:]
