"""An answer's text, line by line: whole files, search/replace blocks, diffs and patches, in their order.

What a line begins decides how far it goes: a search/replace block to its last marker, a diff as long as its hunks, a
patch to its end, a fenced block to its closing fence. So a fence inside of a searched text ends nothing, and a marker
inside of a whole file begins nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.blocks import Block, Fence, Fences, path_in_info, text_of
from necrocode.agent_runner.generation.hunks import check_count
from necrocode.agent_runner.generation.patch_envelope import EnvelopeReader, begins_envelope
from necrocode.agent_runner.generation.search_replace import NO_NEWLINE, Blocks
from necrocode.agent_runner.generation.told_paths import (
    Told,
    is_marked_path,
    looks_like_path,
    may_be_path,
    path_alone_on_line,
    path_on_line,
    told_before_block,
)
from necrocode.agent_runner.generation.unified_diff import DiffReader, begins_diff
from necrocode.agent_runner.models import CodeChange

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_EXPLANATION = 2000
_LONGEST_NAMED = 200
_DIFF_LANGUAGES = {"diff", "patch", "udiff", "unidiff"}
_MARKDOWN_FILES = (".md", ".markdown", ".mdx", ".rst", ".qmd", ".Rmd")
_JSON_FILES = (".json", ".jsonc", ".json5")
_CHANGE_LIST = re.compile(r'\s*\{\s*"(?:explanation|summary|changes|code_changes)"\s*:')
_PATCH_FILES = (".diff", ".patch")
_CLOSING_TAG = re.compile(r"^</[\w-]+>\s*$")
_DIRECTIVE = re.compile(r"^(?:[-*] )?[`*]{0,3}(DELETE|RENAME)[:`*]{0,3}\s+(.+)$")
_ROUTE = re.compile(r"\{\w|/:\w|\?\w+=|://")
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
    doubts: tuple[str, ...]
    """What is wrong with blocks that may be a file's text, or only be about it."""
    explanation: str
    prose: tuple[str, ...] = ()
    """The lines outside of all changes and blocks."""


def read_lines(body: str) -> Reading:
    """The changes in an answer's text; :class:`MalformedAnswerError` for one that is cut, or names no file."""
    reader = _Reader(re.findall(r"[^\n]*\n|[^\n]+", body))  # str.splitlines would also split at form feeds in a line
    reader.read()
    prose = (line.strip() for line in reader.prose)
    explanation = " ".join(line for line in prose if line and not path_on_line(line))
    changed = {change.change.file_path for change in reader.changes}
    doubts = tuple(text for path, text in reader.doubts if path not in changed)
    return Reading(
        tuple(reader.changes),
        tuple(reader.loose_blocks),
        doubts,
        explanation[:_LONGEST_EXPLANATION],
        tuple(reader.prose),
    )


class _LastFile(NamedTuple):
    """The block of a whole file that was read last."""

    path: str
    marks: str
    end: int
    """The line of its closing fence."""


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
        self._last_file: _LastFile | None = None
        self._last_written = ""
        self._written: dict[str, set[str]] = {}
        """The lines, without the blanks around them, of the files that were given whole."""
        self.changes: list[Change] = []
        self.loose_blocks: list[Block] = []
        self.doubts: list[tuple[str, str]] = []
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
        return self._read_diff(at)

    def _read_diff(self, at: int) -> bool:
        is_section = begins_diff(self._lines, at)
        if not is_section and not self._begins_hunk(at):
            return False
        diff = DiffReader(self._lines, self._ends_block, is_lenient=self._is_diff_block)
        if is_section:
            change, end = diff.section(at)
        else:
            shown_of = "" if self._path or path_alone_on_line(self._before) else self._last_written
            change, end = diff.hunks_of(at, shown_of or self._told_path("diff"))
            if shown_of and not self._is_shown_again(change):
                self._told_path("diff")
        self._ends_itself = False
        if self._is_shown_again(change):
            self._at, self._before = end, ""
            return True
        self._add([change], "unified_diff", end)
        self._path = "" if change.operation == "delete" else change.new_path or change.file_path
        return True

    def _is_shown_again(self, change: CodeChange) -> bool:
        """Whether a diff only shows what the whole new text of its file, given before, has changed."""
        lines = self._written.get(change.file_path)
        if lines is None or change.operation != "edit" or not change.edits:
            return False
        new = {line.strip() for edit in change.edits for line in edit.replace.splitlines()}
        old = {line.strip() for edit in change.edits for line in edit.search.splitlines()}
        return new <= lines and not lines.intersection(old - new)

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
        told = Told(path) if path else told_before_block(self._before, language)
        path = told.path
        if self._holds_edits(self._at + 1, language, path or path_alone_on_line(self._before) or ""):
            self._fence, self._is_diff_block = opening, language in _DIFF_LANGUAGES
            self._path = path or path_alone_on_line(self._before) or self._path
            self._ends_itself = False
            self._before = ""
            self._at += 1
            return True
        self._read_block(opening, language, told)
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
        if self._searches.begins(at):
            return self._searches.is_whole(at)
        if begins_envelope(line) or begins_diff(self._lines, at):
            return True
        return line.startswith("@@") and is_named and self._has_changed_lines(at + 1)

    def _has_changed_lines(self, at: int) -> bool:
        """Whether a line with the sign of a diff comes before the next fence."""
        while at < len(self._lines) and self._fences.opening(at) is None:
            if self._lines[at].startswith(("+", "-")):
                return True
            at += 1
        return False

    def _read_block(self, opening: Fence, language: str, told: Told) -> None:
        path, start = told.path, self._at + 1
        end = self._fences.closing(start, opening)
        if end is None:
            raise MalformedAnswerError("A fenced block in the model's answer is never closed: the answer looks cut.")
        first = self._lines[start].rstrip("\r\n")
        if not path and looks_like_path(first.strip()) and start + 1 < end and self._fences.opening(start + 1):
            self._before, self._at = first, start + 1  # the fence was opened too early: around the path
            return
        block = Block(language, path, text_of(self._lines[start:end], opening), self._before)
        if path and language == "json" and not path.endswith(_JSON_FILES) and _CHANGE_LIST.match(block.content):
            block, path = block._replace(path=""), ""
        if path:
            self._refuse_if_cut_out_of_text(path, opening)
            self._add([_whole_file(block)], "files", end + 1)
            self._last_file = _LastFile(path, opening.marks, end)
            self._last_written, self._path = path, ""
            self._written[path] = {line.strip() for line in ("", *block.content.splitlines())}
        else:
            if not language:
                self._refuse_if_rest_of_file(opening)
            self.loose_blocks.append(block)
            if told.doubt:
                self.doubts.append((told.doubt, _doubt(told.doubt, start)))
        self._at, self._before = end + 1, ""

    def _refuse_if_rest_of_file(self, opening: Fence) -> None:
        """Refuse a bare block that may be what follows a bare fence in the text of the file before it."""
        last = self._last_file
        if last is None or opening.info or opening.marks != last.marks:
            return
        first, before = self._lines[last.end + 1].strip(), self._lines[self._at - 1].strip()
        is_inside = last.end + 1 < self._at and first and before and not before.endswith((":", "："))
        if is_inside or last.path.endswith(_MARKDOWN_FILES):
            raise MalformedAnswerError(_cut_at_fence(last.path, last.end))
        self._last_file = None

    def _refuse_if_cut_out_of_text(self, path: str, opening: Fence) -> None:
        """Refuse a file named by a line that may be of a block in the Markdown text before it."""
        last = self._last_file
        if last is None or opening.info or opening.marks != last.marks or not last.path.endswith(_MARKDOWN_FILES):
            return
        between = [line.strip() for line in self._lines[last.end + 1 : self._at]]
        while between and not between[-1]:
            between.pop()
        is_set_apart = len(between) > 1 and not between[-2]
        if not is_set_apart and not is_marked_path(self._before) and path:
            raise MalformedAnswerError(_cut_at_fence(last.path, last.end))

    # --- the rest

    def _read_prose(self) -> None:
        line = self._lines[self._at].rstrip("\r\n")
        self._at += 1
        if self._searches.is_left_over(self._at - 1):
            raise MalformedAnswerError(
                f"Line {self._at} of the model's answer, {shown(line.strip(), _LONGEST_NAMED)!r}, belongs to no"
                " search/replace block. Where a text has such lines itself, write the markers of its block with another"
                " number (5 to 9) of < = and >."
            )
        if line.strip():
            self._before = line
        if _CLOSING_TAG.match(line):  # it closes what its opening tag, which named the file, has opened
            self._fence, self._is_diff_block = None, False
        if self._fence is None:
            if changes := _directive(line):
                self._add(changes, "files", self._at)
            else:
                self.prose.append(line)


def _cut_at_fence(path: str, end: int) -> str:
    return (
        f"It is not clear where the text of {shown(path, _LONGEST_NAMED)} ends: its block is closed in line {end + 1}"
        " of the model's answer, and more fences follow. Where a file's text has fences of its own, write four"
        " backticks around it."
    )


def _doubt(path: str, number: int) -> str:
    path = shown(path, _LONGEST_NAMED)
    return (
        f"It is not clear whether the fenced block in line {number} of the model's answer is the whole text of {path}."
        f" If it is, write the line before the block as: File: {path}. If it is a part of the file, write the whole"
        " file, or a search/replace block."
    )


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
        return [CodeChange(operation="delete", file_path=path)] if _may_be_removed(path) else []
    sides = [side.strip("`*\"' ") for side in _ARROW.split(found[2])]
    if len(sides) != 2 or not all(map(_may_be_removed, sides)):  # noqa: PLR2004  from and to
        return []
    return [CodeChange(operation="rename", file_path=sides[0], new_path=sides[1])]


def _may_be_removed(path: str) -> bool:
    """Whether a path may be one of the repository; a route of a web service, with its method before it, is none."""
    is_route = (path.startswith("/") and "." not in path.rpartition("/")[2]) or _ROUTE.search(path) is not None
    return may_be_path(path) and not is_route
