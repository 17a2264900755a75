from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from necrocode.agent_runner import ChangeRejectedError, CodeChange, MalformedAnswerError, Message, TextEdit
from necrocode.agent_runner.generation.answer_forms import (
    EDIT_FORMATS,
    EditFormat,
    ShownFile,
    answer_format_of,
    as_text_request,
    choose_format,
    reminder,
    system_prompt,
)
from necrocode.agent_runner.generation.blind_rewrites import refuse_blind_rewrites
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.pieces import Piece
from necrocode.agent_runner.generation.stand_ins import StandIns

# --- what the model is told


@pytest.mark.parametrize("edit_format", EDIT_FORMATS)
def test_the_example_of_each_form_is_read_as_that_form(edit_format: EditFormat) -> None:
    parsed = parse_answer(system_prompt(edit_format))
    assert (parsed.edit_format, parsed.changes[0].file_path) == (edit_format, "src/hello.py")


@pytest.mark.parametrize("edit_format", EDIT_FORMATS)
def test_how_to_delete_and_move_is_told_only_when_asked_for(edit_format: EditFormat) -> None:
    plain, more = system_prompt(edit_format), system_prompt(edit_format, with_removals=True)
    assert more.startswith(plain)
    assert ("delete a file" in plain, "delete a file" in more) == (False, True)
    assert len(more) < 3000


@pytest.mark.parametrize("edit_format", EDIT_FORMATS)
def test_said_again_a_form_names_a_real_file_and_has_nothing_to_copy(edit_format: EditFormat) -> None:
    told = reminder(edit_format, "src/a.py")
    assert "src/a.py" in told
    assert "hello" not in told
    with pytest.raises(MalformedAnswerError):
        parse_answer(told)


def test_only_json_asks_for_structured_output() -> None:
    assert [answer_format_of(one) for one in EDIT_FORMATS] == ["json", "text", "text", "text", "text"]


def test_a_request_for_json_becomes_one_for_files() -> None:
    for removals in (False, True):
        system = Message(role="system", content=system_prompt("json", with_removals=removals))
        other = Message(role="user", content="hello")
        text, same = as_text_request([system, other])
        assert (text.content, same) == (system_prompt("files", with_removals=removals), other)


# --- which form


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        ([], "files"),
        ([ShownFile("a", 500, is_whole=True)], "files"),
        ([ShownFile("a", 501, is_whole=True)], "search_replace"),
        ([ShownFile("a", 300, is_whole=True), ShownFile("b", 300, is_whole=True)], "search_replace"),
        ([ShownFile("a", 300, is_whole=True, is_meant=True), ShownFile("b", 300, is_whole=True)], "files"),
        ([ShownFile("a", 300, is_whole=True, is_meant=True), ShownFile("b", 501, is_whole=True)], "search_replace"),
        ([ShownFile("a", 300, is_whole=True, is_meant=True), ShownFile("b", 300, is_whole=False)], "search_replace"),
        ([ShownFile(name, 300, is_whole=True, is_meant=True) for name in ("a.py", "b.py")], "search_replace"),
        ([ShownFile(name, 300, is_whole=True, is_meant=True) for name in ("a.py", "tests/test_a.py")], "files"),
        ([ShownFile(f"tests/test_{n}.py", 300, is_whole=True, is_meant=True) for n in "ab"], "search_replace"),
        ([ShownFile("a", 10, is_whole=True), ShownFile("b", 10, is_whole=False)], "search_replace"),
    ],
)
def test_whole_files_are_asked_for_where_all_of_them_could_be_written(shown: list[ShownFile], wanted: str) -> None:
    assert choose_format("auto", shown=shown, max_tokens=1000) == wanted
    assert choose_format("patch", shown=shown, max_tokens=1000) == "patch"


# --- files that were not seen whole


def change(path: str, content: str | None = "x\n", **more: object) -> CodeChange:
    return CodeChange.model_validate({"operation": "modify", "file_path": path, "content": content, **more})


@pytest.mark.parametrize(
    "changes",
    [
        [change("part.py")],
        [change("./part.py")],
        [change("unseen.py")],
        [change("whole.py"), change("part.py")],
        [change("part.py", None, operation="rename", new_path="new.py"), change("part.py")],
        [change("part.py", operation="rename", new_path="new.py")],
    ],
)
def test_a_whole_text_for_a_file_that_was_not_seen_whole_is_refused(changes: list[CodeChange]) -> None:
    with pytest.raises(ChangeRejectedError, match="has not seen whole") as caught:
        refuse_blind_rewrites(changes, {"whole.py"}, {"part.py"}, lambda path: path == "unseen.py")
    assert "<<<<<<< SEARCH" in (caught.value.feedback or "")


@pytest.mark.parametrize(
    "changes",
    [
        [change("whole.py"), change("new.py")],
        [change("new.py"), change("new.py", "y\n")],
        [change("part.py", None, operation="delete")],
        [change("part.py", None, operation="edit", edits=[TextEdit(search="a", replace="b")])],
        [change("whole.py", None, operation="rename", new_path="unseen.py"), change("unseen.py")],
    ],
)
def test_what_was_seen_or_is_new_may_be_written_whole(changes: list[CodeChange]) -> None:
    refuse_blind_rewrites(changes, {"whole.py"}, {"part.py"}, lambda path: path == "unseen.py")


# --- secrets in edits


def hide(text: str, name_of: Callable[[str], str]) -> str:
    return re.sub("hush|psst", lambda found: name_of(found[0]), text)


def test_secrets_come_back_inside_of_edits() -> None:
    stand_ins = StandIns([Piece("a.py", "key = 'hush'\n", "")], hide)
    edit = TextEdit(search="key = 'REDACTED_SECRET_1'\n", replace="KEY = 'REDACTED_SECRET_1'\n")
    restored = stand_ins.restored(change("a.py", None, operation="edit", edits=[edit]))
    assert restored.edits == (TextEdit(search="key = 'hush'\n", replace="KEY = 'hush'\n"),)
    with pytest.raises(ChangeRejectedError, match="stands for no secret of that file"):
        stand_ins.restored(change("b.py", None, operation="edit", edits=[edit]))


def test_what_is_told_of_an_edit_has_the_same_names_for_secrets() -> None:
    stand_ins = StandIns([Piece("a.py", "key = 'hush'\n", "")], hide)
    assert stand_ins.hidden("     1 | key = 'hush' + 'psst'") == "     1 | key = 'REDACTED_SECRET_1' + '***'"
    assert stand_ins.hidden("REDACTED_SECRET_1") == "REDACTED_SECRET_1"
