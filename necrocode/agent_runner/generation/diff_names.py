"""The names of files in the headers of diffs, as git, GNU diff, Subversion, Mercurial, Bazaar and CVS write them."""

from __future__ import annotations

import re
from typing import NamedTuple

NOWHERE = "/dev/null"
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
# What follows a name where no tab parts them: a date in one of four forms, or Subversion's and Bazaar's word for it.
_AFTER_NAME = re.compile(
    r"(?:\s+\d{4}-\d\d-\d\d[ T]\d\d:\d\d.*"
    rf"|\s+(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +(?:{_MONTHS}|\d{{1,2}}) .*"
    rf"|\s+\d{{1,2}} (?:{_MONTHS}) \d{{4}}.*"
    r"|\s*\((?:revision|working copy|nonexistent|rev)[^)]*\))$"
)
_BEFORE_ANY_FILE = re.compile(
    rf"1970-01-01|\b1 Jan 1970|(?:{_MONTHS}) 0?1 00:00:00 1970|\((?:revision 0|nonexistent)\)"
)
_QUOTED = re.compile(r'^"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}
_KEPT_COPY = re.compile(r"(?:\.orig|\.old|\.bak|~)$")
_NEW_COPY = re.compile(r"\.(?:new|mod|modified|updated|fixed|patched)$")
# What stands before a path on both sides: git's letters, words for before and after, or two states of one folder.
_BEFORE_PATH = re.compile(
    r"(?:[a-z0-9]|orig|original|old|new|mod|modified|before|after|base|head|left|right|from|to|current|updated|ours|theirs"
    r"|src\.orig|trunk|branch|prev|previous|expected|actual)"
)
_STATE_OF_FOLDER = re.compile(
    r"(?:[-._]?(?:orig|original|old|new|mod|modified|bak|fixed|patched)|-\d+(?:\.\d+)+.{0,20})$"
)


class Names(NamedTuple):
    """A file's name before and after; :data:`NOWHERE` where there is no file."""

    old: str
    new: str


def names_on(old_line: str, new_line: str) -> Names:
    """The names on a ``---`` and a ``+++`` line, without dates and without what stands before them on both sides.

    A date at the beginning of all time, or revision 0, means :data:`NOWHERE`; Subversion writes it on both lines.
    """
    (old, old_is_dated), (new, new_is_dated) = _dated_name(old_line), _dated_name(new_line)
    bare = Names(old, new) if NOWHERE in (old, new) else without_prefixes(Names(old, new), None)
    old_is_nowhere = old == NOWHERE or old_is_dated
    new_is_nowhere = new == NOWHERE or (new_is_dated and not old_is_nowhere)
    return Names(NOWHERE if old_is_nowhere else bare.old, NOWHERE if new_is_nowhere else bare.new)


def _dated_name(line: str) -> tuple[str, bool]:
    """The name on a line, and whether its date says that there is no such file."""
    rest = line[4:].strip("\r\n")
    if found := _QUOTED.match(rest):
        return _unquoted(found[1]), False
    name, _, after = rest.partition("\t")
    if dated := _AFTER_NAME.search(name[-200:]):  # a name is short, and the pattern looks at each blank of it
        after = dated[0] or after
        name = name[: len(name) - len(dated[0])]
    return name.strip().strip("`"), bool(_BEFORE_ANY_FILE.search(after[:200]))


def names_on_git_line(line: str) -> Names | None:
    """The two names of ``diff --git a/x b/x``; None where they cannot be told apart."""
    rest = line.removeprefix("diff --git ").strip("\r\n").strip()
    if found := _QUOTED.match(rest):
        second = rest[found.end() :].strip()
        return Names(_unquoted(found[1]), _plain(second)) if second else None
    if rest.endswith('"') and (start := rest.find(' "')) > 0:
        return Names(rest[:start], _plain(rest[start + 1 :]))
    middle, is_even = divmod(len(rest), 2)
    if is_even and rest[middle] == " ":  # the usual case: one name twice, behind prefixes of one length
        return Names(rest[:middle], rest[middle + 1 :])
    sides = rest.split(" ")
    return Names(*sides) if len(sides) == 2 else None  # noqa: PLR2004  from and to


def _plain(name: str) -> str:
    found = _QUOTED.match(name)
    return _unquoted(found[1]) if found else name


def plain_name(name: str) -> str:
    """The name on a git header line such as ``rename from``, unquoted."""
    return _plain(name.strip("\r\n").strip())


def _unquoted(text: str) -> str:
    """A name in git's quotes (quote.c): octal escapes are bytes of UTF-8."""

    def byte(found: re.Match[str]) -> str:
        code = _ESCAPED.get(found[1])
        if code is None:
            code = int(found[1], 8) & 0xFF if found[1][0] in "01234567" else ord(found[1][0])
        return chr(code) if code < 0x80 else f"\udc00{chr(code)}"  # noqa: PLR2004  marked: a byte, not a character

    marked = _ESCAPE.sub(byte, text)
    parts = re.split("((?:\udc00[\x80-\xff])+)", marked)
    return "".join(
        part.replace("\udc00", "").encode("latin-1").decode("utf-8", "replace") if part.startswith("\udc00") else part
        for part in parts
    )


def without_prefixes(names: Names, git: Names | None) -> Names:
    """The names without ``a/`` and ``b/``, or whatever else stands before the same path on both sides."""
    old, new = names
    if NOWHERE in names:
        pair = git or Names(f"a/{new}" if old == NOWHERE else old, new if old == NOWHERE else f"b/{old}")
        bare = _bare(pair)
        if git is None:
            bare = Names(old.removeprefix("a/"), new.removeprefix("b/"))
        return Names(NOWHERE if old == NOWHERE else bare.old, NOWHERE if new == NOWHERE else bare.new)
    return _bare(names)


def _bare(names: Names) -> Names:
    old, new = names
    (first, _, old_rest), (second, _, new_rest) = old.partition("/"), new.partition("/")
    if old == new or not (old_rest or new_rest):
        return _one_of_copies(old, new)
    if old_rest == new_rest and _are_before_path(first, second):
        return Names(old_rest.lstrip("/"), new_rest.lstrip("/"))
    if (first == "a" and old_rest == new) or (second == "b" and new_rest == old):
        return Names(min(names, key=len), min(names, key=len))  # one side has lost its prefix
    if (first, second) == ("a", "b") and old_rest and new_rest:
        return Names(old_rest, new_rest)
    return _one_of_copies(old, new)


def _one_of_copies(old: str, new: str) -> Names:
    """The file's own name twice where one of the two is that of a copy."""
    if _KEPT_COPY.sub("", old) == new:
        return Names(new, new)
    return Names(old, old) if _NEW_COPY.sub("", new) == old else Names(old, new)


def _are_before_path(first: str, second: str) -> bool:
    """Whether two folders only part two states of one tree, so that the path of a file begins after them."""
    if all(_BEFORE_PATH.fullmatch(folder.lower()) for folder in (first, second)) or "" in {first, second}:
        return True
    stems = {_STATE_OF_FOLDER.sub("", folder[-100:]) for folder in (first, second)}
    return len(stems) == 1


def may_be_of_two(names: Names, old_line: str, new_line: str) -> bool:
    """Whether a plain diff's names may be those of two files as well as one file's below two folders."""
    is_gits = old_line[4:].lstrip('"').startswith("a/") and new_line[4:].lstrip('"').startswith("b/")
    old, new = (name.partition("/")[2] for name in names)
    return bool(old) and old == new and names.old != names.new and not is_gits
