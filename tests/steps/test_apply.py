from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import ChangeRejectedError, CodeChange
from necrocode.agent_runner._git import FileChange, Git, ObjectReader, Repository
from necrocode.agent_runner.steps.apply import Limits, plan_changes, refuse_secrets
from necrocode.agent_runner.verdict.tamper import TreeFiles, protected_files
from tests.support.repositories import commit_files, git, make_repository

LIMITS = Limits(max_changed_files=10, max_file_bytes=1000, max_total_bytes=2000)
FILES: dict[str, str | bytes] = {
    "a.py": "a\n",
    "pkg/b.py": "b\n",
    "pkg/deep/c.py": "c\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "mixed.txt": b"one\r\ntwo\n",
    "bom.txt": b"\xef\xbb\xbfone\n",
    "bom_crlf.txt": b"\xef\xbb\xbfone\r\n",
    "no_newline.txt": b"one",
    "blanks_last.txt": b"one\n    ",
    "empty.txt": b"",
    "sjis.txt": "日本\n".encode("cp932"),
    "日本/ファイル 1.txt": "x\n",
    unicodedata.normalize("NFC", "é.txt"): "x\n",
}


class Base:
    """A base tree to plan against."""

    def __init__(self, path: Path, objects: ObjectReader) -> None:
        self.path = path
        self.objects = objects

    def plan(self, *changes: CodeChange, limits: Limits = LIMITS) -> dict[str, FileChange]:
        tree = git(self.path, "rev-parse", "HEAD^{tree}")
        return {change.path: change for change in plan_changes(changes, self.objects, tree, limits)}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    path = make_repository(tmp_path / "repo", FILES)
    (path / "link").symlink_to("pkg")
    (path / "file_link").symlink_to("a.py")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    git(path, "add", "-A")
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{git(path, 'rev-parse', 'HEAD')},module")
    git(path, "commit", "-qm", "more")
    home = Git(tmp_path / "git-home")
    home.prepare()
    with Repository(home, path).objects() as objects:
        yield Base(path, objects)


def write(path: str, content: str = "new\n", *, exact: bool = True) -> CodeChange:
    return CodeChange(operation="modify", file_path=path, content=content, exact=exact)


def delete(path: str) -> CodeChange:
    return CodeChange(operation="delete", file_path=path)


def rename(path: str, new_path: str, content: str | None = None) -> CodeChange:
    return CodeChange(operation="rename", file_path=path, new_path=new_path, content=content)


# --- what is planned


def test_new_files_are_ordinary_and_changed_ones_keep_their_mode(base: Base) -> None:
    planned = base.plan(write("new/file.py"), write("run.sh", "#!/bin/sh\ntrue\n"))
    assert planned["new/file.py"].mode == "100644"
    assert planned["run.sh"].mode == "100755"


def test_create_on_a_file_that_exists_replaces_it(base: Base) -> None:
    planned = base.plan(CodeChange(operation="create", file_path="a.py", content="x\n"))
    assert planned["a.py"].content == b"x\n"


@pytest.mark.parametrize(
    ("path", "said", "exact", "written"),
    [
        ("crlf.txt", "one\n2\n", True, b"one\r\n2\r\n"),
        ("crlf.txt", "one\r\n2\r\n", True, b"one\r\n2\r\n"),
        ("crlf.txt", "2", True, b"2"),
        ("mixed.txt", "one\n2\n", True, b"one\n2\n"),
        ("bom.txt", "2\n", True, b"\xef\xbb\xbf2\n"),
        ("bom.txt", "\ufeff2\n", True, b"\xef\xbb\xbf2\n"),
        ("bom_crlf.txt", "2\n", True, b"\xef\xbb\xbf2\r\n"),
        ("no_newline.txt", "2\n", True, b"2\n"),
        ("no_newline.txt", "2\n", False, b"2"),
        ("no_newline.txt", "2", True, b"2"),
        ("blanks_last.txt", "2\n", False, b"2\n"),
        ("a.py", "2", True, b"2"),
        ("a.py", "one\r\n2\r\n", True, b"one\n2\n"),
        ("a.py", "one\r\n2\r\n", False, b"one\n2\n"),
        ("empty.txt", "2\n", False, b"2\n"),
        ("日本/ファイル 1.txt", "二\n", True, "二\n".encode()),
    ],
)
def test_text_is_written_in_the_manner_of_the_file(
    base: Base,
    path: str,
    said: str,
    exact: bool,
    written: bytes,
) -> None:
    assert base.plan(write(path, said, exact=exact))[path].content == written


def test_rename_moves_the_object_and_its_mode(base: Base) -> None:
    planned = base.plan(rename("run.sh", "bin/run.sh"))
    assert planned["run.sh"].removes
    assert planned["bin/run.sh"].mode == "100755"
    assert planned["bin/run.sh"].oid == git(base.path, "rev-parse", "HEAD:run.sh")


def test_rename_with_new_text_keeps_the_old_manner(base: Base) -> None:
    assert base.plan(rename("crlf.txt", "new.txt", "x\n"))["new.txt"].content == b"x\r\n"


def test_rename_to_another_case_is_no_collision(base: Base) -> None:
    assert set(base.plan(rename("a.py", "A.py"))) == {"a.py", "A.py"}


def test_a_file_may_give_way_to_a_directory(base: Base) -> None:
    planned = base.plan(delete("a.py"), write("a.py/x.py"))
    assert planned["a.py"].removes
    assert planned["a.py/x.py"].content == b"new\n"


def test_files_that_come_out_the_same_are_left_out(base: Base) -> None:
    assert set(base.plan(write("a.py", "a\n"), write("pkg/b.py"))) == {"pkg/b.py"}


def test_leading_dot_slash_is_forgiven(base: Base) -> None:
    assert set(base.plan(write("./a.py"))) == {"a.py"}


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([write("a.py", "a\n")], "changes nothing"),
        ([delete("missing.py")], "Cannot delete 'missing.py': the repository has no such file"),
        ([rename("missing.py", "x.py")], "Cannot rename 'missing.py'"),
        ([rename("a.py", "pkg/b.py")], "that file exists already"),
        ([rename("a.py", "")], "the path is empty"),
        ([write("a.py"), write("a.py", "2")], "'a.py' twice"),
        ([write("a.py"), delete("a.py")], "'a.py' twice"),
        ([write("link/x.py")], "goes through 'link', which is a symbolic link"),
        ([delete("link/b.py")], "no such file"),
        ([write("file_link")], "is a symbolic link"),
        ([delete("link")], "is a symbolic link"),
        ([write("module")], "is a submodule"),
        ([write("module/x")], "goes through 'module', which is a submodule"),
        ([write("a.py/x")], "goes through 'a.py', which is a file"),
        ([write("pkg")], "is a directory"),
        ([delete("pkg")], "is a directory"),
        ([write("new"), write("new/x")], "both a file and the folder"),
        ([write("A.py")], "differ by case or accents"),
        ([write("PKG/x.py")], "differ by case or accents"),
        ([write("n/x"), write("N/y")], "differ by case or accents"),
        ([write(unicodedata.normalize("NFD", "é.txt"))], "differ by case or accents"),
        ([write("sjis.txt")], "not UTF-8"),
        ([write("x", "\ud800")], "surrogate"),
        ([write("x", "y" * 1001)], "1001 bytes; at most 1000"),
        ([write(f"x{number}", "y" * 900) for number in range(3)], "2700 bytes; at most 2000"),
        ([write(f"x{number}") for number in range(11)], "changes 11 files; at most 10"),
    ],
)
def test_the_whole_set_is_refused_with_the_rule(base: Base, changes: list[CodeChange], reason: str) -> None:
    with pytest.raises(ChangeRejectedError, match=reason):
        base.plan(*changes)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd", "/etc/passwd", "C:\\x", "C:/x", "\\\\srv\\x", ".git/hooks/pre-commit", "a/.git/config",
        ".GIT/config", "git~1/x", "GIT~2", ".git /x", ".git./x", ".git::$INDEX_ALLOCATION/x", ".git\\config",
        ".g\u200cit/config", "a\0b", "a\nb", "a\x1bb", "x" * 4097, "x" * 256, "a//b", "a/", "./", "con", "aux.txt",
        "a/../b", "a/./b", "\u202e.git/x", "．git/x", "a\u2028b", "dir /x", "x.", "\ud800",
    ],
)  # fmt: skip
def test_a_hostile_path_is_refused(base: Base, path: str) -> None:
    with pytest.raises(ChangeRejectedError, match="path is refused"):
        base.plan(write("fine.py"), write(path))
    with pytest.raises(ChangeRejectedError, match="path is refused"):
        base.plan(rename("a.py", path))


def secrets_in(text: str) -> Counter[str]:
    return Counter(re.findall("hush|psst", text))


def kept_secrets(base: Base, *changes: FileChange) -> tuple[str, ...]:
    tree = git(base.path, "rev-parse", "HEAD^{tree}")
    return refuse_secrets(changes, TreeFiles(base.objects, tree), secrets_in)


def text(path: str, content: str) -> FileChange:
    return FileChange(path, content=content.encode())


@pytest.mark.parametrize(
    "changes",
    [
        [text("new.py", "hush")],
        [text("a.py", "hush")],
        [text("keys.py", "hush hush hush\n")],
        [text("keys.py", "hush psst\n")],
        [text("keys.py", "hush\n"), text("new.py", "hush")],
        [FileChange("keys.py"), text("new.py", "hush hush"), text("more.py", "hush")],
        [FileChange("hush.py", content=b"x")],
        [FileChange("hush/x.py", content=b"x")],
    ],
)
def test_a_change_set_that_would_commit_a_secret_is_refused(base: Base, changes: list[FileChange]) -> None:
    commit_files(base.path, {"keys.py": "hush hush\n"})
    with pytest.raises(ChangeRejectedError, match="secret"):
        kept_secrets(base, *changes)


def test_a_secret_that_a_file_has_already_may_stay_in_it_and_move_with_it(base: Base) -> None:
    commit_files(base.path, {"keys.py": "hush hush\n", "hush.txt": "x\n"})
    oid = git(base.path, "rev-parse", "HEAD:keys.py")
    assert kept_secrets(base, text("keys.py", "x\nhush\nhush\n"), text("a.py", "x")) == ("keys.py",)
    assert kept_secrets(base, text("keys.py", "x\n"), FileChange("a.py", content=b"\xff")) == ()
    assert kept_secrets(base, FileChange("keys.py"), FileChange("moved.py", oid=oid)) == ("moved.py",)
    assert kept_secrets(base, text("moved.py", "hush\n"), FileChange("keys.py")) == ("moved.py",)
    assert kept_secrets(base, text("hush.txt", "y\n")) == ()
    assert kept_secrets(base, FileChange("hush.txt")) == ()


def test_paths_that_decide_what_runs_elsewhere_are_told() -> None:
    paths = ["a.py", ".github/workflows/ci.yml", ".gitmodules", "sub/.gitattributes", "docs/.github.md"]
    assert protected_files(paths) == (".github/workflows/ci.yml", ".gitmodules", "sub/.gitattributes")
    hidden = ["x/.gitmodules", ".GITMODULES", "a/b/.GitHub/x.yml", "x/JenkinsFile", "sub/.ci/run"]
    assert protected_files(hidden) == tuple(hidden)
    assert protected_files(["x.gitmodules", ".gitmodules.txt", "xjenkinsfile"]) == ()
