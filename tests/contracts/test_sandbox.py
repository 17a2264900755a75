from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner.sandbox.plain import PlainSandbox
from tests.contracts.sandbox_contract import OpenSandbox, SandboxContract


class TestPlainSandbox(SandboxContract):
    """Over whichever layer this machine has."""

    @pytest.fixture
    def open_sandbox(self, tmp_path: Path) -> Iterator[OpenSandbox]:
        root = tmp_path / "layers"
        yield lambda max_output_bytes: PlainSandbox(root, max_output_bytes=max_output_bytes)
        assert list(root.glob("*")) == []


class TestPlainSandboxOnCopies(TestPlainSandbox):
    """As on a machine without overlays."""

    @pytest.fixture(autouse=True)
    def _no_overlay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("necrocode.agent_runner.sandbox.layer.overlay_works", lambda _root: False)
