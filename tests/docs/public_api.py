"""The public API, one fact a line: what docs/compatibility.md promises. Run as a module, it renews the snapshot."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, get_args, get_origin

from pydantic import BaseModel

from necrocode import agent_runner, cli
from necrocode.agent_runner.clients import registry_schema
from necrocode.agent_runner.results import RESULT_SCHEMA_VERSION
from necrocode.cli import migrate, run
from necrocode.services.task_registry import CAPABILITIES
from tests.support.shared import ROOT

SNAPSHOT = ROOT / "docs" / "public-api.txt"
_HEADER = "# The public API (docs/compatibility.md). Renewed by: make api-snapshot\n"


def public_api() -> str:
    """The whole of it."""
    facts = [*_names(), *_commands(cli.command_parser(), "necrocode"), *_exit_codes(), *_contracts()]
    return _HEADER + "".join(f"{fact}\n" for fact in facts)


# ---- Names


def _names() -> Iterator[str]:
    for name in agent_runner.__all__:
        value = getattr(agent_runner, name)
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"{name}({bases})" if bases else name
        if issubclass(value, BaseModel):
            yield from (f"{name}.{fact}" for fact in _fields(value))
        elif "__init__" in vars(value) and Protocol not in value.__bases__:
            yield f"{name}{_signature(value.__init__)}"
        yield from (f"{name}.{fact}" for fact in _members(value))


def _fields(model: type[BaseModel]) -> Iterator[str]:
    """The fields with the types as they are written, and their defaults."""
    written: dict[str, Any] = {}
    for base in reversed(model.__mro__):
        written |= vars(base).get("__annotations__", {})
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else " = …" if field.default_factory else f" = {field.default!r}"
        alias = f" (or {field.validation_alias})" if field.validation_alias else ""
        yield f"{name}{alias}: {written[name]}{default}{_values(field.annotation, str(written[name]))}"


def _values(annotation: Any, written: str) -> str:
    """The values of an enumeration that is written by another name."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "" if "Literal" in written else f" {{{', '.join(map(repr, parts))}}}"
    return "".join(dict.fromkeys(_values(part, written) for part in parts))


def _members(value: type) -> Iterator[str]:
    """The public methods and properties that the class or a base of this package defines."""
    seen: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        if base.__module__.startswith("necrocode"):
            seen |= {name: member for name, member in vars(base).items() if not name.startswith("_")}
    for name, member in sorted(seen.items()):
        function = getattr(member, "__func__", member)
        if isinstance(member, property):
            yield f"{name}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        elif inspect.isfunction(function):
            kind = type(member).__name__
            yield f"{name}{_signature(function)}{f' [{kind}]' if kind.endswith('method') else ''}"


class _Text:
    """What is shown as the words that it is of."""

    def __init__(self, text: object) -> None:
        self._text = str(text)

    def __repr__(self) -> str:
        return self._text


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    parameters = [_plain(one) for one in signature.parameters.values() if one.name not in {"self", "cls"}]
    return str(signature.replace(parameters=parameters, return_annotation=_Text(signature.return_annotation)))


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with a default that says the same on every machine."""
    default = parameter.default
    if not isinstance(default, (str, int, float, tuple, type(None))) and default is not inspect.Parameter.empty:
        default = _Text("…")
    return parameter.replace(default=default, annotation=_Text(parameter.annotation))


# ---- The command


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, child in action.choices.items():
                yield f"{name} {command}"
                yield from _commands(child, f"{name} {command}")
        elif "--help" not in action.option_strings:
            words = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            takes = " VALUE" if action.option_strings and action.nargs != 0 else ""
            yield f"{name} | {words}{takes}{choices}"


def _exit_codes() -> Iterator[str]:
    codes = vars(run) | vars(migrate)
    return (f"exit code {name.removeprefix('EXIT_')}: {codes[name]}" for name in sorted(codes) if name[:5] == "EXIT_")


def _contracts() -> Iterator[str]:
    yield f"result schema version {RESULT_SCHEMA_VERSION}"
    yield from (f"capability of the task registry: {name}" for name in sorted(CAPABILITIES))
    for table in sorted(registry_schema.metadata.tables.values(), key=lambda table: table.name):
        yield f"table {table.name}: {', '.join(column.name for column in table.columns)}"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT}\n")
