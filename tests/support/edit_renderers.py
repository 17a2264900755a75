"""Changes of files, written in each format that a model may answer in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

NO_NEWLINE = "\\ No newline at end of file"
Row = tuple[str, str]
"""A sign (blank, - or +) and a line."""


class Hunk(NamedTuple):
    """Lines of a file with a change in them."""

    start: int
    rows: list[Row]

    def side(self, sign: str) -> list[str]:
        """The old (``-``) or the new (``+``) lines."""
        return [line for mark, line in self.rows if mark in {" ", sign}]


class InexpressibleError(Exception):
    """The format cannot say this change."""


def lines_of(text: str) -> list[str]:
    """Lines, ended by ``\\n`` alone, with their ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def hunks(old: str, new: str, *, context: int = 3, must_be_unique: bool = False) -> list[Hunk]:
    """The changes from one text to another; with more context where the old lines would else be there twice."""
    before, after = lines_of(old), lines_of(new)
    codes = [code for code in SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if code[0] != "equal"]
    ranges: list[tuple[int, int]] = []
    for _, low, high, _, _ in codes:
        start, end = max(0, low - context), min(len(before), high + context)
        while must_be_unique and not _is_unique(before, start, end) and (start > 0 or end < len(before)):
            start, end = max(0, start - 1), min(len(before), end + 1)
        while ranges and ranges[-1][1] >= start:
            start, end = min(start, ranges[-1][0]), max(end, ranges.pop()[1])
        ranges.append((start, end))
    return [Hunk(start, list(_rows(before, after, codes, start, end))) for start, end in ranges]


def _is_unique(lines: Sequence[str], start: int, end: int) -> bool:
    """Whether these lines are there once, blanks at both ends of lines left aside."""
    stripped = [line.strip() for line in lines]
    wanted = stripped[start:end]
    if not any(wanted):
        return False
    first = next(number for number, line in enumerate(wanted) if line)
    places = [number for number, line in enumerate(stripped) if line == wanted[first]]
    return sum(stripped[at - first : at - first + len(wanted)] == wanted for at in places if at >= first) == 1


def _rows(before: Sequence[str], after: Sequence[str], codes: Sequence[Any], start: int, end: int) -> Iterator[Row]:
    position = start
    for _, low, high, new_low, new_high in codes:
        if low < start or high > end or (low == high and not start <= low <= end):
            continue
        yield from ((" ", line) for line in before[position:low])
        yield from (("-", line) for line in before[low:high])
        yield from (("+", line) for line in after[new_low:new_high])
        position = high
    yield from ((" ", line) for line in before[position:end])


# --- one file --------------------------------------------------------------------------------------------------------


def diff_of(path: str, old: str | None, new: str | None, *, context: int = 3, must_be_unique: bool = False) -> str:
    """A unified diff of one file, as git writes it."""
    sides = ["/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}"]
    head = f"diff --git a/{path} b/{path}\n"
    head += "new file mode 100644\n" * (old is None) + "deleted file mode 100644\n" * (new is None)
    body, shift = "", 0
    for hunk in hunks(old or "", new or "", context=context, must_be_unique=must_be_unique):
        olds, news = hunk.side("-"), hunk.side("+")
        at = [hunk.start + (1 if olds else 0), hunk.start + shift + (1 if news else 0)]
        body += f"@@ -{at[0]},{len(olds)} +{at[1]},{len(news)} @@\n" + "".join(_diff_lines(hunk.rows))
        shift += len(news) - len(olds)
    return head + (f"--- {sides[0]}\n+++ {sides[1]}\n{body}" if body else "")


def _diff_lines(rows: Sequence[Row]) -> Iterator[str]:
    for sign, line in rows:
        yield f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n{NO_NEWLINE}\n"


def search_replace_of(path: str, old: str | None, new: str) -> str:
    """Search/replace blocks for one file; an empty search for a file that is new."""
    refuse_signs(old or "", new)
    pairs = [([], lines_of(new))] if not old else [
        (hunk.side("-"), hunk.side("+")) for hunk in hunks(old, new, context=1, must_be_unique=True)
    ]  # fmt: skip
    if old and not all("".join(search).strip() for search, _ in pairs):
        raise InexpressibleError
    return "\n".join(block_of(path, search, replace) for search, replace in pairs)


def refuse_signs(old: str, new: str) -> None:
    """New lines with a ``+`` in front, in a file without such lines, look like those of a diff in the wrong format."""
    if any(line.startswith("+") for line in lines_of(new)) and not any(line.startswith("+") for line in lines_of(old)):
        raise InexpressibleError


def block_of(path: str, search: Sequence[str], replace: Sequence[str]) -> str:
    """One search/replace block, its markers of a length that no line of it has."""
    texts = [_block_text(side, other) for side, other in ((search, replace), (replace, search))]
    taken = {len(found[1]) for text in texts for found in re.finditer(r"(?m)^[ \t]*(<{5,9}|={5,9}|>{5,9})", text)}
    size = next((size for size in (7, 6, 8, 5, 9) if size not in taken), None)
    if size is None:
        raise InexpressibleError
    return f"File: {path}\n{'<' * size} SEARCH\n{texts[0]}{'=' * size}\n{texts[1]}{'>' * size} REPLACE\n"


def _block_text(lines: Sequence[str], other: Sequence[str]) -> str:
    """A block's side; that the file has no last line break is said where the other side says otherwise."""
    text = "".join(lines)
    if not text or text.endswith("\n"):
        return text
    if text.endswith("\r"):
        raise InexpressibleError
    states = not other or other[-1].endswith("\n")
    return f"{text}\n{NO_NEWLINE}\n" if states else f"{text}\n"


def patch_of(path: str, old: str | None, new: str | None) -> str:
    """One file's section of a patch envelope."""
    if new is None:
        return f"*** Delete File: {path}\n"
    if new and not new.endswith("\n"):
        raise InexpressibleError  # an envelope always ends a file with a line break
    if old is None:
        return f"*** Add File: {path}\n" + "".join(f"+{line}" for line in lines_of(new))
    if old and not old.endswith("\n"):
        raise InexpressibleError
    body = ""
    for hunk in hunks(old, new, must_be_unique=True):
        if old and not "".join(hunk.side("-")).strip():
            raise InexpressibleError
        body += "@@\n" + "".join(f"{sign}{line}" for sign, line in hunk.rows)
    return f"*** Update File: {path}\n{body}"


def json_edits_of(path: str, old: str, new: str) -> dict[str, Any]:
    """One file's change as a list of edits in JSON."""
    refuse_signs(old, new)
    found = hunks(old, new, context=1, must_be_unique=True)
    edits = [{"search": "".join(one.side("-")), "replace": "".join(one.side("+"))} for one in found]
    if any(old.find(edit["search"], old.find(edit["search"]) + 1) >= 0 for edit in edits):
        raise InexpressibleError
    return {"operation": "edit", "file_path": path, "content": None, "edits": edits, "new_path": None}


# --- a change set ----------------------------------------------------------------------------------------------------

Texts = Mapping[str, str]


def changed(before: Texts, after: Texts) -> list[str]:
    """The paths that differ."""
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def as_unified_diff(before: Texts, after: Texts) -> str:
    """A change set as one diff."""
    return "".join(diff_of(path, before.get(path), after.get(path)) for path in changed(before, after))


def as_fenced_diff(before: Texts, after: Texts) -> str:
    """A change set as one diff in a fence, with a sentence before it."""
    return f"Here is the diff:\n\n```diff\n{as_unified_diff(before, after)}```\n"


def as_search_replace(before: Texts, after: Texts) -> str:
    """A change set as search/replace blocks, and a line for each file that goes."""
    parts = [
        f"DELETE {path}\n" if path not in after else search_replace_of(path, before.get(path), after[path])
        for path in changed(before, after)
    ]
    return "\n".join(parts)


def as_patch(before: Texts, after: Texts) -> str:
    """A change set as a patch envelope."""
    sections = "".join(patch_of(path, before.get(path), after.get(path)) for path in changed(before, after))
    return f"*** Begin Patch\n{sections}*** End Patch\n"


def as_json_edits(before: Texts, after: Texts) -> str:
    """A change set in JSON, with edits for files that are there."""
    changes: list[dict[str, Any]] = []
    for path in changed(before, after):
        if path not in after:
            changes.append({"operation": "delete", "file_path": path})
        elif not before.get(path):
            changes.append({"operation": "create", "file_path": path, "content": after[path]})
        else:
            changes.append(json_edits_of(path, before[path], after[path]))
    return json.dumps({"explanation": "", "changes": changes}, ensure_ascii=False)


EDITS: dict[str, Callable[[Texts, Texts], str]] = {
    "json": as_json_edits,
    "search_replace": as_search_replace,
    "unified_diff": as_unified_diff,
    "patch": as_patch,
}
"""The formats with edits, by the names that answers are given."""
