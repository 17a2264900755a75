"""How the snippets of the user's own guide and of our documents are told apart, checked and run."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from necrocode import cli
from necrocode.agent_runner import (
    LLMConfig,
    PoolSet,
    RunnerConfig,
    RunnerOrchestrator,
    TaskContext,
    TaskRegistryClient,
)
from necrocode.agent_runner.clients.llm_openai import OPENAI_ENDPOINT
from necrocode.agent_runner.playbook import Playbook, load_playbook
from tests.docs.markdown import Block
from tests.support.http_server import Answer, Request, ScriptedServer, serving
from tests.support.model_server import completion
from tests.support.shared import ROOT
from tests.support.wire_service import Call

# What the guide's snippets take as given.
PREAMBLE = """\
import os
from pathlib import Path
from necrocode.agent_runner import RunnerOrchestrator, TaskContext, TaskRegistryClient

orchestrator: RunnerOrchestrator
diff_content: str
task_registry_client: TaskRegistryClient
"""
ANSWER = json.dumps(
    {"changes": [{"operation": "create", "file_path": "user.py", "content": "class User:\n    pass\n"}]}
)
DIFF = "diff --git a/見本.py b/見本.py\n"

_OLD_NAMES = re.compile(r"A2A|Message[ _]?Bus|Kiro|AgentRegistry", re.IGNORECASE)


def is_old_side(block: Block) -> bool:
    """Whether the code, comments left out, speaks of what the new architecture does not have."""
    return _OLD_NAMES.search(block.code) is not None


# ---- Python -------------------------------------------------------------------------------------------------------

REPOSITORY_URLS = ("https://github.com/user/shop.git",)
GUIDE_REPOSITORY_URL = "https://github.com/user/repo.git"  # only ever sent to a pool
PORTS = {"registry": 8001, "pool": 8002, "store": 8003}

# The requests that every runner built from the guide sends: to whom, how, where.
GUIDE_REQUESTS = {
    ("registry", "PUT", "/tasks/{}/status"),
    ("registry", "POST", "/tasks/{}/events"),
    ("registry", "POST", "/tasks/{}/artifacts"),
    ("pool", "POST", "/slots/allocate"),
    ("pool", "POST", "/slots/{}/release"),
    ("pool", "GET", "/slots/{}"),
    ("pool", "GET", "/pools/status"),
    ("store", "POST", "/artifacts"),
    *((service, "GET", "/health") for service in PORTS),
}


@dataclass
class Sent:
    """One request to a service: its body is JSON, or the parts of a form."""

    service: str
    method: str
    path: str
    body: Any = None

    @property
    def kind(self) -> tuple[str, str, str]:
        return self.service, self.method, re.sub(r"(?<=/tasks/)[^/]+|(?<=/slots/)(?!allocate)[^/]+", "{}", self.path)


@dataclass
class Loopback:
    """Services that know the guide's requests and no others, and a model; ``checkout`` stands for /workspace."""

    checkout: Path
    answer: str = ANSWER
    sent: list[Sent] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)

    def script(self, service: str, request: Request) -> Answer:
        if service == "model":
            self.asked.append(request.json)
            return Answer(200, completion(self.answer))
        is_form = request.headers.get("content-type", "").startswith("multipart/")
        form = Call(request.method, request.path, {}, request.headers, request.body).form if is_form else None
        self.sent.append(Sent(service, request.method, request.path.partition("?")[0], form or _json(request)))
        if self.sent[-1].kind not in GUIDE_REQUESTS:
            return Answer(404, {"type": "no-such-endpoint", "title": "not found", "status": 404})
        if request.path == "/health":
            return Answer(200, {"status": "ok", "service": service, "version": "1", "capabilities": []})
        return Answer(200 if request.method == "PUT" else 201, self._answer_of(service, request))

    def _answer_of(self, service: str, request: Request) -> dict[str, Any]:
        if service == "store":
            return {"uri": f"s3://artifacts/{len(self.sent)}", "artifact_id": str(len(self.sent))}
        if request.path == "/pools/status":
            return {"pools": []}
        return {"slot_id": "slot-1", "slot_path": "/slots/1"} if request.path.endswith("/allocate") else {}

    def placed(self, text: str) -> str:
        """The snippet with the places of this loopback: the one thing about it that is replaced when it runs."""
        for service, port in PORTS.items():
            text = text.replace(f"http://localhost:{port}", self.urls[service])
        for url in REPOSITORY_URLS:
            text = text.replace(url, str(self.checkout))
        return text.replace('"/workspace"', repr(str(self.checkout)))

    def run(self, block: Block) -> dict[str, Any]:
        """Run a snippet as it is written; the names that it leaves."""
        names: dict[str, Any] = {}
        exec(PREAMBLE, names)  # noqa: S102  our own text
        urls = {f"{name}_url": self.urls[service] for name, service in _SETTINGS.items()}
        names["orchestrator"] = RunnerOrchestrator(RunnerConfig(llm_config=LLMConfig(model="gpt-4"), **urls))
        names["task_registry_client"] = TaskRegistryClient(self.urls["registry"])
        names["diff_content"] = DIFF
        exec(compile(self.placed(block.text), str(block), "exec"), names)  # noqa: S102  the documents' own code
        return names


_SETTINGS = {"task_registry": "registry", "repo_pool": "pool", "artifact_store": "store"}


@contextmanager
def loopback(checkout: Path) -> Iterator[Loopback]:
    """The services and the model, running."""
    place = Loopback(checkout)
    with ExitStack() as stack:
        for service in (*PORTS, "model"):
            server: ScriptedServer = stack.enter_context(
                serving(lambda request, service=service: place.script(service, request))
            )
            place.urls[service] = server.url
        yield place


def _json(request: Request) -> Any:
    return request.json if request.body else None


# ---- YAML ---------------------------------------------------------------------------------------------------------


def load_yaml_block(block: Block, folder: Path) -> RunnerConfig | TaskContext | Playbook | PoolSet:
    """The block as what it is: pools, a task, a playbook, or settings."""
    file = folder / "block.yaml"
    file.write_text(block.text, encoding="utf-8")
    keys = set(re.findall(r"^(\w+):", block.text, re.MULTILINE))
    if "pools" in keys:
        return PoolSet(**yaml.safe_load(block.text))
    if "task_id" in keys:
        return TaskContext.from_yaml(file)
    if keys & {"name", "instructions"}:
        task = TaskContext(task_id="1", spec_name="s", title="t", description="d", repo_url="r", playbook_path=file)
        return load_playbook(task)
    return RunnerConfig.from_yaml(file, environ={})


# ---- Shell --------------------------------------------------------------------------------------------------------

# The images are made from the Dockerfile, which test_guide_snippets.py reads.
SERVICE_COMMANDS = {
    "docker run -p 8001:8001 necrocode/task-registry",
    "docker run -p 8002:8002 necrocode/repo-pool",
    "docker run -p 8003:8003 necrocode/artifact-store",
    "docker-compose up -d",
    "docker logs task-registry",
}
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_PLACEHOLDER = re.compile(r"\{\w+\}")


def check_command(line: str) -> None:
    """Fail unless every command of the line is one that works, or is a known service's."""
    for command in line.split(" && "):
        if command in SERVICE_COMMANDS:
            continue
        program, *arguments = shlex.split(command)
        check = _CHECKS.get(Path(program).name)
        assert check is not None, f"nobody knows whether this works: {command}"
        check(arguments)


def _check_python(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "venv"]:
        return
    assert (ROOT / arguments[0]).is_file(), arguments


def _check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(arguments[0])}:", makefile, re.MULTILINE), f"no such target: {arguments[0]}"


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for place in (argument for argument in arguments[1:] if argument.startswith((".", "necrocode"))):
        extras = re.findall(r"[a-z0-9]+", place.partition("[")[2])
        assert set(extras) <= set(_PROJECT["optional-dependencies"])
        return
    dependencies = {re.split(r"\W", requirement)[0] for requirement in _PROJECT["dependencies"]}
    assert set(arguments[1:]) <= dependencies


def _check_pytest(arguments: list[str]) -> None:
    assert arguments == ["-n", "3"]
    assert any(requirement.startswith("pytest-xdist") for requirement in _PROJECT["optional-dependencies"]["dev"])


def _check_export(arguments: list[str]) -> None:
    check_variable(arguments[0].partition("=")[0])


def _check_echo(arguments: list[str]) -> None:
    check_variable(arguments[0].removeprefix("$"))


def _check_curl(arguments: list[str]) -> None:
    method = arguments[arguments.index("-X") + 1] if "-X" in arguments else "GET"
    url = next(argument for argument in arguments if argument.startswith("http"))
    if url.startswith(OPENAI_ENDPOINT):
        return
    service = next(service for service, port in PORTS.items() if url.startswith(f"http://localhost:{port}/"))
    path = _PLACEHOLDER.sub("{}", "/" + url.split("/", 3)[3])
    assert (service, method, path) in GUIDE_REQUESTS


def _check_necrocode(arguments: list[str]) -> None:
    try:
        cli.command_parser().parse_args(arguments)
    except cli._UsageError as error:
        raise AssertionError(f"{arguments}: {error}") from error


def _check_git(arguments: list[str]) -> None:
    assert arguments[0] == "show"  # test_quickstart.py types it


_CHECKS = {
    "curl": _check_curl,
    "echo": _check_echo,
    "export": _check_export,
    "git": _check_git,
    "make": _check_make,
    "necrocode": _check_necrocode,
    "pip": _check_pip,
    "pytest": _check_pytest,
    "python": _check_python,
    "python3": _check_python,
}

# ---- Environment --------------------------------------------------------------------------------------------------

_VALUE = {"URL": "http://127.0.0.1:1", "DIR": "/state"}


def setting_of(variable: str) -> str | None:
    """The setting that an environment variable sets, found by setting it: ``llm.x`` for one of the model's."""
    value = _VALUE.get(variable.rpartition("_")[2], "value")
    given, default = RunnerConfig.from_env(environ={variable: value}), RunnerConfig.from_env(environ={})
    for prefix, one, other in (("", given, default), ("llm.", given.llm_config, default.llm_config)):
        changed = [name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]
        changed = [name for name in changed if name != "llm_config"]
        if changed:
            assert len(changed) == 1
            return prefix + changed[0]
    return None


def check_variable(name: str) -> None:
    """Fail unless the variable sets something: a setting, or what tests, example, benchmark or a test command read."""
    folders = ("necrocode/cli", "necrocode/agent_runner/sandbox", "tests", "examples", "benchmarks")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    readers = [path for path in files if path.parent != Path(__file__).parent]
    is_read = setting_of(name) is not None or any(f'"{name}"' in path.read_text(encoding="utf-8") for path in readers)
    is_read = is_read or f"${{{name}:-" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert is_read, f"nothing reads the variable {name}"
