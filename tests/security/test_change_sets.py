"""The threat list's paths and contents of a model's answer, each in a run: all of it is refused, nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import RunnerConfig, RunnerOrchestrator, RunnerResult, ScriptedLLM, TaskContext
from necrocode.agent_runner.verdict.tamper import protected_files
from tests.support.repositories import commit_files, files_at, git, make_repository

FILES: dict[str, str | bytes] = {
    "calc.py": "a = 1\n",
    "a": "x\n",
    "dir/x": "x\n",
    "é.txt": "x\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "bom.txt": b"\xef\xbb\xbfone\n",
    "no_newline.txt": b"one",
    "sjis.txt": "日本\n".encode("cp932"),
    "binary": b"\0\1\2\xff",
}


class Place:
    """A checkout that is brought, and runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = make_repository(folder / "repo", FILES)
        (self.checkout / "link").symlink_to(folder / "outside")
        (self.checkout / "folder_link").symlink_to("dir")
        (folder / "outside").mkdir()
        git(self.checkout, "add", "-A")
        git(self.checkout, "commit", "-qm", "links")
        self.base = git(self.checkout, "rev-parse", "HEAD")

    def run(self, *answers: str, **settings: Any) -> RunnerResult:
        return self.run_with(ScriptedLLM(list(answers)), **settings)

    def run_with(self, llm: ScriptedLLM, **settings: Any) -> RunnerResult:
        config = RunnerConfig(
            state_dir=self.folder / "state", detect_tests=False, test_base=False, sandbox="none", push=False,
            **{"max_repair_rounds": 0, **settings},
        )  # fmt: skip
        task = TaskContext(task_id="1", spec_name="s", title="t", description="d", slot_path=self.checkout)
        with RunnerOrchestrator(config, llm=llm) as orchestrator:
            return orchestrator.run(task)

    def assert_untouched(self, result: RunnerResult) -> None:
        """Nothing was written: no file, no ref, no commit."""
        assert (result.status, result.impl_result, result.push_result) == ("failed", None, None)
        assert git(self.checkout, "rev-parse", "HEAD") == self.base
        assert git(self.checkout, "status", "--porcelain") == ""
        assert git(self.checkout, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
        assert list((self.folder / "outside").iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def change(path: str, content: str = "new\n", operation: str = "create", **more: Any) -> dict[str, Any]:
    return {"operation": operation, "file_path": path, "content": content, **more}


def answer(*changes: dict[str, Any]) -> str:
    return json.dumps({"explanation": "x", "code_changes": changes})


REFUSED_PATHS = {
    "a path that climbs out": ["../../etc/passwd"],
    "an absolute path, of unix, windows and a share": ["/etc/passwd", "C:\\x", "\\\\srv\\x"],
    "git's own folder, and that of a repository inside": [".git/hooks/pre-commit", "a/.git/config"],
    "git's folder in capitals, by its short name, with an ending that windows drops": [
        ".GIT/config", "git~1/x", ".git /x", ".git./x",
    ],
    "git's folder by an ntfs stream or a backslash": [".git::$INDEX_ALLOCATION/x", ".git\\config"],
    "git's folder with a character that hfs+ ignores": [".g\u200cit/config"],
    "characters that nobody sees": ["setup\u200b.py", "photo\u202egpj.py", ".git\u200b/config", "a/\u3164"],
    "nul, newline, control characters": ["a\0b", "a\nb", "a\x1bb", "a\x7f"],
    "a path of 4096 characters, a part of 256 bytes": ["x/" * 2048 + "x", "x" * 256],
    "a parent that is a symlink": ["folder_link/x", "link/x"],
    "a target that is a symlink": ["link", "folder_link"],
    "a directory as the target": ["dir"],
    "a name beside one that differs by case": ["A", "DIR/x", "Calc.py"],
    "a name in nfd beside one in nfc": ["e\u0301.txt"],
    "a file as a folder": ["a/x"],
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED_PATHS)
def test_a_path_is_refused_with_the_whole_answer(place: Place, line: str) -> None:
    for path in REFUSED_PATHS[line]:
        result = place.run(answer(change("fine.py"), change(path)))
        place.assert_untouched(result)
        assert result.error_details is not None
        assert result.error_details.type in {"ChangeRejectedError", "MalformedAnswerError"}, path


@pytest.mark.parametrize(
    "changes",
    [[change("new"), change("new", "other\n")], [change("N"), change("n")], [change("n"), change("n/x")],
     [change("é2"), change("e\u03012")]],
    ids=["duplicates", "case", "file and folder", "nfc and nfd"],
)  # fmt: skip
def test_two_paths_of_one_answer_that_are_one_file_are_refused(place: Place, changes: list[dict[str, Any]]) -> None:
    place.assert_untouched(place.run(answer(change("fine.py"), *changes)))


@pytest.mark.parametrize("mode", ["120000", "160000"])
def test_a_new_link_or_submodule_is_refused(place: Place, mode: str) -> None:
    diff = f"diff --git a/new b/new\nnew file mode {mode}\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+/etc/passwd\n"
    place.assert_untouched(place.run(f"```diff\n{diff}```\n"))


def test_the_delete_of_a_missing_file_is_refused(place: Place) -> None:
    gone = {"operation": "delete", "file_path": "missing"}
    place.assert_untouched(place.run(answer(change("fine.py"), gone)))


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_fifo_or_folder_that_git_does_not_track_stays_in_the_way(place: Place, kind: str) -> None:
    target = place.checkout / "new"
    if kind == "fifo":
        os.mkfifo(target)
    else:
        (target / "mine").mkdir(parents=True)
        (target / "mine/file").write_text("mine")
    result = place.run(answer(change("new")))
    assert result.status == "failed"
    assert target.is_fifo() if kind == "fifo" else (target / "mine/file").read_text() == "mine"
    assert git(place.checkout, "rev-parse", "HEAD") == place.base


# --- protected paths


PROTECTED = [".gitmodules", ".gitattributes", "sub/.gitattributes", ".github/workflows/x.yml", ".gitlab-ci.yml"]


def test_a_protected_path_is_flagged_in_the_result(place: Place) -> None:
    result = place.run(answer(change("fine.py"), *(change(path) for path in PROTECTED)))
    assert result.status == "done"
    assert result.impl_result is not None
    assert result.impl_result.protected_files == tuple(sorted(PROTECTED))
    assert all(any(path in warning for warning in result.warnings) for path in PROTECTED)


@pytest.mark.parametrize("path", [*PROTECTED, "deploy/prod.yaml", "x/y.tf"])
def test_a_protected_path_is_refused_where_the_settings_say_so_and_the_model_told(place: Place, path: str) -> None:
    settings: dict[str, Any] = {"protected_paths": ["deploy/*", "*.tf"], "protected_paths_policy": "refuse"}
    place.assert_untouched(place.run(answer(change("fine.py"), change(path)), **settings))
    mended = place.run(answer(change(path)), answer(change("fine.py")), max_repair_rounds=1, **settings)
    assert mended.status == "done"
    assert mended.impl_result is not None
    assert mended.impl_result.files == ("fine.py",)
    assert path in mended.rounds[0].message


def test_the_model_is_told_beforehand_what_would_be_refused(place: Place) -> None:
    asked = []
    for policy in ("flag", "refuse"):
        llm = ScriptedLLM([answer(change("fine.py"))])
        place.run_with(llm, protected_paths=["deploy/*"], protected_paths_policy=policy)
        asked.append(llm.calls[0][-1].content)
    told = "These files must stay as they are: settings of continuous integration, of git and its hooks, deploy/*."
    assert told in asked[1]
    assert "must stay" not in asked[0]


def test_patterns_fit_by_folder_by_ending_and_at_the_top() -> None:
    paths = ["deploy/a", "x/deploy/b", "Deploy/C", "a.tf", "x/b.TF", "top", "x/top", "secrets/d/e", "other"]
    assert protected_files(paths, ["deploy/*"]) == ("deploy/a", "x/deploy/b", "Deploy/C")
    assert protected_files(paths, ["*.tf"]) == ("a.tf", "x/b.TF")
    assert protected_files(paths, ["/top", "./secrets/"]) == ("top", "secrets/d/e")


# --- contents


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"max_file_bytes": 10}, [change("n", "x" * 11)]),
        ({"max_total_bytes": 15}, [change("n", "x" * 10), change("m", "x" * 10)]),
        ({"max_changed_files": 2}, [change(name) for name in ("n", "m", "o")]),
    ],
    ids=["one file", "all together", "their number"],
)
def test_caps_on_size_and_count_refuse_the_answer(
    place: Place, settings: dict[str, Any], changes: list[dict[str, Any]]
) -> None:
    place.assert_untouched(place.run(answer(*changes), **settings))


@pytest.mark.parametrize("path", ["binary", "sjis.txt"])
def test_a_file_that_is_no_utf_8_is_not_rewritten(place: Place, path: str) -> None:
    place.assert_untouched(place.run(answer(change(path, "text\n", "modify"))))


def test_line_ends_marks_and_missing_newlines_are_kept(place: Place) -> None:
    edits = {"crlf.txt": "two", "bom.txt": "one", "no_newline.txt": "one", "sjis.txt": "日本"}
    result = place.run(
        answer(
            *(
                {"operation": "edit", "file_path": path, "edits": [{"search": word, "replace": "2"}]}
                for path, word in edits.items()
                if path != "sjis.txt"
            ),
            {"operation": "rename", "file_path": "binary", "new_path": "moved"},
        )
    )
    assert result.impl_result is not None, result.error
    found = files_at(place.checkout, result.impl_result.commit)
    assert {name: found[name] for name in (*edits, "moved")} == {
        "crlf.txt": b"one\r\n2\r\n", "bom.txt": b"\xef\xbb\xbf2\n", "no_newline.txt": b"2",
        "sjis.txt": "日本\n".encode("cp932"), "moved": b"\0\1\2\xff",
    }  # fmt: skip


def test_an_object_of_gigabytes_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner._git.objects.MAX_OBJECT_BYTES", 5_000_000)
    commit_files(place.checkout, {"zeros": bytes(5_000_001)})  # in the object store: 5 kB
    place.base = git(place.checkout, "rev-parse", "HEAD")
    zeros = {"operation": "edit", "file_path": "zeros", "edits": [{"search": "a", "replace": "b"}]}
    result = place.run(answer(zeros, change("fine.py")))
    place.assert_untouched(result)
    assert "at most 5000000 are read" in (result.error or "")


def test_a_million_hunks_are_too_many(place: Place) -> None:
    hunks = "".join(f"@@ -{number},1 +{number},1 @@\n-a\n+b\n" for number in range(1, 250_001))
    result = place.run(f"```diff\n--- a/calc.py\n+++ b/calc.py\n{hunks}```\n")
    place.assert_untouched(result)
    assert "at most" in (result.error or "")


def test_where_the_second_of_three_changes_fails_nothing_is_changed(place: Place) -> None:
    wrong = {"operation": "edit", "file_path": "calc.py", "edits": [{"search": "not there", "replace": "x"}]}
    place.assert_untouched(place.run(answer(change("one"), wrong, change("three"))))
