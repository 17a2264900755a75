"""``necrocode replay``: do a run again from its journal, offline, and see whether it comes to the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import inert_json, shown
from necrocode.cli import _parsers
from necrocode.cli.run import EXIT_DONE, EXIT_INTERRUPTED, config_of, print_refusal, print_text, tell

EXIT_DIVERGED, EXIT_NOT_REPLAYED = 1, 2
_EXIT_CODES = """exit codes:
  0    everything came out as journalled, as far as the journal goes
  1    something came out otherwise
  2    it cannot be replayed: no such journal, or none of its repository's objects
  130  interrupted by Ctrl-C
"""

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from necrocode.agent_runner import ReplayResult


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "replay",
        told="do a run again from its journal, offline, and compare",
        description="Do a run again with the model's answers and the results of the tests from its journal, and say"
        " what comes out otherwise first. No model is asked, no test is run, and nothing is written that lasts.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("run", metavar="RUN_ID|FILE", help="a run of this state folder, or the file of a journal")
    parser.add_argument(
        "--repository", metavar="PATH", help="a repository that has the run's base commit, instead of the runner's own"
    )
    _parsers.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=replay)


def replay(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import RunnerError, RunnerOrchestrator  # noqa: PLC0415

    is_file = "/" in arguments.run or Path(arguments.run).is_file()
    repository = None if arguments.repository is None else Path(arguments.repository).absolute()
    try:
        with RunnerOrchestrator(config_of(arguments)) as runner:
            found = runner.replay(Path(arguments.run) if is_file else arguments.run, repository=repository)
    except RunnerError as error:
        if arguments.json:
            print_refusal(type(error).__name__, str(error), hint=error.hint)
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return EXIT_NOT_REPLAYED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if arguments.json:
        print_text(inert_json(found.model_dump_json(indent=2)))
    else:
        print_text("\n".join(map(shown, _told(found))))
    return EXIT_DONE if found.same else EXIT_DIVERGED


def _told(found: ReplayResult) -> Iterator[str]:
    how = "the same" if found.same else "diverged"
    yield f"{how}: run {found.run_id}, {found.entries} entries compared"
    if (one := found.divergence) is not None:
        yield f"entry      {one.entry}, {one.kind} {one.key}".rstrip()
        yield f"recorded   {one.recorded}"
        yield f"now        {one.now}"
    for note in found.notes:
        yield f"note       {note}"
