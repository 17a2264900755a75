"""``necrocode outbox``: what people and programs see of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from necrocode.agent_runner import StaleLeaseError
from necrocode.cli import main
from tests.support.bench import GOOD_ANSWER, Bench
from tests.support.failing import Failing, down

WRITES = ("add_event", "add_artifact", "update_task_status")


@pytest.fixture
def bench(repository: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(state_dir))
    return Bench(repository, state_dir)


def outbox(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["outbox", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_what_waits_is_listed_and_sent(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outbox(capsys, "list")[:2] == (0, "nothing waits, and nothing was refused\n")
    result = bench.run(
        GOOD_ANSWER,
        task=bench.task(test_commands=[]),
        detect_tests=False,
        services={"task_registry": Failing(bench.registry, down, *WRITES, after=1)},
    )
    code, out, _ = outbox(capsys, "list")
    assert code == 0
    assert f"{result.run_id}  waiting  task 1.1 of calc" in out
    assert "  status  done" in out
    (run,) = json.loads(outbox(capsys, "list", "--json")[1])["runs"]
    assert (run["state"], run["entries"][-1]) == (
        "waiting", {"kind": "status", "what": "done", "size_bytes": 0, "reason": None},
    )  # fmt: skip
    monkeypatch.setenv("TASK_REGISTRY_URL", "http://127.0.0.1:9")
    code, out, err = outbox(capsys, "flush")
    assert (code, out) == (3, "0 delivered, 11 waiting, 0 rejected\n")
    assert "Failed to connect" in err
    monkeypatch.delenv("TASK_REGISTRY_URL")
    code, out, _ = outbox(capsys, "flush", "--json")
    assert (code, json.loads(out)["delivered"], bench.status()) == (0, 11, "done")


def test_what_was_refused_is_told_retried_and_dropped(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def stale() -> StaleLeaseError:
        return StaleLeaseError("another\x1b[31m has it", status_code=409)

    result = bench.run("rubbish", max_repair_rounds=0, services={
        "task_registry": Failing(bench.registry, stale, "add_artifact"),
    })  # fmt: skip
    _, out, _ = outbox(capsys, "list")
    assert f"{result.run_id}  rejected" in out
    assert "refused: another\\x1b[31m has it" in out
    assert outbox(capsys, "retry", result.run_id)[0] == 0
    assert outbox(capsys, "flush")[0] == 0
    code, _, err = outbox(capsys, "drop", result.run_id)
    assert (code, "holds nothing of a run" in err) == (2, True)


def test_a_refusal_as_json(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("outbox_max_bytes: many\n")
    code, out, _ = outbox(capsys, "flush", "--json", "--config", str(config))
    assert (code, json.loads(out)["error_details"]["type"]) == (2, "ConfigurationError")
    assert bench.repository.exists()
