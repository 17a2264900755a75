"""Whether a change breaks a file's syntax: told only of what parsed before and does not parse now."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.agent_runner.generation.grammars import ending_of, parser_for

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_CHECKED_BYTES = 300_000
"""Larger files are not checked."""
_MAX_LOOKED_AT = 20_000
_MAX_HEAD = 2000
_LONGEST_LINE = 160
_PYTHON = {"py", "pyi"}
_WRONG_IN_ALL_VERSIONS = (
    "unexpected indent", "unindent does not match", "expected an indented block", "cannot assign to", "cannot delete",
    "positional argument follows keyword argument", "keyword argument repeated", "non-default argument follows",
    "parameter without a default follows", "'return' outside", "invalid non-printable character",
)  # fmt: skip
_WITH_TEMPLATES = ("{{", "{%", "<%", "${{")
# Where grammar and practice differ too often for a verdict: dialects, comments in JSON, macros, templates.
_TOLERANT = {"h", "html", "htm", "yaml", "yml", "cc", "cpp", "cxx", "hpp", "hh", "c"}
# Data of tests, which is broken on purpose as often as not: the tests tell whether it does.
_TEST_DATA = re.compile(
    r"(?i)(?:^|/)(?:(?:test_?data|test_?files|fixtures|__fixtures__|__snapshots__|golden)/"
    r"|(?:tests?|spec|__tests__)/(?:[^/]+/)*(?:data|samples|inputs|cases|resources|snapshots)/)"
)
_JSON_WITH_COMMENTS = re.compile(
    r"(?i)(?:^|/)(?:(?:ts|js)config(?:\.[^/]*)?\.json|\.eslintrc\.json|tslint\.json|devcontainer\.json|"
    r"typedoc\.json|api-extractor\.json|\.(?:vscode|devcontainer|zed)/[^/]+\.json)$"
)
_JSON_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:[^"\\\n]|\\.)*")|,(?=\s*[}\]])')
_FLOW = re.compile(r"^\s*(?://[^\n]*|/\*).{0,500}?@flow\b", re.DOTALL)
_JAVASCRIPT = {"js", "jsx", "mjs", "cjs"}


@dataclass(frozen=True)
class Breakage:
    """Where a text stops to parse."""

    line: int
    """Counted from 1."""
    text: str
    """The line itself, without its end, shortened."""
    message: str
    """What is wrong, in one line, with the path, the line number and the line."""


def newly_broken(path: str, before: bytes | None, after: bytes) -> Breakage | None:
    """What a change breaks; None when the new text parses, or when the old one did not parse either.

    ``before``: None for a new file. None too where there is no grammar for it, and for what cannot be judged: files
    that are large or not UTF-8, templates, the data of tests, and JavaScript with Flow's types. Python is judged by
    tree-sitter, which knows all its versions; the running interpreter only words the message, and clears what
    tree-sitter does not know yet.
    """
    if _TEST_DATA.search(path):
        return None
    broken = _breakage(path, after)
    if broken is None or (before is not None and _breakage(path, before) is not None):
        return None
    return None if before is None and _is_tolerant(path, after) else broken


def _is_tolerant(path: str, content: bytes) -> bool:
    return ending_of(path) in _TOLERANT or any(mark.encode() in content for mark in _WITH_TEMPLATES)


def _breakage(path: str, content: bytes) -> Breakage | None:
    text = _judged(path, content)
    parser = None if text is None else parser_for(path)
    if text is None or parser is None:
        return None
    read = _without_comments(text) if _JSON_WITH_COMMENTS.search(path) else text
    root = parser.parse(read.encode()).root_node
    is_python = ending_of(path) in _PYTHON
    complaint = _python_complaint(text) if is_python else None
    if not root.has_error:
        return (
            _told(path, text, *complaint) if complaint is not None and _is_wrong_in_all_versions(complaint[1]) else None
        )
    if is_python and complaint is None:
        return None
    return _told(path, text, *(complaint or _first_error(root)))


def _judged(path: str, content: bytes) -> str | None:
    """The text of a file; None for one that is not judged."""
    if len(content) > MAX_CHECKED_BYTES:
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if ending_of(path) in _JAVASCRIPT and _FLOW.match(text[:_MAX_HEAD]) else text


def _without_comments(text: str) -> str:
    """Plain JSON, line for line, of JSON that may have comments and commas before its closing brackets."""
    plain = _JSON_COMMENT.sub(lambda found: found[1] or "\n" * found[0].count("\n"), text)
    return _LAST_COMMA.sub(lambda found: found[1] or "", plain)


def _python_complaint(text: str) -> tuple[int, str] | None:
    """(line, message) of the running interpreter's complaint; None when it parses, or cannot be asked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as error:
        return max(error.lineno or 1, 1), error.msg
    except (ValueError, MemoryError, RecursionError):  # a NUL in the text; nesting beyond the interpreter's limits
        return None
    return None


def _is_wrong_in_all_versions(message: str) -> bool:
    """Whether no version of Python takes it, though tree-sitter's grammar, which is laxer, does."""
    return message.startswith(_WRONG_IN_ALL_VERSIONS)


def _first_error(root: Node) -> tuple[int, str]:
    """The first place, in reading order, that is not as the grammar wants it."""
    node = root
    for _ in range(_MAX_LOOKED_AT):
        if node.is_missing:
            return node.start_point[0] + 1, f"{node.type!r} is missing"
        inner = next((child for child in node.children if child.has_error or child.is_missing), None)
        if inner is None or (node.is_error and not inner.is_error and not inner.is_missing):
            return node.start_point[0] + 1, "the syntax is not valid from here"
        node = inner
    return node.start_point[0] + 1, "the syntax is not valid from here"


def _told(path: str, text: str, line: int, message: str) -> Breakage:
    lines = text.split("\n")
    line = min(line, len(lines))
    there = shown(lines[line - 1].strip("\r"), _LONGEST_LINE)
    return Breakage(line, there, f"{path}, line {line}: {message}: {there.strip()}".replace("\n", " "))
