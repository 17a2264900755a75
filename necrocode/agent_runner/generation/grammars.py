"""tree-sitter's grammars by file name, each loaded at its first use. None is ever downloaded: they are packages."""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Parser

# ending → (package, the function that gives its grammar)
_GRAMMARS = {
    "py": ("tree_sitter_python", "language"),
    "pyi": ("tree_sitter_python", "language"),
    "js": ("tree_sitter_javascript", "language"),
    "jsx": ("tree_sitter_javascript", "language"),
    "mjs": ("tree_sitter_javascript", "language"),
    "cjs": ("tree_sitter_javascript", "language"),
    "ts": ("tree_sitter_typescript", "language_typescript"),
    "mts": ("tree_sitter_typescript", "language_typescript"),
    "cts": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rs": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "h": ("tree_sitter_cpp", "language"),
    "cc": ("tree_sitter_cpp", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "cxx": ("tree_sitter_cpp", "language"),
    "hpp": ("tree_sitter_cpp", "language"),
    "hh": ("tree_sitter_cpp", "language"),
    "cs": ("tree_sitter_c_sharp", "language"),
    "rb": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "sh": ("tree_sitter_bash", "language"),
    "bash": ("tree_sitter_bash", "language"),
    "json": ("tree_sitter_json", "language"),
    "yaml": ("tree_sitter_yaml", "language"),
    "yml": ("tree_sitter_yaml", "language"),
    "toml": ("tree_sitter_toml", "language"),
    "html": ("tree_sitter_html", "language"),
    "htm": ("tree_sitter_html", "language"),
    "css": ("tree_sitter_css", "language"),
    "kt": ("tree_sitter_kotlin", "language"),
    "kts": ("tree_sitter_kotlin", "language"),
    "scala": ("tree_sitter_scala", "language"),
    "swift": ("tree_sitter_swift", "language"),
}
_own = threading.local()  # a Parser is not for two threads at once


def ending_of(path: str) -> str:
    """The ending of a file's name, lower case; empty where it has none."""
    return path.rsplit("/", 1)[-1].rpartition(".")[2].lower() if "." in path.rsplit("/", 1)[-1] else ""


def parser_for(path: str) -> Parser | None:
    """A parser, this thread's own, for the language that a file's name tells; None where no grammar is installed."""
    grammar = _GRAMMARS.get(ending_of(path))
    if grammar is None:
        return None
    parsers: dict[tuple[str, str], Parser] = _own.__dict__.setdefault("parsers", {})
    if grammar not in parsers:
        language = _language(*grammar)
        if language is None:
            return None
        from tree_sitter import Parser  # noqa: PLC0415  at first use: only runs that look into files need it

        parsers[grammar] = Parser(language)
    return parsers[grammar]


@cache
def _language(package: str, function: str) -> Language | None:
    try:
        import tree_sitter  # noqa: PLC0415  at first use

        return tree_sitter.Language(getattr(importlib.import_module(package), function)())
    except (ImportError, AttributeError, ValueError):  # not installed, or made for another version of tree-sitter
        return None
