"""Comments that stand for code which the model left out: "... rest of the code stays as it is"."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from necrocode.agent_runner.models import CodeChange

_LONGEST_LINE = 200
# A comment alone on its line, with an ellipsis and a word for what is not there, or a bracketed remark of that kind.
_COMMENT = re.compile(r"^[ \t]*(?:#|//|/\*|<!--|--|;|%|\{/\*)[ \t]*(.{1,160})$")
_LEFT_OUT = re.compile(
    r"(?i)(?:\.\.\.|…).{0,40}\b(?:rest|existing|remaining|other|previous|unchanged|same|omitted|as before)\b"
    r"|\b(?:rest of (?:the|this|your) (?:code|file|class|function|method|implementation|tests?)"
    r"|(?:existing|remaining|other|previous) (?:code|methods?|functions?|tests?|imports?|content)"
    r"(?: (?:here|above|below|stays?|remains?|goes here|unchanged))?)\b.{0,40}(?:\.\.\.|…|unchanged|the same|as before)"
    r"|(?:\.\.\.|…)\s*(?:省略|以下同じ|変更なし|既存のコード)|(?:以下|既存のコード).{0,10}(?:省略|変更なし|そのまま)"
)


def refuse_placeholders(changes: Iterable[CodeChange], old_text: Callable[[str], str | None]) -> None:
    """Refuse new text in which a comment stands for code that the file has: applied, it would delete that code.

    ``old_text`` gives a file's text, or None where there is none; a comment that the file has already may stay. Raises
    :class:`ChangeRejectedError` with feedback.
    """
    for change in changes:
        old = old_text(change.file_path.removeprefix("./"))
        if old is None:
            continue
        kept = {line.strip() for line in old.splitlines()}
        for text in (change.content or "", *(edit.replace for edit in change.edits if edit.search.strip())):
            for line in text.splitlines():
                if len(line) <= _LONGEST_LINE and _is_placeholder(line) and line.strip() not in kept:
                    raise _refusal(change.file_path, line.strip())


def _is_placeholder(line: str) -> bool:
    comment = _COMMENT.match(line)
    return comment is not None and _LEFT_OUT.search(comment[1]) is not None


def _refusal(path: str, line: str) -> ChangeRejectedError:
    return ChangeRejectedError(
        f"The answer has a comment in the place of code in {path!r}: {line}",
        feedback=f"In {path} you wrote {line!r} in the place of code. What you leave out would be deleted. Nothing of"
        " your answer was applied. Send the whole answer again, with every line of the file written out, or with"
        " search/replace blocks for only the lines that change.",
    )
