"""Blocks of code that name no file: which file's whole new text one surely is, by what it defines.

Small models, asked to mend their answer, often say what is wrong and then write the file without its name.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.grammars import parser_for
from necrocode.agent_runner.generation.outline import MAX_OUTLINED_BYTES, outline
from necrocode.agent_runner.generation.syntax import newly_broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from necrocode.agent_runner.generation.answer_reader import Reading
    from necrocode.agent_runner.generation.blocks import Block
    from necrocode.agent_runner.generation.outline import Symbol

_WORD = re.compile(r"[\w./-]+")
_LEAST_KEPT = 0.5
"""So much of a file's definitions, in lines, must be in a block that is to be its new text."""


def file_without_name(reading: Reading, files: Mapping[str, str]) -> tuple[str, str] | None:
    """(path, text) of the one block that is the whole new text of one of these files; None for none, or several.

    It must parse as that file, define all that the file defines, keep every line that stands outside of definitions,
    and half of the lines inside of them. ``files`` are those that the model has seen whole. An answer that speaks of
    another source file may be about that one.
    """
    owned = [
        (path, block.content)
        for block in reading.loose_blocks
        for path, old in files.items()
        if _is_whole(path, old, block)
    ]
    return owned[0] if len(owned) == 1 and not _speaks_of_others(reading.prose, files) else None


def _speaks_of_others(prose: Iterable[str], files: Mapping[str, str]) -> bool:
    names = {path.rpartition("/")[2] for path in files}
    words = (word.rstrip(".").rpartition("/")[2] for line in prose for word in _WORD.findall(line))
    return any(parser_for(word) is not None and word not in names for word in words)


def _is_whole(path: str, old: str, block: Block) -> bool:
    before, after = old.encode(), block.content.encode()
    if parser_for(path) is None or len(after) > MAX_OUTLINED_BYTES:
        return False
    defined = outline(path, before)
    if not defined or not _names(defined) <= _names(outline(path, after)):
        return False
    if newly_broken(path, b"", after) is not None:
        return False
    lines = _lines(block.content)
    inside, outside = _inside_and_outside(path, old, defined)
    return not outside - lines and (inside & lines).total() >= _LEAST_KEPT * inside.total()


def _names(symbols: Iterable[Symbol]) -> set[tuple[str, ...]]:
    return {(*symbol.holders, symbol.name) for symbol in symbols}


def _inside_and_outside(path: str, text: str, defined: Iterable[Symbol]) -> tuple[Counter[str], Counter[str]]:
    """The lines of a file that belong to definitions, and those that do not; comments and loose strings are neither."""
    lines = text.split("\n")
    owned = {number for symbol in defined for number in range(symbol.start, symbol.end + 1)}
    remarks = _lines_of_remarks(path, text)
    inside = _lines("\n".join(lines[number - 1] for number in sorted(owned - remarks) if number <= len(lines)))
    others = (number for number in range(1, len(lines) + 1) if number not in owned and number not in remarks)
    return inside, _lines("\n".join(lines[number - 1] for number in others))


def _lines_of_remarks(path: str, text: str) -> set[int]:
    """The lines at the top level of a file that are comments, or texts such as a Python module's docstring."""
    parser = parser_for(path)
    if parser is None:
        return set()
    return {
        number
        for node in parser.parse(text.encode()).root_node.named_children
        if "comment" in node.type
        or (node.type == "expression_statement" and node.named_children and node.named_children[0].type == "string")
        for number in range(node.start_point[0] + 1, node.end_point[0] + 2)
    }


def _lines(text: str) -> Counter[str]:
    """The lines that say something, without the blanks around them."""
    return Counter(stripped for line in text.split("\n") if (stripped := line.strip()))
