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

from necrocode.agent_runner._text import is_writable, shown, writable
from necrocode.agent_runner.errors import EmptyAnswerError, MalformedAnswerError
from necrocode.agent_runner.generation.blocks import Block, Layout, read_layout
from necrocode.agent_runner.generation.told_paths import may_be_path, path_on_line
from necrocode.agent_runner.models import CodeChange, LLMResponse, ModelAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ANSWER_CHARACTERS = 8_000_000
MAX_CHANGES = 10_000
_LONGEST_EXPLANATION = 2000
_LONGEST_NAMED = 200

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
_WHOLE_FENCE = re.compile(r"\A```[\w+-]*\n((?:(?!```).*\n)*?(?:(?!```).*[^\n])?)\n?```\s*\Z")
_MARKDOWN = (".md", ".markdown", ".mdx", ".rst", ".txt")
_NO_NEWLINE = "\\ No newline at end of file"

_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)
_DIRECTIVE = re.compile(r"^(?:[-*] )?[`*]{0,3}(DELETE|RENAME)[:`*]{0,3}\s+(.+)$")
_ARROW = re.compile(r"(?<!\s)\s+(?:->|=>|→|TO|to)\s+")


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
    if not is_writable(text):
        raise MalformedAnswerError("The model's answer holds half a character (a lone surrogate).")
    body = _THINKING.sub("", text).lstrip("\ufeff")
    stripped = body.strip()
    if not stripped:
        raise EmptyAnswerError("The model's answer holds no text.")
    layout = None if stripped.startswith(("{", "[")) else read_layout(body)
    if (found := _find_json(stripped, layout)) is not None:
        return _from_json(found)
    changes, explanation = _read_files(layout or read_layout(body))
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


def _find_json(stripped: str, layout: Layout | None) -> dict[str, Any] | None:
    """The JSON change set that the answer is, or holds alone in a fence, or carries between prose; None if none."""
    if layout is None:
        candidates = [stripped]
    else:
        candidates = [one.content for one in layout.blocks if one.language in _JSON_FENCES and not one.path]
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
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {shown(name, _LONGEST_NAMED)!r} is given twice in one object")
        found[name] = value
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
    return ParsedAnswer(_limited(changes), writable(explanation) if isinstance(explanation, str) else "", "json")


def _change(item: object, number: int) -> CodeChange:
    if not isinstance(item, dict):
        raise MalformedAnswerError(f"Change {number} in the model's answer is not an object.")
    path, content = _first(item, _PATH_KEYS), _first(item, _CONTENT_KEYS)
    new_path = _first(item, _NEW_PATH_KEYS)
    said = item.get("operation") or item.get("action") or item.get("type") or ("rename" if new_path else "modify")
    operation = _OPERATIONS.get(said.casefold()) if isinstance(said, str) else None
    if operation is None:
        said = shown(said, _LONGEST_NAMED) if isinstance(said, str) else type(said).__name__
        raise MalformedAnswerError(f"Change {number} has the unknown operation {said!r}.")
    if not isinstance(path, str) or not path:
        raise MalformedAnswerError(f"Change {number} names no file_path.")
    if operation != "rename":
        new_path = None
    if operation == "delete" or (operation == "rename" and not (isinstance(content, str) and content)):
        content = None
    change = {"operation": operation, "file_path": path, "content": content, "new_path": new_path}
    _check_texts(change, f"Change {number} ({operation} {shown(path, _LONGEST_NAMED)})")
    if isinstance(content, str) and not path.endswith(_MARKDOWN):
        change["content"] = _without_fence(content)
    return CodeChange.model_validate(change)


def _check_texts(change: dict[str, Any], what: str) -> None:
    """Every text that the operation needs is there, and can be written to a file."""
    content, new_path = change["content"], change["new_path"]
    if change["operation"] in {"create", "modify"} and not isinstance(content, str):
        raise MalformedAnswerError(f"{what} holds no content.")
    if change["operation"] == "rename" and not isinstance(new_path, str):
        raise MalformedAnswerError(f"{what} names no new_path.")
    if "\0" in (content or ""):
        raise MalformedAnswerError(f"{what} holds a NUL character.")
    if not all(map(is_writable, (change["file_path"], content or "", new_path or ""))):
        raise MalformedAnswerError(f"{what} holds half a character (a lone surrogate).")


def _without_fence(content: str) -> str:
    """Models put the text of a file into a fence even inside JSON; no source file is one fenced block."""
    found = _WHOLE_FENCE.match(content)
    return content if found is None else found[1]


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401  whatever the model put there
    return next((item[key] for key in keys if item.get(key) is not None), None)


# --- files -----------------------------------------------------------------------------------------------------------


def _read_files(layout: Layout) -> tuple[list[CodeChange], str]:
    changes = [_whole_file(block) for block in layout.blocks if block.path]
    for line in layout.prose:
        changes += _directive(line)
    explanation = " ".join(line.strip() for line in layout.prose if line.strip() and not path_on_line(line))
    return _without_repeats(changes), explanation[:_LONGEST_EXPLANATION]


def _whole_file(block: Block) -> CodeChange:
    """A block as a file; its last line may say, as git's diffs do, that the file ends without a line break."""
    content = block.content
    if exact := content.endswith(f"\n{_NO_NEWLINE}\n"):
        content = content.removesuffix(f"\n{_NO_NEWLINE}\n")
    return CodeChange(operation="modify", file_path=block.path, content=content, exact=exact)


def _directive(line: str) -> list[CodeChange]:
    found = _DIRECTIVE.match(line.strip())
    if found is None:
        return []
    if found[1] == "DELETE":
        path = found[2].strip("`*\"' ")
        return [CodeChange(operation="delete", file_path=path)] if may_be_path(path) else []
    sides = [side.strip("`*\"' ") for side in _ARROW.split(found[2])]
    if len(sides) != 2 or not all(map(may_be_path, sides)):  # noqa: PLR2004  from and to
        return []
    return [CodeChange(operation="rename", file_path=sides[0], new_path=sides[1])]


def _without_repeats(changes: list[CodeChange]) -> list[CodeChange]:
    """Two blocks for one path with the same text are one; with different texts they contradict each other."""
    by_path: dict[tuple[str, str], CodeChange] = {}
    for change in changes:
        key = (change.operation, change.file_path)
        if key in by_path and by_path[key] != change:
            raise MalformedAnswerError(
                f"The model's answer gives {shown(change.file_path, _LONGEST_NAMED)} twice, with different texts."
            )
        by_path[key] = change
    return list(by_path.values())
