"""What the model is shown: pieces of files, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner._invisible import invisible_in, told

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_TOKENS = 8
"""What the line above a piece and the fence around it cost, besides the path."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a text costs: 4 characters each for ASCII, 1 each for other scripts (CJK above all)."""
    if text.isascii():
        return -(-len(text) // 4)
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 4) + len(text) - ascii_characters


def piece_tokens(path: str, text: str) -> int:
    """What a piece costs in the prompt, the line that names it included."""
    return estimate_tokens(text) + estimate_tokens(path) + _PIECE_TOKENS


@dataclass(frozen=True)
class Piece:
    """A file, some lines of one, or the map of the repository."""

    path: str
    """Empty for the map."""
    text: str
    """Exactly the file's characters, line ends included; a byte order mark is left out."""
    why: str
    kind: Literal["whole", "excerpt", "map"] = "whole"
    start_line: int = 1
    """Its first line in the file, counted from 1."""
    end_line: int = 0
    """Its last line; 0 where it has none."""
    line_count: int = 0
    """How many lines the whole file has."""
    score: float = 0.0
    """How near it is to the task: to be compared with other pieces of the same context only."""
    is_meant: bool = False
    """Whether the task itself points at the file."""

    @property
    def place(self) -> str:
        """Which lines of which file it is, for people."""
        if self.kind == "map":
            return "the map of the repository"
        return self.path if self.kind == "whole" else f"{self.path}:{self.start_line}-{self.end_line}"

    @property
    def is_whole(self) -> bool:
        """Whether it is a file from its first line to its last."""
        return self.kind == "whole"

    @property
    def tokens(self) -> int:
        """About what it costs in the prompt."""
        return piece_tokens(self.path, self.text)

    def renewed(self, text: str) -> Piece:
        """The same piece with another text."""
        return replace(self, text=text)


@dataclass(frozen=True)
class Context:
    """What the model is shown of the repository."""

    paths: tuple[str, ...]
    """The names of files that are listed, shown or not; empty where a map stands for the list."""
    paths_left_out: int
    """How many files are neither listed, nor shown, nor in the map."""
    pieces: tuple[Piece, ...]
    """Files that are shown in part have their excerpts beside each other, in the order of their lines."""
    missing: tuple[str, ...] = ()
    """Files of ``related_files`` that the base commit does not have."""
    gaps: tuple[str, ...] = ()
    """What could not be shown though it should have been, a sentence each."""
    paths_in_map: int = 0
    """How many files the map names."""
    notes: tuple[str, ...] = ()
    """What kept the choice from being made as it should have been."""

    @property
    def whole_paths(self) -> frozenset[str]:
        """The files that are shown from their first line to their last."""
        return frozenset(piece.path for piece in self.pieces if piece.kind == "whole")

    @property
    def part_paths(self) -> frozenset[str]:
        """The files of which only some lines are shown: one must not be written anew from what was seen of it."""
        return frozenset(piece.path for piece in self.pieces if piece.kind == "excerpt")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know of it, a sentence each."""
        absent = (f"The repository has no file {path}, which related_files names." for path in self.missing)
        return (*absent, *self.gaps, *self.notes, *self._hidden())

    def _hidden(self) -> Iterator[str]:
        """Files keep every character, or edits of them would not fit: so people are told of what they do not see."""
        for path, pieces in groupby(self.pieces, key=lambda piece: piece.path):
            if found := invisible_in(piece.text for piece in pieces):
                name = path or "The map of the repository"
                yield f"{name}, as the model is shown it, holds characters that nobody sees: {told(found)}."

    @property
    def tokens(self) -> int:
        """About what all of it costs in the prompt."""
        return sum(map(estimate_tokens, self.paths)) + sum(piece.tokens for piece in self.pieces)
