"""Edits in change sets, and change sets on top of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from necrocode.agent_runner import ChangeRejectedError, CodeChange, EditRejectedError, TextEdit
from necrocode.agent_runner._git import FileChange, Git, ObjectReader, Repository
from necrocode.agent_runner.steps.apply import Limits, plan_changes
from tests.support.repositories import git, make_repository

LIMITS = Limits(max_changed_files=4, max_file_bytes=1000, max_total_bytes=2000)
FILES: dict[str, str | bytes] = {
    "a.py": "a\nb\n",
    "src/calc.py": "x\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "sjis.txt": "日本\nx\n".encode("cp932"),
    "empty.txt": "",
    "aux.py": "x\n",
    "con/a.c": "x\n",
    "a:b.txt": "x\n",
    "x.": "x\n",
}


class Base:
    """A base tree to plan against."""

    def __init__(self, path: Path, objects: ObjectReader) -> None:
        self._objects = objects
        self._tree = git(path, "rev-parse", "HEAD^{tree}")

    def plan(self, *changes: CodeChange, already: Mapping[str, FileChange] | None = None) -> dict[str, FileChange]:
        planned = plan_changes(changes, self._objects, self._tree, LIMITS, already=already or {})
        return {change.path: change for change in planned}

    def oid(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        tree = self._objects.entries(self._tree)[folder].oid if folder else self._tree
        return self._objects.entries(tree)[name].oid


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    path = make_repository(tmp_path / "repo", FILES)
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    git(path, "add", "-A")
    git(path, "commit", "-qm", "more")
    home = Git(tmp_path / "git-home")
    home.prepare()
    with Repository(home, path).objects() as objects:
        yield Base(path, objects)


def edit(path: str, *pairs: tuple[str, str], **more: object) -> CodeChange:
    edits = [TextEdit(search=search, replace=replace) for search, replace in pairs]
    return CodeChange.model_validate({"operation": "edit", "file_path": path, "edits": edits, **more})


def write(path: str, content: str = "new\n", **more: object) -> CodeChange:
    return CodeChange.model_validate({"operation": "modify", "file_path": path, "content": content, **more})


def rename(path: str, new_path: str, **more: object) -> CodeChange:
    return CodeChange.model_validate({"operation": "rename", "file_path": path, "new_path": new_path, **more})


def delete(path: str) -> CodeChange:
    return CodeChange(operation="delete", file_path=path)


# --- edits


def test_an_edit_keeps_the_files_bytes_and_mode(base: Base) -> None:
    planned = base.plan(
        edit("crlf.txt", ("two\n", "2\n")),
        edit("sjis.txt", ("x\n", "y\n")),
        edit("run.sh", ("#!/bin/sh\n", "#!/bin/bash\n")),
    )
    assert planned["crlf.txt"].content == b"one\r\n2\r\n"
    assert planned["sjis.txt"].content == "日本\ny\n".encode("cp932")
    assert (planned["run.sh"].content, planned["run.sh"].mode) == (b"#!/bin/bash\n", "100755")


def test_edits_of_several_changes_follow_each_other(base: Base) -> None:
    assert base.plan(edit("a.py", ("a\n", "c\n")), edit("a.py", ("c\n", "d\n")))["a.py"].content == b"d\nb\n"


def test_edits_find_files_as_the_same_answer_has_made_them(base: Base) -> None:
    assert base.plan(write("n.py", "x\n"), edit("n.py", ("x\n", "y\n")))["n.py"].content == b"y\n"
    planned = base.plan(rename("a.py", "b.py"), edit("b.py", ("a\n", "c\n")), edit("a.py", ("b\n", "d\n")))
    assert (planned["a.py"].removes, planned["b.py"].content) == (True, b"c\nd\n")


def test_a_rename_may_carry_edits(base: Base) -> None:
    planned = base.plan(rename("run.sh", "go.sh", edits=[TextEdit(search="#!/bin/sh\n", replace="x\n")]))
    assert (planned["run.sh"].removes, planned["go.sh"].content, planned["go.sh"].mode) == (True, b"x\n", "100755")


def test_a_whole_file_after_an_edit_is_refused_as_changing_it_twice(base: Base) -> None:
    with pytest.raises(ChangeRejectedError, match=r"'a\.py' twice"):
        base.plan(edit("a.py", ("a\n", "c\n")), write("a.py"))
    with pytest.raises(ChangeRejectedError, match=r"'a\.py' twice"):
        base.plan(edit("a.py", ("a\n", "c\n")), delete("a.py"))


def test_a_file_may_be_made_anew_where_one_was_moved_away(base: Base) -> None:
    planned = base.plan(rename("a.py", "b.py"), write("a.py", "from b import *\n"))
    assert (planned["a.py"].content, planned["b.py"].oid is None) == (b"from b import *\n", False)


def test_an_empty_search_makes_a_file_and_fills_an_empty_one(base: Base) -> None:
    planned = base.plan(edit("new.py", ("", "x\n")), edit("empty.txt", ("", "y\n")))
    assert (planned["new.py"].content, planned["empty.txt"].content) == (b"x\n", b"y\n")
    with pytest.raises(EditRejectedError, match="no search text"):
        base.plan(edit("a.py", ("", "x\n")))


def test_an_edit_of_a_missing_file_names_near_ones(base: Base) -> None:
    with pytest.raises(ChangeRejectedError, match=r"Cannot edit 'calc\.py'.* Is it 'src/calc\.py'\?"):
        base.plan(edit("calc.py", ("x\n", "y\n")))


def test_one_refused_edit_refuses_the_whole_answer_and_tells_all(base: Base) -> None:
    with pytest.raises(
        EditRejectedError, match=r"Edit 2 of a\.py cannot be applied: .* 1 more of the answer's"
    ) as caught:
        base.plan(edit("a.py", ("a\n", "c\n"), ("z\n", "y\n")), write("n.py"), edit("crlf.txt", ("zwei\n", "2\n")))
    feedback = caught.value.feedback or ""
    for part in ("File a.py:", "     1 | a", "would have held: 1", "File crlf.txt:", "     1 | one", "Nothing of your"):
        assert part in feedback


def test_an_executable_bit_can_be_set_and_taken(base: Base) -> None:
    planned = base.plan(edit("a.py", executable=True), edit("run.sh", executable=False), write("n.sh", executable=True))
    assert [planned[path].mode for path in ("a.py", "run.sh", "n.sh")] == ["100755", "100644", "100755"]


def test_a_file_that_must_be_new_replaces_none(base: Base) -> None:
    assert base.plan(write("n.py", must_be_new=True))["n.py"].content == b"new\n"
    with pytest.raises(ChangeRejectedError, match=r"Cannot create 'a\.py': the file exists already"):
        base.plan(write("a.py", must_be_new=True))


@pytest.mark.parametrize("path", ["aux.py", "con/a.c", "a:b.txt", "x."])
def test_a_file_is_changed_under_a_name_that_no_new_file_may_have(base: Base, path: str) -> None:
    assert base.plan(edit(path, ("x\n", "y\n")))[path].content == b"y\n"
    assert base.plan(write(path))[path].content == b"new\n"
    assert base.plan(delete(path))[path].removes
    assert set(base.plan(rename(path, "fine.py"))) == {path, "fine.py"}
    assert base.plan(write(path), already=base.plan(delete(path)))[path].content == b"new\n"
    for change in (write(f"new/{path}"), rename("a.py", f"new/{path}"), edit(f"new/{path}", ("", "x\n"))):
        with pytest.raises(ChangeRejectedError, match="some file systems cannot hold"):
            base.plan(change)


def test_half_a_character_in_an_edit_is_refused(base: Base) -> None:
    for change in (edit("a.py", ("a\n", "\ud800\n")), edit("n.py", ("", "\ud800\n"))):
        with pytest.raises(ChangeRejectedError, match="surrogate"):
            base.plan(change)


def test_edits_that_change_nothing_are_refused(base: Base) -> None:
    with pytest.raises(ChangeRejectedError, match="changes nothing"):
        base.plan(edit("a.py", ("a\n", "a\n")))


def test_limits_count_files_and_not_edits_or_both_sides_of_a_rename(base: Base) -> None:
    base.plan(*(edit("a.py", ("a\n", f"{number}\na\n")) for number in range(9)))
    base.plan(rename("a.py", "b.py"), rename("run.sh", "go.sh"), rename("crlf.txt", "c.txt"), write("n.py"))
    with pytest.raises(ChangeRejectedError, match="changes 5 files; at most 4"):
        base.plan(*(write(f"{number}.py") for number in range(5)))


# --- on top of earlier answers


def test_a_later_answer_is_resolved_against_the_earlier_ones_and_the_sum_is_returned(base: Base) -> None:
    first = base.plan(edit("a.py", ("a\n", "c\n")), write("n.py", "x\n"), delete("run.sh"))
    second = base.plan(edit("a.py", ("c\n", "d\n")), edit("n.py", ("x\n", "y\n")), already=first)
    assert (second["a.py"].content, second["n.py"].content, second["run.sh"].removes) == (b"d\nb\n", b"y\n", True)
    assert len(second) == 3


def test_what_is_as_in_the_base_again_drops_out(base: Base) -> None:
    first = base.plan(edit("a.py", ("a\n", "c\n")), write("n.py"), rename("run.sh", "go.sh"), write("kept.py"))
    back = base.plan(write("a.py", "a\nb\n"), delete("n.py"), rename("go.sh", "run.sh"), already=first)
    assert set(back) == {"kept.py"}


def test_a_file_that_an_earlier_answer_removed_is_gone(base: Base) -> None:
    first = base.plan(delete("a.py"))
    with pytest.raises(ChangeRejectedError, match="no such file"):
        base.plan(edit("a.py", ("a\n", "c\n")), already=first)


@pytest.mark.parametrize("again", [write("a.py", "c\nb\n"), edit("a.py", ("c\n", "c\n"))])
def test_a_later_answer_that_changes_nothing_more_is_refused(base: Base, again: CodeChange) -> None:
    first = base.plan(edit("a.py", ("a\n", "c\n")))
    with pytest.raises(ChangeRejectedError, match="changes nothing"):
        base.plan(again, already=first)


def test_a_later_answer_that_takes_everything_back_is_refused(base: Base) -> None:
    with pytest.raises(ChangeRejectedError, match="changes nothing"):
        base.plan(write("a.py", "a\nb\n"), already=base.plan(edit("a.py", ("a\n", "c\n"))))


def test_the_sum_of_answers_keeps_to_the_limits(base: Base) -> None:
    first = base.plan(*(write(f"{number}.py") for number in range(4)))
    with pytest.raises(ChangeRejectedError, match="changes 5 files"):
        base.plan(write("5.py"), already=first)


def test_renames_may_follow_each_other_in_any_order_and_change_places(base: Base) -> None:
    for changes in (
        [rename("a.py", "src/calc.py"), rename("src/calc.py", "c.py")],
        [rename("src/calc.py", "c.py"), rename("a.py", "src/calc.py")],
    ):
        planned = base.plan(*changes)
        assert planned.keys() == {"a.py", "src/calc.py", "c.py"}
        assert planned["a.py"].removes
        assert (planned["src/calc.py"].oid, planned["c.py"].oid) == (base.oid("a.py"), base.oid("src/calc.py"))
    swapped = base.plan(rename("a.py", "src/calc.py"), rename("src/calc.py", "a.py"))
    assert (swapped["src/calc.py"].oid, swapped["a.py"].oid) == (base.oid("a.py"), base.oid("src/calc.py"))


def test_a_rename_onto_a_file_that_stays_or_was_moved_there_is_refused(base: Base) -> None:
    for changes in (
        [rename("a.py", "src/calc.py")],
        [rename("a.py", "c.py"), rename("src/calc.py", "c.py")],
        [rename("a.py", "src/calc.py"), rename("crlf.txt", "src/calc.py"), rename("src/calc.py", "c.py")],
    ):
        with pytest.raises(ChangeRejectedError, match="exists already"):
            base.plan(*changes)


def test_a_diff_that_removes_a_file_must_show_all_of_it(base: Base) -> None:
    def removal(text: str) -> CodeChange:
        return edit("a.py", (text, ""), in_order=True).model_copy(update={"operation": "delete"})

    assert base.plan(removal("a\nb\n"))["a.py"].removes
    with pytest.raises(EditRejectedError):
        base.plan(removal("other\n"))
    with pytest.raises(ChangeRejectedError, match="does not show all of its lines"):
        base.plan(removal("a\n"))


def test_lines_are_put_before_the_first_one_unless_the_file_has_them(base: Base) -> None:
    def insertion(path: str, text: str) -> CodeChange:
        edits = (TextEdit(search="", replace=text, line=1),)
        return CodeChange(operation="edit", file_path=path, edits=edits, in_order=True)

    assert base.plan(insertion("a.py", "top\n"))["a.py"].content == b"top\na\nb\n"
    assert base.plan(insertion("new.py", "top\n"))["new.py"].content == b"top\n"
    with pytest.raises(EditRejectedError):
        base.plan(insertion("a.py", "a\nb\nc\n"))
