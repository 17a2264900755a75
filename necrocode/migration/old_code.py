"""Python code that used the A2A/Kiro runner: every use of it, and the text with what can be rewritten safely."""

from __future__ import annotations

import ast
import difflib
import io
import re
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from libcst import CSTValidationError, ParserSyntaxError, parse_module
from libcst.metadata import MetadataWrapper

from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.removed import REMOVED_NAMES
from necrocode.migration.code_rewrite import rewritten
from necrocode.migration.code_uses import Use, find_uses
from necrocode.migration.files import read_bounded

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 500_000  # libcst takes half a minute for these
# Deeper code is nobody's, and libcst's parser and visitors call themselves for each level.
_MAX_DEPTH = 150
_WORTH_READING = re.compile(
    "|".join(
        [*REMOVED_NAMES, "message_bus", "MESSAGE_BUS_URL", "kiro", "KIRO_URL", "a2a", "agent_registry", "agent_id"]
    ).encode()
)


@dataclass(frozen=True)
class Examined:
    """What was found in one file: the uses that are left for a person, and the new bytes, or the old ones."""

    data: bytes
    new_data: bytes
    uses: tuple[Use, ...] = ()
    unread: str = ""
    """Why the file could not be examined; empty when it was."""


def examine_file(path: Path) -> Examined:
    """As :func:`examine`, of a file; one that cannot be read is told as such in ``unread``."""
    try:
        data = read_bounded(path, max_bytes=MAX_FILE_BYTES)
    except ConfigurationError as error:
        return Examined(b"", b"", unread=str(error).rstrip("."))
    return examine(data, is_package=path.name == "__init__.py" or path.suffix == ".pyi")


def diff_of(examined: Examined, *, name: str) -> str:
    """What would be rewritten, as a unified diff that ``git apply`` and ``patch -p1`` take."""
    encoding = parse_module(examined.data).encoding
    texts = [data.decode(encoding) for data in (examined.data, examined.new_data)]
    old, new = (list(io.StringIO(text, newline="\n")) for text in texts)  # str.splitlines knows ends that git does not
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    whole = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return "".join(whole).removesuffix("\n")


def examine(data: bytes, *, is_package: bool) -> Examined:
    """The uses in the source of one file. ``is_package``: it is an ``__init__.py`` or a stub, whose imports are for
    others."""  # noqa: D205, D209  one sentence
    if not _WORTH_READING.search(data):
        return Examined(data, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong escape in somebody's text is not our matter
        why = _unreadable(data)
        return Examined(data, data, unread=why) if why else _examined(data, is_package=is_package)


def _examined(data: bytes, *, is_package: bool) -> Examined:
    try:
        module = parse_module(data)
        if module.bytes != data:
            return Examined(data, data, unread="it would not be written back as it is")
        wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
        uses, plan = find_uses(wrapper, is_package=is_package)
        return Examined(data, rewritten(wrapper, plan), tuple(uses))
    except SyntaxError:  # a comment's bytes are nothing to Python's parser, but must be text to be written back
        return Examined(data, data, unread="its bytes are not text in the encoding that it names, or in UTF-8")
    except (ParserSyntaxError, CSTValidationError, ValueError, LookupError) as error:
        return Examined(data, data, unread=f"libcst cannot read it ({type(error).__name__})")
    except RecursionError:
        return Examined(data, data, unread="it is nested too deeply")


def _unreadable(data: bytes) -> str:
    """Why Python itself would not read the source; this also keeps from libcst's parser what would overflow it."""
    try:
        tree = ast.parse(data)
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        return f"it is not Python {version} (line {error.lineno or 1}: {error.msg})"
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL, or code nested beyond all bounds
        return f"Python cannot read it ({type(error).__name__})"
    return "it is nested too deeply" if _depth_exceeds(tree, _MAX_DEPTH) else ""


def _depth_exceeds(tree: ast.AST, limit: int) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True
