"""Secrets are planted wherever a run reads, in every form in which they leak, and looked for wherever it writes."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, quote_plus

import pytest

from necrocode.agent_runner import (
    LLMConfig,
    LocalArtifactStore,
    MalformedAnswerError,
    Progress,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerResult,
    ScriptedLLM,
    ServiceError,
    TaskContext,
)
from necrocode.agent_runner.explanation import explain
from necrocode.cli import main
from tests.support.repositories import CALC_TEST_COMMAND, FIXED_CALC, commit_files, make_repository

SECRETS = {
    "OPENAI_API_KEY": "model:key/with+signs\"&'<x>=0",
    "GIT_TOKEN": "git-token-0123456789-abcdef",
    "NECROCODE_SERVICE_TOKEN": "service~token$0123456789",
}
EMBEDDED = "gateway phrase with spaces 77"
FOR_TESTS = "index/token+of the tests=42"


def forms(secret: str) -> dict[str, str]:
    """The secret as it leaks, by the way that it was written."""
    data = secret.encode()
    written = {
        "plain": secret,
        "url": quote(secret, safe=""),
        "form": quote_plus(secret),
        "json": json.dumps(secret)[1:-1],
        "json in json": json.dumps(json.dumps(secret)[1:-1])[1:-1],
        "shell": shlex.quote(secret),
        "xml": html.escape(secret),
        "hex": data.hex(),
        "upper hex": data.hex().upper(),
    }
    return written | {
        f"base64 at {shift}": base64.b64encode(b"x" * shift + data + b"yz").decode() for shift in range(3)
    }


ALL = {
    f"{name}, {how}": text
    for name, one in (SECRETS | {"header": EMBEDDED, "test_environment": FOR_TESTS}).items()
    for how, text in forms(one).items()
}
PLANTED = " | ".join(ALL.values())


def needles() -> dict[str, str]:
    """What must not be found: of base64 the part that the secret alone decides."""
    return {name: text[4:-8] if "base64" in name else text for name, text in ALL.items()}


OF_TESTS: dict[str, Any] = {"sandbox": "none", "test_environment": {"NPM_TOKEN": FOR_TESTS}}


@dataclass
class Sinks:
    """All that came out of some runs."""

    results: list[RunnerResult] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, sink: str, text: str) -> None:
        self.texts[sink] = self.texts.get(sink, "") + text


def config(state_dir: Path, **settings: Any) -> RunnerConfig:
    llm = LLMConfig(headers={"X-Gateway-Token": EMBEDDED}, endpoint="http://127.0.0.1:1/v1", retry_count=0)
    return RunnerConfig(state_dir=state_dir, llm_config=llm, **(OF_TESTS | {"max_output_bytes": 50_000} | settings))


LEAK = "cat leaky.txt; echo leaky"


def task(repository: Path, **changes: Any) -> TaskContext:
    values: dict[str, Any] = {
        "task_id": "1", "spec_name": "s", "title": "Mend add", "description": f"Mend it. {PLANTED}",
        "acceptance_criteria": [f"It adds. {PLANTED}"], "metadata": {"notes": [PLANTED], PLANTED[:200]: 1},
        "repo_url": str(repository), "playbook_path": repository.parent / "book.yaml", "related_files": ["leaky.txt"],
        "test_commands": [f"{LEAK}; yes | head -c 100000; {LEAK}", "python3 report.py", CALC_TEST_COMMAND],
        "setup_commands": ["cat leaky.txt; true"],
    }  # fmt: skip
    return TaskContext(**(values | changes))


REPORT = """
import os, pathlib
from xml.sax.saxutils import quoteattr
leak = pathlib.Path("leaky.txt").read_text()
leak = quoteattr(leak)
xml = f"<testsuite><testcase name={leak}><failure message={leak}>x</failure></testcase></testsuite>"
pathlib.Path(os.environ["NECROCODE_REPORTS"], "a.xml").write_text(xml)
"""


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Sinks:
    """Runs that succeed, fail, break and are refused, and everything that they wrote."""
    folder = tmp_path_factory.mktemp("sinks")
    repository = make_repository(folder / "repo")
    commit_files(repository, {"leaky.txt": f"{PLANTED}\n", "report.py": REPORT})
    (folder / "book.yaml").write_text(json.dumps({"instructions": f"Beware. {PLANTED}"}))
    found, state = Sinks(), folder / "state"
    log, progress = io.StringIO(), list[Progress]()
    handler = logging.StreamHandler(log)
    good = f"{PLANTED}\n\ncalc.py\n```python\n{FIXED_CALC}```\n"
    scripts: list[tuple[list[Any], dict[str, Any]]] = [
        ([f"I would rather not. {PLANTED}", good], {}),
        ([good], {"test_commands": ["cat leaky.txt; exit 1"], "task_id": "2"}),
        ([MalformedAnswerError(f"No. {PLANTED}")], {"task_id": "3"}),
        ([ServiceError(f"No. {PLANTED}", hint=PLANTED)], {"task_id": "4"}),
        ([ZeroDivisionError(PLANTED)], {"task_id": "5"}),
        ([good], {"setup_commands": ["cat leaky.txt; exit 1"], "task_id": "6"}),
        ([good], {"base_ref": "nosuch", "task_id": "7"}),
    ]
    with patch.dict("os.environ", SECRETS | {"HOME": str(folder)}):
        logging.getLogger().addHandler(handler)
        logging.getLogger("necrocode").setLevel(logging.DEBUG)
        try:
            for answers, changes in scripts:
                settings = {"max_repair_rounds": 1, "pass_rule": "no-new-failures"}
                with RunnerOrchestrator(
                    config(state, **settings), llm=ScriptedLLM(answers), on_progress=progress.append
                ) as one:
                    found.results.append(one.run(task(repository, **changes)))
            explained = explain(task(repository), config(state))
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger("necrocode").setLevel(logging.NOTSET)
        found.add("log records", log.getvalue())
        found.add("progress", "\n".join(map(str, progress)))
        found.add("explanation", "\n".join([*(one.content for one in explained.messages), *explained.warnings]))
        for result in found.results:
            found.add("result", "\n".join(texts_of(result.model_dump(mode="json"))))
        add_artifacts(found, state)
        add_files(found, state)
        add_command_line(found, folder, repository)
    return found


def texts_of(value: Any) -> Iterator[str]:
    """Every text in it, as a program reads it from the JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)
    elif isinstance(value, str):
        yield value


def add_artifacts(found: Sinks, state: Path) -> None:
    store = LocalArtifactStore(state / "artifacts")
    for result in found.results:
        for artifact in result.artifacts:
            text = store.download(artifact.uri).decode()
            found.add(f"artifact {artifact.type}", text)
            if artifact.type in {"test", "transcript"}:
                found.add(f"artifact {artifact.type}", "\n".join(texts_of(json.loads(text))))


def add_files(found: Sinks, state: Path) -> None:
    """All that lies on disk, but git's objects and checkouts, which are the repository's own, and artifacts."""
    for path in state.rglob("*"):
        inside = path.relative_to(state).parts
        if path.is_file() and inside[0] not in {"pool", "artifacts", "setups"}:
            found.add(f"files in {inside[0].partition('.db')[0]}", path.read_bytes().decode("utf-8", "replace"))


def add_command_line(found: Sinks, folder: Path, repository: Path) -> None:
    """The command's own output, for a set-up that fails and tells."""
    (folder / "settings.yaml").write_text(json.dumps({
        **OF_TESTS, "state_dir": str(folder / "other"),
        "llm": {"endpoint": "http://127.0.0.1:1/v1", "retry_count": 0, "headers": {"X-Gateway-Token": EMBEDDED}},
    }))  # fmt: skip
    leaks = {"setup_commands": ["cat leaky.txt; exit 1"]}
    values = task(repository, **leaks).model_dump(mode="json", exclude_defaults=True)
    (folder / "task.yaml").write_text(json.dumps(values))
    for options in (["--json"], ["--verbose"], []):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            main(["run", str(folder / "task.yaml"), "--config", str(folder / "settings.yaml"), *options])
        for stream in streams:
            stream.seek(0)
            found.add("command line", stream.read())


SINKS = (
    "log records", "progress", "explanation", "result", "artifact log", "artifact test", "artifact transcript",
    "files in registry", "files in base-tests", "files in contexts", "command line",
)  # fmt: skip


@pytest.mark.parametrize("sink", SINKS)
def test_no_form_of_a_secret_comes_out(sinks: Sinks, sink: str) -> None:
    text = sinks.texts.get(sink, "")
    assert sink == "files in contexts" or any(mark in text for mark in ("***", "Mend", "leaky")), (
        "something was written"
    )
    assert not [name for name, needle in needles().items() if needle in text]


def test_nor_at_any_other_place(sinks: Sinks) -> None:
    assert [result.status for result in sinks.results].count("done") == 1
    others = "".join(text for sink, text in sinks.texts.items() if sink not in {*SINKS, "artifact diff"})
    assert not [name for name, needle in needles().items() if needle in others]


def test_the_diff_is_flagged_and_not_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TOKEN", SECRETS["GIT_TOKEN"])
    repository = make_repository(tmp_path / "repo")
    token = SECRETS["GIT_TOKEN"]
    commit_files(repository, {"calc.py": f"# {token}\ndef add(a, b):\n    return a - b\n"})
    llm = ScriptedLLM([f"calc.py\n```python\n# REDACTED_SECRET_1\n{FIXED_CALC}```\n"])
    run = RunnerOrchestrator(config(tmp_path / "state", test_base=False), llm=llm)
    result = run.run(task(repository, playbook_path=None, related_files=[], setup_commands=[], test_commands=["true"]))
    assert result.success, result.error
    diff = next(one for one in result.artifacts if one.type == "diff")
    assert token in LocalArtifactStore(tmp_path / "state/artifacts").download(diff.uri).decode()
    assert any("looks like a secret" in warning for warning in result.warnings)
