"""Secrets of the repository's files: out of what the model is shown, and back into what it writes.

A model that is shown ``postgresql://app:***@db`` and writes the file anew would put the asterisks into the repository.
So each secret is shown as a name of its own, which the answer may keep, move within its file, or drop.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import ChangeRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from necrocode.agent_runner.generation.pieces import Piece
    from necrocode.agent_runner.models import CodeChange

NOTE = "Names such as {name}1 stand for secrets: keep each one exactly as it is, where it is."


class StandIns:
    """The names for the secrets in these pieces; ``replaced`` gives each secret of a text to a function.

    Secrets get the numbers in which they come, so that the same files make the same prompt.
    """

    def __init__(self, pieces: Iterable[Piece], replaced: Callable[[str, Callable[[str], str]], str]) -> None:
        pieces = tuple(pieces)
        self._prefix = "REDACTED_SECRET_"
        while any(self._prefix in piece.text for piece in pieces):
            self._prefix = f"X{self._prefix}"
        self._replaced = replaced
        self._secret_of: dict[str, str] = {}
        self._files_with: dict[str, set[str]] = {}
        self.pieces = tuple(piece.renewed(self._hide(piece, replaced)) for piece in pieces)

    @property
    def note(self) -> str:
        """What the model must be told of the names; empty where there are none."""
        return NOTE.format(name=self._prefix) if self._secret_of else ""

    def has_names(self, text: str) -> bool:
        """Whether a text has a name that stands for a secret."""
        return any(name in text for name in self._secret_of)

    def _hide(self, piece: Piece, replaced: Callable[[str, Callable[[str], str]], str]) -> str:
        def name_of(secret: str) -> str:
            if secret.startswith(self._prefix):  # one rule has hidden it, and another one looks at the place again
                return secret
            known = (name for name, hidden in self._secret_of.items() if hidden == secret)
            name = next(known, f"{self._prefix}{len(self._secret_of) + 1}")
            self._secret_of[name] = secret
            self._files_with.setdefault(name, set()).add(piece.path)
            return name

        return replaced(piece.text, name_of)

    def hidden(self, text: str) -> str:
        """A text about these files, such as what is told of a refused edit, with the same names for the same secrets.

        A secret that none of the pieces had becomes ``***``.
        """
        names = {secret: name for name, secret in self._secret_of.items()}
        return self._replaced(text, lambda secret: secret if secret in self._secret_of else names.get(secret, "***"))

    def restored(self, change: CodeChange) -> CodeChange:
        """The change with the secrets in place; ``ChangeRejectedError`` for one that was not in that file."""

        def secret(found: re.Match[str]) -> str:
            name = found[0]
            if change.file_path.removeprefix("./") not in self._files_with.get(name, ()):
                raise ChangeRejectedError(
                    f"The answer writes {name} into {change.file_path}: it stands for no secret of that file."
                )
            return self._secret_of[name]

        def restore(text: str) -> str:
            return re.sub(rf"{self._prefix}[0-9]+", secret, text) if self._prefix in text else text

        edits = tuple(
            edit.model_copy(
                update={
                    "search": restore(edit.search),
                    "replace": restore(edit.replace),
                    "anchors": tuple(map(restore, edit.anchors)),
                    "heading": restore(edit.heading),
                }
            )
            for edit in change.edits
        )
        content = None if change.content is None else restore(change.content)
        return change.model_copy(update={"content": content, "edits": edits})
