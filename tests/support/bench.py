"""A repository, a state folder, and runs over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from necrocode.agent_runner import (
    LocalTaskRegistry,
    Progress,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    TaskContext,
)
from tests.support.repositories import CALC_TEST_COMMAND, FIXED_CALC, git

GOOD_ANSWER = f"calc.py\n```python\n{FIXED_CALC}```\n"
USELESS_ANSWER = "calc.py\n```python\ndef add(a, b):\n    return 0\n```\n"
BRANCH = "feature/task-calc-1.1-mend-add"
SECRET = "a-key-that-nobody-may-see"


class Bench:
    """A repository, a state folder, and what they look like after runs."""

    def __init__(self, repository: Path, state_dir: Path) -> None:
        self.repository = repository
        self.state_dir = state_dir
        self.progress: list[Progress] = []

    def task(self, **changes: Any) -> TaskContext:
        values: dict[str, Any] = {
            "task_id": "1.1",
            "spec_name": "calc",
            "title": "Mend add",
            "description": "add() subtracts.",
            "repo_url": str(self.repository),
            "test_commands": [CALC_TEST_COMMAND],
        }
        return TaskContext(**(values | changes))

    def orchestrator(self, llm: Any, services: dict[str, Any] | None = None, **settings: Any) -> RunnerOrchestrator:
        # What tests say on the base is the business of few tests, and would double the time of the others.
        config = RunnerConfig(state_dir=self.state_dir, **{"test_base": False, **settings})
        return RunnerOrchestrator(config, llm=llm, **{"on_progress": self.progress.append, **(services or {})})

    def run(self, *answers: Any, services: dict[str, Any] | None = None, task: TaskContext | None = None,
            **settings: Any) -> RunnerResult:  # fmt: skip
        return self.orchestrator(ScriptedLLM(list(answers)), services, **settings).run(task or self.task())

    @property
    def registry(self) -> LocalTaskRegistry:
        return LocalTaskRegistry(f"sqlite:///{self.state_dir / 'registry.db'}")

    def status(self) -> str:
        with self.registry as registry:
            return registry.get_task("1.1", spec_name="calc").status

    def events(self) -> list[str]:
        with self.registry as registry:
            return [event.event_type for event in registry.list_events("1.1", spec_name="calc")]

    def events_with_data(self) -> str:
        with self.registry as registry:
            return str(registry.list_events("1.1", spec_name="calc"))

    def branches(self) -> list[str]:
        return git(self.repository, "branch", "--format=%(refname:short)").split()

    def slots(self) -> list[dict[str, Any]]:
        (file,) = self.state_dir.glob("pool/*/pool.json")
        slots: list[dict[str, Any]] = json.loads(file.read_text())["slots"]
        return slots

    def assert_nothing_is_left(self) -> None:
        assert all(slot["state"] == "available" for slot in self.slots())
        assert list((self.state_dir / "layers").glob("*")) == []


def artifacts(result: RunnerResult) -> dict[str, str]:
    return {one.type: Path(unquote(urlsplit(one.uri).path)).read_text(encoding="utf-8") for one in result.artifacts}
