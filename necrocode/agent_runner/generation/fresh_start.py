"""A Python file without the inside of its only function, for a model that is to write it anew.

A small model that has the wrong code before it repeats it, and mends it less often than it writes the same function
from its name and description alone. What is left out may be lost, so in every doubt nothing is.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.file_lines import BOM, indent_of
from necrocode.agent_runner.generation.ranking import is_test

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from necrocode.agent_runner.models import CodeChange

_LEAST_LINES = 2
_MOST_LINES = 40
_NOTE = "omitted: the tests fail with it"
_MARK = f"# ... {_NOTE}"
_CUT = "…"
"""With which a traceback begins whose beginning is not known."""
# Words of a task that is to mend what the code does, as against one that is to make it do more.
_IS_FAULT = re.compile(
    r"(?i)\b(?:fix|fixes|fixing|bugfix|bug|mends?|mending|repairs?|repairing|defect|defective)\b"
    r"|修正|修復|直す|直し|不具合|バグ"
)
# What tests say when code is missing, not wrong, or of several failures at once.
_IS_DOUBTFUL = re.compile(
    r"ImportError|ModuleNotFoundError|NameError|NotImplementedError|(?<!'NoneType' object) has no attribute"
    r"|unexpected keyword|positional arguments? but|missing \d+ required|ExceptionGroup"
)
_FRAME = re.compile(
    r'^ *File "([^"\n]+\.py)", line (\d{1,7})(?:, in (\S+))?'
    r"|^(?:\./)?([^\s\":]+\.py):(\d{1,7}):(?: (?!\w*Warning)(?:in (\S+))?|$)",
    re.MULTILINE,
)
"""A line of a traceback, as Python or pytest writes it: file and line, and the function where it is told."""
_FAILED_LINE = re.compile(r'^>(.*)$|^ *File "[^"\n]{1,300}", line \d+, in .*\n(.*)$', re.MULTILINE)
"""The line that a test failed on, as pytest marks it, or under a line of Python's traceback."""
_TEST_FILE = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_test|tests)\.py$")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef


class LeftOut(NamedTuple):
    """A function whose inside a model was not shown."""

    path: str
    text: str
    """The file without it, as it is shown."""
    stub: str
    """The same, but so that it parses."""
    name: str


def is_to_mend(asked: str) -> bool:
    """Whether a task, by its words, is to mend what the code does."""
    return _IS_FAULT.search(asked) is not None


def _parsed(text: str) -> ast.Module | None:
    """None for what is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Source:
    """A file, parsed."""

    def __init__(self, path: str, text: str, tree: ast.Module) -> None:
        self.path, self.lines, self.tree = path, text.split("\n"), tree
        self.definitions = [node for node in ast.walk(tree) if isinstance(node, _Definition)]
        self.defined = {node.name for node in self.definitions}
        self.assigned = set(_assigned(tree))

    @classmethod
    def of(cls, path: str, text: str) -> _Source | None:
        """None for what is no Python."""
        tree = _parsed(text)
        return None if tree is None else cls(path, text, tree)

    @property
    def only_function(self) -> _Function | None:
        """The function at the top level, if that is all the file defines, and it uses nothing else of the file."""
        found = [node for node in self.tree.body if isinstance(node, _Definition)]
        if len(found) != 1 or isinstance(found[0], ast.ClassDef):
            return None
        function = found[0]
        inner = [node for node in ast.walk(function) if isinstance(node, _Definition)]
        used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        return function if len(inner) == len(self.definitions) and used.isdisjoint(self.assigned) else None

    def is_of_test(self, line: int) -> bool:
        """Whether a line is in a test function, as far as one can tell."""
        around = [node for node in self.definitions if node.lineno <= line <= (node.end_lineno or 0)]
        return any(isinstance(node, _Function) and node.name.startswith("test") for node in around)


def _assigned(tree: ast.Module) -> Iterator[str]:
    """What is assigned outside of functions."""
    outside: list[ast.AST] = [tree]
    while outside:
        node = outside.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        if not isinstance(node, _Function | ast.Lambda):
            outside += ast.iter_child_nodes(node)


def without_blamed(files: Mapping[str, str], path: str, tracebacks: Sequence[str]) -> LeftOut | None:
    """The file of this path without the inside of its only function, where all failing cases are about that.

    ``files`` are all that the model was shown whole, ``tracebacks`` what each failing case says. A case is about the
    function where all lines of its traceback are in it, but those of tests and of other packages; or where there are
    none, and the line that failed calls it, and names nothing else that the files define.
    """
    if not tracebacks or path not in files or is_test(path):
        return None
    python = {name: text for name, text in files.items() if name.endswith(".py")}
    sources = {name: source for name, text in python.items() if (source := _Source.of(name, text)) is not None}
    if len(sources) < len(python) or path not in sources:
        return None
    function = sources[path].only_function
    others = [source for name, source in sources.items() if name != path]
    if function is None or function.name.startswith("test"):
        return None
    names = {function.name, *_taken_from_outside(function)}
    if any(not names.isdisjoint(source.defined | source.assigned) for source in others if not is_test(source.path)):
        return None
    suspect = _Suspect(path, function, sources)
    return _without(sources[path], function) if all(map(suspect.is_at_fault, dict.fromkeys(tracebacks))) else None


def _taken_from_outside(function: _Function) -> set[str]:
    """The names that a function uses and does not assign."""
    nodes = list(ast.walk(function))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own


class _Suspect:
    """A function that may be what failing cases are about."""

    def __init__(self, path: str, function: _Function, sources: Mapping[str, _Source]) -> None:
        self._path, self._function, self._sources = path, function, sources
        self._stem = path.rsplit("/", 1)[-1].removesuffix(".py")
        self._defined = set().union(*(source.defined for source in sources.values())) - {function.name}
        self._statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]

    def is_at_fault(self, traceback: str) -> bool:
        """Whether a case is about it, and nothing else that is known."""
        if traceback.startswith(_CUT) or _IS_DOUBTFUL.search(traceback):
            return False
        said = {line.strip().removeprefix(">").strip() for line in traceback.split("\n")}
        is_in_it = False
        for groups in _FRAME.findall(traceback):
            path, number, name = groups[:3] if groups[0] else groups[3:]
            line = int(number)
            if path.startswith("/"):
                continue
            if path == self._path:
                if name not in {"", self._function.name} or not self._has_raised(line, said):
                    return False
                is_in_it = True
            elif not self._is_of_test(path, line):
                return False
        return is_in_it or self._is_called(traceback)

    def _has_raised(self, line: int, said: set[str]) -> bool:
        """Whether a line is one of its own, as the traceback quotes it, and raises nothing of its own accord."""
        is_own = self._function.body[0].lineno <= line <= (self._function.end_lineno or 0)
        deliberate = (node for node in self._statements if isinstance(node, ast.Raise | ast.Assert))
        return (
            is_own
            and self._sources[self._path].lines[line - 1].strip() in said
            and not any(node.lineno <= line <= (node.end_lineno or 0) for node in deliberate)
        )

    def _is_of_test(self, path: str, line: int) -> bool:
        source = self._sources.get(path)
        return _TEST_FILE.search(path) is not None if source is None else is_test(path) and source.is_of_test(line)

    def _is_called(self, traceback: str) -> bool:
        """Whether the lines that failed call it, and name nothing else of these files."""
        lines = ["".join(groups).strip() for groups in _FAILED_LINE.findall(traceback)]
        return bool(lines) and all(map(self._is_called_on, lines))

    def _is_called_on(self, line: str) -> bool:
        tree = _parsed(line)
        if tree is None:  # such as the first of several lines
            return False
        nodes = list(ast.walk(tree))
        calls = [node.func for node in nodes if isinstance(node, ast.Call)]
        named = [_last_name(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)]
        own = [node for node in calls if self._is_its_name(node)]
        is_only_called = named.count(self._function.name) == len(own) > 0
        return is_only_called and self._defined.isdisjoint(named)

    def _is_its_name(self, node: ast.expr) -> bool:
        """Whether it is the function's name, alone or after that of its module."""
        is_named = _last_name(node) == self._function.name
        return is_named and (
            isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _last_name(node.value) == self._stem)
        )


def _last_name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _without(source: _Source, function: _Function) -> LeftOut | None:
    lines = source.lines
    body = _code_of(function)
    if _does_nothing(function) or "\r" in "\n".join(lines).replace("\r\n", ""):
        return None
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
    return None if _Source.of(source.path, stub) is None else LeftOut(source.path, text, stub, function.name)


def _code_of(function: _Function) -> list[ast.stmt]:
    """Its statements after the docstring."""
    return function.body[ast.get_docstring(function, clean=False) is not None :]


def _does_nothing(function: _Function) -> bool:
    """Whether it is a stub."""
    return all(map(_is_stub, _code_of(function)))


def _is_stub(node: ast.stmt) -> bool:
    match node:
        case ast.Pass() | ast.Expr(value=ast.Constant()) | ast.Return(value=None):
            return True
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))):
            return name == "NotImplementedError"
    return False


def refuse_unwritten(left_out: LeftOut, changes: Iterable[CodeChange]) -> None:
    """Refuse what is no new text of the file, which the model has not seen whole, and the note in the function's place.

    Raises :class:`ChangeRejectedError`.
    """
    for change in changes:
        if change.file_path.removeprefix("./") != left_out.path:
            continue
        if change.content is None:
            raise ChangeRejectedError(f"{left_out.path} was not shown whole: it is to be written whole.")
        if _NOTE in change.content:
            raise ChangeRejectedError(
                f"{left_out.path} still has the note {_MARK!r}: write the code of `{left_out.name}` in its place, and"
                " leave the note out."
            )


def refuse_omission(left_out: LeftOut, content: bytes | None) -> None:
    """Refuse a new text of the file in which the function is missing, or still without an inside.

    Raises :class:`ChangeRejectedError`.
    """
    text = "" if content is None else content.decode(errors="replace").removeprefix(BOM)
    source = _Source.of(left_out.path, text)
    if source is None:
        return
    imported = {
        alias.asname or alias.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    is_stub = any(
        isinstance(node, _Function) and node.name == left_out.name and _does_nothing(node)
        for node in source.definitions
    )
    if is_stub or left_out.name not in source.defined | source.assigned | imported:
        raise ChangeRejectedError(
            f"The answer leaves out what `{left_out.name}` in {left_out.path} does, which it is to write."
        )
