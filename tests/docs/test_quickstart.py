"""The quickstart, in both languages, done as it is written with a model that knows the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import Document
from tests.docs.test_example import MENDED_CART
from tests.support.model_server import as_files, model_server
from tests.support.repositories import commit_files, git
from tests.support.shared import ROOT

CART = MENDED_CART.replace(" * (0.9 if quantity >= 10 else 1)", "")
CART_TEST = """\
import unittest

from cart import total


class TotalTest(unittest.TestCase):
    def test_ten_or_more_are_cheaper(self):
        self.assertEqual(total([("pen", 100, 10)]), 900)
"""


@pytest.mark.parametrize("name", ["quickstart.md", "quickstart.ja.md"])
def test_a_task_becomes_a_tested_branch(name: str, tmp_path: Path) -> None:
    document = Document(ROOT / "docs" / name)
    repository = tmp_path / "shop"
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    commit_files(repository, {"cart.py": CART, "test_cart.py": CART_TEST})
    (task,) = document.blocks_of("yaml")
    text = task.text.replace("/path/or/url/of/the/repository", str(repository))
    (repository / "task.yaml").write_text(text, encoding="utf-8")
    lines = [line for block in document.blocks_of("bash") for line in block.commands]
    typed = [line for line in lines if line.startswith(("export OPENAI_API_KEY", "necrocode ", "git "))]
    assert len(typed) == len(lines) - 2  # one installs, and one names a server of the reader's own
    with model_server(as_files({"cart.py": MENDED_CART})) as server:
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ["HOME"]}
        done = subprocess.run(
            ["sh", "-e", "-c", "\n".join(typed)],
            cwd=repository,
            env={**own, "OPENAI_BASE_URL": f"{server.url}/v1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "done: task 1.1 of shop" in done.stdout
    assert "+    return sum(price * quantity * (0.9" in done.stdout
    assert "Give a bulk discount" in done.stdout.rpartition("graph")[2]
