"""The files that a task is most likely about, in order, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.links import LinkIndex, subject_of
from necrocode.agent_runner.generation.ranking import Weights, is_test, kind_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner.generation.clues import Clues
    from necrocode.agent_runner.generation.tree_search import Found

MAX_CANDIDATES = 30
"""How many files are looked into."""
MAX_FILES_RANKED_BY_NAME = 20_000
"""In larger trees the names of files count only for those whose text is among the nearest."""
MOST_OF_LARGE_TREE = 3000
_IMPORTED_SHARE, _TESTED_SHARE, _PLACE_SHARE, _MODULE_SHARE = 0.1, 0.3, 0.35, 0.5
_IMPORTERS = 6


@dataclass(frozen=True)
class Candidate:
    """A file that may be shown."""

    path: str
    why: str
    score: float
    is_named: bool = False
    """Whether the task itself points at it."""
    lines: tuple[int, ...] = ()
    """Lines of it that stack traces point at."""


class Candidates:
    """The ranking of a tree's files for a task."""

    def __init__(self, clues: Clues, found: Found, sizes: Mapping[str, int], related: Sequence[str]) -> None:
        self._clues, self._found, self._sizes = clues, found, sizes
        self.weights = Weights(clues, found, sizes)
        self.index = LinkIndex(sizes)
        self._by_path: dict[str, Candidate] = {}
        scores = self._text_scores()
        best = nsmallest(MAX_CANDIDATES, scores, key=lambda path: (-scores[path], path))
        self.best_score = scores[best[0]] if best else 1.0
        for path in best:
            self._raise(path, scores[path], "shares words with the task")
        self._point_at_places()
        self._point_at_modules()
        self._point_at_tested()
        self._point_at_named(related)

    def ranked(self) -> list[Candidate]:
        """All candidates, the task's own files first, then the highest scores."""
        order = sorted(self._by_path.values(), key=lambda one: (not one.is_named, -one.score, one.path))
        named = sum(one.is_named for one in order)
        return order[: max(named, 0) + MAX_CANDIDATES]

    def follow_imports(self, text_of: Callable[[str], str | None]) -> None:
        """Raise what the best candidates import: a change is often made one step away from where it is spoken of."""
        for one in self.ranked()[:_IMPORTERS]:
            text = text_of(one.path)
            for path in self.index.imported_by(one.path, text) if text is not None else ():
                self._add(path, _IMPORTED_SHARE * one.score, f"imported by {one.path}")

    def _text_scores(self) -> dict[str, float]:
        """The files that share words with the task; in a large tree, the best of them by their text alone."""
        weights, found, sizes = self.weights, self._found, self._sizes
        by_text = {path: weights.file_score(path, sizes[path], found) for path in found.blocks if path in sizes}
        if len(sizes) <= MAX_FILES_RANKED_BY_NAME:
            paths: Iterable[str] = sizes
        else:
            paths = nlargest(MOST_OF_LARGE_TREE, by_text, key=lambda path: (by_text[path], path))
        words_score = lru_cache(maxsize=None)(weights.words_score)
        scores: dict[str, float] = {}
        for path in paths:
            score = by_text.get(path, 0.0) + weights.path_score(path, words_score)
            if score > 0:
                scores[path] = score * kind_factor(path, self._clues)
        return scores

    def _point_at_places(self) -> None:
        for place in self._clues.places:
            for path in self.index.named(place.path):
                self._add(path, _PLACE_SHARE * self.best_score, f"line {place.line} is named in the task", place.line)

    def _point_at_modules(self) -> None:
        for dotted in self._clues.dotted:
            for path in self.index.module(dotted):
                self._add(
                    path,
                    _MODULE_SHARE * self.best_score * kind_factor(path, self._clues),
                    f"{dotted} is named in the task",
                )

    def _point_at_tested(self) -> None:
        """Raise the code under the tests that the task speaks of or that share the most words with it."""
        for one in sorted(self._by_path.values(), key=lambda one: (-one.score, one.path)):
            if is_test(one.path) and (subject := subject_of(one.path)):
                for path in self.index.with_stem(subject):
                    if not is_test(path):
                        self._add(path, _TESTED_SHARE * one.score, f"tested by {one.path}")

    def _point_at_named(self, related: Iterable[str]) -> None:
        in_places = {place.path for place in self._clues.places}
        for word in sorted(self._clues.path_like - in_places):
            for path in self.index.named(word):
                self._name(path, "named in the task", 1.0)
        for path in related:
            if path in self._sizes:
                self._name(path, "related_files", 2.0)

    def _name(self, path: str, why: str, share: float) -> None:
        known = self._by_path.get(path)
        score = share * self.best_score + (known.score if known else 0.0)
        lines = known.lines if known else ()
        self._by_path[path] = Candidate(path, why, score, is_named=True, lines=lines)

    def _raise(self, path: str, score: float, why: str) -> None:
        self._by_path[path] = Candidate(path, why, score)

    def _add(self, path: str, score: float, why: str, line: int | None = None) -> None:
        known = self._by_path.get(path)
        if known is None:
            text = self.weights.file_score(path, self._sizes[path], self._found) * kind_factor(path, self._clues)
            known = Candidate(path, why, text)
        lines = known.lines if line is None or line in known.lines else (*known.lines, line)
        why = why if line is not None or score >= known.score else known.why
        self._by_path[path] = replace(known, score=known.score + score, why=why, lines=lines)
