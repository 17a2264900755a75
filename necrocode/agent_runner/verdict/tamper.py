"""What a change does to that by which it is judged: tests, their configuration, continuous integration.

Paths are told by the conventions of the languages' own tools. A file that holds more than test settings, such as
``pyproject.toml``, counts only when those settings are not the same afterwards.
"""

from __future__ import annotations

import configparser
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._git import MODE_TREE, FileChange
from necrocode.agent_runner.test_results import TamperReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from necrocode.agent_runner._git import ObjectReader, TreeEntry

_TEST_FOLDERS = frozenset({
    "test", "tests", "__tests__", "__snapshots__", "__mocks__", "spec", "e2e", "testdata", "androidtest",
})  # fmt: skip
# By the spelling: "LatestTest.java" is one, "Latest.java" is none.
_TEST_NAMES = (
    "test_*.py", "*_test.py", "tests.py", "*_test.go", "*_spec.rb", "*_test.rb", "*Test.java", "*Tests.java",
    "*IT.java", "*Test.kt", "*Tests.kt", "*Test.php", "*Test.cs", "*Tests.cs", "*_test.exs", "*_test.rs", "*Test.scala",
    "*Spec.scala", "*_test.dart", "*_test.cc", "*_test.cpp", "*_test.c", "*Tests.swift", "*.snap",
)  # fmt: skip
_JAVASCRIPT_TEST = re.compile(r"\.(?:test|spec|e2e)\.[cm]?[jt]sx?$")
_CONFIGURATION = (
    "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "noxfile.py", ".coveragerc",
    "sitecustomize.py", "usercustomize.py", "jest.config.*", "jest.setup.*", "vitest.config.*", "vite.config.*",
    "build.rs", "vitest.workspace.*", "vitest.setup.*", "karma.conf.*", "playwright.config.*", "cypress.config.*",
    "cypress.json", ".mocharc*", ".rspec", "phpunit.xml*", "phpunit.dist.xml", "nextest.toml", "*.runsettings",
    "codecov.yml", ".codecov.yml", "*.pth", "entry_points.txt", ".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs",
)  # fmt: skip
_CONFIGURATION_FOLDERS = (".cargo", ".mvn", "node_modules", "site-packages")  # with who runs tests, or in place of it
# What Python finds in the checkout before what is installed: the tools themselves, and all that they load.
_PYTHON_TOOLS = frozenset({
    "_pytest", "coverage", "doctest", "hypothesis", "iniconfig", "nose", "nose2", "nox", "packaging", "pluggy", "py",
    "pytest", "pytest_asyncio", "pytest_cov", "pytest_django", "pytest_timeout", "tox", "unittest", "xdist",
})  # fmt: skip
_LOADED_EARLY = (_PYTHON_TOOLS | sys.stdlib_module_names) - {"test"}
_PYTHON_TOPS = frozenset({"src", "lib", "python", "test", "tests"})  # often on Python's path as well, but later
_PYTHON_ENDINGS = frozenset({"py", "pyc", "so", "pyd"})
_CI = (
    ".github/workflows/*", ".github/actions/*", ".gitlab-ci.y*ml", ".gitlab/*", ".circleci/*", "jenkinsfile*",
    "azure-pipelines*.y*ml", ".azure-pipelines/*", ".travis.y*ml", "appveyor.y*ml", ".appveyor.y*ml", ".buildkite/*",
    ".drone.*", ".woodpecker*", "bitbucket-pipelines.y*ml", ".ci/*", ".pre-commit-config.yaml", "buildspec*.y*ml",
    "cloudbuild*.y*ml", "cloudbuild*.json", ".teamcity/*", ".semaphore/*", ".cirrus.*", ".tekton/*", ".builds/*",
    ".build.yml", ".harness/*", "wercker.y*ml",
)  # fmt: skip
# Files that decide what runs elsewhere, besides those of continuous integration.
_PROTECTED = (
    ".gitmodules", ".gitattributes", ".lfsconfig", ".github/*", ".gitlab/*", ".gitea/*", ".forgejo/*", ".husky/*",
    ".devcontainer/*", ".envrc", "lefthook.*", ".lefthook.*", "lefthook-local.*", ".lefthook-local.*",
    ".overcommit.yml", ".githooks/*", ".pre-commit-hooks.yaml", ".vscode/tasks.json", ".vscode/launch.json",
    ".vscode/settings.json", ".gitpod.y*ml", "codeowners",
)  # fmt: skip
_MIXED = frozenset({
    "pyproject.toml", "setup.cfg", "package.json", "composer.json", "pom.xml", "build.gradle", "build.gradle.kts",
})  # fmt: skip
_POM_PARTS = frozenset({"build", "profiles", "properties", "parent", "modules"})
# Lines that say nothing on tests: blank, a comment, one dependency, a version.
_GRADLE_OTHER = re.compile(
    r"""(?://.*|\w+[ (]["'][\w.${}-]+:[\w.:${}+-]+["']\)?|(?:version|group)(?: = | )["'][\w.+-]+["'])?"""
)
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
            or _shadows_tool(path, before)
            or _settings_differ(path, before, after)
            or (before(path) is not None and not is_test(path) and _is_run_by(path, words))
        )
    ]
    rest = [path for path in changed if path not in ci and path not in configuration]
    tests = [path for path in rest if is_test(path) and before(path) is not None]
    if not (tests or configuration or ci):
        return None
    return TamperReport(tests=tuple(tests), configuration=tuple(configuration), ci=tuple(ci))


def removed_files(paths: Iterable[str], before: TreeFiles, after: TreeFiles) -> tuple[str, ...]:
    """The test files among these paths that a change removes, other than those that it moves as they are."""
    changed = sorted(paths)
    new = {entry.oid for path in changed if before.entry(path) is None and (entry := after.entry(path)) is not None}
    gone = (path for path in changed if is_test(path) and after.entry(path) is None)
    return tuple(path for path in gone if (was := before.entry(path)) is not None and was.oid not in new)


@dataclass(frozen=True)
class TreeFiles:
    """The files of a git tree, by path."""

    objects: ObjectReader
    tree: str

    def entry(self, path: str) -> TreeEntry | None:
        """What lies at the path, a folder excepted."""
        folder, _, name = path.rpartition("/")
        found = self.objects.folder(self.tree, folder).get(name)
        return None if found is None or found.mode == MODE_TREE else found

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none, nor of a symlink or submodule."""
        entry = self.entry(path)
        return self.objects.blob(entry.oid) if entry is not None and entry.is_file else None

    def restoring(self, paths: Iterable[str]) -> tuple[FileChange, ...]:
        """The changes that give these paths what this tree has there: the same object, or nothing."""
        found = {path: self.entry(path) for path in paths}
        return tuple(
            FileChange(path) if entry is None else FileChange(path, entry.mode, oid=entry.oid)
            for path, entry in found.items()
        )


def is_test(path: str) -> bool:
    """Whether it is a test, or lies in a folder of tests."""
    *folders, name = path.split("/")
    in_folder = any(folder.casefold() in _TEST_FOLDERS for folder in folders)
    named = any(fnmatchcase(name, pattern) for pattern in _TEST_NAMES) or _JAVASCRIPT_TEST.search(name)
    return in_folder or bool(named)


def is_configuration(path: str) -> bool:
    """Whether it decides which tests run and how, whatever is in it."""
    *folders, name = path.casefold().split("/")
    in_folder = any(folder in _CONFIGURATION_FOLDERS for folder in folders)
    return in_folder or any(fnmatchcase(name, pattern) for pattern in _CONFIGURATION)


def is_ci(path: str) -> bool:
    """Whether it decides what continuous integration does."""
    return any(fnmatchcase(f"/{path.casefold()}", f"*/{pattern}") for pattern in _CI)


def protected_files(paths: Iterable[str], patterns: Iterable[str] = ()) -> tuple[str, ...]:
    """Those of the paths that decide what runs elsewhere, or fit one of the configured patterns; in any case.

    A pattern without a slash before it fits in any folder, and one that ends with a slash all that is below.
    """
    wanted = [_pattern(one) for one in (*_PROTECTED, *patterns)]
    return tuple(
        path for path in paths if is_ci(path) or any(fnmatchcase(f"/{path.casefold()}", one) for one in wanted)
    )


def _pattern(given: str) -> str:
    pattern = given.casefold().removeprefix("./")
    pattern += "*" if pattern.endswith("/") else ""
    return pattern if pattern.startswith("/") else f"*/{pattern}"


def _shadows_tool(path: str, before: Callable[[str], bytes | None]) -> bool:
    """Whether it makes a module that Python loads in place of a test tool, or of what that loads; not one of the base.

    A package counts by its ``__init__.py``: without one, what is installed is found first.
    """
    *folders, name = path.split("/")
    top = f"{folders.pop(0)}/" if folders and folders[0] in _PYTHON_TOPS else ""
    stem, _, ending = name.partition(".")
    if len(folders) > 1 or (folders and stem != "__init__") or ending.rpartition(".")[2] not in _PYTHON_ENDINGS:
        return False
    module = folders[0] if folders else stem
    is_of_base = any(before(f"{top}{module}{rest}") is not None for rest in (".py", "/__init__.py"))
    return module in (_PYTHON_TOOLS if top else _LOADED_EARLY) and not is_of_base


def _is_run_by(path: str, words: set[str]) -> bool:
    return path in words or ("make" in words and path.casefold() in _MAKEFILES)


def _settings_differ(path: str, before: Callable[[str], bytes | None], after: Callable[[str], bytes | None]) -> bool:
    """Whether a file of mixed content says something else on tests than it did; one that cannot be read does."""
    name = path.rpartition("/")[2]
    if name not in _MIXED:
        return False
    try:
        return _settings(name, before(path)) != _settings(name, after(path))
    except (ValueError, RecursionError, SyntaxError, configparser.Error):  # XML's is a SyntaxError
        return True


def _settings(name: str, content: bytes | None) -> dict[str, Any] | list[str]:
    if content is None:
        return {}
    if name == "pom.xml":
        return _pom_settings(content)
    text = content[:_MAX_READ_BYTES].decode()
    if name.startswith("build.gradle"):
        return [line for line in map(str.strip, text.split("\n")) if not _GRADLE_OTHER.fullmatch(line)]
    if name == "pyproject.toml":
        return _chosen(tomllib.loads(text).get("tool"), _PYTHON_TABLES)
    if name == "setup.cfg":
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(text)
        told = ("pytest", "coverage", "tox", "aliases", "test")
        return {one: dict(parser[one]) for one in parser.sections() if any(word in one for word in told)}
    return _chosen(json.loads(text), _SCRIPT_KEYS)


def _pom_settings(content: bytes) -> list[str]:
    from defusedxml.ElementTree import fromstring, tostring  # noqa: PLC0415  only Maven's projects need it

    root = fromstring(content[:_MAX_READ_BYTES], forbid_dtd=True)
    return [tostring(part, encoding="unicode").strip() for part in root if part.tag.rpartition("}")[2] in _POM_PARTS]


def _chosen(values: object, keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values} if isinstance(values, dict) else {}
