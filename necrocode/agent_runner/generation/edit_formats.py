"""Reading a model's answer as a change set, in whatever format it came.

The formats are all first-class, may be mixed, and are recognised by the answer itself, not by what was asked for:

``json``
    ``{"explanation": …, "changes": [{"operation": …, "file_path": …, "content": …, "edits": …, "new_path": …}]}``,
    bare, in a fence, or with prose around it.
``files``
    One fenced block per file with the whole new text, its path on the line before (or in the info string). A line
    ``DELETE path`` or ``RENAME old -> new`` outside of any block does what it says.
``search_replace``
    ``<<<<<<< SEARCH``, ``=======``, ``>>>>>>> REPLACE``, the file's path on the line before.
``unified_diff``
    As git and ``diff -u`` write it, in a fence or bare.
``patch``
    ``*** Begin Patch`` to ``*** End Patch``.

What each may look like is in ``docs/edit-formats.md``.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._text import is_writable, shown, writable
from necrocode.agent_runner.errors import EmptyAnswerError, MalformedAnswerError
from necrocode.agent_runner.generation.answer_reader import Change, Reading, read_lines
from necrocode.agent_runner.generation.json_changes import (
    as_change_list,
    changes_of,
    is_surely_a_change_list,
    patch_in,
    read_json,
)
from necrocode.agent_runner.generation.thoughts import without_thoughts
from necrocode.agent_runner.generation.unnamed import file_without_name
from necrocode.agent_runner.models import CodeChange, LLMResponse, ModelAnswer, TextEdit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_ANSWER_CHARACTERS = 8_000_000
NO_FILES: Mapping[str, str] = MappingProxyType({})
_LONGEST_NAMED = 200
_JSON_FENCES = {"json", "jsonc", "json5", ""}
_JSON_START = re.compile(r'\{\s*"(?:explanation|summary|changes|code_changes|files|edits)"\s*:')


@dataclass(frozen=True)
class ParsedAnswer:
    """A change set as the model asked for it; nothing of it has been checked against a repository."""

    changes: tuple[CodeChange, ...]
    """In the order in which they are to be applied."""
    explanation: str
    edit_format: str
    """``json``, ``files``, ``search_replace``, ``unified_diff`` or ``patch``; of a mixed answer, what most of it is."""


def parse_answer(text: str, files: Mapping[str, str] = NO_FILES) -> ParsedAnswer:
    """The change set in an answer. ``files`` are the texts that the model has seen whole, by path.

    With them, a block without a path is taken for the one file that it surely is: :mod:`~.unnamed`.

    Raises :class:`EmptyAnswerError` for an answer without text, :class:`MalformedAnswerError`, with a text that says
    what was looked for, for one without a readable change set, and :class:`ChangeRejectedError` for a diff of what is
    no text. Time and memory are linear in the answer's length.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise MalformedAnswerError(f"The answer has {len(text)} characters, more than {MAX_ANSWER_CHARACTERS}.")
    if not is_writable(text):
        raise MalformedAnswerError("The model's answer holds half a character (a lone surrogate).")
    body = without_thoughts(text.lstrip("\ufeff"))
    stripped = body.strip()
    if not stripped:
        raise EmptyAnswerError("The model's answer holds no text.")
    is_bare = stripped.startswith(("{", "["))
    reading = None if is_bare else read_lines(body)
    if (reading is None or not reading.changes) and (found := _find_json(stripped, reading)) is not None:
        return found
    reading = reading or read_lines(body)
    if not is_bare:
        _refuse_second_change_set(reading)
    if not reading.changes and (found_file := file_without_name(reading, files)) is not None:
        path, content = found_file
        change = CodeChange(operation="modify", file_path=path, content=content)
        return _parsed([Change(change, "files")], reading.explanation)
    if reading.doubts:
        raise MalformedAnswerError(reading.doubts[0])
    if not reading.changes:
        raise MalformedAnswerError(
            "The model's answer holds no change: neither JSON with a list of changes, nor a fenced block with a file's"
            " path on the line before it, nor a search/replace block, diff or patch."
            f" It begins: {' '.join(body.split())[:160]!r}"
        )
    return _parsed(reading.changes, reading.explanation)


def read_answer(answer: ModelAnswer, files: Mapping[str, str] = NO_FILES) -> LLMResponse:
    """A model's answer with its change set; ``files`` and what it raises are those of :func:`parse_answer`."""
    parsed = parse_answer(answer.text, files)
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


def _find_json(stripped: str, reading: Reading | None) -> ParsedAnswer | None:
    """The change set of the JSON that the answer is, or holds alone in a fence, or carries between prose."""
    if reading is None:
        candidates = [stripped]
    else:
        candidates = [one.content for one in reading.loose_blocks if one.language in _JSON_FENCES]
        sure = [value for value in _json_values(reading) if is_surely_a_change_list(value)]
        if sure and all(value == sure[0] for value in sure):
            return _of_list(sure[0])
        if sure:
            raise MalformedAnswerError("The model's answer holds several JSON objects with changes: write one.")
        if not candidates and (start := _JSON_START.search(stripped)):
            candidates.append(stripped[start.start() :])
    complaint = ""
    for candidate in candidates:
        try:
            value = read_json(candidate)
        except ValueError as error:
            complaint = complaint or f"{error}"
            continue
        if (patch := patch_in(value)) is not None:
            return _of_patch(patch)
        if (found := as_change_list(value)) is not None:
            return _of_list(found)
    if complaint and _JSON_START.match(stripped):
        raise MalformedAnswerError(f"The JSON in the model's answer cannot be read: {complaint}.")
    return None


def _json_values(reading: Reading) -> Iterable[object]:
    for block in reading.loose_blocks:
        if block.language in _JSON_FENCES and block.content.lstrip()[:1] in {"{", "["}:
            with contextlib.suppress(ValueError, MalformedAnswerError):
                yield read_json(block.content)


def _refuse_second_change_set(reading: Reading) -> None:
    """Refuse JSON that surely is a change set beside other changes; other JSON there is only talked about."""
    if reading.changes and any(map(is_surely_a_change_list, _json_values(reading))):
        raise MalformedAnswerError(
            "The model's answer holds changes in blocks and a JSON object with changes besides: write all in one form."
        )


def _of_list(found: dict[str, Any]) -> ParsedAnswer:
    changes, explanation = changes_of(found)
    return _parsed([Change(change, "json") for change in changes], writable(explanation))


def _of_patch(patch: str) -> ParsedAnswer:
    """The change set of a patch that stood in a JSON text."""
    if not is_writable(patch):
        raise MalformedAnswerError("The patch in the model's answer holds half a character (a lone surrogate).")
    reading = read_lines(patch)
    if not reading.changes:
        raise MalformedAnswerError("The patch in the model's answer holds no change.")
    return _parsed(reading.changes, reading.explanation)


def _parsed(changes: Sequence[Change], explanation: str) -> ParsedAnswer:
    formats = [change.edit_format for change in changes]
    joined = _joined(change.change for change in changes)
    return ParsedAnswer(tuple(joined), explanation, max(formats, key=formats.count))


def _joined(changes: Iterable[CodeChange]) -> list[CodeChange]:
    """The changes in their order, each said once, the search/replace edits of one file together.

    Together they are looked for in the file as the model was shown it. A change of the whole file, a rename or a
    removal between them parts them.
    """
    joined: list[CodeChange] = []
    last_of: dict[str, int] = {}
    edits_of: dict[int, dict[TextEdit, None]] = {}
    for change in changes:
        at = last_of.get(change.file_path)
        last = None if at is None else joined[at]
        if at is not None and last is not None:
            if change == last:
                continue
            if _writes_whole(last) and _writes_whole(change):
                path = shown(change.file_path, _LONGEST_NAMED)
                raise MalformedAnswerError(f"The model's answer gives {path} twice, with different texts.")
            if at in edits_of and _is_loose_edit(change):
                edits_of[at].update(dict.fromkeys(change.edits))
                continue
        last_of[change.file_path] = len(joined)
        last_of.pop(change.new_path or "", None)
        if _is_loose_edit(change):
            edits_of[len(joined)] = dict.fromkeys(change.edits)
        joined.append(change)
    for at, edits in edits_of.items():
        joined[at] = joined[at].model_copy(update={"edits": tuple(edits)})
    return joined


def _writes_whole(change: CodeChange) -> bool:
    return change.operation in {"create", "modify"}


def _is_loose_edit(change: CodeChange) -> bool:
    return change.operation == "edit" and not change.in_order
