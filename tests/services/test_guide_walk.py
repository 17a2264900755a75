"""A newcomer's walk: all that MIGRATION.md shows, from top to bottom, against ``necrocode serve all``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import RepoPoolClient, RunnerConfig, TaskContext, TaskNotFoundError, TaskRegistryClient
from tests.docs.markdown import Block, Document
from tests.docs.snippets import (
    GUIDE_REPOSITORY_URL,
    PORTS,
    SERVICE_COMMANDS,
    Loopback,
    check_command,
    is_old_side,
    load_yaml_block,
)
from tests.support.http_server import Answer, Request, serving
from tests.support.repositories import files_at
from tests.support.serving import necrocode_serve
from tests.support.shared import ROOT

SERVICES = {"registry": "task-registry", "pool": "repo-pool", "store": "artifact-store"}
SYMPTOMS = ("ConnectionError: ", "AuthenticationError: ", "SlotAllocationError: ", "ImportError: ")


class Walk:
    """The newcomer: a project folder with the old files, a shell's environment, and what has been done so far."""

    def __init__(self, folder: Path, repository: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.place = Loopback(repository)
        self.environ: dict[str, str] = {}
        self.results: list[Any] = []
        self.steps: list[str] = []
        self._stack = stack
        self._waiting: list[Block] = []  # Python that is shown before its services are started
        self._last_migration: str | None = None

    # ---- What is shown

    def take(self, block: Block) -> None:
        """Do what a block says."""
        match block.language:
            case "text":
                assert "┌" in block.text or block.text.startswith(SYMPTOMS), str(block)
            case "yaml":
                self._take_settings(block)
            case "bash":
                for command in block.text.splitlines() if block.text.startswith("export ") else block.commands:
                    self._take_command(command, block)
            case "python":
                self._take_code(block)

    def _take_settings(self, block: Block) -> None:
        if is_old_side(block):
            (self.folder / "config.old.yaml").write_text(block.text, encoding="utf-8")
            return
        config = load_yaml_block(block, self.folder)
        if "llm:" in block.text:  # what step 2 shows is what the command has written
            assert RunnerConfig.from_yaml(self.folder / "config.yaml", environ={}) == config
            self.steps.append("settings")

    def _take_code(self, block: Block) -> None:
        if is_old_side(block):
            return  # it is in src/ from the start
        if len(self.place.urls) < len(PORTS):
            self._waiting.append(block)
            return
        here = AtRepository(self.place)
        if '"test"' in block.text:  # the guide's try: the registry is reached, and knows no such task
            with pytest.raises(TaskNotFoundError):
                here.run(block)
        else:
            self.results.append(here.run(block).get("result"))
        self.steps.append("code")

    # ---- What is typed

    def _take_command(self, command: str, block: Block) -> None:
        program, *words = command.split()
        if command in SERVICE_COMMANDS or program in {"pip", "docker-compose"}:
            check_command(command)  # there is no Docker here, and the package is installed
        elif command == "necrocode serve all":
            self._serve()
        elif program == "export":
            self._export(command, is_old=is_old_side(block))
        elif program == "necrocode":
            self._migrate(command, words)
        elif program == "python":
            self._run_example(words)
        elif program in {"curl", "echo"}:
            self._ask(command)
        else:
            raise AssertionError(f"{block}: nobody walks past {command}")

    def shell(self, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command, typed in the project's folder."""
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ["HOME"]}
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.folder, env={**own, **self.environ, **environ},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def _export(self, command: str, *, is_old: bool) -> None:
        name, _, value = command.removeprefix("export ").partition("=")
        if is_old or name == "OPENAI_API_KEY":
            self.environ[name] = value
        else:
            assert self.environ[name] == value  # as step 3's command has set it
            self.steps.append("variable")

    def _migrate(self, command: str, words: list[str]) -> None:
        done = self.shell(command)
        match words[1]:
            case "config":
                assert (done.returncode, done.stdout) == (0, "")
                assert "message_bus_url becomes" in done.stderr
            case "env":
                after = self.shell(f'eval "$({command})"; env -0')
                names = dict(line.partition("=")[::2] for line in after.stdout.split("\0") if line)
                self.environ = {name: names[name] for name in names if name.endswith(("_URL", "_TOKEN"))}
            case "code":
                self._see_code_migrated(done, is_written="--write" in words)
        self.steps.append(words[1])

    def _see_code_migrated(self, done: subprocess.CompletedProcess[str], *, is_written: bool) -> None:
        assert done.returncode == 1  # examples 2 and 3 are for a person
        assert ("+++ b/src/example_1.py" in done.stdout) is not is_written
        for line in ("example_2.py:2: call of a2a_client.receive_task()", 'see "Example 3: Upload an artifact"'):
            assert line in done.stdout
        assert ("message_bus_url" not in (self.folder / "src/example_1.py").read_text(encoding="utf-8")) is is_written

    def _serve(self) -> None:
        served = self._stack.enter_context(
            necrocode_serve(self.folder, "all", "--port", "0", "--data-dir", str(self.folder / "data"))
        )
        self.place.urls |= {name: served.urls[service] for name, service in SERVICES.items()}
        with TaskRegistryClient(self.place.urls["registry"]) as registry:  # what a dispatcher has put into it
            task = {"task_id": "1.1", "spec_name": "chat-app", "title": "t", "description": "d", "repo_url": "/r"}
            registry.register_task(TaskContext(**task))  # type: ignore[arg-type]
        for block in self._waiting:
            self._take_code(block)
        self.steps.append("serve")

    def _run_example(self, words: list[str]) -> None:
        del self.environ["OPENAI_API_KEY"]  # it opens nothing: the example replays a recorded answer
        urls = {f"{name}_URL": self.place.urls[key] for key, name in VARIABLES.items()}
        done = self.shell(f"python {ROOT / words[0]}", TMPDIR=str(self.folder), LC_ALL="C.UTF-8", **urls)
        assert "The task is done." in done.stdout, done.stdout + done.stderr
        self.environ["OPENAI_API_KEY"] = "your-api-key"
        self.steps.append("example")

    def _ask(self, command: str) -> None:
        for service, port in PORTS.items():
            command = command.replace(f"http://localhost:{port}", self.place.urls[service])
        command = command.replace("https://api.openai.com", self.place.urls["model"])
        with RepoPoolClient(self.place.urls["pool"]) as pool:
            held = pool.allocate_slot(str(self.place.checkout), "runner-9").slot_id if "{slot_id}" in command else ""
            done = self.shell(command.replace("{slot_id}", held) + (" --fail -sS" if command[:4] == "curl" else ""))
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip(), command
            assert not held or all(slot.state == "available" for one in pool.pools_status() for slot in one.slots)
        self.steps.append("ask")


VARIABLES = {"registry": "TASK_REGISTRY", "pool": "REPO_POOL", "store": "ARTIFACT_STORE"}


class AtRepository(Loopback):
    """As its base, with a repository that is here in the place of the guide's."""

    def __init__(self, place: Loopback) -> None:
        super().__init__(place.checkout, place.answer, place.sent, place.asked, place.urls)

    def placed(self, text: str) -> str:
        return super().placed(text).replace(GUIDE_REPOSITORY_URL, str(self.checkout))


@pytest.fixture
def walk(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)

    with ExitStack() as stack:
        walk = Walk(project, repository, stack)

        def model(request: Request) -> Answer:
            return walk.place.script("model", request) if request.method == "POST" else Answer(200, {"data": []})

        server = stack.enter_context(serving(model))
        walk.place.urls["model"] = server.url
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "your-api-key")
        yield walk


def test_all_that_the_guide_shows_can_be_done_from_top_to_bottom(walk: Walk) -> None:
    document = Document(ROOT / "MIGRATION.md")
    old = [block for block in document.blocks_of("python") if is_old_side(block)]
    for number, block in enumerate(old, 1):
        (walk.folder / "src" / f"example_{number}.py").write_text(block.text, encoding="utf-8")
    for block in document.blocks:
        walk.take(block)
    assert [walk.steps.count(step) for step in ("settings", "config", "env", "serve", "example")] == [1, 1, 1, 1, 1]
    assert [walk.steps.count(step) for step in ("variable", "code", "ask")] == [4, 8 + 2, 7]
    (result,) = [result for result in walk.results if result is not None]
    assert (result.status, result.error, result.reported) == ("done", None, "yes")
    assert files_at(walk.place.checkout, result.branch)["user.py"] == b"class User:\n    pass\n"
    with TaskRegistryClient(walk.place.urls["registry"]) as registry:
        assert registry.get_task("1.1", spec_name="chat-app").status == "done"
        assert registry.get_task("2.1", spec_name="shop").status == "done"  # the example's
