"""``necrocode explain``: what a run would show the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from necrocode.cli import main
from tests.support.http_server import Answer, serving
from tests.support.repositories import CALC_TEST_COMMAND, commit_files, git

SECRET = "ghp_" + "a1B2" * 9


class Bench:
    def __init__(self, folder: Path, repository: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.folder, self.repository, self._capture = folder, repository, capture
        self.out, self.err = "", ""

    def explain(self, *arguments: str, **changes: Any) -> int:
        task = {
            "task_id": "1.1",
            "spec_name": "calc",
            "title": "Mend add",
            "description": "add() subtracts.",
            "repo_url": str(self.repository),
            "test_commands": [CALC_TEST_COMMAND],
        }
        file = self.folder / "task.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in (task | changes).items() if v is not None}))
        code = main(["explain", str(file), *arguments])
        captured = self._capture.readouterr()
        self.out, self.err = captured.out.decode(), captured.err.decode()
        return code


@pytest.fixture
def bench(
    tmp_path: Path, repository: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    return Bench(tmp_path, repository, capsysbinary)


def test_it_shows_each_piece_with_reason_lines_and_tokens(bench: Bench) -> None:
    assert bench.explain() == 0
    assert "calc.py  (shares words with the task)" in bench.out
    assert "of 16000 for the repository's text" in bench.out
    assert "2 names listed, 0 files neither shown nor named" in bench.out
    assert "the prompt, for gpt-4.1, without how the tests fail before the change" in bench.out


def test_the_json_says_the_same(bench: Bench) -> None:
    assert bench.explain("--json") == 0
    told = json.loads(bench.out)
    assert [piece["path"] for piece in told["pieces"]] == ["calc.py", "test_calc.py"]
    assert {"kind", "start_line", "end_line", "tokens", "why", "score"} <= set(told["pieces"][0])
    assert told["context_tokens"] <= told["prompt_tokens"]
    assert "prompt" not in told
    assert "how the tests fail" in told["prompt_leaves_out"]
    assert (told["paths_listed"], told["paths_in_map"], told["paths_left_out"]) == (2, 0, 0)


def test_the_prompt_is_the_one_of_a_run_with_secrets_masked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TOKEN", SECRET)
    commit_files(bench.repository, {"settings.py": f'TOKEN = "{SECRET}"\n'})
    assert bench.explain("--prompt", description=f"add() subtracts, with {SECRET}") == 0
    assert "# Task 1.1: Mend add" in bench.out
    assert 'TOKEN = "REDACTED_SECRET_1"' in bench.out
    assert SECRET not in bench.out
    assert bench.explain("--json", "--prompt") == 0
    assert [message["role"] for message in json.loads(bench.out)["prompt"]] == ["system", "user"]


def test_no_model_and_no_registry_is_called(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: Answer(500, b"")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("TASK_REGISTRY_URL", server.url)
        assert bench.explain() == 0
        assert not server.requests


def test_the_slot_is_given_back_and_no_task_and_no_artifact_is_left(bench: Bench) -> None:
    config = bench.folder / "config.yaml"
    config.write_text("pool_size: 1\nslot_timeout_seconds: 0\n")
    for _ in range(2):
        assert bench.explain("--config", str(config)) == 0
    state = bench.folder / "state"
    assert {entry.name for entry in state.iterdir()} <= {"git", "pool", "contexts"}


def test_a_brought_checkout_is_only_read(bench: Bench) -> None:
    before = git(bench.repository, "status", "--porcelain", "--branch"), git(bench.repository, "for-each-ref")
    assert bench.explain(slot_path=str(bench.repository), repo_url=None) == 0
    assert (git(bench.repository, "status", "--porcelain", "--branch"), git(bench.repository, "for-each-ref")) == before


def test_a_checkout_with_uncommitted_changes_is_warned_of_and_left_as_it_is(bench: Bench) -> None:
    (bench.repository / "calc.py").write_text("not committed\n")
    assert bench.explain("--prompt", slot_path=str(bench.repository), repo_url=None) == 0
    assert "has uncommitted changes" in bench.out
    assert "not committed" not in bench.out
    assert (bench.repository / "calc.py").read_text() == "not committed\n"


def test_the_model_can_be_chosen(bench: Bench) -> None:
    config = bench.folder / "config.yaml"
    config.write_text("llm:\n  prices:\n    other: {prompt_usd: 10, completion_usd: 50}\n")
    assert bench.explain("--config", str(config), "--model", "other") == 0
    assert "the prompt, for other" in bench.out
    assert "US dollars" in bench.out


def test_of_a_large_repository_the_names_in_the_map_are_counted(bench: Bench) -> None:
    commit_files(bench.repository, {f"src/m{number}.py": "x = 1\n" * 300 for number in range(60)})
    assert bench.explain("--json") == 0
    told = json.loads(bench.out)
    assert told["paths_in_map"] > 50
    assert bench.explain() == 0
    assert f"{told['paths_in_map']} names in the map, {told['paths_left_out']} files neither" in bench.out


def test_a_budget_that_nothing_fits_into_is_warned_of(bench: Bench) -> None:
    config = bench.folder / "config.yaml"
    config.write_text("llm: {context_tokens: 50}\n")
    commit_files(bench.repository, {"calc.py": "def add(a, b):\n    return a - b\n" * 50})
    assert bench.explain("--config", str(config)) == 0
    assert "warning    No file's text is shown to the model" in bench.out


def test_the_help_tells_the_exit_codes_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "exit codes: 0 it was shown" in told
    assert "contexts in the state folder" in told


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize(
    ("changes", "error_type"),
    [({"title": ""}, "TaskContextValidationError"), ({"repo_url": "/nowhere/at/all"}, "RepositoryNotFoundError")],
)
def test_bad_input_is_told_as_by_a_run(
    bench: Bench, form: tuple[str, ...], changes: dict[str, Any], error_type: str
) -> None:
    assert bench.explain(*form, **changes) == 2
    assert bench.err.startswith("necrocode: ")
    if form:
        assert json.loads(bench.out)["error_details"]["type"] == error_type


def test_the_cost_is_told_where_the_price_is_known(bench: Bench) -> None:
    assert bench.explain() == 0
    assert "cost       not known: llm.prices has no price for gpt-4.1" in bench.out
    config = bench.folder / "config.yaml"
    config.write_text("llm:\n  max_tokens: 1000\n  prices:\n    gpt-4.1: {prompt_usd: 10, completion_usd: 50}\n")
    assert bench.explain("--config", str(config), "--json") == 0
    told = json.loads(bench.out)
    assert told["cost_usd"]["prompt"] == told["prompt_tokens"] * 10 / 1_000_000
    assert round(told["cost_usd"]["with_longest_answer"] - told["cost_usd"]["prompt"], 6) == 0.05
    grown = 2 * (1000 + 1600) * 10 / 1_000_000 + (1000 + 1600) * 10 / 1_000_000
    assert round(told["cost_usd"]["run_at_most"] - 3 * told["cost_usd"]["with_longest_answer"], 6) == round(grown, 6)
    assert told["most_calls"] == 3
    assert bench.explain("--config", str(config)) == 0
    assert "cost       one call: 0.0" in bench.out
    assert " at the most, with 3 calls" in bench.out


def test_related_files_that_are_not_there_are_warned_of(bench: Bench) -> None:
    assert bench.explain(related_files=["gone.py"]) == 0
    assert "The repository has no file gone.py" in bench.out
