"""Test commands that a project's files suggest, for a task that names none.

Top level only, and the first rule that fits wins; what is not plain is left alone. ``docs/verdict.md`` lists the order.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner.verdict.asking import package_scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from necrocode.agent_runner.test_results import TestResult

_MAX_READ_BYTES = 1_000_000
_MAX_TEST_FILES_READ = 20
_NPM_STUB = "no test specified"
_MAKE_TEST = re.compile(rb"^test\s{0,20}::?(?!=)", re.MULTILINE)
_PYTHON_TEST = re.compile(r"^(?:tests?/(?:[^/]+/){0,8})?(?:test_[^/]*|[^/]*_test)\.py$")
_IMPORTS_PYTEST = re.compile(rb"^\s{0,20}(?:import|from)\s{1,20}pytest\b", re.MULTILINE)
_IMPORTS_UNITTEST = re.compile(rb"^\s{0,20}(?:import|from)\s{1,20}unittest\b", re.MULTILINE)
_NOT_RUNNABLE = (126, 127)  # a shell: it cannot be executed, it is not there


@dataclass(frozen=True)
class Detection:
    """The commands, none where nothing plain was found, and what in the project speaks for them."""

    commands: tuple[str, ...] = ()
    why: str = ""


class _Project:
    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes | None]) -> None:
        self.paths = sorted(paths)
        self.top = {path for path in self.paths if "/" not in path}
        self._read = read

    def text(self, path: str) -> bytes:
        return (self._read(path) or b"")[:_MAX_READ_BYTES]

    def first(self, *names: str) -> str | None:
        return next((name for name in names if name in self.top), None)


def detect_test_commands(paths: Iterable[str], read: Callable[[str], bytes | None]) -> Detection:
    """The commands that test the project whose files have these ``paths``; ``read`` gives a file's bytes, or None."""
    project = _Project(paths, read)
    rules = (_python, _javascript, _go, _cargo, _maven, _gradle, _dotnet, _mix, _ruby, _php, _make)
    return next((found for rule in rules if (found := rule(project)).commands), Detection())


def can_be_used(base: TestResult | None) -> bool:
    """Whether commands that nobody asked for may judge a change: on the base they pass, or say which cases fail.

    A tool that is not installed, or a project that cannot be set up here, would fail every change alike. Whether
    tests were run at all is another question: :func:`is_proven`.
    """
    if base is None or not base.commands:
        return False
    return all(
        command.exit_code not in _NOT_RUNNABLE
        and bool(command.cases or not command.report)
        and (command.exit_code == 0 or any(case.status == "passed" for case in command.cases) or bool(command.failing))
        and not _is_missing_module(command.output)
        for command in base.commands
    )


def is_proven(base: TestResult) -> bool:
    """Whether each of the commands that name cases came to run tests: a package that is missing lets none be run."""
    return all(command.ran_tests and not command.ended_early for command in base.commands if command.cases)


def _is_missing_module(output: str) -> bool:
    return "No module named pytest" in output[-2000:]


def _python(project: _Project) -> Detection:
    why = _pytest_settings(project)
    tests = [path for path in project.paths if _PYTHON_TEST.match(path)]
    if why:
        return Detection(("python -m pytest",), why)
    if not tests:
        return Detection()
    texts = [project.text(path) for path in tests[:_MAX_TEST_FILES_READ]]
    if any(map(_IMPORTS_PYTEST.search, texts)) or "tests/conftest.py" in project.paths:
        return Detection(("python -m pytest",), f"{tests[0]} and others are written for pytest")
    if any(map(_IMPORTS_UNITTEST.search, texts)):
        folder = tests[0].partition("/")[0] if "/" in tests[0] else ""
        is_package = not folder or f"{folder}/__init__.py" in project.paths
        command = "python -m unittest" if is_package else f"python -m unittest discover -s {folder}"
        return Detection((command,), f"{tests[0]} is written for unittest")
    return Detection(("python -m pytest",), f"{tests[0]} is named as pytest wants it")


def _pytest_settings(project: _Project) -> str:
    """The file in which the project speaks of pytest; empty where there is none."""
    if found := project.first("pytest.ini", ".pytest.ini", "pytest.toml", "conftest.py"):
        return f"there is {found}"
    if "pyproject.toml" in project.top and _has_pytest_table(project.text("pyproject.toml")):
        return "pyproject.toml has settings of pytest"
    for name, section in (("tox.ini", b"[pytest]"), ("setup.cfg", b"[tool:pytest]")):
        if name in project.top and section in project.text(name):
            return f"{name} has settings of pytest"
    return ""


def _has_pytest_table(content: bytes) -> bool:
    try:
        tool = tomllib.loads(content.decode()).get("tool")
    except (ValueError, RecursionError):  # no TOML, or no UTF-8
        return False
    return isinstance(tool, dict) and "pytest" in tool


def _javascript(project: _Project) -> Detection:
    if "package.json" not in project.top:
        return Detection()
    script = package_scripts(project.text("package.json")).get("test", "")
    if not script.strip() or _NPM_STUB in script:
        return Detection()
    if project.first("pnpm-lock.yaml"):
        return Detection(("pnpm test",), "package.json has a test script, and there is pnpm-lock.yaml")
    if project.first("yarn.lock"):
        return Detection(("yarn test",), "package.json has a test script, and there is yarn.lock")
    return Detection(("npm test",), "package.json has a test script")


def _go(project: _Project) -> Detection:
    has_tests = "go.mod" in project.top and any(path.endswith("_test.go") for path in project.paths)
    return Detection(("go test ./...",), "there are go.mod and files named _test.go") if has_tests else Detection()


def _cargo(project: _Project) -> Detection:
    return Detection(("cargo test",), "there is Cargo.toml") if "Cargo.toml" in project.top else Detection()


def _maven(project: _Project) -> Detection:
    if "pom.xml" not in project.top or not _has_java_tests(project):
        return Detection()
    command = "sh ./mvnw -B test" if "mvnw" in project.top else "mvn -B test"
    return Detection((command,), "there are pom.xml and src/test")


def _gradle(project: _Project) -> Detection:
    found = project.first("build.gradle", "build.gradle.kts", "settings.gradle", "settings.gradle.kts")
    if found is None or not _has_java_tests(project):
        return Detection()
    command = "sh ./gradlew test" if "gradlew" in project.top else "gradle test"
    return Detection((command,), f"there are {found} and src/test")


def _has_java_tests(project: _Project) -> bool:
    return any(f"/{path}".find("/src/test/") >= 0 for path in project.paths)


def _dotnet(project: _Project) -> Detection:
    solutions = [path for path in project.top if path.endswith((".sln", ".slnx"))]
    tests = any(re.search(r"Tests?\.(?:cs|fs|vb)proj$", path) for path in project.paths)
    if len(solutions) == 1 and tests:
        return Detection(("dotnet test",), f"there are {solutions[0]} and a test project")
    return Detection()


def _mix(project: _Project) -> Detection:
    has_tests = "mix.exs" in project.top and any(path.startswith("test/") for path in project.paths)
    return Detection(("mix test",), "there are mix.exs and test/") if has_tests else Detection()


def _ruby(project: _Project) -> Detection:
    bundle = "bundle exec " if "Gemfile" in project.top else ""
    if project.first(".rspec") or any(re.match(r"spec/.*_spec\.rb$", path) for path in project.paths):
        return Detection((f"{bundle}rspec",), "there are specs of RSpec")
    if "Rakefile" in project.top and re.search(rb"TestTask|task\s{1,5}:?test\b", project.text("Rakefile")):
        return Detection((f"{bundle}rake test",), "Rakefile has a test task")
    return Detection()


def _php(project: _Project) -> Detection:
    if "composer.json" not in project.top:
        return Detection()
    if package_scripts(project.text("composer.json")).get("test"):
        return Detection(("composer test",), "composer.json has a test script")
    if found := project.first("phpunit.xml", "phpunit.xml.dist", "phpunit.dist.xml"):
        return Detection(("vendor/bin/phpunit",), f"there is {found}")
    return Detection()


def _make(project: _Project) -> Detection:
    found = project.first("GNUmakefile", "makefile", "Makefile")
    if found and _MAKE_TEST.search(project.text(found)):
        return Detection(("make test",), f"{found} has the target test")
    return Detection()
