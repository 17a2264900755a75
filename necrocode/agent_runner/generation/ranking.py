"""Which files, and which parts of them, a task is most likely about."""

from __future__ import annotations

import re
from math import log
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.tree_search import key_of
from necrocode.agent_runner.generation.words import split_words, stem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from necrocode.agent_runner.generation.clues import Clues
    from necrocode.agent_runner.generation.tree_search import Found

# BM25 (Robertson and Zaragoza 2009): k1 says how soon more of a word stops counting, b how much length counts.
_K1, _B = 1.2, 0.75
NAME_WEIGHT = 2.0
PATH_WEIGHT = 1.5
_LEAST_NAME_VALUE = 3.0
TEST_FACTOR, PROSE_FACTOR, DATA_FACTOR, MADE_FACTOR = 0.5, 0.5, 0.7, 0.1

_TEST = re.compile(
    r"(?i)(?:^|/)(?:tests?|testing|__tests__|spec|specs|testdata|fixtures)/|(?:^|/)(?:test_[^/]*|conftest\.py)$"
    r"|(?:_test|_spec|\.test|\.spec|Tests?)\.\w+$"
)
_PROSE = re.compile(
    r"(?i)\.(?:md|rst|txt|adoc|org|tex)$|(?:^|/)(?:docs?|documentation|changelog|examples?|benchmarks?)/|(?:^|/)(?:changelog|changes|news|history|authors|contributors|license|copying)[^/]*$"
)
_DATA = re.compile(r"(?i)\.(?:json|ya?ml|toml|ini|cfg|csv|tsv|xml|svg|lock|po|pot|html?|ipynb|in)$")
_MADE = re.compile(
    r"(?i)(?:^|/)(?:vendor|vendored|_vendor|third_party|thirdparty|node_modules|bower_components|dist|"
    r"generated|\.yarn|\.idea)/|\.min\.(?:js|css)$|[-.]lock(?:\.json)?$|(?:^|/)(?:package-lock\.json|go\.sum|pnpm-lock\.yaml|"
    r"npm-shrinkwrap\.json)$|(?:_pb2(?:_grpc)?\.pyi?|\.pb\.go|\.generated\.\w+|\.g\.cs|\.designer\.cs|\.map|\.snap)$"
)


def is_made(path: str) -> bool:
    """Whether a file is made by a program or comes from elsewhere: lock files, vendored and generated code."""
    return _MADE.search(path) is not None


def is_test(path: str) -> bool:
    """Whether a file holds tests."""
    return _TEST.search(path) is not None


def kind_factor(path: str, clues: Clues) -> float:
    """How much a file's score counts for the kind of file that it is: a change is mostly one to the code itself."""
    if _MADE.search(path):
        return MADE_FACTOR
    if _PROSE.search(path):
        return 1.0 if clues.is_about_prose else PROSE_FACTOR
    if _TEST.search(path):
        return 1.0 if clues.is_about_tests else TEST_FACTOR
    return DATA_FACTOR if _DATA.search(path) else 1.0


class Weights:
    """What each word of the task is worth in this tree: the rarer, the more (BM25's inverse document frequency)."""

    def __init__(self, clues: Clues, found: Found, sizes: Mapping[str, int]) -> None:
        holders: dict[bytes, int] = {}
        for counts in found.counts.values():
            for key in counts:
                holders[key] = holders.get(key, 0) + 1
        total = max(len(sizes), 1)

        def rarity(key: bytes) -> float:
            count = holders.get(key, 0)
            return log(1 + (total - count + 0.5) / (count + 0.5)) if count else 0.0

        self.of_key: dict[bytes, float] = {}
        for word, weight in clues.words.items():
            self.of_key[key_of(word)] = weight * rarity(key_of(word))
        for name, count in clues.names.items():
            key = key_of(name)
            self.of_key[key] = max(self.of_key.get(key, 0.0), NAME_WEIGHT * min(count, 4) ** 0.5 * rarity(key))
        self._names = {name.lower() for name in clues.names}
        self.average = max(1.0, sum(sizes.get(path, 0) for path in found.blocks) / max(len(found.blocks), 1))

    def file_score(self, path: str, size: int, found: Found) -> float:
        """BM25 of a file's text."""
        counts = found.counts.get(path)
        if not counts:
            return 0.0
        norm = _K1 * (1 - _B + _B * size / self.average)
        of_key = self.of_key
        return sum(of_key.get(key, 0.0) * count * (_K1 + 1) / (count + norm) for key, count in counts.items())

    def path_score(self, path: str, words_score: Callable[[str], float]) -> float:
        """What the words of a path are worth: those of the file's own name fully, those of its folders by half.

        ``words_score`` is :meth:`words_score`, or one that remembers what it said of a folder.
        """
        folder, _, name = path.rpartition("/")
        above = sum(map(words_score, folder.split("/"))) if folder else 0.0
        return PATH_WEIGHT * (self.words_score(name.partition(".")[0]) + 0.5 * above)

    def words_score(self, text: str) -> float:
        """What the words of a name are worth, each once."""
        return sum(self.of_key.get(key_of(word), 0.0) for word in {stem(word) for word in split_words(text)})

    def is_named(self, name: str) -> bool:
        """Whether the task writes this very identifier."""
        return name.lower() in self._names

    def value(self, name: str) -> float:
        """What an identifier that the task writes is worth."""
        return max(self.of_key.get(key_of(name), 0.0), _LEAST_NAME_VALUE)
