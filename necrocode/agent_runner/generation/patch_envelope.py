"""Patch envelopes: ``*** Begin Patch``, sections for files to add, update and delete, ``*** End Patch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.hunks import Header, HunkLines, check_count, signed
from necrocode.agent_runner.models import CodeChange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner.models import TextEdit

BEGIN, _END = "*** Begin Patch", "*** End Patch"
_ADD, _UPDATE, _DELETE, _MOVE = "*** Add File: ", "*** Update File: ", "*** Delete File: ", "*** Move to: "
_END_OF_FILE = "*** End of File"
_LONGEST_NAMED = 200


def begins_envelope(line: str) -> bool:
    """Whether a patch envelope begins with this line."""
    return line.strip() == BEGIN


class EnvelopeReader:
    """Reads one envelope."""

    def __init__(self, lines: Sequence[str], is_fence: Callable[[int], bool]) -> None:
        self._lines = lines
        self._is_fence = is_fence
        self._at = self._last_line = 0

    def read(self, at: int) -> tuple[list[CodeChange], int]:
        """The changes of the envelope that begins here, and the line after it."""
        self._at = at + 1
        self._last_line = self._find_last_line(at + 1)
        changes: list[CodeChange] = []
        while not self._is_over():
            line = self._line()
            self._at += 1
            check_count(len(changes))
            if line.startswith(_ADD):
                changes.append(self._added(_path(line, _ADD)))
            elif line.startswith(_DELETE):
                changes.append(CodeChange(operation="delete", file_path=_path(line, _DELETE)))
            elif line.startswith(_UPDATE):
                changes.append(self._updated(_path(line, _UPDATE)))
            elif line.strip():
                raise MalformedAnswerError(
                    f"The patch in the model's answer has the line {shown(line, _LONGEST_NAMED)!r} where one of"
                    " *** Add File:, *** Update File:, *** Delete File: or *** End Patch belongs."
                )
        if not changes:
            raise MalformedAnswerError("The patch in the model's answer is empty: it holds no change.")
        return changes, self._at

    def _line(self) -> str:
        return self._lines[self._at].rstrip("\r\n")

    def _is_over(self) -> bool:
        """Whether the envelope ends here; a fence, or the answer's end in a section's stead, does for its last line."""
        if self._at >= len(self._lines):
            raise MalformedAnswerError(f"The patch in the model's answer has no line {_END}: it looks cut.")
        if self._is_end(self._at):
            self._at += 1
            return True
        return self._is_fence(self._at)

    def _is_end(self, at: int) -> bool:
        """Whether the last line is here; one with blanks before it is a line of a hunk while a better one follows."""
        if self._lines[at].strip() != _END:
            return False
        return at >= self._last_line or not self._lines[at].startswith((" ", "\t"))

    def _find_last_line(self, at: int) -> int:
        """The first last line without blanks before it, up to the next envelope; where there is none, the beginning."""
        for number in range(at, len(self._lines)):
            if self._lines[number].rstrip() == _END:
                return number
            if self._lines[number].rstrip() == BEGIN:
                break
        return at

    def _section_goes_on(self) -> bool:
        if self._at >= len(self._lines) or self._is_fence(self._at):
            return False
        line = self._line()
        return not line.startswith((_ADD, _UPDATE, _DELETE)) and not self._is_end(self._at)

    def _added(self, path: str) -> CodeChange:
        content: list[str] = []
        while self._section_goes_on():
            line = self._lines[self._at]
            if not line.startswith("+") and line.strip():
                raise MalformedAnswerError(
                    f"The patch in the model's answer adds {shown(path, _LONGEST_NAMED)!r}, and the line"
                    f" {shown(line.rstrip(), _LONGEST_NAMED)!r} of it does not begin with +."
                )
            content.append(line.removeprefix("+"))
            self._at += 1
        while content and not content[-1].strip("\r\n") and not self._lines[self._at - 1].startswith("+"):
            content.pop()
            self._at -= 1
        self._skip_blank()
        return CodeChange(operation="create", file_path=path, content="".join(content))

    def _skip_blank(self) -> None:
        while self._at < len(self._lines) and not self._lines[self._at].strip():
            self._at += 1

    def _updated(self, path: str) -> CodeChange:
        target = None
        if self._section_goes_on() and self._line().startswith(_MOVE):
            target = _path(self._line(), _MOVE)
            self._at += 1
        edits: list[TextEdit] = []
        while self._section_goes_on():
            if (edit := self._hunk(path)) is not None:
                edits.append(edit)
                check_count(len(edits))
        if not edits and target is None:
            raise MalformedAnswerError(
                f"The patch in the model's answer updates {shown(path, _LONGEST_NAMED)!r} with no line that has - or +."
            )
        return CodeChange(
            operation="edit" if target is None else "rename",
            file_path=path,
            new_path=target,
            edits=tuple(edits),
            in_order=True,
        )

    def _hunk(self, path: str) -> TextEdit | None:
        """The hunk that begins here; None for one that changes nothing, as a blank line between sections does."""
        anchors: list[str] = []
        header = Header(None, "")
        while self._section_goes_on() and self._line().startswith("@@"):
            header = Header.of(self._line())
            if header.numbers is None and header.heading:
                anchors.append(header.heading)
            self._at += 1
        read, at_end = self._hunk_lines(path)
        if read.changes_nothing:
            return None
        line = header.numbers[0] if header.numbers is not None and read.old else None
        edit = read.edit(Header(header.numbers, "") if not anchors else header, line=line, is_patch=True)
        return edit.model_copy(update={"anchors": tuple(anchors), "at_end": edit.at_end or at_end})

    def _hunk_lines(self, path: str) -> tuple[HunkLines, bool]:
        read = HunkLines()
        blanks = 0
        while self._section_goes_on() and not self._line().startswith("@@"):
            line = self._lines[self._at]
            if self._line().rstrip() == _END_OF_FILE:
                self._at += 1
                return read, True
            sign, text = signed(line)
            if sign not in " -+\\":
                raise MalformedAnswerError(
                    f"The patch of {shown(path, _LONGEST_NAMED)!r} in the model's answer has the line"
                    f" {shown(line.rstrip(), _LONGEST_NAMED)!r}, which begins with none of blank, - and +."
                )
            blanks = blanks + 1 if not line.strip("\r\n") else 0
            read.add(sign, text)
            self._at += 1
        for side in (read.old, read.new):  # empty lines at a hunk's end part it from what follows
            del side[len(side) - blanks :]
        return read, False


def _path(line: str, verb: str) -> str:
    path = line.removeprefix(verb).strip()
    if not path:
        raise MalformedAnswerError(f"The patch in the model's answer has a line {verb.strip()!r} without a path.")
    return path
