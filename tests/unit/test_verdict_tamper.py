from __future__ import annotations

import pytest

from necrocode.agent_runner.verdict.tamper import protected_files, tamper_report, tampered_paths

POM = "<project xmlns='http://maven.apache.org/POM/4.0.0'><version>2</version><dependencies/>{}</project>"

TESTS = [
    "tests/test_a.py",
    "test_a.py",
    "pkg/a_test.py",
    "tests/data/x.json",
    "a_test.go",
    "src/a.test.ts",
    "src/a.spec.jsx",
    "src/__tests__/a.js",
    "src/test/java/A.java",
    "ATest.java",
    "spec/a_spec.rb",
    "Tests/AppTests.swift",
    "a.snap",
    "crates/x/tests/it.rs",
    "test/a_test.exs",
    "src/AppTests.cs",
    "e2e/login.ts",
    "src/a.test.mts",
]
CONFIGURATION = [
    "conftest.py",
    "pkg/conftest.py",
    "pytest.ini",
    "tox.ini",
    "jest.config.js",
    "vitest.config.mts",
    ".mocharc.json",
    "phpunit.xml.dist",
    ".config/nextest.toml",
    ".coveragerc",
    "playwright.config.ts",
    "PyTest.ini",
    "sitecustomize.py",
    "lib/usercustomize.py",
    "src/own.pth",
    "a.egg-info/entry_points.txt",
    ".cargo/config.toml",
    ".mvn/maven.config",
    ".npmrc",
    "node_modules/jest/index.js",
    "vite.config.ts",
    ".pytest.toml",
    "crates/x/build.rs",
]
# Where the base has none of that name.
SHADOWS = [
    "unittest.py",
    "unittest/__init__.py",
    "pytest.py",
    "pytest/__init__.py",
    "_pytest/__init__.py",
    "src/pluggy.py",
    "argparse.py",
    "tests/unittest.py",
    "re.cpython-311-x86_64-linux-gnu.so",
]
CI = [
    ".github/workflows/ci.yml",
    ".gitlab-ci.yml",
    ".circleci/config.yml",
    "Jenkinsfile",
    "azure-pipelines.yml",
    ".travis.yml",
    ".ci/run",
    ".pre-commit-config.yaml",
    "sub/.github/workflows/x.yml",
    "bitbucket-pipelines.yml",
    ".drone.jsonnet",
    ".drone.yaml",
    "cloudbuild.yml",
    "buildspec.yaml",
    ".cirrus.star",
    ".tekton/pull.yaml",
    ".builds/a.yml",
    ".gitlab-ci.yaml",
    "ci/Jenkinsfile.groovy",
]
PROTECTED = ["lefthook.yaml", ".lefthook.toml", ".overcommit.yml", ".githooks/pre-commit", ".vscode/tasks.json",
             ".gitpod.yml", "CODEOWNERS", "docs/CODEOWNERS", ".envrc", ".husky/x"]  # fmt: skip
OTHERS = [
    "src/app.py",
    "src/latest.java",
    "Contest.java",
    "attest.py",
    "testing.md",
    "pyproject.toml",
    "package.json",
    "README.md",
    "src/protest/a.py",
    "openapi.spec.yaml",
    ".github/CODEOWNERS",
    "src/conftest.md",
    "src/tester.go",
    "Makefile",
    "unittest/a.py",
    "unittest.txt",
    "src/app/types.py",
    "app/unittest.py",
    "src/queue.py",
    "test.py",
]


@pytest.mark.parametrize("path", [*TESTS, *CONFIGURATION, *CI])
def test_paths_that_judge_are_known(path: str) -> None:
    assert tampered_paths([path, "a.txt"]) == (path,)


def test_what_runs_elsewhere_is_protected() -> None:
    assert protected_files([*PROTECTED, *CI]) == (*PROTECTED, *CI)
    assert not protected_files(["src/app.py", ".vscode/extensions.json", "cloudbuild.py", "owners", ".gitignore"])


@pytest.mark.parametrize("path", OTHERS)
def test_other_paths_are_none(path: str) -> None:
    assert tampered_paths([path]) == ()


def report(before: dict[str, str], after: dict[str, str], *commands: str) -> tuple[tuple[str, ...], ...] | None:
    """Tests, configuration and CI that a change from one to the other touches."""
    old, new = ({path: text.encode() for path, text in files.items()} for files in (before, after))
    changed = [path for path in {*old, *new} if old.get(path) != new.get(path)]
    found = tamper_report(changed, old.get, new.get, commands=commands)
    return None if found is None else (found.tests, found.configuration, found.ci)


def test_each_path_is_of_one_kind() -> None:
    before = {path: "old" for path in [*TESTS, *CONFIGURATION, *CI, *OTHERS]}  # noqa: C420  a plain one
    found = report(before, dict.fromkeys(before, "{}"))
    assert found is not None
    tests, configuration, ci = (set(kind) for kind in found)
    assert tests == set(TESTS)
    assert configuration == {*CONFIGURATION, "pyproject.toml", "package.json"}
    assert ci == set(CI)


@pytest.mark.parametrize("path", TESTS)
def test_a_new_test_is_none(path: str) -> None:
    assert report({}, {path: "x"}) is None


@pytest.mark.parametrize("path", SHADOWS)
def test_what_python_would_load_in_place_of_the_tools_is_configuration(path: str) -> None:
    assert report({}, {path: "x"}) == ((), (path,), ())


@pytest.mark.parametrize("path", ["types.py", "src/types/__init__.py", "pytest.py"])
def test_a_module_of_the_base_is_in_nobodys_place(path: str) -> None:
    assert report({path: "old"}, {path: "new"}) is None


@pytest.mark.parametrize("path", OTHERS)
def test_other_new_files_are_none(path: str) -> None:
    assert report({}, {path: "{}" if path.endswith(".json") else ""}) is None


@pytest.mark.parametrize("path", TESTS[:3])
def test_a_test_that_is_removed_is_one(path: str) -> None:
    assert report({path: "x"}, {}) == ((path,), (), ())


@pytest.mark.parametrize(
    ("path", "before", "after", "expected"),
    [
        ("pyproject.toml", "[project]\nversion='1'\n", "[project]\nversion='2'\n", False),
        ("pyproject.toml", "[tool.pytest.ini_options]\na=1\n", "[tool.pytest.ini_options]\na=2\n", True),
        ("pyproject.toml", "", "[tool.coverage.report]\nfail_under=0\n", True),
        ("pyproject.toml", "", "= broken", True),
        ("setup.cfg", "[metadata]\nname=a\n", "[metadata]\nname=b\n", False),
        ("setup.cfg", "[tool:pytest]\naddopts=\n", "[tool:pytest]\naddopts=-k nothing\n", True),
        ("setup.cfg", "", "no section", True),
        ("package.json", '{"version": "1"}', '{"version": "2"}', False),
        ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "true"}}', True),
        ("web/package.json", "{}", '{"jest": {"bail": true}}', True),
        ("package.json", "{}", "[" * 9999, True),
        ("package.json", "{}", "\udcff", True),
        ("pom.xml", "<project><version>1</version></project>", POM.format(""), False),
        ("pom.xml", POM.format(""), POM.format("<build><plugins/></build>"), True),
        ("pom.xml", POM.format(""), POM.format("<properties><skipTests>true</skipTests></properties>"), True),
        ("pom.xml", POM.format(""), POM.format("<build>"), True),
        ("pom.xml", POM.format(""), '<!DOCTYPE p [<!ENTITY a "b">]><p>&a;</p>', True),
        ("build.gradle", "version = '1'\n", "version = '2'\n// x\n", False),
        ("build.gradle", "dependencies {\n}", "dependencies {\n  implementation 'a:b:1.0'\n}", False),
        ("build.gradle.kts", "dependencies {\n}", 'dependencies {\n  api("a:b:1.0")\n}\n', False),
        ("build.gradle", "test { useJUnit() }", "test { enabled = false }", True),
        ("build.gradle", "test {\n}", "test {\n  exclude 'ATest.class'\n}", True),
        ("build.gradle", "a", "a\nimplementation 'a:b:1'; test.enabled = false", True),
        ("composer.json", '{"scripts": {"test": "x"}}', "{}", True),
    ],
)
def test_a_file_of_mixed_content_counts_by_its_test_settings(
    path: str, before: str, after: str, expected: bool
) -> None:
    old, new = before.encode(), after.encode(errors="surrogateescape")
    found = tamper_report([path], {path: old}.get, {path: new}.get, commands=())
    assert (found is not None and found.configuration == (path,)) is expected


def test_what_the_commands_name_counts() -> None:
    before = {"run.sh": "a", "Makefile": "a", "src/a.py": "a", "tools/check.py": "a"}
    after = dict.fromkeys(before, "b")
    assert report(before, after) is None
    assert report(before, after, "sh ./run.sh --fast") == ((), ("run.sh",), ())
    assert report(before, after, "make test") == ((), ("Makefile",), ())
    assert report(before, after, "cd x && python 'tools/check.py'") == ((), ("tools/check.py",), ())
    assert report({}, {"new.sh": "x"}, "sh new.sh") is None, "the base has no such script"
