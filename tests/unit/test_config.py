from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from necrocode.agent_runner import ConfigurationError, LLMConfig, RunnerConfig
from necrocode.agent_runner._strict import read_yaml_mapping

ROOT = Path(__file__).resolve().parents[2]
SECRET = "made-up-s3cr3t"
EVERY_VARIABLE = {
    "TASK_REGISTRY_URL": "http://registry:1",
    "REPO_POOL_URL": "http://pool:2",
    "ARTIFACT_STORE_URL": "http://store:3",
    "OPENAI_API_KEY": SECRET,
    "OPENAI_BASE_URL": "http://model:4/v1",
    "GIT_TOKEN": f"{SECRET}-git",
    "NECROCODE_SERVICE_TOKEN": f"{SECRET}-service",
    "NECROCODE_STATE_DIR": "/state",
}


class Settings:
    """A settings file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "settings.yaml"

    def read(self, content: str | bytes, environ: dict[str, str] | None = None, **arguments: Any) -> RunnerConfig:
        self.file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return RunnerConfig.from_yaml(self.file, environ=environ or {}, **arguments)

    def refused(self, content: str | bytes, environ: dict[str, str] | None = None, **arguments: Any) -> str:
        with pytest.raises(ConfigurationError) as caught:
            self.read(content, environ, **arguments)
        return str(caught.value)


def bomb(form: str, alias: str) -> str:
    """A few hundred bytes of YAML that stand for a hundred million values."""
    lines = [f"a{level}: &a{level} {form.format(','.join([f'{alias}a{level - 1}'] * 10))}" for level in range(1, 9)]
    return "\n".join(["a0: &a0 {k: v}", *lines])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path)


def refused(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        RunnerConfig(**values)
    return str(caught.value)


def secrets(config: RunnerConfig) -> tuple[str | None, ...]:
    found = (config.llm_config.api_key, config.git_token, config.service_token)
    return tuple(None if secret is None else secret.get_secret_value() for secret in found)


# --- where values come from


def test_with_nothing_given_everything_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EVERY_VARIABLE.items():
        monkeypatch.setenv(name, value)
    config = RunnerConfig()
    assert (config.task_registry_url, config.repo_pool_url, config.artifact_store_url) == (None, None, None)
    assert secrets(config) == (None, None, None)
    assert config.state_dir == Path(os.environ["HOME"]) / ".necrocode"


def test_an_empty_file_is_all_defaults(settings: Settings) -> None:
    assert settings.read("") == settings.read("# nothing\n") == settings.read("llm:\n") == RunnerConfig()


def test_every_variable_has_its_setting() -> None:
    config = RunnerConfig.from_env(environ=EVERY_VARIABLE)
    assert (config.task_registry_url, config.repo_pool_url, config.artifact_store_url) == (
        "http://registry:1", "http://pool:2", "http://store:3",
    )  # fmt: skip
    assert config.llm_config.endpoint == "http://model:4/v1"
    assert config.state_dir == Path("/state")
    assert secrets(config) == (SECRET, f"{SECRET}-git", f"{SECRET}-service")


def test_the_real_environment_is_read_where_none_is_given(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_REGISTRY_URL", "http://real:1")
    settings.file.write_text("pool_size: 2\n")
    assert RunnerConfig.from_env().task_registry_url == "http://real:1"
    from_file = RunnerConfig.from_yaml(str(settings.file))
    assert (from_file.task_registry_url, from_file.pool_size) == ("http://real:1", 2)


def test_an_empty_variable_is_not_set(settings: Settings) -> None:
    empty = dict.fromkeys(EVERY_VARIABLE, "")
    assert RunnerConfig.from_env(environ=empty) == RunnerConfig()
    assert settings.read("task_registry_url: http://file:1", empty).task_registry_url == "http://file:1"


def test_arguments_go_before_the_environment_before_the_file_before_defaults(settings: Settings) -> None:
    content = "task_registry_url: http://file:1\nrepo_pool_url: http://file:2\nartifact_store_url: http://file:3\n"
    environ = {"TASK_REGISTRY_URL": "http://environment:1", "REPO_POOL_URL": "http://environment:2"}
    config = settings.read(content, environ, task_registry_url="http://argument:1")
    assert (config.task_registry_url, config.repo_pool_url, config.artifact_store_url, config.pool_size) == (
        "http://argument:1", "http://environment:2", "http://file:3", 5,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llm", "llm_config"])
def test_the_models_settings_are_merged_one_by_one(settings: Settings, name: str) -> None:
    content = f"{name}: {{model: file, endpoint: 'http://file/v1', api_key: from-file, max_tokens: 7}}"
    environ = {"OPENAI_API_KEY": "from-environment", "OPENAI_BASE_URL": "http://environment/v1"}
    llm = settings.read(content, environ, llm_config={"model": "argument"}).llm_config
    assert (llm.model, llm.endpoint, llm.max_tokens) == ("argument", "http://environment/v1", 7)
    assert llm.api_key is not None
    assert llm.api_key.get_secret_value() == "from-environment"


def test_a_whole_llm_config_that_is_passed_is_taken_as_it_is(settings: Settings) -> None:
    own = LLMConfig(model="own")
    assert settings.read("llm: {model: file}", EVERY_VARIABLE, llm_config=own).llm_config is own


def test_the_keys_variable_can_be_another(settings: Settings) -> None:
    config = settings.read("llm_api_key_env_var: MY_KEY", {"OPENAI_API_KEY": "wrong", "MY_KEY": "right"})
    assert secrets(config)[0] == "right"


def test_the_example_file_is_valid() -> None:
    file = ROOT / "config.example.yaml"
    assert RunnerConfig.from_yaml(file, environ={}).pool_size >= 1


def test_every_setting_can_be_given_in_a_file(settings: Settings) -> None:
    values = {
        "execution_mode": "local-process", "task_registry_url": "sqlite:///a.db", "repo_pool_url": "file:///pool",
        "artifact_store_url": "https://store/", "llm": {"model": "m", "temperature": 0, "edit_format": "json"},
        "llm_api_key_env_var": "K", "git_token": "g", "service_token": "s", "network_retry_count": 0,
        "git_token_hosts": ["git.example.com"], "git_allowed_protocols": ["https"], "git_allowed_hosts": ["[::1]:8443"],
        "protected_paths": ["deploy/*"], "protected_paths_policy": "refuse",
        "request_timeout_seconds": 1, "state_dir": "/s", "journal_keep_days": 1, "runner_id": "r", "pool_size": 1,
        "slot_timeout_seconds": 0,
        "lease_seconds": 3, "push": False, "commit_author_name": "山田", "commit_author_email": "a@b",
        "commit_message": "{title}", "max_changed_files": 1, "max_file_bytes": 1, "max_total_bytes": 1,
        "max_output_bytes": 1000, "max_repair_rounds": 0, "test_environment": {"A": "1"},
        "detect_tests": False, "test_base": False, "pass_rule": "no-new-failures", "tamper": "refuse",
        "sandbox": "bwrap", "sandbox_network": True, "sandbox_read_paths": ["/srv/tools"], "sandbox_image": "i",
        "max_test_output_bytes": 1000, "max_test_memory_bytes": 1 << 20, "max_test_processes": 1,
        "max_test_cpu_seconds": 1, "max_test_file_bytes": 1 << 20, "max_test_disk_bytes": 1 << 20,
        "outbox_max_bytes": 0, "setup_files": ["deps.lock"], "setup_network": False, "setup_cache_bytes": 1 << 30,
        "budget": {"max_cost_usd": 0.1, "process": {"max_calls": 0}, "spec": {}},
    }  # fmt: skip
    assert set(values) == set(RunnerConfig.model_fields) - {"llm_config"} | {"llm"}
    config = settings.read(yaml.safe_dump(values, allow_unicode=True))
    assert config.artifact_store_url == "https://store"
    assert config.llm_config.edit_format == "json"
    assert config.commit_author_name == "山田"
    assert config.model_fields_set == set(RunnerConfig.model_fields)


# --- what is refused, and how


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("pool_sise", "pool_size"), ("taskRegistryUrl", "task_registry_url"), ("lmm", "llm"), ("Push", "push"),
     ("lease_second", "lease_seconds")],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(settings: Settings, wrong: str, near: str) -> None:
    for told in (settings.refused(f"{wrong}: 1"), refused(**{wrong: 1})):
        assert told == f"Invalid configuration: unknown key {wrong!r} (did you mean {near!r}?)."


def test_a_key_that_is_near_to_none_lists_them_all() -> None:
    told = refused(zzz=1)
    assert all(name in told for name in RunnerConfig.model_fields)


def test_an_unknown_key_of_the_model_is_told_too(settings: Settings) -> None:
    for told in (settings.refused("llm: {modle: m}"), refused(llm={"modle": "m"})):
        assert "unknown key 'modle' (did you mean 'model'?)" in told


@pytest.mark.parametrize("llm", ["5", "[a]", "{1: a}", "{~: a}", "{[a]: b}"])
def test_an_llm_section_that_is_no_mapping_of_names_is_refused(settings: Settings, llm: str) -> None:
    told = settings.refused(f"llm: {llm}")
    assert "mapping of names to values" in told or "unhashable" in told


def test_one_setting_under_both_its_names_is_refused(settings: Settings) -> None:
    assert "llm and llm_config are one setting" in settings.refused("llm: {model: a}\nllm_config: {model: b}")
    assert "other name" in refused(llm={"model": "a"}, llm_config={"model": "b"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execution_mode", "docker"), ("task_registry_url", "localhost:8001"), ("task_registry_url", "ftp://host"),
        ("task_registry_url", "http://"), ("repo_pool_url", "http://host:99999"), ("repo_pool_url", ""),
        ("artifact_store_url", "http://host:port"), ("artifact_store_url", "s3//bucket"), ("pool_size", 0),
        ("pool_size", "many"), ("pool_size", 1.5), ("network_retry_count", -1), ("network_retry_count", 21),
        ("request_timeout_seconds", 0), ("request_timeout_seconds", float("inf")), ("lease_seconds", 2),
        ("lease_seconds", float("nan")), ("slot_timeout_seconds", -1), ("push", "perhaps"), ("runner_id", ""),
        ("commit_author_name", "A <a@b>"), ("commit_author_name", "a\nb"), ("commit_author_email", "a b"),
        ("commit_author_email", ""), ("commit_message", ""), ("commit_message", "{titel}"), ("commit_message", "{"),
        ("commit_message", "{0}"), ("commit_message", "{title.x}"), ("commit_message", "{title!r}"),
        ("commit_message", "{title:>99999999999999}"),
        ("commit_message", "{title[0]}"), ("commit_message", "{title:{run_id}}"), ("commit_message", "{}"),
        ("state_dir", ""), ("state_dir", "/a\ud800"), ("runner_id", "\udfff"), ("test_environment", {"A=B": "x"}),
        ("test_environment", {"": "x"}), ("test_environment", {"A\0": "x"}), ("test_environment", {"A": "\0"}),
        ("test_environment", {"A": "\ud800"}), ("max_output_bytes", 999), ("max_file_bytes", 0),
        ("max_changed_files", None), ("llm_api_key_env_var", "sk-my-own-key"), ("llm_api_key_env_var", ""),
        ("test_environment", ["A=1"]), ("test_environment", {"A": 1}), ("state_dir", 5), ("state_dir", "\0"),
        ("state_dir", "~no-such-user/x"), ("llm", 5), ("git_token", 5), ("git_token", "two words"),
        ("git_token_hosts", ["a b"]), ("git_allowed_hosts", ["https://host"]), ("git_allowed_protocols", ["ext"]),
        ("protected_paths", ["/"]), ("protected_paths_policy", "drop"),
        ("service_token", "改行"), ("service_token", "a\nb"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_error_that_names_its_setting(name: str, value: Any) -> None:
    told = refused(**{name: value})
    assert told.startswith(f"Invalid configuration: {name}")
    assert told.count(name) == 1
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", ""), ("endpoint", "localhost:11434/v1"), ("timeout_seconds", 0), ("max_tokens", 0), ("temperature", 2.1),
     ("temperature", float("nan")), ("edit_format", "diff"), ("retry_count", -1), ("context_tokens", "all"),
     ("api_key", "two words"), ("api_key", ["a"])],
)  # fmt: skip
def test_a_wrong_value_for_the_model_is_one_error_too(settings: Settings, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^Invalid LLM configuration: {name}"):
        LLMConfig(**{name: value})
    assert name in settings.refused(yaml.safe_dump({"llm": {name: value}}))


def test_all_wrong_values_are_told_at_once() -> None:
    told = refused(pool_size=0, push="perhaps", runner="me")
    assert all(name in told for name in ("pool_size", "push", "unknown key 'runner'"))
    assert told.count("; ") == 2


def test_text_that_yaml_reads_as_a_number_is_explained(settings: Settings) -> None:
    assert "put it in quotes" in settings.refused("runner_id: 1.10")


@pytest.mark.parametrize("content", ["- a", "text", "5", "1: 2", "[a, b]"])
def test_a_file_that_is_no_mapping_is_refused(settings: Settings, content: str) -> None:
    told = settings.refused(content)
    assert "must hold a mapping" in told
    assert str(settings.file) in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("pool_size: 1\npool_size: 2", "'pool_size' is given twice"),
        ("llm: {model: a, model: b}", "'model' is given twice"),
        ("a: b: c", "line 1"),
        ("\tpool_size: 1", "line 1"),
        ("pool_size: !!python/object:os.system x", "constructor"),
        ("runner_id: 2026-99-99", "month"),
        ("a: [" * 5000, "nested too deeply"),
        (b"runner_id: \xff\xfe", "not UTF-8 (byte 11)"),
        ("a: \0", "not valid YAML"),
        ("a: *b", "undefined alias"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("[a]: b\n? {x: y}\n: z", "unhashable"),
        ('pool_size: !!int ""', "not the int that it should be"),
        ('lease_seconds: !!float ""', "not the float that it should be"),
        ('push: !!bool "x"', "not the bool that it should be"),
        ('runner_id: !!timestamp "x"', "not the timestamp that it should be"),
        (f"pool_size: {'9' * 5000}", "not the int that it should be"),
        (bomb("[{}]", "*"), "its aliases stand for more than 100000 values"),
        (bomb("{{<<: [{}]}}", "*"), "its aliases stand for more than 100000 values"),
        ("a: &a [*a]", "its aliases stand for more than 100000 values"),
    ],
)
def test_a_file_that_is_no_yaml_is_told_with_its_place(settings: Settings, content: str | bytes, words: str) -> None:
    told = settings.refused(content)
    assert words in told
    assert str(settings.file) in told
    assert "\n" not in told


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=words) as caught:
            RunnerConfig.from_yaml(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["llm: [a]", "llm: gpt-4.1", "llm: 5"])
def test_a_model_that_is_no_mapping_is_refused(settings: Settings, content: str) -> None:
    assert settings.refused(content) == "Invalid configuration: llm must be a mapping of names to values."


def test_a_wrong_variable_is_told_as_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="task_registry_url"):
        RunnerConfig.from_env(environ={"TASK_REGISTRY_URL": "nowhere"})
    with pytest.raises(ConfigurationError, match="endpoint"):
        RunnerConfig.from_env(environ={"OPENAI_BASE_URL": "nowhere"})


# --- values


def test_settings_cannot_be_changed() -> None:
    config = RunnerConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.pool_size = 7  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.llm_config.model = "other"  # type: ignore[misc]


def test_home_is_understood(settings: Settings) -> None:
    assert settings.read("state_dir: ~/here").state_dir == Path(os.environ["HOME"]) / "here"
    assert RunnerConfig(state_dir=Path("here")).state_dir == Path.cwd() / "here"


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_key_or_token_is_none(empty: str | None) -> None:
    assert LLMConfig(api_key=empty).api_key is None
    assert RunnerConfig(git_token=empty, service_token=empty).git_token is None


def test_a_key_loses_the_newline_of_the_file_it_came_from() -> None:
    assert LLMConfig(api_key=f"{SECRET}\n").api_key == SecretStr(SECRET)


# --- secrets


def test_no_secret_is_shown() -> None:
    config = RunnerConfig.from_env(environ=EVERY_VARIABLE)
    shown = f"{config!r}{config}{config.llm_config!r}{config.model_dump()}{config.model_dump_json()}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    "values",
    [
        {"git_token": [SECRET]},
        {"service_token": f"{SECRET} {SECRET}"},
        {"llm": SECRET},
        {"llm_config": [SECRET]},
        {"llm": {"api_key": {SECRET: 1}}},
        {"llm": {"api_key": f"Bearer {SECRET}"}},
        {"llm": {"endpoint": f"https://me:{SECRET}@host/v1"}},
        {"task_registry_url": f"http://me:{SECRET}@host"},
        {"repo_pool_url": f"http://{SECRET}@host"},
        {"artifact_store_url": f"ftp://{SECRET}@host"},
    ],
    ids=str,
)
def test_no_secret_is_told_when_a_setting_is_refused(settings: Settings, values: dict[str, Any]) -> None:
    assert SECRET not in refused(**values)
    assert SECRET not in settings.refused(yaml.safe_dump(values))


def test_a_machine_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert "NECROCODE_STATE_DIR" in refused()
    assert RunnerConfig.from_env(environ={"NECROCODE_STATE_DIR": "/state"}).state_dir == Path("/state")


def test_aliases_within_reason_are_read(settings: Settings) -> None:
    read = settings.read("test_environment: &e {A: x}\nllm: {model: &m some}\nrunner_id: *m\n")
    assert (read.runner_id, read.test_environment) == ("some", {"A": "x"})


def test_a_long_file_without_aliases_is_no_bomb(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text("".join(f"k{number}: [" + "0," * 1000 + "0]\n" for number in range(110)))
    assert len(read_yaml_mapping(file, what="file", error_type=ConfigurationError)) == 110


@pytest.mark.parametrize("name", ["", "two words", "colon:", "line\nbreak", "ä"])
def test_names_of_headers_are_checked(name: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key_header"):
        LLMConfig(api_key_header=name)
    with pytest.raises(ConfigurationError, match="headers: must be names"):
        LLMConfig(headers={name: "x"})


@pytest.mark.parametrize("value", ["line\nbreak", "schlüssel", "\0"])
def test_values_of_headers_are_checked_and_never_shown(value: str) -> None:
    with pytest.raises(ConfigurationError, match="headers: must be names of HTTP headers and values") as caught:
        LLMConfig(headers={"X-Token": f"{SECRET}{value}"})
    assert SECRET not in str(caught.value)


def test_secrets_are_the_key_and_the_headers_that_are_named_like_one() -> None:
    headers = {"Authorization": "Bearer abc-def", "X-Api-Key": "k1", "Cookie": "c=1", "X-Title": "my app"}
    llm = LLMConfig(api_key=SECRET, headers=headers)
    assert llm.secrets() == (SECRET, "abc-def", "k1", "c=1")
    assert LLMConfig().secrets() == ()
    assert not any(secret in repr(llm) for secret in llm.secrets())


def test_what_is_wrong_in_every_block_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("llm: {candidates: 17, mdel: x}\npool_size: 0\nbudget: {max_calls: -1}\n")
    with pytest.raises(ConfigurationError) as caught:
        RunnerConfig.from_yaml(file, environ={})
    for words in ("candidates: ", "did you mean 'model'", "pool_size: ", "max_calls: "):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"git_token": SECRET}, {"service_token": SECRET}, {"llm": {"api_key": SECRET}},
        {"llm": {"headers": {"X-Token": SECRET}}}, {"test_environment": {"NPM_TOKEN": SECRET}},
    ],
    ids=str,
)  # fmt: skip
def test_a_secret_at_the_place_of_another_setting_is_not_told(settings: Settings, values: dict[str, Any]) -> None:
    wrong = values | {"pool_size": SECRET}
    for told in (refused(**wrong), settings.refused(yaml.safe_dump(wrong))):
        assert "pool_size" in told
        assert SECRET not in told


def test_an_environments_secret_at_the_place_of_another_setting_is_not_told(settings: Settings) -> None:
    told = settings.refused(f"pool_size: {SECRET}\nllm: {{max_tokens: {SECRET}x}}\n", {"GIT_TOKEN": SECRET})
    assert SECRET not in told


@pytest.mark.parametrize("name", ["protected_paths", "setup_files"])
@pytest.mark.parametrize("pattern", ["../x", "a/../b", "a//b", "a\\b", "[", "a/[b", "/", "a\nb"])
def test_patterns_that_no_path_fits_are_refused(name: str, pattern: str) -> None:
    assert name in refused(**{name: [pattern]})


def test_patterns_of_every_kind_are_taken() -> None:
    given = ("deploy/*", "**/x", "/Makefile", "secrets/", "./a", "[!a]x", "a[]]b", "*.tf")
    assert RunnerConfig(protected_paths=given).protected_paths == given


@pytest.mark.parametrize("name", ["HOME", "TMPDIR", "NECROCODE_REPORTS"])
def test_tests_keep_their_own_home(name: str) -> None:
    assert f"may not set {name}: each run has its own" in refused(test_environment={name: "/x"})


def test_a_text_in_the_place_of_a_list_is_told_in_words_of_yaml() -> None:
    assert "git_allowed_hosts: must be a list: [a, b]" in refused(git_allowed_hosts="github.com")
