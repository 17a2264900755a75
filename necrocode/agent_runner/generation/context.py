"""Which parts of the repository the model is shown, within a budget of tokens."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner.models import TaskContext

MAX_SHOWN_FILE_BYTES = 200_000
MAX_LISTED_PATHS = 300
MAX_CANDIDATES = 400
"""How many files, by the words of their paths, are read to be ranked by their text."""
_BINARY_PROBE_BYTES = 8000  # as git does (xdiff-interface.c, FIRST_FEW_BYTES)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


@dataclass(frozen=True)
class Piece:
    """One file that is shown, whole."""

    path: str
    text: str
    why: str

    def renewed(self, text: str) -> Piece:
        """The same piece with another text."""
        return replace(self, text=text)


@dataclass(frozen=True)
class Context:
    """What the model is shown of the repository."""

    paths: tuple[str, ...]
    paths_left_out: int
    pieces: tuple[Piece, ...]
    missing: tuple[str, ...] = ()
    """Files of ``related_files`` that the base commit does not have."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a text costs: 4 characters each for ASCII, 1 each for other scripts (CJK above all)."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 4) + len(text) - ascii_characters


def select_context(
    task: TaskContext,
    sizes: Mapping[str, int],
    read: Callable[[str], bytes],
    *,
    budget_tokens: int,
) -> Context:
    """Choose the files to show: ``related_files`` first, then those the task names, then the nearest by their words.

    ``sizes`` has every file of the base commit; ``read`` gives one's bytes. Deterministic; nothing binary, nothing that
    is not UTF-8, and never more than ``budget_tokens`` of text.
    """

    @cache
    def text_of(path: str) -> str | None:
        return _readable(path, sizes, read)

    near = _by_path_words(task, sizes)
    listed = sorted(near[:MAX_LISTED_PATHS])
    left = budget_tokens - sum(map(estimate_tokens, listed))
    pieces: list[Piece] = []
    for path, why in _candidates(task, near, text_of):
        text = text_of(path)
        cost = estimate_tokens(text) if text is not None else 0
        if text is not None and cost <= left:
            pieces.append(Piece(path, text, why))
            left -= cost
    missing = tuple(path for path in task.related_files if path not in sizes)
    return Context(tuple(listed), len(sizes) - len(listed), tuple(pieces), missing)


def _candidates(task: TaskContext, near: Sequence[str], text_of: Callable[[str], str | None]) -> list[tuple[str, str]]:
    """Paths in the order in which they should be shown, each once, with the reason; ``near`` has all of them."""
    existing = set(near)
    reasons: dict[str, str] = {path: "related_files" for path in task.related_files if path in existing}
    text = _task_text(task)
    for path in sorted(path for path in near if _is_named(path, text)):
        reasons.setdefault(path, "named in the task")
    for path in _by_text_words(task, near[:MAX_CANDIDATES], text_of):
        reasons.setdefault(path, "shares words with the task")
    return list(reasons.items())


def _task_text(task: TaskContext) -> str:
    return "\n".join([task.title, task.description, *task.acceptance_criteria, *task.test_commands])


def _is_named(path: str, text: str) -> bool:
    """Whether the text has the path, or a file name with an ending, as a word of its own."""
    name = path.rsplit("/", 1)[-1]
    if name not in text or ("." not in name and "/" not in path):
        return False
    wanted = re.escape(name) if "." in name else re.escape(path)
    return re.search(rf"(?<![\w-]){wanted}(?![\w-])", text) is not None


def _by_path_words(task: TaskContext, paths: Iterable[str]) -> list[str]:
    """All paths, those that share the most words with the task first."""
    wanted = set(_words(_task_text(task)))

    @cache
    def wanted_words(part: str) -> frozenset[str]:  # a folder's name is in the path of each of its files
        return frozenset(wanted.intersection(_words(part)))

    def order(path: str) -> tuple[int, int, str]:
        parts = path.split("/")
        shared = frozenset[str]().union(*map(wanted_words, parts))
        return -len(shared), len(parts), path

    return sorted(paths, key=order)


def _by_text_words(task: TaskContext, paths: Iterable[str], text_of: Callable[[str], str | None]) -> list[str]:
    """The files by BM25 (Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75) over the words of path and text."""
    documents: dict[str, Counter[str]] = {}
    for path in paths:
        if (text := text_of(path)) is not None:
            documents[path] = Counter(_words(path) * 3 + _words(text))
    if not documents:
        return []
    wanted = set(_words(_task_text(task)))
    average = sum(counts.total() for counts in documents.values()) / len(documents) or 1.0
    rarity = {
        word: log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
        for word in wanted
        if (holders := sum(word in counts for counts in documents.values()))
    }

    def score(path: str) -> float:
        counts = documents[path]
        length = 1.2 * (0.25 + 0.75 * counts.total() / average)
        return sum(weight * counts[word] * 2.2 / (counts[word] + length) for word, weight in rarity.items())

    return sorted(documents, key=lambda path: (-score(path), path))


def _words(text: str) -> list[str]:
    """Lower-case words; camelCase and snake_case split; runs of other scripts as pairs of characters."""
    runs = _WORD.findall(text)
    if text.isascii():
        return [run.lower() for run in runs]
    words: list[str] = []
    for run in runs:
        pairs = range(0 if run.isascii() else len(run) - 1)
        words += [run[start : start + 2].lower() for start in pairs] or [run.lower()]
    return words


def _readable(path: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> str | None:
    """A file's text; None for one that is too large, binary, or not UTF-8."""
    if sizes[path] > MAX_SHOWN_FILE_BYTES:
        return None
    content = read(path)
    if b"\0" in content[:_BINARY_PROBE_BYTES]:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
