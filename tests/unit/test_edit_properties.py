"""Random files and edits in every format, and any text at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from necrocode.agent_runner import RunnerError
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.edited_bytes import edited_bytes
from necrocode.agent_runner.generation.file_lines import Effort
from necrocode.agent_runner.generation.matching import apply_edits
from necrocode.agent_runner.models import TextEdit
from tests.support.edit_renderers import EDITS, InexpressibleError, diff_of
from tests.support.edited_files import edited, encoded
from tests.support.pace import is_in_proportion

_BODIES = st.one_of(
    st.sampled_from(
        ["", "a", "b", "    a", "\ta", "}", "-- a", "++ b", "@@ a", "# 日本", "``` x", "a\tb", " ", "*** a"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), max_size=12),
)
_LINE_ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n"])
_LINES = st.lists(st.tuples(_BODIES, _LINE_ENDS).map("".join), max_size=25)
_BOMS = st.sampled_from(["", "", "\ufeff"])


@st.composite
def files_before_and_after(draw: st.DrawFn) -> tuple[str, str]:
    """A file and what an edit makes of it: lines taken out, put in and replaced; sometimes another end."""
    lines = draw(_LINES)
    new: list[str] = []
    for line in lines:
        kind = draw(st.sampled_from("kkkkkdri"))
        new += [line] * (kind in "ki") + draw(st.lists(_BODIES.map(lambda body: f"{body}\n"), max_size=2)) * (
            kind in "ri"
        )
    texts = ["".join([draw(_BOMS), *side]) for side in (lines, new)]
    old, after = (text.removesuffix("\n") if draw(st.booleans()) else text for text in texts)
    return old, after


@pytest.mark.parametrize("name", EDITS)
@given(pair=files_before_and_after())
@example(pair=("a\na\na\n", "a\nb\na\na\n"))
@example(pair=("a\r\nb\n", "a\nb\n"))
@example(pair=("\ufeffa", "a"))
@example(pair=("\ufeff\n\n\r\n", "\ufeffa\n\n\r\n"))
@example(pair=("\r", "\n"))
@example(pair=("-- a\n-- a\n", "++ b\n-- a\n"))
def test_what_is_rendered_is_read_back_and_applied(name: str, pair: tuple[str, str]) -> None:
    old, new = pair
    assume(old != new)
    try:
        answer = EDITS[name]({"src/a.py": old}, {"src/a.py": new})
    except InexpressibleError:
        return
    assert edited(encoded({"src/a.py": old}), parse_answer(answer).changes) == encoded({"src/a.py": new})


_LEADING = bytes(range(0xC2, 0xF5))
"""With which a character of UTF-8 begins; what an answer's text has of such is in the file's encoding, not in bytes."""
_BYTES = st.lists(st.binary(max_size=8).map(lambda line: line.translate(None, b"\0\n" + _LEADING) + b"\n"), max_size=12)


@given(_BYTES, _BYTES, _BYTES)
def test_a_diff_of_a_file_that_is_not_utf_8_comes_out_byte_for_byte(
    head: list[bytes], old_middle: list[bytes], new_middle: list[bytes]
) -> None:
    assume(old_middle != new_middle)
    tail = [b"\xff\x93\n"]
    old, new = (b"".join([*head, *middle, *tail]) for middle in (old_middle, new_middle))
    texts = [side.decode(errors="surrogateescape") for side in (old, new)]
    change, *_ = parse_answer_of_bytes(diff_of("a.txt", *texts))
    assert edited_bytes(old, change, in_order=True, effort=Effort(), path="a.txt") == (new, ())


def parse_answer_of_bytes(diff: str) -> tuple[tuple[TextEdit, ...]]:
    """The edits of a diff of bytes: an answer as a text cannot hold them, other readers of diffs can."""
    marked = diff.encode(errors="surrogateescape").decode("latin-1")
    (change,) = parse_answer(marked).changes
    texts = [
        edit.model_copy(
            update={
                side: getattr(edit, side).encode("latin-1").decode(errors="surrogateescape")
                for side in ("search", "replace")
            }
        )
        for edit in change.edits
    ]
    return (tuple(texts),)


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "latin-1", "utf-16"])
def test_the_searched_text_tells_the_encoding(encoding: str) -> None:
    word, other = ("é", "ü") if encoding == "latin-1" else ("日本語の文字", "別の文字")
    old = f"a\n{word} one\nb\n".encode(encoding)
    edits = [TextEdit(search=f"{word} one\n", replace=f"{other}\n")]
    result, refusals = edited_bytes(old, edits, in_order=False, effort=Effort(), path="a.txt")
    assert (result, refusals) == (f"a\n{other}\nb\n".encode(encoding), ())


@pytest.mark.parametrize(
    "edit",
    [TextEdit(search="b\n", replace="日\n"), TextEdit(search="月\n", replace="b\n")],
)
def test_characters_are_not_written_in_an_encoding_that_nothing_tells(edit: TextEdit) -> None:
    old = "a\n日本\nb\n".encode("cp932")
    with pytest.raises(RunnerError, match="not UTF-8"):
        edited_bytes(old, [edit], in_order=False, effort=Effort(), path="a.txt")


_PIECES = [
    "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "<<<<<<< HEAD\n", "a.py\n", "```\n", "```diff\n", "--- a/x\n",
    "+++ b/x\n", "@@ -1 +1 @@\n", "@@\n", "@@ def f\n", "+a\n", "-a\n", " a\n", "\\ No newline at end of file\n", "\n",
    "*** Begin Patch\n", "*** End Patch\n", "*** Update File: a.py\n", "*** Add File: b.py\n", "*** Move to: c\n",
    "*** End of File\n", "diff --git a/x b/x\n", "rename from x\n", "rename to y\n", "new file mode 100644\n", "...\n",
    "Index: x\n", "=" * 67 + "\n", "Binary files a and b differ\n", "DELETE x\n", '{"edits": [', "</a>\n", '"--- "\n',
    '--- "a/\\3\n', "copy from x\n", "old mode 1\n", "deleted file mode 1\n", "--- /dev/null\n", "+++ /dev/null\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join), st.lists(_BODIES, max_size=6).map("\n".join))
def test_no_text_raises_anything_but_our_errors(text: str, file: str) -> None:
    with contextlib.suppress(RunnerError):
        for change in parse_answer(text).changes:
            apply_edits(file, change.edits, in_order=change.in_order)


_EDITS = st.builds(
    TextEdit,
    search=st.lists(_BODIES | st.just("..."), max_size=4).map("\n".join),
    replace=st.lists(_BODIES | st.just("..."), max_size=4).map("\n".join),
    whole_lines=st.booleans(),
    line=st.none() | st.integers(-1, 30),
    anchors=st.lists(_BODIES, max_size=2).map(tuple),
    heading=_BODIES,
    at_end=st.booleans(),
    final_newline=st.sampled_from(["kept", "stated", "added"]),
    every=st.booleans(),
)


@given(_LINES.map("".join), st.lists(_EDITS, max_size=4), st.booleans())
def test_any_edits_of_any_text_are_applied_or_explained(text: str, edits: list[TextEdit], in_order: bool) -> None:
    result = apply_edits(text, edits, in_order=in_order)
    if result.refusals:
        assert result.text == text
        assert all(refusal.explained() and refusal.summary for refusal in result.refusals)


@pytest.mark.parametrize(
    "render",
    [
        lambda n: "<<<<<<< SEARCH\n" * n,
        lambda n: "<<<<<<< HEAD\n" * n,
        lambda n: "a.py\n<<<<<<< HEAD\nx\n" * n + ">>>>>>> REPLACE\n",
        lambda n: "<<<<<< HEAD\n>>>>>>> REPLACE\n=======\n" * n,
        lambda n: "a.py\n<<<<<<< SEARCH\n" + "=======\n" * n + ">>>>>>> REPLACE\n",
        lambda n: "a.py\n" + "<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n" * n,
        lambda n: "".join(f"a.py\n<<<<<<< SEARCH\n{i}\n=======\nb\n>>>>>>> REPLACE\n" for i in range(n)),
        lambda n: "--- a/x\n+++ b/x\n" + "@@ -1 +1 @@\n-a\n+b\n" * n,
        lambda n: "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n" * n,
        lambda n: "--- a/x\n+++ b/x\n" + "@@\n" * n,
        lambda n: "--- a/x\n+++ b/x\n@@ -1,999999 +1,999999 @@\n" + "-a\n" * n + "@@ -1,9 +1,9 @@\n",
        lambda n: "diff --git a/x b/x\n" * n,
        lambda n: "```diff\n" * n,
        lambda n: "```diff\n@@\n" * n,
        lambda n: "```\n\n" * n,
        lambda n: "*** Begin Patch\n*** Update File: a\n" + "@@\n" * n + "-a\n*** End Patch\n",
        lambda n: "*** Begin Patch\n" * n,
        lambda n: "*** Begin Patch\n*** Update File: a\n@@\n-a\n+b\n*** End Patch\n" * n,
        lambda n: '{"a":' * n,
        lambda n: "[" * n,
        lambda n: '{"edits":[' * n,
        lambda n: "--- " + "a b" * n + "\n+++ " + " (" * n + "\n@@\n",
        lambda n: 'diff --git "' + "\\" * n + "\n",
        lambda n: "a.py\n<<<<<<< SEARCH" + " " * n + "x\n",
        lambda n: "<f path=" + '"' * n + ">\n",
    ],
)
def test_reading_takes_time_in_proportion_to_the_length(render: Callable[[int], str]) -> None:
    def read(count: int) -> None:
        with contextlib.suppress(RunnerError):
            parse_answer(render(count))

    assert is_in_proportion(read, 2_500, 20_000)
