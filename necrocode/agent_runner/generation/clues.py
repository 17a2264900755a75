"""What a task says about where its change belongs: words, names, paths, places in stack traces."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.generation.words import split_words, telling

if TYPE_CHECKING:
    from necrocode.agent_runner.models import TaskContext

MAX_TASK_CHARACTERS = 100_000
"""How much of a task's text is looked at; a pasted log beyond it tells nothing new."""
MAX_WORDS = 64
MAX_NAMES = 64
MAX_PLACES = 100
_TITLE_WEIGHT = 3.0
_NAME_WEIGHT = 2.0
_SHORTEST_NAME = 4

_IDENTIFIER = r"[^\W\d]\w{0,79}"
_NAME = re.compile(
    rf"`(?:\w{{1,40}}\.){{0,6}}({_IDENTIFIER})(?:\([^`\n]{{0,80}})?`"  # in backticks, perhaps called
    rf"|\b({_IDENTIFIER})(?=\()"  # called
    rf"|(?<=\w\.)({_IDENTIFIER})\b"  # an attribute
    r"|\b([^\W\d_]\w{0,40}_\w{1,40})\b"  # snake_case
    r"|\b(_\w{2,60})\b"
    r"|\b([A-Z][a-z0-9]{1,40}[A-Z]\w{0,40}|[a-z]{1,40}[A-Z]\w{0,60})\b"  # CamelCase, camelCase
    r"|(?:^|[^-\w])--([a-z][\w-]{2,40})"  # a command's option
)
_DOTTED = re.compile(rf"(?<![\w./]){_IDENTIFIER}(?:\.{_IDENTIFIER}){{1,8}}")
_ABOUT_TESTS = re.compile(r"(?i)\b(?:unit ?|add(?:ing)? (?:\w+ ){0,3}|missing |flaky )tests?\b|テスト(?:を|の|が)")
_ABOUT_PROSE = re.compile(r"(?i)\b(?:docs?|documentation|readme|changelog|typos?)\b|ドキュメント|文書|説明書|誤字")
_TOKEN = re.compile(r"[^\s\"'`()<>\[\]{},;|*]{2,300}")
_PYTHON_PLACE = re.compile(r'File "(?P<path>[^"\n]{1,300})", line (?P<line>\d{1,7})(?:, in (?P<name>\w{1,80}))?')
_PATH_AND_LINE = re.compile(r"(?P<path>[^:#]+\.\w{1,8})(?::|#L)(?P<line>\d{1,7})(?!\w)")  # pytest, Go, Rust, Node, JVM

_BEFORE_PATH = re.compile(r"^(?:[a-z+]{1,10}://|[A-Za-z]:(?=[/\\]))")  # a URL's scheme, a drive


class Place(NamedTuple):
    """A line that the task points at."""

    path: str
    line: int
    name: str


@dataclass(frozen=True)
class Clues:
    """A task's text, taken apart."""

    title: str
    text: str

    @classmethod
    def of(cls, task: TaskContext) -> Clues:
        """The clues of a task: its title, description, acceptance criteria and test commands."""
        text = "\n".join([task.title, task.description, *task.acceptance_criteria, *task.test_commands])
        return cls(task.title[:MAX_TASK_CHARACTERS], text[:MAX_TASK_CHARACTERS])

    @cached_property
    def words(self) -> dict[str, float]:
        """The stems that tell the most, each with its weight: at most 64, those said often or in the title first."""
        title = set(telling(split_words(self.title)))
        counts = Counter(telling(split_words(self.text)))
        for name, count in self.names.items():
            counts.update(dict.fromkeys(telling(split_words(name)), min(count, 2)))
        weighed = {
            word: min(count, 4) ** 0.5 * (_TITLE_WEIGHT if word in title else 1.0) for word, count in counts.items()
        }
        order = sorted(weighed, key=lambda word: (-weighed[word], word))
        return {word: weighed[word] for word in order[:MAX_WORDS]}

    @cached_property
    def names(self) -> dict[str, int]:
        """Identifiers as the task writes them, with how often: in backticks, called, dotted, snake_case, CamelCase."""
        found = Counter(next(filter(None, match)) for match in _NAME.findall(self.text))
        kept = [name for name in found if len(name) >= _SHORTEST_NAME and telling(split_words(name))]
        order = sorted(kept, key=lambda name: (-found[name], name))
        return {name: found[name] for name in order[:MAX_NAMES]}

    @cached_property
    def is_about_tests(self) -> bool:
        """Whether the title speaks of tests themselves."""
        return _ABOUT_TESTS.search(self.title) is not None

    @cached_property
    def is_about_prose(self) -> bool:
        """Whether the title speaks of documentation."""
        return _ABOUT_PROSE.search(self.title) is not None

    @cached_property
    def dotted(self) -> tuple[str, ...]:
        """Dotted names such as modules have."""
        return tuple(dict.fromkeys(_DOTTED.findall(self.text)))[: 2 * MAX_NAMES]

    @cached_property
    def path_like(self) -> frozenset[str]:
        """Words that may be paths or file names, with forward slashes."""
        found = (_as_path(word) for word in _TOKEN.findall(self.text))
        return frozenset(word for word in found if "." in word or "/" in word)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Lines that stack traces, test reports and links point at, in their order."""
        found = [
            Place(_as_path(match["path"]), int(match["line"]), match["name"] or "")
            for match in _PYTHON_PLACE.finditer(self.text)
        ]
        for word in _TOKEN.findall(self.text):
            match = _PATH_AND_LINE.match(_BEFORE_PATH.sub("", word))
            if match is not None:
                found.append(Place(_as_path(match["path"]), int(match["line"]), ""))
        return tuple(dict.fromkeys(found))[:MAX_PLACES]


def _as_path(word: str) -> str:
    """The word with forward slashes, without a URL's scheme, a line number, or the punctuation of a sentence."""
    word = word.replace("\\", "/").rpartition("://")[2].rstrip(".:!?")
    return word.partition("#")[0].partition(":")[0].removeprefix("./")
