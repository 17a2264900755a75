"""The example that the README's first command runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.http_server import Answer, serving
from tests.support.model_server import as_files, as_json, model_server
from tests.support.repositories import git
from tests.support.shared import ROOT

EXAMPLE = ROOT / "examples" / "basic_runner_usage.py"
RECORDED = ROOT / "examples" / "recorded" / "cart_discount.json"
MENDED_CART = '''\
"""A shopping cart."""


def total(items):
    """The price of all items; each is (name, unit_price, quantity)."""
    return sum(price * quantity * (0.9 if quantity >= 10 else 1) for _, price, quantity in items)
'''


def run_example(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a user does, in an environment with no settings but these."""
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=folder,
        env={**own, "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def demo_folder(folder: Path) -> Path:
    (made,) = folder.glob("necrocode-demo-*")
    return made


def assert_all_is_there(output: str, folder: Path) -> None:
    """The branch, the five artifacts and the registry's record are where the example says."""
    assert "The task is done." in output
    assert "task 2.1 of shop: done, attempt 1" in output
    repository = demo_folder(folder) / "shop"
    assert "feature/task-shop-2.1-give-a-bulk-discount" in git(repository, "branch", "--format=%(refname:short)")
    artifacts = [line.split("file://")[1] for line in output.splitlines() if " file://" in line]
    assert {Path(path).is_file() for path in artifacts} == {True}
    assert len(artifacts) == 5
    assert (demo_folder(folder) / "state" / "registry.db").is_file()


def test_without_an_endpoint_a_recorded_answer_is_replayed_and_named(tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    done = run_example(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"replaying an answer that {recorded['model']} gave" in done.stdout
    assert recorded["recorded_on"] in done.stdout
    assert "FAILED (failures=1)" in done.stdout  # the test before the change
    assert_all_is_there(done.stdout, tmp_path)


def test_the_endpoint_of_the_environment_is_asked(tmp_path: Path) -> None:
    with model_server(as_files({"cart.py": MENDED_CART})) as server:
        done = run_example(tmp_path, OPENAI_BASE_URL=f"{server.url}/v1", OPENAI_MODEL="small-model")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Asking small-model at {server.url}/v1." in done.stdout
    assert "replaying" not in done.stdout
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.json["model"] == "small-model"
    assert "10 percent off" in request.json["messages"][-1]["content"]
    assert_all_is_there(done.stdout, tmp_path)
    branch = git(demo_folder(tmp_path) / "shop", "show", "feature/task-shop-2.1-give-a-bulk-discount:cart.py")
    assert branch == MENDED_CART.rstrip()


def test_an_answer_that_fails_the_tests_ends_with_exit_code_1(tmp_path: Path) -> None:
    with model_server(as_json({"cart.py": "def total(items):\n    return 0\n"})) as server:
        done = run_example(tmp_path, OPENAI_BASE_URL=f"{server.url}/v1")
    assert done.returncode == 1
    assert "The task is failed." in done.stdout
    assert "The commit on its branch:" not in done.stdout


def test_a_key_that_is_refused_is_said_in_one_line(tmp_path: Path) -> None:
    refusal = Answer(401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}})
    with serving([refusal]) as server:
        done = run_example(tmp_path, OPENAI_BASE_URL=f"{server.url}/v1", OPENAI_API_KEY="sk-wrong-key-0123456789")
    assert (done.returncode, done.stderr) == (1, "")
    assert "The task is failed. Invalid API key" in done.stdout
    assert "sk-wrong-key" not in done.stdout
