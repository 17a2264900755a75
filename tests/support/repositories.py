"""Real git repositories to run against."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

IDENTITY = {
    "GIT_AUTHOR_NAME": "Alice",
    "GIT_AUTHOR_EMAIL": "alice@example.com",
    "GIT_COMMITTER_NAME": "Alice",
    "GIT_COMMITTER_EMAIL": "alice@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}

BROKEN_CALC = "def add(a, b):\n    return a - b\n"
FIXED_CALC = "def add(a, b):\n    return a + b\n"
CALC_TEST = """\
import unittest

from calc import add


class AddTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)
"""
CALC_FILES = {"calc.py": BROKEN_CALC, "test_calc.py": CALC_TEST}
CALC_TEST_COMMAND = "python3 -m unittest -q"


def git(repository: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """The output of a git command, trailing white space removed."""
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        check=True,
        capture_output=True,
        input=stdin,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("GIT_")}, **IDENTITY},
    )
    return done.stdout.decode().rstrip()


def make_repository(path: Path, files: dict[str, str | bytes] | None = None, *, branch: str = "main") -> Path:
    """A repository with one commit that holds ``files`` (default: a small failing project)."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "-b", branch)
    commit_files(path, CALC_FILES if files is None else files)
    return path


def commit_files(repository: Path, files: dict[str, str | bytes], message: str = "base") -> str:
    """Commit these files on the checked-out branch; the commit."""
    for name, content in files.items():
        file = repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", message)
    return git(repository, "rev-parse", "HEAD")


def files_at(repository: Path, revision: str) -> dict[str, bytes]:
    """Every file of a commit, with its bytes."""
    names = git(repository, "ls-tree", "-r", "-z", "--name-only", revision).split("\0")
    return {
        name: subprocess.run(
            ["git", "-C", str(repository), "cat-file", "blob", f"{revision}:{name}"], check=True, capture_output=True
        ).stdout
        for name in names
        if name
    }
