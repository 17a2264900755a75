"""What a user's type checker says of the documents' Python: one strict mypy for all of it, without plugins."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from necrocode.agent_runner import LLMConfig, llm_config
from tests.docs.markdown import DOCUMENTS, Block, Document
from tests.docs.snippets import PREAMBLE, is_old_side
from tests.support.shared import ROOT, SHARED, migration_guide

SETTINGS = """\
[mypy]
strict = true
pretty = false
[mypy-necrocode.*]
follow_imports = silent
[mypy-openai.*,sqlalchemy.*,git.*]
follow_imports = skip
"""  # those three stand behind no public name, and reading them takes ten seconds


def module_name(block: Block) -> str:
    return re.sub(r"\W", "_", str(block)) + ".py"


def as_module(block: Block) -> str:
    """The block after what it takes as given. ``[...]`` is no list of texts to a type checker, though runs take it."""
    return PREAMBLE + block.text.replace("[...]", "[]")


def python_blocks() -> list[Block]:
    documents = [Document(path) for path in DOCUMENTS]
    if SHARED.is_dir():
        documents.append(Document(migration_guide()))
    return [block for document in documents for block in document.python() if not is_old_side(block)]


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with a module for each block."""
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    for block in python_blocks():
        (tmp_path / module_name(block)).write_text(as_module(block), encoding="utf-8")
    return tmp_path


def test_a_strict_type_checker_accepts_every_python_block_and_the_example(modules: Path) -> None:
    assert len(list(modules.glob("*.py"))) >= 3
    wrong = 'from necrocode.agent_runner import LLMConfig\nLLMConfig(modle="x")\n'
    (modules / "wrong.py").write_text(wrong, encoding="utf-8")  # shows that names are checked at all
    files = [*sorted(path.name for path in modules.glob("*.py")), str(ROOT / "examples" / "basic_runner_usage.py")]
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", *files]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=modules, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in errors if not line.startswith("wrong.py:2")] == [], done.stderr
    assert len(errors) == 1


def test_the_constructor_that_type_checkers_see_has_the_real_fields() -> None:
    source = Path(llm_config.__file__).read_text(encoding="utf-8")
    (seen,) = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == "__init__"]
    assert isinstance(seen, ast.FunctionDef)
    assert [argument.arg for argument in seen.args.kwonlyargs] == list(LLMConfig.model_fields)
