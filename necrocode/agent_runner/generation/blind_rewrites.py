"""Whole-file answers for files that the model has not seen whole: they would lose what it was not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from necrocode.agent_runner.models import CodeChange

SMALL_FILE_LINES = 5
"""A file of at most so many lines is written anew even unseen: an empty ``__init__.py`` has nothing to lose."""
_MOST_NAMED = 5
_LONGEST_NAMED = 200


def refuse_blind_rewrites(
    changes: Iterable[CodeChange], whole: Collection[str], partial: Collection[str], existing: Callable[[str], bool]
) -> None:
    """Refuse a whole new text for a file that was shown in part, or was not shown at all.

    ``whole`` are the paths shown from the first line to the last, ``partial`` those shown in excerpts, ``existing``
    says whether the repository has a file of that path with more than :data:`SMALL_FILE_LINES` lines. A path that the
    answer itself has made, or renamed a file to that was shown whole, is known to it.

    Raises :class:`ChangeRejectedError` with feedback that asks for search/replace blocks.
    """
    known = set(whole) - set(partial)
    blind: list[str] = []
    for change in changes:
        path = change.file_path.removeprefix("./")
        if change.content is not None and path not in known and (path in partial or existing(path)):
            blind.append(path)
        if change.content is not None or path in known:
            known.add((change.new_path or path).removeprefix("./"))
    if not blind:
        return
    named = ", ".join(repr(path[:_LONGEST_NAMED]) for path in dict.fromkeys(blind[:_MOST_NAMED]))
    raise ChangeRejectedError(
        f"The answer rewrites {named} whole, which the model has not seen whole.",
        feedback=f"You wrote the whole text of {named}, but you have not seen the whole file: what you were not shown"
        " would be lost. Nothing of your answer was applied. Send the whole answer again, and change these files by"
        " search/replace blocks:\n\nFile: path/of/the/file\n<<<<<<< SEARCH\nlines of the file, copied exactly\n"
        "=======\nthe lines that take their place\n>>>>>>> REPLACE",
    )
