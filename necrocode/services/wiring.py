"""From settings to services, chosen by URL scheme and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from necrocode.agent_runner._git import Git
from necrocode.agent_runner._names import expand_home
from necrocode.agent_runner._strict import StrictModel
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.services._app import Service, create_app

if TYPE_CHECKING:
    from fastapi import FastAPI

ServiceName = Literal["task-registry", "repo-pool", "artifact-store"]


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
    token: SecretStr | None = None
    """The bearer token that callers must send. None: none is asked for."""
    git_token: SecretStr | None = None
    """For https repositories of the pool."""
    rate_limit_per_second: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Requests per second and client address. 0: no limit."""

    @field_validator("data_dir", "pools_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else expand_home(value).absolute()
