"""Text of others, made fit to be shown and stored."""

from __future__ import annotations

import re

LONGEST_SHOWN = 4000
"""How many characters of somebody else's text an error, a warning or a line on a terminal holds."""
# What moves a terminal's cursor, changes its colours or title, or turns the reading order around (Unicode TR 9, "Bidi
# Control" characters): C0 but tab and newline, DEL, C1, line and paragraph separators, bidi controls, lone surrogates.
_UNSHOWABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What CI systems take from a program's output as a command: GitHub at the start of a line, Azure anywhere in it.
_COMMAND_AT_START = re.compile(r"^(\s*):(?=:[A-Za-z])", re.MULTILINE)
_COMMAND = re.compile(r"##(?=\[|vso\[)", re.IGNORECASE)
_REPLACEMENT = "\ufffd"


def shown(text: str, limit: int = LONGEST_SHOWN) -> str:
    """The text as a terminal may have it: control characters written out, the middle of a long one left out.

    At most ``limit`` characters of the text itself are kept. Newlines and tabs stay.
    """
    if len(text) > limit:
        left_out = len(text) - limit
        text = f"{text[: limit - limit // 2]} [... {left_out} characters left out ...] {text[len(text) - limit // 2 :]}"
    return _UNSHOWABLE.sub(lambda found: _written_out(found[0]), text.replace("\r\n", "\n"))


def inert(text: str) -> str:
    """The text as a CI system's log may have it: ``::set-output`` and ``##vso[...]`` are no commands there."""
    return _COMMAND.sub("# #", _COMMAND_AT_START.sub(r"\1: ", text))


def inert_json(text: str) -> str:
    """The same for JSON, whose meaning stays."""
    return _COMMAND.sub(r"#\\u0023", text)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004  what two digits can say


def writable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON's escapes can name half of a surrogate pair, which becomes U+FFFD."""
    return text if is_writable(text) else _SURROGATE.sub(_REPLACEMENT, text)


def is_writable(text: str) -> bool:
    """Whether UTF-8 can hold the text: no lone surrogate is in it."""
    return text.isascii() or _SURROGATE.search(text) is None
