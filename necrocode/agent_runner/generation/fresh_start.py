"""A Python file without the inside of the function that failing tests are about, for a model that is to write it anew.

A small model that has the wrong code before it repeats it, and mends it less often than it writes the same function
from its name and description alone. What is left out may be lost, so in every doubt nothing is.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.file_lines import indent_of
from necrocode.agent_runner.generation.ranking import is_test

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from necrocode.agent_runner.models import CodeChange

_LEAST_LINES = 2
_MOST_LINES = 40
_REASON = "omitted: it was wrong"
_MARK = f"# ... {_REASON}"
_CUT = "…"
"""With which a traceback begins whose beginning is not known."""
# Words of a task that is to mend what the code does, as against one that is to make it do more.
_IS_FAULT = re.compile(
    r"(?i)\b(?:fix|fixes|fixing|bugfix|bug|mends?|mending|repairs?|repairing|defect|defective)\b"
    r"|修正|修復|直す|直し|不具合|バグ"
)
# What tests say when code is missing, not wrong.
_IS_MISSING = re.compile(
    r"ImportError|ModuleNotFoundError|NameError|NotImplementedError|(?<!'NoneType' object) has no attribute"
    r"|unexpected keyword|positional arguments? but|missing \d+ required"
)
_FRAME = re.compile(r'^ *(?:File ")?(?:\./)?([^\s":]+\.py)(?:", line |:)(\d{1,7})(?:, in |: |$)', re.MULTILINE)
"""A line of a traceback, as pytest or Python writes it: file and line."""
_FAILED_LINE = re.compile(r'^>(.*)$|^ *File "[^"\n]{1,300}", line \d+, in .*\n(.*)$', re.MULTILINE)
"""The line that a test failed on, as pytest marks it, or under a line of Python's traceback."""
_OF_BUILTINS = frozenset(name for one in (str, bytes, int, float, list, tuple, dict, set) for name in dir(one))
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_HOLDERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class LeftOut(NamedTuple):
    """A function whose inside a model was not shown."""

    path: str
    text: str
    """The file without it, as it is shown."""
    stub: str
    """The same, but so that it parses."""
    name: tuple[str, ...]
    """The class that it is in, if any, and its own name."""


def is_to_mend(asked: str) -> bool:
    """Whether a task, by its words, is to mend what the code does."""
    return _IS_FAULT.search(asked) is not None


class _Source:
    """A file, parsed."""

    def __init__(self, path: str, text: str, tree: ast.Module) -> None:
        self.path, self.text = path, text
        self.functions: list[tuple[tuple[str, ...], _Function]] = []
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions.append(((node.name,), node))
            elif isinstance(node, ast.ClassDef):
                self.functions += [
                    ((node.name, one.name), one)
                    for one in node.body
                    if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
        self.names = Counter(_defined(tree))

    @classmethod
    def of(cls, path: str, text: str) -> _Source | None:
        """None for what is no Python."""
        try:
            with warnings.catch_warnings(action="ignore"):
                return cls(path, text, ast.parse(text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def at(self, line: int) -> tuple[tuple[str, ...], _Function] | None:
        """The function that a line is in."""
        return next((one for one in self.functions if _first_line(one[1]) <= line <= (one[1].end_lineno or 0)), None)


def _defined(tree: ast.Module) -> Iterator[str]:
    """The names of all functions and classes, wherever they are, and of what is assigned outside of functions."""
    for node in ast.walk(tree):
        if isinstance(node, _HOLDERS):
            yield node.name
    outside: list[ast.AST] = [tree]
    while outside:
        node = outside.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            outside += ast.iter_child_nodes(node)


def _first_line(node: _Function) -> int:
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def without_blamed(files: Mapping[str, str], tracebacks: Sequence[str]) -> LeftOut | None:
    """The one of these files with the one function that all failing cases are about, and without its inside.

    ``files`` are all that the model was shown whole, ``tracebacks`` what each failing case says. A case is about the
    function with a line in its traceback, or else about the only one that is called on the line that failed. None where
    that is not one function, alone of its name and no test, or where its inside does not take up whole lines.
    """
    python = {path: text for path, text in files.items() if path.endswith(".py")}
    sources = {path: source for path, text in python.items() if (source := _Source.of(path, text)) is not None}
    if len(sources) < len(python) or not tracebacks:
        return None
    blamed = {_blamed(traceback, sources) for traceback in tracebacks}
    found = blamed.pop() if len(blamed) == 1 else None
    if found is None or is_test(found[0]) or any(part.lower().startswith("test") for part in found[1]):
        return None
    path, name = found
    is_alone = sum(source.names[name[-1]] for source in sources.values()) == 1
    return _without(sources[path], name) if is_alone else None


def _blamed(traceback: str, sources: Mapping[str, _Source]) -> tuple[str, tuple[str, ...]] | None:
    if traceback.startswith(_CUT) or _IS_MISSING.search(traceback):
        return None
    found: set[tuple[str, tuple[str, ...]] | None] = set()
    for path, line in _FRAME.findall(traceback):
        if path.startswith("/") or is_test(path):
            continue
        function = sources[path].at(int(line)) if path in sources else None
        found.add(None if function is None else (path, function[0]))
    found = found or set(_called(traceback, sources))
    return found.pop() if len(found) == 1 else None


def _called(traceback: str, sources: Mapping[str, _Source]) -> Iterator[tuple[str, tuple[str, ...]] | None]:
    """What of these files is called on the lines that failed; None for what cannot be told."""
    for line in _FAILED_LINE.findall(traceback):
        for name, is_method in _calls_on("".join(line).strip()):
            owners = [
                (path, full_name)
                for path, source in sources.items()
                for full_name, _ in source.functions
                if full_name[-1] == name
            ]
            if name is None or any(source.names[name] for source in sources.values()):
                is_known = len(owners) == 1 and not (is_method and name in _OF_BUILTINS)
                yield owners[0] if is_known else None


def _calls_on(line: str) -> Iterator[tuple[str | None, bool]]:
    """The name of each call on a line, and whether it is one of a method; None for what has no name.

    A line that is no statement by itself, such as the first of several, has one call without a name.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(line)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield None, False
        return
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                yield name, False
            case ast.Call(func=ast.Attribute(attr=name)):
                yield name, True
            case ast.Call():
                yield None, False


def _without(source: _Source, name: tuple[str, ...]) -> LeftOut | None:
    function = next(one for full_name, one in source.functions if full_name == name)
    body = function.body[1:] if _is_docstring(function.body[0]) else function.body
    if not body or _does_nothing(function) or "\r" in source.text.replace("\r\n", ""):
        return None
    lines = source.text.split("\n")
    first, last = body[0], body[-1]
    start = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))])
    end = last.end_lineno or last.lineno
    before = lines[start - 1].encode()[: first.col_offset] if start == first.lineno else b""
    after = lines[end - 1].encode()[last.end_col_offset or 0 :].strip()
    if before.strip() or (after and not after.startswith(b"#")) or not _LEAST_LINES <= end - start + 1 <= _MOST_LINES:
        return None
    indent, line_end = indent_of(lines[start - 1]), "\r" * lines[start - 1].endswith("\r")
    text, stub = (
        "\n".join([*lines[: start - 1], f"{indent}{inside}{line_end}", *lines[end:]]) for inside in (_MARK, "pass")
    )
    return None if _Source.of(source.path, stub) is None else LeftOut(source.path, text, stub, name)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _does_nothing(function: _Function) -> bool:
    """Whether it is a stub."""
    body = function.body[1:] if _is_docstring(function.body[0]) else function.body
    return all(map(_is_stub, body))


def _is_stub(node: ast.stmt) -> bool:
    match node:
        case ast.Pass() | ast.Expr(value=ast.Constant()) | ast.Return(value=None | ast.Constant(value=None)):
            return True
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))):
            return name == "NotImplementedError"
    return False


def refuse_omission(left_out: LeftOut, content: bytes | None) -> None:
    """Refuse a new text of the file in which the function is missing, or still without an inside.

    Raises :class:`ChangeRejectedError`.
    """
    text = "" if content is None else content.decode(errors="replace")
    source = _Source.of(left_out.path, text)
    is_lost = source is not None and (
        not source.names[left_out.name[-1]]
        or any(name == left_out.name and _does_nothing(function) for name, function in source.functions)
    )
    if is_lost or _REASON in text:
        name = ".".join(left_out.name)
        raise ChangeRejectedError(f"The answer leaves out what `{name}` in {left_out.path} does, which it is to write.")


def refuse_blind_edits(left_out: LeftOut, changes: Iterable[CodeChange]) -> None:
    """Refuse to edit, delete or rename the file, which the model has not seen whole; ``ChangeRejectedError``."""
    for change in changes:
        if change.file_path.removeprefix("./") == left_out.path and change.content is None:
            raise ChangeRejectedError(f"{left_out.path} was not shown whole: it is to be written whole.")
