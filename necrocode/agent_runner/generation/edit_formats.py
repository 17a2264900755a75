"""Reading a model's answer as a change set, in whatever format it came.

Two formats, both first-class, recognised by the answer itself and not by what was asked for:

``json``
    ``{"explanation": …, "changes": [{"operation": …, "file_path": …, "content": …, "new_path": …}]}``, bare, in a
    fence, or with prose around it. ``code_changes``/``files``, ``path`` and ``summary`` are understood too.
``files``
    One fenced block per file with the whole new text, its path on the line before (or in the info string). A line
    ``DELETE path`` or ``RENAME old -> new`` outside of any block does what it says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import EmptyAnswerError, MalformedAnswerError
from necrocode.agent_runner.models import CodeChange, LLMResponse, ModelAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ANSWER_CHARACTERS = 8_000_000
MAX_CHANGES = 10_000

# OpenAI's strict mode wants every property required and no additional ones; "may be left out" is said by null.
JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string", "description": "What was done, in one or two sentences."},
        "changes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "operation": {"type": "string", "enum": ["create", "modify", "delete", "rename"]},
                    "file_path": {"type": "string", "description": "Path relative to the repository's top."},
                    "content": {
                        "type": ["string", "null"],
                        "description": "The whole new text of the file; null for delete, or to rename only.",
                    },
                    "new_path": {"type": ["string", "null"], "description": "The new path; for rename only."},
                },
                "required": ["operation", "file_path", "content", "new_path"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["explanation", "changes"],
    "additionalProperties": False,
}

_LIST_KEYS = ("changes", "code_changes", "files", "edits")
_PATH_KEYS = ("file_path", "path", "filename", "file")
_NEW_PATH_KEYS = ("new_path", "new_file_path", "to", "destination")
_CONTENT_KEYS = ("content", "new_content", "code", "text")
_EXPLANATION_KEYS = ("explanation", "summary", "description", "message")
_OPERATIONS = {
    "create": "create", "add": "create", "new": "create", "write": "create",
    "modify": "modify", "update": "modify", "edit": "modify", "replace": "modify", "change": "modify",
    "delete": "delete", "remove": "delete",
    "rename": "rename", "move": "rename",
}  # fmt: skip

_JSON_FENCES = {"json", "jsonc", "json5", ""}
_JSON_START = re.compile(r'\{\s*"(?:explanation|summary|changes|code_changes|files)"\s*:')
_SHELL_FENCES = {"bash", "sh", "shell", "console", "zsh", "text", "txt", "output", "powershell"}
_WHOLE_FENCE = re.compile(r"\A```[\w+-]*\n((?:(?!```).*\n)*?(?:(?!```).*[^\n])?)\n?```\s*\Z")
_MARKDOWN = (".md", ".markdown", ".mdx", ".rst", ".txt")
_NO_NEWLINE = "\\ No newline at end of file"
_MOST_WORDS_AROUND_PATH = 8

_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]*([^\n]*?)[ \t]*$")
_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)
_DIRECTIVE = re.compile(r"^(?:[-*] )?[`*]{0,3}(DELETE|RENAME)[:`*]{0,3}\s+(.+?)\s*$")
_ARROW = re.compile(r"\s+(?:->|=>|→|TO|to)\s+")
_LABEL = re.compile(
    r"(?i)^(?:(?:create|modify|update|edit|new|add|replace|delete)(?: file| the file)?[:：]?\s+"
    r"|(?:file|path|filename|file path|ファイル)(?:\s*[:：]\s*|\s+))(?=\S+$)"
)
_TOLD = re.compile(r"(?i)^(?:file|path|ファイル)(?:\*\*)?\s*[:：]\s*(.+)$")
_PATH_WITH_SPACES = re.compile(r"^[^\s`*<>|\"'()（）]+(?: [^\s`*<>|\"'()（）]+)+\.\w{1,12}$")
_PATH_SHAPE = re.compile(r"^[^\s`*<>|\"'()（）]+$")


@dataclass(frozen=True)
class ParsedAnswer:
    """A change set as the model asked for it; nothing of it has been checked against a repository."""

    changes: tuple[CodeChange, ...]
    explanation: str
    edit_format: str


def parse_answer(text: str) -> ParsedAnswer:
    """The change set in an answer.

    Raises :class:`EmptyAnswerError` for an answer without text and :class:`MalformedAnswerError`, with a text that says
    what was looked for, for one without a change set. Time and memory are linear in the answer's length.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise MalformedAnswerError(f"The answer has {len(text)} characters, more than {MAX_ANSWER_CHARACTERS}.")
    body = _THINKING.sub("", text).lstrip("\ufeff")
    if not body.strip():
        raise EmptyAnswerError("The model's answer holds no text.")
    if (found := _find_json(body)) is not None:
        return _from_json(found)
    changes, explanation = _read_files(body)
    if not changes:
        raise MalformedAnswerError(
            "The model's answer holds no change: neither JSON with a list of changes, nor a fenced block with a file's"
            f" path on the line before it. It begins: {' '.join(body.split())[:160]!r}"
        )
    return ParsedAnswer(_limited(changes), explanation, "files")


def read_answer(answer: ModelAnswer) -> LLMResponse:
    """A model's answer with its change set; raises as :func:`parse_answer` does."""
    parsed = parse_answer(answer.text)
    return LLMResponse(
        code_changes=parsed.changes,
        explanation=parsed.explanation,
        model=answer.model,
        edit_format=parsed.edit_format,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        tokens_used=answer.prompt_tokens + answer.completion_tokens,
        request_id=answer.request_id,
    )


def _limited(changes: Sequence[CodeChange]) -> tuple[CodeChange, ...]:
    if len(changes) > MAX_CHANGES:
        raise MalformedAnswerError(f"The answer holds {len(changes)} changes, more than {MAX_CHANGES}.")
    return tuple(changes)


# --- json ------------------------------------------------------------------------------------------------------------


def _find_json(body: str) -> dict[str, Any] | None:
    """The JSON change set that the answer is, or holds alone in a fence, or carries between prose; None if none."""
    stripped = body.strip()
    candidates = [stripped] if stripped.startswith(("{", "[")) else []
    if not candidates:
        candidates += [block.content for block in _blocks(body) if block.language in _JSON_FENCES and not block.path]
    if not candidates and (start := _JSON_START.search(stripped)):
        candidates.append(stripped[start.start() :])
    complaint = ""
    for candidate in candidates:
        try:
            value, _ = json.JSONDecoder(object_pairs_hook=_unique, strict=False).raw_decode(candidate.strip())
        except RecursionError:
            raise MalformedAnswerError("The JSON in the model's answer is nested too deeply.") from None
        except ValueError as error:
            complaint = complaint or f"{error}"
            continue
        if (found := _as_change_list(value)) is not None:
            return found
    if complaint and _JSON_START.match(stripped):
        raise MalformedAnswerError(f"The JSON in the model's answer cannot be read: {complaint}.")
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice is an error, for it would silently drop the first (RFC 8259, section 4)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def _as_change_list(value: object) -> dict[str, Any] | None:
    if isinstance(value, list) and value and all(isinstance(item, dict) and _first(item, _PATH_KEYS) for item in value):
        return {"changes": value}
    if not isinstance(value, dict):
        return None
    if any(isinstance(value.get(key), list) for key in _LIST_KEYS):
        return value
    if _first(value, _PATH_KEYS) and (value.get("operation") or _first(value, _CONTENT_KEYS) is not None):
        return {"changes": [value]}
    return None


def _from_json(value: dict[str, Any]) -> ParsedAnswer:
    items = next(value[key] for key in _LIST_KEYS if isinstance(value.get(key), list))
    if not items:
        raise MalformedAnswerError("The model's answer holds an empty list of changes.")
    changes = [_change(item, number) for number, item in enumerate(items, 1)]
    explanation = _first(value, _EXPLANATION_KEYS)
    return ParsedAnswer(_limited(changes), explanation if isinstance(explanation, str) else "", "json")


def _change(item: object, number: int) -> CodeChange:
    if not isinstance(item, dict):
        raise MalformedAnswerError(f"Change {number} in the model's answer is not an object.")
    path, content = _first(item, _PATH_KEYS), _first(item, _CONTENT_KEYS)
    new_path = _first(item, _NEW_PATH_KEYS)
    said = item.get("operation") or item.get("action") or item.get("type") or ("rename" if new_path else "modify")
    operation = _OPERATIONS.get(str(said).casefold())
    if operation is None:
        raise MalformedAnswerError(f"Change {number} has the unknown operation {said!r}.")
    if not isinstance(path, str) or not path:
        raise MalformedAnswerError(f"Change {number} names no file_path.")
    if operation != "rename":
        new_path = None
    if operation in {"create", "modify"} and not isinstance(content, str):
        raise MalformedAnswerError(f"Change {number} ({operation} {path}) holds no content.")
    if operation == "rename" and not isinstance(new_path, str):
        raise MalformedAnswerError(f"Change {number} (rename {path}) names no new_path.")
    if operation == "delete" or not isinstance(content, str) or (operation == "rename" and not content):
        content = None
    if content is not None and not path.endswith(_MARKDOWN):
        content = _without_fence(content)
    if content is not None and "\0" in content:
        raise MalformedAnswerError(f"Change {number} ({operation} {path}) holds a NUL character.")
    return CodeChange.model_validate(
        {"operation": operation, "file_path": path, "content": content, "new_path": new_path}
    )


def _without_fence(content: str) -> str:
    """Models put the text of a file into a fence even inside JSON; no source file is one fenced block."""
    found = _WHOLE_FENCE.match(content)
    return content if found is None else found[1]


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401  whatever the model put there
    return next((item[key] for key in keys if item.get(key) is not None), None)


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    language: str
    path: str
    """The file it holds, by its info string or the line before it; empty where neither names one."""
    content: str


def _blocks(body: str) -> Iterator[_Block]:
    """The fenced blocks of an answer, by CommonMark's rules (section 4.5)."""
    lines = _lines(body)
    position, before = 0, ""
    while position < len(lines):
        line = _bare(lines[position])
        opening = _opening_fence(line)
        position += 1
        if opening is None:
            before = line if line.strip() else before
            continue
        end = _closing_fence(lines, position, opening[2])
        if end is None:
            raise MalformedAnswerError("A fenced block in the model's answer is never closed: the answer looks cut.")
        language, path = _info(opening[3])
        path = path or _path_before_block(before, language)
        first = _bare(lines[position]) if position < end else ""
        if not path and _looks_like_path(first.strip()) and position + 1 < end and _opening_fence(lines[position + 1]):
            before = first  # the fence was opened too early: around the path
            position += 1
            continue
        yield _Block(language, path, "".join(lines[position:end]))
        position, before = end + 1, ""


def _lines(body: str) -> list[str]:
    """Lines with their ends; ``str.splitlines`` would also split at form feeds and other characters inside a line."""
    return re.findall(r"[^\n]*\n|[^\n]+", body)


def _opening_fence(line: str) -> re.Match[str] | None:
    found = _FENCE.match(line)
    return None if found is None or (found[2][0] == "`" and "`" in found[3]) else found


def _bare(line: str) -> str:
    return line.rstrip("\r\n")


def _closing_fence(lines: Sequence[str], start: int, fence: str) -> int | None:
    """The line that closes a fence opened before ``start``.

    Models forget that a fence in the file's own text needs a longer fence around it; a fence inside that opens a block
    with an info string (as documentation has it) is therefore taken together with the next bare one.
    """
    first_bare: int | None = None
    nested = False
    for number in range(start, len(lines)):
        found = _opening_fence(_bare(lines[number]))
        if found is None or found[2][0] != fence[0] or len(found[2]) < len(fence):
            continue
        if found[3]:
            nested = True
        elif not nested:
            return number
        else:
            first_bare = number if first_bare is None else first_bare
            nested = False
    return first_bare


def _info(info: str) -> tuple[str, str]:
    """(language, path) of an info string: ``python``, ``python src/a.py``, ``python:src/a.py``, ``src/a.py``."""
    language, _, rest = info.partition(" ")
    rest = re.sub(r"^(?:title|file|filename|path)\s*=\s*", "", rest.strip().strip("{}")).strip("\"'")
    if rest:
        return language.casefold(), rest if _looks_like_path(rest) else ""
    head, colon, tail = language.partition(":")
    if colon and _looks_like_path(tail):
        return head.casefold(), tail
    if "/" in language or re.search(r"\.\w+$", language):
        return "", language
    return language.casefold(), ""


def _read_files(body: str) -> tuple[list[CodeChange], str]:
    changes = [_whole_file(block) for block in _blocks(body) if block.path]
    prose = _outside_blocks(body)
    for line in prose:
        changes += _directive(line)
    explanation = " ".join(line.strip() for line in prose if line.strip() and not _path_on_line(line))
    return _without_repeats(changes), explanation[:2000]


def _whole_file(block: _Block) -> CodeChange:
    """A block as a file; its last line may say, as git's diffs do, that the file ends without a line break."""
    content = block.content
    if exact := content.endswith(f"\n{_NO_NEWLINE}\n"):
        content = content.removesuffix(f"\n{_NO_NEWLINE}\n")
    return CodeChange(operation="modify", file_path=block.path, content=content, exact=exact)


def _outside_blocks(body: str) -> list[str]:
    lines = _lines(body)
    kept: list[str] = []
    position = 0
    while position < len(lines):
        line = _bare(lines[position])
        opening = _opening_fence(line)
        position += 1
        if opening is None:
            kept.append(line)
        elif (end := _closing_fence(lines, position, opening[2])) is not None:
            position = end + 1
    return kept


def _directive(line: str) -> list[CodeChange]:
    found = _DIRECTIVE.match(line.strip())
    if found is None:
        return []
    if found[1] == "DELETE":
        path = found[2].strip("`*\"' ")
        return [CodeChange(operation="delete", file_path=path)] if _may_be_path(path) else []
    sides = [side.strip("`*\"' ") for side in _ARROW.split(found[2])]
    if len(sides) != 2 or not all(map(_may_be_path, sides)):  # noqa: PLR2004  from and to
        return []
    return [CodeChange(operation="rename", file_path=sides[0], new_path=sides[1])]


def _path_before_block(line: str, language: str) -> str:
    """The path that the line before a block names; a shell session under a sentence about a file is not that file."""
    path = _path_on_line(line)
    if path is None or (language in _SHELL_FENCES and line.strip() != path and not path.endswith((".sh", ".txt"))):
        return ""
    return path


def _path_on_line(line: str) -> str | None:
    """The path that a line names, such as ``src/a.py``, ``**src/a.py**`` or ``### File: `src/a.py`:`` does."""
    text = line.strip().lstrip("#>-*").strip()
    told = _TOLD.match(text.strip("*_ "))
    if told and _may_be_path(named := told[1].strip("*`\"' ").rstrip(":：")):
        return named
    quoted = re.search(r"`([^`\s]+)`", text)
    if quoted and _looks_like_path(quoted[1]) and len(text.split()) <= _MOST_WORDS_AROUND_PATH:
        return quoted[1]
    text = text.strip("*_ ").rstrip(":：").strip("*`\"' ")
    text = re.sub(r"^(?:\d+[.)]|//|#|--)\s+", "", text)
    text = _LABEL.sub("", text).strip("*`\"' ").rstrip(":：")
    return text if _looks_like_path(text) else None


def _looks_like_path(text: str) -> bool:
    """Whether a text reads as one file path and not as a word of prose."""
    if not text or not _PATH_SHAPE.match(text) or text.endswith(("/", ".", ",", ";")):
        return False
    name = text.rsplit("/", 1)[-1]
    return "/" in text or "." in name or name in _BARE_NAMES


def _may_be_path(text: str) -> bool:
    """Whether a text reads as a file path where it is called one: spaces and bare names may be in it."""
    if _PATH_SHAPE.match(text):
        return not text.endswith(("/", ".", ",", ";"))
    return _PATH_WITH_SPACES.match(text) is not None


_BARE_NAMES = {
    "Makefile",
    "Dockerfile",
    "LICENSE",
    "README",
    "Rakefile",
    "Gemfile",
    "Procfile",
    "Justfile",
    "CHANGELOG",
}


def _without_repeats(changes: list[CodeChange]) -> list[CodeChange]:
    """Two blocks for one path with the same text are one; with different texts they contradict each other."""
    by_path: dict[tuple[str, str], CodeChange] = {}
    for change in changes:
        key = (change.operation, change.file_path)
        if key in by_path and by_path[key] != change:
            raise MalformedAnswerError(f"The model's answer gives {change.file_path} twice, with different texts.")
        by_path[key] = change
    return list(by_path.values())
