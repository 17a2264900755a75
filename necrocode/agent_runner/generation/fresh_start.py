"""A file without the insides of the functions that failing tests name, for a model that is to write them anew.

A small model that has the wrong code before it repeats it, and mends it less often than it writes the same function
from its name and description alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.generation.file_lines import indent_of
from necrocode.agent_runner.generation.grammars import ending_of
from necrocode.agent_runner.generation.outline import lines_inside, outline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.generation.outline import Symbol

MOST_FUNCTIONS = 3
"""Where the tests name more, the fault is not known well enough to write so much anew."""
_LEAST_LINES = 2
_LEFT_OUT = "... omitted: it was wrong"
_WITH_NUMBER_SIGN = {"py", "pyi", "rb", "sh", "bash"}
_QUOTES = re.compile(r"\s*[rRuU]{0,2}(\"\"\"|''')")
_CLOSER = re.compile(r"\s*(?:[\]})]+[;,]?|end)\s*\Z")
_IS_CALLABLE = re.compile(r"[()]|^\s*def\b|=>")
_WORD = re.compile(r"\w+")
_MARKED = re.compile(r"^ *>.*$", re.MULTILINE)
"""The line that a test failed on, as pytest and jest show it."""
# A task that is to mend what the code does, as against one that is to make it do more.
_IS_FAULT = re.compile(
    r"(?i)\b(?:fix|mend|repair|correct|debug|bugs?\b|defect|fault|wrong|incorrect|broken|fail|crash|regress)"
    r"|修正|修復|直す|直し|不具合|バグ|誤り|間違|失敗|壊れ|異常"
)
# What tests say when code is missing, not wrong.
_IS_MISSING = re.compile(
    r"(?i)ImportError|ModuleNotFoundError|NotImplemented|cannot find (?:module|name)|is not (?:a function|defined)"
    r"|(?<!'NoneType' object) has no attribute|undefined:|unresolved import|cannot find symbol|unexpected keyword"
)


class Hollowed(NamedTuple):
    """A file's text with functions that have no inside, and their names."""

    text: str
    names: tuple[str, ...]


def is_of_wrong_code(asked: str, failing: str) -> bool:
    """Whether a task is to mend code that is wrong, by its words and by what the tests say before the change."""
    return bool(failing) and _IS_FAULT.search(asked) is not None and _IS_MISSING.search(failing) is None


def without_blamed(path: str, text: str, failing: str) -> Hollowed | None:
    """The file without the insides of the functions that ``failing``, what tests say, is about; docstrings stay.

    These are the functions in its tracebacks; else those named on the lines that failed; else those named anywhere;
    else the file's only one. None where that leaves nothing out, or too much.
    """
    lines = text.split("\n")
    functions = [
        (symbol, inside) for symbol in _functions(path, text, lines) if len(inside := _code_of(path, symbol, lines)) > 0
    ]
    numbers = {int(number) for number in re.findall(rf"{re.escape(path)}(?::|\", line )(\d{{1,6}})", failing)}
    marked, said = (set(_WORD.findall(part)) for part in ("\n".join(_MARKED.findall(failing)), failing))
    blamed = (
        [one for one in functions if not numbers.isdisjoint(range(one[0].start, one[0].end + 1))]
        or [one for one in functions if one[0].name in marked]
        or [one for one in functions if one[0].name in said]
        or functions[: len(functions) == 1]
    )
    if not 0 < len(blamed) <= MOST_FUNCTIONS:
        return None
    for _, inside in reversed(blamed):
        mark = "#" if ending_of(path) in _WITH_NUMBER_SIGN else "//"
        first = next(line for line in (lines[number - 1] for number in inside) if line.strip())
        lines[inside.start - 1 : inside.stop - 1] = [f"{indent_of(first)}{mark} {_LEFT_OUT}"]
    return Hollowed("\n".join(lines), tuple(symbol.name for symbol, _ in blamed))


def _functions(path: str, text: str, lines: Sequence[str]) -> Iterator[Symbol]:
    for symbol in outline(path, text.encode(errors="replace")):
        head = lines[symbol.start - 1 : lines_inside(path, symbol).start - 1]
        if not symbol.holds_others and any(map(_IS_CALLABLE.search, head)):
            yield symbol


def _code_of(path: str, symbol: Symbol, lines: Sequence[str]) -> range:
    """The lines that say what a function does; none where that is hardly anything, as in a stub."""
    inside = lines_inside(path, symbol)
    start, stop = inside.start, min(inside.stop, len(lines) + 1)
    if stop > start and _CLOSER.match(lines[stop - 2]):
        stop -= 1
    while start < stop and not lines[start - 1].strip():
        start += 1
    if start < stop and (quotes := _QUOTES.match(lines[start - 1])):
        is_open = lines[start - 1].count(quotes[1]) == 1
        start += 1
        while start < stop and is_open:
            is_open = quotes[1] not in lines[start - 1]
            start += 1
    code = range(start, stop)
    return code if sum(bool(lines[number - 1].strip()) for number in code) >= _LEAST_LINES else range(0)
