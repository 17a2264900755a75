from __future__ import annotations

import base64
import os
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import RunnerError, RunnerTimeoutError, UnusableCheckoutError, WorkspacePreparationError
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import (
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_SUBMODULE,
    MODE_SYMLINK,
    Author,
    FileChange,
    Git,
    GitError,
    ObjectReader,
    Repository,
    TreeEntry,
    TreeTooLargeError,
    open_checkout,
)
from necrocode.agent_runner._names import remote_of
from tests.contracts.sandbox_contract import assert_gone
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.http_server import Answer, serving
from tests.support.repositories import BROKEN_CALC, CALC_FILES, commit_files, files_at, git, make_repository

TOKEN = "made-up-t0k3n-for-tests"
AUTHOR = Author("Ålice 山田", "alice@example.com", 1_700_000_000)
REF = "refs/necrocode/runs/r/1"


@pytest.fixture
def door(tmp_path: Path) -> Git:
    door = Git(tmp_path / "git home", TOKEN)
    door.prepare()
    return door


@pytest.fixture
def checkout(door: Git, repository: Path) -> Repository:
    return Repository(door, repository)


@pytest.fixture
def objects(checkout: Repository) -> Iterator[ObjectReader]:
    with checkout.objects() as reader:
        yield reader


def script(file: Path, trace: Path) -> str:
    """A program that leaves a trace when it is run; its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho run >> '{trace}'\ncat\n")
    file.chmod(0o755)
    return str(file)


def write(checkout: Repository, *changes: FileChange, base: str | None = None, message: str = "m") -> str:
    base = base or git(checkout.path, "rev-parse", "HEAD")
    return checkout.write_commit(base, changes, ref=REF, message=message, author=AUTHOR)


def ask(door: Git, url: str) -> None:
    door.run(["ls-remote", "--", url], address=url)


# --- what a git process is given


def test_nothing_of_the_callers_environment_is_inherited(door: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GIT_DIR", "GIT_CONFIG_PARAMETERS", "GIT_EXEC_PATH", "LD_PRELOAD", "EDITOR", "PAGER",
                 "XDG_CONFIG_HOME", "GIT_TRACE", "SSH_AUTH_SOCK", "https_proxy"):  # fmt: skip
        monkeypatch.setenv(name, "inherited")
    ours = door.environment()
    assert "inherited" not in ours.values()
    assert ours["HOME"] == str(door.home)
    assert {name for name in ours if not name.startswith(("GIT_", "LC_"))} == {"PATH", "HOME"}
    networked = door.environment(remote_of("https://github.com/a/b"))
    assert {name for name, value in networked.items() if value == "inherited"} == {"SSH_AUTH_SOCK", "https_proxy"}


def test_the_environment_is_what_git_really_gets(door: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "inherited")
    said = door.run(["-c", "alias.tell=!env", "tell"]).decode()
    assert f"HOME={door.home}" in said
    assert "inherited" not in said
    assert TOKEN not in said


def test_the_token_is_for_network_commands_alone(door: Git) -> None:
    assert TOKEN not in str(door.environment())
    assert door.environment(remote_of("https://github.com/a/b"))["NECROCODE_GIT_TOKEN"] == TOKEN
    assert "NECROCODE_GIT_TOKEN" not in Git(door.home).environment(remote_of("https://github.com/a/b"))
    assert TOKEN not in repr(door)


def test_askpass_tells_user_and_token(door: Git) -> None:
    environment = door.environment(remote_of("https://github.com/a/b"))
    answers = [
        subprocess.run(
            [environment["GIT_ASKPASS"], f"{what}github.com': "],
            env=environment,
            capture_output=True,
            check=True,
        ).stdout
        for what in ("Username for 'https://", "Password for 'https://x-access-token@")
    ]
    assert answers == [b"x-access-token\n", f"{TOKEN}\n".encode()]
    assert not any(TOKEN in file.read_text() for file in door.home.iterdir())


def test_hostile_settings_of_the_callers_home_are_not_read(
    door: Git, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    program = script(tmp_path / "program", trace)
    settings_file = (
        f"[core]\n\thooksPath = {script(tmp_path / 'hooks/post-checkout', trace).rpartition('/')[0]}\n"
        f"\tfsmonitor = {program}\n\tattributesFile = {tmp_path / 'attributes'}\n"
        f'[filter "evil"]\n\tsmudge = {program}\n\tclean = {program}\n\trequired = true\n'
        f"[diff]\n\texternal = {program}\n[alias]\n\thello = !{program}\n"
    )
    (tmp_path / "attributes").write_text("* filter=evil\n")
    home = Path(os.environ["HOME"])
    (home / ".gitconfig").write_text(settings_file)
    (home / "xdg/git").mkdir(parents=True)
    (home / "xdg/git/config").write_text(settings_file)
    (home / "more").write_text(settings_file)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "more"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", program)
    subprocess.run(["git", "status"], cwd=repository, check=True, capture_output=True)
    assert trace.exists(), "the settings are hostile indeed"
    trace.unlink()

    checkout = Repository(door, repository)
    commit = write(checkout, FileChange("calc.py", content=b"new\n"))
    checkout.run("checkout", "--quiet", "--detach", commit)
    (repository / "calc.py").write_text("dirty\n")
    checkout.run("status")
    checkout.diff(f"{commit}^", commit)
    checkout.reset_hard(commit)
    with pytest.raises(GitError, match="hello"):
        checkout.run("hello")
    assert not trace.exists()
    assert (repository / "calc.py").read_text() == "new\n"


def test_hooks_and_monitors_of_the_repository_itself_are_not_run(checkout: Repository, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hooks = checkout.path / ".git/hooks"
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "pre-commit", "post-commit"):
        script(hooks / hook, trace)
    git(checkout.path, "config", "core.fsmonitor", script(tmp_path / "monitor", trace))
    git(checkout.path, "config", "core.hooksPath", str(hooks))
    git(checkout.path, "config", "diff.external", script(tmp_path / "differ", trace))
    trace.unlink(missing_ok=True)
    commit = write(checkout, FileChange("calc.py", content=b"new\n"))
    checkout.run("checkout", "--quiet", "--detach", commit)
    checkout.run("status")
    checkout.diff(f"{commit}^", commit)
    checkout.move_ref("refs/heads/other", commit, expected=None)
    checkout.reset_hard(f"{commit}^")
    checkout.remove_untracked()
    assert not trace.exists()


@pytest.mark.parametrize("url", ["ext::sh -c 'touch TRACE'", "fd::3"])
def test_helper_protocols_are_refused_even_where_the_repository_allows_them(
    checkout: Repository, tmp_path: Path, url: str
) -> None:
    git(checkout.path, "config", "protocol.ext.allow", "always")
    git(checkout.path, "config", "protocol.fd.allow", "always")
    trace = tmp_path / "trace"
    with pytest.raises(GitError, match="remote helper"):
        checkout.run("ls-remote", "--", url.replace("TRACE", str(trace)), network=True)
    assert not trace.exists()


def test_a_repository_that_belongs_to_someone_else_can_be_used(checkout: Repository) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    main = git(checkout.path, "rev-parse", "main")
    for path in (checkout.path, checkout.path / ".git"):
        os.chown(path, 65534, 65534)
    with pytest.raises(subprocess.CalledProcessError):
        git(checkout.path, "rev-parse", "main")
    assert checkout.run("rev-parse", "HEAD").decode().strip() == main


# --- its home


def test_preparing_mends_what_is_wrong_and_leaves_what_is_right(door: Git) -> None:
    before = {file.name: (file.read_text(), file.stat().st_mtime_ns) for file in door.home.iterdir()}
    door.prepare()
    assert {file.name: (file.read_text(), file.stat().st_mtime_ns) for file in door.home.iterdir()} == before
    (door.home / "gitconfig").write_text("[core]\n\thooksPath = /tmp\n")
    (door.home / "askpass").chmod(0o777)
    door.prepare()
    assert {file.name: file.read_text() for file in door.home.iterdir()} == {
        name: was[0] for name, was in before.items()
    }
    assert stat.S_IMODE((door.home / "askpass").stat().st_mode) == 0o700


def test_24_threads_prepare_one_home(tmp_path: Path) -> None:
    door = Git(tmp_path / "new")
    assert at_once(lambda _: door.prepare(), range(24)) == [None] * 24
    assert sorted(file.name for file in door.home.iterdir()) == ["askpass", "gitconfig"]


# --- how it ends


def test_a_failure_is_typed_and_says_gits_last_words(checkout: Repository) -> None:
    with pytest.raises(GitError, match=r"^git rev-parse failed: fatal: .*no-such-thing") as caught:
        checkout.run("rev-parse", "no-such-thing")
    assert isinstance(caught.value, RunnerError)
    assert "no-such-thing" in caught.value.output


def test_a_silent_failure_is_told_too(checkout: Repository) -> None:
    with pytest.raises(GitError, match="it said nothing"):
        checkout.run("rev-parse", "--quiet", "--verify", "none")


def test_time_that_is_used_up_starts_nothing(checkout: Repository, tmp_path: Path) -> None:
    clock = FakeClock()
    deadline = Deadline(10, clock)
    clock.sleep(11)
    with pytest.raises(RunnerTimeoutError, match="before it could run git"):
        checkout.git.run(["-c", f"alias.x=!touch '{tmp_path / 'trace'}'", "x"], deadline=deadline)
    assert not (tmp_path / "trace").exists()


def test_git_is_stopped_with_all_its_children_at_the_time_limit(door: Git, tmp_path: Path) -> None:
    marker = f"git-child-{tmp_path.name}"
    slow = f"alias.slow=!sh -c 'while :; do sleep 600; done' {marker} & sh -c 'while :; do sleep 600; done' {marker}"
    with pytest.raises(RunnerTimeoutError, match="stopped after"):
        door.run(["-c", slow, "slow"], deadline=Deadline(0.3))
    assert_gone(marker)


def test_what_a_flood_of_messages_leaves_is_small_and_has_the_end(door: Git) -> None:
    with pytest.raises(GitError, match="the end") as caught:
        door.run(["-c", "alias.flood=!yes x | head -c 9000000 >&2; echo fatal: the end >&2; exit 1", "flood"])
    assert len(caught.value.output) < 300_000


def test_a_flood_of_messages_does_not_outlast_the_time_limit(door: Git) -> None:
    with pytest.raises(RunnerTimeoutError, match="stopped after"):
        door.run(["-c", "alias.flood=!yes >&2", "flood"], deadline=Deadline(0.3))


def test_output_without_end_is_stopped(door: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner._git.pipes.MOST_OUTPUT_BYTES", 1_000_000)
    with pytest.raises(GitError, match="printed more than 1000000 bytes"):
        door.run(["-c", "alias.flood=!yes", "flood"])


def test_input_of_any_size_is_given_and_need_not_be_read(door: Git) -> None:
    content = b"0123456789" * 100_000
    assert door.run(["-c", "alias.copy=!cat; :", "copy"], stdin=content) == content
    assert door.run(["-c", "alias.deaf=!exec <&-; echo done; :", "deaf"], stdin=content) == b"done\n"


def test_no_git_is_told_with_what_to_do(door: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkspacePreparationError, match="Install git"):
        door.run(["version"])


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for this machine, from an authority that git is told to trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_the_token_is_not_sent_over_plain_http(door: Git) -> None:
    with serving([Answer(401, "who are you?", {"WWW-Authenticate": 'Basic realm="git"'})]) as server:
        with pytest.raises(GitError):
            ask(door, f"{server.url}/r.git")
        assert server.requests
        assert [request.headers.get("authorization") for request in server.requests] == [None] * len(server.requests)


def test_the_token_reaches_the_server_and_no_message(door: Git, tls: ssl.SSLContext) -> None:
    refusal = {"WWW-Authenticate": 'Basic realm="git"', "Content-Type": "text/plain"}
    answers = [Answer(401, "who are you?", refusal), Answer(403, f"no entry with {TOKEN}\n", refusal)]
    with serving(answers, tls=tls) as server:
        with pytest.raises(GitError) as caught:
            ask(door, f"{server.url}/r.git")
        sent = server.requests[1].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == f"x-access-token:{TOKEN}"
    assert "no entry with ***" in caught.value.output
    assert TOKEN not in f"{caught.value}{caught.value.output}"


def test_a_token_as_the_user_of_a_url_is_in_no_message(door: Git) -> None:
    with serving([Answer(403, "no")]) as server, pytest.raises(GitError, match="403") as caught:
        ask(door, f"{server.url.replace('//', '//0ther-t0ken@')}/r.git")
    assert "0ther-t0ken" not in f"{caught.value}{caught.value.output}"


def test_a_token_in_a_url_is_refused_by_git_itself(door: Git) -> None:
    with pytest.raises(GitError, match="credentials") as caught:
        door.run(["ls-remote", "--", f"https://me:{TOKEN}@127.0.0.1:1/r"], address="https://127.0.0.1:1/r")
    assert TOKEN not in f"{caught.value}{caught.value.output}"


# --- commits


def test_a_commit_is_written_and_no_file_touched(checkout: Repository) -> None:
    base = git(checkout.path, "rev-parse", "HEAD")
    commit = write(checkout, FileChange("new/ファイル.txt", content="内容".encode()), message="件名\n\nbody\n")
    assert git(checkout.path, "rev-parse", REF, f"{REF}^", "HEAD").split() == [commit, base, base]
    assert git(checkout.path, "status", "--porcelain") == ""
    assert git(checkout.path, "show", "-s", "--format=%an|%ae|%at|%cn|%ce|%ct|%B", commit) == (
        "Ålice 山田|alice@example.com|1700000000|Ålice 山田|alice@example.com|1700000000|件名\n\nbody"
    )
    assert files_at(checkout.path, commit) == {
        **{name: text.encode() for name, text in CALC_FILES.items()},
        "new/ファイル.txt": "内容".encode(),
    }
    assert git(checkout.path, "fsck", "--strict") == ""


def test_bytes_modes_renames_and_removals_are_kept_exactly(checkout: Repository) -> None:
    commit_files(checkout.path, {"dir/a": "a", "old.py": "old", "gone.txt": "x"})
    calc = git(checkout.path, "rev-parse", "HEAD:old.py")
    commit = write(
        checkout,
        FileChange("dir", content=b"a file now"),
        FileChange("dir/a"),
        FileChange("old.py"),
        FileChange("sub/moved.py", mode=MODE_EXECUTABLE, oid=calc),
        FileChange("gone.txt"),
        FileChange("empty", content=b""),
        FileChange("bytes", content=b"\0\xff\r\n\xef\xbb\xbfno end"),
    )
    found = files_at(checkout.path, commit)
    assert found["dir"] == b"a file now"
    assert found["empty"] == b""
    assert found["bytes"] == b"\0\xff\r\n\xef\xbb\xbfno end"
    assert found["sub/moved.py"] == b"old"
    assert set(found) == {*CALC_FILES, "dir", "empty", "bytes", "sub/moved.py"}
    assert checkout.files(commit)["sub/moved.py"] == (TreeEntry(MODE_EXECUTABLE, calc), 3)


NAMES = st.lists(
    st.text(st.sampled_from('aZ "\'\\é日🎉\udcff#*?~$%-'), min_size=1, max_size=5).map(lambda text: f"x{text}"),
    min_size=1, max_size=3,
).map("/".join)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.binary(max_size=50), min_size=1, max_size=4), st.text(max_size=20))
def test_any_bytes_under_any_name_come_out_as_they_went_in(
    checkout: Repository, files: dict[str, bytes], message: str
) -> None:
    if any(f"{one}/" in other for one in files for other in files):
        return  # a file and a folder of one name
    message = message.encode(errors="ignore").decode().replace("\0", "")
    git(checkout.path, "update-ref", "-d", REF)
    commit = write(checkout, *(FileChange(name, content=content) for name, content in files.items()), message=message)
    tree = checkout.files(commit)
    with checkout.objects() as reader:
        assert {name: reader.blob(tree[name][0].oid) for name in files} == files
        assert set(tree) == {*files, *CALC_FILES}


def test_a_base_that_is_not_there_makes_no_ref(checkout: Repository) -> None:
    with pytest.raises(GitError, match="fast-import"):
        write(checkout, FileChange("a", content=b"a"), base="0" * 39 + "1")
    assert git(checkout.path, "for-each-ref", "refs/necrocode") == ""


def test_the_patch_between_commits_applies(checkout: Repository, tmp_path: Path) -> None:
    base = git(checkout.path, "rev-parse", "HEAD")
    oid = git(checkout.path, "rev-parse", "HEAD:calc.py")
    commit = write(checkout, FileChange("calc.py"), FileChange("日 本.py", oid=oid), FileChange("b", content=b"\0\1"))
    patch = checkout.diff(base, commit)
    assert b"rename to \xe6\x97\xa5 \xe6\x9c\xac.py" in patch
    other = make_repository(tmp_path / "other")
    git(other, "apply", "--index", stdin=patch)
    assert git(other, "write-tree") == git(checkout.path, "rev-parse", f"{commit}^{{tree}}")


def test_a_ref_moves_only_from_where_it_is_expected(checkout: Repository) -> None:
    first = git(checkout.path, "rev-parse", "HEAD")
    second = write(checkout, FileChange("a", content=b"a"))
    checkout.move_ref("refs/heads/b", first, expected=None)
    with pytest.raises(GitError):
        checkout.move_ref("refs/heads/b", second, expected=None)
    with pytest.raises(GitError):
        checkout.move_ref("refs/heads/b", second, expected=second)
    checkout.move_ref("refs/heads/b", second, expected=first)
    assert git(checkout.path, "rev-parse", "b") == second


def test_one_of_many_moves_wins(checkout: Repository) -> None:
    first = git(checkout.path, "rev-parse", "HEAD")
    moves = at_once(lambda number: checkout.move_ref("refs/heads/b", first, expected=None) or number, range(8))
    assert sum(isinstance(moved, int) for moved in moves) == 1
    assert all(isinstance(moved, int | GitError) for moved in moves)


def test_a_checkout_is_made_clean_whatever_is_in_it(checkout: Repository) -> None:
    (checkout.path / ".gitignore").write_text("*.log\n")
    (checkout.path / "a.log").write_text("x")
    (checkout.path / "calc.py").unlink()
    make_repository(checkout.path / "nested")
    checkout.reset_hard("HEAD")
    checkout.remove_untracked()
    assert sorted(path.name for path in checkout.path.iterdir()) == [".git", *sorted(CALC_FILES)]


# --- reading


def test_objects_are_read_by_any_name(checkout: Repository, objects: ObjectReader) -> None:
    head = git(checkout.path, "rev-parse", "HEAD")
    git(checkout.path, "tag", "-a", "v1", "-m", "v1")
    assert objects.resolve("HEAD") == objects.resolve("v1") == objects.resolve("main") == head
    assert objects.tree_of("v1") == git(checkout.path, "rev-parse", "HEAD^{tree}")
    entries = objects.entries(objects.tree_of(head))
    assert set(entries) == set(CALC_FILES)
    assert entries["calc.py"].is_file
    assert objects.blob(entries["calc.py"].oid) == BROKEN_CALC.encode()
    assert objects.entries(objects.tree_of(head)) is entries


@pytest.mark.parametrize(
    "name", ["none", "refs/heads/none", "0" * 40, "HEAD~9", "a b", "", "--all", "枝", "HEAD:calc.py"]
)
def test_what_is_not_there_is_none_and_the_reader_goes_on(objects: ObjectReader, name: str) -> None:
    assert objects.resolve(name) is None
    assert objects.resolve("HEAD") is not None


def test_objects_that_must_be_there_are_missed_with_an_error(objects: ObjectReader) -> None:
    with pytest.raises(GitError, match="is not in"):
        objects.blob("0" * 40)
    with pytest.raises(GitError, match="is not in"):
        objects.tree_of("0" * 40)
    assert objects.entries("0" * 40) == {}


def test_every_kind_of_entry_is_told_apart(checkout: Repository, objects: ObjectReader) -> None:
    head = git(checkout.path, "rev-parse", "HEAD")
    git(checkout.path, "update-index", "--add", "--cacheinfo", f"{MODE_SUBMODULE},{head},module")
    (checkout.path / "link").symlink_to("calc.py")
    (checkout.path / "run.sh").write_text("#!/bin/sh\n")
    (checkout.path / "run.sh").chmod(0o755)
    (checkout.path / os.fsdecode(b"caf\xe9")).write_text("x")
    git(checkout.path, "add", "link", "run.sh", ":(glob)caf*")
    git(checkout.path, "commit", "--quiet", "-m", "kinds")
    entries = objects.entries(objects.tree_of("HEAD"))
    assert {name: (entry.mode, entry.is_file) for name, entry in entries.items() if name not in CALC_FILES} == {
        "module": (MODE_SUBMODULE, False),
        "link": (MODE_SYMLINK, False),
        "run.sh": (MODE_EXECUTABLE, True),
        "caf\udce9": (MODE_FILE, True),
    }
    assert set(checkout.files("HEAD")) == {*CALC_FILES, "link", "run.sh", "caf\udce9"}


def test_closing_twice_is_harmless_and_reading_opens_again(objects: ObjectReader) -> None:
    head = objects.resolve("HEAD")
    objects.close()
    objects.close()
    assert objects.resolve("HEAD") == head


def test_a_reader_whose_git_was_killed_says_so_and_can_be_opened_again(objects: ObjectReader) -> None:
    head = objects.resolve("HEAD")
    assert objects._process is not None
    objects._process.kill()
    objects._process.wait()
    with pytest.raises(GitError, match="it said nothing"):
        objects.resolve("HEAD")
    objects.close()
    assert objects.resolve("HEAD") == head


def test_a_reader_of_no_repository_says_so_each_time(door: Git, tmp_path: Path) -> None:
    with Repository(door, tmp_path).objects() as reader:
        for _ in range(2):
            with pytest.raises(GitError, match="not a git repository"):
                reader.resolve("HEAD")
            reader.close()


def test_repositories_with_sha256_work(door: Git, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--object-format=sha256", "-b", "main", "r")
    commit_files(tmp_path / "r", {"d/a": "a"})
    checkout = Repository(door, tmp_path / "r")
    commit = write(checkout, FileChange("d/b", content=b"b"))
    checkout.move_ref("refs/heads/b", commit, expected=None)
    with checkout.objects() as reader:
        folder = reader.entries(reader.tree_of("b"))["d"]
        assert {name: reader.blob(entry.oid) for name, entry in reader.entries(folder.oid).items()} == {
            "a": b"a",
            "b": b"b",
        }


# --- remotes


def of_sha256(folder: Path) -> Path:
    (folder / "from").mkdir()
    git(folder / "from", "init", "--quiet", "--object-format=sha256")
    commit_files(folder / "from", {"a": "1"})
    git(folder, "clone", "--quiet", str(folder / "from"), "clone")
    return folder / "clone"


def of_worktree(folder: Path) -> Path:
    git(make_repository(folder / "from"), "worktree", "add", "--quiet", "--detach", str(folder / "linked"))
    return folder / "linked"


def of_part(option: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = make_repository(folder / "from")
        commit_files(source, {"b/c": "2"})
        git(source, "config", "uploadpack.allowFilter", "true")
        git(folder, "clone", "--quiet", option, source.as_uri(), "clone")
        return folder / "clone"

    return make


@pytest.mark.parametrize(
    "make",
    [of_sha256, of_worktree, of_part("--depth=1"), of_part("--filter=blob:none"), of_part("--filter=tree:0")],
    ids=["sha256", "worktree", "shallow", "without blobs", "without trees"],
)
def test_a_commit_is_pushed_and_fetched_whatever_kind_of_repository_has_it(
    door: Git, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    repository, remote = Repository(door, make(tmp_path)), tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(tmp_path / "from"), str(remote))
    git(repository.path, "remote", "add", "elsewhere", "../remote.git")
    base = git(repository.path, "rev-parse", "HEAD")
    made = write(repository, FileChange("new", content=b"x"))
    repository.run("push", "--", "elsewhere", f"{made}:refs/heads/x", network=True)
    theirs = git(remote, "commit-tree", "-p", made, "-m", "y", f"{made}^{{tree}}")
    git(remote, "update-ref", "refs/heads/x", theirs)
    assert repository.fetch_commit(str(remote), "refs/heads/x", known=(made,)) == theirs
    assert git(repository.path, "log", "--format=%H", theirs, "--not", base).split() == [theirs, made]
    assert list(door.home.glob("apart-*")) == []


def test_what_a_killed_push_has_left_is_removed_a_day_later(door: Git, tmp_path: Path) -> None:
    for age in (0, 90_000):
        folder = door.home / f"apart-{age}"
        folder.mkdir()
        (folder / "objects").symlink_to(tmp_path)
        os.utime(folder, (time.time() - age,) * 2)
    door.prepare()
    assert [folder.name for folder in door.home.glob("apart-*")] == ["apart-0"]
    assert tmp_path.is_dir()


# --- trees that stand for too much


def nested(folder: Path, depth: int, content: bytes = b"boom") -> str:
    """A commit of ten names for ten names for ... one file."""
    oid, kind = git(folder, "hash-object", "-w", "--stdin", stdin=content), "100644 blob"
    for _ in range(depth):
        entries = "".join(f"{kind} {oid}\tf{number}\n" for number in range(10))
        oid, kind = git(folder, "mktree", stdin=entries.encode()), "040000 tree"
    return git(folder, "commit-tree", "-m", "bomb", oid)


def test_a_tree_that_stands_for_more_than_there_is_is_not_checked_out(
    checkout: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("necrocode.agent_runner._git.sizes.MOST_ENTRIES", 20_000)
    with pytest.raises(TreeTooLargeError, match="more than 20000 files and folders"):
        checkout.check_size(nested(checkout.path, 10))
    many_names = nested(checkout.path, 2, b"0123456789")
    checkout.check_size(many_names, room_bytes=1000)
    with pytest.raises(TreeTooLargeError, match="more than 999 bytes") as caught:
        checkout.check_size(many_names, room_bytes=999)
    assert "room" in str(caught.value.hint)


# --- a checkout that is brought


def test_a_checkout_is_looked_at(door: Git, repository: Path) -> None:
    assert open_checkout(door, repository).head_branch == "main"
    assert open_checkout(door, repository).origin_url is None
    git(repository, "remote", "add", "origin", "https://host/r.git")
    git(repository, "checkout", "--quiet", "--detach")
    seen = open_checkout(door, repository)
    assert (seen.root, seen.origin_url, seen.head_branch) == (repository, "https://host/r.git", None)


def test_a_place_that_is_no_checkout_is_told(door: Git, repository: Path, tmp_path: Path) -> None:
    (repository / "sub").mkdir()
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")
    for path, words in (
        (tmp_path / "none", "does not exist"),
        (repository / "sub", "is not the top of a git checkout"),
        (tmp_path / "bare.git", "is a bare repository"),
    ):
        with pytest.raises(WorkspacePreparationError, match=words) as caught:
            open_checkout(door, path)
        assert str(path) in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize(("name", "content"), [("config", "[junk"), ("config", "junk"), ("HEAD", "junk\n")])
def test_a_checkout_whose_own_files_are_broken_is_told(door: Git, repository: Path, name: str, content: str) -> None:
    (repository / ".git" / name).write_text(content)
    with pytest.raises(UnusableCheckoutError, match=r"cannot be read as a git checkout|is not the top") as caught:
        open_checkout(door, repository)
    assert "\n" not in str(caught.value)


def test_a_checkout_that_does_not_let_itself_be_read_is_left_when_the_time_is_over(door: Git, repository: Path) -> None:
    os.mkfifo(repository / ".git/packed-refs")
    with pytest.raises(RunnerTimeoutError, match=r"task's 0\.5 seconds are used up"):
        open_checkout(door, repository, Deadline(0.5))


@pytest.mark.parametrize("path", ["/" + "a" * 5000, "/" + "a" * 300, "/a\0b"])
def test_a_path_that_the_system_does_not_take_is_no_checkout(door: Git, path: str) -> None:
    with pytest.raises(UnusableCheckoutError):
        open_checkout(door, Path(path))
