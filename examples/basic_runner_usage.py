"""One task from start to end: a failing test, a change by a model, the passing test, the branch, the artifacts.

With OPENAI_API_KEY or OPENAI_BASE_URL set, that endpoint is asked (OPENAI_MODEL names the model). Without, a recorded
answer is replayed. Everything else is real either way: git, the tests, the stored artifacts, the task registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from necrocode.agent_runner import (
    LocalTaskRegistry,
    Progress,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    TaskContext,
)

RECORDED_ANSWER = Path(__file__).parent / "recorded" / "cart_discount.json"
TEST_COMMAND = "python3 -m unittest -q"

CART = '''\
"""A shopping cart."""


def total(items):
    """The price of all items; each is (name, unit_price, quantity)."""
    return sum(price * quantity for _, price, quantity in items)
'''
CART_TEST = """\
import unittest

from cart import total


class TotalTest(unittest.TestCase):
    def test_small_quantities_cost_the_full_price(self):
        self.assertEqual(total([("pen", 100, 2), ("ink", 300, 1)]), 500)

    def test_ten_or_more_of_an_item_are_ten_percent_cheaper(self):
        self.assertEqual(total([("pen", 100, 10), ("ink", 300, 1)]), 1200)
"""


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="necrocode-demo-"))
    repository = make_repository(folder / "shop")
    print(f"A git repository with a failing test: {repository}")
    print(indented(run_tests_on(repository)))

    config = RunnerConfig.from_env(state_dir=os.environ.get("NECROCODE_STATE_DIR") or folder / "state", **model())
    llm = None
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        print(f"Asking {config.llm_config.model} at {config.llm_config.endpoint or 'OpenAI'}.\n")
    else:
        recorded = json.loads(RECORDED_ANSWER.read_text(encoding="utf-8"))
        print(f"No OPENAI_API_KEY or OPENAI_BASE_URL: replaying an answer that {recorded['model']} gave when it was")
        print(f"asked this on {recorded['recorded_on']}. All else is done for real.\n")
        llm = ScriptedLLM([recorded["answer"]], model=recorded["model"])

    task = TaskContext(
        task_id="2.1",
        spec_name="shop",
        title="Give a bulk discount",
        description="In cart.py, an item with a quantity of 10 or more gets 10 percent off its price times quantity.",
        acceptance_criteria=["Items with a quantity below 10 cost the full price.", "test_cart.py passes."],
        repo_url=str(repository),
        test_commands=[TEST_COMMAND],
    )
    result = RunnerOrchestrator(config, llm=llm, on_progress=show).run(task)
    explain(result, repository, config)
    return 0 if result.success else 1


def model() -> dict[str, Any]:
    name = os.environ.get("OPENAI_MODEL")
    return {"llm": {"model": name}} if name else {}


def make_repository(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "cart.py").write_text(CART, encoding="utf-8")
    (path / "test_cart.py").write_text(CART_TEST, encoding="utf-8")
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "-c", "user.name=You", "-c", "user.email=you@example.com", "commit", "--quiet", "-m", "A cart")
    return path


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def run_tests_on(repository: Path) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["sh", "-c", TEST_COMMAND], cwd=repository, capture_output=True, text=True, check=False, env=environment
    )
    return "\n".join(done.stderr.strip().splitlines()[-3:])


def show(progress: Progress) -> None:
    if progress.seconds is not None:
        outcome = f"FAILED: {progress.error}" if progress.error else progress.detail
        print(f"  {progress.step:<9} {progress.seconds:6.2f} s  {outcome}".rstrip())


def explain(result: RunnerResult, repository: Path, config: RunnerConfig) -> None:
    print(f"\nThe task is {result.status}." + (f" {result.error}" if result.error else ""))
    if result.test_result is not None:
        print("The tests on the changed tree:")
        print(indented("\n".join(result.test_result.commands[-1].output.strip().splitlines()[-3:])))
    if result.push_result is not None:
        print("The commit on its branch:")
        print(indented(git(repository, "log", "-1", "--stat", "--format=%h %s (%an)", result.push_result.branch)))
        print(f"  look at it:  git -C {repository} show {result.push_result.branch}")
    print("\nThe artifacts:")
    for artifact in result.artifacts:
        print(f"  {artifact.type:<11}{artifact.uri}")
    if config.task_registry_url is None:
        database = config.state_dir / "registry.db"
        print(f"\nThe task registry, {database}:")
        with LocalTaskRegistry(f"sqlite:///{database}") as registry:
            record = registry.get_task("2.1", spec_name="shop")
            print(f"  task {record.task_id} of {record.spec_name}: {record.status}, attempt {record.attempt}")
            for event in registry.list_events("2.1", spec_name="shop"):
                print(f"  event {event.sequence}: {event.event_type}")
    for warning in result.warnings:
        print(f"warning: {warning}")


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
