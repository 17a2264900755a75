"""Test commands whose program is not there, which no change of the repository's files would mend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import plain

if TYPE_CHECKING:
    from necrocode.agent_runner.test_results import CommandResult, TestResult

_NOT_THERE, _NOT_EXECUTABLE = 127, 126  # POSIX shell, "Exit Status for Commands"
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "source", "."})
_LONGEST_COMMAND = 10_000
_LONGEST_LINE = 1_000


def missing_program(result: TestResult) -> tuple[str, str] | None:
    """The first command that names a program which cannot be run, and the program; None where there is none.

    A program that is named by a path within the repository may come with the change, and so may one that only a script
    names: those are none. One that is there and not executable stays so, for changes have no say in that.
    """
    for command in result.commands:
        program = _program(command)
        if program is not None:
            return command.command, program
    return None


def _program(command: CommandResult) -> str | None:
    if command.exit_code not in {_NOT_THERE, _NOT_EXECUTABLE} or "PATH=" in command.command:
        return None
    lines = [line for line in command.output[-4 * _LONGEST_LINE :].splitlines() if line.strip()]
    said = plain(lines[-1][:_LONGEST_LINE]) if lines else ""
    words = re.split(r"[\s'\"=;&|()<>]+", command.command[:_LONGEST_COMMAND])
    places = {word: place for word in words if word and (place := _last_place(word, said)) >= 0}
    if not places:
        return None
    named = max(places, key=lambda word: places[word])  # what comes before it is who says so
    is_script = words.index(named) > 0 and words[words.index(named) - 1] in _SHELLS
    is_within = is_script or ("/" in named and not named.startswith("/"))
    return None if is_within and command.exit_code == _NOT_THERE else named


def _last_place(word: str, said: str) -> int:
    """Where a shell speaks of it: "sh: 1: NAME: not found", in its own language; env and others put it into quotes."""
    found = re.finditer(rf"(?:^|(?<=[\s'\"‘`])){re.escape(word)}['\"’]?: ", said)
    return max((one.start() for one in found), default=-1)
