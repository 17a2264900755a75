"""Which sandboxes the machine has that the tests run on."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from necrocode.agent_runner.sandbox.confined import Confinement
from necrocode.agent_runner.sandbox.ladder import layers_root, why_not


@cache
def reason_against(confinement: Confinement) -> str:
    """Why commands cannot be confined in this way here; empty: they can."""
    with tempfile.TemporaryDirectory() as folder:
        return why_not(confinement, layers_root(Path(folder, "layers"), confinement))


def skip_unless_confined(confinement: Confinement) -> None:
    """Skip the test, with the reason, where commands cannot be confined in this way."""
    if reason := reason_against(confinement):
        pytest.skip(f"{confinement}: {reason}")
