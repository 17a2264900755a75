"""Words of code and prose, so that a task and a repository meet however each writes them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_RUN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
SHORTEST_WORD = 3
_LONGEST_WORD = 40
_SHORTEST_STEM = 4
# What prose and code have everywhere; a word in half of all files would weigh next to nothing, and cost time.
_STOP_TEXT = """
    about above after again all also always am an and any are as at be because been before being below between
    both but by can cannot could did do does doing don done down during each few for from further get gets
    getting given gives going got had has have having he her here him his how if in into is it its itself just
    know let like ll made make makes making many may me might more most much must my need needs no nor not now
    of off ok on once one only or other our out over own per please same see seems shall she should so some
    something still such than that the their them then there these they thing this those though through to too
    two under until up us use used using very via want was way we well were what when where whether which while
    who why will with within without work works would yes yet you your import self return def true false none
    null version following instead currently expected actual behavior behaviour code example issue bug fix
    problem file line lines python
    """
_STOP_WORDS = frozenset(_STOP_TEXT.split())


def split_words(text: str) -> list[str]:
    """Lower-case words; camelCase and snake_case split; runs of other scripts as pairs of characters."""
    runs = _RUN.findall(text)
    if text.isascii():
        return [run.lower() for run in runs]
    words: list[str] = []
    for run in runs:
        words += [run.lower()] if run.isascii() else pairs_of(run.lower())
    return words


def pairs_of(run: str) -> list[str]:
    """Neighbouring characters of a run of a script that does not part its words, as Japanese does not."""
    return [run[start : start + 2] for start in range(len(run) - 1)] or [run]


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """The word without the commonest English endings: ``fixtures`` and ``fixture``, ``collected`` and ``collect``."""
    if not word.isascii():
        return word
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word[:-1] if word.endswith("e") and len(word) > _SHORTEST_STEM else word


def telling(words: Iterable[str]) -> list[str]:
    """The stems of the words that tell anything, in their order; one may come more than once."""
    return [
        stem(word)
        for word in words
        if word not in _STOP_WORDS
        and len(word) <= _LONGEST_WORD
        and not word.isdecimal()
        and (not word.isascii() or len(word) >= SHORTEST_WORD)
    ]
