from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import necrocode.agent_runner as sdk

HEAVY = {"openai", "requests", "git", "sqlalchemy", "tenacity", "pydantic", "yaml"}


def modules_after(*statements: str) -> set[str]:
    """The top-level packages that a fresh Python holds after these statements."""
    code = "; ".join([*statements, "import sys", "print(*{name.split('.')[0] for name in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_importing_the_sdk_imports_no_dependency() -> None:
    assert modules_after("import necrocode", "import necrocode.agent_runner").isdisjoint(HEAVY)


def test_stating_settings_and_a_task_needs_pydantic_alone() -> None:
    loaded = modules_after(
        "from necrocode.agent_runner import RunnerConfig, TaskContext, RunnerOrchestrator, RunnerError",
        "RunnerOrchestrator(RunnerConfig.from_env(environ={}))",
        "TaskContext(task_id='1', spec_name='s', title='t', description='d', repo_url='/r')",
    )
    assert loaded & HEAVY == {"pydantic"}


def test_a_name_brings_what_it_needs_and_no_more() -> None:
    loaded = modules_after("from necrocode.agent_runner import LocalTaskRegistry")
    assert "sqlalchemy" in loaded
    assert loaded.isdisjoint({"openai", "requests", "git"})


def test_the_public_names_are_sorted_and_complete() -> None:
    assert sdk.__all__ == sorted(set(sdk.__all__))
    assert set(sdk.__all__) == set(sdk._HOME_OF)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(sdk.__file__).read_text(encoding="utf-8"))
    (typing_only,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in typing_only.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert imported == {name: f"{sdk.__name__}.{home}" for name, home in sdk._HOME_OF.items()}


@pytest.mark.parametrize("name", sdk.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    value = getattr(sdk, name)
    assert value.__name__ == name
    assert value.__module__ == f"necrocode.agent_runner.{sdk._HOME_OF[name]}"
    assert value.__doc__
    assert getattr(sdk, name) is value


def test_every_error_is_public() -> None:
    from necrocode.agent_runner import errors  # noqa: PLC0415

    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == {name for name, home in sdk._HOME_OF.items() if home == "errors"}
    assert all(issubclass(getattr(errors, name), sdk.RunnerError) for name in defined)


def test_dir_shows_the_names_before_they_are_used() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import necrocode.agent_runner as sdk; print(*dir(sdk))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(sdk.__all__) <= set(shown)
    assert shown == sorted(shown)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'necrocode\.agent_runner' has no attribute 'RunerConfig'"):
        _ = sdk.RunerConfig  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="RunerConfig"):
        from necrocode.agent_runner import RunerConfig  # type: ignore[attr-defined]  # noqa: F401, PLC0415


def test_a_star_import_brings_the_public_names_alone() -> None:
    names: dict[str, object] = {}
    exec("from necrocode.agent_runner import *", names)  # noqa: S102  a star import cannot stand in a function
    assert set(names) - {"__builtins__"} == set(sdk.__all__)
