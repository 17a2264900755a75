"""Real commits, and the patches of others, through the reading and applying of answers."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import ChangeRejectedError, ImplementationError, MalformedAnswerError
from necrocode.agent_runner._git import ObjectReader
from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.agent_runner.generation.matching import apply_edits
from tests.support.edit_renderers import EDITS, InexpressibleError, as_fenced_diff
from tests.support.edited_files import Trees, applied, edited, encoded
from tests.support.shared import SHARED, shared_folder

EDIT_DATA = SHARED / "data" / "edits"
TYPE_CHANGE = "jd__tenacity-659e78279c"
"""The one commit that makes a file a symbolic link, which no answer may."""


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(shared_folder("edits") / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@cache
def commits() -> list[dict[str, Any]]:
    return rows("commits.jsonl.gz")


def whole_files(before: dict[str, str], after: dict[str, str]) -> str:
    changes: list[dict[str, str]] = [{"operation": "delete", "file_path": path} for path in before if path not in after]
    changes += [{"operation": "modify", "file_path": path, "content": text} for path, text in after.items()]
    return json.dumps({"changes": changes})


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectReader]:
    trees = Trees(tmp_path_factory.mktemp("commits") / "git", [encoded(row["before"]) for row in commits()])
    with trees.objects() as reader:
        yield reader


@pytest.mark.parametrize("name", [*EDITS, "fenced", "whole files"])
def test_every_commit_comes_out_byte_for_byte_in_every_format_that_can_say_it(name: str, objects: ObjectReader) -> None:
    renders: dict[str, Callable[..., str]] = {**EDITS, "fenced": as_fenced_diff, "whole files": whole_files}
    expressed = 0
    for number, row in enumerate(commits()):
        try:
            answer = renders[name](row["before"], row["after"])
        except InexpressibleError:
            continue
        expressed += 1
        if name in EDITS:
            assert parse_answer(answer).edit_format in {name, "files"}  # deletions alone
        files = encoded(row["before"])
        if name == "whole files" and not row["before"].keys() & row["after"].keys() - row["before"].keys():
            assert edited(files, parse_answer(answer).changes) == encoded(row["after"]), row["id"]
        else:
            assert applied(objects, number, files, answer) == encoded(row["after"]), row["id"]
    assert expressed >= {"patch": 291}.get(name, 345)


def test_every_diff_of_git_comes_out_byte_for_byte(objects: ObjectReader) -> None:
    for number, row in enumerate(commits()):
        files = encoded(row["before"])
        if row["id"] == TYPE_CHANGE:
            with pytest.raises(ChangeRejectedError, match="symbolic link"):
                applied(objects, number, files, row["diff"])
        else:
            assert applied(objects, number, files, row["diff"]) == encoded(row["after"]), row["id"]


def test_every_envelope_comes_out_byte_for_byte(objects: ObjectReader) -> None:
    number_of = {row["id"]: number for number, row in enumerate(commits())}
    patches = rows("commits_apply_patch.jsonl.gz")
    for patch in patches:
        number = number_of[patch["id"]]
        row = commits()[number]
        assert applied(objects, number, encoded(row["before"]), patch["patch"]) == encoded(row["after"]), row["id"]
    assert len(patches) == 295


def without_numbers(diff: str) -> str:
    return "\n".join("@@" if line.startswith("@@ -") else line for line in diff.split("\n"))


def test_a_diff_of_a_file_that_has_everything_twice_is_refused_unless_its_numbers_choose() -> None:
    """Every hunk has then two places, but for those at a file's very beginning or end."""
    refused = chosen = 0
    for row in commits():
        for change in parse_answer(row["diff"]).changes if row["id"] != TYPE_CHANGE else ():
            old, new = row["before"].get(change.file_path), row["after"].get(change.file_path)
            if change.operation != "edit" or not old or not new or not (old + new).endswith("\n") or "\n" not in old:
                continue
            if not old.endswith("\n") or old.startswith("\ufeff"):
                continue
            twice = old + old
            blind = [edit.model_copy(update={"line": None, "heading": ""}) for edit in change.edits]
            result = apply_edits(twice, blind, in_order=True)
            if result.refusals:
                assert {refusal.reason for refusal in result.refusals} <= {"ambiguous"}
                assert all(len(refusal.lines) > 1 for refusal in result.refusals)
                refused += 1
            else:
                assert result.text in {new + old, old + new}
            guided = apply_edits(twice, change.edits, in_order=True)
            assert guided.text == new + old
            chosen += 1
    assert refused > 300
    assert chosen > 300


def test_a_hunk_whose_lines_are_gone_is_refused_and_nothing_else_is_touched() -> None:
    """For each hunk in turn, the file loses a line that the hunk names."""
    refused = 0
    for row in commits()[::3]:
        for change in parse_answer(row["diff"]).changes if row["id"] != TYPE_CHANGE else ():
            old = row["before"].get(change.file_path)
            if change.operation != "edit" or old is None:
                continue
            for edit in change.edits:
                named = [
                    line
                    for line in edit.search.split("\n")
                    if line.strip() and old.count(line) == 1 and f"{line}\n" in old
                ]
                if not named:
                    continue
                result = apply_edits(old.replace(named[0] + "\n", "", 1), change.edits, in_order=True)
                assert result.refusals
                assert all(refusal.explained() for refusal in result.refusals)
                refused += 1
    assert refused > 100


# --- the patches of others


def folder_files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


OURS_DIFFERS = {
    "010_move_overwrites_existing_destination": "a file is never moved over another one",
    "015_failure_after_partial_success_leaves_changes": "nothing is applied when a part cannot be",
}


@pytest.mark.parametrize(
    "scenario", sorted(path.name for path in (EDIT_DATA / "apply_patch_scenarios").glob("*")) or ["absent"]
)
def test_envelope_scenarios_end_as_expected(scenario: str, tmp_path: Path) -> None:
    folder = shared_folder("edits") / "apply_patch_scenarios" / scenario
    before, expected = folder_files(folder / "input"), folder_files(folder / "expected")
    answer = (folder / "patch.txt").read_text(encoding="utf-8")
    with Trees(tmp_path / "git", [before]).objects() as objects:
        if scenario in OURS_DIFFERS or before == expected:
            with pytest.raises(ImplementationError):
                applied(objects, 0, before, answer)
        else:
            assert applied(objects, 0, before, answer) == expected


SLOPPY = {
    "test-00-tmp": "pub fn process_app_state(state: &mut AppState, opts: ProcessAppStateOpts) {\n\t// -- Process",
    "test-01-crlf": 'license = "MIT OR Apache-2.0"\nedition = "2024"\nresolver = "3"\n\n# See more',
    "test-02-append": "line 1\nline 2\n\nline 3\n",
    "test-03-no-matching-empty-line": 'directory")?;\n\t// -- Init if missing\n\tinit_profiles_if_missing()?;\n\n\tlet',
    "test-05-missplaced": "`~/.config/jc-zed-tasks/`.\n\n## Request: Ensure Alacritty config inclusion in profiles\n",
    "test-07-new-line": "in this file.\n## Request: Unified Tools API (ToolName and ToolConfig)\n\n### ",
    "test-10": "end\n\n\n-- Helper to sort file paths by their modification time (mtime)\n",
    "test-11-append-with-empty-surround": "line 1\nline 2\n\n\nline 3\n\n\n",
    "test-12-append-with-white-end-surround": "line 1\nline 2\nline 3\nline 4\n",
    "test-15": '<param name="outputMeshes">1</param>\r\n \t\t\t<param name="execute">1</param>\r\n',
}
"""What a file has afterwards."""
SLOPPY_REFUSED = {
    "test-06-no-match": "7 | The `SFile` is a File struct",  # the lines that go are quoted wrongly
    "test-16-partial-hunk": "Edit 2 was refused: its search text is not in the file",
    "test-22-not-matching": "7 | - a follow-up comment",  # a sentence is left out in the middle
}


@pytest.mark.parametrize("name", [*SLOPPY, *SLOPPY_REFUSED])
def test_diffs_as_models_write_them_are_applied_where_they_have_one_meaning(name: str) -> None:
    folder = shared_folder("edits") / "sloppy_diffs" / name
    old = (folder / "original.txt").read_bytes().decode()
    answer = (folder / "changes.txt").read_text(encoding="utf-8")
    if name == "test-15":
        with pytest.raises(MalformedAnswerError):
            parse_answer(answer)  # it names no file
        answer = answer.replace('file_path=""', 'file_path="a.diff"')
    (change,) = parse_answer(answer).changes
    result = apply_edits(old, change.edits, in_order=change.in_order)
    if name in SLOPPY:
        assert not result.refusals
        assert SLOPPY[name] in result.text
    else:
        assert result.text == old
        assert SLOPPY_REFUSED[name] in result.refusals[0].explained()


def test_odd_diffs_are_read_or_refused_cleanly() -> None:
    read = 0
    files = sorted((shared_folder("edits") / "diff_corpora").glob("*/*"))
    for file in files:
        with contextlib.suppress(ImplementationError):
            assert all(change.file_path for change in parse_answer(file.read_bytes().decode()).changes)
            read += 1
    assert (len(files) >= 68, read >= 40) == (True, True)


def test_a_plain_diff_of_two_files_is_applied_and_one_with_more_lines_than_it_counts_is_refused() -> None:
    folder = shared_folder("edits") / "diff_corpora" / "whatthepatch"
    old, new = ((folder / side).read_text(encoding="utf-8") for side in ("lao", "tzu"))
    for name in ("diff-unified.diff", "diff-unified-blah.diff"):
        (change,) = parse_answer((folder / name).read_text(encoding="utf-8")).changes
        result = apply_edits(old, change.edits, in_order=True)
        assert (result.text == new, bool(result.refusals)) == ((True, False) if "blah" not in name else (False, True))
