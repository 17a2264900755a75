"""``necrocode explain TASK.yaml``: what a run would show the model, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._text import shown
from necrocode.cli import _parsers
from necrocode.cli.run import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    code_of_error,
    config_of,
    print_json,
    print_refusal,
    print_text,
    tell,
)

_MICRO = 1_000_000
_EXIT_CODES = """exit codes:
  0    it was shown
  1    something else failed
  2    bad input: the task, the configuration or the command line
  3    a service or a workspace slot was not available
  130  interrupted by Ctrl-C
"""

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from necrocode.agent_runner.explanation import Explanation
    from necrocode.agent_runner.generation.pieces import Piece


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "explain",
        told="show what a run would show the model, and why",
        description="Show what a run of the task would show the model, piece by piece, with the reason and the tokens."
        " No model is called and no test is run; what is left behind is a warm slot in the pool and, for the next run,"
        " the choice itself (contexts in the state folder).",
        epilog=_EXIT_CODES,
    )
    _parsers.add_task_and_settings(parser, model_told="the model to reckon for, instead of the configured one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompt", action="store_true", help="print the prompt too, but for how the tests fail")
    parser.set_defaults(handler=explain)


def explain(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import RunnerError, TaskContext  # noqa: PLC0415
    from necrocode.agent_runner.explanation import explain as explained  # noqa: PLC0415

    try:
        task = TaskContext.from_yaml(arguments.task)
        explanation = explained(task, config_of(arguments))
    except RunnerError as error:
        if arguments.json:
            print_refusal(type(error).__name__, str(error), hint=error.hint)
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return code_of_error(type(error).__name__)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if arguments.json:
        print_json(_data(explanation, with_prompt=arguments.prompt))
        return EXIT_DONE
    print_text("\n".join(map(shown, _table(explanation))))
    if arguments.prompt:
        print_text("\n".join(_prompt(explanation)))
    return EXIT_DONE


def _data(explanation: Explanation, *, with_prompt: bool) -> dict[str, Any]:
    context, cost = explanation.context, explanation.cost_micro_usd
    data: dict[str, Any] = {
        "schema_version": 1,
        "base_commit": explanation.base_commit,
        "model": explanation.model,
        "budget_tokens": explanation.budget_tokens,
        "context_tokens": context.tokens,
        "prompt_tokens": explanation.prompt_tokens,
        "prompt_leaves_out": explanation.prompt_leaves_out,
        "cost_usd": None if cost is None else _cost_data(explanation, *cost),
        "most_calls": explanation.most_calls,
        "paths_listed": len(context.paths),
        "paths_in_map": context.paths_in_map,
        "paths_left_out": context.paths_left_out,
        "pieces": [_piece(piece) for piece in context.pieces],
        "warnings": list(explanation.warnings),
    }
    return data | {"prompt": [message.model_dump() for message in explanation.messages]} if with_prompt else data


def _cost_data(explanation: Explanation, prompt: int, with_answer: int) -> dict[str, float]:
    whole = explanation.most_cost_micro_usd or 0
    return {"prompt": prompt / _MICRO, "with_longest_answer": with_answer / _MICRO, "run_at_most": whole / _MICRO}


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "path": piece.path,
        "kind": piece.kind,
        "start_line": piece.start_line,
        "end_line": piece.end_line,
        "line_count": piece.line_count,
        "tokens": piece.tokens,
        "score": piece.score,
        "why": piece.why,
    }


def _table(explanation: Explanation) -> Iterator[str]:
    context = explanation.context
    yield f"base       {explanation.base_commit}"
    yield "tokens  kind     where, and why"
    for piece in context.pieces:
        yield f"{piece.tokens:>6}  {piece.kind:<7}  {piece.place}  ({piece.why})"
    yield f"{context.tokens:>6}  of {explanation.budget_tokens} for the repository's text"
    named = f"{context.paths_in_map} names in the map" if context.paths_in_map else f"{len(context.paths)} names listed"
    yield f"        {named}, {context.paths_left_out} files neither shown nor named"
    prompt = f"the prompt, for {explanation.model}, without {explanation.prompt_leaves_out}"
    yield f"{explanation.prompt_tokens:>6}  {prompt}"
    yield f"cost       {_cost(explanation)}"
    for warning in explanation.warnings:
        yield f"warning    {warning}"


def _cost(explanation: Explanation) -> str:
    cost = explanation.cost_micro_usd
    if cost is None:
        return f"not known: llm.prices has no price for {explanation.model}"
    least, most = (f"{micro_usd / _MICRO:.4f}" for micro_usd in cost)
    longest = f"the longest answer ({explanation.max_answer_tokens} tokens)"
    whole = f"{(explanation.most_cost_micro_usd or 0) / _MICRO:.4f} at the most, with {explanation.most_calls} calls"
    return f"one call: {least} US dollars for the prompt, {most} with {longest}; a run: {whole}"


def _prompt(explanation: Explanation) -> Iterator[str]:
    for message in explanation.messages:
        yield f"\n--- {message.role} ---\n{message.content}"
