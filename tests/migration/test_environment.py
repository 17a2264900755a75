"""``necrocode migrate env``: lines that a shell can run as they are."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from necrocode.agent_runner import RunnerConfig
from necrocode.migration.environment import Shell, migrate_environment
from tests.docs.markdown import Document
from tests.docs.snippets import is_old_side
from tests.support.shared import ROOT, migration_guide

SECRET = "made-up-s3cr3t"
OLD = {"MESSAGE_BUS_URL": f"http://user:{SECRET}@bus:5000", "KIRO_URL": "http://kiro:6000", "GIT_TOKEN": SECRET}
NEW = {
    "TASK_REGISTRY_URL": "http://bus:8001",
    "REPO_POOL_URL": "http://bus:8002",
    "ARTIFACT_STORE_URL": "http://bus:8003",
}


def environment_lines(environ: dict[str, str], *, shell: Shell = "sh", is_embedded: bool = False) -> list[str]:
    return list(migrate_environment(environ, shell=shell, is_embedded=is_embedded).lines)


_OF_THE_SHELL = {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE", "PATH", "USER", "HOME"}


def after(environ: dict[str, str], lines: list[str], shell: str = "sh") -> dict[str, str]:
    """The environment that a shell has once it has run the lines."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run(
        [program, "-c", "\n".join([*lines, "/usr/bin/env -0"])], env=environ, capture_output=True, text=True, check=True
    )
    found = dict(one.partition("=")[::2] for one in done.stdout.split("\0") if one)
    return {name: value for name, value in found.items() if name not in _OF_THE_SHELL}


@pytest.mark.parametrize("shell", ["sh", "fish"])
def test_a_shell_that_runs_the_lines_has_the_new_environment(shell: Shell) -> None:
    environ = {**OLD, "A2A_PORT": "5001", "KIRO_TIMEOUT": "60", "HOME": "/nowhere"}
    found = after(environ, environment_lines(environ, shell=shell), shell)
    assert found == {**NEW, "GIT_TOKEN": SECRET}
    assert RunnerConfig.from_env(environ=found).task_registry_url == "http://bus:8001"


@pytest.mark.parametrize("name", ["guide", "MIGRATION.md", "MIGRATION.ja.md"])
def test_the_guide_s_old_exports_become_its_new_ones(name: str) -> None:
    blocks = Document(migration_guide() if name == "guide" else ROOT / name).blocks_of("bash")
    exports = [block for block in blocks if block.text.startswith("export ")]
    (old,), (new,) = ([b.code for b in exports if is_old_side(b) is side] for side in (True, False))
    before, wanted = (after({}, text.splitlines()) for text in (old, new))
    del wanted["OPENAI_API_KEY"]  # nobody but its owner knows it
    lines = environment_lines(before)
    assert after(before, lines) == wanted
    assert "# Put your key in, and run: export OPENAI_API_KEY=your-api-key" in lines


def test_no_value_is_shown_but_the_host() -> None:
    environ = {**OLD, "KIRO_API_KEY": SECRET, "MESSAGE_BUS_PASSWORD": SECRET, "OPENAI_API_KEY": SECRET}
    told = "\n".join(environment_lines(environ))
    assert SECRET not in told
    assert "user" not in told
    assert "kiro:6000" not in told
    assert "# GIT_TOKEN stays as it is." in told
    assert "# OPENAI_API_KEY is set already, and stays." in told
    assert "unset KIRO_API_KEY" in told


def test_each_variable_is_explained_with_the_section_to_read() -> None:
    lines = environment_lines(OLD)
    assert any(line.startswith("# MESSAGE_BUS_URL: There is no bus") for line in lines)
    assert any(line.startswith("# KIRO_URL: Kiro is not asked") for line in lines)
    assert lines[-1] == '# See "Step 3: Environment variables" in MIGRATION.md.'


def test_urls_that_are_set_already_stay() -> None:
    environ = {**OLD, "REPO_POOL_URL": "http://mine:1"}
    found = after(environ, environment_lines(environ))
    assert found == {"REPO_POOL_URL": "http://mine:1", "GIT_TOKEN": SECRET}


def test_two_variables_of_the_bus_set_the_urls_once() -> None:
    lines = environment_lines({"MESSAGE_BUS_URL": "bus", "A2A_URL": "http://other"})
    assert [line for line in lines if line.startswith("export")] == [f"export {k}={v}" for k, v in NEW.items()]


def test_embedded_sets_no_urls() -> None:
    assert after(OLD, environment_lines(OLD, is_embedded=True)) == {"GIT_TOKEN": SECRET}


@pytest.mark.parametrize(
    "value", ["", "$(touch /tmp/x)", "http://a;rm -rf b", "http://`id`", "http://a'b", "http://\n"]
)
def test_a_hostile_url_is_no_shell_text(value: str) -> None:
    environ = {"MESSAGE_BUS_URL": value}
    lines = environment_lines(environ)
    assert [line for line in lines if not line.startswith("#")] == ["unset MESSAGE_BUS_URL"]
    assert after(environ, lines) == {}


def test_with_nothing_old_there_is_nothing_to_change() -> None:
    (line,) = environment_lines({"GIT_TOKEN": SECRET, "AGENT_ID": "7", "message_bus_url": "x"})
    assert line.startswith("# Nothing to change")


@pytest.mark.parametrize(
    ("environ", "is_left"),
    [
        ({}, False), ({"MESSAGE_BUS_URL": "http://bus:1"}, False), ({"MESSAGE_BUS_URL": ""}, False),
        ({"MESSAGE_BUS_URL": "http://"}, True), ({"MESSAGE_BUS_URL": "http://", "REPO_POOL_URL": "http://p"}, False),
        ({"KIRO_URL": "http://kiro"}, True), ({"KIRO_URL": "http://kiro", "OPENAI_API_KEY": "k"}, False),
        ({"KIRO_MODEL": "m"}, True), ({"KIRO_TIMEOUT": "5", "OPENAI_API_KEY": "k"}, True),
        ({"KIRO_TIMEOUT": ""}, False),
        ({"KIRO_API_KEY": "k"}, True), ({"KIRO_API_KEY": "k", "OPENAI_API_KEY": "k"}, False),
        ({"MESSAGE_BUS_TOKEN": "t"}, True), ({"MESSAGE_BUS_TOKEN": "t", "NECROCODE_SERVICE_TOKEN": "t"}, False),
        ({"A2A_PORT": "5001"}, False),
        ({"MESSAGE_BUS_URL": "http://a:1", "A2A_URL": "http://a:2"}, False),
        ({"MESSAGE_BUS_URL": "http://a", "AGENT_REGISTRY_URL": "http://b"}, True),
    ],
)  # fmt: skip
def test_what_is_left_for_a_person_is_told_apart(environ: dict[str, str], *, is_left: bool) -> None:
    assert migrate_environment(environ).is_left is is_left


def test_another_host_is_told_with_the_variable_that_gave_the_urls() -> None:
    lines = environment_lines({"MESSAGE_BUS_URL": "http://a", "AGENT_REGISTRY_URL": "http://b"})
    assert "# It names another scheme or host than MESSAGE_BUS_URL, which gave the URLs: choose, and set them." in lines
    assert "export TASK_REGISTRY_URL=http://a:8001" in lines
