"""A file's bytes, edited: its encoding kept, and every byte that no edit is about."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.file_encoding import LEGACY, decoded, known_encodings
from necrocode.agent_runner.generation.matching import apply_edits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.generation.file_lines import Effort
    from necrocode.agent_runner.generation.refusals import Refusal
    from necrocode.agent_runner.models import TextEdit


def edited_bytes(
    old: bytes, edits: Sequence[TextEdit], *, in_order: bool, effort: Effort, path: str
) -> tuple[bytes, tuple[Refusal, ...]]:
    """The new bytes, or the refusals; :class:`ChangeRejectedError` for a text that the file's encoding cannot hold.

    A file that is not UTF-8 is edited as bytes. Where the edits themselves hold other characters than ASCII, they are
    written in the encoding that the file tells, or else in the one under which their search texts are found; where that
    is several, in none unless all of them write the same.
    """
    known = known_encodings(old)
    refused: tuple[Refusal, ...] = ()
    results: set[bytes] = set()
    for encoding in _to_try(edits, known, path):
        file = decoded(old, encoding)
        if file is None:
            continue
        edited = apply_edits(file.text, edits, in_order=in_order, effort=effort)
        if edited.refusals:
            refused = refused or edited.refusals
            continue
        with suppress(UnicodeEncodeError):
            results.add(file.encoded(edited.text))
        if results and encoding in known:
            break
    if len(results) == 1:
        return results.pop(), ()
    if results:
        raise ChangeRejectedError(
            f"{path!r} is not UTF-8 text, and may be in one of several encodings that write the new text differently.",
            hint="Search for more of the lines that hold other characters than ASCII, or write plain ASCII.",
        )
    if refused and (known or not _has_characters(edits)):
        return old, refused
    raise _unwritable(path, known)


def _to_try(edits: Sequence[TextEdit], known: Sequence[str], path: str) -> Sequence[str]:
    """The encodings to try; several are only tried where finding the edits tells which one it is."""
    if known and known[0].startswith("utf"):
        return known
    if not _has_characters(edits):
        return ("utf-8",)
    if not known and not any(_goes_beyond_ascii(edit.search) for edit in edits):
        raise ChangeRejectedError(
            f"{path!r} is not UTF-8 text, and nothing in it tells how other characters than ASCII are to be written.",
            hint="Search for a line that holds such characters too, or write plain ASCII.",
        )
    return known or LEGACY


def _unwritable(path: str, known: Sequence[str]) -> ChangeRejectedError:
    if not known:
        return ChangeRejectedError(
            f"{path!r} is not UTF-8 text, and the edit's text is found in it under no encoding that is tried here.",
            hint="Search for lines that are plain ASCII, and write plain ASCII.",
        )
    if known[0].startswith("utf"):
        return ChangeRejectedError(f"The text for {path!r} holds half of a surrogate pair.")
    return ChangeRejectedError(
        f"{path!r} is in {known[0]}, which has not all the characters of the new text.",
        hint="Write characters that it has, or plain ASCII.",
    )


def _has_characters(edits: Sequence[TextEdit]) -> bool:
    return any(_goes_beyond_ascii(edit.replace) or _goes_beyond_ascii(edit.search) for edit in edits)


def _goes_beyond_ascii(text: str) -> bool:
    """Whether a text holds characters, and not only escaped bytes, beyond ASCII."""
    return any(char > "\x7f" and not "\udc80" <= char <= "\udcff" for char in text)
