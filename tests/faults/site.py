"""The three services and a model, each behind a proxy that can spoil what passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from necrocode.agent_runner import (
    LLMConfig,
    LocalArtifactStore,
    LocalRepoPool,
    LocalTaskRegistry,
    Progress,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    TaskContext,
)
from necrocode.agent_runner._git import Git
from necrocode.services._app import create_app
from necrocode.services.artifact_store import artifact_store_service
from necrocode.services.repo_pool import repo_pool_service
from necrocode.services.task_registry import task_registry_service
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.http_server import Answer, Request, ScriptedServer
from tests.support.model_server import as_asked, as_files, completion
from tests.support.repositories import CALC_FILES, CALC_TEST_COMMAND, FIXED_CALC, make_repository
from tests.support.served import served

TOKEN = "a-token-for-tests"
SERVICES = ("task_registry", "repo_pool", "artifact_store", "llm")
SPEC = "faults"
_TITLE = re.compile(r"^# Task \S+: (\S+)$", re.MULTILINE)


@dataclass
class Site:
    """Where runs happen; each test takes a task and a repository of its own."""

    folder: Path
    registry: LocalTaskRegistry
    pool: LocalRepoPool
    store: LocalArtifactStore
    proxies: dict[str, FaultProxy]
    asked: dict[str, int] = field(default_factory=dict)
    """How often the model answered, by the task's title."""

    def task(self, name: str) -> TaskContext:
        return TaskContext(
            task_id=name,
            spec_name=SPEC,
            title=name,
            description="add() subtracts.",
            repo_url=str(make_repository(self.folder / "origins" / name, CALC_FILES)),
            test_commands=[CALC_TEST_COMMAND],
        )

    def orchestrator(self, name: str, on_progress: Callable[[Progress], None]) -> RunnerOrchestrator:
        url = {service: proxy.url for service, proxy in self.proxies.items()}
        config = RunnerConfig(
            task_registry_url=url["task_registry"],
            repo_pool_url=url["repo_pool"],
            artifact_store_url=url["artifact_store"],
            service_token=TOKEN,
            state_dir=self.folder / "states" / name,
            sandbox="none",
            network_retry_count=0,
            request_timeout_seconds=1,
            llm=LLMConfig(
                endpoint=f"{url['llm']}/v1", api_key="unused", retry_count=0, timeout_seconds=2, idle_timeout_seconds=1
            ),
        )
        return RunnerOrchestrator(config, on_progress=on_progress)

    def run(self, task: TaskContext, service: str, step: str, fault: Fault | None) -> RunnerResult:
        """The task's run, in which a service is spoiled from the beginning of a step until the run has ended."""
        proxy = self.proxies[service]

        def spoil(progress: Progress) -> None:
            if progress.step == step and progress.seconds is None:
                proxy.fault = fault

        try:
            with self.orchestrator(task.task_id, spoil) as orchestrator:
                return orchestrator.run(task)
        finally:
            proxy.fault = None


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """All of it, running."""
    asked: dict[str, int] = {}

    def script(request: Request) -> Answer:
        name = _TITLE.findall(request.json["messages"][1]["content"])[-1]
        asked[name] = asked.get(name, 0) + 1
        return as_asked(request, completion(as_files({"calc.py": FIXED_CALC})))

    answers = folder / "served" / "answers.db"
    # The slot of an allocation whose answer was lost stays held until its lease is over: there is another.
    pool = LocalRepoPool(folder / "served" / "pool", Git(folder / "served" / "git"), pool_size=2)
    with ExitStack() as stack:
        registry = stack.enter_context(LocalTaskRegistry(f"sqlite:///{folder / 'served' / 'registry.db'}"))
        store = LocalArtifactStore(folder / "served" / "store")
        services = {
            "task_registry": task_registry_service(registry),
            "repo_pool": repo_pool_service(pool),
            "artifact_store": artifact_store_service(store, answers_file=answers),
        }
        urls = {name: stack.enter_context(served(create_app(one, token=TOKEN))) for name, one in services.items()}
        urls["llm"] = stack.enter_context(ScriptedServer(script)).url
        proxies = {name: stack.enter_context(FaultProxy(url)) for name, url in urls.items()}
        yield Site(folder, registry, pool, store, proxies, asked)
