"""The ``necrocode`` command: the only part of the package that prints or exits."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from necrocode import __version__
from necrocode.cli import run

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_CODES = """exit codes:
  0    the task is done: its branch was delivered
  1    the task failed: the model's answer, the tests, or the delivery
  2    bad input: the task, the configuration or the command line
  3    a service, the model or a workspace slot was not available
  130  interrupted by Ctrl-C      143  ended by SIGTERM
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="necrocode",
        description="Run LLM coding tasks with the reliability of a CI runner.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"necrocode {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run.add_parser(commands, epilog=_EXIT_CODES)
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    code: int = arguments.handler(arguments)
    return code
