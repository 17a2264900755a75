"""What every test gets: a home, a state folder and an environment of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.repositories import make_repository

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

_OURS = (
    "TASK_REGISTRY_URL", "REPO_POOL_URL", "ARTIFACT_STORE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "GIT_TOKEN",
    "NECROCODE_STATE_DIR", "NECROCODE_SERVICE_TOKEN", "MESSAGE_BUS_URL", "KIRO_URL",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's settings, or leaves anything in the developer's home."""
    for name in (*_OURS, *(name for name in os.environ if name.startswith("GIT_") and "SSL" not in name)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A folder for embedded services."""
    return tmp_path / "state"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small project whose test fails until calc.py is mended."""
    return make_repository(tmp_path / "repo")
