"""What all sandboxes have in common: commands in order, over one throw-away layer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import TestExecutionError
from necrocode.agent_runner.sandbox.reports import Collection
from necrocode.agent_runner.test_results import CommandResult, TestResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._process import ProcessResult
    from necrocode.agent_runner.sandbox.layer import Layer


class LayeredSandbox(ABC):
    """A :class:`~necrocode.agent_runner.Sandbox`; a subclass says how a layer is made and a command is run in it."""

    name: str
    """As :attr:`TestResult.sandbox` tells it."""

    @abstractmethod
    def ensure_available(self) -> None:
        """Return when commands can be run; else ``ConfigurationError``."""

    @abstractmethod
    def _open(self, checkout: Path, deadline: Deadline) -> AbstractContextManager[Layer]:
        """A new layer over the checkout; raises :class:`OSError`."""

    @abstractmethod
    def _execute(
        self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str], deadline: Deadline
    ) -> ProcessResult:
        """Run one command at the layer's top, with ``reports`` writable; ``OSError`` or ``TestExecutionError``.

        ``RunCancelledError``, with nothing of the command left, once the run is asked to stop.
        """

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
            with self._open(checkout, deadline) as layer:
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
            sandbox=self.name,
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
        reports = layer.new_reports_folder()
        begun_ns = reports.stat().st_mtime_ns  # by the file system's own clock, which files are compared with
        given = dict(environment) | {"NECROCODE_REPORTS": str(reports)}
        deadline.cancellation.check()
        done = self._execute(command, layer, reports, given, deadline)
        return CommandResult(
            command=command,
            exit_code=done.exit_code,
            duration_seconds=done.duration_seconds,
            output=done.output.decode(errors="replace"),
            truncated_bytes=done.truncated_bytes,
            timed_out=done.timed_out,
            stopped_by=done.stopped_by,
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
