"""A run done again from its journal alone, to see whether it comes to the same: the basis of bug reports.

The model's answers, the results of the tests and the times come from the journal; the files come from the repository's
git objects. What is written goes to a folder that is removed afterwards: no registry, no store, no model, no branch and
no ref of anybody's repository is touched, and no test is run.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Git, GitError, Repository
from necrocode.agent_runner._journal_file import MAX_BYTES, Entry, Fields, Reading, read_journal
from necrocode.agent_runner._strict import Value, Writable
from necrocode.agent_runner.attempts import Attempts
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.errors import JournalError, RunnerError
from necrocode.agent_runner.fencing import Fence
from necrocode.agent_runner.generation.budget import ProcessBudget
from necrocode.agent_runner.generation.budgeted_model import BudgetedModel
from necrocode.agent_runner.journal import Journal
from necrocode.agent_runner.models import TaskContext
from necrocode.agent_runner.playbook import Playbook, with_playbook
from necrocode.agent_runner.run_record import RunRecord
from necrocode.agent_runner.shown_task import masked, readable
from necrocode.agent_runner.solver import Solver
from necrocode.agent_runner.steps.generate import Asker
from necrocode.agent_runner.steps.kept import KeptWork
from necrocode.agent_runner.wiring import Services
from necrocode.agent_runner.workspace import StartPoint, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.results import ImplementationResult, RoundResult

_LONGEST_SHOWN = 2_000
_NOT_COMPARED = {"when", "ref", "fence"}  # the time is the journal's, and a ref may have been taken


class Divergence(Value):
    """The first thing that came out otherwise than the journal has it."""

    entry: int
    """Which entry of the journal, counted from 1; 0: there is none."""
    kind: Writable
    """Of that entry, such as ``answer``, ``commit`` or ``result``."""
    key: Writable
    recorded: Writable
    now: Writable


class ReplayResult(Value):
    """What came of a replay."""

    run_id: Writable
    same: bool
    """Whether everything came out as journalled, as far as the journal goes."""
    entries: int
    """How many entries of the journal were compared."""
    divergence: Divergence | None = None
    notes: tuple[Writable, ...] = ()
    """How far the journal goes, and what of it could not be believed."""


class _Diverged(Exception):  # noqa: N818  a way out, no error
    """The replay is over: it has come to something else than the journal."""


class _RecordEnds(Exception):  # noqa: N818  likewise
    """The replay is over: the journal has no more of this."""


@dataclass
class _Compared(Journal):
    """A journal that a replay is held against: what the run asks for comes from it, and what it tells is compared."""

    divergence: Divergence | None = None
    compared: set[int] = field(default_factory=set)

    def recorded(self, kind: str, key: str = "", basis: str = "", *, parts: Sequence[str] = ()) -> Fields | None:
        """The entry, which must be there."""
        number, entry = self.find(kind, key)
        if entry is None:
            raise _RecordEnds(f"{kind} {key}".strip())
        if kind == "answer" and entry.basis != basis:
            self._diverge(number, _told_of_question(entry.data.get("parts"), parts))
        self.compared.add(number)
        return {**entry.data, "message": None} if kind == "commit" else entry.data  # it is made anew, and compared

    def record(self, kind: str, key: str = "", basis: str = "", **data: Any) -> None:  # noqa: ANN401, ARG002
        """Compare what the run would journal with what it had journalled; times aside."""
        number, entry = self.find(kind, key)
        if entry is None:
            raise _RecordEnds(f"{kind} {key}".strip())
        differing = [name for name in data if name not in _NOT_COMPARED and entry.data.get(name) != data[name]]
        if differing:
            was, now = ({name: values.get(name) for name in differing} for values in (entry.data, data))
            self._diverge(number, (_shown(was), _shown(now)))
        self.compared.add(number)

    def forget(self, why: str) -> None:
        """An entry that cannot be read."""
        raise JournalError(f"The journal cannot be replayed: {why}.")

    def conclude(self, rounds: Sequence[RoundResult]) -> None:
        """Compare what came of each answer with the journalled result."""
        number, entry = self.find("result", "")
        if entry is None:
            return
        recorded = entry.data.get("rounds")
        was = [_told_of_round(one) for one in recorded] if isinstance(recorded, list) else []
        now = [_told_of_round(one.model_dump(mode="json")) for one in rounds]
        if was != now:
            place = next((n for n, (one, two) in enumerate(zip(was, now, strict=False)) if one != two), None)
            place = min(len(was), len(now)) if place is None else place
            told = tuple(", ".join(one[place : place + 1]) or "nothing more" for one in (was, now))
            self._diverge(number, (told[0], told[1]))
        self.compared.add(number)

    def find(self, kind: str, key: str) -> tuple[int, Entry | None]:
        """The entry of that kind and key that holds, and its number."""
        entry = self._known.get((kind, key))
        return (0, None) if entry is None else (self.reading.entries.index(entry) + 1, entry)

    def _diverge(self, number: int, told: tuple[str, str]) -> None:
        entry = self.reading.entries[number - 1]
        found = Divergence(entry=number, kind=entry.kind, key=entry.key, recorded=told[0], now=told[1])
        self.divergence = self.divergence or found
        raise _Diverged


class _ReplayedWork(KeptWork):
    """Each commit as it was made then: a run that was resumed has made its later ones under another claim."""

    journal: _Compared

    def commit(self, *given: Any, number: int, **named: Any) -> ImplementationResult:  # noqa: ANN401
        """Of that answer, with the trailers of the claim under which the journal has it."""
        _, entry = self.journal.find("commit", str(number))
        fence = None
        with suppress(ValueError):
            fence = None if entry is None else Fence.model_validate(entry.data.get("fence"))
        return KeptWork.commit(replace(self, fence=fence), *given, number=number, **named)


def _told_of_question(was: object, now: Sequence[str]) -> tuple[str, str]:
    """Which part of a question differs."""
    names = ["settings", *(f"message {number}" for number in range(1, max(len(now), 1)))]
    known = was if isinstance(was, list) else []
    if len(known) != len(now):
        return f"a question of {max(0, len(known) - 1)} messages", f"a question of {max(0, len(now) - 1)} messages"
    differing = ", ".join(name for name, one, two in zip(names, known, now, strict=True) if one != two)
    digests = [" ".join(one for one, two in zip(ours, other, strict=True) if one != two)
               for ours, other in ((known, now), (now, known))]  # fmt: skip
    return f"{differing}: {digests[0]}", f"{differing}: {digests[1]}"


def _told_of_round(one: Mapping[str, Any]) -> str:
    commit = one.get("commit")
    return f"answer {one.get('candidate')} of round {one.get('round')}: {one.get('outcome')}, commit {commit}"


def _shown(data: Fields) -> str:
    text = ", ".join(f"{name}: {value}" for name, value in data.items())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} …"


@dataclass(frozen=True)
class _FrozenClock:
    """The time at which the run began, for all of its replay: so nothing in it is ever late."""

    moment: datetime

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        pass


class _NobodyAnswers:
    """In the place of all services: what comes here is not in the journal, or told for nothing."""

    def event(self, *_told: object, **_options: object) -> None:
        """The reporter's."""

    def prepare(self) -> None:
        """The set-up's: no test is run."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        raise _RecordEnds(name)


def read(path: Path) -> Reading:
    """A journal from a file that somebody has sent; ``JournalError`` when there is none to be read."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise JournalError(f"The journal {path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise JournalError(f"The journal {path} is larger than {MAX_BYTES} bytes.")
    reading = read_journal(content)
    if not reading.header:
        raise JournalError(f"{path} is no journal, or damaged from its beginning.")
    return reading


def repositories_of(reading: Reading, pools: Path | None) -> list[Path]:
    """Where the run's base commit may be: what its task names, and the mirrors of these pools."""
    task = reading.header.get("task")
    named = [task.get(name) for name in ("slot_path", "repo_url")] if isinstance(task, dict) else []
    own = [Path(one) for one in named if isinstance(one, str) and one.startswith("/")]
    return own + (sorted(pools.glob("*/mirror.git")) if pools is not None else [])


def replay(reading: Reading, repositories: Sequence[Path], redactor: Redactor) -> ReplayResult:
    """Do a journalled run again, from the objects of the first of the repositories that has its base commit.

    ``JournalError`` where that cannot be done.
    """
    try:
        return _replayed(reading, repositories, redactor)
    except JournalError:
        raise
    except Exception as error:
        raise JournalError(f"The journal cannot be replayed ({type(error).__name__}: {error}).") from error


def _replayed(reading: Reading, repositories: Sequence[Path], redactor: Redactor) -> ReplayResult:
    run_id = str(reading.header.get("run_id"))
    notes = []
    if reading.is_damaged or reading.is_torn:
        notes.append(f"The journal is {'damaged' if reading.is_damaged else 'cut short'} after entry"
                     f" {len(reading.entries)}, and is replayed up to there.")  # fmt: skip
    workspace_entry = next((entry for entry in reversed(reading.entries) if entry.kind == "workspace"), None)
    start = StartPoint.of(None if workspace_entry is None else workspace_entry.data)
    if start is None:
        raise JournalError(f"Run {run_id} ended before it had a workspace: there is nothing to be replayed.")
    journal = _Compared(run_id, reading=reading)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="necrocode-replay-")))
        workspace = _workspace(scratch, start, repositories, stack)
        ended = ""
        try:
            _run(journal, workspace, redactor, scratch)
        except _RecordEnds as end:
            ended = str(end)
        except _Diverged:
            pass
    if ended and journal.divergence is None:
        _end_of_record(journal, ended, notes)
    divergence = journal.divergence
    return ReplayResult(
        run_id=run_id,
        same=divergence is None,
        entries=len(journal.compared),
        divergence=divergence,
        notes=tuple(notes),
    )


def _end_of_record(journal: _Compared, wanted: str, notes: list[str]) -> None:
    """The replay wants more than the journal has: the run was ended from outside, or would now go on further."""
    number, result = journal.find("result", "")
    error = result.data.get("error_details") if result is not None else None
    if result is not None and (error is None or (isinstance(error, dict) and error.get("type") in _OF_ITSELF)):
        journal.divergence = Divergence(
            entry=number,
            kind="result",
            key="",
            recorded=f"the run ended: {'done' if error is None else error['type']}",
            now=f"it goes on, with {wanted}",
        )
        return
    notes.append(f"The journal goes as far as that, and has no {wanted}: the run was ended from outside there.")


_OF_ITSELF = {
    "TestsFailed", "MalformedAnswerError", "EmptyAnswerError", "TruncatedAnswerError", "ModelRefusalError",
    "ContentFilterError", "ContextOverflowError", "ChangeRejectedError", "EditRejectedError", "TamperedTestsError",
    "ImplementationError", "PushError",
}  # fmt: skip


def _workspace(scratch: Path, start: StartPoint, repositories: Sequence[Path], stack: ExitStack) -> Workspace:
    """A repository of our own that reads the objects of another one, and writes its own aside."""
    git = Git(scratch / "home")
    git.prepare()
    repository = Repository(git, scratch / "objects.git", bare=True)
    git.run(["init", "--quiet", "--bare", "--template=", str(repository.path)])
    for source in repositories:
        objects_folder = _objects_folder(git, source)
        if objects_folder is None:
            continue
        (repository.path / "objects" / "info").mkdir(parents=True, exist_ok=True)
        (repository.path / "objects" / "info" / "alternates").write_text(f"{objects_folder}\n")
        objects = stack.enter_context(repository.objects())
        with suppress(GitError):
            if objects.resolve(start.base_commit) == start.base_commit:
                return Workspace(repository, objects, "replay", start.base_commit, None)
    raise JournalError(
        f"The run's base commit {start.base_commit} is in none of the repositories here.",
        hint="Name one that has it: --repository PATH.",
    )


def _objects_folder(git: Git, source: Path) -> Path | None:
    """Where a repository, bare or with a checkout, has its objects; None for what is none."""
    for where in (("-C", str(source)), (f"--git-dir={source}",)):  # a bare one is not found by looking
        with suppress(RunnerError, OSError):
            found = git.run([*where, "rev-parse", "--path-format=absolute", "--git-path", "objects"])
            folder = Path(found.decode(errors="surrogateescape").rstrip("\n"))
            if folder.is_dir() and "\n" not in str(folder):
                return folder
    return None


def _run(journal: _Compared, workspace: Workspace, redactor: Redactor, scratch: Path) -> None:
    """The middle of the run, as the orchestrator does it, but for what reaches others."""
    nobody: Any = _NobodyAnswers()
    parts: dict[str, Any] = {one.name: nobody for one in fields(Services)}
    services = Services(**parts | {"git": workspace.repository.git, "redactor": redactor, "contexts": None, "own": ()})
    given, written = _task_of(journal.reading.header)
    task, playbook, _ = readable(with_playbook(given, written), written)
    task = masked(task, redactor)
    config = _config_of(journal.reading.header, scratch)
    clock = _FrozenClock(_moment(journal.reading.header.get("started_at")))
    record = RunRecord(task, "replay", clock, lambda _progress: None, redact=redactor.text, run_id=journal.run_id)
    budget = ProcessBudget(None, clock).of_run(
        spec_name=task.spec_name, run_id=journal.run_id, registry=None, llm=config.llm_config, on_trouble=record.warn
    )
    model = BudgetedModel(nobody, budget, max_tokens=config.llm_config.max_tokens)
    deadline = Deadline(task.timeout_seconds, clock)
    solver = Solver(
        record=record,
        config=config,
        services=services,
        task=task,
        instructions=playbook.instructions,
        workspace=workspace,
        reporter=nobody,
        deadline=deadline,
        asker=Asker(model, config.llm_config, task.max_tokens, deadline, redactor, journal),
        attempts=Attempts(config.max_repair_rounds, config.llm_config.candidates),
        kept=_ReplayedWork(journal, config, task, workspace.base_commit, redactor),
        setups=nobody,
    )
    with suppress(RunnerError):  # which is what the run had ended with, if the rounds are the same
        solver.examine()
        while solver.goes_on:
            with solver.attempt():
                solver.generate()
                solver.apply()
                solver.test()
        solver.concludes()
    journal.conclude(record.rounds)


def _task_of(header: Fields) -> tuple[TaskContext, Playbook]:
    """The task as the run had it, secrets masked, which is how the model was shown it."""
    try:
        return TaskContext(**header["task"]), Playbook(**header["playbook"])
    except (RunnerError, TypeError, LookupError) as error:
        raise JournalError(f"The journal holds no task: {error}") from error


def _config_of(header: Fields, scratch: Path) -> RunnerConfig:
    """The settings that the run had; those that this version does not know are left out."""
    settings = header.get("settings")
    known = {name: value for name, value in _items(settings) if name in RunnerConfig.known_keys()}
    try:
        return RunnerConfig(**{**known, "state_dir": scratch / "state"})
    except (RunnerError, TypeError) as error:
        raise JournalError(f"The journal's settings cannot be used: {error}") from error


def _items(settings: object) -> Iterator[tuple[str, Any]]:
    yield from settings.items() if isinstance(settings, dict) else ()


def _moment(value: object) -> datetime:
    with suppress(ValueError):
        found = datetime.fromisoformat(str(value))
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)
