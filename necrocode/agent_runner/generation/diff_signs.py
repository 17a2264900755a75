"""Search/replace edits whose lines carry the signs of a diff: ``-`` and ``+`` in front, a blank before lines that stay.

Models mix the two formats. Whether the first characters are signs or the file's own, only the file can tell; where it
does not, an edit is refused: signs that are left in a file are code that nobody wrote.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.file_lines import split_lines
from necrocode.agent_runner.generation.places import places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.file_lines import FileLines
    from necrocode.agent_runner.generation.places import Place
    from necrocode.agent_runner.models import TextEdit

_SIGN = re.compile(r"\+(?!\+)")
_BULLET = re.compile(r"[+*-] [^\s+*-]")


def read_without_signs(edit: TextEdit, file: FileLines, found: Sequence[Place]) -> list[Place] | None:
    """The places of an edit that may carry signs, given those of the edit as it is; None where it stays unclear.

    It does carry them when its text is not in the file as it is, but is there without them, and when both sides have
    the same lines with a blank in front, as in a diff they must.
    """
    search, replace = _filled(edit.search), _filled(edit.replace)
    added = [line for line in replace if _SIGN.match(line)]
    removed = [line for line in search if line.startswith("-")]
    if not (added or removed) or any(line.startswith("+") for line in search):
        return list(found)
    if any(place.is_exact for place in found):
        if removed and not any(line.startswith("+-") for line in added):
            return list(found)  # the file has such signs itself
    elif _all_signed(search, replace) and (others := places(_unsigned(edit), file)):
        return others if not found or _spans(found) == _spans(others) else None
    is_taken = any(_has_whole_lines(place, file) for place in found)
    return None if added and is_taken and not _has_such_lines(file, added) else list(found)


def _unsigned(edit: TextEdit) -> TextEdit:
    """The edit without the first character of each line that has any."""
    search, replace = ("".join(map(_without_sign, split_lines(text))) for text in (edit.search, edit.replace))
    return edit.model_copy(update={"search": search, "replace": replace})


def without_added_signs(text: str) -> str:
    """A text for a file that is new or empty, without the ``+`` in front of each line, unless that makes a list."""
    lines = _filled(text)
    if not lines or not all(line.startswith("+") for line in lines) or all(map(_BULLET.match, lines)):
        return text
    written = list(map(_without_sign, split_lines(text)))
    depths = {len(line) - len(line.lstrip(" ")) for line in written if line.strip()}
    return "".join(line.removeprefix(" ") if min(depths) == 1 else line for line in written)


def _filled(text: str) -> list[str]:
    return [line for line in split_lines(text) if line.strip()]


def _without_sign(line: str) -> str:
    return line[1:] if line[0] in "+- " else line


def _all_signed(search: Sequence[str], replace: Sequence[str]) -> bool:
    if any(line[0] not in "- " for line in search) or any(line[0] not in "+ " for line in replace):
        return False
    kept, said = ([line.rstrip() for line in side if line[0] == " "] for side in (search, replace))
    return kept == said


def _spans(found: Sequence[Place]) -> list[tuple[int, int]]:
    return [(place.start, place.end) for place in found]


def _has_whole_lines(place: Place, file: FileLines) -> bool:
    text = file.text
    ends = place.end == len(text) or "\n" in (text[place.end], text[place.end - 1])
    return ends and (place.start == 0 or text[place.start - 1] == "\n")


def _has_such_lines(file: FileLines, added: Sequence[str]) -> bool:
    """Whether the file has lines of its own that begin with ``+``, or the added ones are items of a list in it."""
    file.effort.spend(len(file.text))
    if any(body.startswith("+") for body in file.bodies):
        return True
    return all(map(_BULLET.match, added)) and any(map(_BULLET.match, file.bodies))
