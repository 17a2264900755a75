"""One small world for runners that die: a repository, a model that counts what it is asked, a state folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from necrocode.agent_runner import LocalArtifactStore, LocalRepoPool, LocalTaskRegistry
from necrocode.agent_runner._git import Git
from tests.support.http_server import Answer, Request, ScriptedServer
from tests.support.model_server import as_asked, as_files, completion
from tests.support.repositories import CALC_FILES, CALC_TEST_COMMAND, FIXED_CALC, files_at, git, make_repository

ROOT = Path(__file__).parents[2]
BRANCH = "feature/task-faults-1-mend-add"
ANSWERS = (as_files({"calc.py": "def add(a, b):\n    return 0\n"}), as_files({"calc.py": FIXED_CALC}))
"""The first one fails its tests, so that there is a repair round to die in."""


class Zygote:
    """The process that forks runners."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        )

    def run(self, order: dict[str, Any]) -> int:
        """Have a runner do it; its exit status, negative for the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()


@dataclass
class World:
    """What a runner finds, and what is left when it is gone."""

    folder: Path
    zygote: Zygote
    origin: Path = field(init=False)
    state: Path = field(init=False)
    runner_id: str | None = None
    """The runners'. None: each has its own."""
    pool_size: int = 1
    asked: list[str] = field(default_factory=list)
    """The prompts that were answered, as the model's endpoint has them."""

    def __post_init__(self) -> None:
        self.origin = make_repository(self.folder / "origin", CALC_FILES)
        self.state = self.folder / "state"
        self._lock = threading.Lock()

    @contextmanager
    def model(self) -> Iterator[str]:
        """The model's endpoint, while it is up."""

        def script(request: Request) -> Answer:
            with self._lock:
                messages = request.json["messages"]
                self.asked.append(json.dumps(messages))
                answer = ANSWERS[sum(one["role"] == "assistant" for one in messages)]
            return as_asked(request, completion(answer))

        with ScriptedServer(script) as server:
            yield f"{server.url}/v1"

    def runner(self, model_url: str, *, dies_at: str = "", does: str = "run") -> tuple[int, dict[str, Any]]:
        """A runner in a process of its own: how it ended, and what it told (nothing when it was killed)."""
        told = self.folder / "told.json"
        told.unlink(missing_ok=True)
        task = {
            "task_id": "1",
            "spec_name": "faults",
            "title": "Mend add",
            "description": "add() subtracts.",
            "repo_url": str(self.origin),
            "test_commands": [CALC_TEST_COMMAND],
        }
        order = {
            "state": str(self.state),
            "runner_id": self.runner_id,
            "pool_size": self.pool_size,
            "task": task,
            "model_url": model_url,
            "dies_at": dies_at,
            "does": does,
        }
        code = self.zygote.run({**order, "told": str(told)})
        return code, json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}

    # --- what must hold in the end

    def assert_all_is_well(self, *, lost_answers: int = 0) -> None:
        """One branch, one set of artifacts, one end, every answer paid for once, nothing left behind.

        ``lost_answers``: how many had come and were not on the disk yet.
        """
        self.assert_delivered()
        assert len(set(self.asked)) == len(ANSWERS)
        assert len(self.asked) == len(ANSWERS) + lost_answers, "every answer is paid for once"
        self._assert_records()
        self.assert_nothing_is_left()

    def assert_delivered(self) -> None:
        """One branch, with one commit that mends it."""
        branches = git(self.origin, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
        assert sorted(branches) == sorted([BRANCH, "main"])
        assert files_at(self.origin, BRANCH)["calc.py"] == FIXED_CALC.encode()
        assert git(self.origin, "rev-list", "--count", f"main..{BRANCH}") == "1"

    def _assert_records(self) -> None:
        with LocalTaskRegistry(f"sqlite:///{self.state / 'registry.db'}") as registry:
            assert registry.get_task("1", spec_name="faults").status == "done"
            ends = [one for one in registry.list_events("1", spec_name="faults") if one.event_type == "run_finished"]
            records = registry.list_artifacts("1", spec_name="faults")
        assert len(ends) == 1
        assert len({one.metadata["run_id"] for one in records}) == 1
        types = [one.type for one in records]
        assert sorted(types) == sorted(set(types))
        assert {"diff", "test", "log", "transcript"} <= set(types)
        store = LocalArtifactStore(self.state / "artifacts")
        for record in records:
            assert store.download(record.uri), record.type

    def assert_nothing_is_left(self) -> None:
        pool = LocalRepoPool(self.state / "pool", Git(self.state / "git"), pool_size=1)
        slot = pool.allocate_slot(str(self.origin), "the test", timeout_seconds=0)
        pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        self.assert_no_layer_and_no_process_is_left()

    def assert_no_layer_and_no_process_is_left(self) -> None:
        layers = self.state / "layers"
        assert not layers.exists() or not [one for one in layers.iterdir() if one.name.startswith("layer-")]
        assert not self._processes_of_ours()

    def _processes_of_ours(self) -> list[str]:
        """Processes that run in this world, or name it."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                try:
                    told = (process / "cmdline").read_bytes() + bytes((process / "cwd").readlink())
                except OSError:
                    continue
                if str(self.folder).encode() in told:
                    found.append(told.decode(errors="replace"))
        return found
