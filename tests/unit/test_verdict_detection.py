from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner.test_results import CommandResult, TestCase, TestResult
from necrocode.agent_runner.verdict.detection import can_be_used, detect_test_commands


def detected(files: dict[str, str]) -> str:
    contents = {path: text.encode() for path, text in files.items()}
    found = detect_test_commands(contents, contents.get)
    assert bool(found.commands) == bool(found.why)
    return "; ".join(found.commands)


NPM = '{"scripts": {"test": "jest"}}'
STUB = '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'
UNITTEST = "import unittest\n"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"pytest.ini": ""}, "python -m pytest"),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n"}, "python -m pytest"),
        ({"pyproject.toml": "[tool.black]\n", "setup.cfg": "[tool:pytest]\n"}, "python -m pytest"),
        ({"tox.ini": "[tox]\n[pytest]\n"}, "python -m pytest"),
        ({"conftest.py": ""}, "python -m pytest"),
        ({"tests/test_a.py": "from pytest import mark\n"}, "python -m pytest"),
        ({"tests/test_a.py": "def test_a(): pass\n"}, "python -m pytest"),
        ({"tests/test_a.py": UNITTEST, "tests/conftest.py": ""}, "python -m pytest"),
        ({"test_a.py": UNITTEST}, "python -m unittest"),
        ({"tests/__init__.py": "", "tests/test_a.py": UNITTEST}, "python -m unittest"),
        ({"tests/unit/test_a.py": UNITTEST}, "python -m unittest discover -s tests"),
        ({"package.json": NPM}, "npm test"),
        ({"package.json": NPM, "package-lock.json": ""}, "npm test"),
        ({"package.json": NPM, "pnpm-lock.yaml": ""}, "pnpm test"),
        ({"package.json": NPM, "yarn.lock": ""}, "yarn test"),
        ({"go.mod": "module m", "x/a_test.go": ""}, "go test ./..."),
        ({"Cargo.toml": ""}, "cargo test"),
        ({"pom.xml": "", "app/src/test/java/ATest.java": ""}, "mvn -B test"),
        ({"pom.xml": "", "mvnw": "", "src/test/java/ATest.java": ""}, "sh ./mvnw -B test"),
        ({"build.gradle.kts": "", "gradlew": "", "src/test/kotlin/ATest.kt": ""}, "sh ./gradlew test"),
        ({"settings.gradle": "", "app/src/test/java/A.java": ""}, "gradle test"),
        ({"App.sln": "", "tests/App.Tests.csproj": ""}, "dotnet test"),
        ({"mix.exs": "", "test/a_test.exs": ""}, "mix test"),
        ({"Gemfile": "", "spec/a_spec.rb": ""}, "bundle exec rspec"),
        ({".rspec": ""}, "rspec"),
        ({"Rakefile": "Rake::TestTask.new\n"}, "rake test"),
        ({"composer.json": NPM.replace("jest", "phpunit")}, "composer test"),
        ({"composer.json": "{}", "phpunit.xml.dist": ""}, "vendor/bin/phpunit"),
        ({"Makefile": "all:\n\ttrue\ntest: all\n\ttrue\n"}, "make test"),
    ],
)
def test_project_files_tell_how_to_test(files: dict[str, str], command: str) -> None:
    assert detected(files) == command


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"README.md": "run pytest"},
        {"pyproject.toml": "[tool.black]\n"},
        {"pyproject.toml": "= [pytest"},
        {"pyproject.toml": "tool = 1\n"},
        {"package.json": STUB},
        {"package.json": "{}"},
        {"package.json": '{"scripts": {"test": " "}}'},
        {"package.json": "not json"},
        {"go.mod": "module m", "a.go": ""},
        {"pom.xml": "", "src/main/java/A.java": ""},
        {"A.sln": "", "B.sln": "", "ATests.csproj": ""},
        {"Makefile": "test := x\nlatest: y\n\ttest:\n"},
        {"frontend/package.json": NPM, "backend/pytest.ini": "", "svc/go.mod": "", "svc/a_test.go": ""},
        {"src/app/test_client.py": "x = 1\n"},
    ],
)
def test_what_is_not_plain_is_left_alone(files: dict[str, str]) -> None:
    assert detected(files) == ""


def test_the_first_of_several_wins() -> None:
    files = {"Makefile": "test:\n\ttrue\n", "Cargo.toml": "", "package.json": NPM, "pytest.ini": ""}
    order = []
    while command := detected(files):
        order.append(command)
        del files[
            {
                "python -m pytest": "pytest.ini",
                "npm test": "package.json",
                "cargo test": "Cargo.toml",
                "make test": "Makefile",
            }[command]
        ]
    assert order == ["python -m pytest", "npm test", "cargo test", "make test"]


names = st.sampled_from(
    [
        "pyproject.toml",
        "setup.cfg",
        "tox.ini",
        "package.json",
        "composer.json",
        "Makefile",
        "Rakefile",
        "tests/test_a.py",
    ]
)


@given(st.dictionaries(names, st.binary(max_size=60) | st.just(b"[" * 5000) | st.just(b'{"a":' * 5000)))
def test_no_content_makes_it_fail(files: dict[str, bytes]) -> None:
    detect_test_commands(files, files.get)


# --- whether they may judge


def base(*commands: CommandResult) -> TestResult:
    return TestResult(success=False, commands=commands, sandbox="none", layer="copy", tree="t", duration_seconds=1.0)


def command(code: int | None, output: str = "", *statuses: str, report: str = "") -> CommandResult:
    cases = tuple(TestCase.model_validate({"name": str(n), "status": one}) for n, one in enumerate(statuses))
    return CommandResult(
        command="c",
        exit_code=code,
        duration_seconds=1.0,
        output=output,
        cases=cases,
        report=report or "junit" * bool(cases),
    )


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (base(command(0)), True),
        (base(command(0, "", "passed")), True),
        (base(command(1, "", "passed", "failed")), True),
        (base(command(2, "", "error")), True),
        (base(command(1)), False),
        (base(command(127)), False),
        (base(command(126)), False),
        (base(command(1, "/usr/bin/python3: No module named pytest\n")), False),
        (base(command(0, "", report="unittest")), False),
        (base(command(0), command(1)), False),
        (base(), False),
        (None, False),
    ],
)
def test_commands_that_nobody_asked_for_must_work_on_the_base(known: TestResult | None, expected: bool) -> None:
    assert can_be_used(known) is expected
