"""The record of one run as it grows: what the result, the log and the progress display are made from."""

from __future__ import annotations

import logging
import secrets
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner._text import one_line, shown, written_out
from necrocode.agent_runner.errors import InternalError, RunCancelledError, RunnerError
from necrocode.agent_runner.results import ErrorDetails, RunnerResult, RunUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.fencing import Fence
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.results import Artifact, ImplementationResult, PushResult, RoundResult
    from necrocode.agent_runner.test_results import TestResult

logger = logging.getLogger(__name__)

Status = Literal["done", "failed", "cancelled"]
Reported = Literal["yes", "pending", "no"]


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run: everything was cleaned up, and ``result`` says how far it came.

    A :class:`KeyboardInterrupt`, so that code which handles Ctrl-C keeps working.
    """

    def __init__(self, result: RunnerResult) -> None:
        super().__init__(f"run {result.run_id} was interrupted")
        self.result = result


@dataclass(frozen=True)
class Progress:
    """A step of a run has begun (``seconds`` is None), or has ended."""

    step: str
    seconds: float | None = None
    error: str | None = None
    detail: str = ""


@dataclass
class RunRecord:
    """Everything that is known of a run so far."""

    task: TaskContext
    runner_id: str
    clock: Clock
    on_progress: Callable[[Progress], None]
    redact: Callable[[str], str] = Redactor().text
    run_id: str = ""
    cancellation: Cancellation = field(default_factory=Cancellation)
    """What ends the run early. An error that comes after it is taken for its doing."""
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    artifacts: tuple[Artifact, ...] = ()
    implementation: ImplementationResult | None = None
    tests: TestResult | None = None
    push: PushResult | None = None
    rounds: tuple[RoundResult, ...] = ()
    diff: bytes = b""
    """The patch of ``implementation``."""
    reported: Reported = "no"
    has_ended: bool = False
    """Whether the end was written down, to be reported: how the run ended stays from then on."""
    resumed: bool = False
    """Whether it goes on from where an interrupted process has left it."""
    fence: Fence | None = None
    """What the run's writes carry; None: it holds no lease on its task."""
    usage: RunUsage = field(default_factory=RunUsage)
    error: ErrorDetails | None = None
    status: Status = "failed"
    detail: str = ""
    """What the step under way has to show for itself."""
    step_failure: str | None = None
    """What made the step under way, or the last one, end badly; a step may set it and go on."""
    _failed_step: str | None = None
    _is_display_broken: bool = False
    _log: list[str] = field(default_factory=list)
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        self.started_at = self.clock.now()
        self._started = self.clock.monotonic()
        self.run_id = self.run_id or f"{self.started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self.log(f"run {self.run_id} of task {self.task.task_id} of spec {self.task.spec_name} by {self.runner_id}")

    def resume(self, run_id: str, runner_id: str, answers: int) -> None:
        """It is that run, which was interrupted, that goes on.

        Under the name of the runner whose process has died, so that the lease which that one left behind can be had.
        """
        self.run_id, self.runner_id, self.resumed = run_id, runner_id or self.runner_id, True
        self.log(f"this is run {run_id}, which was interrupted: {answers} answers of the model are known from there")

    def restore(self, result: RunnerResult, tests: TestResult | None) -> None:
        """The run had come to this, but for the telling of it."""
        self.status, self.error = result.status, result.error_details
        self.implementation, self.tests, self.push = result.impl_result, tests, result.push_result
        self.rounds, self.has_ended = result.rounds, True
        self.timings |= result.timings
        self.warnings += [warning for warning in result.warnings if warning not in self.warnings]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, show it, and put its name on an error that comes out of it."""
        self._show(Progress(name))
        started = self.clock.monotonic()
        self.detail = ""
        self.step_failure = None
        try:
            yield
        except RunnerError as error:
            error.step = error.step or name
            self.step_failure = self.shown(str(error))
            raise
        except Exception as error:
            self._failed_step = self._failed_step or name
            self.step_failure = type(error).__name__
            raise
        except BaseException:
            self.step_failure = "interrupted"
            raise
        finally:
            seconds = self.clock.monotonic() - started
            self.timings[name] = self.timings.get(name, 0.0) + seconds
            failure = None if self.step_failure is None else self.shown(self.step_failure)
            detail = self.shown(self.detail)
            self.log(f"{name} ({seconds:.3f} s) {f'failed: {failure}' if failure else detail or 'done'}")
            self._show(Progress(name, seconds, failure, detail))

    def _show(self, progress: Progress) -> None:
        """Tell the caller's display; whatever happens to it, the run goes on."""
        if self._is_display_broken:
            return
        try:
            self.on_progress(progress)
        except Exception as error:  # noqa: BLE001  the caller's code, and only a display
            self._is_display_broken = True
            self.warn(f"The progress display failed and was left out from then on: {type(error).__name__}: {error}")

    def log(self, line: str) -> None:
        """Add a line to the run's log, secrets masked."""
        text = self.shown(line)
        self._log.append(f"{self.clock.now():%Y-%m-%dT%H:%M:%S.%f}Z {text}")
        logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Note trouble that does not make the run fail."""
        if (told := self._line(text)) not in self.warnings:
            self.warnings.append(told)
            self.log(f"warning: {text}")

    def _line(self, text: str) -> str:
        return self.shown(one_line(self.redact(text)))

    def shown(self, text: str) -> str:
        """Text that others may have had a hand in, as the log, the result and a terminal may have it."""
        return shown(self.redact(text))

    def stop(self, error: BaseException) -> None:
        """An error, or an interruption, has ended the run's work."""
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self.cancel()

    def fail(self, error: Exception) -> None:
        """The run has failed with this error; the same one again is nothing new, a second one is only noted."""
        if error is self._failure:
            return
        self._failure = self._failure or error
        if isinstance(error, RunnerError) and self.cancellation.is_requested:
            error = self._stop_asked_for(error)
            if isinstance(error, RunCancelledError):
                self._cancel(error)
                return
        if not isinstance(error, RunnerError):
            trace = "".join(traceback.format_exception(error))
            logger.error("unexpected error\n%s", self.redact(trace))
            error = InternalError(
                f"Unexpected {type(error).__name__}: {error}",
                hint="This is a defect of necrocode, or of an object that was passed to it: please report it.",
                step=self._failed_step,
            )
        self.fail_with(_details(error))

    def _stop_asked_for(self, error: RunnerError) -> RunnerError:
        """What the run was asked to end with, in the step that this error came out of."""
        asked = self.cancellation.error()
        asked.step = error.step
        return asked

    def fail_with(self, details: ErrorDetails) -> None:
        """The run has failed. A second failure, or one after the delivery, is only noted: a run is judged by that."""
        hint = None if details.hint is None else self._line(details.hint)
        details = details.model_copy(update={"message": self._line(details.message), "hint": hint})
        if self.status == "done":
            self.warn(details.message)
        elif self.error is None:
            self.error = details
        else:
            self.warn(details.message)

    def cancel(self) -> None:
        """The run was interrupted; a delivered one, and one that had ended before, stays what it is."""
        if self.status == "done" or self.has_ended:
            return
        self.status = "cancelled"
        self.error = self.error or ErrorDetails(type="RunInterrupted", message="The run was interrupted.")

    def _cancel(self, error: RunCancelledError) -> None:
        """The run was asked to stop, too late for one that is delivered."""
        if self.status != "done" and not self.has_ended:
            self.status = "cancelled"
        self.fail_with(_details(error))

    def log_text(self) -> str:
        """The log so far, with the output of the tests, as a terminal may be shown it."""
        parts = ["\n".join(self._log)]
        commands = self.tests.commands if self.tests is not None else ()
        said = ((written_out(one.command), written_out(one.output.rstrip()), one.exit_code) for one in commands)
        parts += [f"\n$ {command}\n{output}\n[exit code {code}]" for command, output, code in said]
        return "\n".join(parts) + "\n"

    def result(self) -> RunnerResult:
        """The record as a result."""
        return RunnerResult(
            success=self.status == "done",
            status=self.status,
            runner_id=self.runner_id,
            run_id=self.run_id,
            task_id=self.task.task_id,
            spec_name=self.task.spec_name,
            branch=self.task.branch,
            started_at=self.started_at,
            duration_seconds=self.clock.monotonic() - self._started,
            timings={name: round(seconds, 6) for name, seconds in self.timings.items()},
            artifacts=self.artifacts,
            error=None if self.error is None else self.error.message,
            error_details=self.error,
            impl_result=self.implementation,
            test_result=self.tests,
            push_result=self.push,
            rounds=self.rounds,
            reported=self.reported,
            resumed=self.resumed,
            lease_epoch=None if self.fence is None else self.fence.epoch,
            usage=self.usage,
            warnings=tuple(self.warnings),
        )


def _details(error: RunnerError) -> ErrorDetails:
    return ErrorDetails(
        type=type(error).__name__,
        message=str(error),
        step=error.step,
        hint=error.hint,
        retryable=error.retryable,
        status_code=error.status_code,
    )
