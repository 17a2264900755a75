"""From settings to the objects that do the work, chosen by URL scheme and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from necrocode.agent_runner._git import Git, RemoteRules
from necrocode.agent_runner._redact import Redactor, secret_values
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.journals import Journals
from necrocode.agent_runner.llm_config import checked_token
from necrocode.agent_runner.outbox.background import BackgroundFlush
from necrocode.agent_runner.outbox.delivery import Sender
from necrocode.agent_runner.outbox.folder import Outbox
from necrocode.agent_runner.reconcile import slots_given_back
from necrocode.agent_runner.recovery import newest_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.generation.context_cache import ContextCache
    from necrocode.agent_runner.llm_config import LLMConfig
    from necrocode.agent_runner.outbox.book import RunBook, RunIdentity
    from necrocode.agent_runner.outbox.folder import FlushReport
    from necrocode.agent_runner.protocols import ArtifactStore, LanguageModel, RepoPool, Sandbox, TaskRegistry
    from necrocode.agent_runner.sandbox.request import Wall


@dataclass(frozen=True)
class Services:
    """What a run works with."""

    task_registry: TaskRegistry
    repo_pool: RepoPool
    artifact_store: ArtifactStore
    llm: LanguageModel
    sandbox: Sandbox
    git: Git
    redactor: Redactor
    journals: Journals
    outbox: Outbox
    """What could not be told."""
    flusher: BackgroundFlush
    """Tells it, beside the runs."""
    contexts: ContextCache | None = None
    """What was shown for a task before. None: it is chosen anew each time."""
    own: tuple[object, ...] = ()
    """Those that were made here and not passed in: whoever asked for them closes them."""

    def close(self) -> None:
        """Close connections and databases of the services that were made here."""
        self.flusher.close()
        for service in self.own:
            close: Callable[[], None] | None = getattr(service, "close", None)
            if close is not None:
                close()


def build_services(
    config: RunnerConfig,
    clock: Clock,
    *,
    task_registry: TaskRegistry | None = None,
    repo_pool: RepoPool | None = None,
    artifact_store: ArtifactStore | None = None,
    llm: LanguageModel | None = None,
    sandbox: Sandbox | None = None,
) -> Services:
    """The objects that the caller passes in, and for the rest those that the settings ask for; no network is used.

    Raises :class:`ConfigurationError`.
    """
    from necrocode.agent_runner.generation.context_cache import ContextCache  # noqa: PLC0415  as are the steps

    git_token = _secret(config.git_token, "GIT_TOKEN")
    service_token = _secret(config.service_token, "NECROCODE_SERVICE_TOKEN")
    llm_config = _with_key(config)
    rules = RemoteRules(config.git_allowed_protocols, config.git_allowed_hosts, config.git_token_hosts)
    git = Git(config.state_dir / "git", git_token, rules)
    secrets = (git_token, service_token, _password(config), *llm_config.secrets())
    redactor = Redactor((*filter(None, secrets), *secret_values(config.test_environment)))
    own: list[object] = []
    if task_registry is None:
        own.append(task_registry := _task_registry(config, clock, service_token))
    if repo_pool is None:
        own.append(repo_pool := _repo_pool(config, clock, service_token, git))
    outbox = outbox_of(config, partial(slots_given_back, repo_pool))
    if artifact_store is None:
        own.append(artifact_store := _artifact_store(config, clock, service_token))
    if sandbox is None:
        own.append(sandbox := _sandbox(config))
    return Services(
        task_registry=task_registry,
        repo_pool=repo_pool,
        artifact_store=artifact_store,
        llm=llm or _llm(llm_config, clock),
        sandbox=sandbox,
        git=git,
        journals=Journals(config.state_dir / "runs", clock),
        contexts=ContextCache(config.state_dir / "contexts", redactor.text),
        redactor=redactor,
        outbox=outbox,
        flusher=BackgroundFlush(
            outbox, lambda is_over: flush(outbox, task_registry, artifact_store, git, is_over=is_over)
        ),
        own=tuple(own),
    )


def outbox_of(config: RunnerConfig, clean_up: Callable[[RunIdentity], Sequence[str]] = lambda _run: ()) -> Outbox:
    """What runs with these settings could not tell yet."""
    return Outbox(config.state_dir / "outbox", config.outbox_max_bytes, clean_up)


def flush(
    outbox: Outbox,
    task_registry: TaskRegistry,
    artifact_store: ArtifactStore,
    git: Git,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> FlushReport:
    """Send what the outbox holds, the last patch of each run that died without a word included."""

    def find_work(book: RunBook) -> bytes:
        return b"" if book.repository is None else newest_patch(git, Path(book.repository), book.run.run_id)

    return outbox.flush(Sender(task_registry, artifact_store, is_over=is_over), find_work=find_work, is_over=is_over)


def pool_folder(config: RunnerConfig) -> Path | None:
    """Where the embedded pool is; None where a service is the pool."""
    url = config.repo_pool_url
    if url is not None and url.startswith("http"):
        return None
    return _folder("repo_pool_url", url, config.state_dir / "pool")


def _password(config: RunnerConfig) -> str | None:
    """The one in the registry's database URL, where there is one."""
    password = urlsplit(config.task_registry_url or "").password
    return unquote(password) if password else None


def _secret(configured: SecretStr | None, variable: str) -> str | None:
    if configured is not None:
        return configured.get_secret_value()
    try:
        token = checked_token(os.environ.get(variable))
    except ValueError as error:
        raise ConfigurationError(f"{variable} {error}.") from None
    return None if token is None else token.get_secret_value()


def _with_key(config: RunnerConfig) -> LLMConfig:
    from pydantic import SecretStr  # noqa: PLC0415  loaded with the settings already

    key = _secret(config.llm_config.api_key, config.llm_api_key_env_var)
    return config.llm_config.model_copy(update={"api_key": SecretStr(key) if key else None})


def _task_registry(config: RunnerConfig, clock: Clock, token: str | None) -> TaskRegistry:
    url = config.task_registry_url
    if url is not None and url.startswith("http"):
        from necrocode.agent_runner.clients.task_registry_http import TaskRegistryClient  # noqa: PLC0415

        return TaskRegistryClient(
            url,
            token=token,
            network_retry_count=config.network_retry_count,
            timeout_seconds=config.request_timeout_seconds,
        )
    if url is not None and not url.startswith(("sqlite:", "postgresql:", "postgres:")):
        scheme = url.partition("://")[0]  # the rest may hold a password
        raise ConfigurationError(
            f"task_registry_url has the scheme {scheme!r}; it must be http(s)://host:port, sqlite:///path or"
            " postgresql://user@host/database."
        )
    from necrocode.agent_runner.clients.task_registry_local import LocalTaskRegistry  # noqa: PLC0415

    return LocalTaskRegistry(url or f"sqlite:///{config.state_dir / 'registry.db'}", clock=clock)


def _repo_pool(config: RunnerConfig, clock: Clock, token: str | None, git: Git) -> RepoPool:
    url = config.repo_pool_url
    if url is not None and url.startswith("http"):
        from necrocode.agent_runner.clients.repo_pool_http import RepoPoolClient  # noqa: PLC0415

        return RepoPoolClient(
            url,
            token=token,
            network_retry_count=config.network_retry_count,
            timeout_seconds=config.request_timeout_seconds,
        )
    from necrocode.agent_runner.clients.repo_pool_local import LocalRepoPool  # noqa: PLC0415

    root = _folder("repo_pool_url", url, config.state_dir / "pool")
    return LocalRepoPool(root, git, pool_size=config.pool_size, clock=clock)


def _artifact_store(config: RunnerConfig, clock: Clock, token: str | None) -> ArtifactStore:
    url = config.artifact_store_url
    if url is not None and url.startswith("http"):
        from necrocode.agent_runner.clients.artifact_store_http import ArtifactStoreClient  # noqa: PLC0415

        return ArtifactStoreClient(
            url,
            token=token,
            network_retry_count=config.network_retry_count,
            timeout_seconds=config.request_timeout_seconds,
        )
    if url is not None and url.startswith("s3://"):
        from necrocode.agent_runner.clients.artifact_store_s3 import S3ArtifactStore  # noqa: PLC0415

        return S3ArtifactStore(
            url,
            network_retry_count=config.network_retry_count,
            timeout_seconds=config.request_timeout_seconds,
            spool_dir=config.state_dir / "spool",
            clock=clock,
        )
    from necrocode.agent_runner.clients.artifact_store_local import LocalArtifactStore  # noqa: PLC0415

    return LocalArtifactStore(
        _folder("artifact_store_url", url, config.state_dir / "artifacts", ", file:///folder or s3://bucket/prefix"),
        clock=clock,
    )


def _folder(setting: str, url: str | None, default: Path, others: str = " or file:///folder") -> Path:
    if url is None:
        return default
    if not url.startswith("file:///"):
        raise ConfigurationError(f"{setting} {url!r} must be http(s)://host:port{others}.")
    return Path(unquote(urlsplit(url).path))


def _sandbox(config: RunnerConfig) -> Sandbox:
    from necrocode.agent_runner.sandbox.confined import Policy  # noqa: PLC0415
    from necrocode.agent_runner.sandbox.docker import DockerSandbox  # noqa: PLC0415
    from necrocode.agent_runner.sandbox.ladder import LadderSandbox  # noqa: PLC0415
    from necrocode.agent_runner.sandbox.limits import Limits  # noqa: PLC0415
    from necrocode.agent_runner.sandbox.plain import PlainSandbox  # noqa: PLC0415

    root = config.state_dir / "layers"
    limits = Limits(
        kept_output_bytes=config.max_output_bytes,
        output_bytes=config.max_test_output_bytes,
        memory_bytes=config.max_test_memory_bytes,
        processes=config.max_test_processes,
        cpu_seconds=config.max_test_cpu_seconds,
        file_bytes=config.max_test_file_bytes,
        disk_bytes=config.max_test_disk_bytes,
    )
    if config.sandbox == "none":
        return PlainSandbox(root, limits)
    policy = Policy(config.state_dir, limits, config.sandbox_read_paths, has_network=config.sandbox_network)
    walls: dict[str, tuple[Wall, ...]] = {"auto": ("sandlock", "bwrap"), "sandlock": ("sandlock",), "bwrap": ("bwrap",)}
    docker = None
    if config.sandbox == "docker" and config.sandbox_image is None:
        raise ConfigurationError("sandbox: docker needs sandbox_image, the local image to run tests in.")
    if config.sandbox in {"auto", "docker"} and config.sandbox_image is not None:
        docker = DockerSandbox(root, config.sandbox_image, policy)
    return LadderSandbox(walls.get(config.sandbox, ()), root, policy, last=docker)


def _llm(config: LLMConfig, clock: Clock) -> LanguageModel:
    from necrocode.agent_runner.clients.llm_openai import LLMClient  # noqa: PLC0415

    return LLMClient(config, clock=clock)
