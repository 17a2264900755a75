"""Test commands as plain processes: a throw-away layer, an allow-listed environment, limits on time and output.

This holds honest tests. It does not confine hostile ones: they run as this user, with its network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._process import ProcessResult, run_process
from necrocode.agent_runner.errors import TestExecutionError
from necrocode.agent_runner.sandbox.layer import Layer, open_layer
from necrocode.agent_runner.sandbox.layered import LayeredSandbox
from necrocode.agent_runner.sandbox.limits import Limits, LimitWatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from necrocode.agent_runner._clock import Deadline

_LAYER_FAILED = 125  # what the layer's own script exits with, before any test command has run
_ALLOWED_VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "TERM")


class PlainSandbox(LayeredSandbox):
    """The :class:`~necrocode.agent_runner.Sandbox` that every machine has."""

    name = "none"

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self._root = root
        self._limits = limits or Limits()

    def ensure_available(self) -> None:
        """Return: plain processes can always be had."""

    @property
    def identity(self) -> str:
        """What of it a result depends on."""
        return f"{self.name} {self._root}"

    def _open(
        self, checkout: Path, below: Path | None, *, has_network: bool | None, deadline: Deadline
    ) -> AbstractContextManager[Layer]:
        del has_network  # nothing is held here
        return open_layer(checkout, self._root, below=below, has_network=True, deadline=deadline)

    def _execute(
        self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str], deadline: Deadline
    ) -> ProcessResult:
        layer.entered.unlink(missing_ok=True)
        done = run_process(
            layer.argv(command),
            cwd=layer.top,
            environment=command_environment(layer, environment),
            timeout_seconds=deadline.remaining_seconds(),
            max_output_bytes=self._limits.kept_output_bytes,
            cancellation=deadline.cancellation,
            watch=LimitWatch(self._limits, layer.written_folders, reports.stat().st_mtime_ns),
        )
        if done.exit_code == _LAYER_FAILED and layer.kind == "overlay" and not layer.entered.exists():
            reason = done.output.decode(errors="replace").strip() or "no reason given"
            raise TestExecutionError(f"The copy-on-write layer cannot be mounted: {reason}.")
        return done


def command_environment(layer: Layer, extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a test command: a few harmless variables, fresh folders, and what the operator adds.

    The folder of the runner's own Python comes last on the PATH, so that ``python`` is found wherever this runs.
    """
    environment = {name: os.environ[name] for name in _ALLOWED_VARIABLES if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    path = [environment.get("PATH") or os.defpath, str(Path(sys.executable).parent)]
    environment |= {
        "PATH": os.pathsep.join(path),
        "HOME": str(layer.seen_home),
        "TMPDIR": str(layer.temporary),
        "CI": "true",
    }
    return environment | dict(extra)
