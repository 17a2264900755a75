"""The ``necrocode`` command: the only part of the package that prints or exits."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from necrocode import __version__
from necrocode.agent_runner.removed import untold_variables
from necrocode.cli import explain, migrate, outbox, recover, registry, replay, resume, run, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_CODES = """exit codes:
  0    the task is done: its branch was delivered
  1    the task failed: the model's answer, the tests, or the delivery
  2    bad input: the task, the configuration or the command line
  3    a service, the model or a workspace slot was not available
  130  interrupted by Ctrl-C      143  ended by SIGTERM      129  the terminal was closed (SIGHUP)
       (a second one of these ends the command at once)
"""


class _Parser(argparse.ArgumentParser):
    """A parser that leaves it to its caller how to complain."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise _UsageError(self, message)


class _UsageError(Exception):
    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = command_parser()
    try:
        arguments = parser.parse_args(words)
    except _UsageError as error:
        if "--json" in words:  # then whoever reads the output expects an object, whatever happens
            run.print_refusal("ConfigurationError", f"{error.parser.prog}: {error}")
        argparse.ArgumentParser.error(error.parser, str(error))
    for text in untold_variables(os.environ) if getattr(arguments, "tells_of_variables", True) else ():
        run.tell(sys.stderr, f"necrocode: warning: {text}\n")
    code: int = arguments.handler(arguments)
    return code


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser: argparse.ArgumentParser = _Parser(
        prog="necrocode",
        description="Run LLM coding tasks with the reliability of a CI runner.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"necrocode {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run.add_parser(commands, epilog=_EXIT_CODES)
    resume.add_parser(commands, epilog=_EXIT_CODES)
    replay.add_parser(commands)
    explain.add_parser(commands)
    outbox.add_parser(commands)
    recover.add_parser(commands)
    registry.add_parser(commands)
    serve.add_parser(commands)
    migrate.add_parser(commands)
    return parser
