"""What a change does to that by which it is judged: tests, their configuration, continuous integration.

Paths are told by the conventions of the languages' own tools. A file that holds more than test settings, such as
``pyproject.toml``, counts only when those settings are not the same afterwards.
"""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._git import FileChange
from necrocode.agent_runner.test_results import TamperReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from necrocode.agent_runner._git import TreeEntry

_TEST_FOLDERS = frozenset({
    "test", "tests", "testing", "__tests__", "__snapshots__", "__mocks__", "spec", "specs", "e2e", "testdata",
    "androidtest", "integrationtest", "test-data", "fixtures",
})  # fmt: skip
_TEST_NAMES = (
    "test_*.py", "*_test.py", "tests.py", "*_test.go", "*_spec.rb", "*_test.rb", "*.test.*", "*.spec.*", "*test.java",
    "*tests.java", "*test.kt", "*tests.kt", "*it.java", "*test.php", "*tests.cs", "*test.cs", "*_test.exs", "*_test.rs",
    "*test.scala", "*spec.scala", "*_test.dart", "*_test.cc", "*_test.cpp", "*_test.c", "*tests.swift", "*.snap",
)  # fmt: skip
_CONFIGURATION = (
    "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", "tox.ini", "noxfile.py", ".coveragerc", "sitecustomize.py",
    "usercustomize.py", "jest.config.*", "jest.setup.*", "vitest.config.*", "vitest.workspace.*", "vitest.setup.*",
    "karma.conf.*", "playwright.config.*", "cypress.config.*", "cypress.json", ".mocharc*", ".rspec", "phpunit.xml*",
    "phpunit.dist.xml", "nextest.toml", "*.runsettings", "codecov.yml", ".codecov.yml",
)  # fmt: skip
_CI = (
    ".github/workflows/*", ".github/actions/*", ".gitlab-ci.yml", ".gitlab/*", ".circleci/*", "jenkinsfile",
    "azure-pipelines*.yml", ".azure-pipelines/*", ".travis.yml", "appveyor.yml", ".appveyor.yml", ".buildkite/*",
    ".drone.yml", ".woodpecker*", "bitbucket-pipelines.yml", ".ci/*", ".pre-commit-config.yaml", "buildspec.yml",
    "cloudbuild.yaml", ".teamcity/*", ".semaphore/*", ".cirrus.yml",
)  # fmt: skip
_MIXED = frozenset({"pyproject.toml", "setup.cfg", "package.json", "composer.json"})
_MAKEFILES = frozenset({"makefile", "gnumakefile", "justfile", "taskfile.yml", "rakefile"})
_PYTHON_TABLES = ("pytest", "coverage", "tox", "nox", "hatch", "poe", "pdm", "taskipy", "unittest")
_SCRIPT_KEYS = ("scripts", "jest", "vitest", "mocha", "ava", "tap", "nyc", "c8", "autoload-dev")
_MAX_READ_BYTES = 1_000_000


def tampered_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of the paths that are tests, their configuration or CI by their names alone, in order."""
    return tuple(path for path in sorted(paths) if is_test(path) or is_configuration(path) or is_ci(path))


def tamper_report(
    paths: Iterable[str],
    before: Callable[[str], bytes | None],
    after: Callable[[str], bytes | None],
    *,
    commands: Sequence[str],
) -> TamperReport | None:
    """What a change of these paths touches of that; None when it is nothing. The readers give None for no file.

    A test file counts when the base has it: a new one adds to the tests and takes nothing away. Of files that commands
    name, or ``make`` reads, each counts that the base has.
    """
    changed = sorted(paths)
    named = {word for command in commands for word in re.split(r"[\s'\"=;&|()<>]+", command[:10_000])}
    words = {word.removeprefix("./") for word in named}
    ci = [path for path in changed if is_ci(path)]
    configuration = [
        path
        for path in changed
        if path not in ci
        and (
            is_configuration(path)
            or _settings_differ(path, before, after)
            or (before(path) is not None and not is_test(path) and _is_run_by(path, words))
        )
    ]
    rest = [path for path in changed if path not in ci and path not in configuration]
    tests = [path for path in rest if is_test(path) and before(path) is not None]
    if not (tests or configuration or ci):
        return None
    return TamperReport(tests=tuple(tests), configuration=tuple(configuration), ci=tuple(ci))


def restored(
    paths: Iterable[str],
    base: Callable[[str], TreeEntry | None],
) -> tuple[FileChange, ...]:
    """The changes that give these paths what the base has there: the same object, or nothing."""
    changes = []
    for path in paths:
        entry = base(path)
        changes.append(FileChange(path) if entry is None else FileChange(path, entry.mode, oid=entry.oid))
    return tuple(changes)


def is_test(path: str) -> bool:
    """Whether it is a test, or lies in a folder of tests."""
    *folders, name = path.casefold().split("/")
    return bool(_TEST_FOLDERS.intersection(folders)) or any(fnmatchcase(name, pattern) for pattern in _TEST_NAMES)


def is_configuration(path: str) -> bool:
    """Whether it decides which tests run and how, whatever is in it."""
    name = path.casefold().rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in _CONFIGURATION)


def is_ci(path: str) -> bool:
    """Whether it decides what continuous integration does."""
    return any(fnmatchcase(f"/{path.casefold()}", f"*/{pattern}") for pattern in _CI)


def _is_run_by(path: str, words: set[str]) -> bool:
    return path in words or ("make" in words and path.casefold() in _MAKEFILES)


def _settings_differ(path: str, before: Callable[[str], bytes | None], after: Callable[[str], bytes | None]) -> bool:
    """Whether a file of mixed content says something else on tests than it did; one that cannot be read does."""
    name = path.rpartition("/")[2]
    if name not in _MIXED:
        return False
    try:
        return _settings(name, before(path)) != _settings(name, after(path))
    except (ValueError, RecursionError, configparser.Error):
        return True


def _settings(name: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    text = content[:_MAX_READ_BYTES].decode()
    if name == "pyproject.toml":
        return _chosen(tomllib.loads(text).get("tool"), _PYTHON_TABLES)
    if name == "setup.cfg":
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(text)
        told = ("pytest", "coverage", "tox", "aliases", "test")
        return {one: dict(parser[one]) for one in parser.sections() if any(word in one for word in told)}
    return _chosen(json.loads(text), _SCRIPT_KEYS)


def _chosen(values: object, keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values} if isinstance(values, dict) else {}
