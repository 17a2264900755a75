"""Runs of a file's lines that are nearly what an edit searches for: where they are, and how alike."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.file_lines import punctuation_folded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.file_lines import FileLines
    from necrocode.agent_runner.generation.rewriting import Said

_MOST_VOTES_OF_A_LINE = 16
_MOST_WINDOWS = 8
_LONGEST_COMPARED = 400
_TOKEN = re.compile(r"\w+|[^\w\s,;.:'\"`]")


def windows(said: Said, filled: Sequence[int], file: FileLines) -> list[int]:
    """The starts of the runs of lines that share the most with the search, each line at its place."""
    votes: Counter[int] = Counter()
    for number in filled:
        body = said.search[number]
        holders = file.holders(punctuation_folded, body)
        if len(holders) <= _MOST_VOTES_OF_A_LINE:
            votes.update({at - number: len(body) for at in holders})
    last = len(file.lines) - len(said.search)
    return [start for start, _ in votes.most_common(_MOST_WINDOWS * 4) if 0 <= start <= last][:_MOST_WINDOWS]


def likeness(said: Said, file: FileLines, start: int) -> tuple[float, bool]:
    """How alike a run of lines is to the search, from 0 to 1, and whether each line is near enough."""
    total = alike = 0.0
    is_near = True
    staying = said.staying
    for number in range(len(said.search)):
        one, other = punctuation_folded(said.search[number]), punctuation_folded(file.bodies[start + number])
        file.effort.spend(len(one) + len(other))
        is_near = is_near and (one == other or (number in staying and _is_near(one, other)))
        total += len(one)
        alike += len(one) * (1.0 if one == other else _similarity(one, other))
    return (alike / total if total else 0.0), is_near


def _similarity(one: str, other: str) -> float:
    """The share of two lines that is the same: all but punctuation, or what they begin and end with."""
    letters = _letters(one)
    if letters and letters == _letters(other):
        return 2 * len(letters) / (len(letters) + max(len(one), len(other)))
    start = _length_shared(one, other)
    end = _length_shared(one[:start:-1], other[:start:-1])
    return 2 * (start + end) / (len(one) + len(other))


def _length_shared(one: str, other: str) -> int:
    """How many characters two texts both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_near(one: str, other: str) -> bool:
    if max(len(one), len(other)) > _LONGEST_COMPARED:
        return False
    return (tokens := _TOKEN.findall(one)) != [] and tokens == _TOKEN.findall(other)


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text)
