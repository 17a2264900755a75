"""How git fails."""

from __future__ import annotations

from necrocode.agent_runner.errors import RunnerError


class GitError(RunnerError):
    """A git command failed; the text holds its last words. Steps translate it into their own error.

    ``hint`` is what to try, where that is known; it is not in the text, for whoever translates it says it once.
    """

    def __init__(self, message: str, *, output: str = "", hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.hint = hint
        self.output = output


class RemoteRefusedError(GitError):
    """The rules on remotes do not allow this one; nothing was sent."""


class ObjectTooLargeError(GitError):
    """An object is larger than anything that is read whole."""


class TreeTooLargeError(GitError):
    """A tree has more files, or more bytes in them, than are checked out."""


_ADVICE = ("Please ", "Aborting")
_OURS = "error: unable to read askpass response"  # our own askpass, which had no answer: what follows tells the reason


def last_words(text: str) -> str:
    """What of git's messages tells what went wrong, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("hint:", _OURS))]
    telling = [number for number, line in enumerate(lines) if line.startswith(("fatal:", "error:", "!", "remote:"))]
    kept = [lines[number] for number in telling[-3:]]
    if telling and kept[-1].endswith(":"):  # what it announces follows: the files in the way of a checkout
        kept += [line for line in lines[telling[-1] + 1 :] if not line.startswith(_ADVICE)][:3]
    return " / ".join(kept or lines[-3:]) or "it said nothing"
