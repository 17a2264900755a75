"""The data folder beside the checkout: third-party material that is read where it lies and never copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("NECROCODE_SHARED") or ROOT.parent / "shared")


def shared_folder(name: str) -> Path:
    """A folder of the shared data; skips the test, saying so, where it is not there."""
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder} (set NECROCODE_SHARED)")
    return folder


def migration_guide() -> Path:
    """The user's own migration guide; skips where it is not there."""
    file = SHARED / "seed" / "agent-runner-migration-guide.ja.md"
    if not file.is_file():
        pytest.skip(f"needs {file} (set NECROCODE_SHARED)")
    return file
