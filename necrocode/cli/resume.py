"""``necrocode resume``: go on with runs that were interrupted, without paying again for what their journals have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.cli import _parsers
from necrocode.cli.run import (
    EXIT_DONE,
    EXIT_HUNG_UP,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    carried_out,
    code_of_error,
    config_of,
    print_json,
    print_refusal,
    print_text,
    tell,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from necrocode.agent_runner import InterruptedRun


def add_parser(commands: _parsers.Commands, *, epilog: str) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "resume",
        told="go on with runs that were interrupted, or list them",
        description="Go on with a run that was interrupted: from its journal, without asking the model again for what"
        " it has answered. Without a RUN_ID and --all, list the runs that have not ended.",
        epilog=epilog,
    )
    parser.add_argument("run_id", metavar="RUN_ID", nargs="?", help="the run to go on with")
    parser.add_argument("--all", action="store_true", help="go on with all of them, the oldest first")
    _parsers.add_config(parser)
    parser.add_argument("--no-push", action="store_true", help="keep the branch in the slot's repository")
    _parsers.add_display(parser)
    parser.set_defaults(handler=resume)


def resume(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import RunnerError, RunnerOrchestrator  # noqa: PLC0415

    if arguments.run_id is not None and not arguments.all:
        return _resumed(arguments, arguments.run_id)
    try:
        if arguments.run_id is not None:
            raise _both_given()
        with RunnerOrchestrator(config_of(arguments)) as runner:
            runs = runner.interrupted_runs()
    except RunnerError as error:
        if arguments.json:
            print_refusal(type(error).__name__, str(error), hint=error.hint)
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return code_of_error(type(error).__name__)
    if arguments.all:
        return _all_resumed(arguments, [run.run_id for run in runs if not run.is_running])
    _print_list(runs, as_json=arguments.json)
    return EXIT_DONE


def _all_resumed(arguments: argparse.Namespace, run_ids: list[str]) -> int:
    """The worst exit code; an interruption ends it at once."""
    worst = EXIT_DONE
    for run_id in run_ids:
        code = _resumed(arguments, run_id)
        if code in {EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_HUNG_UP}:
            return code
        worst = max(worst, code)
    if not run_ids:
        _print_list((), as_json=arguments.json)
    return worst


def _print_list(runs: tuple[InterruptedRun, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema_version": 1, "runs": [run.model_dump(mode="json") for run in runs]})
    else:
        print_text("\n".join(map(shown, _table(runs))))


def _resumed(arguments: argparse.Namespace, run_id: str) -> int:
    given = {"push": False} if arguments.no_push else {}
    return carried_out(arguments, lambda runner, stop: runner.resume(run_id, cancellation=stop), **given)


def _both_given() -> Exception:
    from necrocode.agent_runner import ConfigurationError  # noqa: PLC0415

    return ConfigurationError("necrocode resume takes a RUN_ID or --all, not both.")


def _table(runs: tuple[InterruptedRun, ...]) -> Iterator[str]:
    if not runs:
        yield "There are no interrupted runs."
    for run in runs:
        if run.is_damaged:
            yield f"{run.run_id}  its journal is damaged from its beginning: run its task again"
            continue
        state = "is running" if run.is_running else f"interrupted, {run.answers} answers of the model known"
        yield f"{run.run_id}  task {run.task_id} of {run.spec_name}: {run.title}  ({state})"
