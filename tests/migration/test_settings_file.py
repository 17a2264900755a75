"""``necrocode migrate config``: what becomes of each old setting, and that all else stays byte for byte."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import ConfigurationError, LLMConfig, RunnerConfig
from necrocode.migration.old_settings import OLD_SETTINGS, service_urls
from necrocode.migration.settings_file import MigratedSettings, migrate_settings
from tests.docs.markdown import Block, Document
from tests.docs.snippets import is_old_side
from tests.support.shared import ROOT, migration_guide

URLS = "task_registry_url: http://bus:8001\nrepo_pool_url: http://bus:8002\nartifact_store_url: http://bus:8003\n"
MODEL = "llm:\n  model: gpt-4\n  timeout_seconds: 120\n"
SECRET = "made-up-s3cr3t"


def migrated(text: str, **options: bool) -> MigratedSettings:
    return migrate_settings(text.encode(), name="old.yaml", is_embedded=options.get("embedded", False))


def whole(text: str, **options: bool) -> str:
    """The new text of settings that leave nothing to do."""
    result = migrated(text, **options)
    assert result.left == ()
    return result.text


def left(text: str) -> dict[str, str]:
    result = migrated(text)
    assert [one.line > 0 for one in result.left].count(False) <= 1
    return {one.key: one.what for one in result.left}


def refused(text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigurationError) as caught:
        migrate_settings(data, name="old.yaml")
    assert SECRET not in str(caught.value)
    return str(caught.value)


def loaded(text: str, folder: Path) -> RunnerConfig:
    file = folder / "config.yaml"
    file.write_bytes(text.encode())
    return RunnerConfig.from_yaml(file, environ={})


def guide_settings(document: Document) -> tuple[Block, Block]:
    """The old settings of a guide, and the whole new ones."""
    (old,) = [block for block in document.blocks_of("yaml") if is_old_side(block)]
    (new,) = [block for block in document.blocks_of("yaml") if "llm:" in block.text]
    return old, new


# ---- What becomes of the old settings


@pytest.mark.parametrize("name", ["guide", "MIGRATION.md", "MIGRATION.ja.md"])
def test_the_guide_s_old_settings_become_its_new_ones(name: str, tmp_path: Path) -> None:
    old, new = guide_settings(Document(migration_guide() if name == "guide" else ROOT / name))
    assert loaded(whole(old.text), tmp_path) == loaded(new.text, tmp_path)


def test_each_change_names_the_key_its_line_its_successor_and_the_reason() -> None:
    bus, kiro = migrated("a2a_port: 1\nmessage_bus_url: http://bus:5000\nkiro_url: http://kiro\n").changes[1:]
    assert (bus.line, bus.key) == (2, "message_bus_url")
    assert bus.what == "becomes task_registry_url, repo_pool_url, artifact_store_url"
    assert "no bus any more" in bus.why
    assert "ports" in bus.why
    assert (kiro.line, kiro.key, kiro.what) == (3, "kiro_url", "becomes llm")
    assert "OpenAI-compatible" in kiro.why


def test_comments_order_quotes_and_blank_lines_stay() -> None:
    text = (
        "# The runner of team A\n\npush:   no   # never\n\n# where agents meet\n"
        "message_bus_url: 'http://bus:5000' # DMZ\n"
        '# after it\npool_size: 0x3\nrunner_id: "r"\n\n\n# at the end\n'
    )
    assert whole(text) == (
        "# The runner of team A\n\npush:   no   # never\n\n# where agents meet\n# DMZ\n"
        "task_registry_url: 'http://bus:8001'\nrepo_pool_url: 'http://bus:8002'\nartifact_store_url: 'http://bus:8003'\n"
        '# after it\npool_size: 0x3\nrunner_id: "r"\n\n\n# at the end\n'
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "pool_size: 3\n", MODEL, URLS + MODEL])
def test_settings_that_hold_nothing_old_are_left_as_they_are(text: str) -> None:
    result = migrated(text)
    assert (result.text, result.changes, result.left) == (text, (), ())


def test_the_result_needs_no_further_migration() -> None:
    first = whole("message_bus_url: bus\nkiro: {url: x, timeout: 5}\nkiro_model: m\n")
    again = migrated(first)
    assert (again.text, again.changes) == (first, ())


def test_embedded_leaves_the_urls_out() -> None:
    assert whole("message_bus_url: http://bus:1\nkiro_url: x\n", embedded=True) == MODEL


@pytest.mark.parametrize(
    ("old", "urls"),
    [
        ("http://localhost:5000", "http://localhost"), ("https://bus.example.com/a?b=c#d", "https://bus.example.com"),
        ("localhost:5000", "http://localhost"), ("bus", "http://bus"), ("amqps://u:p@mq:5671/vhost", "https://mq"),
        ("amqp://mq", "http://mq"), ("redis://10.0.0.1:6379/0", "http://10.0.0.1"), ("wss://w", "https://w"),
        ("http://[::1]:5000", "http://[::1]"), ("HTTP://BUS:1", "http://bus"), (" http://bus ", "http://bus"),
        ("http://bus_1.local", "http://bus_1.local"), ("//bus:1", "http://bus"),
    ],
)  # fmt: skip
def test_scheme_and_host_of_an_old_url_are_kept(old: str, urls: str) -> None:
    found = service_urls(old)
    assert found is not None
    assert list(found.values()) == [f"{urls}:{port}" for port in (8001, 8002, 8003)]
    RunnerConfig(**found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "old",
    ["http://", "${BUS_URL}", "http://$HOST:1", "http://[::1", "a b", "http://bus';reboot;'", "-x", "http://ば", "/bus",
     "http://bus\n", "unix:///run/bus.sock", "http://b\u2028us", ".", ":5000"],
)  # fmt: skip
def test_a_host_that_is_none_is_not_guessed(old: str) -> None:
    found = service_urls(old)
    assert found is None or list(found) == ["task_registry_url", "repo_pool_url", "artifact_store_url"]
    if old != "http://bus\n":  # blanks around a URL are nobody's meaning
        assert found is None
        assert "names no host" in left(yaml.safe_dump({"message_bus_url": old}))["message_bus_url"]


@pytest.mark.parametrize("value", ["", "~", "null", "''", '" "'])
def test_a_bus_that_was_not_set_leaves_everything_embedded(value: str, tmp_path: Path) -> None:
    assert loaded(whole(f"message_bus_url: {value}\npool_size: 2\n"), tmp_path) == RunnerConfig(pool_size=2)


def test_new_settings_that_are_there_already_win() -> None:
    text = "message_bus_url: http://bus:1\ntask_registry_url: http://mine:9\nkiro_url: x\nllm: {model: mine}\n"
    result = migrated(text)
    assert result.text == "task_registry_url: http://mine:9\nllm: {model: mine}\n"
    assert [one.what for one in result.changes] == ["is gone", "is gone"]
    assert all("there already" in one.why for one in result.changes)


@pytest.mark.parametrize(
    ("old", "target", "value"),
    [
        ("kiro_timeout: 60", "llm.timeout_seconds", 60), ("kiro_model: my/model-1", "llm.model", "my/model-1"),
        ("kiro_max_tokens: 9", "llm.max_tokens", 9), ("kiro_temperature: 0.5", "llm.temperature", 0.5),
        ("kiro_retries: 0", "llm.retry_count", 0), ("message_bus_timeout: 2.5", "request_timeout_seconds", 2.5),
        ("a2a_max_retries: 7", "network_retry_count", 7), ("agent_id: 'agent 7'", "runner_id", "agent 7"),
        ("agent_id: a, b", "runner_id", "a, b"), ("kiro: {timeout: 60}", "llm.timeout_seconds", 60),
        ("kiro:\n  model: it's", "llm.model", "it's"), ("agent_id: &a x", "runner_id", "x"),
        ("agent_id: !!str 7", "runner_id", "7"),
    ],
)  # fmt: skip
def test_what_has_a_successor_is_carried_there(old: str, target: str, value: object, tmp_path: Path) -> None:
    result = migrated(old)
    assert [one.what for one in result.changes] == [f"becomes {target}"]
    section, _, name = target.rpartition(".")
    config = loaded(result.text, tmp_path)
    assert getattr(config.llm_config if section else config, name) == value


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        ("a2a_timeout: 5", "message_bus_timeout: 7", "request_timeout_seconds"),
        ("message_bus_timeout: 7", "a2a_timeout: 5", "request_timeout_seconds"),
        ("kiro_retries: 1", "kiro:\n  max_retries: 2", "llm.retry_count"),
        ("agent_id: a", "a2a_agent_id: b", "runner_id"),
    ],
)
def test_of_two_old_settings_with_different_values_the_first_is_taken_and_the_other_left(
    first: str, second: str, target: str
) -> None:
    result = migrated(f"{first}\n{second}\n")
    assert [one.what for one in result.changes] == [f"becomes {target}"]
    assert second in result.text
    assert first not in result.text
    told = result.left[0].what
    assert told.startswith(f"has another value for {target} than {first.partition(':')[0]} in line 1")


def test_old_settings_that_say_the_same_become_one() -> None:
    assert whole("a2a_timeout: 5\nmessage_bus_timeout: 5.0\n") == "request_timeout_seconds: 5\n"
    assert whole("message_bus_url: http://bus:1\na2a_url: bus:2\nagent_registry_url: http://bus\n") == URLS


def test_old_urls_with_other_hosts_are_left() -> None:
    result = migrated("message_bus_url: http://bus:1\nagent_registry_url: http://b\na2a_url: https://bus\n")
    assert result.text == f"{URLS}agent_registry_url: http://b\na2a_url: https://bus\n"
    assert [(one.line, one.key) for one in result.left[:2]] == [(2, "agent_registry_url"), (3, "a2a_url")]
    assert all("has another scheme or host than message_bus_url in line 1" in one.what for one in result.left[:2])


@pytest.mark.parametrize("text", ["1: 2\n", "? [1, 2]\n: 3\n", "!foo\npush: no\n", "[1, 2]: 3\n"])
def test_why_a_runner_refuses_the_result_names_the_file(text: str) -> None:
    told = migrated(text).left[-1].why
    assert "configuration file old.yaml " in told
    assert "  " not in told


def test_what_is_carried_goes_before_the_guide_s_value() -> None:
    for text in ("kiro_timeout: 5\nkiro_url: x\n", "kiro_url: x\nkiro_timeout: 5\n"):
        assert whole(text) == "llm:\n  model: gpt-4\n  timeout_seconds: 5\n"


@pytest.mark.parametrize(
    ("llm", "expected"),
    [
        ("llm:\n  model: m  # mine\n\n# end\n", "llm:\n  model: m  # mine\n  timeout_seconds: 5\n\n# end\n"),
        ("llm:\n    model: m", "llm:\n    model: m\n    timeout_seconds: 5"),
        ("llm: {model: m} # c\n", "llm: {model: m, timeout_seconds: 5} # c\n"),
        ("llm: {}\n", "llm: {timeout_seconds: 5}\n"),
        ("llm:\n", "llm: {timeout_seconds: 5}\n"), ("llm: ~ # c\n", "llm: {timeout_seconds: 5} # c\n"),
        ("llm: # c\n\npool_size: 2\n", "llm: {timeout_seconds: 5} # c\n\npool_size: 2\n"),
        ("llm: {timeout_seconds: 9}\n", "llm: {timeout_seconds: 9}\n"),
        ("llm_config: {model: m}\n", "llm_config: {model: m, timeout_seconds: 5}\n"),
    ],
)  # fmt: skip
def test_what_is_carried_joins_an_llm_section_that_is_there(llm: str, expected: str) -> None:
    assert whole(f"kiro_timeout: 5\n{llm}") == expected


@pytest.mark.parametrize(
    "old", ["kiro_timeout: 2m", "kiro_model: [a]", "kiro_retries: 99", "kiro_max_tokens:", "agent_id: ''"]
)
def test_a_value_that_its_successor_does_not_take_is_left(old: str) -> None:
    result = migrated(old)
    assert result.text == old
    assert "does not take" in result.left[0].what


@pytest.mark.parametrize("name", [name for name, old in OLD_SETTINGS.items() if old.becomes == "gone"])
def test_what_has_no_successor_goes_and_its_value_is_not_shown(name: str) -> None:
    result = migrated(f"push: true\n{name}: {SECRET}\n")
    assert result.text == "push: true\n"
    assert [one.what for one in result.changes] == ["is gone"]
    assert SECRET not in str(result.changes)


def test_every_successor_is_a_setting() -> None:
    for old in OLD_SETTINGS.values():
        section, _, name = old.target.rpartition(".")
        assert not old.target or name in (LLMConfig if section else RunnerConfig).model_fields


def test_a_section_is_read_like_the_keys_it_stands_for() -> None:
    text = (
        "# K\nkiro: # k\n  # inside\n  url: http://kiro # u\n  timeout: 60\nmessage_bus:\n  url: http://bus\npush: no\n"
    )
    assert whole(text) == f"# K\n# k\n# inside\n# u\nllm:\n  model: gpt-4\n  timeout_seconds: 60\n{URLS}push: no\n"


def test_of_a_section_what_is_not_known_stays() -> None:
    result = migrated("kiro:\n  url: x\n  workspace: /w\n")
    assert result.text == f"{MODEL}kiro:\n  workspace: /w\n"
    assert result.left[0].key == "kiro.workspace"
    result = migrated("{kiro: {timeout: 5, workspace: /w}}\n")
    assert result.text == "{llm: {timeout_seconds: 5}, kiro: {workspace: /w}}\n"
    result = migrated("kiro: {url: x, workspace: /w}\n")
    assert result.text == f"{MODEL}kiro: {{workspace: /w}}\n"


# ---- What is left


def test_unknown_keys_are_listed_with_their_lines_and_kept() -> None:
    result = migrated("message_bus_url: http://bus\nlog_level: debug\nretries: {a: 1}\n")
    assert result.text == f"{URLS}log_level: debug\nretries: {{a: 1}}\n"
    assert [(one.line, one.key) for one in result.left] == [(2, "log_level"), (3, "retries"), (0, "")]
    assert "unknown key 'log_level'" in result.left[-1].why


def test_a_value_that_a_runner_refuses_is_told_though_it_is_not_old() -> None:
    (problem,) = migrated("message_bus_url: http://bus\nexecution_mode: docker\n").left
    assert "execution_mode" in problem.why


def test_an_anchor_that_is_used_elsewhere_keeps_its_key() -> None:
    result = migrated("kiro_url: &k x\nrunner_id: *k\n")
    assert result.text == "kiro_url: &k x\nrunner_id: *k\n"
    assert "anchor" in result.left[0].what
    assert whole("message_bus_url: &b http://bus\nkiro_url: *b\n") == f"{URLS}{MODEL}"
    assert whole("runner_id: &b bus\nmessage_bus_url: *b\n") == f"runner_id: &b bus\n{URLS}"


def test_keys_written_with_a_question_mark_are_left() -> None:
    assert "?" in left("? message_bus_url\n: http://bus\n")["message_bus_url"]
    assert "?" in left("{? kiro_url : x}\n")["kiro_url"]


# ---- Forms of files


def test_json_stays_json() -> None:
    text = '{\n  "pool_size": 3,\n  "message_bus_url": "http://bus:1",\n  "kiro_url": "x",\n  "kiro_port": 1\n}\n'
    assert whole(text) == (
        '{\n  "pool_size": 3,\n  "task_registry_url": "http://bus:8001",\n  "repo_pool_url": "http://bus:8002",\n'
        '  "artifact_store_url": "http://bus:8003",\n  "llm": {"model": "gpt-4", "timeout_seconds": 120}\n}\n'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kiro_port: 1, push: no}", "{push: no}"), ("{push: no, kiro_port: 1}", "{push: no}"),
        ("{kiro_port: 1}", "{}"),
        ("{push: no, kiro_port: 1, }", "{push: no, }"), ("{kiro_port: 1, a2a_port: 2}", "{}"),
        ("{\n  kiro_port: 1, # why\n  push: no,\n}\n", "{\n  # why\n  push: no,\n}\n"),
        ("{\n  kiro_port: 1,\n  push: no\n}\n", "{\n  push: no\n}\n"),
        ("{pool_size: 2, kiro: {url: x}}", "{pool_size: 2, llm: {model: gpt-4, timeout_seconds: 120}}"),
    ],
)  # fmt: skip
def test_braces_are_edited_in_place(text: str, expected: str) -> None:
    assert whole(text) == expected


@pytest.mark.parametrize("end", ["\n", ""])
def test_line_ends_and_the_byte_order_mark_stay(end: str) -> None:
    text = f"\ufeff# c\r\npush: no\r\nkiro_url: >-\r\n  http://\r\n  kiro{end and chr(13) + end}"
    expected = f"\ufeff# c\r\npush: no\r\nllm:\r\n  model: gpt-4\r\n  timeout_seconds: 120{end and chr(13) + end}"
    assert whole(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nkiro_url: x\n...\n", f"---\n{MODEL}...\n"),
        ("%YAML 1.1\n---\nkiro_url: x\n", f"%YAML 1.1\n---\n{MODEL}"),
        ("  push: no\n  kiro_url: x\n", "  push: no\n  llm:\n    model: gpt-4\n    timeout_seconds: 120\n"),
        ("kiro_url:\n  x\n\n\n# c\n", f"{MODEL}\n\n# c\n"),
        ("kiro_url: | # c\n  a\n  # text\n\npush: no\n", f"# c\n{MODEL}\npush: no\n"),
        ("kiro_url: 'a\n  b' # c\n", "# c\nllm:\n  model: 'gpt-4'\n  timeout_seconds: 120\n"),
        ('"kiro_url": x # y', '# y\n"llm":\n  "model": gpt-4\n  "timeout_seconds": 120'), ("kiro_url :  x\n", MODEL),
    ],
)  # fmt: skip
def test_other_ways_to_write_a_pair_are_edited_too(text: str, expected: str) -> None:
    assert whole(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "must hold a mapping"), ("text\n", "must hold a mapping"), ("a: b: c\n", "line 1"),
        (f"a: [{SECRET}\n", "not valid YAML"), (f'a: "{SECRET}\n', "not valid YAML"), ("\ta: 1\n", "line 1"),
        ("kiro_url: a\npush: no\nkiro_url: b\n", "'kiro_url' is given twice"), ("kiro: {url: a, url: b}\n", "twice"),
        ("a: 1\n---\nb: 2\n", "more than one document"), ("a: *b\n", "undefined alias"), ("a: \0\n", "not valid YAML"),
        (b"a: \xff\n", "not UTF-8"), ("a: " + "[" * 100_000, "nested"), ("- " * 50_000, "nested"),
        ("%FOO\n%YAML 9.9.9\n--- a\n", "not valid YAML"), ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ('a: "\\xZZ"\n', "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_no_settings_file_is_refused_without_being_quoted(text: str | bytes, words: str) -> None:
    told = refused(text)
    assert told.startswith("old.yaml")
    assert words in told


def test_aliases_that_stand_for_millions_of_values_are_not_followed() -> None:
    bomb = "\n".join(["a0: &a0 {k: v}", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))])
    began = time.process_time()
    result = migrated(f"kiro_url: x\n{bomb}\n")
    assert time.process_time() - began < 5
    assert bomb in result.text
    assert "aliases stand for more" in result.left[-1].why


def test_a_secret_in_a_broken_file_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"git_token: {SECRET}: x\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"not valid YAML: mapping values .* \(line 1, column 26\)") as caught:
        RunnerConfig.from_yaml(file, environ={})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


_SCALARS = st.sampled_from(
    [
        "x",
        "'x y'",
        '"x"',
        "7",
        "",
        "~",
        "http://bus:1",
        "[a, {b: c}]",
        "{a: 1}",
        "|\n  text\n  # no",
        ">-\n  a\n\n  b",
        "'a\n  b'",
        "&n x",
        "!!str 7",
        "\n  - a\n  - b",
        "\n  url: u\n  x: y # z",
    ]
)
_NAMES = st.sampled_from([*OLD_SETTINGS, "push", "pool_size", "runner_id", "llm", "other", '"kiro_url"', "kiro", "a2a"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(_NAMES, _SCALARS, st.sampled_from(["", " # c", "\n# d", "\n"])),
        max_size=6,
        unique_by=lambda t: t[0].strip('"'),
    )
)
def test_whatever_is_in_the_file_only_old_settings_change(pairs: list[tuple[str, str, str]]) -> None:
    text = "".join(f"{name}: {value}{'' if value[:1] in {'|', '>'} else tail}\n" for name, value, tail in pairs)
    assume(text.count("&n") < 2)  # a name that PyYAML takes once
    result = migrated(text)
    before, after = yaml.safe_load(text), yaml.safe_load(result.text) or {}
    if before:
        gone = {change.key.partition(".")[0] for change in result.changes}
        for name in set(before) - gone - {"llm"}:
            assert after[name] == before[name]
        kept = {one.key.partition(".")[0] for one in result.left}
        assert not {name for name in gone if name in after} - kept
    for comment in re.findall(r"# [cdz]$", text, re.MULTILINE):
        assert comment in result.text
    if not result.left:
        assert migrated(result.text).changes == ()
