"""What a model is told of an answer that did not do, and when asking again has no more use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.errors import (
    ChangedSetupError,
    ChangeRejectedError,
    EmptyAnswerError,
    MalformedAnswerError,
    NothingChangedError,
    TamperedTestsError,
    TruncatedAnswerError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.errors import RunnerError
    from necrocode.agent_runner.generation.fresh_start import LeftOut
    from necrocode.agent_runner.generation.syntax import Breakage

_MENDABLE = (
    ChangedSetupError, ChangeRejectedError, EmptyAnswerError, MalformedAnswerError, TamperedTestsError,
    TruncatedAnswerError,
)  # fmt: skip
_NOT_APPLIED = "Nothing of your answer was applied: the files are as they were."
_AGAIN = f"{_NOT_APPLIED} Send your whole answer again, corrected."
_THINK = "First say in one sentence what is wrong in the code. Then"
"""Small models that are asked for the wrong line answer with that line alone, and without being asked copy the file."""
_PLAN = "First say in one sentence what must change, and why. Then"
_TURN = (
    "You have been here before: this is the same {what} as earlier, so the idea behind it does not work. First say in"
    " one sentence what is really wrong. Then answer with a different change."
)


def is_mendable(error: RunnerError) -> bool:
    """Whether another answer may do better: a refusal, a filter or a full window will stay what they are."""
    return isinstance(error, _MENDABLE)


def thinking_first(form: str, *, is_failing: bool) -> str:
    """What to add to a question for an answer that begins with a thought; ``form`` goes on from "Then".

    ``is_failing``: whether the question tells of tests that fail.
    """
    return f"{_THINK if is_failing else _PLAN} {form}"


def anew(left_out: LeftOut, form: str) -> str:
    """What to ask for at the end of a question that shows a file without the inside of a function."""
    return (
        f"In {left_out.path} the code of `{left_out.name}` is left out: the tests fail with it. Write it anew, from"
        f" what the task, the names and the remarks say; keep the rest of the file as it is. So {form}"
    )


def refused_answer_reply(error: RunnerError, form: str, failing: str = "") -> str:
    """What to say of an answer that could not be read or applied; ``form`` is how to answer, to go on from "Then".

    ``failing`` says how the tests fail as the files are.
    """
    if isinstance(error, NothingChangedError):
        return unchanged_files_reply(form, failing)
    if isinstance(error, ChangeRejectedError):
        return (
            f"Your answer was refused.\n{error.feedback}"
            if error.feedback
            else f"Your answer was refused: {error}\n\n{_NOT_APPLIED} Answer again: {form}"
        )
    if isinstance(error, ChangedSetupError):
        return (
            "Your change touches the files that name this project's dependencies, and with it these can no longer be"
            f" installed, so no test was run.\n\n{error.feedback}\n\nName dependencies that exist and fit together, or"
            f" leave these files as they are.\n\n{_AGAIN}"
        )
    if isinstance(error, TamperedTestsError):
        told = str(error).removesuffix(error.hint or "").rstrip()  # the hint is for people
        return f"Your answer was refused: {told} Leave tests and their configuration as they are.\n\n{_AGAIN}"
    if isinstance(error, TruncatedAnswerError):
        return (
            "Your answer was too long and was cut, so nothing of it was applied. Answer again, shorter: only the files"
            f" that must change, and no explanations. So {form}"
        )
    return f"Your answer could not be used: {error}\n\nAnswer again: {form}"


def unchanged_files_reply(form: str, failing: str = "") -> str:
    """What to say of an answer that gives the files as they are; ``failing`` is said again, nearer to the answer."""
    told = f"the tests still fail:\n\n{failing}\n\n" if failing else "the task is not done. "
    return f"Your answer gives the files as they are already, so {told}{_THINK} {form}"


def broken_code(breakages: Sequence[Breakage]) -> ChangeRejectedError:
    """The error for code that parsed before a change and does not with it."""
    told = "\n".join(f"- {one.message}" for one in breakages)
    return ChangeRejectedError(
        f"The change breaks the syntax of a file: {breakages[0].message}",
        feedback=f"With your change, these files can no longer be parsed:\n{told}\n\n{_AGAIN}",
    )


def failed_tests_reply(feedback: str, form: str, *, is_as_before: bool) -> str:
    """What to say of tests that failed; ``feedback`` has their most telling lines, ``form`` tells how to answer.

    ``is_as_before``: whether they fail just as they did before any change.
    """
    told = (
        "the tests fail exactly as they did before it, so it does not touch the cause"
        if is_as_before
        else ("then the tests failed")
    )
    return (
        f"Your change was applied, and {told}:\n\n{feedback}\n\nThe files are as your last answer left them. Do not"
        f" change the tests to make them pass. {_THINK} {form}"
    )


@dataclass
class LoopWatch:
    """Notices a model that goes in circles: the same answer, or the same failure, as before."""

    _seen: set[str] = field(default_factory=set)
    _turned: bool = False

    def notice(self, kind: Literal["answer", "failure"], text: str) -> Literal["new", "again", "stuck"]:
        """``again`` the first time that anything comes twice, ``stuck`` from the second time on."""
        mark = f"{kind} {hashlib.sha256(' '.join(text.split()).encode(errors='replace')).hexdigest()}"
        if mark not in self._seen:
            self._seen.add(mark)
            return "new"
        return self.notice_repetition()

    def notice_repetition(self) -> Literal["again", "stuck"]:
        """The same once more, in other words."""
        if self._turned:
            return "stuck"
        self._turned = True
        return "again"


def turned(reply: str, what: str) -> str:
    """The reply, asking for another way."""
    return f"{_TURN.format(what=what)}\n\n{reply}"
