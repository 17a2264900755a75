from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necrocode.agent_runner import (
    CodeChange,
    EmptyAnswerError,
    LLMResponse,
    MalformedAnswerError,
    ModelAnswer,
    RunnerError,
)
from necrocode.agent_runner.generation import blocks, edit_formats, hunks
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.shown_files import fenced
from tests.support.pace import is_in_proportion, is_within

JSON_ANSWER = {
    "explanation": "done",
    "changes": [
        {"operation": "create", "file_path": "a.py", "content": "x = 1\n", "new_path": None},
        {"operation": "modify", "file_path": "b.py", "content": "y = 2\n", "new_path": None},
        {"operation": "delete", "file_path": "c.py", "content": None, "new_path": None},
        {"operation": "rename", "file_path": "d.py", "content": None, "new_path": "e.py"},
    ],
}


def contents(text: str) -> dict[str, str | None]:
    return {change.file_path: change.content for change in parse_answer(text).changes}


# --- json


def test_json_answer_holds_every_operation() -> None:
    parsed = parse_answer(json.dumps(JSON_ANSWER))
    assert parsed.edit_format == "json"
    assert parsed.explanation == "done"
    assert parsed.changes == (
        CodeChange(operation="create", file_path="a.py", content="x = 1\n"),
        CodeChange(operation="modify", file_path="b.py", content="y = 2\n"),
        CodeChange(operation="delete", file_path="c.py"),
        CodeChange(operation="rename", file_path="d.py", new_path="e.py"),
    )


@pytest.mark.parametrize(
    "wrap",
    [
        "```json\n{}\n```",
        "```\n{}\n```",
        "Here is the change:\n\n```json\n{}\n```\nThat is all.",
        "Sure! {}",
        '<think>\nmaybe {{"a": 1}}\n</think>\n{}',
        "\ufeff{}",
        "{}\n\nI hope this helps.",
    ],
)
def test_json_is_found_in_a_fence_between_prose_and_after_thinking(wrap: str) -> None:
    text = wrap.replace("{{", "<<").replace("}}", ">>").replace("{}", json.dumps(JSON_ANSWER))
    assert len(parse_answer(text.replace("<<", "{").replace(">>", "}")).changes) == len(JSON_ANSWER["changes"])


@pytest.mark.parametrize(
    "document",
    [
        {"code_changes": [{"operation": "create", "path": "a.py", "content": "x"}], "summary": "s"},
        {"files": [{"filename": "a.py", "code": "x"}]},
        [{"file_path": "a.py", "content": "x"}],
        {"operation": "update", "file_path": "a.py", "new_content": "x"},
    ],
)
def test_other_names_for_the_same_things_are_understood(document: object) -> None:
    assert contents(json.dumps(document)) == {"a.py": "x"}


def test_raw_line_breaks_inside_json_text_are_read() -> None:
    assert contents('{"changes": [{"file_path": "a.py", "content": "x\ny\n"}]}') == {"a.py": "x\ny\n"}


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ('{"changes": [', "cannot be read"),
        ('{"changes": []}', "empty list"),
        ('{"changes": ["a.py"]}', "not an object"),
        ('{"changes": [{"operation": "chmod", "file_path": "a"}]}', "unknown operation 'chmod'"),
        ('{"changes": [{"operation": "create", "content": "x"}]}', "no file_path"),
        ('{"changes": [{"operation": "create", "file_path": "a"}]}', "no content"),
        ('{"changes": [{"operation": "create", "file_path": 3, "content": ""}]}', "no file_path"),
        ('{"changes": [{"operation": "rename", "file_path": "a"}]}', "no new_path"),
        ('{"changes": [{"operation": "create", "file_path": "a", "content": "\\u0000"}]}', "NUL"),
        ('{"changes": [], "changes": [{"file_path": "a", "content": "x"}]}', "given twice"),
        ('{"changes": [{"file_path": "a", "content": "x", "content": "y"}]}', "given twice"),
        ('{"changes": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_unreadable_json_is_refused_with_the_reason(answer: str, complaint: str) -> None:
    with pytest.raises(MalformedAnswerError, match=complaint):
        parse_answer(answer)


def test_too_many_changes_and_too_long_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(hunks, "MAX_CHANGES", 3)
        edits = [{"search": "a", "replace": "b"}] * 4
        for answer in (
            json.dumps(JSON_ANSWER),
            json.dumps({"file_path": "a", "edits": edits}),
            "--- a/x\n+++ b/x\n" + "@@\n-a\n+b\n" * 4,
            "*** Begin Patch\n*** Update File: a\n" + "@@\n-a\n+b\n" * 4 + "*** End Patch\n",
            "*** Begin Patch\n" + "*** Delete File: a\n" * 5 + "*** End Patch\n",
            "".join(f"a\n<<<<<<< SEARCH\n{n}\n=======\n>>>>>>> REPLACE\n" for n in range(4)).replace("a\n<", "a.py\n<"),
        ):
            with pytest.raises(MalformedAnswerError, match="4 changes or more; at most 3"):
                parse_answer(answer)
    monkeypatch.setattr(edit_formats, "MAX_ANSWER_CHARACTERS", 10)
    with pytest.raises(MalformedAnswerError, match="more than 10"):
        parse_answer(json.dumps(JSON_ANSWER))


# --- files


@pytest.mark.parametrize(
    "line",
    [
        "src/a.py",
        "`src/a.py`",
        "**src/a.py**",
        "**`src/a.py`**",
        "### src/a.py",
        "### File: `src/a.py`",
        "File: src/a.py",
        "1. `src/a.py`:",
        "src/a.py:",
        "Create file src/a.py",
        "# src/a.py",
        "// src/a.py",
        "ファイル: src/a.py",
        "Here is the updated `src/a.py`:",
        "- `src/a.py`",
        "File:src/a.py",
        "**File:** src/a.py",
    ],
)
def test_path_on_the_line_before_a_block_is_understood(line: str) -> None:
    assert contents(f"I changed it.\n\n{line}\n\n```python\nx = 1\n```\n") == {"src/a.py": "x = 1\n"}


@pytest.mark.parametrize(
    "line", ["File: docs/my notes.md", "**File: `docs/my notes.md`**", "### File: docs/my notes.md"]
)
def test_a_path_with_spaces_is_understood_where_it_is_called_a_file(line: str) -> None:
    assert contents(f"{line}\n```\nx\n```\n") == {"docs/my notes.md": "x\n"}


def test_paths_with_spaces_are_deleted_and_renamed() -> None:
    deleted, renamed = parse_answer("DELETE my notes.txt\nRENAME a b.py -> c d.py\n").changes
    assert (deleted.file_path, renamed.file_path, renamed.new_path) == ("my notes.txt", "a b.py", "c d.py")


def test_a_fence_opened_too_early_around_the_path_is_understood() -> None:
    answer = "```\nsrc/a.py\n```python\nx = 1\n```\n\n```\nb.py\n```python\ny = 2\n```\n"
    assert contents(answer) == {"src/a.py": "x = 1\n", "b.py": "y = 2\n"}


@pytest.mark.parametrize(
    ("path", "content", "wanted"),
    [
        ("a.py", "```python\nx = 1\n```", "x = 1"),
        ("a.py", "```\nx = 1\n\n```\n", "x = 1\n"),
        ("a.py", 'x = """\n```\n"""\n', 'x = """\n```\n"""\n'),
        ("a.md", "```python\nx = 1\n```", "```python\nx = 1\n```"),
        ("a.md", "```\na\n```\n```\nb\n```\n", "```\na\n```\n```\nb\n```\n"),
        ("a.py", "```\na\n```\n```\nb\n```\n", "```\na\n```\n```\nb\n```\n"),
    ],
)
def test_a_fence_around_a_files_text_inside_json_is_taken_off(path: str, content: str, wanted: str) -> None:
    document = {"changes": [{"operation": "create", "file_path": path, "content": content}]}
    assert contents(json.dumps(document)) == {path: wanted}


@pytest.mark.parametrize(
    "info", ["python src/a.py", "python:src/a.py", "src/a.py", 'python title="src/a.py"', "py filename=src/a.py"]
)
def test_path_in_the_info_string_is_understood(info: str) -> None:
    assert contents(f"```{info}\nx = 1\n```") == {"src/a.py": "x = 1\n"}


def test_several_files_with_prose_between_them() -> None:
    text = "First:\n\na.py\n```python\nx\n```\nand then\n\nMakefile\n~~~\nall:\n~~~\n"
    parsed = parse_answer(text)
    assert parsed.edit_format == "files"
    assert {change.file_path: change.content for change in parsed.changes} == {"a.py": "x\n", "Makefile": "all:\n"}
    assert parsed.explanation == "First: and then"


def test_delete_and_rename_lines() -> None:
    parsed = parse_answer("Moved.\nDELETE old/a.py\n- RENAME `b.py` -> `c/d.py`\n")
    assert parsed.explanation == "Moved."
    assert parsed.changes == (
        CodeChange(operation="delete", file_path="old/a.py"),
        CodeChange(operation="rename", file_path="b.py", new_path="c/d.py"),
    )


def test_delete_and_rename_inside_a_block_are_text() -> None:
    assert contents("a.sql\n```sql\nDELETE x.y\n```\n") == {"a.sql": "DELETE x.y\n"}


@pytest.mark.parametrize(
    "line",
    [
        "DELETE this file please",
        "DELETE the old one. Then go on",
        "RENAME a.py",
        "RENAME a.py -> b.py -> c.py",
        "DELETE",
    ],
)
def test_prose_that_only_looks_like_a_directive_is_not_one(line: str) -> None:
    with pytest.raises(MalformedAnswerError):
        parse_answer(line)


def test_text_of_a_file_may_hold_fences() -> None:
    inner = "# Title\n\n```python\nx\n```\n\n```\nplain\n```\n"
    assert contents(f"README.md\n````markdown\n{inner}````\n") == {"README.md": inner}


def test_a_forgotten_longer_fence_is_understood_where_the_inner_blocks_name_their_language() -> None:
    inner = "# Title\n\n```python\nx\n```\n\nend\n"
    assert contents(f"README.md\n```markdown\n{inner}```\n") == {"README.md": inner}


def test_a_shell_session_under_a_sentence_about_a_file_is_not_that_file() -> None:
    text = "a.py\n```python\nx\n```\n\nRun `tests/test_a.py` like this:\n\n```bash\npytest tests/test_a.py\n```\n"
    assert contents(text) == {"a.py": "x\n"}


@pytest.mark.parametrize("line", ["Run it.", "e.g. this", "The result is 3.5", "see `the docs`", "a b/c.py d", "dir/"])
def test_prose_before_a_block_is_no_path(line: str) -> None:
    with pytest.raises(MalformedAnswerError, match="holds no change"):
        parse_answer(f"{line}\n```python\nx\n```\n")


def test_an_empty_block_is_an_empty_file() -> None:
    assert contents("pkg/__init__.py\n```python\n```\n") == {"pkg/__init__.py": ""}


def test_the_same_file_twice_is_one_when_the_texts_agree_and_refused_when_not() -> None:
    block = "a.py\n```\nx\n```\n"
    assert contents(block * 2) == {"a.py": "x\n"}
    with pytest.raises(MalformedAnswerError, match=r"a\.py twice, with different texts"):
        parse_answer(block + block.replace("x", "y"))


def test_a_block_that_is_never_closed_is_refused() -> None:
    with pytest.raises(MalformedAnswerError, match="never closed"):
        parse_answer("a.py\n```python\nx = 1\n")


def test_form_feeds_and_odd_separators_stay_in_the_text() -> None:
    text = "x\x0cy\u2028z\x85\n"
    assert contents(f"a.py\n```\n{text}```\n") == {"a.py": text}


def test_no_final_newline_can_be_said_as_git_says_it() -> None:
    (change,) = parse_answer("a.py\n```\nx\n\\ No newline at end of file\n```\n").changes
    assert (change.content, change.exact) == ("x", True)


@pytest.mark.parametrize("text", ["", "  \n ", "<think>hm</think>"])
def test_an_answer_without_text_is_its_own_error(text: str) -> None:
    with pytest.raises(EmptyAnswerError):
        parse_answer(text)


def test_an_answer_without_a_change_says_how_it_begins() -> None:
    with pytest.raises(MalformedAnswerError, match="It begins: 'I cannot do that"):
        parse_answer("I cannot do that, Dave.")


# --- any text


@given(st.text(alphabet=st.sampled_from(list('`~{}[]":,ab./\\ \n\t#*-><DELETERENAME'))) | st.text())
def test_no_text_raises_anything_but_our_errors(text: str) -> None:
    with contextlib.suppress(RunnerError):
        parse_answer(text)


_PATHS = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}\.(py|txt|md)", fullmatch=True)
_TEXT = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))
    .map(lambda text: text + "\n")
    .filter(
        lambda text: (
            not any(mark in text for mark in ("diff --git", "***", "<<<<<", ">>>>>", "@@", "Index: ", "--- ", "think>"))
        )
    )
)


@given(st.dictionaries(_PATHS, _TEXT, min_size=1, max_size=4))
@example({"a.py": "@@\n"})
def test_files_rendered_as_the_prompt_asks_are_read_back(files: dict[str, str]) -> None:
    answer = "\n\n".join(f"{path}\n{fenced(text)}" for path, text in files.items())
    assert contents(answer) == files


@given(st.dictionaries(_PATHS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_json_is_read_back_exactly(files: dict[str, str]) -> None:
    changes = [{"operation": "modify", "file_path": path, "content": text} for path, text in files.items()]
    assert contents(json.dumps({"changes": changes})) == files


@pytest.mark.parametrize(
    "piece", ["```\n", "```a\n", "{", '{"changes":', "`", "a.py\n```\n", "RENAME ", "<think>", "~~~ x\n"]
)
def test_reading_takes_time_in_proportion_to_the_length(piece: str) -> None:
    assert is_in_proportion(lambda count: read(piece * count), 4_000, 32_000)


def read(text: str) -> None:
    with contextlib.suppress(RunnerError):
        parse_answer(text)


def end_of_block(lines: list[str], start: int, marks: str) -> int | None:
    """Where a block ends, looked for line by line."""
    first_bare, nested = None, False
    for number in range(start, len(lines)):
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)", lines[number])
        if found is None or found[1][0] != marks[0] or len(found[1]) < len(marks):
            continue
        if found[1][0] == "`" and "`" in found[2]:
            continue
        if found[2].strip():
            nested = True
        elif not nested:
            return number
        else:
            first_bare = number if first_bare is None else first_bare
            nested = False
    return first_bare


@given(
    st.lists(st.sampled_from(["```", "```py", "````", "````x", "~~~", "~~~a", "~~~~~", "text", "``` `"]), max_size=25)
)
def test_blocks_end_where_a_reader_line_by_line_would_end_them(lines: list[str]) -> None:
    fences = blocks.Fences(lines)
    for start in range(len(lines) + 1):
        for marks in ("```", "````", "~~~", "~~~~~"):
            assert fences.closing(start, blocks.Fence(marks, "")) == end_of_block(lines, start, marks)


@pytest.mark.parametrize(
    "piece",
    [
        "```x\n```y\n```\n", "```x\n", "```\n", "```x\n````y\n", "~~~x\n```y\n```\n", "a.py\n```\nx\n```\n", "`", "# `",
        "```\na.py\n", "```\na.py\n```\n", "a.py\n```x\n```y\n```\n", "\n", " ", "a b ", "DELETE x\n", "DELETE a  b\n",
        "RENAME a -> b\n", "file: ", "**a.py** ", "<think>", "</think>", "{", '{"changes":', '{"changes":[', "[",
        '{"a":1},',
        '{"file_path":"a.py","content":"x"},', ".a", "a.", "1. ", "File: a b.py\n", "ファイル", "\r\n", "\x0c",
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["{}", "DELETE a{}b", "a.py\n```\n{}\n```\n"])
def test_any_large_text_is_read_or_refused_within_seconds(piece: str, around: str) -> None:
    text = around.format(piece * (250_000 // len(piece)))
    assert is_within(5, lambda: read(text))


@pytest.mark.parametrize("around", ["```{}", "RENAME a{}b -> c", "File: {}", "```a{}b\n```\n", "file{}a b\n```\n```\n"])
@pytest.mark.parametrize("piece", [" ", "a ", "`", "\t", ":", "."])
def test_no_line_is_read_over_and_over(around: str, piece: str) -> None:
    text = around.format(piece * (250_000 // len(piece)))
    assert is_within(5, lambda: read(text))


def test_fences_of_every_length_are_read_in_time() -> None:
    text = "\n".join("`" * length + "x" for length in range(3, 1000)) + "\n```x" * 100_000
    assert is_within(5, lambda: read(text))
    with pytest.raises(MalformedAnswerError, match="never closed"):
        parse_answer(text)


def test_an_object_with_very_many_keys_is_read_in_time() -> None:
    keys = ",".join(f'"{number}":1' for number in range(100_000))
    text = f'{{"explanation":"","changes":[],{keys},"99999":1}}'
    assert is_within(5, lambda: read(text))
    with pytest.raises(MalformedAnswerError, match="'99999' is given twice"):
        parse_answer(text)


# --- half a character


@pytest.mark.parametrize("change", [
    {"operation": "modify", "file_path": "\ud800.py", "content": "x"},
    {"operation": "modify", "file_path": "a.py", "content": "\ud800"},
    {"operation": "rename", "file_path": "a.py", "new_path": "\udfff.py"},
])  # fmt: skip
def test_half_a_character_in_a_path_or_text_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(MalformedAnswerError, match="lone surrogate") as caught:
        parse_answer(json.dumps({"changes": [change]}))
    str(caught.value).encode()


@pytest.mark.parametrize("change", [
    {"operation": "\ud800", "file_path": "a.py"},
    {"operation": ["deep"], "file_path": "a.py"},
    {"operation": "x" * 1_000_000, "file_path": "a.py"},
    {"operation": "modify", "file_path": "\ud800" + "y" * 1_000_000},
])  # fmt: skip
def test_a_complaint_about_a_change_is_short_and_can_be_written(change: dict[str, object]) -> None:
    with pytest.raises(MalformedAnswerError) as caught:
        parse_answer(json.dumps({"changes": [change]}))
    assert len(str(caught.value).encode()) < 1000


def test_half_a_character_in_the_explanation_is_replaced() -> None:
    document = {"explanation": "a\ud800b", "changes": [{"file_path": "a.py", "content": "x"}]}
    assert parse_answer(json.dumps(document)).explanation == "a\ufffdb"


def test_half_a_character_in_plain_text_is_refused() -> None:
    with pytest.raises(MalformedAnswerError, match="lone surrogate"):
        parse_answer("a.py\n```\n\ud800\n```\n")


def test_answers_that_a_caller_makes_can_always_be_written() -> None:
    answer = ModelAnswer(text="a\ud800", model="m\ud800", request_id="\udfff")
    response = LLMResponse(code_changes=(), explanation="e\ud800", model="m\ud800", request_id="\udfff")
    assert (answer.text, answer.model, answer.request_id) == ("a\ufffd", "m\ufffd", "\ufffd")
    assert (response.explanation, response.model, response.request_id) == ("e\\ud800", "m\\ud800", "\ufffd")
