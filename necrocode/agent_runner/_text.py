"""Text of others, made fit to be shown and stored."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from necrocode.agent_runner._invisible import invisible_replaced

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_SHOWN = 4000
"""How many characters of somebody else's text an error, a warning or a line on a terminal holds."""
# What moves a terminal's cursor, changes its colours or title, turns the reading order around (Unicode TR 9, "Bidi
# Control" characters), or is not seen at all wherever it stands: C0 but tab and newline, DEL, C1, soft hyphen, spaces
# without width, line and paragraph separators, bidi controls, invisible operators, annotations, tags, lone surrogates.
_UNSHOWABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
# What ECMA-48 lets a program send to a terminal: CSI and OSC sequences, and single escapes. Each part is a class of
# characters that the next one does not begin with, so the time is linear.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_=>78])")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What CI systems take from a program's output as a command: GitHub at the start of a line, Azure anywhere in it.
_COMMAND_AT_START = re.compile(r"^(\s*):(?=:[A-Za-z])", re.MULTILINE)
_COMMAND = re.compile(r"##(?=\[|vso\[)", re.IGNORECASE)
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_REPLACEMENT = "\ufffd"


def shown(text: str, limit: int = LONGEST_SHOWN) -> str:
    """The text as a terminal may have it: controls and what nobody sees written out, the middle of a long one left out.

    At most ``limit`` characters of the text itself are kept. Newlines and tabs stay.
    """
    if len(text) > limit:
        left_out = len(text) - limit
        text = f"{text[: limit - limit // 2]} [... {left_out} characters left out ...] {text[len(text) - limit // 2 :]}"
    return _shown(text.replace("\r\n", "\n"), _written_out)


def plain(text: str) -> str:
    """The text without the sequences that colour a terminal."""
    return _ANSI.sub("", text) if "\x1b" in text else text


def written_out(text: str) -> str:
    """A text of any length as a file may have it that a terminal is shown: no colours, other controls written out."""
    return shown(plain(text), len(text))


def shown_json(text: str) -> str:
    """JSON in which those characters stand as escapes, as a terminal may have it; its meaning stays."""
    return _shown(text, lambda character: json.dumps(character)[1:-1])


def one_line(text: str) -> str:
    """The text with its line breaks, and the space around them, as one space each."""
    return _LINE_BREAKS.sub(" ", text.strip())


def inert(text: str) -> str:
    """The text as a CI system's log may have it: ``::set-output`` and ``##vso[...]`` are no commands there."""
    return _COMMAND.sub("# #", _COMMAND_AT_START.sub(r"\1: ", text))


def inert_json(text: str) -> str:
    """The same for JSON, whose meaning stays; as a terminal may have it, too."""
    return _COMMAND.sub(r"#\\u0023", shown_json(text))


def _shown(text: str, stand_in: Callable[[str], str]) -> str:
    return _UNSHOWABLE.sub(lambda found: stand_in(found[0]), invisible_replaced(text, stand_in))


def _written_out(character: str) -> str:
    code = ord(character)
    digits = 2 if code <= 0xFF else 4 if code <= 0xFFFF else 8  # noqa: PLR2004  what so many digits can say
    return f"\\{'xuU'[digits // 4]}{code:0{digits}x}"


def writable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON's escapes can name half of a surrogate pair, which becomes U+FFFD."""
    return text if is_writable(text) else _SURROGATE.sub(_REPLACEMENT, text)


def is_writable(text: str) -> bool:
    """Whether UTF-8 can hold the text: no lone surrogate is in it."""
    return text.isascii() or _SURROGATE.search(text) is None
