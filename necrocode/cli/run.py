"""``necrocode run TASK.yaml``: one task, from the shell."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from necrocode.agent_runner._text import inert, inert_json, shown
from necrocode.cli import _parsers
from necrocode.cli._signals import cancelled_by_signals, code_of_signal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner import (
        Cancellation,
        Progress,
        RunnerConfig,
        RunnerError,
        RunnerOrchestrator,
        RunnerResult,
    )
    from necrocode.agent_runner.results import RoundResult, RunUsage

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_UNAVAILABLE = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_HUNG_UP = 130, 143, 129
_BAD_INPUT = {
    "ConfigurationError",
    "TaskContextValidationError",
    "RepositoryNotFoundError",
    "UnusableCheckoutError",
}
_UNAVAILABLE = {
    "ServiceError",
    "ServiceConnectionError",
    "AuthenticationError",
    "RateLimitError",
    "SlotAllocationError",
    "StaleLeaseError",
    "WorkspacePreparationError",
    "ArtifactUploadError",
}


def add_parser(commands: _parsers.Commands, *, epilog: str) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "run",
        told="run one task",
        description="Run one task: generate the change, test it, deliver it on a branch, store what came of it.",
        epilog=epilog,
    )
    _parsers.add_task_and_settings(parser, model_told="the model to ask, instead of the configured one")
    parser.add_argument("--no-push", action="store_true", help="keep the branch in the slot's repository")
    _parsers.add_display(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import TaskContext  # noqa: PLC0415

    given = {"push": False} if arguments.no_push else {}

    def work(runner: RunnerOrchestrator, cancellation: Cancellation) -> RunnerResult:
        return runner.run(TaskContext.from_yaml(arguments.task), cancellation=cancellation)

    return carried_out(arguments, work, **given)


def carried_out(
    arguments: argparse.Namespace,
    work: Callable[[RunnerOrchestrator, Cancellation], RunnerResult],
    **given: Any,  # noqa: ANN401  as the settings take them
) -> int:
    """Have a runner do one run, with its progress shown; print the result, and get the exit code that stands for it.

    The first signal that asks the command to end requests the cancellation that ``work`` is given.
    """
    from necrocode.agent_runner import Cancellation, RunnerError, RunnerOrchestrator  # noqa: PLC0415

    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    display = ProgressDisplay(sys.stderr, is_silent=arguments.quiet or arguments.verbose)
    try:
        orchestrator = RunnerOrchestrator(config_of(arguments, **given), on_progress=display.show)
        with cancelled_by_signals(cancellation := Cancellation()) as caught:
            result = work(orchestrator, cancellation)
    except RunnerError as error:
        return _refuse(error, as_json=arguments.json)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    _print_result(result, as_json=arguments.json)
    return code_of_signal(caught[0]) if caught and result.status == "cancelled" else exit_code(result)


def exit_code(result: RunnerResult) -> int:
    """The exit code that stands for a result."""
    if result.success:
        return EXIT_DONE
    return EXIT_FAILED if result.error_details is None else code_of_error(result.error_details.type)


def code_of_error(error_type: str) -> int:
    """The exit code that stands for an error, by its type's name."""
    if error_type in _BAD_INPUT:
        return EXIT_BAD_INPUT
    return EXIT_UNAVAILABLE if error_type in _UNAVAILABLE else EXIT_FAILED


def config_of(arguments: argparse.Namespace, **given: Any) -> RunnerConfig:  # noqa: ANN401  as the settings take them
    """The configuration that ``--config`` and ``--model`` choose, with the settings that are ``given`` on top."""
    from necrocode.agent_runner import RunnerConfig  # noqa: PLC0415

    if getattr(arguments, "model", None):
        given["llm"] = {"model": arguments.model}
    return RunnerConfig.from_yaml(arguments.config, **given) if arguments.config else RunnerConfig.from_env(**given)


class ProgressDisplay:
    """One line a step on standard error; on a terminal the line of the step under way is there from its start."""

    def __init__(self, stream: TextIO | None, *, is_silent: bool) -> None:
        self._stream = stream
        self._is_silent = is_silent
        self._is_terminal = stream is not None and stream.isatty()

    def show(self, progress: Progress) -> None:
        """Show that a step has begun or ended."""
        if self._is_silent:
            return
        if progress.seconds is None:
            if self._is_terminal:
                self._write(f"  ....   {progress.step:<9}")
            return
        outcome = "FAILED" if progress.error else "ok"
        told = f"  {shown(progress.error or progress.detail)}".rstrip()
        start = "\r" if self._is_terminal else ""
        self._write(f"{start}  {outcome:<7}{progress.step:<9}{progress.seconds:8.2f} s{told}\n")

    def _write(self, text: str) -> None:
        tell(self._stream, text)


def _refuse(error: RunnerError, *, as_json: bool) -> int:
    """The task or the settings were refused before there was a run."""
    if as_json:
        print_refusal(type(error).__name__, str(error), hint=error.hint)
    tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
    return EXIT_BAD_INPUT


def print_refusal(error_type: str, message: str, *, hint: str | None = None) -> None:
    """The JSON object that stands for a result where there was no run."""
    from necrocode.agent_runner.results import RESULT_SCHEMA_VERSION, ErrorDetails  # noqa: PLC0415

    details = ErrorDetails(type=error_type, message=message, hint=hint)
    outcome = {"schema_version": RESULT_SCHEMA_VERSION, "success": False, "status": "failed", "error": message}
    print_json({**outcome, "error_details": details.model_dump()})


def _print_result(result: RunnerResult, *, as_json: bool) -> None:
    if as_json:
        print_text(inert_json(result.model_dump_json(indent=2)))
    else:
        print_text(inert("\n".join(map(shown, _summary(result)))))
    if result.error is not None:
        tell(sys.stderr, f"necrocode: {shown(result.error)}\n")


def _summary(result: RunnerResult) -> Iterator[str]:
    yield f"{result.status}: task {result.task_id} of {result.spec_name} in {result.duration_seconds:.1f} s"
    if result.resumed:
        yield f"resumed    run {result.run_id}, which was interrupted"
    if result.push_result is not None:
        yield f"branch     {result.push_result.branch} in {result.push_result.repository}"
    if result.impl_result is not None:
        yield f"commit     {result.impl_result.commit}"
        yield f"files      {', '.join(result.impl_result.files)}"
        yield f"tests      {_tests(result)}"
    for one in result.rounds if len(result.rounds) > 1 else ():
        yield f"{_answer(one):<10} {one.outcome}{f': {one.message}' if one.message else ''}"
    if result.usage.calls:
        yield f"model      {_usage(result.usage)}"
    for artifact in result.artifacts:
        yield f"{artifact.type:<10} {artifact.uri}"
    if result.reported == "pending":
        yield "report     kept; the next run sends it, or: necrocode outbox flush"
    yield from _what_is_left(result)
    for warning in result.warnings:
        yield f"warning    {warning}"


def _what_is_left(result: RunnerResult) -> Iterator[str]:
    """What is still to be done by somebody, where the run has paid for something."""
    if result.usage.calls and result.status == "cancelled":
        yield f"go on      necrocode resume {result.run_id} (pays for no answer twice)"
    if result.usage.calls and result.reported != "yes":
        yield f"reported   {result.reported}"


def _answer(one: RoundResult) -> str:
    return f"repair {one.round}" if one.round else f"answer {one.candidate}"


def _tests(result: RunnerResult) -> str:
    """What the tests say of the commit, in a few words."""
    tests = result.test_result
    if tests is None:
        return "not tested"
    verdict = tests.verdict
    counted = () if verdict is None else (("fixed", verdict.fixed), ("newly broken", verdict.newly_broken))
    told = ", ".join(f"{one.count} {name}" for name, one in counted if one.count)
    return f"{'passed' if tests.success else 'failed'}{f' ({told})' if told else ''}"


def _usage(usage: RunUsage) -> str:
    """What was used of the model, in a few words."""
    about = "about " if usage.is_estimated else ""
    cost = "no price is known" if usage.cost_usd is None else f"{about}{usage.cost_usd:.4f} US dollars"
    calls = f"{usage.calls} call{'s' if usage.calls != 1 else ''}"
    return f"{calls}, {about}{usage.prompt_tokens} tokens of prompts and {usage.completion_tokens} of answers, {cost}"


def print_json(data: object) -> None:
    """One JSON object, with what a terminal would obey as escapes."""
    print_text(inert_json(json.dumps(data, ensure_ascii=False, indent=2)))


def print_text(text: str) -> None:
    """UTF-8 whatever the locale says: the output is read by programs, and holds text in any language."""
    if sys.stdout is None:  # closed by whoever started this
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(f"{text}\n".encode(errors="replace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        _give_up(sys.stdout)
        tell(sys.stderr, f"necrocode: cannot write the result: {error.strerror}\n")


def tell(stream: TextIO | None, text: str) -> None:
    """Write to a stream of which the outcome must not depend: it may be closed, full, or of another encoding."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(inert(text).encode(encoding, "replace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Send what the stream still holds nowhere, else Python fails over it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
