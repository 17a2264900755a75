"""Lines that stand for code which the model left out: "# ... rest of the code stays as it is", or dots alone."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.file_lines import indent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from necrocode.agent_runner.models import CodeChange, TextEdit

_LONGEST_LINE = 200
_DOTS = "..."
_PROSE = {".md", ".rst", ".txt", ".adoc", ".markdown"}  # where an example may leave something out
# A comment alone on its line, with an ellipsis and a word for what is not there, or a bracketed remark of that kind.
_COMMENT = re.compile(r"^[ \t]*(?:#|//|/\*|<!--|--|;|%|\{/\*)[ \t]*(.{1,160})$")
_LEFT_OUT = re.compile(
    r"(?i)(?:\.\.\.|…).{0,40}\b(?:rest|existing|remaining|other|previous|unchanged|same|omitted|as before)\b"
    r"|\b(?:rest of (?:the|this|your) (?:code|file|class|function|method|implementation|tests?)"
    r"|(?:existing|remaining|other|previous) (?:code|methods?|functions?|tests?|imports?|content)"
    r"(?: (?:here|above|below|stays?|remains?|goes here|unchanged))?)\b.{0,40}(?:\.\.\.|…|unchanged|the same|as before)"
    r"|(?:\.\.\.|…)\s*(?:省略|以下同じ|変更なし|既存のコード)|(?:以下|既存のコード).{0,10}(?:省略|変更なし|そのまま)"
)


def refuse_placeholders(
    changes: Iterable[CodeChange], old_text: Callable[[str], str | None], *, unseen: str = ""
) -> None:
    """Refuse new text in which a comment stands for code that the file has: applied, it would delete that code.

    ``old_text`` gives a file's text, or None where there is none; a comment that the file has already may stay. So are
    lines of dots alone that an edit writes in the place of lines; those of a diff are meant, as each of its lines is.
    ``unseen`` is a file that cannot be edited.
    Raises :class:`ChangeRejectedError` with feedback.
    """
    for change in changes:
        old = old_text(change.file_path.removeprefix("./"))
        if old is None:
            continue
        is_code = not change.in_order and PurePosixPath(change.file_path).suffix.lower() not in _PROSE
        if is_code and any(_leaves_code_out(edit) for edit in change.edits):
            raise _refusal(change.file_path, _DOTS, unseen)
        kept = {line.strip() for line in old.splitlines()}
        for text in (change.content or "", *(edit.replace for edit in change.edits if edit.search.strip())):
            for line in text.splitlines():
                if len(line) <= _LONGEST_LINE and _is_placeholder(line) and line.strip() not in kept:
                    raise _refusal(change.file_path, line.strip(), unseen)


def _is_placeholder(line: str) -> bool:
    comment = _COMMENT.match(line)
    return comment is not None and _LEFT_OUT.search(comment[1]) is not None


def _leaves_code_out(edit: TextEdit) -> bool:
    """Whether a line of dots stands for lines that would be lost, and is not the body of a new stub."""
    if _DOTS not in edit.replace or not edit.search.strip():
        return False
    old, new = edit.search.splitlines(), edit.replace.splitlines()
    if sum(line.strip() == _DOTS for line in new) <= sum(line.strip() == _DOTS for line in old):
        return False
    said = [line.strip() for line in old if line.strip()]
    written = iter([line.strip() for line in new])
    only_adds = all(line in written for line in said)
    return not (only_adds and _are_stubs(new, frozenset(said)))


def _are_stubs(lines: Sequence[str], known: frozenset[str]) -> bool:
    """Whether each line of dots is the whole body of a definition that was not known before."""
    filled = [line for line in lines if line.strip()]
    for at, line in enumerate(filled):
        if line.strip() == _DOTS:
            head = filled[at - 1] if at else ""
            after = filled[at + 1] if at + 1 < len(filled) else ""
            is_alone = len(indent_of(after)) < len(indent_of(line))
            if not is_alone or not head.rstrip().endswith(":") or head.strip() in known:
                return False
    return True


def _refusal(path: str, line: str, unseen: str) -> ChangeRejectedError:
    by_edits = ", or with search/replace blocks for only the lines that change"
    return ChangeRejectedError(
        f"The answer has a line in the place of code in {path!r}: {line}",
        feedback=f"In {path} you wrote {line!r} in the place of code. What you leave out would be deleted. Nothing of"
        " your answer was applied. Send the whole answer again, with every line of the file written out"
        f"{'' if path.removeprefix('./') == unseen else by_edits}.",
    )
