from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import ConfigurationError, RunnerConfig, TestExecutionError, TestResult
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Deadline
from necrocode.agent_runner.sandbox import ladder
from necrocode.agent_runner.sandbox.confined import ConfinedSandbox, Policy
from necrocode.agent_runner.sandbox.ladder import LadderSandbox, confinements
from necrocode.agent_runner.sandbox.launching import LAUNCHER
from necrocode.agent_runner.sandbox.limits import Limits
from necrocode.agent_runner.sandbox.visible import readable_paths, refused_hooks
from necrocode.agent_runner.wiring import build_services
from tests.support.bench import GOOD_ANSWER, Bench
from tests.support.sandboxes import reason_against

ALL = ("sandlock", "bwrap")


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path / "state", Limits())


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "_FOUND", {})
    monkeypatch.setattr(ladder, "find_spec", lambda _name: None)
    monkeypatch.setattr(ladder.shutil, "which", lambda _name: None)


def run(sandbox: Any, checkout: Path, *commands: str, **environment: str) -> TestResult:
    options: dict[str, Any] = {"tree": "t", "environment": environment, "fail_fast": True, "deadline": Deadline(60)}
    result: TestResult = sandbox.run_tests(commands, checkout, **options)
    return result


def best(policy: Policy, root: Path, walls: Sequence[str] = ALL) -> ConfinedSandbox:
    """The first that this machine has."""
    for wall in walls:
        confinement = confinements(wall)[0]  # type: ignore[arg-type]
        if not reason_against(confinement):
            return ConfinedSandbox(root, confinement, policy)
    pytest.skip(f"none of {walls} works here")


# --- which one


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_sandbox_the_error_says_what_to_install(tmp_path: Path, policy: Policy) -> None:
    sandbox = LadderSandbox(("sandlock", "bwrap"), tmp_path / "layers", policy)
    with pytest.raises(ConfigurationError) as caught:
        sandbox.ensure_available()
    for part in ("sandlock: is not installed", "bwrap: is not installed", "pip install 'necrocode[sandbox]'",
                 "apt-get install bubblewrap", "sandbox: none"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_sandbox_the_model_is_not_asked(bench: Bench) -> None:
    result = bench.run(services={}, task=bench.task(timeout_seconds=60))
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("ConfigurationError", "prepare")
    assert result.test_result is None


@pytest.mark.usefixtures("nothing_installed")
def test_none_has_to_be_said_and_is_told(bench: Bench) -> None:
    result = bench.run(GOOD_ANSWER, sandbox="none")
    assert result.status == "done", result.error
    assert result.test_result is not None
    assert result.test_result.sandbox == "none"


def test_it_is_tried_out_once_for_a_file_system(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(ladder, "_FOUND", {})
    monkeypatch.setattr(ladder, "find_spec", lambda _name: True)
    monkeypatch.setattr(ladder, "why_not", lambda confinement, _root: tried.append(confinement) or "")
    for name in ("a", "b"):
        sandbox = LadderSandbox(("sandlock",), tmp_path / name, policy)
        sandbox.ensure_available()
        assert sandbox.identity.startswith("sandlock")
    assert tried == confinements("sandlock")[:1]


def test_a_sandbox_that_fails_later_is_an_error_and_not_exchanged(
    tmp_path: Path, policy: Policy, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = best(policy, tmp_path / "layers", ["bwrap"])
    assert run(sandbox, repository, "true").success
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bwrap").write_text("#!/nowhere\n")
    (tmp_path / "bin/bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(TestExecutionError, match="cannot be confined"):
        run(sandbox, repository, "true")


def test_docker_needs_an_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sandbox_image"):
        build_services(RunnerConfig(state_dir=tmp_path, sandbox="docker"), SYSTEM_CLOCK)


def test_an_engine_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    config = RunnerConfig(state_dir=tmp_path, sandbox="docker", sandbox_image="image")
    with pytest.raises(ConfigurationError) as caught:
        build_services(config, SYSTEM_CLOCK).sandbox.ensure_available()
    assert str(caught.value) == (
        "The Docker Engine does not answer: Connection refused. Start it, or name its address in DOCKER_HOST."
    )


def test_an_image_that_cannot_be_had_is_told_where_another_sandbox_takes_its_place(
    bench: Bench, tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = best(policy, tmp_path / "layers").name
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    result = bench.run(GOOD_ANSWER, sandbox="auto", sandbox_image="image")
    told = f"sandbox_image is not used, tests run in {used}: The Docker Engine does not answer: Connection refused."
    assert [warning for warning in result.warnings if warning.startswith(told)], result.warnings


# --- what is shown


def test_a_path_of_the_operators_is_seen_and_not_written(tmp_path: Path, policy: Policy, repository: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/tool").write_text("tool\n")
    (tmp_path / "tools").chmod(0o777)
    tool = tmp_path / "tools/tool"
    command = f"cat {tool}; touch {tool.parent}/new 2>/dev/null || echo kept"
    sandbox = best(replace(policy, read_paths=(str(tool.parent),)), tmp_path / "layers")
    assert run(sandbox, repository, command).commands[0].output == "tool\nkept\n"
    assert run(best(policy, tmp_path / "layers"), repository, f"cat {tool}").commands[0].exit_code == 1


@pytest.mark.parametrize("path", ["/", "home", "state", ".", "link"])
def test_a_path_that_would_show_what_is_hidden_is_refused(tmp_path: Path, path: str) -> None:
    hidden = [tmp_path / "home/me", tmp_path / "state"]
    for folder in hidden:
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="sandbox_read_paths"):
        readable_paths([str(tmp_path / path)], hidden=hidden)


def test_no_folder_on_the_path_shows_what_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/.cargo/bin").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "home")
    folders = [tmp_path, tmp_path / "home", tmp_path / "alias", tmp_path / "alias/.cargo/bin", Path("/")]
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    shown = readable_paths([], hidden=[tmp_path / "home"])
    assert [path for path in shown if path.startswith(str(tmp_path))] == [
        str(tmp_path / "alias"), str(tmp_path / "home/.cargo/bin"),
    ]  # fmt: skip
    assert "/" not in shown


def test_a_folder_on_the_path_that_cannot_be_looked_into_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = readable_paths([], hidden=[]), refused_hooks()
    beyond_reach = f"/{'x' * 300}"  # to look there is an error, also for root
    monkeypatch.setenv("PATH", f"{beyond_reach}/bin:{beyond_reach}/shims:{os.environ['PATH']}")
    assert (readable_paths([], hidden=[]), refused_hooks()) == before


def test_state_in_a_folder_of_the_system_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="state_dir"):
        readable_paths([], hidden=[Path("/usr/share")])


def test_the_network_is_there_when_it_is_allowed(tmp_path: Path, policy: Policy, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        for allowed, wall in ((True, "sandlock"), (True, "bwrap"), (False, "sandlock"), (False, "bwrap")):
            sandbox = best(replace(policy, has_network=allowed), tmp_path / "layers", [wall])
            assert run(sandbox, repository, f'python3 -c "{program}"').success is allowed


@pytest.mark.parametrize("wall", ALL)
def test_pip_of_pyenv_does_not_fail_for_what_pyenv_would_write(
    tmp_path: Path, policy: Policy, repository: Path, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "pyenv/pyenv.d/exec/pip-rehash.bash"
    for folder in (hook.parent, tmp_path / "pyenv/libexec", tmp_path / "pyenv/shims"):
        folder.mkdir(parents=True)
    hook.write_text("echo it is not writable; exit 1\n")
    shim = tmp_path / "pyenv/shims/pip"
    shim.write_text(f"#!/bin/sh\n. {hook}\necho installed\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    assert run(best(policy, tmp_path / "layers", [wall]), repository, "pip").commands[0].output == "installed\n"


# --- the launcher


def test_a_launcher_that_was_killed_is_started_again(tmp_path: Path, policy: Policy, repository: Path) -> None:
    sandbox = best(policy, tmp_path / "layers")
    assert run(sandbox, repository, "true").success
    assert LAUNCHER._process is not None
    os.kill(LAUNCHER._process.pid, signal.SIGKILL)
    LAUNCHER._process.wait()
    assert run(sandbox, repository, "true").success


def test_the_launchers_environment_is_empty(tmp_path: Path, policy: Policy, repository: Path) -> None:
    assert run(best(policy, tmp_path / "layers"), repository, "true").success
    assert LAUNCHER._process is not None
    assert Path(f"/proc/{LAUNCHER._process.pid}/environ").read_bytes() == b""


def test_a_sandlock_that_cannot_be_loaded_is_told_and_keeps_nobody_from_bwrap(
    tmp_path: Path, policy: Policy, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake/sandlock").mkdir(parents=True)
    (tmp_path / "fake/sandlock/__init__.py").write_text(
        "import pwd\nfrom pathlib import Path\npwd.getpwuid = {}.__getitem__\n"  # no entry: as under docker run --user
        "raise RuntimeError(f'home is {Path.home()}.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "fake")
    LAUNCHER.close()
    with pytest.raises(TestExecutionError, match=r"does not start: RuntimeError: home is /\.$"):
        run(ConfinedSandbox(tmp_path / "layers", confinements("sandlock")[0], policy), repository, "true")
    assert run(best(policy, tmp_path / "layers", ["bwrap"]), repository, "true").success
