from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from necrocode.agent_runner import TestExecutionError, TestResult
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox import layer as layers
from necrocode.agent_runner.sandbox.layer import LayerKind, open_layer, overlay_works
from necrocode.agent_runner.sandbox.plain import PlainSandbox, command_environment
from tests.contracts.sandbox_contract import snapshot
from tests.support.clocks import FakeClock
from tests.support.repositories import BROKEN_CALC, CALC_FILES, git

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "layers"


@pytest.fixture(params=get_args(LayerKind))
def kind(request: pytest.FixtureRequest, root: Path) -> LayerKind:
    root.mkdir()
    if request.param == "overlay" and not overlay_works(root):
        pytest.skip("no overlay can be mounted here")
    kind: LayerKind = request.param
    return kind


@pytest.fixture
def worktree(repository: Path, tmp_path: Path) -> Path:
    """A checkout whose ``.git`` is a file, as a slot's is."""
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "slot"))
    return tmp_path / "slot"


@pytest.fixture
def no_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "overlay_works", lambda _root: False)


def run(root: Path, checkout: Path, *commands: str, **options: Any) -> TestResult:
    options = {"tree": "t", "environment": {}, "fail_fast": True, "deadline": Deadline(60)} | options
    return PlainSandbox(root).run_tests(commands, checkout, **options)


def output(checkout: Path, root: Path, kind: LayerKind, command: str) -> str:
    """What a command says at the top of a layer of this kind."""
    with open_layer(checkout, root, kind=kind) as layer:
        done = subprocess.run(
            layer.argv(command),
            cwd=layer.top,
            env=command_environment(layer, {}),
            capture_output=True,
            check=True,
        )
    return done.stdout.decode()


# --- both kinds of layers


@pytest.mark.parametrize("place", ["repository", "worktree"])
def test_a_layer_shows_the_checkout_without_git(
    request: pytest.FixtureRequest, root: Path, kind: LayerKind, place: str
) -> None:
    checkout: Path = request.getfixturevalue(place)
    before = snapshot(checkout)
    assert output(checkout, root, kind, "find . -name .git -prune -type f -o -type f -print | sort; cat calc.py") == (
        f"./calc.py\n./test_calc.py\n{BROKEN_CALC}"
    )
    assert output(checkout, root, kind, "ls -A .git 2>/dev/null; git status 2>/dev/null; true") == ""
    assert output(checkout, root, kind, "rm -rf .git; mkdir -p .git 2>/dev/null; echo x > .git/config; true") == ""
    assert snapshot(checkout) == before
    assert git(checkout, "status", "--porcelain") == ""


def test_git_folders_further_down_are_files_like_any(repository: Path, root: Path, kind: LayerKind) -> None:
    (repository / "vendor/.git").mkdir(parents=True)
    (repository / "vendor/.git/HEAD").write_text("x")
    assert output(repository, root, kind, "cat vendor/.git/HEAD") == "x"


def test_what_is_written_is_dropped_and_links_are_not_followed(
    repository: Path, root: Path, kind: LayerKind, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    (repository / "link").symlink_to(tmp_path / "outside")
    before = snapshot(repository)
    assert output(repository, root, kind, "readlink link; rm link calc.py; ln -s / root; mkdir d; chmod 000 d") == (
        f"{tmp_path / 'outside'}\n"
    )
    assert snapshot(repository) == before
    assert (tmp_path / "outside/kept").read_text() == "kept"
    assert list(root.iterdir()) == []


def test_modes_and_times_are_those_of_the_checkout(repository: Path, root: Path, kind: LayerKind) -> None:
    (repository / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (repository / "run.sh").chmod(0o755)
    os.utime(repository / "calc.py", (1000, 1000))
    assert output(repository, root, kind, "./run.sh; stat -c %Y calc.py") == "ran\n1000\n"


@pytest.mark.parametrize("name", ["with space", "日本語", "it's", "$HOME", "a;b", "a=b", "*"])
def test_a_checkout_may_have_any_name(tmp_path: Path, root: Path, kind: LayerKind, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("here")
    assert output(tmp_path / name, root, kind, "ls; cat file") == "file\nhere"


def test_a_layer_is_dropped_when_its_user_fails(repository: Path, root: Path, kind: LayerKind) -> None:
    def fail() -> None:
        with open_layer(repository, root, kind=kind) as layer:
            assert (layer.home.is_dir(), layer.temporary.is_dir(), layer.kind) == (True, True, kind)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(root.iterdir()) == []


# --- which kind


def test_an_overlay_is_taken_where_it_works_and_a_copy_elsewhere(
    repository: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for works, kind in ((True, "overlay"), (False, "copy")):
        monkeypatch.setattr(layers, "overlay_works", lambda _root, works=works: works)
        with open_layer(repository, root) as layer:
            assert layer.kind == kind


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", 'a"b'])
def test_a_name_that_mount_would_misread_means_a_copy(repository: Path, tmp_path: Path, root: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("here")
    result = run(root, tmp_path / name, "cat file")
    assert (result.layer, result.commands[0].output) == ("copy", "here")
    result = run(tmp_path / name / "layers", repository, "ls")
    assert (result.layer, result.commands[0].output) == ("copy", "calc.py\ntest_calc.py\n")


def test_layers_may_lie_inside_the_checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (repository / ".state/layers", repository / "other"):
        result = run(root, repository, "cat calc.py; echo x > calc.py")
        assert (result.success, result.commands[0].output) == (True, BROKEN_CALC)
        assert list(root.iterdir()) == []
        monkeypatch.setattr(layers, "overlay_works", lambda _root: False)
    assert (repository / "calc.py").read_text() == BROKEN_CALC


@pytest.mark.parametrize(
    "program", ["", "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho below\n", "#!/bin/sh\nexec sleep 600\n"],
    ids=["missing", "failing", "lying", "hanging"],
)  # fmt: skip
def test_an_overlay_that_cannot_be_had_is_found_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    root.mkdir()
    (tmp_path / "bin").mkdir()
    if program:
        (tmp_path / "bin/unshare").write_text(program)
        (tmp_path / "bin/unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") if not program else f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(layers, "_PROBE_SECONDS", 0.2)
    assert overlay_works(root) is False
    assert list(root.iterdir()) == []


# --- the sandbox


def test_125_is_an_exit_code_like_any(repository: Path, root: Path) -> None:
    result = run(root, repository, "exit 125", "true", "exit 125", fail_fast=False)
    assert [command.exit_code for command in result.commands] == [125, 0, 125]


def test_a_layer_that_cannot_be_mounted_is_no_test_result(
    repository: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    if not overlay_works(root):
        pytest.skip("no overlay can be mounted here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mount").write_text("#!/bin/sh\necho 'mount: not today' >&2\nexit 32\n")
    (tmp_path / "bin/mount").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(TestExecutionError, match="cannot be mounted: mount: not today"):
        run(root, repository, "true")
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("no_overlay")
def test_a_root_that_cannot_be_made_is_told(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TestExecutionError, match="cannot be started"):
        run(tmp_path / "file/layers", repository, "true")


@pytest.mark.usefixtures("no_overlay")
def test_no_shell_is_told(repository: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TestExecutionError, match="sh"):
        run(root, repository, "true")


def test_what_is_left_of_the_deadline_is_the_limit(repository: Path, root: Path) -> None:
    clock = FakeClock()
    deadline = Deadline(10, clock)
    clock.sleep(11)
    result = run(root, repository, "sleep 600", "true", deadline=deadline, fail_fast=False)
    assert (result.success, [command.timed_out for command in result.commands]) == (False, [True])


def test_a_commands_environment_is_a_few_variables(
    repository: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {"OPENAI_API_KEY": "s", "LC_TIME": "ja_JP.UTF-8", "TZ": "UTC", "PYTHONPATH": "/x"}.items():
        monkeypatch.setenv(name, value)
    with open_layer(repository, root, kind="copy") as layer:
        assert command_environment(layer, {"MY": "own", "CI": "no"}) == {
            "LC_TIME": "ja_JP.UTF-8",
            "TZ": "UTC",
            "PATH": f"{os.defpath}:{Path(sys.executable).parent}",
            "HOME": str(layer.home),
            "TMPDIR": str(layer.temporary),
            "MY": "own",
            "CI": "no",
        }


# --- as another user

AS_NOBODY = """
import json, os, sys
from pathlib import Path
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox import layer
from necrocode.agent_runner.sandbox.plain import PlainSandbox

place, kind, user = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
PlainSandbox(place / "warm").run_tests(  # imports that the other user may not be allowed to make
    ["true"], place / "repo", tree="t", environment={}, fail_fast=False, deadline=Deadline(60)
)
os.setgroups([]); os.setgid(user); os.setuid(user)
if kind == "copy":
    layer.overlay_works = lambda root: False
commands = ["id -u; echo x > calc.py; rm test_calc.py; mkdir -p d/e; touch d/e/f; chmod 000 d/e d", "cat calc.py; ls"]
result = PlainSandbox(place / "layers").run_tests(
    commands, place / "repo", tree="t", environment={}, fail_fast=False, deadline=Deadline(60)
)
left = [str(path) for path in (place / "layers").iterdir()]
print(json.dumps([result.layer, [[one.exit_code, one.output] for one in result.commands], left]))
"""


@pytest.fixture
def place_of_nobody() -> Iterator[Path]:
    """A folder that an ordinary user can reach and write to, with a checkout in it."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "repo").mkdir()
        (place / "repo/.git").mkdir()
        for file, content in CALC_FILES.items():
            (place / "repo" / file).write_text(content)
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield place


@pytest.mark.parametrize("kind", ["any", "copy"])
def test_an_ordinary_user_can_run_tests_and_leaves_nothing(place_of_nobody: Path, kind: str) -> None:
    before = snapshot(place_of_nobody / "repo")
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(place_of_nobody), kind, str(NOBODY)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used, results, left = json.loads(done.stdout)
    assert used in ({"copy"} if kind == "copy" else {"copy", "overlay"})
    assert results == [[0, f"{NOBODY}\n"], [0, "x\ncalc.py\nd\n"]]
    assert left == []
    assert snapshot(place_of_nobody / "repo") == before


# --- layers of processes that died


def test_layers_of_dead_processes_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    root, checkout = tmp_path / "layers", tmp_path / "checkout"
    checkout.mkdir()
    for name in ("layer-dead", "layer-new-young", "layer-held", "another"):
        (root / name / "top").mkdir(parents=True)
        (root / name / "top" / "file").write_text("x")
    (root / "layer-dead" / "top").chmod(0)
    for name in ("layer-dead", "layer-held", "another"):
        os.utime(root / name, (0, 0))
    handle = os.open(root / "layer-held", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with open_layer(checkout, root, kind="copy") as layer:
            left = {path.name for path in root.iterdir()} - {layer.folder.name}
    finally:
        os.close(handle)
    assert left == {"layer-new-young", "layer-held", "another"}
