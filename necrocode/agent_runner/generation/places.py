"""Where in a file an edit may be meant: a ladder of ever more forgiving comparisons, ended by the first that finds.

1. the text as it is;
2. other line ends, a byte order mark, a missing final newline;
3. other blanks at the ends of lines;
4. another indentation, by one rule for all lines;
5. other quotes, dashes and spaces (Unicode punctuation folded), with 4;
6. lines left out: ``...`` in the search, paired with ``...`` in the replacement;
7. other blank lines, with 5;
8. nearly the same: see :func:`_nearly`.

How many places there are is not judged here; but the first two comparisons are one where it comes to that: a place is
not the only one because another of the same lines is the file's first or last.
"""

from __future__ import annotations

import re
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.file_lines import (
    BOM,
    MOST_PLACES,
    FileLines,
    body_of,
    indent_of,
    plain,
    punctuation_folded,
    split_lines,
    without_indentation,
    without_trailing_blanks,
)
from necrocode.agent_runner.generation.near_lines import likeness, windows
from necrocode.agent_runner.generation.rewriting import Said, is_torn, reindenter, rewritten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from necrocode.agent_runner.models import TextEdit

LEAST_SIMILARITY = 0.9
"""How alike, by characters, a place must be that is only nearly what an edit searches for."""
CLEAR_LEAD = 0.1
"""How much less alike every other place must be."""
_LEAST_NEAR_LINES = 3
_MOST_OF_EVERY = 100_000

ELISION = re.compile(r"^\s*(?:#|//|--|;|%|/\*|<!--|\{/\*)?\s*(?:\.{3,}|…)(?:\s*(?:\*/|-->|\*/\}))?\s*$")
"""A line that stands for others: ``...``, alone or in a comment."""
# Two of these side by side are in one word or number; scripts that write no blanks between words are not among them.
_OF_WORD = re.compile(r"[^\W\u2e80-\uffff]|[\udc80-\udcff]")
_HALF_OF_CHARACTER = re.compile(r"[\udc80-\udcff]")


class Place(NamedTuple):
    """Where an edit may be meant: a part of the text, by offsets, and what would stand there."""

    start: int
    end: int
    write: Callable[[], str]
    is_exact: bool
    """Whether the file has the very text there, line ends and blanks at the ends of lines aside."""


def places(edit: TextEdit, file: FileLines) -> list[Place]:
    """The places that the first successful comparison finds, in the file's order; empty when none does.

    Of places that overlap, an edit that means all of them has the first.
    """
    found = _found(edit, file)
    if not edit.every:
        return _at_the_start(found) if edit.search.startswith(BOM) and file.text.startswith(BOM) else found
    if len(found) > _MOST_OF_EVERY:
        raise ChangeRejectedError(f"An edit of the answer means more than {_MOST_OF_EVERY} places of one file.")
    apart: list[Place] = []
    for place in found:
        if not apart or place.start >= apart[-1].end:
            apart.append(place)
    return apart


def _at_the_start(found: list[Place]) -> list[Place]:
    """Of several places the one that begins the file: a byte order mark stands nowhere else."""
    return [place for place in found if place.start <= len(BOM)] or found


def _most(edit: TextEdit) -> int:
    return _MOST_OF_EVERY + 1 if edit.every else MOST_PLACES


def _found(edit: TextEdit, file: FileLines) -> list[Place]:
    if not edit.whole_lines:
        if found := _parts(edit, file):
            return found
        edit = _as_lines(edit)
    if "\r" not in file.text and (found := _as_it_is(edit, file)):
        return found
    search = edit.search.removeprefix(BOM)
    if not search.strip():
        return _blank(edit, file)
    said = Said.of(edit.search, edit.replace, file.effort)
    for fold, is_exact in (
        (plain, True), (without_trailing_blanks, True), (without_indentation, False), (punctuation_folded, False),
    ):  # fmt: skip
        if found := _by_lines(edit, said, file, fold, is_exact=is_exact):
            return found
    return _elided(edit, file) or _without_blank_lines(edit, said, file) or _nearly(edit, said, file)


def _parts(edit: TextEdit, file: FileLines) -> list[Place]:
    """Every occurrence of the text; a line break that it writes becomes one of the file's where it names none.

    An occurrence that begins or ends amid a word or number is none, unless all are meant; nor is one that may begin
    amid a character of an unknown encoding.
    """
    text, search, new = file.text, edit.search, edit.replace
    if not {"\n", "\r"} & {*search} and "\r" not in new and "\n" in new and file.common_end != "\n":
        new = new.replace("\n", file.common_end)
    starts = list(islice(_clean_cuts(edit, file, search), _most(edit)))
    found = [Place(start, start + len(search), partial(str, new), is_exact=True) for start in starts]
    if found and search.endswith("\n") and text.endswith(open_end := search[:-1]) and not file.ends_in_newline:
        at = len(text) - len(open_end)  # the same lines once more, the last one without its line break
        found += [Place(at, len(text), partial(str, new.removesuffix("\n")), is_exact=True)]
    return found


def _clean_cuts(edit: TextEdit, file: FileLines, search: str) -> Iterator[int]:
    text = file.text
    ends_in_word = bool(_OF_WORD.match(search[-1:]))
    inside = _OF_WORD if not edit.every and _OF_WORD.match(search) else _HALF_OF_CHARACTER
    inside = inside if search[:1] > "/" else re.compile(r"(?!)")
    for start in file.occurrences(text, search):
        end = start + len(search)
        is_cut = start > 0 and inside.match(text, start - 1)
        is_cut = is_cut or (ends_in_word and not edit.every and _OF_WORD.match(text, end))
        if not is_cut:
            yield start


def _as_lines(edit: TextEdit) -> TextEdit:
    search, replace = (text if text.endswith("\n") else f"{text}\n" for text in (edit.search, edit.replace))
    return edit.model_copy(update={"search": search, "replace": replace, "whole_lines": True})


def _as_it_is(edit: TextEdit, file: FileLines) -> list[Place]:
    """The text itself, from the beginning of a line to the end of one."""
    text, search = file.text, edit.search
    starts = [0] if text.startswith(search) else []
    starts += [at + 1 for at in islice(file.occurrences(text, f"\n{search}"), _most(edit))]
    if not search.endswith("\n"):  # the edit says that its last line is the file's last, without a line break
        starts = [start for start in starts if start + len(search) == len(text)]
    elif starts and (text.startswith(f"{BOM}{search}") or _is_open_end(text, search[:-1])):
        return []  # there is another such place, which the lines without their ends show
    return [Place(start, start + len(search), partial(str, edit.replace), is_exact=True) for start in starts]


def _is_open_end(text: str, search: str) -> bool:
    """Whether a text ends with these lines and no line break after them."""
    return text.endswith(f"\n{search}") or text.removeprefix(BOM) == search


def _blank(edit: TextEdit, file: FileLines) -> list[Place]:
    """Blank lines alone: found by their number; at the end of the file when it has no such run of them."""
    said = Said.of(edit.search, edit.replace, file.effort)
    found = _by_lines(edit, said, file, without_trailing_blanks, is_exact=True)
    if found or not edit.at_end:
        return found
    return [end_place(edit.model_copy(update={"replace": "".join(_new_lines(edit, said))}), file)]


def _new_lines(edit: TextEdit, said: Said) -> Iterator[str]:
    lines = split_lines(edit.replace)
    return (lines[new] for old, new in said.kept if old < 0)


def end_place(edit: TextEdit, file: FileLines) -> Place:
    """After the file's last line."""
    said = Said.of("", edit.replace, file.effort)
    lines = range(len(file.lines), len(file.lines))
    last = file.text[-1:]
    bridge = file.common_end if last and not file.ends_in_newline else ""

    def write() -> str:
        return bridge + rewritten(file, said, (), lines, edit=edit, reindent=None)

    return Place(len(file.text), len(file.text), write, is_exact=True)


def line_place(edit: TextEdit, file: FileLines, number: int) -> Place:
    """Before the line of this number, counted from 0; with the ends that the edit has where the file has both kinds."""
    said = Said.of("", edit.replace, file.effort)
    at = file.starts[number]
    if 0 < file.text.count("\r\n") < file.text.count("\n") and edit.replace.endswith("\n") and number:
        return Place(at, at, partial(str, edit.replace), is_exact=True)
    write = partial(rewritten, file, said, (), range(number, number), edit=edit, reindent=None)
    return Place(at, at, write, is_exact=True)


def _by_lines(
    edit: TextEdit, said: Said, file: FileLines, fold: Callable[[str], str], *, is_exact: bool
) -> list[Place]:
    found = []
    for start in file.find(fold, said.search, most=_most(edit)):
        lines = range(start, start + len(said.search))
        if not edit.search.endswith("\n") and lines.stop < len(file.lines):
            continue
        if (place := _place(edit, said, file, lines, lines, is_exact=is_exact)) is not None:
            found.append(place)
    return found


def _place(
    edit: TextEdit, said: Said, file: FileLines, aligned: Sequence[int | None], lines: range, *, is_exact: bool
) -> Place | None:
    """A place of these lines; None when they are indented by no one rule."""
    start, end = file.starts[lines.start], file.starts[lines.stop]
    if is_exact:
        if (new := _stated(edit, file.text, start, end)) is not None:
            return Place(start, end, partial(str, new), is_exact=True)
        return Place(start, end, partial(rewritten, file, said, aligned, lines, edit=edit, reindent=None), is_exact)
    pairs = [(said.search[number], file.bodies[at]) for number, at in enumerate(aligned) if at is not None]
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    reindent = reindenter(ours, theirs, said.replace, file.indent_unit)
    if reindent is None and not said.only_removes:
        return None
    return Place(start, end, partial(rewritten, file, said, aligned, lines, edit=edit, reindent=reindent), is_exact)


def _stated(edit: TextEdit, text: str, start: int, end: int) -> str | None:
    """What stands there afterwards when the edit has the very text, line ends included; None when it has not.

    A last line of the file without an end counts as the same where a line end before it shows that ends are stated.
    """
    if end - start == len(edit.search) and text.startswith(edit.search, start):
        return edit.replace
    is_open_end = end == len(text) and end - start == len(edit.search) - 1 and edit.search.endswith("\n")
    if (
        is_open_end
        and edit.final_newline == "kept"
        and "\n" in edit.search[:-1]
        and edit.search.startswith(text[start:])
    ):
        return edit.replace.removesuffix("\n").removesuffix("\r")
    return None


# --- lines left out --------------------------------------------------------------------------------------------------


def _elided(edit: TextEdit, file: FileLines) -> list[Place]:
    """The places of an edit whose search leaves lines out where its replacement does; what is left out stays."""
    searches, replaces = _segments(edit.search), _segments(edit.replace)
    if len(searches) < 2 or len(searches) != len(replaces):  # noqa: PLR2004  one segment: nothing is left out
        return []
    steps: list[list[Place]] = []
    for search, replace in zip(searches, replaces, strict=True):
        if not search.strip() or (found := _segment_places(edit, search, replace, file)) == []:
            if search.strip() or replace.strip():
                return []
            continue
        steps.append(found)
    chains = _chains(steps)
    if len(chains) == 1 and any(_leaves_block(file, one, other) for one, other in pairwise(chains[0])):
        return []
    return [_joined(chain, file) for chain in chains]


def _leaves_block(file: FileLines, one: Place, other: Place) -> bool:
    """Whether what is left out between two places may end the block that both are in, or holds a ``...`` of its own.

    Then the later lines may be those of another function.
    """
    before, after = file.line_at(one.end), file.line_at(other.start)
    bodies = file.bodies
    last = next((body for body in reversed(bodies[file.line_at(one.start) : before]) if body.strip()), "")
    depths = len(indent_of(last)), len(indent_of(bodies[after]))
    least = depths[0] + 1 if depths[1] > depths[0] else depths[1]
    for body in bodies[before:after]:
        ends_signature = body.lstrip().startswith(")") and body.rstrip().endswith((":", "{"))
        if ELISION.match(body) or (body.strip() and len(indent_of(body)) < least and not ends_signature):
            return True
    return False


def _segments(text: str) -> list[str]:
    segments = [""]
    for line in split_lines(text):
        if ELISION.match(body_of(line)):
            segments.append("")
        else:
            segments[-1] += line
    return segments


def _segment_places(edit: TextEdit, search: str, replace: str, file: FileLines) -> list[Place]:
    part = edit.model_copy(update={"search": search, "replace": replace, "every": False})
    if "\r" not in file.text and (found := _as_it_is(part, file)):
        return found
    said = Said.of(search, replace, file.effort)
    for fold in (without_trailing_blanks, without_indentation, punctuation_folded):
        if found := _by_lines(part, said, file, fold, is_exact=fold is without_trailing_blanks):
            return found
    return []


def _chains(steps: Sequence[Sequence[Place]]) -> list[tuple[Place, ...]]:
    """The ways to take one place of each step, each after the one before it: none, the only one, or two of several."""
    first, last = earliest(steps), latest(steps)
    if not steps or first is None or last is None:
        return []
    return [first] if first == last else [first, last]


def earliest(steps: Iterable[Sequence[Place]]) -> tuple[Place, ...] | None:
    """The first place of each step that is after the one before it; None when some step has none."""
    chain: list[Place] = []
    for found in steps:
        after = chain[-1].end if chain else 0
        place = next((one for one in found if one.start >= after), None)
        if place is None:
            return None
        chain.append(place)
    return tuple(chain)


def latest(steps: Sequence[Sequence[Place]]) -> tuple[Place, ...] | None:
    """The last place of each step that is before the one after it; None when some step has none."""
    chain: list[Place] = []
    for found in reversed(steps):
        place = next((one for one in reversed(found) if not chain or one.end <= chain[-1].start), None)
        if place is None:
            return None
        chain.append(place)
    return tuple(reversed(chain))


def _joined(chain: Sequence[Place], file: FileLines) -> Place:
    def write() -> str:
        between = [file.text[one.end : other.start] for one, other in pairwise(chain)]
        return "".join(new for one, left in zip(chain, [*between, ""], strict=True) for new in (one.write(), left))

    return Place(chain[0].start, chain[-1].end, write, is_exact=False)


# --- blank lines, and nearly -----------------------------------------------------------------------------------------


def _without_blank_lines(edit: TextEdit, said: Said, file: FileLines) -> list[Place]:
    """The places where the lines that are not blank follow each other, with however many blank ones between them."""
    filled = [number for number, body in enumerate(said.search) if body.strip()]
    wanted = [said.search[number] for number in filled]
    found = []
    for start in file.find(punctuation_folded, wanted, skip_blank=True):
        at = file.filled[start : start + len(filled)]
        aligned = _aligned_blanks(said, file, dict(zip(filled, at, strict=True)))
        ends = [one for one in aligned if one is not None]
        place = _place(edit, said, file, aligned, range(ends[0], ends[-1] + 1), is_exact=False)
        if place is not None and not is_torn(said, aligned):
            found.append(place)
    return found


def _aligned_blanks(said: Said, file: FileLines, at: dict[int, int]) -> list[int | None]:
    """The file's line for each searched one; a blank one takes the file's next blank line, if one is there."""
    aligned: list[int | None] = []
    position = min(at.values()) - min(at)  # blank lines that come first
    for number, body in enumerate(said.search):
        if number in at:
            position = at[number]
        elif not (0 <= position < len(file.bodies)) or body.strip() or file.bodies[position].strip():
            aligned.append(None)
            position += position < min(at.values())
            continue
        aligned.append(position)
        position += 1
    return aligned


def _nearly(edit: TextEdit, said: Said, file: FileLines) -> list[Place]:
    """The places that have every line which the edit changes, and the others but for a slip of the pen.

    A line that the edit only quotes may differ in blanks, quotes, and the marks that part words or end lines. Another
    word, number or operator names another place: it may say the opposite. The whole must be alike by
    :data:`LEAST_SIMILARITY`, and no other place nearly so (:data:`CLEAR_LEAD`).
    """
    filled = [number for number, body in enumerate(said.search) if body.strip()]
    if len(filled) < _LEAST_NEAR_LINES or not edit.search.endswith("\n"):
        return []
    scored = []
    for start in windows(said, filled, file):
        score, is_near = likeness(said, file, start)
        lines = range(start, start + len(said.search))
        place = _place(edit, said, file, lines, lines, is_exact=False) if is_near else None
        scored.append((score, place))
    good = [place for score, place in scored if place is not None and score >= LEAST_SIMILARITY]
    best = max((score for score, place in scored if place in good), default=0.0)
    close = sum(score > best - CLEAR_LEAD for score, _ in scored)
    return good if len(good) > 1 or close == 1 else []
