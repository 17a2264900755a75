"""The journals of a state folder's runs: begun, found again after a crash, and swept by age."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from necrocode import __version__
from necrocode.agent_runner import _durable
from necrocode.agent_runner._journal_file import FORMAT, Fields, JournalFile, Reading, basis_of, read_journal
from necrocode.agent_runner._strict import Value, Writable
from necrocode.agent_runner._trees import remove_tree
from necrocode.agent_runner.errors import JournalError, RunnerError
from necrocode.agent_runner.journal import Journal
from necrocode.agent_runner.models import TaskContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.playbook import Playbook

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LONGEST_HEADER = 16_000_000
_LOOK_SECONDS = 0.05
# Settings that a replay has no use for, or that may hold a secret.
_OWN_SETTINGS = {
    "task_registry_url", "repo_pool_url", "artifact_store_url", "git_token", "service_token", "state_dir", "runner_id",
    "test_environment", "budget", "llm_config",
}  # fmt: skip
_LLM_SETTINGS = {"model", "max_tokens", "context_tokens", "temperature", "edit_format", "candidates"}


class InterruptedRun(Value):
    """A run that has not ended: its process has died, or is still at it."""

    run_id: Writable
    spec_name: Writable
    task_id: Writable
    title: Writable
    started_at: datetime | None
    is_running: bool
    """Whether a process is at it: then it cannot be resumed."""
    answers: int
    """How many questions to the model are journalled, and so need not be paid for again."""
    is_damaged: bool = False
    """Whether its journal is damaged from its beginning: nothing is known of it, and it cannot go on."""


@dataclass(frozen=True)
class Journals:
    """The journals below ``folder``, a folder for each run."""

    folder: Path
    clock: Clock

    def path(self, run_id: str) -> Path:
        """Where the journal of a run is; ``JournalError`` for what can be no run's id."""
        if not _RUN_ID.fullmatch(run_id):
            raise JournalError(f"There is no run {run_id!r}.", hint="necrocode resume lists those that have not ended.")
        return self.folder / run_id / "journal"

    def existing(self, run_id: str) -> Path:
        """The same; ``JournalError`` too where there is none."""
        path = self.path(run_id)
        if not path.is_file():
            raise JournalError(
                f"There is no journal of a run {run_id!r}.", hint="necrocode resume lists the runs that have not ended."
            )
        return path

    def begin(self, run_id: str, header: Fields) -> Journal:
        """The journal of a new run, with its first entry. One that cannot be written says so, and keeps nothing."""
        try:
            path = self.path(run_id)
            _durable.make_folder(path.parent)
            file = JournalFile.opened(path, is_new=True)
            journal = Journal(run_id, file)
        except OSError as error:
            journal = Journal(run_id)
            journal.on_trouble(
                f"The run has no journal ({error.strerror}): if it is interrupted, it cannot go on where it was."
            )
        journal.record("run", **header, run_id=run_id, started_at=self.clock.now().isoformat())
        return journal

    def drop(self, journal: Journal) -> None:
        """Remove the journal of a run that has not begun after all."""
        journal.close()
        remove_tree(self.path(journal.run_id).parent)
        with suppress(OSError):
            self.path(journal.run_id).parent.rmdir()

    def found(self, header: Fields, *, on_note: Callable[[str], None]) -> tuple[Journal | None, tuple[str, ...]]:
        """The journal of the latest run of the same task that was interrupted, if its task was just the same.

        None where there is none, or all are being run by other processes. The ids beside it are of the task's other
        interrupted runs, which :meth:`supersede` is for once this one has begun.
        """
        found: Journal | None = None
        others = []
        for run_id in sorted(self._unfinished(), reverse=True):
            if not _is_of_task(_header_of(self.path(run_id)), header):
                continue
            try:
                journal = self._taken(run_id, patiently=True)
            except JournalError as error:
                on_note(f"an earlier run of this task, {run_id}, is left alone: {error}")
                continue
            if journal is None:
                on_note(f"another run of this task, {run_id}, is under way")
            elif found is None and not journal.reading.ended and _goes_on_with(journal, header):
                found = journal
            else:
                if not journal.reading.ended:
                    others.append(run_id)
                journal.close()
        return found, tuple(others)

    def supersede(self, run_ids: Sequence[str], *, on_note: Callable[[str], None]) -> None:
        """These will not go on by themselves any more: a later run has taken their place."""
        for run_id in run_ids:
            with suppress(JournalError):  # what cannot be read was told when it was found
                journal = self._taken(run_id, patiently=True)
                if journal is None:
                    continue  # somebody goes on with it after all
                if not journal.reading.ended:
                    on_note(f"run {run_id} of this task was interrupted, and is not gone on with: a later one is there")
                    journal.end("superseded")
                journal.close()

    def opened(self, run_id: str) -> Journal:
        """The journal of a run that is to go on; ``JournalError`` when it cannot."""
        self.existing(run_id)
        journal = self._taken(run_id)
        if journal is None:
            raise JournalError(f"Run {run_id} is under way in another process.")
        try:
            _check_resumable(journal)
        except JournalError:
            journal.close()
            raise
        journal.reopen()
        return journal

    def unfinished(self) -> tuple[InterruptedRun, ...]:
        """The runs that have not ended, the oldest first."""
        found = []
        for run_id in sorted(self._unfinished()):
            path = self.path(run_id)
            reading = _reading_of(path)
            if reading is None or reading.ended:
                continue
            is_running = _is_locked(path)
            if not reading.header and is_running:  # it is only just beginning
                continue
            task = reading.header.get("task")
            texts = task if isinstance(task, dict) else {}
            found.append(
                InterruptedRun(
                    run_id=run_id,
                    spec_name=str(texts.get("spec_name", "")),
                    task_id=str(texts.get("task_id", "")),
                    title=str(texts.get("title", "")),
                    started_at=_moment(reading.header.get("started_at")),
                    is_running=is_running,
                    is_damaged=not reading.header,
                    answers=Journal(run_id, reading=reading).count_of_answers,
                )
            )
        return tuple(found)

    def sweep(self, keep_days: float, *, is_needed: Callable[[str], bool]) -> list[str]:
        """Remove journals of runs whose last entry is older; their ids.

        One that a process holds stays, and so does one that ``is_needed``, by its run's id.
        """
        oldest = (self.clock.now() - timedelta(days=keep_days)).timestamp()
        removed = []
        for run_id, found in self._all():
            if found.st_mtime >= oldest or is_needed(run_id):
                continue
            with suppress(OSError):
                file = JournalFile.opened(self.path(run_id))
                if file is not None:
                    remove_tree(self.folder / run_id)
                    file.close()
                    (self.folder / run_id).rmdir()
                    removed.append(run_id)
        return removed

    def _all(self) -> Iterator[tuple[str, os.stat_result]]:
        try:
            names = os.listdir(self.folder)  # noqa: PTH208  names are wanted
        except OSError:
            return
        for name in names:
            if _RUN_ID.fullmatch(name):
                with suppress(OSError):
                    found = (self.folder / name / "journal").stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield name, found

    def _unfinished(self) -> Iterator[str]:
        """Those whose file does not tell by its mode that they have ended."""
        return (run_id for run_id, found in self._all() if found.st_mode & stat.S_IWUSR)

    def _taken(self, run_id: str, *, patiently: bool = False) -> Journal | None:
        """The journal, held by this process; None when another one holds it. ``JournalError`` when it cannot be read.

        ``patiently``: whoever only looked whether it is held has let it go by the second try.
        """
        path = self.path(run_id)
        try:
            file = JournalFile.opened(path)
            if file is None and patiently:
                self.clock.sleep(_LOOK_SECONDS)
                file = JournalFile.opened(path)
            if file is None:
                return None
            try:
                return Journal(run_id, file, file.read())
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise JournalError(f"The journal {path} cannot be used: {error.strerror or error}.") from error


def _goes_on_with(journal: Journal, header: Fields) -> bool:
    ours = journal.reading.header
    return all(ours.get(name) == header[name] for name in ("fingerprint", "format"))


def _check_resumable(journal: Journal) -> None:
    reading = journal.reading
    if not reading.header:
        raise JournalError(
            f"The journal of run {journal.run_id} is damaged from its beginning, and cannot be gone on from.",
            hint="Run the task again. The damaged file is kept.",
        )
    if reading.header.get("format") != FORMAT:
        raise JournalError(
            f"The journal of run {journal.run_id} was written by another version of necrocode"
            f" ({reading.header.get('necrocode')}).",
            hint="Run the task again, or resume it with that version.",
        )
    if reading.ended == "done":
        raise JournalError(f"Run {journal.run_id} is done: there is nothing to go on with.")


def header_of(task: TaskContext, playbook: Playbook, config: RunnerConfig, redactor: Redactor) -> Fields:
    """The first entry of a run's journal: the task and the settings, secrets masked, and by what it is known again."""
    plain = task.model_dump(mode="json", exclude={"lease"})
    masked = redactor.data(plain)
    llm = config.llm_config.model_dump(mode="json", include=_LLM_SETTINGS)
    settings = config.model_dump(mode="json", exclude=_OWN_SETTINGS) | {"llm": llm}
    instructions = redactor.data(playbook.model_dump(mode="json"))
    return {
        "format": FORMAT,
        "necrocode": __version__,
        "task": masked,
        "is_whole": masked == plain,
        "playbook": instructions,
        "settings": redactor.data(settings),
        "fingerprint": basis_of(masked, instructions),
    }


def task_of(journal: Journal) -> TaskContext:
    """The task of a journal; ``JournalError`` where it had secrets, which a journal does not hold, or is none."""
    header = journal.reading.header
    if not header.get("is_whole"):
        raise JournalError(
            f"The task of run {journal.run_id} holds a secret, which its journal does not.",
            hint="Run the task itself again, as you did: it goes on from the journal.",
        )
    try:
        return TaskContext(**header["task"])
    except (RunnerError, TypeError, LookupError) as error:
        raise JournalError(f"The journal of run {journal.run_id} holds no task: {error}") from error


def _is_of_task(header: Fields, other: Fields) -> bool:
    ours, task = header.get("task"), other["task"]
    return isinstance(ours, dict) and all(ours.get(name) == task[name] for name in ("spec_name", "task_id"))


def _header_of(path: Path) -> Fields:
    """The first entry, without a look at the rest."""
    try:
        with path.open("rb") as stream:
            return read_journal(stream.readline(_LONGEST_HEADER)).header
    except OSError:
        return {}


def _reading_of(path: Path) -> Reading | None:
    try:
        return read_journal(path.read_bytes())
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    try:
        file = JournalFile.opened(path)
    except OSError:
        return False
    if file is None:
        return True
    file.close()
    return False


def _moment(value: object) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    return None
