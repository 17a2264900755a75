"""A file, cut into the parts that are shown or left out: functions, class heads, imports, stretches of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner.generation.outline import Symbol

LONGEST_CHUNK_LINES = 60
"""A longer function is cut at its blank lines, so that one part of it can be shown."""
_SHORTEST_CHUNK_LINES = 20


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
    found = list(_covered(1, len(lines), symbols, 0, len(symbols), ()))
    return [part for chunk in found for part in _split(chunk, lines)]


def _covered(
    start: int, end: int, symbols: Sequence[Symbol], first: int, last: int, heads: tuple[tuple[int, int], ...]
) -> Iterator[Chunk]:
    """The chunks of lines ``start`` to ``end``, in which the symbols ``first`` to ``last`` are."""
    position, holders = start, symbols[first].holders if first < last else ()
    index = first
    while index < last:
        symbol = symbols[index]
        after = index + 1
        while after < last and symbols[after].start <= symbol.end:
            after += 1
        symbol_start, symbol_end = max(symbol.start, position), min(symbol.end, end)
        if symbol_start > symbol_end:
            index = after
            continue
        if position < symbol_start:
            yield Chunk(position, symbol_start - 1, "", holders, heads)
        if symbol.holds_others and after > index + 1:
            yield from _holder(symbol, symbol_start, symbol_end, symbols, index, after, heads)
        else:
            yield Chunk(symbol_start, symbol_end, symbol.name, symbol.holders, heads)
        position, index = symbol_end + 1, after
    if position <= end:
        yield Chunk(position, end, "", holders, heads)


def _holder(
    symbol: Symbol,
    start: int,
    end: int,
    symbols: Sequence[Symbol],
    index: int,
    after: int,
    heads: tuple[tuple[int, int], ...],
) -> Iterator[Chunk]:
    inside = max(start, min(symbols[index + 1].start - 1, end))
    if symbols[index + 1].start > start:
        yield Chunk(start, inside, symbol.name, symbol.holders, heads)
        start = inside + 1
    head = (symbol.start, max(symbol.start, symbol.body - 1))
    yield from _covered(start, end, symbols, index + 1, after, (*heads, head))


def _split(chunk: Chunk, lines: Sequence[str]) -> Iterator[Chunk]:
    start, end = chunk.start, chunk.end
    while start <= end and not lines[start - 1].strip():
        start += 1
    while end >= start and not lines[end - 1].strip():
        end -= 1
    if start > end:
        return
    heads = chunk.heads
    while end - start + 1 > LONGEST_CHUNK_LINES:
        cut = _where_to_cut(lines, start)
        yield chunk._replace(start=start, end=cut, heads=heads)
        if start == chunk.start and chunk.name:
            heads = (*heads, (start, start))
        start = cut + 1
    yield chunk._replace(start=start, end=end, heads=heads)


def _where_to_cut(lines: Sequence[str], start: int) -> int:
    """The last line of a part that begins at ``start``: before a blank line, the later the better."""
    latest = start + LONGEST_CHUNK_LINES - 1
    for line in range(latest, start + _SHORTEST_CHUNK_LINES, -1):
        if not lines[line - 1].strip():
            return line
    return latest
