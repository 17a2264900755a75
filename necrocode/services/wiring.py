"""From settings to services, chosen by URL scheme and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator

from necrocode.agent_runner._git import Git, RemoteRules
from necrocode.agent_runner._names import TOKEN_HOSTS, check_host, expand_home
from necrocode.agent_runner._strict import StrictModel
from necrocode.agent_runner.clients.artifact_store_local import LocalArtifactStore
from necrocode.agent_runner.clients.repo_pool_local import LocalRepoPool
from necrocode.agent_runner.clients.task_registry_local import LocalTaskRegistry
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.llm_config import checked_http_url, checked_token
from necrocode.services.artifact_store import artifact_store_service
from necrocode.services.repo_pool import read_pools_file, repo_pool_service
from necrocode.services.task_registry import task_registry_service

if TYPE_CHECKING:
    from necrocode.agent_runner.clients._artifact_store import SidecarArtifactStore
    from necrocode.services._app import Service

ServiceName = Literal["task-registry", "repo-pool", "artifact-store"]
SERVICE_NAMES: tuple[ServiceName, ...] = ("task-registry", "repo-pool", "artifact-store")
_DAY_SECONDS = 86_400.0


class ServeSettings(StrictModel):
    """What the services are started with. With none given, their data is where embedded ones keep theirs."""

    what: ClassVar[str] = "service settings"
    secret_fields: ClassVar[frozenset[str]] = frozenset({"token", "git_token", "database_url"})

    data_dir: Path = Field(default_factory=lambda: Path.home() / ".necrocode")
    """Where everything is kept that no URL places elsewhere."""
    database_url: SecretStr | None = None
    """The registry's database: ``sqlite:///path`` or ``postgresql://…``. None: SQLite in ``data_dir``."""
    store_url: str | None = None
    """Where artifacts go: ``file:///folder`` or ``s3://bucket/prefix``. None: a folder in ``data_dir``."""
    public_url: str | None = None
    """The artifact store's URL as callers reach it, for the URIs that it gives out. None: as each caller reached it."""
    quota_bytes: int | None = Field(default=None, ge=1)
    """The most that the artifact store keeps. None: no limit."""
    pool_size: int = Field(default=5, ge=1, le=1000)
    """Slots per repository."""
    pools_file: Path | None = None
    """YAML: pools to make, and keep warm, at the start."""
    allowed_sources: tuple[str, ...] | None = None
    """Hosts and folders that the pool may have repositories from. None: whatever the embedded pool takes."""
    token: SecretStr | None = None
    """The bearer token that callers must send. None: none is asked for."""
    git_token: SecretStr | None = None
    """For https repositories of the pool."""
    git_token_hosts: tuple[str, ...] = TOKEN_HOSTS
    """The hosts that the git token may be sent to, with a port or, for any port, without."""

    @field_validator("data_dir", "pools_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else expand_home(value).absolute()

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        return None if value is None else checked_http_url(value)

    @field_validator("git_token_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_host, value))

    @field_validator("token", "git_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        return checked_token(value)

    def secrets(self) -> tuple[str, ...]:
        """What must be masked: tokens, and the password in the database's URL."""
        given = [value.get_secret_value() for value in (self.token, self.git_token) if value is not None]
        url = "" if self.database_url is None else self.database_url.get_secret_value()
        password = urlsplit(url).password
        return (*given, unquote(password)) if password else tuple(given)


def build_service(name: ServiceName, settings: ServeSettings) -> Service:
    """One service over its store; nothing is opened before it starts. Raises ``ConfigurationError``."""
    if name == "task-registry":
        return task_registry_service(LocalTaskRegistry(_database_url(settings)))
    if name == "repo-pool":
        return repo_pool_service(
            LocalRepoPool(settings.data_dir / "pool", _git(settings), pool_size=settings.pool_size),
            pools=None if settings.pools_file is None else read_pools_file(settings.pools_file),
            allowed_sources=settings.allowed_sources,
        )
    return artifact_store_service(
        _store(settings),
        answers_file=settings.data_dir / "artifact-store-answers.db",
        public_url=settings.public_url,
        sweep_every_seconds=_DAY_SECONDS,
    )


def _database_url(settings: ServeSettings) -> str:
    if settings.database_url is None:
        return f"sqlite:///{settings.data_dir / 'registry.db'}"
    return settings.database_url.get_secret_value()


def _git(settings: ServeSettings) -> Git:
    token = settings.git_token
    rules = RemoteRules(token_hosts=settings.git_token_hosts)
    return Git(settings.data_dir / "git", None if token is None else token.get_secret_value(), rules)


def _store(settings: ServeSettings) -> SidecarArtifactStore:
    url = settings.store_url
    if url is not None and url.startswith("s3://"):
        from necrocode.agent_runner.clients.artifact_store_s3 import S3ArtifactStore  # noqa: PLC0415  an extra, and slow

        return S3ArtifactStore(
            url, spool_dir=settings.data_dir / "spool", compress=True, quota_bytes=settings.quota_bytes
        )
    return LocalArtifactStore(_folder(url, settings), compress=True, quota_bytes=settings.quota_bytes)


def _folder(url: str | None, settings: ServeSettings) -> Path:
    if url is None:
        return settings.data_dir / "artifacts"
    if not url.startswith("file:///"):
        raise ConfigurationError(f"The store URL {url!r} must be file:///folder or s3://bucket/prefix.")
    return Path(unquote(urlsplit(url).path))
