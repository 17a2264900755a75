"""README, MIGRATION and docs/: what they show works, what they list is complete, what they point to is there."""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from necrocode import agent_runner, cli
from necrocode.agent_runner import (
    Artifact,
    ErrorDetails,
    ImplementationResult,
    LLMConfig,
    LocalTaskRegistry,
    ModelAnswer,
    PushResult,
    RunnerConfig,
    RunnerResult,
    TaskContext,
    TestResult,
    errors,
)
from necrocode.agent_runner.clients import _http
from necrocode.agent_runner.generation.edit_formats import read_answer
from necrocode.agent_runner.generation.syntax import newly_broken
from necrocode.agent_runner.playbook import Playbook
from necrocode.agent_runner.records import TaskDefinition
from necrocode.cli import run as cli_run
from necrocode.services.task_registry import CAPABILITIES
from tests.docs.markdown import DOCUMENTS, Block, Document, unquoted
from tests.docs.snippets import (
    GUIDE_REQUESTS,
    Loopback,
    check_command,
    check_variable,
    is_old_side,
    load_yaml_block,
    loopback,
    setting_of,
)
from tests.support.model_server import as_files
from tests.support.repositories import FIXED_CALC, files_at
from tests.support.shared import ROOT

README, CONFIGURATION, RESULTS = ROOT / "README.md", ROOT / "docs" / "configuration.md", ROOT / "docs" / "results.md"
TRANSLATIONS = [path for path in DOCUMENTS if path.name.endswith(".ja.md")]
READMES = sorted(ROOT.glob("README*.md"))
EXAMPLE_CONFIG = ROOT / "config.example.yaml"

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def new_side(document: Document, language: str) -> list[Block]:
    return [block for block in document.blocks if block.language == language and not is_old_side(block)]


def field_names(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


# ---- Blocks


@every_document
def test_every_block_parses_as_what_it_says_it_is(path: Path) -> None:
    for block in Document(path).blocks:
        match block.language:
            case "python":
                ast.parse(block.text, str(block))
            case "yaml":
                assert isinstance(yaml.safe_load(block.text), dict), str(block)
            case "json":
                json.loads(block.text)
            case language:
                assert language in {"bash", "text", ""}, f"{block}: a block of {language}"


@every_document
def test_every_yaml_block_loads_as_settings_task_or_playbook(path: Path, tmp_path: Path) -> None:
    for block in new_side(Document(path), "yaml"):
        load_yaml_block(block, tmp_path)


@every_document
def test_every_shell_line_works(path: Path) -> None:
    for block in new_side(Document(path), "bash"):
        for command in block.commands:
            check_command(command)


@pytest.mark.parametrize("command", ["necrocode run task.yaml --nosuch", "make nosuch", "export NOSUCH=1", "nosuch"])
def test_a_shell_line_that_does_not_work_is_found(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check_command(command)


# ---- What runs


@pytest.fixture
def services(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with loopback(repository) as place:
        place.answer = as_files({"calc.py": FIXED_CALC})
        monkeypatch.setenv("OPENAI_BASE_URL", f"{place.urls['model']}/v1")
        yield place


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_readmes_program_delivers_a_branch(
    path: Path, services: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = Document(path).python()
    result: RunnerResult = services.run(block)["result"]
    assert (result.status, result.error, result.warnings) == ("done", None, ())
    assert result.test_result is not None
    assert capsys.readouterr().out.split() == [result.branch, str(result.push_result and result.push_result.commit)]
    assert files_at(services.checkout, result.branch)["calc.py"] == FIXED_CALC.encode()


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_readmes_task_file_and_command_deliver_a_branch(
    path: Path, services: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Document(path)
    (block,) = document.blocks_of("yaml")
    task = tmp_path / "task.yaml"
    task.write_text(block.text.replace("/path/or/url/of/the/repository", str(services.checkout)), encoding="utf-8")
    commands = [line.split() for block in document.blocks_of("bash") for line in block.commands]
    (arguments,) = [words[1:] for words in commands if words[:2] == ["necrocode", "run"]]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 0
    assert services.asked[0]["model"] == arguments[arguments.index("--model") + 1]
    branch = TaskContext.from_yaml(task).branch
    assert files_at(services.checkout, branch)["calc.py"] == FIXED_CALC.encode()


def test_the_configuration_program_reads_the_example_file(services: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = Document(CONFIGURATION).python()
    assert services.run(block)["config"].pool_size == 10


def test_every_python_block_of_the_documents_is_run_somewhere() -> None:
    """MIGRATION's are run with the guide's (test_guide_snippets.py), the others above."""
    with_python = {path.name for path in DOCUMENTS if Document(path).python()}
    ours = {"README.md", "README.ja.md", "configuration.md", "artifact-store.md", "leases.md", "cancellation.md"}
    assert with_python - ours - {"journal.md"} <= {
        "MIGRATION.md",
        "MIGRATION.ja.md",
    }


def test_the_journals_program_runs() -> None:
    (block,) = Document(ROOT / "docs" / "journal.md").python()
    names: dict[str, object] = {}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102  our own document
    assert names["results"] == ()


def test_the_cancelled_program_says_so(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    task = {"task_id": "1", "spec_name": "s", "title": "T", "description": "D", "repo_url": str(repository)}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    (block,) = Document(ROOT / "docs" / "cancellation.md").python()
    exec(compile(block.text, str(block), "exec"), {})  # noqa: S102  our own document
    assert capsys.readouterr().out == block.text.rpartition("#")[2].strip() + "\n"


def test_the_program_of_leases_runs_a_task_under_the_lease_of_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-for-nothing")
    with LocalTaskRegistry("sqlite:///registry.db") as registry:
        registry.put_task(TaskDefinition(task_id="1", description="d"), spec_name="shop")
    (block,) = Document(ROOT / "docs" / "leases.md").python()
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102  our own document
    result: RunnerResult = names["result"]
    names["registry"].close()
    assert result.lease_epoch == 1
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("RepositoryNotFoundError", "allocate")


def test_the_artifact_stores_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("core.dump").write_bytes(b"core" * 1000)
    (block,) = Document(ROOT / "docs" / "artifact-store.md").python()
    exec(compile(block.text, str(block), "exec"), {})  # noqa: S102  our own document
    assert Path("copy.dump").read_bytes() == b"core" * 1000


def test_the_answers_shown_for_each_format_are_read() -> None:
    document = Document(ROOT / "docs" / "edit-formats.md")
    blocks = [*document.blocks_of("json"), *document.blocks_of("text")]
    shown = [read_answer(ModelAnswer(text=block.text, model="m")) for block in blocks]
    assert [(one.edit_format, [change.operation for change in one.code_changes]) for one in shown] == [
        ("json", ["create", "edit", "delete", "rename"]),
        ("files", ["modify", "delete", "rename"]),
        ("search_replace", ["edit"]),
        ("unified_diff", ["edit"]),
        ("patch", ["edit", "create"]),
    ]
    for change in (change for one in shown for change in one.code_changes):
        assert newly_broken(change.file_path, None, change.content.encode() if change.content else b"") is None


def test_the_result_that_is_shown_is_a_result() -> None:
    (block,) = Document(RESULTS).blocks_of("json")
    shown: dict[str, Any] = json.loads(block.text)
    RunnerResult.model_validate_json(block.text)
    assert set(shown) <= set(field_names(RunnerResult))
    assert list(shown["error_details"]) == field_names(ErrorDetails)
    assert issubclass(getattr(errors, shown["error_details"]["type"]), errors.RunnerError)
    assert shown["error"] == shown["error_details"]["message"]


# ---- What is listed


def default_of(model: type[BaseModel], name: str) -> str | None:
    """The default as a document spells it; None where there is none."""
    value = model.model_fields[name].get_default(call_default_factory=True)
    return None if value is None else str(value).replace(str(Path.home()), "~")


def all_settings() -> dict[str, str | None]:
    own = {name: default_of(RunnerConfig, name) for name in field_names(RunnerConfig) if name != "llm_config"}
    return own | {f"llm.{name}": default_of(LLMConfig, name) for name in field_names(LLMConfig)}


@pytest.mark.parametrize("path", [*READMES, CONFIGURATION], ids=lambda path: path.name)
def test_the_settings_tables_list_every_setting_with_its_default(path: Path) -> None:
    rows = Document(path).table("`execution_mode`")
    assert {unquoted(row[0]): unquoted(row[1]) for row in rows} == all_settings()
    assert len(rows) == len(all_settings())
    assert all(row[1] for row in rows)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_readmes_table_names_the_variable_of_each_setting_that_has_one(path: Path) -> None:
    listed = {unquoted(row[2]): unquoted(row[0]) for row in Document(path).table("`execution_mode`") if row[2]}
    assert listed == {name: setting_of(str(name)) for name in listed}
    comment = EXAMPLE_CONFIG.read_text(encoding="utf-8").partition("execution_mode:")[0]
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", comment)) == set(listed)


def test_the_example_file_holds_the_defaults() -> None:
    assert RunnerConfig.from_yaml(EXAMPLE_CONFIG, environ={}) == RunnerConfig()


def test_the_example_file_names_every_key_and_loads_with_all_of_them(tmp_path: Path) -> None:
    text = re.sub(r"^( *)# (\w+: \S)", r"\1\2", EXAMPLE_CONFIG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = re.sub(r"^local-process: .*\n", "", text, flags=re.MULTILINE)  # a sentence, not a key
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    RunnerConfig.from_yaml(file, environ={})
    keys = yaml.safe_load(text)
    given = {*(set(keys) - {"llm"}), *(f"llm.{name}" for name in keys["llm"])}
    assert given == set(all_settings())


@pytest.mark.parametrize(
    ("name", "first", "model"),
    [("tasks.md", "`task_id`", TaskContext), ("playbooks.md", "`name`", Playbook)],
    ids=["tasks", "playbooks"],
)
def test_the_tables_of_inputs_list_every_field(name: str, first: str, model: type[BaseModel]) -> None:
    rows = Document(ROOT / "docs" / name).table(first)
    assert sorted(str(unquoted(row[0])) for row in rows) == sorted(field_names(model))


def test_the_table_of_tasks_says_what_is_needed_and_the_defaults() -> None:
    rows = {unquoted(row[0]): row[1:] for row in Document(ROOT / "docs" / "tasks.md").table("`task_id`")}
    required = {name for name, field in TaskContext.model_fields.items() if field.is_required()}
    assert {name for name, (needed, _) in rows.items() if needed == "yes"} == required
    for name, (_, meaning) in rows.items():
        if told := re.search(r"; default `?(\w+)", meaning):
            default = TaskContext.model_fields[str(name)].get_default()
            assert json.loads(told[1]) == default, name


def test_the_table_of_results_lists_every_field_and_their_parts() -> None:
    rows = Document(RESULTS).table("`schema_version`")
    listed = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert sorted(listed) == sorted(field_names(RunnerResult))
    parts = {name: set(re.findall(r"`(\w+)`", meaning)) for name, meaning in listed.items()}
    assert parts["status"] == set(get_args(RunnerResult.model_fields["status"].annotation))
    assert parts["artifacts"] - {"diff", "test", "transcript", "log", "manifest"} == set(field_names(Artifact))
    assert parts["error_details"] == set(field_names(ErrorDetails))
    assert parts["push_result"] == set(field_names(PushResult))
    assert parts["impl_result"] <= set(field_names(ImplementationResult))
    assert parts["test_result"] <= set(field_names(TestResult))


def test_the_table_of_exit_codes_is_that_of_the_command() -> None:
    codes = {code for name, code in vars(cli_run).items() if name.startswith("EXIT_")}
    rows = Document(RESULTS).table("0")
    assert {int(code) for row in rows for code in row[0].split(",")} == codes


def test_the_table_of_http_calls_is_what_every_service_of_the_guide_has() -> None:
    document = Document(ROOT / "docs" / "services-http.md")
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(_http.__file__).parent.glob("*_http.py"))
    for name, needed, optional in document.table("task registry"):
        calls = [re.sub(r"\{\w+\}", "{}", call).split() for call in re.findall(r"`([^`]+)`", needed)]
        assert {(name.split()[-1], method, path) for method, path in calls} <= GUIDE_REQUESTS
        for capability in re.findall(r"`([a-z-]+)`", optional):
            assert re.search(rf'(?:has|need)\("{capability}"\)', sources) or capability in CAPABILITIES
    slugs = {code for code in document.inline_code if re.fullmatch(r"[a-z]+(-[a-z]+)+", code)}
    assert slugs - {*CAPABILITIES, "slot-leases"} <= set(_http._ERROR_BY_SLUG)


def test_every_test_that_a_document_names_is_there() -> None:
    named = {
        code
        for path in DOCUMENTS
        for code in Document(path).inline_code
        if re.fullmatch(r"tests/[\w/]+\.py::\w+", code)
    }
    assert len(named) > 50
    for node in named:
        file, _, name = node.partition("::")
        source = ROOT / file
        assert source.is_file(), node
        assert re.search(rf"^ *def {name}\(", source.read_text(encoding="utf-8"), re.MULTILINE), node


def test_the_layout_and_the_layers_are_the_codes_own() -> None:
    document = Document(ROOT / "docs" / "architecture.md")
    (block,) = document.blocks_of("text")
    package = Path(agent_runner.__file__).parent
    services = [path.name for path in (ROOT / "necrocode" / "services").glob("*.py")]
    named = set(re.findall(r"\b\w+\.py", block.text))
    assert {path.name for path in package.glob("*.py")} <= named
    assert named <= {path.name for path in package.glob("*.py")} | set(services)
    folders = {path.parent.name for path in (ROOT / "necrocode").rglob("__init__.py")}
    assert set(re.findall(r"^ +(\w+)/", block.text, re.MULTILINE)) == folders - {"necrocode"}
    for step in (package / "steps").glob("[a-z]*.py"):
        assert step.stem in block.text
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c.get("containers") == ["necrocode.agent_runner"]]
    assert " > ".join(layers) in " ".join(document.prose.split())


# ---- What is named


@every_document
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    for link in Document(path).links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} points to {link}"
        assert not anchor or anchor in Document(target).anchors, f"{path.name} points to {link}"


@every_document
def test_every_error_and_every_class_that_is_named_exists(path: Path) -> None:
    document = Document(path)
    known = {*dir(errors), *dir(builtins)}
    named = set(re.findall(r"\b[A-Z]\w+Error\b", path.read_text(encoding="utf-8")))
    assert named <= known
    classes = {code for code in document.inline_code if re.fullmatch(r"[A-Z](?=\w*[a-z])(?=\w*[A-Z])\w+", code)}
    old = {"A2AClient", "A2AProtocol", "AgentRegistry", "KiroAgent", "KiroClient", "MessageBus"}
    old = old if path.name.startswith("MIGRATION") else set()
    assert classes - old <= {*agent_runner.__all__, *known, "TestsFailed"}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command and of all commands below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    names = set(parser._option_string_actions)
    return names.union(*(options_of(child) for action in below for child in action.choices.values()))


@every_document
def test_every_option_target_and_variable_that_is_named_exists(path: Path) -> None:
    options = options_of(cli.command_parser())
    for code in Document(path).inline_code:
        if code.startswith(("--", "necrocode ")):
            assert set(re.findall(r"--[a-z-]+", code)) <= options, code
        elif code.startswith("make "):
            check_command(code)
        elif re.fullmatch(r"(NECROCODE|OPENAI|GIT)_[A-Z_]+", code):
            check_variable(code)
        elif re.fullmatch(r"(necrocode|tests|examples|benchmarks|docs|\.ci)/[\w./]*", code) and "-" not in code:
            is_image = path.name.startswith("MIGRATION") and code.startswith("necrocode/")
            assert is_image or (ROOT / code).exists(), code


# ---- Translations


def test_readme_and_migration_are_there_in_japanese() -> None:
    assert {"README.ja.md", "MIGRATION.ja.md"} <= {path.name for path in TRANSLATIONS}


@pytest.mark.parametrize("path", TRANSLATIONS, ids=lambda path: path.name)
def test_a_translation_has_the_same_headings_blocks_and_links(path: Path) -> None:
    ours, original = Document(path), Document(path.with_name(path.name.replace(".ja.md", ".md")))
    assert [level for level, _ in ours.headings] == [level for level, _ in original.headings]
    for block, other in zip(ours.blocks, original.blocks, strict=True):
        assert block.language == other.language, str(block)
        if block.language not in {"text", ""}:
            assert block.code == other.code, f"{block} differs from {other}"
    assert _files_linked(ours) == _files_linked(original)


def _files_linked(document: Document) -> list[str]:
    """The files that the links lead to, whatever their language, in order."""
    return [link.partition("#")[0].replace(".ja.md", ".md") for link in document.links]
