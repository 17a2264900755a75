"""A file's bytes, edited: its encoding kept, and every byte that no edit is about."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.matching import apply_edits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.file_lines import Effort
    from necrocode.agent_runner.generation.refusals import Refusal
    from necrocode.agent_runner.models import TextEdit

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# For a file that is not all UTF-8. Tried from the strictest on; the last ones read any bytes at all, so that a text
# could be read proves little. It is the searched text, which must be there, that tells which one it is.
_LEGACY = ("utf-8", "euc_jp", "cp932", "gb18030", "euc_kr", "big5", "cp1252", "latin-1")


def edited_bytes(
    old: bytes, edits: Sequence[TextEdit], *, in_order: bool, effort: Effort, path: str
) -> tuple[bytes, tuple[Refusal, ...]]:
    """The new bytes, or the refusals; :class:`ChangeRejectedError` for a text that the file's encoding cannot hold.

    A file that is not UTF-8 is edited as bytes. Where the edits themselves hold other characters than ASCII, it is the
    encoding under which their search texts are found that they are written in.
    """
    encodings = _encodings(old, edits)
    for encoding in encodings:
        errors = "surrogateescape" if encoding == "utf-8" else "strict"
        try:
            text = old.decode(encoding, errors)
        except UnicodeDecodeError:
            continue
        if not _is_kept(text, encoding, old, errors):
            continue
        edited = apply_edits(text, edits, in_order=in_order, effort=effort)
        if edited.refusals and len(encodings) > 1:
            continue
        try:
            return edited.text.encode(encoding, errors), edited.refusals
        except UnicodeEncodeError as error:
            if len(encodings) == 1:
                raise ChangeRejectedError(f"The text for {path!r} holds half of a surrogate pair.") from error
    raise ChangeRejectedError(
        f"{path!r} is not UTF-8 text, and the edit's text is not found in it under any encoding that is known here.",
        hint="Search for lines that are plain ASCII, and write plain ASCII.",
    )


def _encodings(old: bytes, edits: Sequence[TextEdit]) -> Sequence[str]:
    """The encodings to try; several are only tried where finding the edits tells which one it is."""
    if (utf_16 := _UTF_16.get(old[:2])) is not None and not len(old) % 2:
        return (utf_16,)
    try:
        old.decode()
    except UnicodeDecodeError:
        pass
    else:
        return ("utf-8",)
    if not any(_has_characters(edit.replace) or _has_characters(edit.search) for edit in edits):
        return ("utf-8",)
    return _LEGACY if any(_has_characters(edit.search) for edit in edits) else ()


def _has_characters(text: str) -> bool:
    """Whether a text holds characters, and not only escaped bytes, beyond ASCII."""
    return any(char > "\x7f" and not "\udc80" <= char <= "\udcff" for char in text)


def _is_kept(text: str, encoding: str, old: bytes, errors: str) -> bool:
    try:
        return text.encode(encoding, errors) == old
    except UnicodeEncodeError:
        return False
