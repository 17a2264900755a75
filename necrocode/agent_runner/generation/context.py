"""Which parts of the repository the model is shown, within a budget of tokens."""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, Deadline
from necrocode.agent_runner.generation.candidates import Candidate, Candidates
from necrocode.agent_runner.generation.clues import Clues
from necrocode.agent_runner.generation.excerpts import Part, ShownFile, lines_of, parts_of, show_small_neighbours, spend
from necrocode.agent_runner.generation.outline import outline
from necrocode.agent_runner.generation.pieces import Context, Piece, estimate_tokens, piece_tokens
from necrocode.agent_runner.generation.ranking import foreign_folder, is_made, says_made
from necrocode.agent_runner.generation.related import gaps_in, missing_from
from necrocode.agent_runner.generation.repo_map import draw_map
from necrocode.agent_runner.generation.tree_files import look_into

if TYPE_CHECKING:
    from collections.abc import Iterator

    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner.generation.tree_files import TreeFiles
    from necrocode.agent_runner.generation.tree_search import Found
    from necrocode.agent_runner.models import TaskContext

DEFAULT_SECONDS = 10.0
"""The soft cap: when it is passed, what has been found so far is used, and the context says so."""
_MAP_SHARE = 0.06
_MAP_MOST_TOKENS = 1500
_OUTLINED = 10
"""How many files are taken apart by their grammar; those after them are cut at their blank lines."""
_SHARE_OF_NAMED = 0.25
"""A file that the task itself points at is shown whole up to this share of what is left."""
_LEAST_FILE_TOKENS = 6
_MOST_IN_MAP = 1000
_HEADINGS_TOKENS = 40
"""What the prompt's own lines around the list, the files and the map cost."""


def select_context(
    task: TaskContext,
    repository: Repository,
    objects: ObjectReader,
    tree: str,
    *,
    budget_tokens: int,
    seconds: float = DEFAULT_SECONDS,
    clock: Clock = SYSTEM_CLOCK,
    deadline: Deadline | None = None,
) -> Context:
    """Choose what to show of a tree: everything where it fits, else the files and parts nearest to the task.

    ``related_files`` come first, then what the task names, then the nearest by their words and by what ties them to
    those. Never more than ``budget_tokens`` by :func:`estimate_tokens`. The same input gives the same context, unless
    ``seconds`` are over before the choice is made: then it is made with what is known, and ``notes`` says so.
    """
    soft = Deadline(seconds, clock) if deadline is None else Deadline(seconds, clock, deadline.cancellation)
    clues = Clues.of(task)
    files, found = look_into(
        repository, objects, tree, [*clues.words, *clues.names], seconds=seconds, deadline=deadline
    )
    candidates = Candidates(clues, found, files.sizes, task.related_files)
    choice = _Choice(files, found, candidates, budget_tokens, soft)
    context = choice.everything() or choice.nearest()
    gaps = gaps_in(task.related_files, files, tree, context.pieces, budget_tokens)
    if files.sizes and not any(piece.path for piece in context.pieces):
        gaps.append(f"No file's text is shown to the model: nothing near the task fits into {budget_tokens} tokens.")
    notes = context.notes
    if found.is_cut:
        notes = ("The search of the repository was cut short: files that it did not reach may be missing.", *notes)
    missing = missing_from(task.related_files, files, tree)
    return replace(context, missing=missing, gaps=tuple(gaps), notes=notes)


class _Choice:
    """One choice, being made."""

    def __init__(
        self, files: TreeFiles, found: Found, candidates: Candidates, budget_tokens: int, soft: Deadline
    ) -> None:
        self._files, self._found, self._candidates = files, found, candidates
        self._budget, self._soft = budget_tokens, soft
        self._texts: dict[str, str | None] = {}
        self._is_late = False

    def everything(self) -> Context | None:
        """The whole repository, where it fits, without what is made by programs; None where it does not."""
        sizes = self._files.sizes
        ranked = self._candidates.ranked()
        meant = {one.path for one in ranked if one.is_meant}
        names = {path: path if path in meant else foreign_folder(path) or path for path in sizes}
        listed = sorted(set(names.values()))
        if len(listed) * _LEAST_FILE_TOKENS > self._budget:
            return None
        paths = [path for path in sizes if path in meant or not is_made(path)]
        left = self._budget - sum(map(estimate_tokens, listed)) - _HEADINGS_TOKENS
        order = {one.path: (place, one.why_lines(1)) for place, one in enumerate(ranked)}
        pieces = []
        for path in sorted(paths, key=lambda path: (order.get(path, (len(order), ""))[0], path)):
            text = self._text(path)
            if text is None or (path not in meant and says_made(text)):
                continue
            if sizes[path] > 4 * max(left, 0):  # so many bytes are more tokens than that in any script
                return None
            why = order.get(path, (0, "the repository is small"))[1]
            piece = _whole(path, text, why, is_meant=path in meant)
            left -= piece.tokens
            if left < 0:
                return None
            pieces.append(piece)
        return Context(tuple(listed), sum(path != name for path, name in names.items()), tuple(pieces))

    def nearest(self) -> Context:
        """The files and parts of files that are nearest to the task, and a map of the rest."""
        for_map = min(int(self._budget * _MAP_SHARE), _MAP_MOST_TOKENS)
        left = self._budget - for_map - _HEADINGS_TOKENS
        self._candidates.add_holders()
        self._candidates.follow_imports(self._text_in_time)
        shown = list(self._looked_into())
        files = {file.candidate.path: file for file in shown}
        left = _show_named(shown, left)
        parts: list[Part] = []
        for rank, file in enumerate(shown):
            if not file.is_whole():
                hits = self._found.hits(file.candidate.path)
                parts += parts_of(file, hits, self._candidates, rank)
        left = show_small_neighbours(shown, spend(files, parts, left), self._budget)
        order = sorted(shown, key=lambda file: (not file.candidate.is_named, -file.worth, file.candidate.path))
        pieces = [piece for file in order if file.shown or file.candidate.is_related for piece in file.pieces()]
        drawn, named = draw_map(shown, self._by_nearness(shown), for_map + min(max(left, 0), for_map))
        notes = ("The time for choosing files was over: only some were looked into.",) if self._is_late else ()
        return Context(
            paths=(),
            paths_left_out=len(self._files.sizes) - len(named.union(piece.path for piece in pieces)),
            pieces=(*pieces, *([drawn] if drawn else [])),
            paths_in_map=len(named),
            notes=notes,
        )

    def _looked_into(self) -> Iterator[ShownFile]:
        for place, candidate in enumerate(self._candidates.ranked()):
            if is_made(candidate.path) and not candidate.is_meant:
                continue
            text = self._text_in_time(candidate.path)
            if text is None or (says_made(text) and not candidate.is_meant):
                continue
            symbols = outline(candidate.path, text.encode()) if place < _OUTLINED or candidate.is_named else ()
            yield ShownFile(candidate, lines_of(text), symbols)

    def _by_nearness(self, shown: list[ShownFile]) -> Iterator[str]:
        """What is not shown whole: the files that were looked into, those that share words, the others from the top."""
        yield from (file.candidate.path for file in shown if not file.is_whole())
        known = {file.candidate.path for file in shown}
        scores = self._candidates.scores
        nearest = nsmallest(_MOST_IN_MAP, scores.keys() - known, key=lambda path: (-scores[path], path))
        yield from nearest
        known.update(nearest)
        others = nsmallest(_MOST_IN_MAP, (path for path in self._files.sizes if path not in known), key=_depth)
        yield from (path for path in others if not is_made(path))

    def _text(self, path: str) -> str | None:
        if path not in self._texts:
            self._soft.cancellation.check()
            self._texts[path] = self._files.text(path)
        return self._texts[path]

    def _text_in_time(self, path: str) -> str | None:
        if path not in self._texts and self._soft.remaining_seconds() <= 0:
            self._is_late = True
            return None
        return self._text(path)


def _show_named(shown: list[ShownFile], left: int) -> int:
    """Show the files whole that the task points at, as far as that leaves room for others; the tokens that are left."""
    for file in shown:
        candidate: Candidate = file.candidate
        if not candidate.is_named:
            continue
        cost = piece_tokens(candidate.path, file.text)
        if cost <= (left if candidate.is_related else left * _SHARE_OF_NAMED):
            file.shown = set(range(1, len(file.lines) + 1))
            file.worth = candidate.score
            left -= cost
    return left


def _whole(path: str, text: str, why: str, *, is_meant: bool) -> Piece:
    count = len(lines_of(text))
    return Piece(path, text, why, "whole", min(1, count), count, count, is_meant=is_meant)


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
