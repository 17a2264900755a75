"""Where the words of a task are in a whole tree: one ``git grep`` over git's objects, at native speed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from necrocode.agent_runner._git import GitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from necrocode.agent_runner._cancellation import Cancellation
    from necrocode.agent_runner._git import Repository

MAX_SEARCH_BYTES = 64_000_000
"""How much output of one search is read. What is found after it is not known of, and the context says so."""
# A word begins after anything but a lower-case letter, or with a capital: ``read_line`` and ``readLine`` have ``line``.
_WORD_START = "(?-i:(?<![a-z])|(?=[A-Z]))"
_NO_PCRE = "Perl-compatible"
_OTHER_SCRIPT = re.compile(r"[^\x00-\x7f]")
_HIT = re.compile(rb"(\d+):([^\n]*)")
_NOT_IN_KEYS = b"0123456789:"


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    blocks: Mapping[str, bytes]
    """By path: ``line:word`` per hit, a hit a line."""
    is_cut: bool = False
    """Whether there was more than the limit on bytes or time allowed."""

    @cached_property
    def counts(self) -> dict[str, Counter[bytes]]:
        """How often each file has each word, by the word's :func:`key_of`."""
        return {
            path: Counter(block.translate(None, _NOT_IN_KEYS).lower().split(b"\n"))
            for path, block in self.blocks.items()
        }

    def hits(self, path: str) -> list[tuple[int, bytes]]:
        """(line, key) of each hit in a file, in order."""
        keys: dict[bytes, bytes] = {}
        found: list[tuple[int, bytes]] = []
        for number, word in _HIT.findall(self.blocks.get(path, b"").lower()):
            key = keys.get(word)
            if key is None:
                key = keys[word] = word.translate(None, _NOT_IN_KEYS)
            found.append((int(number), key))
        return found


def key_of(word: str) -> bytes:
    """How a word is known in what was found: lower case, without digits."""
    return word.lower().encode().translate(None, _NOT_IN_KEYS)


def search(
    repository: Repository,
    tree: str,
    words: Iterable[str],
    *,
    seconds: float,
    cancellation: Cancellation | None = None,
) -> Found:
    """Every place where one of the words begins in the text files of a tree, whatever its case.

    ``seconds``: when they are over, what has been found so far is returned. ``RunCancelledError`` once ``cancellation``
    is requested.
    """
    wanted = sorted({word.lower() for word in words if word})
    if not wanted:
        return Found({})
    try:
        output, is_cut = _grep(repository, tree, ("-P", _perl_pattern(wanted)), seconds, cancellation)
    except GitError as error:
        if _NO_PCRE not in error.output:
            raise
        output, is_cut = _grep(repository, tree, ("-E", _trie(wanted, "(")), seconds, cancellation)
    return Found(_by_path(output, tree, is_cut=is_cut), is_cut)


def _grep(
    repository: Repository, tree: str, pattern: tuple[str, str], seconds: float, cancellation: Cancellation | None
) -> tuple[bytes, bool]:
    kind, text = pattern
    options = ("-I", "-i", "-o", "-n", "--heading", "--full-name", "--no-color", "--no-textconv", kind, "-e", text)
    return repository.first_output(
        "grep", *options, tree, "--", limit_bytes=MAX_SEARCH_BYTES, seconds=seconds, cancellation=cancellation
    )


def _by_path(output: bytes, tree: str, *, is_cut: bool) -> dict[str, bytes]:
    """The hits under each heading; a path that git has to quote (control characters, quotes) is left out."""
    heading = f"{tree}:".encode()
    blocks = (b"\n" + output).split(b"\n" + heading)
    if is_cut:  # the last one is not whole
        blocks.pop()
    found: dict[str, bytes] = {}
    for block in blocks:
        path, _, hits = block.partition(b"\n")
        if path and not path.startswith(b'"'):
            found[path.decode(errors="surrogateescape")] = hits.rstrip(b"\n")
    return found


def _perl_pattern(wanted: Sequence[str]) -> str:
    ascii_words = [word for word in wanted if word.isascii()]
    others = [word for word in wanted if not word.isascii()]
    ways = []
    if ascii_words:
        ways.append(_WORD_START + _trie(ascii_words, "(?:"))
    if others:
        ways.append(_trie(others, "(?:"))
    return "|".join(ways)


def _trie(words: Sequence[str], group: str) -> str:
    """One expression for all the words, in which each character is looked at once; of two, the longer one matches."""
    beginnings: dict[str, list[str]] = {}
    for word in words:
        if word:
            beginnings.setdefault(word[0], []).append(word[1:])
    if not beginnings:
        return ""
    ways = [_escaped(first) + _trie(rest, group) for first, rest in beginnings.items()]
    has_end = "" in words
    if len(ways) == 1 and not has_end:
        return ways[0]
    return f"{group}{'|'.join(ways)}){'?' if has_end else ''}"


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == "_" else re.escape(character)
