"""What a model thought before it answered, and between: no part of its answer, and full of drafts."""

from __future__ import annotations

import re

from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.blocks import Fences

_OPENING = re.compile(r"^\s*<think(?:ing)?>")
_CLOSING = re.compile(r"</think(?:ing)?>")


def without_thoughts(body: str) -> str:
    """The answer without what stands between think tags, and without all before a closing tag that nothing opened.

    Servers often cut the opening tag off. A tag counts where it begins or ends a line outside of fenced blocks.
    Raises :class:`MalformedAnswerError` for a thought that never ends, and for a closing tag alone on a line of a
    block: what of it is answer cannot be told.
    """
    if "</think" not in body and "<think" not in body:
        return body
    lines = re.findall(r"[^\n]*\n|[^\n]+", body)
    fences = Fences(lines)
    is_json = body.lstrip()[:1] in {"{", "["}
    kept: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if _OPENING.match(line):
            at = _skip_thought(lines, at)
        elif (opening := fences.opening(at)) is not None:
            end = fences.closing(at + 1, opening)
            end = len(lines) if end is None else end + 1
            _refuse_if_doubtful(lines[at:end])
            kept += lines[at:end]
            at = end
        else:
            after = None if is_json else _after_closing(line)
            if after is None:
                kept.append(line)
            else:
                kept = [after] if after.strip() else []
            at += 1
    return "".join(kept)


def _skip_thought(lines: list[str], at: int) -> int:
    """The line after the thought that begins here; what follows its closing tag on a line stays in that line."""
    for number in range(at, len(lines)):
        if found := _CLOSING.search(lines[number]):
            rest = lines[number][found.end() :]
            if not rest.strip():
                return number + 1
            lines[number] = rest
            return number
    raise MalformedAnswerError("The model's answer begins a thought (<think>) and never ends it: the answer looks cut.")


def _after_closing(line: str) -> str | None:
    """What stands after a closing tag that begins or ends the line; None where there is none."""
    tags = [*_CLOSING.finditer(line)]
    if not tags:
        return None
    found = tags[-1]
    before, after = line[: found.start()], line[found.end() :]
    is_end = not after.strip() and re.search(r"\w", before) is not None and not before.startswith(("+", "-", " "))
    return after if not before or is_end else None


def _refuse_if_doubtful(block: list[str]) -> None:
    is_open = False
    for line in block:
        is_open = is_open or _OPENING.match(line) is not None
        if not is_open and _CLOSING.fullmatch(line.rstrip()):
            raise MalformedAnswerError(
                "A line </think> stands in a fenced block of the model's answer: what was thought and what is meant"
                " cannot be told apart. Write the answer without thoughts before it, each block closed."
            )
