"""How the budget is spent: on the parts of the best files that are nearest to the task."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.generation.chunks import Chunk, cut_up
from necrocode.agent_runner.generation.pieces import Piece, estimate_tokens, piece_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from necrocode.agent_runner.generation.candidates import Candidate, Candidates
    from necrocode.agent_runner.generation.outline import Symbol
    from necrocode.agent_runner.generation.ranking import Weights

# Found on real issues whose fix is known (benchmarks/context_recall.py); each may be halved or doubled without harm.
_K1, _B = 1.2, 0.7
_TYPICAL_CHUNK_TOKENS = 200
_DEFINED_NAME, _NAME_WORD, _HOLDER_NAME, _HOLDER_WORD = 3.0, 1.0, 0.5, 0.5
_BEGINNING = 0.1
_PLACE = 1.0
_RANK = 12
_RARE_NAME = 0.5
"""What a part with a name of the task that few files have is worth at the least, of the score of the best file."""
_FULL_HOLDERS = 4
"""A word counts in full up to so many parts of a file; in more of them, as much as in these, and each has its share."""
_COMMON, _NOISE = 20, 0.03
"""A part that has only words which more parts of its file have than this is left out, be there room or not, where it is
worth less than this share of the best one."""
_SMALL_SHARE = 0.02
"""A file next to the best ones is shown whole if it costs no more of the budget than this, whatever its words."""
_WHOLE_FROM = 0.6
"""From this share of a file on, the rest of it is shown too, where it fits."""
_LONGEST_HEAD_LINES = 12
_MOST_REASONS = 3
_LEAST_PART_TOKENS = 40
"""With less than this left, no further part is looked for."""
_HEADING_TOKENS = 16
"""What the line above the excerpts of a file costs, besides its path."""


class Part(NamedTuple):
    """A chunk of a file, with what it is worth."""

    worth: float
    path: str
    chunk: Chunk
    tokens: int
    """What its own lines cost."""
    is_common: bool = False
    """Whether it has no word of the task but those that many parts of its file have."""


@dataclass
class ShownFile:
    """A file that is being shown, more and more of it."""

    candidate: Candidate
    lines: list[str]
    """With their ends."""
    symbols: Sequence[Symbol]
    shown: set[int] = field(default_factory=set)
    definitions: list[tuple[int, str]] = field(default_factory=list)
    """(first line, name) of what was chosen of it, the best first."""
    worth: float = 0.0

    @property
    def text(self) -> str:
        """The whole file."""
        return "".join(self.lines)

    def cost_of(self, wanted: set[int]) -> int:
        """About how many tokens it costs, at the most, to show these lines too."""
        shown, new = self.shown, wanted - self.shown
        text = "".join(self.lines[number - 1] for number in new)
        begun = sum(number - 1 not in shown and number - 1 not in new for number in new)
        joined = sum(number + 1 in shown for number in new)  # a run that began there goes on from these lines
        first = 0 if shown else _HEADING_TOKENS + estimate_tokens(self.candidate.path)
        return first + estimate_tokens(text) + (begun - joined) * (1 + piece_tokens(self.candidate.path, ""))

    def is_whole(self) -> bool:
        """Whether every line is shown."""
        return len(self.shown) == len(self.lines)

    def pieces(self) -> list[Piece]:
        """What is shown of it: the whole, or each run of lines."""
        path, count, worth = self.candidate.path, len(self.lines), round(self.worth, 3)
        is_meant = self.candidate.is_meant
        if self.is_whole():
            why = self.candidate.why_lines(1, count)
            return [Piece(path, self.text, why, "whole", 1 if count else 0, count, count, worth, is_meant)]
        return [
            Piece(path, self._lines(start, end), self._why(start, end), "excerpt", start, end, count, worth, is_meant)
            for start, end in _runs(self.shown)
        ]

    def _lines(self, start: int, end: int) -> str:
        return "".join(self.lines[start - 1 : end])

    def _why(self, start: int, end: int) -> str:
        """Why these very lines are shown."""
        why = self.candidate.why_lines(start, end)
        names = dict.fromkeys(name for line, name in self.definitions if start <= line <= end)
        return f"{why}: {', '.join([*names][:_MOST_REASONS])}" if names else why


def lines_of(text: str) -> list[str]:
    """The lines of a text with their ends; only a newline ends one, as in git and in editors."""
    lines = text.split("\n")
    return [*(f"{line}\n" for line in lines[:-1]), *([lines[-1]] if lines[-1] else [])]


def parts_of(file: ShownFile, hits: Sequence[tuple[int, bytes]], known: Candidates, rank: int) -> list[Part]:
    """The chunks of a file, each with its worth: by its own words, by its names, and by its file's score."""
    chunks = cut_up(file.lines, file.symbols)
    starts = [chunk.start for chunk in chunks]
    counts: list[Counter[bytes]] = [Counter() for _ in chunks]
    for line, key in hits:
        index = bisect_right(starts, line) - 1
        if index >= 0 and line <= chunks[index].end:
            counts[index][key] += 1
    holders = Counter(key for count in counts for key in count)
    shares = {key: min(1.0, _FULL_HOLDERS / number) for key, number in holders.items()}
    standing = file.candidate.score / known.best_score * _RANK / (_RANK + rank)
    found = []
    for chunk, count in zip(chunks, counts, strict=True):
        tokens = estimate_tokens("".join(file.lines[chunk.start - 1 : chunk.end]))
        worth = _worth(chunk, tokens, count, known.weights, shares)
        worth += _beginning(chunk, known.best_score) + _place(chunk, file.candidate.lines, known.best_score)
        least = 0.0 if known.rare_names.isdisjoint(count) else _RARE_NAME * known.best_score
        is_common = bool(count) and all(holders[key] > _COMMON for key in count)
        if worth > 0:
            found.append(Part(max(standing * worth, least), file.candidate.path, chunk, tokens, is_common))
    return found


def _worth(chunk: Chunk, tokens: int, counts: Counter[bytes], weights: Weights, shares: Mapping[bytes, float]) -> float:
    """BM25 of a part, and what its names are worth; ``shares``: what part of its worth each word has in this file."""
    norm = _K1 * (1 - _B + _B * tokens / _TYPICAL_CHUNK_TOKENS)
    worth = sum(
        shares[key] * weights.of_key.get(key, 0.0) * count * (_K1 + 1) / (count + norm) for key, count in counts.items()
    )
    if chunk.name:
        if weights.is_named(chunk.name):
            worth += _DEFINED_NAME * weights.value(chunk.name)
        worth += _NAME_WORD * weights.words_score(chunk.name, shares)
    for holder in chunk.holders:
        if weights.is_named(holder):
            worth += _HOLDER_NAME * weights.value(holder)
        worth += _HOLDER_WORD * weights.words_score(holder)
    return worth


def _beginning(chunk: Chunk, best_score: float) -> float:
    """Imports, mostly: what a change to a file often needs to see, and to touch."""
    return _BEGINNING * best_score if chunk.start == 1 else 0.0


def _place(chunk: Chunk, lines: Sequence[int], best_score: float) -> float:
    return _PLACE * best_score if any(chunk.start <= line <= chunk.end for line in lines) else 0.0


def spend(files: dict[str, ShownFile], parts: Sequence[Part], budget_tokens: int) -> int:
    """Show the parts that are worth the most, each with the heads of what it is in; the tokens that are left."""
    left = budget_tokens
    least = _NOISE * max((part.worth for part in parts if not files[part.path].candidate.is_named), default=0.0)
    for part in sorted(parts, key=lambda part: (-part.worth, part.path, part.chunk.start)):
        if left < _LEAST_PART_TOKENS:
            break
        if part.is_common and part.worth < least and not _is_wanted(part, files[part.path].candidate):
            continue
        file = files[part.path]
        if part.tokens > left and not file.shown.issuperset((part.chunk.start, part.chunk.end)):
            continue
        wanted = _lines_with_heads(part.chunk)
        cost = file.cost_of(wanted)
        if cost > left:
            continue
        left -= cost
        file.shown |= wanted
        file.worth = max(file.worth, part.worth)
        if part.chunk.name:
            file.definitions.append((part.chunk.start, part.chunk.name))
        left -= _rounded_up(file, left)
    return left


def _is_wanted(part: Part, candidate: Candidate) -> bool:
    """Whether a part is shown whatever it is worth: all of what the task lists, the head of what is pointed at."""
    return candidate.is_related or (candidate.is_pointed_at and part.chunk.start == 1)


def show_small_neighbours(files: Iterable[ShownFile], left: int, budget_tokens: int) -> int:
    """Show the small files that more than their words speaks for; the tokens that are left."""
    for file in files:
        if file.candidate.is_pointed_at and not file.shown:
            everything = set(range(1, len(file.lines) + 1))
            cost = file.cost_of(everything)
            if cost <= min(left, _SMALL_SHARE * budget_tokens):
                file.shown = everything
                left -= cost
    return left


def _rounded_up(file: ShownFile, left: int) -> int:
    """What it cost to show the rest of a file of which most is shown; 0 where it is not."""
    if file.is_whole() or len(file.shown) < _WHOLE_FROM * len(file.lines):
        return 0
    everything = set(range(1, len(file.lines) + 1))
    cost = file.cost_of(everything)
    if cost > left:
        return 0
    file.shown = everything
    return cost


def _lines_with_heads(chunk: Chunk) -> set[int]:
    wanted = set(range(chunk.start, chunk.end + 1))
    for start, end in chunk.heads:
        wanted.update(range(start, min(end, start + _LONGEST_HEAD_LINES - 1) + 1))
    return wanted


def _runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The runs of neighbouring numbers, in order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
