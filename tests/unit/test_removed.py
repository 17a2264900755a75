"""The old runner's names, settings and variables: each is refused or warned about with what took its place."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import necrocode
import necrocode.agent_runner as sdk
from necrocode.agent_runner import ConfigurationError, RemovedSettingWarning, RunnerConfig, removed
from tests.docs.markdown import Document
from tests.support.shared import ROOT

NAMES = ["A2AClient", "A2AProtocol", "AgentRegistry", "KiroAgent", "KiroClient", "MessageBus"]
VARIABLES = ["MESSAGE_BUS_URL", "KIRO_URL"]


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removed, "_told", set())


@pytest.mark.parametrize("module", ["necrocode", "necrocode.agent_runner"])
@pytest.mark.parametrize("name", NAMES)
def test_importing_an_old_name_says_what_took_its_place(module: str, name: str) -> None:
    with pytest.raises(ImportError, match=f"^{name} was removed from {module}\\. ") as caught:
        exec(f"from {module} import {name}")  # noqa: S102  the import statement is what is tried
    told = str(caught.value)
    assert removed.REMOVED_NAMES[name] in told
    assert 'See "Removed components" in MIGRATION.md' in told
    assert caught.value.name == module


@pytest.mark.parametrize("module", [necrocode, sdk])
@pytest.mark.parametrize("name", NAMES)
def test_an_old_name_is_no_attribute_though_the_error_explains_it(module: object, name: str) -> None:
    assert not hasattr(module, name)
    assert getattr(module, name, None) is None
    with pytest.raises(AttributeError, match="Removed components"):
        getattr(module, name)


def test_an_import_of_several_names_names_the_old_one() -> None:
    with pytest.raises(ImportError, match=r"^KiroClient was removed"):
        exec("from necrocode.agent_runner import LLMClient, KiroClient as K")  # noqa: S102  as above


def test_other_unknown_names_are_python_s_own_errors() -> None:
    with pytest.raises(ImportError, match=r"^cannot import name 'Nothing' from 'necrocode'"):
        exec("from necrocode import Nothing")  # noqa: S102  as above
    with pytest.raises(AttributeError, match=r"^module 'necrocode' has no attribute 'Nothing'$"):
        getattr(necrocode, "Nothing")  # noqa: B009  mypy would see an attribute
    exec("from necrocode import cli, agent_runner, services")  # noqa: S102  submodules are found as ever


@pytest.mark.parametrize("key", ["message_bus_url", "kiro_url"])
def test_an_old_setting_is_refused_with_its_replacement(key: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{key}: http://user:made-up-s3cr3t@bus:5000\n", encoding="utf-8")
    for make in (
        lambda: RunnerConfig(**{key: "x"}),  # type: ignore[arg-type]
        lambda: RunnerConfig.from_yaml(file, environ={}),
        lambda: RunnerConfig.from_env(environ={}, **{key: "x"}),
    ):
        with pytest.raises(ConfigurationError, match=f"unknown key '{key}'") as caught:
            make()
        told = str(caught.value)
        assert removed.REMOVED_SETTINGS[key] in told
        assert '"Step 2: The configuration file" in MIGRATION.md' in told
        assert "necrocode migrate config" in told
        assert "s3cr3t" not in told


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("agent_id", "runner_id took its place"), ("a2a_agent_id", "runner_id took its place"),
        ("a2a_url", "task_registry_url, repo_pool_url and artifact_store_url took its place"),
        ("agent_registry_url", "task_registry_url, repo_pool_url and artifact_store_url took its place"),
        ("kiro_endpoint", "llm (llm_config in code) took its place"),
        ("kiro_model", "llm.model (of llm_config in code, model) took its place"),
        ("message_bus_timeout", "request_timeout_seconds took its place"),
    ],
)  # fmt: skip
def test_each_old_setting_with_a_successor_names_it(key: str, place: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RunnerConfig(**{key: "x"})  # type: ignore[arg-type]
    assert f"removed: it belonged to the A2A/Kiro runner, and {place}" in str(caught.value)


@pytest.mark.parametrize("key", ["kiro_timeout", "a2a_port", "message_bus_token", "agent_registry_url"])
def test_other_settings_of_the_old_runner_are_told_as_such(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"belonged to the A2A/Kiro runner.*necrocode migrate config"):
        RunnerConfig(**{key: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_old_variable_is_warned_about_once(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("pool_size: 2\n", encoding="utf-8")
    monkeypatch.setenv(variable, "http://user:made-up-s3cr3t@bus:5000")
    with pytest.warns(RemovedSettingWarning, match=variable) as caught:
        RunnerConfig.from_yaml(file)
    RunnerConfig.from_yaml(file)
    RunnerConfig.from_env()
    (warning,) = caught
    assert "Step 3: Environment variables" in str(warning.message)
    assert "s3cr3t" not in str(warning.message)
    assert warning.filename == __file__


def test_an_empty_old_variable_counts_as_not_set() -> None:
    RunnerConfig.from_env(environ=dict.fromkeys(VARIABLES, ""))


def test_settings_made_in_code_read_no_environment_and_warn_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIRO_URL", "http://kiro")
    RunnerConfig()


def test_the_warning_can_be_filtered_and_made_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RemovedSettingWarning)
        for _ in range(2):  # an error each time: nothing was told yet
            with pytest.raises(RemovedSettingWarning):
                RunnerConfig.from_env(environ={"KIRO_URL": "x"})
        warnings.simplefilter("ignore", RemovedSettingWarning)
        RunnerConfig.from_env(environ={"KIRO_URL": "x"})


def test_python_shows_the_warning_once_without_being_asked_to() -> None:
    code = "from necrocode.agent_runner import RunnerConfig\nfor _ in range(3):\n    RunnerConfig.from_env()\n"
    environ = {**os.environ, "MESSAGE_BUS_URL": "http://bus", "PYTHONWARNINGS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stderr.count("RemovedSettingWarning") == done.stderr.count("MESSAGE_BUS_URL") == 1


def test_the_sections_that_are_named_are_headings_of_the_guide() -> None:
    headings = {title for _, title in Document(ROOT / removed.GUIDE).headings}
    assert {removed.SECTION_NAMES, removed.SECTION_SETTINGS, removed.SECTION_VARIABLES} <= headings


def test_a_submodule_that_is_not_there_is_python_s_own_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("necrocode.agent_runner.MessageBus")
