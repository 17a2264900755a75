"""The repository's part of the prompt."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from necrocode.agent_runner.generation.pieces import Context, Piece


def rendered(context: Context) -> str:
    """The files' names, then each piece under a line that says which file it is, and which lines of it."""
    parts = ["# Files of the repository"]
    maps = [piece for piece in context.pieces if piece.kind == "map"]
    if context.paths:
        parts.append("\n".join(context.paths))
    elif not context.pieces:
        parts.append("(the repository is empty)")
    if context.paths and context.paths_left_out:
        parts.append(f"... and {context.paths_left_out} more")
    for _, pieces in groupby(context.pieces, key=lambda piece: (piece.kind, piece.path)):
        parts += _file(tuple(pieces))
    for piece in maps:
        parts.append(_map(piece, context.paths_left_out))
    return "\n\n".join(parts)


def _file(pieces: tuple[Piece, ...]) -> Iterable[str]:
    first = pieces[0]
    if first.kind == "whole":
        return [f"File: {first.path}\n{fenced(first.text)}"]
    if first.kind == "map":
        return []
    heading = f"Parts of {first.path}, which has {first.line_count} lines; the others are not shown:"
    return [heading, *(f"{_lines(piece)} of {piece.path}\n{fenced(piece.text)}" for piece in pieces)]


def _lines(piece: Piece) -> str:
    if piece.start_line == piece.end_line:
        return f"Line {piece.start_line}"
    return f"Lines {piece.start_line}-{piece.end_line}"


def _map(piece: Piece, left_out: int) -> str:
    more = f"\n... and {left_out} more files" if left_out else ""
    return f"Other names in the repository, nearest first:\n{fenced(piece.text)}{more}"


def fenced(text: str) -> str:
    """The text in a fence longer than any run of backticks at the start of one of its lines."""
    longest = max((len(line.lstrip()) - len(line.lstrip().lstrip("`")) for line in text.split("\n")), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{fence}"
