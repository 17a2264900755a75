"""A file without the inside of the function that failing tests are about, for a model that is to write it anew.

A small model that has the wrong code before it repeats it, and mends it less often than it writes the same function
from its name and description alone. What is left out may be lost, so in every doubt nothing is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.errors import ChangeRejectedError
from necrocode.agent_runner.generation.bodies import does_nothing
from necrocode.agent_runner.generation.grammars import ending_of, parser_for
from necrocode.agent_runner.generation.outline import MAX_OUTLINED_BYTES, definitions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tree_sitter import Node

    from necrocode.agent_runner.generation.outline import Definition
    from necrocode.agent_runner.models import CodeChange

_LEAST_LINES = 2
_REASON = "omitted: it was wrong"
_MARK = f"... {_REASON}"
_PYTHON = {"py", "pyi"}
_REMARK_BY_NUMBER_SIGN = {*_PYTHON, "sh", "bash"}
_IN_BRACES = {"block", "statement_block", "compound_statement", "constructor_body", "function_body"}
_FUNCTIONS = {
    "function_definition", "function_declaration", "function_item", "method_declaration", "method_definition",
    "constructor_declaration", "generator_function_declaration", "variable_declarator", "method", "singleton_method",
}  # fmt: skip
# The lines that a test failed on: as pytest and jest mark them, and under a line of a Python traceback.
_FAILED_LINE = re.compile(r"^ *>(.*)$|^ *File \"[^\"\n]{1,300}\", line \d+, in .*\n(.*)$", re.MULTILINE)
_WORD = re.compile(r"\w+")
_PARTS = re.compile(r"\W+")
"""Between the parts of a name such as ``Cart::add`` or ``empty?``."""
_IS_FAULT = re.compile(
    r"(?i)\b(?:fix|fixes|fixing|bugfix|bug|bugs|mends?|mending|repairs?|repairing|defect|defects|defective|wrong|wrongly"
    r"|incorrect|incorrectly|broken|fails|failing|crash|crashes|regression)\b"
    r"|修正|修復|直す|直し|不具合|バグ|誤り|間違|失敗|壊れ|異常"
)
"""Words of a task that is to mend what the code does, as against one that is to make it do more."""
_IS_MISSING = re.compile(
    r"(?i)ImportError|ModuleNotFoundError|NoMethodError|NameError|NotImplemented|not implemented|undeclared"
    r"|undefined(?::| (?:\(type|local|method|function|reference|variable|name|symbol))|is not (?:a function|defined)"
    r"|(?<!'NoneType' object) has no attribute|does not (?:exist|contain a definition)|unresolved|unexpected keyword"
    r"|cannot find|can't find|could not find|no method named|implicit declaration|positional arguments? but"
    r"|missing \d+ required|command not found|no such file"
)
"""What tests say when code is missing, not wrong."""


class LeftOut(NamedTuple):
    """A function whose inside a model was not shown."""

    path: str
    text: str
    """The file without it, as it is shown."""
    stub: str
    """The same, but so that it parses."""
    inside: str
    name: tuple[str, ...]
    """What it is in, outermost first, and its own name."""


def is_of_wrong_code(asked: str, failing: str) -> bool:
    """Whether a task is to mend code that is wrong, by its words and by what the tests say before the change."""
    return bool(failing) and _IS_FAULT.search(asked) is not None and _IS_MISSING.search(failing) is None


def without_blamed(files: Mapping[str, str], failing: str) -> LeftOut | None:
    """The one of these files with the one function that ``failing``, what tests say, is about, and without its inside.

    It is the function with a line in the tracebacks; without any, the one that is named on a line that failed. None
    where there are several, or where the inside cannot surely be told from the rest. A docstring stays.
    """
    functions = {path: _functions(_tree(path, text)) for path, text in files.items()}
    blamed = [(path, one) for path in files for one in _in_traceback(path, functions[path], failing)]
    if not blamed:
        said = {word for line in _FAILED_LINE.findall(failing) for word in _WORD.findall(" ".join(line))}
        blamed = [(path, one) for path in files for one in functions[path] if not said.isdisjoint(_parts_of(one))]
    if len(blamed) != 1:
        return None
    path, function = blamed[0]
    has_namesakes = sum(_full_name(one) == _full_name(function) for one in functions[path]) > 1
    return None if has_namesakes else _without(path, files[path], function)


def _tree(path: str, text: str) -> Node | None:
    """None for what does not parse, or is too long."""
    content, parser = text.encode(errors="replace"), parser_for(path)
    if parser is None or len(content) > MAX_OUTLINED_BYTES:
        return None
    root = parser.parse(content).root_node
    return None if root.has_error else root


def _functions(tree: Node | None) -> list[Definition]:
    found = () if tree is None else definitions(tree)
    return [one for one in found if one.inner.type in _FUNCTIONS and not one.holds_others]


def _full_name(function: Definition) -> tuple[str, ...]:
    return (*function.holders, function.name)


def _parts_of(function: Definition) -> list[str]:
    """The last part of its name that is a word."""
    return [part for part in _PARTS.split(function.name) if part][-1:]


def _in_traceback(path: str, functions: list[Definition], failing: str) -> Iterator[Definition]:
    frame = rf"(?<![\w./\\-])(?:\./)?{re.escape(path)}(?:\", line |:)(\d{{1,6}})(?!\d|: \w*Warning)"
    numbers = {int(number) for number in re.findall(frame, failing)}
    for one in functions:
        if not numbers.isdisjoint(range(one.node.start_point[0] + 1, one.node.end_point[0] + 2)):
            yield one


def _without(path: str, text: str, function: Definition) -> LeftOut | None:
    content = text.encode(errors="replace")
    is_python = ending_of(path) in _PYTHON
    span = _python_inside(function, content) if is_python else _inside_of_braces(function, content)
    if span is None:
        return None
    inside = content[slice(*span)].decode(errors="replace")
    if does_nothing(inside) or sum(bool(line.strip()) for line in inside.split("\n")) < _LEAST_LINES:
        return None
    first = next(line for line in inside.split("\n") if line.strip())
    mark = (
        first[: len(first) - len(first.lstrip())]
        + ("#" if ending_of(path) in _REMARK_BY_NUMBER_SIGN else "//")
        + f" {_MARK}"
    )
    end = "\r\n" if "\r\n" in inside else "\n"
    before, after = content[: span[0]], content[span[1] :]
    shown, stub = (
        (before + f"{line}{end}".encode() + after).decode(errors="replace")
        for line in (mark, mark.replace(f"# {_MARK}", "pass") if is_python else mark)
    )
    return None if _tree(path, stub) is None else LeftOut(path, shown, stub, inside, _full_name(function))


def _python_inside(function: Definition, content: bytes) -> tuple[int, int] | None:
    """From the first line after the docstring to the end of the last one."""
    statements = [] if function.body is None else function.body.named_children
    if statements and _is_docstring(statements[0]):
        statements = statements[1:]
    return _whole_lines(content, statements[0].start_byte, statements[-1].end_byte) if statements else None


def _is_docstring(node: Node) -> bool:
    return node.type == "expression_statement" and [child.type for child in node.named_children] == ["string"]


def _inside_of_braces(function: Definition, content: bytes) -> tuple[int, int] | None:
    """The lines between the line of the opening brace and that of the closing one."""
    body = _body_of(function)
    if body is None or body.type not in _IN_BRACES or not body.named_children:
        return None
    if content[body.start_byte : body.start_byte + 1] != b"{" or content[body.end_byte - 1 : body.end_byte] != b"}":
        return None
    return _whole_lines(content, body.named_children[0].start_byte, body.named_children[-1].end_byte)


def _whole_lines(content: bytes, start: int, end: int) -> tuple[int, int] | None:
    """The lines from one place to another, where nothing else is on them; None for a part of a line."""
    end = start + len(content[start:end].rstrip())
    line_start = content.rfind(b"\n", 0, start) + 1
    line_end = content.find(b"\n", end) + 1 or len(content)
    rest = content[end:line_end].strip()
    if content[line_start:start].strip() or (rest and not rest.startswith((b"#", b"//"))):
        return None
    return line_start, line_end


def refuse_omission(left_out: LeftOut, content: bytes | None) -> None:
    """Refuse a new text of the file in which the function is missing, or still without an inside.

    Raises :class:`ChangeRejectedError`.
    """
    text = "" if content is None else content.decode(errors="replace")
    tree = _tree(left_out.path, text)
    bodies = [_body_of(one) for one in _functions(tree) if _full_name(one) == left_out.name]
    texts = ["" if body is None else (body.text or b"").decode(errors="replace") for body in bodies]
    is_left_out = tree is not None and (not texts or any(map(does_nothing, texts)))
    if is_left_out or _REASON in text:
        name = ".".join(left_out.name)
        raise ChangeRejectedError(f"The answer leaves out what `{name}` in {left_out.path} does, which it is to write.")


def refuse_blind_edits(left_out: LeftOut, changes: Iterable[CodeChange]) -> None:
    """Refuse edits of the file, which the model has not seen whole; raises :class:`ChangeRejectedError`."""
    for change in changes:
        if change.file_path.removeprefix("./") == left_out.path and change.content is None:
            raise ChangeRejectedError(f"{left_out.path} was not shown whole: it is to be written whole.")


def _body_of(function: Definition) -> Node | None:
    value = function.inner.child_by_field_name("value")
    return function.body if value is None else value.child_by_field_name("body")
