"""Every task of the shared data through ``necrocode run``: red on the base, green on the branch, tree equal to gold."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from necrocode.agent_runner.generation.edit_formats import parse_answer
from necrocode.cli import main
from tests.support.edit_renderers import EDITS, InexpressibleError
from tests.support.edited_files import edited, encoded
from tests.support.model_server import as_files, as_json, model_server
from tests.support.repositories import files_at, git, make_repository
from tests.support.shared import SHARED, shared_folder


def load() -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = []
    for file in sorted((SHARED / "data" / "tasks").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            tasks += [json.loads(line) for line in lines]
    return tasks


TASKS = load()
EVERY = 10
"""One whole run in so many belongs to the ordinary tests, the others to ``make soak``."""


def test_the_shared_tasks_are_there() -> None:
    shared_folder("tasks")
    assert len(TASKS) >= 188


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(item, id=item["id"], marks=[pytest.mark.soak] if at % EVERY else [])
        for at, item in enumerate(TASKS)
    ],
)
def test_a_shared_task_is_delivered_byte_for_byte(
    item: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    origin = make_repository(tmp_path / "origin", item["files"])
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    clone, command = tmp_path / "clone", shlex.join(item["test_cmd"])
    wanted = {path: text.encode() for path, text in (item["files"] | item["gold"]).items()}

    task = {
        "task_id": "1",
        "spec_name": "shared",
        "title": item["id"],
        "description": item["description"],
        "repo_url": str(clone),
        "test_commands": [command],
    }
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    with model_server(as_files(item["gold"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
        code = main(["run", str(file), "--json", "--quiet"])
    result = json.loads(capsysbinary.readouterr().out)
    assert (code, result["error"]) == (0, None)
    assert result["test_result"]["success"]
    assert result["test_result"]["verdict"]["fixed"]["count"] > 0, "the tests fail on the base"
    assert files_at(clone, result["push_result"]["branch"]) == wanted


@pytest.mark.parametrize("render", [as_json, as_files])
def test_the_gold_of_every_shared_task_comes_out_byte_for_byte_as_whole_files(
    render: Callable[[dict[str, str]], str],
) -> None:
    shared_folder("tasks")
    for item in TASKS:
        wanted = encoded(item["files"] | item["gold"])
        assert edited(encoded(item["files"]), parse_answer(render(item["gold"])).changes) == wanted, item["id"]


@pytest.mark.parametrize("edit_format", sorted(EDITS))
def test_the_gold_of_every_shared_task_comes_out_byte_for_byte_as_edits(edit_format: str) -> None:
    shared_folder("tasks")
    expressed = 0
    for item in TASKS:
        wanted = item["files"] | item["gold"]
        try:
            answer = EDITS[edit_format](item["files"], wanted)
        except InexpressibleError:
            continue
        assert edited(encoded(item["files"]), parse_answer(answer).changes) == encoded(wanted), item["id"]
        expressed += 1
    assert expressed >= len(TASKS) - 2  # an envelope cannot leave a file without a last line break
