"""Settings: plain frozen values. Files and the environment are read by ``from_yaml`` and ``from_env`` alone."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_validator

from necrocode.agent_runner._names import (
    GIT_PROTOCOLS,
    TOKEN_HOSTS,
    GitProtocol,
    check_host,
    check_pattern,
    expand_home,
)
from necrocode.agent_runner._strict import StrictModel, read_yaml_mapping
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.llm_config import LLMConfig, checked_http_url, checked_token, secrets_of
from necrocode.agent_runner.removed import explain_setting, warn_of_variables
from necrocode.agent_runner.spending import BudgetConfig
from necrocode.agent_runner.test_results import PassRule

_EMBEDDED_URLS = ("sqlite:///", "postgresql://", "postgres://", "file:///", "s3://")
_VARIABLES = {
    "TASK_REGISTRY_URL": "task_registry_url",
    "REPO_POOL_URL": "repo_pool_url",
    "ARTIFACT_STORE_URL": "artifact_store_url",
    "GIT_TOKEN": "git_token",
    "NECROCODE_SERVICE_TOKEN": "service_token",
    "NECROCODE_STATE_DIR": "state_dir",
}


_OF_THE_SANDBOX = frozenset({"HOME", "TMPDIR", "NECROCODE_REPORTS"})
_MESSAGE_FIELDS = {"task_id", "spec_name", "title", "description", "run_id"}


def _default_state_dir() -> Path:
    try:
        return Path.home() / ".necrocode"
    except RuntimeError:
        raise ConfigurationError(
            "There is no home folder to keep state in.", hint="Set state_dir, or the variable NECROCODE_STATE_DIR."
        ) from None


class RunnerConfig(StrictModel):
    """All settings of a runner. With none given, registry, pool and store are embedded under ``state_dir``."""

    what: ClassVar[str] = "configuration"
    secret_fields: ClassVar[frozenset[str]] = frozenset(
        {"git_token", "service_token", "llm", "llm_config", "test_environment"}
    )

    execution_mode: Literal["local-process"] = "local-process"
    """Where a run happens. ``local-process``: in this process."""
    task_registry_url: str | None = None
    """``http(s)://`` a Task Registry service, ``sqlite:///path`` or ``postgresql://user@host/database`` a database.

    None: SQLite in ``state_dir``.
    """
    repo_pool_url: str | None = None
    """``http(s)://`` a Repo Pool Manager service, ``file:///path`` an embedded one. None: embedded in ``state_dir``."""
    artifact_store_url: str | None = None
    """``http(s)://`` an Artifact Store service, ``file:///path`` a folder, ``s3://bucket/prefix`` a bucket.

    None: embedded in ``state_dir``.
    """
    llm_config: LLMConfig = Field(default_factory=LLMConfig, validation_alias="llm")
    """Which model to ask; ``llm`` in YAML."""
    llm_api_key_env_var: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the model's key."""
    git_token: SecretStr | None = None
    """Token for https repositories, handed to git by askpass. None: the variable ``GIT_TOKEN``, when needed."""
    git_token_hosts: tuple[str, ...] = TOKEN_HOSTS
    """The hosts that the token may be sent to, with a port (``git.example.com:8443``) or, for any port, without."""
    git_allowed_protocols: tuple[GitProtocol, ...] = GIT_PROTOCOLS
    """How git may reach repositories; ``file`` is this machine."""
    git_allowed_hosts: tuple[str, ...] | None = None
    """From which hosts, named as in ``git_token_hosts``. None: any but link-local and metadata addresses."""
    service_token: SecretStr | None = None
    """Bearer token for the three services. None: the variable ``NECROCODE_SERVICE_TOKEN``, when needed."""
    network_retry_count: int = Field(default=3, ge=0, le=20)
    """Further tries of a service call after a connection error, 408, 425, 429 or 5xx. 0: none."""
    request_timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """How long one service call may wait for an answer."""
    state_dir: Path = Field(default_factory=_default_state_dir)
    """Where embedded services and run-time files live."""
    journal_keep_days: float = Field(default=30.0, gt=0, le=36_500, allow_inf_nan=False)
    """How long the journals of runs are kept below ``state_dir``, from their last entry on."""
    runner_id: str | None = Field(default=None, min_length=1, max_length=200)
    """This runner's name in registry and pool. None: host name, process id and a random part."""
    pool_size: int = Field(default=5, ge=1, le=1000)
    """The most slots per repository of the embedded pool."""
    slot_timeout_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """How long to wait for a free slot. 0: do not wait."""
    lease_seconds: float = Field(default=60.0, ge=3, allow_inf_nan=False)
    """How long the task and the slot stay ours without a heartbeat; heartbeats come three times as often."""
    push: bool = True
    """Whether the branch is pushed to the repository the slot came from. False: it stays in the slot's repository."""
    commit_author_name: str = Field(default="necrocode", min_length=1, max_length=200, pattern=r"^[^<>\n\x00]+$")
    """Author and committer of the commits."""
    commit_author_email: str = Field(default="necrocode@localhost", pattern=r"^[^<>\s\x00]+$", max_length=200)
    """A delivered branch is replaced by a later attempt only while all its commits are by this address."""
    commit_message: str = Field(default="feat(task-{task_id}): {title}", min_length=1)
    """Template with ``{task_id}``, ``{spec_name}``, ``{title}``, ``{description}``, ``{run_id}``."""
    max_changed_files: int = Field(default=200, ge=1)
    """A change set with more files is refused."""
    max_file_bytes: int = Field(default=2_000_000, ge=1)
    """A change set with a larger file is refused."""
    max_total_bytes: int = Field(default=10_000_000, ge=1)
    """A larger change set is refused."""
    protected_paths: tuple[str, ...] = ()
    """Patterns (``deploy/*``, ``*.tf``; ``/x`` at the top alone) of files to protect besides CI's and git's own."""
    protected_paths_policy: Literal["flag", "refuse"] = "flag"
    """What becomes of a change to a protected file. ``flag``: it is told. ``refuse``: the answer is refused."""
    max_repair_rounds: int = Field(default=2, ge=0, le=50)
    """How often the model may mend what it did: an answer that cannot be used, or failing tests. 0: never."""
    max_output_bytes: int = Field(default=1_000_000, ge=1000)
    """How much of each test command's output is kept: its beginning and its end."""
    sandbox: Literal["auto", "sandlock", "bwrap", "docker", "none"] = "auto"
    """What confines test commands. ``auto``: the first that works here of sandlock, bwrap and, if ``sandbox_image`` is
    set, docker; where none does, a run ends with an error before the model is asked. ``none``: nothing does."""
    sandbox_network: bool = False
    """Whether test commands may use the network."""
    sandbox_read_paths: tuple[str, ...] = ()
    """Files and folders that test commands see, read-only, besides the system's programs and the tools on the PATH."""
    sandbox_image: str | None = Field(default=None, min_length=1)
    """The local docker image that test commands run in, for ``docker``; it is never pulled."""
    max_test_output_bytes: int = Field(default=1 << 30, ge=1000)
    """A test command that writes more output is stopped (``output-limit``)."""
    max_test_memory_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """A test command whose processes together take up more memory is stopped (``oom``)."""
    max_test_processes: int = Field(default=1024, ge=1)
    """A test command with more processes and threads at once is stopped (``process-limit``)."""
    max_test_cpu_seconds: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """A test command whose processes together take more processor time is stopped (``cpu-limit``)."""
    max_test_file_bytes: int = Field(default=2 << 30, ge=1 << 20)
    """A test command that makes a larger file is stopped (``disk-limit``)."""
    max_test_disk_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """A test command is stopped when what was written takes up more space on disk (``disk-limit``)."""
    test_environment: dict[str, str] = Field(default_factory=dict)
    """Variables that test and set-up commands see besides the few allowed ones (PATH, LANG, LANGUAGE, LC_*, TZ, TERM).

    Masked in all that a run writes are values of those named like a key, token, secret or password, and passwords in
    URLs.
    """
    setup_network: bool = True
    """Whether a task's ``setup_commands`` may use the network, whatever ``sandbox_network`` says of its tests."""
    setup_files: tuple[str, ...] = ()
    """Globs of files that decide what ``setup_commands`` install, besides the lock and dependency files that are known
    by name (see docs/tasks.md): ``tools/*.txt``. While none of them changes, what was installed is used again."""
    setup_cache_bytes: int = Field(default=10 << 30, ge=0)
    """How much disk what ``setup_commands`` installed may take up in ``state_dir``. 0: nothing is kept or used."""
    detect_tests: bool = True
    """Whether a task that names no test commands gets those that the project's files suggest; needs ``test_base``."""
    test_base: bool = True
    """Whether the tests are also run on the base, once per base and commands, so that a change is judged against it."""
    pass_rule: PassRule = "exit-code"  # noqa: S105  a rule on passing, no password
    """``exit-code``: every command must exit with 0. ``no-new-failures``: one whose failing cases all failed on the
    base too is accepted."""
    tamper: Literal["flag", "refuse"] = "flag"
    """What becomes of a change that touches the tests it is judged by. ``flag``: it is told. ``refuse``: the
    answer is refused if test configuration or CI is touched, if tests are removed or disabled, or if the base's version
    of the tests fails on the changed code; without repair rounds the run fails."""
    outbox_max_bytes: int = Field(default=256_000_000, ge=0)
    """How large what is kept for services that cannot be reached may get, all runs together. 0: nothing is kept."""
    budget: BudgetConfig | None = None
    """What may be spent on the model: by each run, by all of a process, by all of a spec. None: no limits."""

    @field_validator("task_registry_url", "repo_pool_url", "artifact_store_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None or value.startswith(_EMBEDDED_URLS):
            return value
        return checked_http_url(value)

    @field_validator("git_token", "service_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        return checked_token(value)

    @field_validator("commit_message")
    @classmethod
    def _check_commit_message(cls, value: str) -> str:
        for _, name, form, conversion in string.Formatter().parse(value):
            if name is not None and (name not in _MESSAGE_FIELDS or form or conversion):
                raise ValueError(
                    "may only use {task_id}, {spec_name}, {title}, {description} and {run_id}, each plainly so"
                )
        return value

    @field_validator("git_token_hosts", "git_allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(map(check_host, value))

    @field_validator("protected_paths")
    @classmethod
    def _check_protected_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_pattern, value))

    @field_validator("sandbox_read_paths")
    @classmethod
    def _check_read_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not path.startswith("/") or "\0" in path for path in value):
            raise ValueError("must be absolute paths")
        return value

    @field_validator("setup_files")
    @classmethod
    def _check_setup_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(glob.startswith("/") for glob in value):
            raise ValueError("must be globs of paths inside the repository")
        return tuple(map(check_pattern, value))

    @field_validator("test_environment")
    @classmethod
    def _check_test_environment(cls, value: dict[str, str]) -> dict[str, str]:
        if any(not name or "=" in name or "\0" in name + text for name, text in value.items()):
            raise ValueError("names must not be empty or hold '=', and neither names nor values a NUL")
        if own := sorted(_OF_THE_SANDBOX.intersection(value)):
            raise ValueError(f"may not set {', '.join(own)}: each run has its own")
        return value

    @field_validator("state_dir", mode="before")
    @classmethod
    def _refuse_empty_state_dir(cls, value: object) -> object:
        if value == "":
            raise ValueError("must name a folder")
        return value

    @field_validator("state_dir")
    @classmethod
    def _expand_state_dir(cls, value: Path) -> Path:
        return expand_home(value).absolute()

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *,
        environ: Mapping[str, str] | None = None,
        **arguments: Any,  # noqa: ANN401  any field
    ) -> Self:
        """The settings in a YAML file; the environment overrides the file, and ``arguments`` override both.

        ``~`` in ``state_dir`` is the home folder. Raises :class:`ConfigurationError`.
        """
        data = read_yaml_mapping(Path(path), what="configuration file", error_type=ConfigurationError)
        return cls._merged(data, os.environ if environ is None else environ, arguments)

    @classmethod
    def from_env(cls, *, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:  # noqa: ANN401  any field
        """The settings in ``TASK_REGISTRY_URL``, ``REPO_POOL_URL``, ``ARTIFACT_STORE_URL``, ``OPENAI_API_KEY``,
        ``OPENAI_BASE_URL``, ``GIT_TOKEN``, ``NECROCODE_SERVICE_TOKEN`` and ``NECROCODE_STATE_DIR``.

        ``arguments`` override them. An empty variable counts as not set.
        """  # noqa: D205  the list of variables is one sentence
        return cls._merged({}, os.environ if environ is None else environ, arguments)

    @classmethod
    def _given_secrets(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        own = (data.get(name) for name in ("git_token", "service_token", "test_environment"))
        llm = (one for name in ("llm", "llm_config") if isinstance(one := data.get(name), Mapping))
        found = (*map(secrets_of, own), *map(LLMConfig._given_secrets, llm))  # noqa: SLF001  the same question
        return tuple(chain.from_iterable(found))

    @classmethod
    def _suggestion(cls, key: str) -> str:
        removed = explain_setting(key)
        return super()._suggestion(key) if removed is None else f" ({removed})"

    @classmethod
    def _merged(cls, data: dict[str, Any], environ: Mapping[str, str], arguments: dict[str, Any]) -> Self:
        warn_of_variables(environ, stacklevel=3)  # shown where from_yaml or from_env is called
        file_values, argument_values = _llm_by_field_name(data), _llm_by_field_name(arguments)
        environment = {field: environ[name] for name, field in _VARIABLES.items() if environ.get(name)}
        given = file_values | environment | argument_values
        if not isinstance(given.get("llm_config"), LLMConfig):
            key_variable = str(given.get("llm_api_key_env_var", "OPENAI_API_KEY"))
            llm_environment = {
                "api_key": environ.get(key_variable),
                "endpoint": environ.get("OPENAI_BASE_URL"),
            }
            given["llm_config"] = (  # a mapping still: what is wrong in it is told with what else is wrong
                _mapping(file_values.get("llm_config"))
                | {field: value for field, value in llm_environment.items() if value}
                | _mapping(argument_values.get("llm_config"))
            )
        return cls(**given)


def _llm_by_field_name(values: dict[str, Any]) -> dict[str, Any]:
    if "llm" in values and "llm_config" in values:
        raise ConfigurationError("Invalid configuration: llm and llm_config are one setting, and both are given.")
    return {("llm_config" if key == "llm" else key): value for key, value in values.items()}


def _mapping(llm: object) -> dict[str, Any]:
    if llm is None:
        return {}
    if not isinstance(llm, Mapping) or not all(isinstance(key, str) for key in llm):
        raise ConfigurationError("Invalid configuration: llm must be a mapping of names to values.")
    return dict(llm)
