"""Edits in answers, in the many ways in which models write them."""

from __future__ import annotations

import json

import pytest

from necrocode.agent_runner import ChangeRejectedError, CodeChange, MalformedAnswerError, TextEdit
from necrocode.agent_runner.generation.edit_formats import ParsedAnswer, parse_answer

BLOCK = "<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n"
EDIT = TextEdit(search="a\n", replace="b\n")


def only(text: str) -> CodeChange:
    (change,) = parse_answer(text).changes
    return change


def pairs(parsed: ParsedAnswer) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(change.file_path, [(edit.search, edit.replace) for edit in change.edits]) for change in parsed.changes]


# --- search/replace


@pytest.mark.parametrize(
    "text",
    [
        f"src/a.py\n{BLOCK}",
        f"File: src/a.py\n{BLOCK}",
        f"### `src/a.py`\n\n{BLOCK}",
        f"src/a.py\n```python\n{BLOCK}```\n",
        f"```python\nsrc/a.py\n{BLOCK}```\n",
        f"```python src/a.py\n{BLOCK}```\n",
        f"```\n# src/a.py\n{BLOCK}```\n",
        f"I change it:\n\n**src/a.py**\n````\n{BLOCK}````\nDone.",
        f"src/a.py\n{BLOCK.replace('SEARCH', 'HEAD').replace('REPLACE', 'updated').replace('updated', 'UPDATED')}",
        f"src/a.py\n{BLOCK.replace('SEARCH', 'ORIGINAL')}",
        f"src/a.py\n{BLOCK.replace('<<<<<<<', '<<<<<').replace('=======', '=====').replace('>>>>>>>', '>>>>>')}",
        f"src/a.py\n{BLOCK.replace('<' * 7, '<' * 9).replace('=' * 7, '=' * 9).replace('>' * 7, '>' * 9)}",
        f"src/a.py\n{BLOCK.replace('=======', '========')}",
        f"src/a.py\n{BLOCK.replace(' SEARCH', '').replace(' REPLACE', '')}",
        BLOCK.replace("SEARCH", "SEARCH src/a.py"),
        f'<file path="src/a.py">\n{BLOCK}</file>\n',
        f"src/a.py\n{BLOCK}".replace("\n", "\r\n").replace("a\r\n=", "a\n=").replace("b\r\n>", "b\n>"),
    ],
)
def test_search_replace_blocks_are_understood(text: str) -> None:
    parsed = parse_answer(text)
    assert parsed.changes == (CodeChange(operation="edit", file_path="src/a.py", edits=(EDIT,)),)
    assert parsed.edit_format == "search_replace"


def test_several_blocks_of_one_file_are_one_change_and_a_repeated_one_counts_once() -> None:
    other = BLOCK.replace("a\n", "c\n")
    text = f"a.py\n```python\n{BLOCK}\n{other}```\nb.py\n{BLOCK}\nNow the first again:\n\na.py\n{BLOCK}"
    assert pairs(parse_answer(text)) == [("a.py", [("a\n", "b\n"), ("c\n", "b\n")]), ("b.py", [("a\n", "b\n")])]


def test_a_path_may_have_blanks_in_it() -> None:
    assert only(f"docs/my first file.md\n{BLOCK}").file_path == "docs/my first file.md"
    assert only(f"File: my file.md\n{BLOCK}").file_path == "my file.md"


def test_searched_text_may_hold_fences_and_other_markers() -> None:
    text = BLOCK.replace("a\n", "```python\nx\n```\n").replace("b\n", "=====\n~~~\n")
    assert pairs(parse_answer(f"a.md\n```\n{text}```\n")) == [("a.md", [("```python\nx\n```\n", "=====\n~~~\n")])]


def test_a_block_with_two_middles_is_refused_with_what_to_do() -> None:
    with pytest.raises(MalformedAnswerError, match="2 lines like ======="):
        parse_answer("a.rst\n" + BLOCK.replace("a", "Title\n======="))
    assert only("a.rst\n<<<<<<<< SEARCH\nTitle\n=======\n========\nTitel\n=======\n>>>>>>>> REPLACE\n").edits == (
        TextEdit(search="Title\n=======\n", replace="Titel\n=======\n"),
    )


def test_a_file_with_conflict_markers_is_a_file() -> None:
    content = "Conflicts look so:\n" + BLOCK.replace("SEARCH", "HEAD")
    assert only(f"docs/merge.md\n```markdown\n{content}```\n").content == content


def test_an_empty_search_and_a_final_newline_can_be_said() -> None:
    change = only("new.py\n<<<<<<< SEARCH\n=======\nx\n\\ No newline at end of file\n>>>>>>> REPLACE\n")
    assert change.edits == (TextEdit(search="", replace="x", final_newline="stated"),)


@pytest.mark.parametrize("text", [
    f"a.py\n{BLOCK}\nb.py\n<<<<<<< SEARCH\nc\n=======\nd\n",
    "a.py\n<<<<<<< SEARCH\nc\n",
    "```diff\n--- a/a.py\n+++ b/a.py\n@@\n-a\n+b\n",
    "*** Begin Patch\n*** Update File: a.py\n@@\n-a\n+b\n",
])  # fmt: skip
def test_an_answer_that_is_cut_in_an_edit_is_refused(text: str) -> None:
    with pytest.raises(MalformedAnswerError, match="looks cut"):
        parse_answer(text)


@pytest.mark.parametrize("text", [BLOCK, f"Here is the change:\n{BLOCK}", "```diff\n@@\n-a\n+b\n```\n"])
def test_an_edit_of_no_file_is_refused(text: str) -> None:
    with pytest.raises(MalformedAnswerError, match="names no file: write its"):
        parse_answer(text)


# --- mixed


def test_formats_may_be_mixed_and_keep_their_order() -> None:
    text = (
        f"a.py\n{BLOCK}\nb.py\n```python\nx\n```\n\nDELETE c.py\n\n```diff\n--- a/d.py\n+++ b/d.py\n@@\n-a\n+b\n```\n"
    )
    parsed = parse_answer(text)
    assert [(change.operation, change.file_path) for change in parsed.changes] == [
        ("edit", "a.py"), ("modify", "b.py"), ("delete", "c.py"), ("edit", "d.py"),
    ]  # fmt: skip


def test_json_that_edits_only_talk_about_is_not_the_change_set() -> None:
    text = f'a.py\n{BLOCK}\nSo it writes:\n```json\n{{"files": [{{"path": "x", "content": "y"}}]}}\n```\n'
    assert pairs(parse_answer(text)) == [("a.py", [("a\n", "b\n")])]


# --- unified diffs


def git_diff(*hunks: str, header: str = "--- a/src/a.py\n+++ b/src/a.py\n") -> str:
    return header + "".join(hunks)


@pytest.mark.parametrize("text", [
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- src/a.py\n+++ src/a.py\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- src/a.py\t2020-01-01 10:00:00\n+++ src/a.py\t2020-01-02\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- old/src/a.py\n+++ new/src/a.py\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- i/src/a.py\n+++ w/src/a.py\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- src/a.py.orig\n+++ src/a.py\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- a/src/a.py\n+++ src/a.py\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="--- src/a.py (revision 3)\n+++ src/a.py (working copy)\n"),
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", header="Index: src/a.py\n" + "=" * 67 + "\n--- src/a.py\n+++ src/a.py\n"),
    git_diff("@@ -1,9 +1,7 @@\n a\n-b\n+c\n"),
    git_diff("@@ -1 +1 @@\n a\n-b\n+c\n"),
    git_diff("@@ ... @@\n a\n-b\n+c\n"),
    git_diff("@@\n a\n-b\n+c\n"),
    "Do this:\n\n```diff\n" + git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n") + "```\nDone.",
    "src/a.py\n```diff\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n```\n",
    "src/a.py\n```diff\n a\n-b\n+c\n```\n".replace(" a\n", ""),
    "diff --git a/src/a.py b/src/a.py\nindex 1..2 100644\n" + git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n"),
    'diff --git "a/src/a.py" "b/src/a.py"\n--- "a/src/a.py"\n+++ "b/src/a.py"\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n',
    git_diff("@@ -1,2 +1,2 @@\n a\n-b\n+c\n-- \n2.39.1\n"),
])  # fmt: skip
def test_unified_diffs_are_understood(text: str) -> None:
    parsed = parse_answer(text)
    (change,) = parsed.changes
    assert (change.operation, change.file_path, change.in_order, parsed.edit_format) == (
        "edit", "src/a.py", True, "unified_diff",
    )  # fmt: skip
    assert [(edit.search.removeprefix("a\n"), edit.replace.removeprefix("a\n")) for edit in change.edits] == [
        ("b\n", "c\n")
    ]


def test_the_header_of_a_file_is_no_line_of_the_hunk_before_it() -> None:
    text = git_diff("@@ -1 +1 @@\n-a\n+b\n") + git_diff("@@ -1 +1 @@\n--- c\n+++ d\n", header="--- x.sql\n+++ x.sql\n")
    assert pairs(parse_answer(text)) == [("src/a.py", [("a\n", "b\n")]), ("x.sql", [("-- c\n", "++ d\n")])]
    sloppy = text.replace("-1 +1", "-5,7 +5,7", 1)
    assert pairs(parse_answer(sloppy)) == pairs(parse_answer(text))


def test_lines_without_their_blank_are_lines_that_stay_in_a_block_for_diffs() -> None:
    text = "```diff\n--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\ndef f():\n\n-    a\n+    b\n```\n"
    assert pairs(parse_answer(text)) == [("a.py", [("def f():\n\n    a\n", "def f():\n\n    b\n")])]


def test_files_that_a_diff_makes_removes_and_moves() -> None:
    text = (
        "diff --git a/new.py b/new.py\nnew file mode 100755\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x\n"
        "\\ No newline at end of file\n"
        "diff --git a/empty.py b/empty.py\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/old.py b/old.py\ndeleted file mode 100644\n--- a/old.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
        "diff --git a/was.py b/is.py\nsimilarity index 90%\nrename from was.py\nrename to is.py\n"
        "--- a/was.py\n+++ b/is.py\n@@ -1 +1 @@\n-a\n+b\n"
        "diff --git a/run b/run\nold mode 100644\nnew mode 100755\n"
    )
    new, empty, old, moved, mode = parse_answer(text).changes
    assert (new.operation, new.content, new.must_be_new, new.executable) == ("create", "x", True, True)
    assert (empty.operation, empty.content) == ("create", "")
    assert (old.operation, old.file_path) == ("delete", "old.py")
    assert (moved.operation, moved.file_path, moved.new_path, len(moved.edits)) == ("rename", "was.py", "is.py", 1)
    assert (mode.operation, mode.executable, mode.edits) == ("edit", True, ())


def test_names_in_gits_quotes_are_bytes_of_utf_8() -> None:
    text = '--- "a/\\346\\227\\245\\t.txt"\n+++ "b/\\346\\227\\245\\t.txt"\n@@ -1 +1 @@\n-a\n+b\n'
    assert only(text).file_path == "日\t.txt"


def test_an_insertion_without_context_is_trusted_only_with_numbers_that_add_up() -> None:
    text = git_diff("@@ -2,0 +3,1 @@\n+x\n", "@@ -5,0 +7,2 @@\n+y\n+z\n")
    assert [edit.line for edit in only(text).edits] == [3, 6]
    assert [edit.line for edit in only(text.replace("+7,2", "+9,2")).edits] == [3, None]
    assert [edit.line for edit in only(git_diff("@@ -0,0 +1 @@\n+x\n")).edits] == [1]
    assert [edit.line for edit in only(git_diff("@@ -0,0 +1,2 @@\n+x\n")).edits] == [None]


@pytest.mark.parametrize(("text", "error", "reason"), [
    ("diff --git a/x b/x\nindex 1..2\nGIT binary patch\nliteral 4\nabc\n", ChangeRejectedError, "binary patch for 'x'"),
    ("diff --git a/x b/x\nBinary files a/x and b/x differ\n", ChangeRejectedError, "only text"),
    ("diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+y\n", ChangeRejectedError,
     "a symbolic link"),
    ("diff --git a/x b/x\nnew file mode 160000\n", ChangeRejectedError, "a submodule"),
    ("diff --git a/x b/y\nsimilarity index 100%\ncopy from x\ncopy to y\n", MalformedAnswerError, "copies a file"),
    ("diff --cc x\n--- a/x\n+++ b/x\n@@@ -1 -1 +1 @@@\n  a\n", MalformedAnswerError, "merge"),
    ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n a\n", MalformedAnswerError, "changes nothing"),
    ("--- /dev/null\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", MalformedAnswerError, "lines of an old one"),
    ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n", MalformedAnswerError, "names no file"),
])  # fmt: skip
def test_diffs_that_cannot_be_taken_are_refused_with_the_reason(text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        parse_answer(text)


def test_a_diff_may_be_the_text_of_a_file() -> None:
    content = git_diff("@@ -1 +1 @@\n-a\n+b\n")
    assert only(f"fixtures/x.diff\n```diff\n{content}```\n").content == content


# --- patches

PATCH = "*** Begin Patch\n*** Update File: a.py\n@@ class A:\n@@     def f(self):\n x\n-a\n+b\n*** End Patch\n"


@pytest.mark.parametrize("text", [
    PATCH,
    f"```\n{PATCH}```\n",
    f"```bash\napply_patch <<'EOF'\n{PATCH}EOF\n```\n",
    f"apply_patch <<'EOF'\n{PATCH}EOF\n",
    json.dumps({"command": ["apply_patch", PATCH]}),
    json.dumps({"name": "apply_patch", "arguments": {"input": PATCH}}),
    PATCH.replace("\n", "\r\n"),
    f"I do it.\n\n{PATCH}\nThat was it.",
])  # fmt: skip
def test_patches_are_understood(text: str) -> None:
    parsed = parse_answer(text)
    (change,) = parsed.changes
    (edit,) = change.edits
    assert (change.file_path, change.in_order, parsed.edit_format) == ("a.py", True, "patch")
    assert (edit.search.split(), edit.replace.split()) == (["x", "a"], ["x", "b"])
    assert edit.anchors == ("class A:", "def f(self):")


def test_all_that_a_patch_can_say() -> None:
    text = (
        "*** Begin Patch\n*** Add File: new.py\n+x\n+\n+y\n*** Add File: empty.py\n*** Delete File: old.py\n"
        "*** Update File: b.py\n*** Move to: c.py\n@@\n-a\n+b\n*** End of File\n\n"
        "*** Update File: d.py\n*** Move to: e.py\n"
        "*** Update File: f.py\n-a\n+b\n@@\n\n-c\n+d\n*** End Patch\n"
    )
    new, empty, old, moved, renamed, edited = parse_answer(text).changes
    assert (new.content, empty.content, old.operation) == ("x\n\ny\n", "", "delete")
    assert (moved.operation, moved.new_path, moved.edits[0].at_end) == ("rename", "c.py", True)
    assert (renamed.operation, renamed.new_path, renamed.edits) == ("rename", "e.py", ())
    assert [(edit.search, edit.replace) for edit in edited.edits] == [("a\n", "b\n"), ("\nc\n", "\nd\n")]
    assert {edit.final_newline for edit in edited.edits} == {"added"}


@pytest.mark.parametrize(("body", "reason"), [
    ("", "is empty"),
    ("*** Frobnicate File: foo\n", "Frobnicate"),
    ("*** Update File: a.py\n", "no line that has - or"),
    ("*** Update File: \n-a\n", "without a path"),
    ("*** Update File: a.py\n@@\nnonsense\n", "none of blank, - and"),
    ("*** Add File: a.py\nnonsense\n", "does not begin with"),
])  # fmt: skip
def test_patches_that_cannot_be_read_are_refused_with_the_line(body: str, reason: str) -> None:
    with pytest.raises(MalformedAnswerError, match=reason):
        parse_answer(f"*** Begin Patch\n{body}*** End Patch\n")


# --- json


@pytest.mark.parametrize("change", [
    {"operation": "edit", "file_path": "a.py", "content": None, "edits": [{"search": "a", "replace": "b"}]},
    {"operation": "modify", "path": "a.py", "edits": [{"old": "a", "new": "b"}]},
    {"path": "a.py", "replacements": [{"old_string": "a", "new_string": "b"}]},
    {"file": "a.py", "edits": {"find": "a", "with": "b"}},
    {"file_path": "a.py", "search": "a", "replace": "b"},
    {"file_path": "a.py", "old_str": "a", "new_str": "b", "operation": "str_replace"},
    {"file_path": "a.py", "from": "a", "to": "b"},
    {"file_path": "a.py", "content": "", "edits": [{"before": "a", "after": "b"}]},
])  # fmt: skip
def test_edits_in_json_are_understood(change: dict[str, object]) -> None:
    wanted = CodeChange(
        operation="edit", file_path="a.py", edits=(TextEdit(search="a", replace="b", whole_lines=False),)
    )
    for document in (change, [change], {"changes": [change]}, {"edits": [change]}):
        parsed = parse_answer(json.dumps(document))
        assert (parsed.changes, parsed.edit_format) == ((wanted,), "json")


def test_a_rename_may_carry_edits_and_an_edit_may_mean_every_place() -> None:
    edits = [{"search": "a", "replace": "b", "replace_all": True}]
    change = only(json.dumps({"operation": "rename", "file_path": "a.py", "new_path": "b.py", "edits": edits}))
    assert (change.operation, change.new_path, change.edits[0].every) == ("rename", "b.py", True)


@pytest.mark.parametrize(("change", "reason"), [
    ({"edits": [{"search": "a"}]}, "Edit 1 of .* needs two texts"),
    ({"edits": "a"}, "no list of objects"),
    ({"edits": [1]}, "needs two texts"),
    ({"edits": [{"search": "a", "replace": "b"}], "content": "c"}, "both content and edits"),
    ({"edits": [{"search": "\0", "replace": "b"}]}, "NUL"),
    ({"edits": [{"search": "a", "replace": "\ud800"}]}, "lone surrogate"),
    ({"edits": []}, "holds no content"),
])  # fmt: skip
def test_edits_in_json_that_are_none_are_refused_with_the_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(MalformedAnswerError, match=reason):
        parse_answer(json.dumps({"changes": [{"operation": "edit", "file_path": "a.py", **change}]}))


@pytest.mark.parametrize("new", ["src/a.py.new", "src/a.py", "src/a.py.modified"])
def test_a_plain_diff_of_a_file_and_its_copy_edits_the_file(new: str) -> None:
    change = only(git_diff("@@ -1 +1 @@\n-a\n+b\n", header=f"--- src/a.py\n+++ {new}\n"))
    assert (change.operation, change.file_path) == ("edit", "src/a.py")


@pytest.mark.parametrize("header", ["--- src/x.py\n+++ lib/x.py\n", "--- v1/x.py\n+++ v2/x.py\n"])
def test_a_plain_diff_of_one_path_in_two_folders_is_refused(header: str) -> None:
    with pytest.raises(MalformedAnswerError, match="write one path"):
        parse_answer(git_diff("@@ -1 +1 @@\n-a\n+b\n", header=header))


def test_states_of_a_folder_are_no_part_of_a_path() -> None:
    for old, new in (("tool-1.0", "tool-1.1"), ("tool.orig", "tool"), ("old", "new"), ("a", "b")):
        header = f"--- {old}/src/a.py\n+++ {new}/src/a.py\n"
        assert only(git_diff("@@ -1 +1 @@\n-a\n+b\n", header=header)).file_path == "src/a.py"


def test_two_names_and_no_line_are_no_rename() -> None:
    with pytest.raises(MalformedAnswerError, match="changes nothing"):
        parse_answer("--- a/x.py\n+++ b/y.py\n@@ @@\n")


def test_a_removal_of_a_dash_is_no_signature() -> None:
    text = git_diff("@@ -1,2 +1,2 @@\n items:\n-- a\n+- A\n-- b\n+- B\n")
    (edit,) = only(text).edits
    assert (edit.search, edit.replace) == ("items:\n- a\n- b\n", "items:\n- A\n- B\n")
    (edit,) = only(git_diff("@@ -1 +1 @@\n-a\n+b\n-- \n2.40.1\n")).edits
    assert (edit.search, edit.replace) == ("a\n", "b\n")


def test_a_closing_tag_that_has_lost_its_blank_is_a_line_that_stays() -> None:
    text = "```diff\n--- a/a.html\n+++ b/a.html\n@@ @@\n<div>\n-a\n+b\n</div>\n<p>\n-c\n+d\n```\n"
    (edit,) = only(text).edits
    assert edit.search == "<div>\na\n</div>\n<p>\nc\n"


@pytest.mark.parametrize("marker", ["*** End Patch", "*** End of File"])
def test_markers_of_patches_with_a_blank_before_them_are_lines_of_a_hunk(marker: str) -> None:
    text = f"*** Begin Patch\n*** Update File: a.txt\n@@\n-a\n+b\n {marker}\n-c\n+d\n*** End Patch\n"
    (edit,) = only(text).edits
    assert (edit.search, edit.replace, edit.at_end) == (f"a\n{marker}\nc\n", f"b\n{marker}\nd\n", False)


def test_a_patch_may_be_indented_as_a_whole_at_its_end() -> None:
    (edit,) = only("*** Begin Patch\n*** Update File: a.txt\n@@\n-a\n+b\n  *** End Patch\n").edits
    assert (edit.search, edit.replace) == ("a\n", "b\n")


def test_a_diff_that_removes_a_file_says_what_was_in_it() -> None:
    change = only("--- a/old.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n")
    assert (change.operation, [edit.search for edit in change.edits]) == ("delete", ["x\n"])
