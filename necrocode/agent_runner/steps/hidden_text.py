"""What a change adds that nobody who looks at it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner._invisible import invisible_in, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from necrocode.agent_runner._git import FileChange
    from necrocode.agent_runner.verdict.tamper import TreeFiles

_BINARY_MARK = b"\0"


def hidden_text(changes: Sequence[FileChange], base: TreeFiles) -> Iterator[str]:
    """A sentence for each text in which there are more characters that nobody sees than the base's file has."""
    for change in changes:
        if change.content is None or change.content.isascii() or _BINARY_MARK in change.content:
            continue
        before = (base.read(change.path) or b"").decode(errors="ignore")
        added = invisible_in([change.content.decode(errors="ignore")]) - invisible_in([before])
        if added:
            yield (
                f"The change puts characters into {change.path} that nobody sees: {told(added)}."
                " Code may do something else than it seems to: look at it before merging."
            )
