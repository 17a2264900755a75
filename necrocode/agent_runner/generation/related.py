"""What became of the files that a task lists: a file that the model ought to see and does not is never passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner._git import MODE_SUBMODULE, MODE_SYMLINK, MODE_TREE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner._git import TreeEntry
    from necrocode.agent_runner.generation.pieces import Piece
    from necrocode.agent_runner.generation.tree_files import TreeFiles

_KINDS = {
    MODE_SYMLINK: "is a symbolic link, which is not followed: name the file itself",
    MODE_TREE: "is a folder: name its files",
    MODE_SUBMODULE: "is a submodule, which is not looked into",
}


def gaps_in(related: Sequence[str], files: TreeFiles, tree: str, pieces: Sequence[Piece], budget: int) -> list[str]:
    """A sentence for each of the files that is not shown, or only in part; none for those that are not there."""
    found = []
    for path in dict.fromkeys(related):
        entry = _entry(files, tree, path)
        gap = None if entry is None else _gap(path, entry, files, pieces, budget)
        if gap is not None:
            found.append(f"{path}, which related_files names, {gap}.")
    return found


def missing_from(related: Sequence[str], files: TreeFiles, tree: str) -> tuple[str, ...]:
    """Those that the tree does not have."""
    return tuple(path for path in dict.fromkeys(related) if _entry(files, tree, path) is None)


def _gap(path: str, entry: TreeEntry, files: TreeFiles, pieces: Sequence[Piece], budget: int) -> str | None:
    if entry.mode in _KINDS:
        return _KINDS[entry.mode]
    if path not in files.sizes:  # its name is no text
        return "cannot be shown"
    if (hindrance := files.hindrance(path)) is not None:
        return f"is not shown: it {hindrance}"
    shown = [piece for piece in pieces if piece.path == path]
    if any(piece.kind == "whole" for piece in shown):
        return None
    room = f"it does not fit whole into {budget} tokens (llm.context_tokens)"
    if not shown:
        return f"is not shown: {room}"
    lines = sum(piece.end_line - piece.start_line + 1 for piece in shown)
    return f"is shown in part, {lines} of {shown[0].line_count} lines: {room}"


def _entry(files: TreeFiles, tree: str, path: str) -> TreeEntry | None:
    entry = None
    for name in path.split("/"):
        if entry is not None and entry.mode != MODE_TREE:
            return None
        entry = files.objects.entries(tree if entry is None else entry.oid).get(name)
        if entry is None:
            return None
    return entry
