"""The lines of a Markdown file, each with its place, and which of them are code or comment."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import TaskContextValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 4 * 1024 * 1024  # a task list of some 50 000 lines; a larger file is something else
SPACE = " \t\u3000"  # Japanese editors indent with the ideographic space
BULLET = re.compile(rf"[-*+][{SPACE}]+")

_BOM = "\ufeff"
_LINE_END = re.compile(r"\r\n|\n|\r")  # and no other: str.splitlines would also split at U+2028 or a form feed
_FENCE = re.compile(rf"(?:[-*+][{SPACE}]+)?(`{{3,}}(?=[^`]*$)|~{{3,}})")
_TAB_STOP = 4


@dataclass(frozen=True)
class Line:
    """One line without its end."""

    number: int
    """From 1."""
    offset: int
    """Of its first byte in the file."""
    text: str
    is_opaque: bool
    """Part of a code block or of a comment: nothing in it has a meaning."""

    @property
    def indent(self) -> int:
        """The column of the first character that is not a space."""
        column = 0
        for char in self.text[: len(self.text) - len(self.text.lstrip(SPACE))]:
            column += _TAB_STOP - column % _TAB_STOP if char == "\t" else 1 + (char == "\u3000")
        return column

    @property
    def content(self) -> str:
        """The text without the space around it."""
        return self.text.strip()


def problem(file: str, line: int, text: str) -> TaskContextValidationError:
    """The error for what is wrong in a line of a file."""
    return TaskContextValidationError(f"{file}:{line}: {text}.")


def lines_of(data: bytes, file: str) -> Iterator[Line]:
    """The lines of a file; ``TaskContextValidationError`` when it is not UTF-8 text, or when a block never ends."""
    text = _decoded(data, file)
    closing: re.Pattern[str] | None = None
    opened, offset = 0, 3 * text.startswith(_BOM)
    for number, (body, end) in enumerate(_split(text.removeprefix(_BOM)), 1):
        content = body.lstrip(SPACE)
        if closing is not None:
            is_opaque, closing = True, None if closing.search(content) else closing
        else:
            closing = _closing(content)
            is_opaque, opened = closing is not None or content.startswith("<!--"), number
        yield Line(number, offset, body, is_opaque)
        offset += len(body.encode()) + len(end)
    if closing is not None:
        raise problem(file, opened, "the code block or comment that begins here never ends")


def normal(text: str) -> str:
    """The text with full-width digits, letters and punctuation made plain."""
    return unicodedata.normalize("NFKC", text)


def _split(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    for end in _LINE_END.finditer(text):
        yield text[start : end.start()], end[0]
        start = end.end()
    if start < len(text):
        yield text[start:], ""


def _closing(content: str) -> re.Pattern[str] | None:
    """What ends the block that this line begins; None when it begins none, or ends it itself."""
    if content.startswith("<!--"):
        return None if "-->" in content else re.compile("-->")
    fence = _FENCE.match(content)
    return None if fence is None else re.compile(rf"^{re.escape(fence[1][0])}{{{len(fence[1])},}}\s*$")


def _decoded(data: bytes, file: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise problem(file, 1, f"the file is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise problem(file, line, f"not UTF-8 (byte {error.start} of the file); save the file as UTF-8") from error
    if "\0" in text:
        raise problem(file, text.count("\n", 0, text.index("\0")) + 1, "holds a NUL character")
    return text
