from __future__ import annotations

from collections.abc import Callable

import pytest

from necrocode.agent_runner.verdict.asking import COLLECTED, Project

VITEST = '--reporter=default --reporter=junit --outputFile.junit="$NECROCODE_REPORTS/vitest.xml"'
JEST = '--json --outputFile="$NECROCODE_REPORTS/jest.json"'


def project(**files: str) -> Project:
    contents = {name.replace("__", "."): text.encode() for name, text in files.items()}
    read: Callable[[str], bytes | None] = contents.get
    return Project(frozenset(contents), read)


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("go test ./...", 'go test -json ./... >"$NECROCODE_REPORTS/go.json"'),
        ("cd a && A=0 go test -v ./...", 'cd a && A=0 go test -json -v ./... >"$NECROCODE_REPORTS/go.json"'),
        ("python3 -m unittest", "python3 -m unittest -v"),
        ("/o/python3.11 -m unittest discover -s 'my tests'", "/o/python3.11 -m unittest discover -s 'my tests' -v"),
        ("npx vitest run", f"npx vitest run {VITEST}"),
    ],
)
def test_a_plain_command_is_asked_by_an_option(command: str, run: str) -> None:
    asked = project().asked(command)
    assert asked.run == run
    assert asked.kind


@pytest.mark.parametrize(
    "command",
    ["npx jest src", "jest", "./node_modules/.bin/jest --ci", "yarn jest", "pnpm exec jest", "npm ci && npx jest"],
)
def test_jest_is_asked_for_its_file_however_it_is_called(command: str) -> None:
    assert project().asked(command).run.endswith(f"{command} {JEST}")


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("npm test", f" -- {JEST}"),
        ("npm run test -- --ci", f" {JEST}"),
        ("yarn test", f" {JEST}"),
        ("pnpm test", f" {JEST}"),
    ],
)
def test_a_script_of_package_json_is_looked_into(command: str, added: str) -> None:
    asked = project(package__json='{"scripts": {"test": "jest --ci"}}').asked(command)
    assert asked.run.endswith(command + added)


@pytest.mark.parametrize(
    "script", ["jest && eslint .", "jest | tee log", "node run.js", "jest --json", "echo 'jest", "", "jest --watch"]
)
def test_a_script_that_is_not_plainly_one_tool_is_left_alone(script: str) -> None:
    asked = project(package__json=f'{{"scripts": {{"test": "{script}"}}}}').asked("npm test")
    assert asked.run == "npm test"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"scripts": []}', '{"scripts": {"test": 1}}', "[" * 9999])
def test_a_package_json_that_cannot_be_read_is_none(content: str) -> None:
    assert project(package__json=content).asked("npm test").run == "npm test"


@pytest.mark.parametrize(
    "command",
    [
        "make test",
        "./run_tests.sh",
        "go test ./... | tee log",
        "go test ./... > log",
        "go test $PKG",
        "go test `x`",
        "(go test ./...)",
        "go test ./a && go test ./b",
        "go test ./... || true",
        "go test ./...; true",
        "go vet ./...",
        "go test -json ./...",
        "go test -c ./x",
        "jest --outputFile=x.json",
        "vitest run --reporter=dot",
        "vitest --watch",
        "echo 'go test",
        "python -m unittest\nls",
        "go test ./... # all",
        "A=1",
        "",
        "   ",
        "go test ./... &",
        "node --test --test-reporter=tap",
        "node run.js",
        "npx",
        "x" * 20_000,
    ],
)
def test_any_other_command_runs_as_it_is(command: str) -> None:
    assert project().asked(command).run == command


def test_what_stands_in_quotes_is_no_operator_and_no_command() -> None:
    run = project().asked("go test -run 'A|B; go test' ./...").run
    assert run.startswith("go test -json -run 'A|B; go test' ./... >")
    unclear = "go test -run 'A && go test' ./..."
    assert project().asked(unclear).run == unclear


def test_node_is_asked_only_where_it_knows_the_option() -> None:
    asked = project().asked("node --test")
    assert asked.kind == "node"
    assert "allowedNodeEnvironmentFlags" in asked.run
    assert asked.run.endswith("\nnode --test")


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("pytest -q", "pytest"),
        ("python -m pytest", "pytest"),
        (".venv/bin/pytest tests", "pytest"),
        ("cargo test", "cargo"),
        ("cargo +nightly test --all", "cargo"),
        ("mvn -B test", "junit"),
        ("./gradlew check", "junit"),
        ("cargo nextest run", "junit"),
        ("pytest a; pytest b", "pytest"),
        ("uv run pytest", ""),
        ("cargo build", ""),
    ],
)
def test_a_tool_that_reports_by_itself_is_known(command: str, kind: str) -> None:
    assert (project().asked(command).run, project().asked(command).kind) == (command, kind)


OPTIONS = "--junitxml=$NECROCODE_REPORTS/pytest.xml -o junit_family=xunit1"


def test_pytest_is_asked_by_its_variable_whatever_starts_it() -> None:
    assert project().environment(["make test"], {"A": "1"}) == {"A": "1", "PYTEST_ADDOPTS": OPTIONS}
    kept = project().environment(["make test"], {"PYTEST_ADDOPTS": "-x"})
    assert kept["PYTEST_ADDOPTS"] == f"-x {OPTIONS}"


def test_where_cases_decide_pytest_is_to_run_them_all() -> None:
    told = project().environment(["pytest"], {}, is_by_cases=True)["PYTEST_ADDOPTS"]
    assert told == f"{OPTIONS} --continue-on-collection-errors --maxfail=0"


def test_a_project_or_command_with_its_own_junit_file_keeps_it() -> None:
    assert project(setup__cfg="[tool:pytest]\naddopts = --junitxml=a.xml").environment(["pytest"], {}) == {}
    assert project().environment(["pytest --junit-xml=a.xml"], {}) == {}
    assert project().environment(["pytest"], {"PYTEST_ADDOPTS": "--junitxml=a"}) == {"PYTEST_ADDOPTS": "--junitxml=a"}


def test_files_are_looked_for_where_a_build_tool_leaves_them() -> None:
    assert project(pom__xml="").collected() == COLLECTED
    assert project(package__json="").collected() == ()
