"""Unified diffs: git's, those of ``diff -u`` and older tools, and what models make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.errors import ChangeRejectedError, MalformedAnswerError
from necrocode.agent_runner.generation.diff_names import (
    NOWHERE,
    Names,
    may_be_of_two,
    names_on,
    names_on_git_line,
    plain_name,
    without_prefixes,
)
from necrocode.agent_runner.generation.hunks import Header, Hunk, check_count, read_hunk
from necrocode.agent_runner.models import CodeChange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner.models import TextEdit

_LONGEST_NAMED = 200
_GIT = "diff --git "
_SEPARATOR = "=" * 20
_OTHER_HEADERS = {"similarity", "dissimilarity", "index", "RCS", "retrieving", "diff"}
_BINARY = ("GIT binary patch", "Binary files ")
_EXECUTABLE, _ORDINARY = "100755", "100644"
_SPECIAL = {"120000": "a symbolic link", "160000": "a submodule"}


def begins_diff(lines: Sequence[str], at: int) -> bool:
    """Whether the part of a diff that is about one file begins with this line."""
    line = lines[at]
    if line.startswith("--- "):
        return at + 1 < len(lines) and lines[at + 1].startswith("+++ ")
    if line.startswith("Index: "):
        return at + 1 < len(lines) and lines[at + 1].startswith(_SEPARATOR)
    return line.startswith(_GIT)


@dataclass
class _Section:
    """What a diff says of one file."""

    git: Names | None = None
    index: str = ""
    old: str = ""
    new: str = ""
    renamed_from: str = ""
    renamed_to: str = ""
    old_mode: str = ""
    new_mode: str = ""
    is_new: bool = False
    is_deleted: bool = False
    edits: list[TextEdit] = field(default_factory=list)
    has_hunks: bool = False
    _shift: int = 0

    def read_header_line(self, line: str) -> bool:
        """Take in one line of the header; whether it was one."""
        text = line.rstrip("\r\n")
        word, _, rest = text.partition(" ")
        if text.startswith(("new file mode ", "new mode ")):
            self.is_new = self.is_new or text.startswith("new file")
            self.new_mode = rest.rpartition(" ")[2]
        elif text.startswith(("deleted file mode ", "old mode ")):
            self.is_deleted = self.is_deleted or text.startswith("deleted")
            self.old_mode = rest.rpartition(" ")[2]
        elif text.startswith("rename from "):
            self.renamed_from = plain_name(text.removeprefix("rename from "))
        elif text.startswith("rename to "):
            self.renamed_to = plain_name(text.removeprefix("rename to "))
        elif text.startswith(("copy from ", "copy to ")):
            raise MalformedAnswerError(
                f"The diff copies a file ({shown(text, _LONGEST_NAMED)}); write the copy as a new file."
            )
        elif text.startswith(_BINARY):
            raise ChangeRejectedError(f"The diff has a binary patch for {self._shown()}: only text can be changed.")
        else:
            return word in _OTHER_HEADERS or text.startswith(_SEPARATOR)
        return True

    def _shown(self) -> str:
        names = self.git or Names(self.old, self.new)
        return repr(shown(without_prefixes(names, self.git).new or self.index, _LONGEST_NAMED))

    def add(self, hunk: Hunk, header: Header) -> None:
        """One hunk, as an edit."""
        self.has_hunks = True
        if hunk.lines.changes_nothing:
            return
        line = None
        if header.numbers is not None:
            old, old_count, new, _ = header.numbers
            line = old if old_count else old + 1
            # A hunk without any line of the file is trusted only where its numbers are those that a tool would write.
            if not hunk.lines.old and (not hunk.counts_are_true or new != line + self._shift):
                line = None
        self._shift += len(hunk.lines.new) - len(hunk.lines.old)
        self.edits.append(hunk.lines.edit(header, line=line))
        check_count(len(self.edits))

    def change(self) -> CodeChange:
        """The section as a change of the change set."""
        names = self._names()
        executable = None
        if special := _SPECIAL.get(self.new_mode):
            raise ChangeRejectedError(f"The diff makes {shown(names.new, _LONGEST_NAMED)!r} {special}.")
        if self.new_mode in {_EXECUTABLE, _ORDINARY} and (self.is_new or self.old_mode):
            executable = self.new_mode == _EXECUTABLE
        if names.new == NOWHERE:
            return CodeChange(operation="delete", file_path=names.old, edits=tuple(self.edits), in_order=True)
        if names.old == NOWHERE:
            return self._creation(names.new, executable=executable or None)
        is_renamed = names.old != names.new
        if not self.edits and not self.renamed_from and executable is None:
            what = shown(names.new, _LONGEST_NAMED)
            raise MalformedAnswerError(f"The diff of {what!r} changes nothing: it has no line with - or +.")
        return CodeChange(
            operation="rename" if is_renamed else "edit",
            file_path=names.old,
            new_path=names.new if is_renamed else None,
            edits=tuple(self.edits),
            in_order=True,
            executable=executable,
        )

    def _names(self) -> Names:
        old, new = self.renamed_from, self.renamed_to
        if not (old and new):
            found = Names(self.old, self.new) if self.old and self.new else self.git
            found = found or Names(self.index, self.index)
            old, new = without_prefixes(found, self.git)
        old, new = (NOWHERE if self.is_new else old), (NOWHERE if self.is_deleted else new)
        if not old or not new or old == new == NOWHERE:
            raise MalformedAnswerError("A diff in the model's answer names no file: write its --- and +++ lines.")
        return Names(old, new)

    def _creation(self, path: str, *, executable: bool | None) -> CodeChange:
        if any(edit.search for edit in self.edits):
            raise MalformedAnswerError(
                f"The diff makes {shown(path, _LONGEST_NAMED)!r} a new file, and has lines of an old one."
            )
        return CodeChange(
            operation="create",
            file_path=path,
            content="".join(edit.replace for edit in self.edits),
            must_be_new=True,
            executable=executable,
        )


@dataclass(frozen=True)
class DiffReader:
    """Reads the diffs among the lines of an answer."""

    lines: Sequence[str]
    is_fence: Callable[[int], bool]
    """Whether a line is the fence that ends the block that is being read."""
    is_lenient: bool
    """Whether the lines are in a block for diffs, where even lines without a sign belong to a hunk."""

    def section(self, at: int) -> tuple[CodeChange, int]:
        """The part that begins here (see :func:`begins_diff`) as a change, and the line after it."""
        lines, section = self.lines, _Section()
        is_git = lines[at].startswith(_GIT)
        if is_git:
            section.git = names_on_git_line(lines[at])
            at += 1
        elif lines[at].startswith("Index: "):
            section.index = lines[at].removeprefix("Index: ").strip()
            at += 1
        while at < len(lines) and not self._names_begin(at):
            if lines[at].startswith((_GIT, "Index: ")) and (section.index == "" or is_git):
                break
            if lines[at].startswith(_GIT):
                section.git = names_on_git_line(lines[at])
            elif not section.read_header_line(lines[at]):
                break
            at += 1
        if self._names_begin(at):
            section.old, section.new = names = names_on(lines[at], lines[at + 1])
            if section.git is None and may_be_of_two(names, lines[at], lines[at + 1]):
                raise MalformedAnswerError(
                    f"The diff names {shown(names.old, _LONGEST_NAMED)!r} and"
                    f" {shown(names.new, _LONGEST_NAMED)!r}: write one path, behind a/ and b/."
                )
            at += 2
        at = self._hunks(at, section)
        return section.change(), at

    def hunks_of(self, at: int, path: str) -> tuple[CodeChange, int]:
        """The hunks that begin here, without a header, as a change of this file, and the line after them."""
        section = _Section(old=path, new=path)
        if not self.lines[at].startswith("@@"):
            header = Header(None, "")
            hunk = read_hunk(self.lines, at, header, self._ends_hunk, is_lenient=self.is_lenient)
            section.add(hunk, header)
            at = max(hunk.end, at + 1)
        at = self._hunks(at, section)
        return section.change(), at

    def _hunks(self, at: int, section: _Section) -> int:
        lines = self.lines
        while at < len(lines) and lines[at].startswith("@@"):
            if lines[at].startswith("@@@"):
                raise MalformedAnswerError("The answer holds the diff of a merge (@@@); write a diff against one file.")
            header = Header.of(lines[at])
            hunk = read_hunk(lines, at + 1, header, self._ends_hunk, is_lenient=self.is_lenient)
            section.add(hunk, header)
            at = hunk.end
        return at

    def _names_begin(self, at: int) -> bool:
        lines = self.lines
        return at + 1 < len(lines) and lines[at].startswith("--- ") and lines[at + 1].startswith("+++ ")

    def _ends_hunk(self, at: int) -> bool:
        line = self.lines[at]
        if line.startswith("-"):
            return self._names_begin(at) and (at + 2 >= len(self.lines) or self.lines[at + 2].startswith("@@"))
        if line.startswith("</"):  # a tag around the diff closes; in a block for diffs it is a line that stays
            return not self.is_lenient
        return line.startswith(("@@", _GIT, "Index: ", "*** End")) or self.is_fence(at)
