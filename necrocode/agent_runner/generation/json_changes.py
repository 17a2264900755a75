"""The JSON form of a change set: what is asked for, and what models make of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeGuard

from necrocode.agent_runner._text import is_writable, shown
from necrocode.agent_runner.errors import MalformedAnswerError
from necrocode.agent_runner.generation.hunks import check_count
from necrocode.agent_runner.models import CodeChange, TextEdit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST_NAMED = 200


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's strict mode wants every property required, and no additional ones."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _change_form(operation: str, others: dict[str, Any]) -> dict[str, Any]:
    """What a change of this kind holds: no more, so that a grammar lets a model write nothing else.

    The operation comes first and has one value: by it OpenAI's strict mode tells the forms of an ``anyOf`` apart.
    """
    path = {"type": "string", "description": "Path relative to the repository's top."}
    return _object({"operation": {"type": "string", "enum": [operation]}, "file_path": path, **others})


_EDIT_LIST = {
    "type": "array",
    "description": "Texts that are in the file just once, and what replaces them.",
    "items": _object({"search": {"type": "string"}, "replace": {"type": "string"}}),
}
_NEW_TEXT = {"type": "string", "description": "The whole new text of the file."}
_MOVED_TEXT = {"type": ["string", "null"], "description": "The whole new text of the file; null to leave it."}
_NEW_PATH = {"type": "string", "description": "The new path."}
JSON_SCHEMA: dict[str, Any] = _object(
    {
        "explanation": {"type": "string", "description": "What was done, in one or two sentences."},
        "changes": {
            "type": "array",
            "items": {
                "anyOf": [
                    _change_form("create", {"content": _NEW_TEXT}),
                    _change_form("modify", {"content": _NEW_TEXT}),
                    _change_form("edit", {"edits": _EDIT_LIST}),
                    _change_form("delete", {}),
                    _change_form("rename", {"new_path": _NEW_PATH, "content": _MOVED_TEXT}),
                ]
            },
        },
    }
)

_LIST_KEYS = ("changes", "code_changes", "files", "edits")
_PATH_KEYS = ("file_path", "path", "filename", "file")
_NEW_PATH_KEYS = ("new_path", "new_file_path", "to", "destination")
_CONTENT_KEYS = ("content", "new_content", "code", "text")
_EXPLANATION_KEYS = ("explanation", "summary", "description", "message")
_EDITS_KEYS = ("edits", "replacements", "edit", "changes", "blocks", "hunks", "search_replace")
_SEARCH_KEYS = ("search", "old", "old_str", "old_string", "old_text", "oldText", "find", "before", "original", "from")
_REPLACE_KEYS = (
    "replace", "new", "new_str", "new_string", "new_text", "newText", "replacement", "after", "updated", "with", "to",
)  # fmt: skip
_EVERY_KEYS = ("replace_all", "all_occurrences", "all")
_OPERATIONS = {
    "create": "create", "add": "create", "new": "create", "write": "create",
    "modify": "modify", "update": "modify", "edit": "modify", "replace": "modify", "change": "modify",
    "str_replace": "modify", "search_replace": "modify", "patch": "modify",
    "delete": "delete", "remove": "delete",
    "rename": "rename", "move": "rename",
}  # fmt: skip
_PATCH = "*** Begin Patch"
_MOST_LOOKED_AT = 100

_WHOLE_FENCE = re.compile(r"\A```[\w+-]*\n((?:(?!```).*\n)*?(?:(?!```).*[^\n])?)\n?```\s*\Z")
_MARKDOWN = (".md", ".markdown", ".mdx", ".rst", ".txt")


def read_json(text: str) -> Any:  # noqa: ANN401  JSON is anything
    """The JSON value that a text begins with; ``ValueError`` when it begins with none."""
    try:
        value, _ = json.JSONDecoder(object_pairs_hook=_unique, strict=False).raw_decode(text.strip())
    except RecursionError:
        raise MalformedAnswerError("The JSON in the model's answer is nested too deeply.") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice is an error, for it would silently drop the first (RFC 8259, section 4)."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {shown(name, _LONGEST_NAMED)!r} is given twice in one object")
        found[name] = value
    return found


def as_change_list(value: object) -> dict[str, Any] | None:
    """The value as an object with a list of changes; None for JSON about something else."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and _first(item, _PATH_KEYS) for item in value):
        return {"changes": value}
    if not isinstance(value, dict):
        return None
    lists = [value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)]
    has_paths = any(isinstance(item, dict) and _first(item, _PATH_KEYS) for items in lists for item in items[:1])
    if not has_paths and _first(value, _PATH_KEYS) and (value.get("operation") or _has_text(value)):
        return {"changes": [value]}
    return value if lists else None


def is_surely_a_change_list(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether the value is in the form that is asked for: a list under ``changes``, each with operation and path."""
    items = value.get("changes") if isinstance(value, dict) else None
    return (
        isinstance(items, list)
        and bool(items)
        and all(
            isinstance(item, dict) and isinstance(item.get("operation"), str) and _first(item, _PATH_KEYS)
            for item in items
        )
    )


def _has_text(item: dict[str, Any]) -> bool:
    keys = (*_CONTENT_KEYS, *_EDITS_KEYS, *_SEARCH_KEYS)
    return _first(item, keys) is not None


def patch_in(value: object, *, depth: int = 3) -> str | None:
    """A patch envelope that the value carries as a text, as calls of a tool named apply_patch do; None when none."""
    if isinstance(value, str):
        return value if _PATCH in value else None
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not depth:
        return None
    inside = (patch_in(item, depth=depth - 1) for item in value[:_MOST_LOOKED_AT])
    return next((found for found in inside if found is not None), None)


def changes_of(value: dict[str, Any]) -> tuple[list[CodeChange], str]:
    """The changes of a list that :func:`as_change_list` has found, and the explanation with them."""
    items = next(value[key] for key in _LIST_KEYS if isinstance(value.get(key), list))
    if not items:
        raise MalformedAnswerError("The model's answer holds an empty list of changes.")
    check_count(len(items))
    explanation = _first(value, _EXPLANATION_KEYS)
    changes = [_change(item, number) for number, item in enumerate(items, 1)]
    return changes, explanation if isinstance(explanation, str) else ""


def _change(item: object, number: int) -> CodeChange:
    if not isinstance(item, dict):
        raise MalformedAnswerError(f"Change {number} in the model's answer is not an object.")
    path, content, new_path = (_first(item, keys) for keys in (_PATH_KEYS, _CONTENT_KEYS, _NEW_PATH_KEYS))
    pair = _is_pair(item)
    if pair and not item.get("new_path"):
        new_path = None  # "to" is then the new text
    said = item.get("operation") or item.get("action") or item.get("type") or ("rename" if new_path else "modify")
    operation = _OPERATIONS.get(said.casefold()) if isinstance(said, str) else None
    if operation is None:
        said = shown(said, _LONGEST_NAMED) if isinstance(said, str) else type(said).__name__
        raise MalformedAnswerError(
            f"Change {number} has the unknown operation {said!r}: it must be create, modify, edit, delete or rename."
        )
    if not isinstance(path, str) or not path:
        raise MalformedAnswerError(f"Change {number} names no file_path.")
    what = f"Change {number} ({operation} {shown(path, _LONGEST_NAMED)})"
    edits = () if operation in {"create", "delete"} else tuple(_edits(item, what, pair=pair))
    if edits:
        if isinstance(content, str) and content:
            raise MalformedAnswerError(f"{what} holds both content and edits; leave one of them out.")
        content = None
        operation = "edit" if operation == "modify" else operation
    if operation != "rename":
        new_path = None
    if operation == "delete" or (operation == "rename" and not (isinstance(content, str) and content)):
        content = None
    change = {"operation": operation, "file_path": path, "content": content, "new_path": new_path}
    _check_texts(change, edits, what)
    if isinstance(content, str) and not path.endswith(_MARKDOWN):
        change["content"] = _without_fence(content)
    return CodeChange.model_validate({**change, "edits": edits})


def _is_pair(item: dict[str, Any]) -> bool:
    """Whether one object is a change and its only edit at once."""
    return isinstance(_first(item, _SEARCH_KEYS), str) and isinstance(_first(item, _REPLACE_KEYS), str)


def _edits(item: dict[str, Any], what: str, *, pair: bool) -> Iterable[TextEdit]:
    listed = _first(item, _EDITS_KEYS)
    if listed is None or listed == []:
        listed = [item] if pair else []
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        raise MalformedAnswerError(f"The edits of {what} are no list of objects with search and replace.")
    check_count(len(listed))
    for number, one in enumerate(listed, 1):
        search, replace = (
            _first(one, keys) if isinstance(one, dict) else None for keys in (_SEARCH_KEYS, _REPLACE_KEYS)
        )
        if not isinstance(search, str) or not isinstance(replace, str):
            raise MalformedAnswerError(f"Edit {number} of {what} needs two texts, search and replace.")
        every = any(one.get(key) is True for key in _EVERY_KEYS)
        yield TextEdit(search=search, replace=replace, whole_lines=False, every=every)


def _check_texts(change: dict[str, Any], edits: Sequence[TextEdit], what: str) -> None:
    """Every text that the operation needs is there, and can be written to a file."""
    content, new_path = change["content"], change["new_path"]
    if change["operation"] in {"create", "modify"} and not isinstance(content, str):
        raise MalformedAnswerError(f"{what} holds no content.")
    if change["operation"] == "rename" and not isinstance(new_path, str):
        raise MalformedAnswerError(f"{what} names no new_path.")
    texts = [content or "", *(edit.search for edit in edits), *(edit.replace for edit in edits)]
    if any("\0" in text for text in texts):
        raise MalformedAnswerError(f"{what} holds a NUL character.")
    if not all(map(is_writable, (change["file_path"], new_path or "", *texts))):
        raise MalformedAnswerError(f"{what} holds half a character (a lone surrogate).")


def _without_fence(content: str) -> str:
    """Models put the text of a file into a fence even inside JSON; no source file is one fenced block."""
    found = _WHOLE_FENCE.match(content)
    return content if found is None else found[1]


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401  whatever the model put there
    return next((item[key] for key in keys if item.get(key) is not None), None)
