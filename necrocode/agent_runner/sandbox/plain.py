"""Test commands as plain processes: a throw-away layer, an allow-listed environment, limits on time and output.

This holds honest tests. It does not confine hostile ones: they run as this user, with its network.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._process import run_process
from necrocode.agent_runner.errors import TestExecutionError
from necrocode.agent_runner.sandbox.layer import Layer, open_layer
from necrocode.agent_runner.sandbox.reports import Collection
from necrocode.agent_runner.test_results import CommandResult, TestResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from necrocode.agent_runner._clock import Deadline

_LAYER_FAILED = 125  # what the layer's own script exits with, before any test command has run
_ALLOWED_VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "TERM")


class PlainSandbox:
    """The :class:`~necrocode.agent_runner.Sandbox` that every machine has."""

    def __init__(self, root: Path, *, max_output_bytes: int = 1_000_000) -> None:
        self._root = root
        self._max_output_bytes = max_output_bytes

    def run_tests(
        self,
        commands: Sequence[str],
        checkout: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        fail_fast: bool,
        deadline: Deadline,
        collect: Sequence[str] = (),
    ) -> TestResult:
        """Run the commands in order, over one layer."""
        started = time.monotonic()
        results: list[CommandResult] = []
        try:
            with open_layer(checkout, self._root) as layer:
                for command in commands:
                    results.append(self._run(command, layer, environment, deadline, collect))
                    if results[-1].exit_code != 0 and (fail_fast or results[-1].timed_out):
                        break
                kind = layer.kind
        except OSError as error:
            raise TestExecutionError(f"The tests cannot be started: {error}.") from error
        passed = len(results) == len(commands) and all(result.exit_code == 0 for result in results)
        return TestResult(
            success=passed,
            commands=tuple(results),
            sandbox="none",
            layer=kind,
            tree=tree,
            duration_seconds=time.monotonic() - started,
        )

    def _run(
        self,
        command: str,
        layer: Layer,
        environment: Mapping[str, str],
        deadline: Deadline,
        collect: Sequence[str],
    ) -> CommandResult:
        layer.entered.unlink(missing_ok=True)
        reports = layer.new_reports_folder()
        begun_ns = reports.stat().st_mtime_ns  # by the file system's own clock, which files are compared with
        done = run_process(
            layer.argv(command),
            cwd=layer.start_folder,
            environment=command_environment(layer, environment) | {"NECROCODE_REPORTS": str(reports)},
            timeout_seconds=deadline.remaining_seconds(),
            max_output_bytes=self._max_output_bytes,
        )
        output = done.output.decode(errors="replace")
        if done.exit_code == _LAYER_FAILED and layer.kind == "overlay" and not layer.entered.exists():
            raise TestExecutionError(
                f"The copy-on-write layer cannot be mounted: {output.strip() or 'no reason given'}."
            )
        return CommandResult(
            command=command,
            exit_code=done.exit_code,
            duration_seconds=done.duration_seconds,
            output=output,
            truncated_bytes=done.truncated_bytes,
            timed_out=done.timed_out,
            collected=_collected(layer, reports.name, collect, begun_ns),
        )


def _collected(layer: Layer, reports: str, patterns: Sequence[str], begun_ns: int) -> dict[str, bytes]:
    """What the command that has just ended left in its folder for reports, and what it wrote that is asked for."""
    collection = Collection(layer.brought_back)
    collection.add(layer.folder, [reports], prefix="reports/")
    if patterns:
        written = "upper" if layer.kind == "overlay" else "top"
        collection.add(layer.folder, [written], patterns=patterns, since_ns=begun_ns)
    return collection.files


def command_environment(layer: Layer, extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a test command: a few harmless variables, fresh folders, and what the operator adds.

    The folder of the runner's own Python comes last on the PATH, so that ``python`` is found wherever this runs.
    """
    environment = {name: os.environ[name] for name in _ALLOWED_VARIABLES if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    path = [environment.get("PATH") or os.defpath, str(Path(sys.executable).parent)]
    environment |= {
        "PATH": os.pathsep.join(path),
        "HOME": str(layer.home),
        "TMPDIR": str(layer.temporary),
        "CI": "true",
    }
    return environment | dict(extra)
