"""What is told of edits that were refused: one line for people, and what a model needs to send better ones."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.generation.file_lines import without_trailing_blanks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.file_lines import FileLines
    from necrocode.agent_runner.models import TextEdit

MOST_EXPLAINED = 5
"""How many refused edits are explained to the model; of the others it hears how many there are."""
_MOST_QUOTED_LINES = 14
_LONGEST_QUOTED_LINE = 200
_LONGEST_SUMMARY = 80
_WORD = re.compile(r"\w+")
_REASONS = {
    "missing": "its search text is not in the file",
    "ambiguous": "its search text is in the file more than once",
    "cut": "its search text is in the file only as a part of longer words, numbers or characters",
    "unanchored": "its search text is not in the file under its @@ line",
    "not at the end": "its search text is not at the end of the file",
    "nowhere": "it has no search text that would say where to put its lines",
    "signed": "its new lines begin with +, as in a diff, and the file has no such lines",
    "overlapping": "it changes lines that another edit of this answer changes too",
}


@dataclass(frozen=True)
class Refusal:
    """One edit that was refused."""

    number: int
    """Which of the file's edits it is, from 0."""
    edit: TextEdit
    reason: str
    lines: tuple[int, ...]
    """The numbers, from 1, of the lines where it might belong, where they are known."""
    file: FileLines

    @property
    def summary(self) -> str:
        """What is wrong, in a few words."""
        places = f" (lines {', '.join(map(str, self.lines))})" if self.lines else ""
        return f"{_REASONS[self.reason]}{places}"

    @property
    def is_there_already(self) -> bool:
        """Whether the file has what the edit would write, and not what it would replace."""
        new = self.edit.replace.strip("\r\n")
        self.file.effort.spend(len(self.file.text))
        text, new = (f"\n{self.file.text}\n", f"\n{new}\n") if self.edit.whole_lines else (self.file.text, new)
        return self.reason == "missing" and bool(new.strip()) and new in text

    def explained(self) -> str:
        """What is wrong, for the model, with the lines of the file that it needs to see."""
        parts = [f"Edit {self.number + 1} was refused: {self.summary}. It began: {_first_line(self.edit)}"]
        if self.is_there_already:
            parts.append("The file has the replacement already: leave this edit out if nothing else is missing.")
        elif self.reason in {"missing", "unanchored", "not at the end"}:
            parts.append("The nearest lines of the file, with their numbers:\n" + self._nearest())
            parts.append("Copy the search text from the file, line by line.")
        elif self.reason == "cut":
            parts.append("Search for whole lines of the file.")
        elif self.reason == "ambiguous":
            parts.append("Add lines before or after it, so that the search text is in the file just once.")
        elif self.reason == "signed":
            parts.append("Write the lines as they stand in the file, without + and - in front.")
        elif self.reason == "overlapping":
            parts.append("Make one edit of the two.")
        else:
            parts.append("Begin with a line of the file that comes just before them.")
        return "\n".join(parts)

    def _nearest(self) -> str:
        """The lines of the file that share the most words with the search, the rare ones counting more."""
        bodies = self.file.bodies
        wanted = set(_WORD.findall(self.edit.search or self.edit.replace))
        self.file.effort.spend(len(self.file.text) * 2)
        shared = [wanted.intersection(_WORD.findall(body)) for body in bodies]
        holders = Counter(word for words in shared for word in words)
        sums = [0.0, *accumulate(sum(1 / holders[word] for word in words) for words in shared)]
        size = max(1, min(len(bodies), len(self.edit.search.splitlines())))
        start = max(range(max(1, len(bodies) - size + 1)), key=lambda at: sums[min(len(bodies), at + size)] - sums[at])
        return quoted_lines(bodies, start, min(size + 2, _MOST_QUOTED_LINES))


def quoted_lines(bodies: Sequence[str], start: int, count: int) -> str:
    """Lines with their numbers, each cut where it is long."""
    start = max(0, start)
    return "\n".join(
        f"{number + 1:>6} | {shown(bodies[number], _LONGEST_QUOTED_LINE)}"
        for number in range(start, min(len(bodies), start + count))
    )


def _first_line(edit: TextEdit) -> str:
    line = next((line for line in (edit.search or edit.replace).split("\n") if line.strip()), "")
    return shown(without_trailing_blanks(line), _LONGEST_SUMMARY)


@dataclass(frozen=True)
class RefusedFile:
    """One file with refused edits."""

    path: str
    count: int
    """How many edits the answer has for it."""
    refusals: tuple[Refusal, ...]

    def explained(self, room: int) -> str:
        """What is wrong with its edits, for the model; at most ``room`` of them in full."""
        refused = {refusal.number for refusal in self.refusals}
        held = [str(number + 1) for number in range(self.count) if number not in refused][:50]
        parts = [f"File {shown(self.path, _LONGEST_QUOTED_LINE)}:"]
        parts += [refusal.explained() for refusal in self.refusals[:room]]
        if len(self.refusals) > room:
            parts.append(f"{len(self.refusals) - room} more edits of this file were refused.")
        if held:
            parts.append(f"These edits of this file would have held: {', '.join(held)}.")
        return "\n".join(parts)


def message_of(files: Sequence[RefusedFile]) -> str:
    """All refusals in one line, for people."""
    first = files[0].refusals[0]
    total = sum(len(file.refusals) for file in files)
    path = shown(files[0].path, _LONGEST_QUOTED_LINE)
    others = f" {total - 1} more of the answer's edits were refused." if total > 1 else ""
    return f"Edit {first.number + 1} of {path} cannot be applied: {first.summary}.{others}"


def feedback_of(files: Sequence[RefusedFile]) -> str:
    """All refusals, for the model."""
    parts: list[str] = []
    room = MOST_EXPLAINED
    for file in files:
        parts.append(file.explained(room))
        room = max(0, room - len(file.refusals))
    parts = parts[: MOST_EXPLAINED * 2]
    parts.append("Nothing of your answer was applied. Send the whole answer again, with every edit, the mended and the"
                 " others.")  # fmt: skip
    return "\n\n".join(parts)
