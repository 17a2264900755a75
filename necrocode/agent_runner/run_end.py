"""How a run's end is told: written down first, then stored and reported, unless the task may be another run's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import closing
from necrocode.agent_runner.errors import StaleLeaseError
from necrocode.agent_runner.steps.upload import outputs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.generate import Transcript
    from necrocode.agent_runner.steps.report import Reporter

_NOT_TOLD = {"pending": "kept in the outbox", "no": "not recorded"}


@dataclass(frozen=True)
class RunEnd:
    """The telling of one run's end. ``check_task`` raises ``StaleLeaseError`` once the task may be another run's."""

    record: RunRecord
    reporter: Reporter
    journal: Journal
    transcript: Transcript
    redactor: Redactor
    deadline: Deadline
    check_task: Callable[[], None]

    def tell(self) -> None:
        """Write the end down, store and report it; nothing of that where the task may be another run's by now."""
        try:
            if self._is_overtaken():
                self.journal.end("overtaken")
            else:
                self._tell_the_end_whatever_happens()
        finally:
            self.reporter.close()

    def _is_overtaken(self) -> bool:
        """Whether the task may be another run's by now: then nothing more is written under this one's epoch."""
        try:
            self.check_task()
        except StaleLeaseError as error:
            self.record.fail(error)
            kept = "" if self.record.implementation is None else f"; the work is under {self.record.implementation.ref}"
            self.record.warn(f"Nothing was uploaded or reported: the task may be another run's by now{kept}.")
            return True
        return False

    def _tell_the_end_whatever_happens(self) -> None:
        try:
            self._tell_the_end()
        except KeyboardInterrupt:
            self.record.cancel()
            self._tell_the_end()  # it goes on with what has not been sent
            raise

    def _tell_the_end(self) -> None:
        record = self.record
        with closing(self.deadline), record.step("upload"):
            self._write_down()
            record.artifacts = self.reporter.upload()
            record.detail = f"{len(record.artifacts)} artifacts"
        with closing(self.deadline), record.step("report"):
            record.reported = self.reporter.report()
            is_told = record.reported == "yes"
            record.detail = record.status if is_told else f"{record.status}, {_NOT_TOLD[record.reported]}"
        if self.reporter.is_kept:
            self.journal.end(record.status)

    def _write_down(self) -> None:
        """From here on nothing is lost, whatever becomes of this process or of the services."""
        record = self.record
        if record.has_ended:
            return
        try:
            outputs = outputs_of(record, self.transcript, self.redactor)
        except Exception as defect:  # noqa: BLE001  the end must be told, whatever is wrong with what is told of it
            record.fail(defect)
            outputs = []
        error = record.error
        summary = {
            "branch": record.task.branch,
            "commit": None if record.implementation is None else record.implementation.commit,
            "tests_passed": None if record.tests is None else record.tests.success,
            "error": None if error is None else error.message,
            "error_type": None if error is None else error.type,
            "retryable": None if error is None else error.retryable,
        }
        self.journal.record("result", **record.result().model_dump(mode="json", exclude={"test_result", "artifacts"}))
        self.reporter.ends(record.status, summary, outputs)
        record.has_ended = True
        if self.reporter.is_kept:
            self.journal.record("told")
