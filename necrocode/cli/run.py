"""``necrocode run TASK.yaml``: one task, from the shell."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from necrocode.agent_runner import ErrorDetails, Progress, RunnerConfig, RunnerResult

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_UNAVAILABLE = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

_BAD_INPUT = {"ConfigurationError", "TaskContextValidationError", "RepositoryNotFoundError"}
_UNAVAILABLE = {
    "ServiceError",
    "ServiceConnectionError",
    "AuthenticationError",
    "RateLimitError",
    "SlotAllocationError",
    "StaleLeaseError",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, made to take the same way out as Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, epilog: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run one task",
        description="Run one task: generate the change, test it, deliver it on a branch, store what came of it.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", metavar="TASK.yaml", help="the task (see docs/tasks.md)")
    parser.add_argument(
        "--config", metavar="FILE", help="settings (see config.example.yaml); the environment overrides"
    )
    parser.add_argument("--model", metavar="NAME", help="the model to ask, instead of the configured one")
    parser.add_argument("--no-push", action="store_true", help="keep the branch in the slot's repository")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--verbose", action="store_true", help="show the run's log on standard error")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import RunInterrupted, RunnerError, RunnerOrchestrator, TaskContext  # noqa: PLC0415

    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    display = ProgressDisplay(sys.stderr, is_silent=arguments.quiet or arguments.verbose)
    try:
        task = TaskContext.from_yaml(arguments.task)
        orchestrator = RunnerOrchestrator(_config(arguments), on_progress=display.show)
        with _sigterm_as_interrupt():
            result = orchestrator.run(task)
    except RunnerError as error:
        return _refuse(error, as_json=arguments.json)
    except RunInterrupted as stop:
        _print_result(stop.result, as_json=arguments.json)
        return EXIT_TERMINATED if isinstance(stop.__cause__, _Terminated) else EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    _print_result(result, as_json=arguments.json)
    return exit_code(result)


def exit_code(result: RunnerResult) -> int:
    """The exit code that stands for a result."""
    return EXIT_DONE if result.success else _code_of(result.error_details)


def _code_of(details: ErrorDetails | None) -> int:
    if details is None:
        return EXIT_FAILED
    if details.type in _BAD_INPUT:
        return EXIT_BAD_INPUT
    return EXIT_UNAVAILABLE if details.type in _UNAVAILABLE else EXIT_FAILED


def _config(arguments: argparse.Namespace) -> RunnerConfig:
    from necrocode.agent_runner import RunnerConfig  # noqa: PLC0415

    given: dict[str, Any] = {}
    if arguments.no_push:
        given["push"] = False
    if arguments.model:
        given["llm"] = {"model": arguments.model}
    return RunnerConfig.from_yaml(arguments.config, **given) if arguments.config else RunnerConfig.from_env(**given)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class ProgressDisplay:
    """One line a step on standard error; on a terminal the line of the step under way is there from its start."""

    def __init__(self, stream: TextIO, *, is_silent: bool) -> None:
        self._stream = stream
        self._is_silent = is_silent
        self._is_terminal = stream.isatty()

    def show(self, progress: Progress) -> None:
        """Show that a step has begun or ended."""
        if self._is_silent:
            return
        if progress.seconds is None:
            if self._is_terminal:
                self._write(f"  ....   {progress.step:<9}")
            return
        outcome = "FAILED" if progress.error else "ok"
        told = f"  {progress.error or progress.detail}".rstrip()
        start = "\r" if self._is_terminal else ""
        self._write(f"{start}  {outcome:<7}{progress.step:<9}{progress.seconds:8.2f} s{told}\n")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _refuse(error: Exception, *, as_json: bool) -> int:
    """The task or the settings were refused before there was a run."""
    details = {"type": type(error).__name__, "message": str(error), "hint": getattr(error, "hint", None)}
    if as_json:
        outcome = {"schema_version": 1, "success": False, "status": "failed", "error": str(error)}
        _print_bytes(json.dumps({**outcome, "error_details": details}, ensure_ascii=False, indent=2))
    print(f"necrocode: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _print_result(result: RunnerResult, *, as_json: bool) -> None:
    if as_json:
        _print_bytes(result.model_dump_json(indent=2))
    else:
        _print_bytes("\n".join(_summary(result)))
    if result.error is not None:
        print(f"necrocode: {result.error}", file=sys.stderr)


def _summary(result: RunnerResult) -> Iterator[str]:
    yield f"{result.status}: task {result.task_id} of {result.spec_name} in {result.duration_seconds:.1f} s"
    if result.push_result is not None:
        yield f"branch    {result.push_result.branch} in {result.push_result.repository}"
    if result.impl_result is not None:
        yield f"commit    {result.impl_result.commit}"
        yield f"files     {', '.join(result.impl_result.files)}"
    for artifact in result.artifacts:
        yield f"{artifact.type:<10}{artifact.uri}"
    for warning in result.warnings:
        yield f"warning   {warning}"


def _print_bytes(text: str) -> None:
    """UTF-8 whatever the locale says: the output is read by programs, and holds text in any language."""
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{text}\n".encode(errors="replace"))
    sys.stdout.buffer.flush()
