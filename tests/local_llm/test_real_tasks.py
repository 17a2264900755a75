"""Real tasks end as delivered changes: with recorded answers by ``make soak``, with a model by ``make local-llm``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.shared import shared_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    shared_folder("tasks")
    spec = importlib.util.spec_from_file_location("local_model", ROOT / "benchmarks" / "local_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _python_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("experiment", "least"),
    [
        (("humaneval", 20, "files", 2, 1, False), 17),
        (("humaneval", 20, "auto", 2, 1, True), 14),
        (("quixbugs", 21, "auto", 2, 1, True), 8),
        (("humaneval", 20, "search_replace", 0, 1, False), 15),
    ],
)
def test_the_recorded_answers_of_a_small_model_still_solve_as_many_tasks(
    benchmark: ModuleType, experiment: tuple[object, ...], least: int
) -> None:
    asked = benchmark.Experiment(*experiment)
    outcomes, _, _ = benchmark.again(asked, list(benchmark.read(benchmark.RECORDING)))
    assert len(outcomes) == asked.count
    assert sum(one.solved_in_round is not None for one in outcomes) >= least


@pytest.mark.local_llm
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("tasks", "count", "least"), [("humaneval", 20, 12), ("quixbugs", 21, 5)])
def test_a_small_model_solves_as_many(
    benchmark: ModuleType, tasks: str, count: int, least: int, tmp_path: Path
) -> None:
    """One or two fewer than on record: another machine computes otherwise."""
    endpoint = os.environ.get("NECROCODE_LOCAL_LLM_URL")
    if not endpoint:
        pytest.skip("needs a model: set NECROCODE_LOCAL_LLM_URL (see docs/testing.md)")
    experiment = benchmark.Experiment(tasks, count, "auto", 2, 1)
    recording = tmp_path / "answers.jsonl.gz"
    benchmark.ask(experiment, endpoint, os.environ.get("NECROCODE_LOCAL_LLM_MODEL", "local"), recording)
    outcomes, _, _ = benchmark.again(experiment, list(benchmark.read(recording)))
    assert sum(one.solved_in_round is not None for one in outcomes) >= least
