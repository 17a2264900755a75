"""An answer's text, line by line: whole files, search/replace blocks, diffs and patches, in their order.

What a line begins decides how far it goes: a search/replace block to its last marker, a diff as long as its hunks, a
patch to its end, a fenced block to its closing fence. So a fence inside of a searched text ends nothing, and a marker
inside of a whole file begins nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.blocks import Block, Fence, Fences, path_in_info
from necrocode.agent_runner.generation.hunks import check_count
from necrocode.agent_runner.generation.patch_envelope import EnvelopeReader, begins_envelope
from necrocode.agent_runner.generation.search_replace import NO_NEWLINE, Blocks
from necrocode.agent_runner.generation.told_paths import (
    looks_like_path,
    may_be_path,
    path_alone_on_line,
    path_before_block,
    path_on_line,
)
from necrocode.agent_runner.generation.unified_diff import DiffReader, begins_diff
from necrocode.agent_runner.models import CodeChange

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_EXPLANATION = 2000
_DIFF_LANGUAGES = {"diff", "patch", "udiff", "unidiff"}
_PATCH_FILES = (".diff", ".patch")
_CLOSING_TAG = re.compile(r"^</[\w-]+>\s*$")
_DIRECTIVE = re.compile(r"^(?:[-*] )?[`*]{0,3}(DELETE|RENAME)[:`*]{0,3}\s+(.+)$")
_ARROW = re.compile(r"(?<!\s)\s+(?:->|=>|→|TO|to)\s+")


class Change(NamedTuple):
    """One change, and the format it was written in."""

    change: CodeChange
    edit_format: str


class Reading(NamedTuple):
    """An answer, read."""

    changes: tuple[Change, ...]
    loose_blocks: tuple[Block, ...]
    """Fenced blocks that name no file."""
    explanation: str


def read_lines(body: str) -> Reading:
    """The changes in an answer's text; :class:`MalformedAnswerError` for one that is cut, or names no file."""
    reader = _Reader(re.findall(r"[^\n]*\n|[^\n]+", body))  # str.splitlines would also split at form feeds in a line
    reader.read()
    prose = (line.strip() for line in reader.prose)
    explanation = " ".join(line for line in prose if line and not path_on_line(line))
    return Reading(tuple(reader.changes), tuple(reader.loose_blocks), explanation[:_LONGEST_EXPLANATION])


class _Reader:
    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._fences = Fences(lines)
        self._searches = Blocks(lines)
        self._at = 0
        self._before = ""
        """The last line of text before the present one, since the last change."""
        self._path = ""
        """The file that was named last, for edits that name none."""
        self._fence: Fence | None = None
        """The fence of the block of edits that is open."""
        self._is_diff_block = False
        self._ends_itself = False
        """Whether the last edit had a closing marker of its own."""
        self._edit_count = 0
        self.changes: list[Change] = []
        self.loose_blocks: list[Block] = []
        self.prose: list[str] = []

    def read(self) -> None:
        while self._at < len(self._lines):
            if not (self._read_edit() or self._read_fence()):
                self._read_prose()
        if self._fence is not None and not self._ends_itself:
            raise MalformedAnswerError("A fenced block in the model's answer is never closed: the answer looks cut.")

    # --- edits

    def _read_edit(self) -> bool:
        """Read the edit that begins on this line; whether one does."""
        lines, at = self._lines, self._at
        if self._searches.begins(at) and (block := self._searches.read(at)) is not None:
            path = block.path if looks_like_path(block.path) else self._told_path("search/replace block")
            change = CodeChange(operation="edit", file_path=path, edits=(block.edit,))
            self._add([change], "search_replace", block.end)
            self._path = path
            self._ends_itself = True
            return True
        if begins_envelope(lines[at]):
            changes, end = EnvelopeReader(lines, self._ends_block).read(at)
            self._add(changes, "patch", end)
            self._ends_itself = True
            return True
        diff = DiffReader(lines, self._ends_block, is_lenient=self._is_diff_block)
        if begins_diff(lines, at):
            change, end = diff.section(at)
        elif self._begins_hunk(at):
            change, end = diff.hunks_of(at, self._told_path("diff"))
        else:
            return False
        self._add([change], "unified_diff", end)
        self._ends_itself = False
        return True

    def _begins_hunk(self, at: int) -> bool:
        """Whether hunks without a header begin here: in a block of edits, or right under the file's name."""
        line = self._lines[at]
        if self._ends_block(at):
            return False
        if line.startswith("@@"):
            return self._fence is not None or path_alone_on_line(self._before) is not None
        return self._is_diff_block and line.startswith(("+", "-"))

    def _told_path(self, what: str) -> str:
        path = path_alone_on_line(self._before) or self._path
        if not path:
            raise MalformedAnswerError(
                f"A {what} in the model's answer (line {self._at + 1}) names no file: write its path on the line"
                " before."
            )
        return path

    def _add(self, changes: Sequence[CodeChange], edit_format: str, end: int) -> None:
        self._edit_count += sum(max(1, len(change.edits)) for change in changes)
        check_count(self._edit_count)
        self.changes += (Change(change, edit_format) for change in changes)
        self._at = end
        self._before = ""

    # --- fences

    def _ends_block(self, at: int) -> bool:
        """Whether a line is the fence that closes the open block of edits."""
        if self._fence is None or self._lines[at][0] != self._fence.marks[0]:
            return False
        fence = self._fences.opening(at)
        return fence is not None and not fence.info and len(fence.marks) >= len(self._fence.marks)

    def _read_fence(self) -> bool:
        """Read a fence, and the block that it opens unless that holds edits; whether there is one."""
        opening = self._fences.opening(self._at)
        if opening is None:
            return False
        if self._ends_block(self._at):
            self._fence, self._is_diff_block = None, False
            self._at += 1
            return True
        language, path = path_in_info(opening.info)
        path = path or path_before_block(self._before, language)
        if self._holds_edits(self._at + 1, language, path):
            self._fence, self._is_diff_block = opening, language in _DIFF_LANGUAGES
            self._path = path or path_alone_on_line(self._before) or self._path
            self._ends_itself = False
            self._before = ""
            self._at += 1
            return True
        self._read_block(opening, language, path)
        return True

    def _holds_edits(self, at: int, language: str, path: str) -> bool:
        """Whether the block whose text begins here holds edits and not a file: by its first line, a path left aside."""
        if path.endswith(_PATCH_FILES):
            return False
        if language in _DIFF_LANGUAGES:
            return True
        first, *others = self._first_lines(at)[:2] or (at,)
        if self._begins_edit(first, is_named=bool(path)):
            return True
        line = self._lines[first] if first < len(self._lines) else ""
        is_leading = path_on_line(line) is not None or "apply_patch" in line
        return is_leading and any(self._begins_edit(other, is_named=True) for other in others)

    def _first_lines(self, at: int) -> list[int]:
        """The first two lines from here on that are not blank, up to a fence."""
        found: list[int] = []
        while at < len(self._lines) and len(found) < 2 and self._fences.opening(at) is None:  # noqa: PLR2004  a path, then an edit
            if self._lines[at].strip():
                found.append(at)
            at += 1
        return found

    def _begins_edit(self, at: int, *, is_named: bool) -> bool:
        if at >= len(self._lines):
            return False
        line = self._lines[at]
        if self._searches.begins(at) or begins_envelope(line) or begins_diff(self._lines, at):
            return True
        return line.startswith("@@") and is_named

    def _read_block(self, opening: Fence, language: str, path: str) -> None:
        start = self._at + 1
        end = self._fences.closing(start, opening)
        if end is None:
            raise MalformedAnswerError("A fenced block in the model's answer is never closed: the answer looks cut.")
        first = self._lines[start].rstrip("\r\n")
        if not path and looks_like_path(first.strip()) and start + 1 < end and self._fences.opening(start + 1):
            self._before, self._at = first, start + 1  # the fence was opened too early: around the path
            return
        block = Block(language, path, "".join(self._lines[start:end]))
        if path:
            self._add([_whole_file(block)], "files", end + 1)
        else:
            self.loose_blocks.append(block)
        self._at, self._before = end + 1, ""

    # --- the rest

    def _read_prose(self) -> None:
        line = self._lines[self._at].rstrip("\r\n")
        self._at += 1
        if line.strip():
            self._before = line
        if _CLOSING_TAG.match(line):  # it closes what its opening tag, which named the file, has opened
            self._fence, self._is_diff_block = None, False
        if self._fence is None:
            self.prose.append(line)
            if changes := _directive(line):
                self._add(changes, "files", self._at)


def _whole_file(block: Block) -> CodeChange:
    """A block as a file; its last line may say, as git's diffs do, that the file ends without a line break."""
    content = block.content
    if exact := content.endswith(f"\n{NO_NEWLINE}\n"):
        content = content.removesuffix(f"\n{NO_NEWLINE}\n")
    return CodeChange(operation="modify", file_path=block.path, content=content, exact=exact)


def _directive(line: str) -> list[CodeChange]:
    found = _DIRECTIVE.match(line.strip())
    if found is None:
        return []
    if found[1] == "DELETE":
        path = found[2].strip("`*\"' ")
        return [CodeChange(operation="delete", file_path=path)] if may_be_path(path) else []
    sides = [side.strip("`*\"' ") for side in _ARROW.split(found[2])]
    if len(sides) != 2 or not all(map(may_be_path, sides)):  # noqa: PLR2004  from and to
        return []
    return [CodeChange(operation="rename", file_path=sides[0], new_path=sides[1])]
