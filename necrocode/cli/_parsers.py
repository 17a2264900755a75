"""How a subcommand's parser is made, the same for all of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no public name for it


def add_parser(
    commands: Commands, name: str, *, told: str, epilog: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A parser for ``name``; ``told`` is its line in the list of commands, and its description if there is no other."""
    return commands.add_parser(
        name,
        help=told,
        description=description or f"{told[0].upper()}{told[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_task_and_settings(parser: argparse.ArgumentParser, *, model_told: str) -> None:
    """A task's file, the settings' file and the model, for the commands that run a task or look at one."""
    parser.add_argument("task", metavar="TASK.yaml", help="the task (see docs/tasks.md)")
    add_config(parser)
    parser.add_argument("--model", metavar="NAME", help=model_told)


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``."""
    parser.add_argument(
        "--config", metavar="FILE", help="settings (see config.example.yaml); the environment overrides"
    )


def add_display(parser: argparse.ArgumentParser) -> None:
    """How a run and its result are shown."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--verbose", action="store_true", help="show the run's log on standard error")
