"""The map of a repository: what else there is, by paths and signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.pieces import Piece, estimate_tokens, piece_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from necrocode.agent_runner.generation.excerpts import ShownFile

_LONGEST_SIGNATURE = 120
_MOST_SIGNATURES = 12
_SIGNED_FILES = 12


def draw_map(files: Sequence[ShownFile], nearest: Iterable[str], budget_tokens: int) -> tuple[Piece | None, int]:
    """The map within a budget, and how many files are in it.

    Files come nearest first; those that are looked into, but not shown, have the first lines of their definitions.
    """
    lines: list[str] = []
    left = budget_tokens - piece_tokens("", "")
    signed = {file.candidate.path: file for file in files[:_SIGNED_FILES]}
    count = 0
    for path in nearest:
        cost = estimate_tokens(f"{path}\n")
        if cost > left:
            break
        lines.append(path)
        left -= cost
        count += 1
        for line in _signatures(signed[path]) if path in signed else ():
            cost = estimate_tokens(f"{line}\n") + 1
            if cost > left:
                break
            lines.append(line)
            left -= cost
    if not lines:
        return None, 0
    text = "".join(f"{line}\n" for line in lines)
    return Piece("", text, "the map: what else is there, nearest to the task first", "map", 0, 0, 0), count


def _signatures(file: ShownFile) -> list[str]:
    found: list[str] = []
    for symbol in file.symbols:
        if symbol.holders or any(line in file.shown for line in range(symbol.start, symbol.body + 1)):
            continue
        line = next((line for line in file.lines[symbol.start - 1 : symbol.body] if symbol.name in line), "")
        if line.strip():
            found.append(f"    {line.strip()[:_LONGEST_SIGNATURE]}")
        if len(found) >= _MOST_SIGNATURES:
            break
    return found
