"""``necrocode outbox …``: what runs could not tell their services yet."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.cli import _parsers
from necrocode.cli.run import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    code_of_error,
    config_of,
    print_json,
    print_refusal,
    print_text,
    tell,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner.outbox.folder import FlushReport, OutboxRun

_EXIT_CODES = """exit codes:
  0    done; of flush: everything was delivered
  1    flush: a service refused something for good, which is kept as rejected
  2    bad input: the configuration, the command line, or a run of which nothing is kept
  3    flush: a service was not available, and something still waits
  130  interrupted by Ctrl-C
"""


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "outbox",
        told="what runs could not tell their services yet",
        description="Look at, send or drop what runs could not report or upload: see docs/outbox.md.",
        epilog=_EXIT_CODES,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = _add_action(actions, "list", _list, "show what waits, and what was refused for good")
    flushing = _add_action(actions, "flush", _flush, "send what waits")
    for action in (listing, flushing):
        action.add_argument("--json", action="store_true", help="as one JSON object")
    retrying = _add_action(actions, "retry", _retry, "have what was refused sent again by the next flush")
    dropping = _add_action(actions, "drop", _drop, "forget what a run has to tell, waiting or refused")
    for action in (retrying, dropping):
        action.add_argument("run_id", metavar="RUN_ID", help="the run")
        action.set_defaults(json=False)


def _add_action(
    actions: _parsers.Commands, name: str, work: Callable[[argparse.Namespace], int], told: str
) -> argparse.ArgumentParser:
    parser = _parsers.add_parser(actions, name, told=told, epilog=_EXIT_CODES)
    _parsers.add_config(parser)
    parser.set_defaults(handler=_guarded(work), model=None)
    return parser


def _guarded(work: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def handler(arguments: argparse.Namespace) -> int:
        from necrocode.agent_runner import RunnerError  # noqa: PLC0415

        try:
            return work(arguments)
        except RunnerError as error:
            if arguments.json:
                print_refusal(type(error).__name__, str(error), hint=error.hint)
            tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
            return code_of_error(type(error).__name__)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED

    return handler


def _list(arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner.wiring import outbox_of  # noqa: PLC0415

    runs = outbox_of(config_of(arguments)).runs()
    if arguments.json:
        data = {"schema_version": 1, "runs": [run.model_dump(mode="json") for run in runs]}
        print_json(data)
    elif runs:
        print_text("\n".join(shown(line) for run in runs for line in _lines(run)))
    else:
        print_text("nothing waits, and nothing was refused")
    return EXIT_DONE


def _lines(run: OutboxRun) -> Iterator[str]:
    task = f"  task {run.task_id} of {run.spec_name}" if run.task_id else ""
    yield f"{run.run_id}  {run.state}{task}"
    for entry in run.entries:
        size = f" ({entry.size_bytes} bytes)" if entry.kind == "upload" else ""
        why = f"  refused: {entry.reason}" if entry.reason is not None else ""
        yield f"  {entry.kind:<7} {entry.what}{size}{why}"


def _flush(arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner import RunnerOrchestrator  # noqa: PLC0415

    with RunnerOrchestrator(config_of(arguments)) as orchestrator:
        report = orchestrator.flush_outbox()
    if arguments.json:
        print_json({"schema_version": 1, **report.model_dump(mode="json")})
    else:
        print_text(f"{report.delivered} delivered, {report.waiting} waiting, {report.rejected} rejected")
    for trouble in report.troubles:
        tell(sys.stderr, f"necrocode: {shown(trouble)}\n")
    return _code(report)


def _code(report: FlushReport) -> int:
    if report.waiting or report.troubles:
        return EXIT_UNAVAILABLE
    return EXIT_FAILED if report.rejected else EXIT_DONE


def _retry(arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner.wiring import outbox_of  # noqa: PLC0415

    outbox_of(config_of(arguments)).take_back(arguments.run_id)
    return EXIT_DONE


def _drop(arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner.wiring import outbox_of  # noqa: PLC0415

    outbox_of(config_of(arguments)).drop(arguments.run_id)
    return EXIT_DONE
