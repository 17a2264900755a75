"""What all sandboxes have in common: commands in order, over one throw-away layer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import TestExecutionError
from necrocode.agent_runner.sandbox.kept import keep_written
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

    @property
    @abstractmethod
    def identity(self) -> str:
        """What of it a result depends on."""

    @abstractmethod
    def _open(
        self, checkout: Path, below: Path | None, *, has_network: bool | None, deadline: Deadline
    ) -> AbstractContextManager[Layer]:
        """A new layer over the checkout, and over what set-up commands made; raises :class:`OSError`.

        ``has_network`` None: as the policy says.
        """

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
        below: Path | None = None,
    ) -> TestResult:
        """Run the commands in order, over one layer."""
        started = time.monotonic()
        try:
            with self._open(checkout, below, has_network=None, deadline=deadline) as layer:
                results = self._run_all(commands, layer, environment, deadline, collect, fail_fast=fail_fast)
                kind = layer.kind
        except OSError as error:
            raise TestExecutionError(f"The tests cannot be started: {error}.") from error
        return self._result(commands, results, tree, kind, started)

    def run_setup(
        self,
        commands: Sequence[str],
        checkout: Path,
        kept: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        has_network: bool,
        deadline: Deadline,
    ) -> TestResult:
        """Run the commands in order, over one layer, up to the first that fails; move what they wrote to ``kept``."""
        started = time.monotonic()
        try:
            with self._open(checkout, None, has_network=has_network, deadline=deadline) as layer:
                results = self._run_all(commands, layer, environment, deadline, (), fail_fast=True)
                kind = layer.kind
                if all(result.exit_code == 0 for result in results):
                    keep_written(layer, kept)
        except OSError as error:
            raise TestExecutionError(f"The set-up commands cannot be started, or their files kept: {error}.") from error
        return self._result(commands, results, tree, kind, started)

    def _run_all(
        self,
        commands: Sequence[str],
        layer: Layer,
        environment: Mapping[str, str],
        deadline: Deadline,
        collect: Sequence[str],
        *,
        fail_fast: bool,
    ) -> list[CommandResult]:
        results: list[CommandResult] = []
        for command in commands:
            results.append(self._run(command, layer, environment, deadline, collect))
            if results[-1].exit_code != 0 and (fail_fast or results[-1].timed_out):
                break
        return results

    def _result(
        self, commands: Sequence[str], results: Sequence[CommandResult], tree: str, layer: str, started: float
    ) -> TestResult:
        passed = len(results) == len(commands) and all(result.exit_code == 0 for result in results)
        return TestResult(
            success=passed,
            commands=tuple(results),
            sandbox=self.name,
            layer=layer,
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
        collection.add(layer.folder, [layer.written.name], patterns=patterns, since_ns=begun_ns)
    return collection.files
