"""A file, cut into the parts that are shown or left out: functions, class heads, imports, stretches of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.generation.outline import Symbol

LONGEST_CHUNK_LINES = 60
"""A longer function is cut at its blank lines, so that one part of it can be shown."""
_SHORTEST_CHUNK_LINES = 20
_MOST_BLANK_LINES = 2


class Chunk(NamedTuple):
    """Some lines of a file; they count from 1, both ends included."""

    start: int
    end: int
    name: str
    """What is defined here; empty for what is between definitions."""
    holders: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    """The lines that tell what this part is in: those of its class, and of the function that it is a part of."""


def cut_up(lines: Sequence[str], symbols: Sequence[Symbol]) -> list[Chunk]:
    """Chunks that cover every line but blank stretches, in order."""
    found = list(_covered((1, len(lines)), symbols, ()))
    return [part for chunk in found for part in _split(chunk, lines)]


def _covered(lines: tuple[int, int], symbols: Sequence[Symbol], heads: tuple[tuple[int, int], ...]) -> Iterator[Chunk]:
    """The chunks of the lines from the first to the last of ``lines``, in which the symbols are."""
    position, end = lines
    holders = symbols[0].holders if symbols else ()
    for group in _groups(symbols):
        symbol = group[0]
        start, last = max(symbol.start, position), min(symbol.end, end)
        if start > last:
            continue
        if position < start:
            yield Chunk(position, start - 1, "", holders, heads)
        if symbol.holds_others and len(group) > 1:
            yield from _holder((start, last), group, heads)
        else:
            yield Chunk(start, last, symbol.name, symbol.holders, heads)
        position = last + 1
    if position <= end:
        yield Chunk(position, end, "", holders, heads)


def _groups(symbols: Sequence[Symbol]) -> Iterator[Sequence[Symbol]]:
    """Each symbol with those inside of it."""
    first = 0
    while first < len(symbols):
        after = first + 1
        while after < len(symbols) and symbols[after].start <= symbols[first].end:
            after += 1
        yield symbols[first:after]
        first = after


def _holder(lines: tuple[int, int], group: Sequence[Symbol], heads: tuple[tuple[int, int], ...]) -> Iterator[Chunk]:
    symbol, inner = group[0], group[1:]
    start, end = lines
    if inner[0].start > start:
        before = min(inner[0].start - 1, end)
        yield Chunk(start, before, symbol.name, symbol.holders, heads)
        start = before + 1
    head = (symbol.start, max(symbol.start, symbol.body - 1))
    yield from _covered((start, end), inner, (*heads, head))


def _split(chunk: Chunk, lines: Sequence[str]) -> Iterator[Chunk]:
    start, end = chunk.start, chunk.end
    while start <= end and not lines[start - 1].strip():
        start += 1
    if start > end:
        return
    while not lines[end - 1].strip():
        end -= 1
    heads = chunk.heads
    while end - start + 1 > LONGEST_CHUNK_LINES:
        cut = _where_to_cut(lines, start)
        yield chunk._replace(start=start, end=cut, heads=heads)
        if start == chunk.start and chunk.name:
            heads = (*heads, (start, start))
        start = cut + 1
    last = end
    while last < len(lines) and last < end + _MOST_BLANK_LINES and not lines[last].strip():
        last += 1  # what is put after a definition is put there
    yield chunk._replace(start=start, end=last, heads=heads)


def _where_to_cut(lines: Sequence[str], start: int) -> int:
    """The last line of a part that begins at ``start``: before a blank line, the later the better."""
    latest = start + LONGEST_CHUNK_LINES - 1
    for line in range(latest, start + _SHORTEST_CHUNK_LINES, -1):
        if not lines[line - 1].strip():
            return line
    return latest
