"""Twelve kinds of tiny task against a real model: ``make local-llm`` (see docs/testing.md).

Needs OPENAI_BASE_URL, and OPENAI_MODEL for the model's name; NECROCODE_EDIT_FORMAT chooses how it is asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from necrocode.agent_runner import LLMConfig, RunnerConfig, RunnerOrchestrator, RunnerResult, TaskContext
from tests.support.repositories import git, make_repository

pytestmark = [pytest.mark.local_llm, pytest.mark.timeout(1800)]

BASE: dict[str, str | bytes] = {
    "README.md": "# Demo\n\nA small demo project.\n",
    "config.json": '{\n  "name": "demo",\n  "debug": true\n}\n',
    "app/__init__.py": "",
    "app/greet.py": 'def greet(name):\n    return "Hello, " + name\n',
    "app/maths.py": "def add(a, b):\n    return a + b\n\n\ndef is_even(n):\n    return n % 2 == 1\n",
    "old_notes.txt": "obsolete\n",
}


@dataclass(frozen=True)
class Tiny:
    """A task, and the shell command that passes only when it is done."""

    name: str
    description: str
    check: str
    files: dict[str, str | bytes] = field(default_factory=dict)


def python(code: str) -> str:
    return f"python3 -c '{code}'"


TASKS = [
    Tiny("create a file", "Create the file hello.txt with the single line: Hello, world!",
         "test \"$(cat hello.txt)\" = 'Hello, world!'"),
    Tiny("change a line", "In config.json set debug to false.",
         python('import json; c = json.load(open("config.json")); assert c == {"name": "demo", "debug": False}, c')),
    Tiny("delete a file", "Delete the file old_notes.txt.", "test ! -e old_notes.txt && test -e README.md"),
    Tiny("rename a file", "Rename the file old_notes.txt to notes.txt. Keep its text.",
         'test ! -e old_notes.txt && test "$(cat notes.txt)" = obsolete'),
    Tiny("add a function", "In app/maths.py add a function multiply(a, b) that returns the product of a and b.",
         python("from app.maths import add, multiply; assert multiply(3, 4) == 12 and add(1, 2) == 3")),
    Tiny("mend a bug", "is_even in app/maths.py is wrong: it must return True for even numbers.",
         python("from app.maths import is_even, add; assert is_even(2) and not is_even(3) and add(1, 1) == 2")),
    Tiny("Japanese content", "挨拶.txt というファイルを作成し、内容を「こんにちは、世界」の一行にしてください。",
         "grep -q 'こんにちは、世界' 挨拶.txt"),
    Tiny("change a text", "In README.md change the heading from Demo to Showcase.",
         "head -1 README.md | grep -qx '# Showcase' && grep -q 'A small demo project' README.md"),
    Tiny("add a default", 'In app/greet.py make the parameter name optional, with the default "world".',
         python('from app.greet import greet; assert greet() == "Hello, world" and greet("Bo") == "Hello, Bo"')),
    Tiny("two files", 'Create app/version.py with VERSION = "1.0" and in app/__init__.py import VERSION from it.',
         python('import app; assert app.VERSION == "1.0"; from app.version import VERSION')),
    Tiny("write a test", "Create test_maths.py with a unittest.TestCase that checks that add(2, 3) from app.maths is 5.",
         "python3 -m unittest -q test_maths && grep -q add test_maths.py"),
    Tiny("raise an error", "In app/maths.py make add raise TypeError if a or b is a str.",
         python('from app.maths import add\ntry:\n    add("a", "b")\nexcept TypeError:\n    pass\nelse:\n    raise SystemExit(1)\n'
                "assert add(1, 2) == 3")),
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunnerConfig:
    endpoint = os.environ.get("NECROCODE_LOCAL_LLM_URL")
    if not endpoint:
        pytest.skip("needs a model: set NECROCODE_LOCAL_LLM_URL (see docs/testing.md)")
    llm = LLMConfig(
        endpoint=endpoint,
        model=os.environ.get("NECROCODE_LOCAL_LLM_MODEL", "local"),
        edit_format=os.environ.get("NECROCODE_EDIT_FORMAT", "auto"),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=700,
        timeout_seconds=600,
    )
    return RunnerConfig(state_dir=tmp_path_factory.mktemp("state"), llm_config=llm)


def test_at_least_eleven_of_twelve_are_delivered_and_every_result_is_true(config: RunnerConfig, tmp_path: Path) -> None:
    assert len(TASKS) == 12
    results = [run_one(number, tiny, config, tmp_path) for number, tiny in enumerate(TASKS)]
    delivered = [result for result in results if result.success]
    for tiny, result in zip(TASKS, results, strict=True):
        print(f"{'delivered' if result.success else 'FAILED   '}  {tiny.name}: {result.error or ''}")  # noqa: T201
    print(f"{len(delivered)} of {len(results)}")  # noqa: T201
    assert len(delivered) >= 11


def run_one(number: int, tiny: Tiny, config: RunnerConfig, folder: Path) -> RunnerResult:
    repository = make_repository(folder / f"repo{number}", BASE | tiny.files)
    task = TaskContext(
        task_id=f"t{number}",
        spec_name="tiny",
        title=tiny.name,
        description=tiny.description,
        repo_url=str(repository),
        test_commands=[tiny.check],
    )
    result = RunnerOrchestrator(config).run(task)
    has_branch = bool(git(repository, "branch", "--list", result.branch))
    assert has_branch is result.success
    assert (result.error is None) is result.success
    if result.success:
        assert result.test_result is not None
        assert result.test_result.success
    return result
