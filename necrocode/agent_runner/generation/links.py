"""How files are tied to each other and to names: by path, by module name, by import, by being tested."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MOST_SHARING_A_NAME = 3
"""A name that more files share than this does not name any of them."""
_LONGEST_IMPORT_LINE = 300
MAX_IMPORTS = 200
_IMPORT = re.compile(
    r"^[ \t]{0,8}(?:from[ \t]+(?P<base>[.\w]+)[ \t]+import[ \t]+(?P<names>[\w, \t(*]{1,200})"
    r"|(?:pub )?(?:import|use|using|require|require_relative|include)\b[ \t(]+(?P<one>[\w.:/\\*{}, \t]{1,200})"
    r"|\#[ \t]*include[ \t]+\"(?P<header>[^\"\n]{1,200})\")",
    re.MULTILINE,
)
_QUOTED_IMPORT = re.compile(
    r"(?:\bfrom|\bimport|\brequire(?:_relative)?)[ \t]{0,4}\(?[ \t]{0,4}[\"'](?P<path>[^\"'\n]{1,200})[\"']"
)
_TEST_NAME = re.compile(r"(?i)^(?:test_(?P<after>\w+)|(?P<before>\w+?)(?:_test|_spec|\.test|\.spec|Tests?))\.\w+$")
_INDEX_NAMES = {"__init__", "index", "mod", "main"}


def subject_of(path: str) -> str:
    """The stem of the file that a test file is about by its name: ``tests/test_config.py`` is about ``config``."""
    found = _TEST_NAME.match(path.rsplit("/", 1)[-1])
    return "" if found is None else (found["after"] or found["before"] or "").lower()


def _stem_of(path: str) -> str:
    folder, _, name = path.rpartition("/")
    stem = name.partition(".")[0].lower()
    return folder.rpartition("/")[2].lower() if stem in _INDEX_NAMES and folder else stem


class LinkIndex:
    """Finds files of a tree by what they are called."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths if isinstance(paths, dict) else dict.fromkeys(paths)

    @cached_property
    def _by_name(self) -> Mapping[str, list[str]]:
        by_name: dict[str, list[str]] = {}
        for path in self._paths:
            by_name.setdefault(path.rpartition("/")[2], []).append(path)
        return by_name

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        by_stem: dict[str, list[str]] = {}
        for path in self._paths:
            by_stem.setdefault(_stem_of(path), []).append(path)
        return by_stem

    def named(self, word: str) -> list[str]:
        """The files that a word means: a path, the end of one, or one under another root; a bare name if it is rare."""
        if word in self._paths:
            return [word]
        parts = word.split("/")
        sharing = self._by_name.get(parts[-1], []) if parts[-1] else []
        if not sharing or ("." not in parts[-1] and len(parts) == 1):
            return []
        alike = [(_shared_end(path.split("/"), parts), path) for path in sharing]
        most = max(count for count, _ in alike)
        best = sorted(path for count, path in alike if count == most)
        if len(parts) > 1 and most == 1 and "/" in best[0]:  # another file of the same name
            return []
        return best if len(best) <= _MOST_SHARING_A_NAME else []

    def module(self, dotted: str) -> list[str]:
        """The files of the module that a dotted name is, or is in: ``a.b.c`` is ``a/b/c.py``, or in ``a/b.py``."""
        parts = dotted.lower().split(".")
        for length in range(len(parts), 1, -1):
            best = self._with_end(parts[:length], at_least=2)
            if best:
                return best
        return []

    def with_stem(self, stem: str) -> list[str]:
        """The files whose name without its endings is this, if there are but few."""
        sharing = self._by_stem.get(stem.lower(), [])
        return sorted(sharing) if len(sharing) <= _MOST_SHARING_A_NAME else []

    def imported_by(self, path: str, text: str) -> list[str]:
        """The files of the tree that a file imports, as far as their names tell."""
        found: dict[str, None] = {}
        here = path.split("/")[:-1]
        for reference in _references(text):
            for target in self._resolved(reference, here):
                if target != path:
                    found[target] = None
        return sorted(found)

    def _resolved(self, reference: list[str], here: list[str]) -> list[str]:
        parts = [part.lower() for part in reference if part not in {"", ".", ".."}]
        if not parts:
            return []
        if reference[0] in {"", ".", ".."}:  # relative: the nearest one
            return self._with_end([*(part.lower() for part in here[-1:]), *parts], at_least=2)
        return self._with_end(parts, at_least=min(2, len(parts)))

    def _with_end(self, parts: list[str], *, at_least: int) -> list[str]:
        best: list[str] = []
        most = at_least - 1
        for path in self._by_stem.get(parts[-1], ()):
            folders = path.lower().split("/")
            folders[-1] = _stem_of(path)
            if len(folders) > 1 and folders[-1] == folders[-2]:
                folders.pop()
            count = _shared_end(folders, parts)
            if count > most:
                best, most = [path], count
            elif count == most and count >= at_least:
                best.append(path)
        return sorted(best) if len(best) <= _MOST_SHARING_A_NAME else []


def _shared_end(one: list[str], other: list[str]) -> int:
    count = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _references(text: str) -> list[list[str]]:
    references: list[list[str]] = []
    for found in _IMPORT.finditer(text):
        if found["base"]:
            base = found["base"].split(".")
            references.append(base)
            references += [[*base, name.strip(" \t(")] for name in found["names"].split(",") if name.strip(" \t(*")]
        elif found["one"]:
            references += [re.split(r"[.:/\\]+", name.strip()) for name in found["one"].split(",") if name.strip()]
        else:
            references.append(found["header"].partition(".")[0].split("/"))
        if len(references) >= MAX_IMPORTS:
            return references[:MAX_IMPORTS]
    for found in _QUOTED_IMPORT.finditer(text):
        parts = found["path"].split("/")
        references.append([*parts[:-1], parts[-1].partition(".")[0] or parts[-1]])
    return references[:MAX_IMPORTS]
