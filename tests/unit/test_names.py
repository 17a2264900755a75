from __future__ import annotations

import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner._names import (
    MAX_BRANCH_BYTES,
    MAX_SLUG_CHARACTERS,
    check_branch_name,
    check_change_path,
    check_path_inside,
    check_repository_url,
    expand_home,
    fold_name,
    has_control_character,
    mask_users,
    slug,
    task_branch,
)
from tests.support.repositories import git

# Each example starts a git process, some 3 ms.
WITH_GIT = settings(max_examples=150, deadline=None)
QUICK = settings(max_examples=300, deadline=None)
PIECES = [*"aZ0é日-_/.@{}~^:?*[\\ \x01\x7f\x85\u2028", ".lock", "HEAD"]
TELLING = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
TASK_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True).filter(lambda text: ".." not in text)


def git_takes_branch(name: str) -> bool:
    """What the real ``git check-ref-format --branch`` says, outside of any repository."""
    done = subprocess.run(
        ["git", "check-ref-format", "--branch", name],
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    return done.returncode == 0 and done.stdout.decode().strip() == name


def is_accepted(name: str) -> bool:
    try:
        return check_branch_name(name) == name
    except ValueError:
        return False


# --- branches


@WITH_GIT
@given(TELLING)
@example("a./b")
@example("a.lock/b")
@example("@")
@example("a/@")
@example("-")
@example("日本語")
def test_a_branch_is_refused_where_git_refuses_it_and_for_few_reasons_of_our_own(name: str) -> None:
    accepted = is_accepted(name)
    if git_takes_branch(name) and not accepted:
        assert name in {"@", "HEAD"} or name.startswith("refs/") or has_control_character(name)
    else:
        assert git_takes_branch(name) is accepted


@pytest.mark.parametrize(
    "name",
    ["", "@", "HEAD", "--force", "-b", "a..b", "x.lock", "x.lock/y", "@{u}", "@{-1}", "a@{1}", "x" * 300, "日" * 81,
     "/a", "a/", "a//b", ".a", "a/.b", "a.", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\nb", "a\0",
     "a\x7f", "a\x85b", "a\u2028b", "refs/heads/a", "\ud800"],
)  # fmt: skip
def test_a_hostile_branch_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"branch|codec"):
        check_branch_name(name)


@QUICK
@given(st.text(max_size=80), TASK_IDS, st.text(max_size=80))
@example("ユーザー管理" * 20, "a" * 128, "データベースを作る" * 20)
@example("\U0001d7d8" * 80, "1.1", "𠮷" * 80)
@example("---", "1", "...")
@example("spec", "1.lock", "x.lock")
@example("s", "1", "\ud800")
def test_every_spec_id_and_title_make_a_branch(spec_name: str, task_id: str, title: str) -> None:
    name = task_branch(spec_name, task_id, title)
    assert check_branch_name(name) == name
    assert len(name.encode()) <= MAX_BRANCH_BYTES
    assert f"-{task_id}-" in name


@settings(WITH_GIT, max_examples=60)
@given(st.text(max_size=60), TASK_IDS, st.text(max_size=60))
def test_git_takes_every_branch_that_is_derived(spec_name: str, task_id: str, title: str) -> None:
    assert git_takes_branch(task_branch(spec_name, task_id, title))


def test_a_branch_of_the_greatest_length_can_be_made(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "-b", "main")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "base")
    name = task_branch("ユ" * 100, "a" * 128, "デ" * 100)
    git(tmp_path, "branch", name)
    assert name in git(tmp_path, "for-each-ref", "--format=%(refname:short)")


def test_spec_and_title_are_both_there_however_long() -> None:
    name = task_branch("ユーザー" * 25, "a" * 128, "データベース" * 25)
    spec, _, title = name.removeprefix("feature/task-").partition(f"-{'a' * 128}-")
    assert len(spec) >= 20
    assert len(title) >= 10
    assert ("ユーザー" * 25).startswith(spec)
    assert ("データベース" * 25).startswith(title)


@pytest.mark.parametrize(
    ("spec_name", "task_id", "title", "branch"),
    [
        ("chat-app", "1.1", "Add Login Page!", "feature/task-chat-app-1.1-add-login-page"),
        ("チャット", "2", "データベーススキーマの実装", "feature/task-チャット-2-データベーススキーマの実装"),
        ("a_b.c", "3", "API（認証）を　追加", "feature/task-a-b-c-3-api-認証-を-追加"),
        ("s", "1", "!!!", "feature/task-s-1-task"),
    ],
)
def test_branches_as_people_expect_them(spec_name: str, task_id: str, title: str, branch: str) -> None:
    assert task_branch(spec_name, task_id, title) == branch


# --- slugs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ユーザー認証の追加", "ユーザー認証の追加"),
        ("ﾃﾞｰﾀﾍﾞｰｽを作る", "データベースを作る"),
        ("ＡＰＩ　設計", "api-設計"),
        ("が", "が"),  # a mark of its own, as macOS writes it
        ("Größe ändern", "grösse-ändern"),
        ("  --Fix: the (big) bug--  ", "fix-the-big-bug"),
        ("snake_case", "snake-case"),
        ("../../etc/passwd", "etc-passwd"),
        ("🎉", "task"),
        ("", "task"),
    ],
)
def test_a_slug_keeps_the_meaning(text: str, expected: str) -> None:
    assert slug(text) == expected


@QUICK
@given(st.text(), st.integers(4, 300))
def test_a_slug_is_letters_and_digits_with_dashes_between(text: str, max_bytes: int) -> None:
    made = slug(text, max_bytes=max_bytes)
    assert made == "task" or all(word.isalnum() for word in made.split("-"))
    assert 0 < len(made) <= MAX_SLUG_CHARACTERS
    assert len(made.encode()) <= max_bytes
    assert slug(made, max_bytes=max_bytes)


@QUICK
@given(st.text(st.characters(codec="utf-8", min_codepoint=0x3041, max_codepoint=0x9FFF), min_size=1, max_size=50))
def test_letters_of_a_japanese_title_are_all_kept(title: str) -> None:
    letters = [letter for letter in unicodedata.normalize("NFKC", title).casefold() if letter.isalnum()]
    assume(letters)
    assert "".join(letters).startswith(slug(title).replace("-", ""))


def test_a_cut_never_halves_a_letter() -> None:
    assert slug("日本語", max_bytes=8) == "日本"
    assert slug("日", max_bytes=2) == "task"


# --- paths


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "a/../b", "./a", "/etc/passwd", "C:\\x", "C:/x", "c:x", "\\\\srv\\x", "a\\b", "", "a//b", "a/",
     ".git/hooks/pre-commit", "a/.git/config", ".GIT/config", "git~1/x", "GIT~2/x", ".git /x", ".git./x", ".git. ./x",
     ".git::$INDEX_ALLOCATION/x", ".git:x", ".git\\config", ".g\u200cit/config", ".\ufeffgit/x", "．git/x", ".ｇｉｔ/x",
     "a\0b", "a\nb", "a\rb", "a\x1b[0m", "a\x85b", "a\u2028b", "a" * 256, "日" * 86, "a/" * 2100 + "a", "\ud800",
     "a.", "a ", "a:b", "nul", "CON.txt", "a/aux", "com1", "LPT9.log", "com1 .txt", "con  .a.b", "COM¹", "com².txt",
     "LPT³", "conin$", "CONOUT$.txt", "*.py", "a?b", "<x>", "a|b", '"q".py', "gitmod~1", "GITMOD~4/x", "gi7eba~1",
     "GI7EB~12/x", "gi7d29~9", "gitatt~1", "gi250a~1", "gitign~2", "mailma~1", "maba3~10", "~1000000",
     ".gitmod\u200cules", ".gitattributes\u200d", ".ｇｉｔmodules"],
)  # fmt: skip
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|holds|absolute|part|longer|git|Unicode") as caught:
        check_change_path(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "path", ["aux.py", "src/con.c", "nul/x", "a:b.txt", "c:x", "x.", "dir /x", "*.py", 'a"b', "a?<b>|c", "com1"]
)
def test_a_name_that_some_file_systems_cannot_hold_lies_inside_all_the_same(path: str) -> None:
    assert check_path_inside(path) == path
    with pytest.raises(ValueError, match="some file systems cannot hold"):
        check_change_path(path)


@pytest.mark.parametrize(
    "path",
    ["a/../b", "/aux", "c:/x", "a\\b", ".git:x", "a/.GIT./x", "git~1/aux", "a\nb", "a" * 256, "\ud800", ".gitmodules:x",
     "gitmod~1"],
)  # fmt: skip
def test_a_path_that_leaves_the_repository_or_reaches_into_git_is_refused_for_files_that_exist_too(path: str) -> None:
    with pytest.raises(ValueError, match=r"has a|holds|absolute|would reach|Unicode"):
        check_path_inside(path)


@pytest.mark.parametrize(
    "path",
    ["a", "a/b.py", ".gitignore", ".gitmodules", ".gitattributes", ".github/workflows/ci.yml", "git/x", "a.git/x",
     ".gitx/y", "日本/語.txt", "a b/c d", "..a/b..c", "x~1", "consul.txt", "com10",
     "gitmod~5", "gi7eba~0", "gi7ebb~1", "backup~1", "file~", "com1x", "conin", "mailmap", "gitmodules", "a" * 255,
     "/".join(["a" * 200] * 20)],
)  # fmt: skip
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert check_change_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["setup\u200b.py", "photo\u202egpj.py", ".git\u200b/config", ".git\xad/config", ".git\u2060/x", "\u200b.py",
     "a/\u3164", "\ufeffa", ".github\u200c/workflows/x.yml", "ad\u200dmin.py", "a\U000e0041"],
)  # fmt: skip
def test_a_new_name_with_characters_that_nobody_sees_is_refused(path: str) -> None:
    assert check_path_inside(path) == path
    with pytest.raises(ValueError, match=r"nobody sees: U\+[0-9A-F]{4,5}$"):
        check_change_path(path)


@pytest.mark.parametrize("path", ["می\u200cخواهم.txt", "क्\u200dष.md", "👩\u200d💻.md", "❤\ufe0f.md"])
def test_a_new_name_may_hold_what_its_script_needs(path: str) -> None:
    assert check_change_path(path) == path


@QUICK
@given(st.lists(st.sampled_from([*"ab.gGiItT~1/\\ :\u200c\n", ".git", "../"]), max_size=10).map("".join))
def test_an_accepted_path_stays_inside_and_out_of_git(path: str) -> None:
    try:
        check_change_path(path)
    except ValueError:
        return
    root = Path("/r")
    resolved = Path(os.path.normpath(root / path))
    assert root in resolved.parents
    assert resolved == root / path
    assert not any(part.casefold().rstrip(". ") == ".git" for part in resolved.parts)


# --- repositories


@pytest.mark.parametrize(
    "url",
    ["", "ext::sh -c id", "ext::sh", "fd::3", "--upload-pack=id", "-x", "https://u:p4ssw0rd@host/r",
     "https://t0k3n-t0k3n@host/r", "ssh://git:p4ssw0rd@host/r", "ssh://-oProxyCommand=id/r", "ssh:///r", "https://",
     "ftp://host/r", "javascript://x/", "a\nb", "https://host/\0", "https://host/\x1b",
     "https://host/" + "a" * 5000, "/" + "a" * 5000],
)  # fmt: skip
def test_a_hostile_repository_is_refused_and_no_password_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|remote helper|scheme") as caught:
        check_repository_url(url)
    assert "p4ssw0rd" not in str(caught.value)
    assert "t0k3n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://github.com/a/b.git", "http://localhost:3000/a", "ssh://git@host:22/a", "git@host:a/b.git", "file:///a/b",
     "git://host/a", "/a/b", "../a", "a/x::y", "リポジトリ"],
)  # fmt: skip
def test_an_ordinary_repository_is_taken(url: str) -> None:
    assert check_repository_url(url) == url


@pytest.mark.parametrize("path", ["/" + "a" * 256, "/a" * 2100, "/" + "日" * 86])
def test_a_path_that_no_system_call_takes_is_refused_early(path: str) -> None:
    with pytest.raises(ValueError, match="at most 4095 bytes, and each part of it 255"):
        expand_home(Path(path))
    with pytest.raises(ValueError, match="at most 4095 bytes"):
        check_repository_url(path)


@pytest.mark.parametrize(("one", "other"), [("A.py", "a.PY"), ("が.txt", "が.txt"), ("STRASSE", "straße")])
def test_names_that_are_one_file_on_some_file_systems_fold_to_one(one: str, other: str) -> None:
    assert fold_name(one) == fold_name(other)


@pytest.mark.parametrize(
    "url",
    [
        "file://github.com/srv/secret.git",
        "ssh://evil.com%2f@github.com/x",
        "ssh://evil.com%3a22%2fx@github.com/y",
        "git://127.0.0.1%2f@github.com/x",
        "https://github.com%2f@evil.com/x",
        "ssh://evil.com\\@github.com/x",
    ],
)
def test_a_url_that_git_takes_to_another_place_than_it_seems_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"host|user or password"):
        check_repository_url(url)


def test_a_file_url_of_this_machine_is_taken() -> None:
    for url in ("file:///srv/a.git", "file://localhost/srv/a.git", "https://host/a%20b.git"):
        assert check_repository_url(url) == url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HTTPS://t0ken@host/r", "HTTPS://***@host/r"),
        ("'http://t0ken@host:1/r', https://me:t0ken@host", "'http://***@host:1/r', https://***@host"),
        ("https://host/a@b ssh://git@host/r git@host:r", "https://host/a@b ssh://git@host/r git@host:r"),
    ],
)
def test_the_user_of_a_web_address_is_masked(text: str, shown: str) -> None:
    assert mask_users(text) == shown
