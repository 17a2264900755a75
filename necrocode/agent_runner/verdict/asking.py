"""How a test command is asked for a report on single cases, without changing what it does.

pytest is asked through its own variable, so that ``make test`` and scripts are reached too. Others know no such
variable: there a command that is plainly one of them gets an option, and a command that a shell would read in any other
way is left as it is. The result always names the command as the task does.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ReportKind = Literal["", "pytest", "go", "cargo", "jest", "vitest", "unittest", "node", "junit"]

PYTEST_FILE = "reports/pytest.xml"
GO_FILE = "reports/go.json"
JEST_FILE = "reports/jest.json"
TOP_FILE = "reports/top"
COLLECTED = (
    "*/surefire-reports/TEST-*.xml", "*/failsafe-reports/TEST-*.xml", "*/build/test-results/*/TEST-*.xml",
    "*/target/nextest/*/junit.xml",
)  # fmt: skip
"""Where Maven, Gradle and nextest leave their reports, as patterns for ``Sandbox.run_tests``."""
# Not xunit2: under that family pytest warns of tests that use record_property, and warnings may be errors.
_PYTEST_OPTIONS = "--junitxml=$NECROCODE_REPORTS/pytest.xml -o junit_family=xunit1"  # pytest itself fills in the folder
# Where the cases decide, a module that cannot be imported, or a first failure, must not keep the others from being run.
_PYTEST_WHOLE = "--continue-on-collection-errors --maxfail=0"
_PYTEST_SETTINGS = (
    "pyproject.toml",
    "pytest.ini",
    ".pytest.ini",
    "tox.ini",
    "setup.cfg",
    "pytest.toml",
    ".pytest.toml",
)
_BUILD_FILES = {"pom.xml", "build.gradle", "build.gradle.kts", "settings.gradle", "settings.gradle.kts", "Cargo.toml"}
_JEST_OPTIONS = '--json --outputFile="$NECROCODE_REPORTS/jest.json"'
_VITEST_OPTIONS = (
    '--reporter=default --reporter=junit --outputFile.junit="$NECROCODE_REPORTS/vitest.xml"'  # the first is for people
)
# NODE_OPTIONS reaches "node --test" however it is called, but a node that does not know the option refuses to start.
_NODE_PRELUDE = """\
if [ "$(node -p "process.allowedNodeEnvironmentFlags.has('--test-reporter')" 2>/dev/null)" = true ]; then
export NODE_OPTIONS="${NODE_OPTIONS:-} --test-reporter=spec --test-reporter-destination=stdout \
--test-reporter=junit --test-reporter-destination=\\"$NECROCODE_REPORTS/node.xml\\""; fi
"""
_JEST_PRELUDE = 'pwd -P >"$NECROCODE_REPORTS/top"\n'  # jest names its files by their whole paths
_ADDED: dict[ReportKind, tuple[str, str]] = {  # what comes before a command of that kind, and what is put to its end
    "unittest": ("", "-v"),
    "node": (_NODE_PRELUDE, ""),
    "jest": (_JEST_PRELUDE, _JEST_OPTIONS),
    "vitest": ("", _VITEST_OPTIONS),
}
_PYTHON = re.compile(r"^(?:.*/)?python(?:\d(?:\.\d+)?)?$")
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
_OPERATORS = frozenset("();<>|&")
_GO_TEST = re.compile(r"\s*(?:[A-Za-z_]\w*=\S*\s+)*(?:\S+/)?go\s+test\b")
_LONGEST_COMMAND = 10_000


@dataclass(frozen=True)
class AskedCommand:
    """A command as it is run, and where its report is looked for; ``""``: nowhere in particular."""

    run: str
    kind: ReportKind = ""
    is_verbose: bool = False
    """Whether the command asks for the output of passing tests too."""


@dataclass(frozen=True)
class Project:
    """What of a project's files tells how its commands can be asked; ``read`` gives a file at the top, or None."""

    top_names: frozenset[str]
    read: Callable[[str], bytes | None]

    def collected(self) -> tuple[str, ...]:
        """The files to bring back from the layer."""
        return COLLECTED if _BUILD_FILES & self.top_names else ()

    def environment(
        self, commands: Sequence[str], extra: Mapping[str, str], *, is_by_cases: bool = False
    ) -> dict[str, str]:
        """The variables for the commands: the operator's, and pytest's options besides those that are there.

        A project, or a command, that has its own way with JUnit files keeps it. ``is_by_cases``: single
        cases decide, so all of them are to be run, whatever fails.
        """
        settings = (self.read(name) or b"" for name in _PYTEST_SETTINGS if name in self.top_names)
        own = any(b"junit" in text for text in settings) or any("junit" in command for command in commands)
        if own or "junit" in extra.get("PYTEST_ADDOPTS", ""):
            return dict(extra)
        options = (extra.get("PYTEST_ADDOPTS", ""), _PYTEST_OPTIONS, _PYTEST_WHOLE if is_by_cases else "")
        return dict(extra) | {"PYTEST_ADDOPTS": " ".join(filter(None, options))}

    def asked(self, command: str) -> AskedCommand:
        """The command as it is to be run."""
        words = _last_words(command)
        if not words:
            return AskedCommand(command, "pytest" if _names_pytest(command) else "")
        script = self._script(words)
        kind = _kind(script or words)
        if kind == "go":
            return _asked_go(command, is_verbose="-v" in words)
        passes_on = bool(script) and words[0] == "npm" and "--" not in words
        before, options = _ADDED.get(kind, ("", ""))
        separator = "" if not options else " -- " if passes_on else " "
        return AskedCommand(f"{before}{command}{separator}{options}", kind)

    def _script(self, words: Sequence[str]) -> list[str]:
        """The words of the script in package.json that ``npm test`` runs; none when it is not as simple as that."""
        is_test = words[1:2] in (["test"], ["t"]) or words[1:3] == ["run", "test"]
        if words[0] not in {"npm", "pnpm", "yarn"} or not is_test or "package.json" not in self.top_names:
            return []
        text = package_scripts(self.read("package.json")).get("test", "")
        return _last_words(text) if "&&" not in text else []


def _asked_go(command: str, *, is_verbose: bool) -> AskedCommand:
    before, operator, last = command.rpartition("&&")
    found = _GO_TEST.match(last)
    if found is None:
        return AskedCommand(command)
    run = f'{before}{operator}{found[0]} -json{last[found.end() :]} >"$NECROCODE_REPORTS/go.json"'
    return AskedCommand(run, "go", is_verbose)


def package_scripts(content: bytes | None) -> dict[str, str]:
    """The scripts of a package.json; none where it cannot be read."""
    try:
        scripts = json.loads(content or b"{}").get("scripts")
    except (ValueError, RecursionError, AttributeError):
        return {}
    if not isinstance(scripts, dict):
        return {}
    return {name: text for name, text in scripts.items() if isinstance(text, str)}


def _last_words(command: str) -> list[str]:
    """The words of a command that is simple: one program with its arguments, at most after others and ``&&``.

    None for whatever a shell would read in another way, for two programs that both test, or for no program at all.
    """
    if len(command) > _LONGEST_COMMAND or any(mark in command for mark in "\n`$#"):
        return []
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError:  # quotes that do not close
        return []
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == "&&":  # noqa: S105  a shell's operator
            parts.append([])
        elif set(token) <= _OPERATORS:
            return []
        else:
            parts[-1].append(token)
    is_quoted = command.count("&&") >= len(parts)
    parts = [_without_assignments(words) for words in parts]
    if is_quoted or not parts[-1] or any(words and _kind(words) for words in parts[:-1]):
        return []
    return parts[-1]


def _without_assignments(words: list[str]) -> list[str]:
    start = next((number for number, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    return words[start:]


def _kind(words: Sequence[str]) -> ReportKind:  # noqa: PLR0911  one answer a tool
    program = words[0].rpartition("/")[2]
    rest = list(words[1:])
    if program in {"npx", "pnpm", "yarn", "bunx"} or words[:2] == ["npm", "exec"]:
        rest = [word for word in rest if word not in {"exec", "dlx", "run", "--", "-y", "--yes", "--no-install"}]
        program, rest = (rest[0], rest[1:]) if rest else ("", [])
    if program in {"pytest", "py.test"} or (_PYTHON.match(words[0]) and rest[:2] == ["-m", "pytest"]):
        return "pytest"
    if _PYTHON.match(words[0]) and rest[:2] == ["-m", "unittest"]:
        return "unittest"
    if program == "go" and rest[:1] == ["test"] and not _has_option(rest, ("-json", "-c", "-exec", "--json")):
        return "go"
    if program == "cargo" and [word for word in rest if not word.startswith("+")][:1] in (["test"], ["t"]):
        return "cargo"
    if program == "jest" or (program == "react-scripts" and rest[:1] == ["test"]):
        return "" if _has_option(rest, ("--json", "--outputFile", "--watch", "--watchAll")) else "jest"
    if program == "vitest" and (not rest or rest[0] == "run" or rest[0].startswith("-")):
        return "" if _has_option(rest, ("--reporter", "--outputFile", "--watch", "-w")) else "vitest"
    if program == "node" and "--test" in rest:
        return "" if _has_option(rest, ("--test-reporter", "--test-reporter-destination")) else "node"
    if program in {"mvn", "mvnw", "mvnd", "gradle", "gradlew"} or words[:2] == ["cargo", "nextest"]:
        return "junit"
    return ""


def _has_option(words: Sequence[str], options: Sequence[str]) -> bool:
    return any(word.partition("=")[0].startswith(option) for word in words for option in options if word[:1] == "-")


def _names_pytest(command: str) -> bool:
    return re.search(r"\bpytest\b", command) is not None
