"""How much a checkout of a tree would be: a few kilobytes of git objects can stand for billions of files."""

from __future__ import annotations

from necrocode.agent_runner._git.failures import TreeTooLargeError

MOST_ENTRIES = 1_000_000
"""Files and folders."""
MOST_BYTES = 32 << 30
NAMES = ("ls-tree", "-r", "-t", "-z", "--full-tree")
NAMES_AND_SIZES = (*NAMES, "-l")


class Tally:
    """Counts what these commands list of a commit, and keeps none of it; stops them as soon as it is too much.

    Names go first: git has to open a file for the size of each.
    """

    def __init__(self, commit: str, room_bytes: int | None) -> None:
        self._commit = commit
        self._most_bytes = MOST_BYTES if room_bytes is None else min(MOST_BYTES, room_bytes)
        self._entries = self._bytes = 0
        self._rest = b""

    def take_names(self, piece: bytes) -> None:
        """Take in more of what :data:`NAMES` prints; :class:`TreeTooLargeError`."""
        self._entries += piece.count(b"\0")
        if self._entries > MOST_ENTRIES:
            raise TreeTooLargeError(f"the tree of {self._commit} has more than {MOST_ENTRIES} files and folders.")

    def take_sizes(self, piece: bytes) -> None:
        """Take in more of what :data:`NAMES_AND_SIZES` prints; :class:`TreeTooLargeError`."""
        *records, self._rest = (self._rest + piece).split(b"\0")
        for record in records:  # <mode> <type> <id> <size>TAB<path>, padded; "-" for folders and submodules
            size = record.partition(b"\t")[0].rpartition(b" ")[2]
            self._bytes += int(size) if size.isdigit() else 0
        if self._bytes > self._most_bytes:
            raise TreeTooLargeError(
                f"the files of {self._commit} have more than {self._most_bytes} bytes.",
                hint="There is no room for more on the disk." if self._most_bytes < MOST_BYTES else None,
            )
