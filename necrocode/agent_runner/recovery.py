"""What models have produced, found again: every commit of every run is kept under ``refs/necrocode/runs``."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner import _names
from necrocode.agent_runner._git import Git, GitError, Repository
from necrocode.agent_runner._strict import Value
from necrocode.agent_runner.errors import ConfigurationError, RepositoryNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_RUNS = "refs/necrocode/runs/"
_BRANCHES = ("refs/heads/", "refs/remotes/origin/")
_FORMAT = "%(refname)%00%(objectname)%00%(committerdate:iso-strict)%00%(contents:subject)"
_FIELDS = 4


class KeptWork(Value):
    """One commit that a run has made."""

    run_id: str
    answer: int
    """Which of the run's answers it came of, counted from 1."""
    subject: str
    """The commit's first line, which names the task as ``commit_message`` says."""
    committed_at: datetime
    commit: str
    ref: str
    repository: Path
    """The repository that has it: a mirror of the embedded pool, or the one that was named."""
    branches: tuple[str, ...] = ()
    """Branches that stand at it, as far as that repository knows: it was delivered."""


def mirrors(pool: Path) -> list[Path]:
    """The mirrors of an embedded pool."""
    return sorted(path for path in pool.glob("[!.]*/mirror.git") if path.is_dir())


def kept_work(git: Git, repositories: Iterable[Path]) -> tuple[KeptWork, ...]:
    """The commits of runs in these repositories, the oldest run first.

    ``RepositoryNotFoundError`` for a folder that is no repository.
    """
    git.prepare()
    found = [work for path in dict.fromkeys(repositories) for work in _work_in(git, path)]
    return tuple(sorted(found, key=lambda work: (work.run_id, work.answer, str(work.repository))))


def _work_in(git: Git, path: Path) -> Iterator[KeptWork]:
    repository = _repository(git, path)
    try:
        listing = repository.run("for-each-ref", f"--format={_FORMAT}", _RUNS, *_BRANCHES)
    except GitError as error:
        raise RepositoryNotFoundError(f"Cannot read the repository {path}: {error}") from error
    rows = [line.split("\0", _FIELDS - 1) for line in listing.decode(errors="replace").split("\n")]
    refs = [row for row in rows if len(row) == _FIELDS]
    branches: dict[str, list[str]] = {}
    for name, commit, *_ in refs:
        for prefix in _BRANCHES:
            if name.startswith(prefix):
                branches.setdefault(commit, []).append(name.removeprefix(prefix))
    for name, commit, when, subject in refs:
        run_id, _, number = name.removeprefix(_RUNS).partition("/")
        if name.startswith(_RUNS) and number.isdecimal() and when:
            yield KeptWork(
                run_id=run_id,
                answer=int(number),
                subject=subject,
                committed_at=datetime.fromisoformat(when),
                commit=commit,
                ref=name,
                repository=path,
                branches=tuple(sorted(set(branches.get(commit, ())))),
            )


def chosen_work(
    works: Iterable[KeptWork], run_id: str, answer: int | None = None, *, hint: str | None = None
) -> KeptWork:
    """A run's commit of this answer (None: the last); ``ConfigurationError`` when there is none."""
    of_run = [work for work in works if work.run_id == run_id]
    fitting = [work for work in of_run if answer in {None, work.answer}]
    if not fitting:
        what = f"answer {answer} of the run {run_id!r}" if of_run else f"the run {run_id!r}"
        raise ConfigurationError(f"No work of {what} is kept here.", hint=hint)
    return max(fitting, key=lambda work: work.answer)


def restore_branch(git: Git, work: KeptWork, target: Path, branch: str) -> None:
    """Make a branch at the commit, in the repository ``target``. Nothing that is there is changed.

    ``ConfigurationError`` for a branch that exists, or a name that no branch can have.
    """
    try:
        _names.check_branch_name(branch)
    except ValueError as error:
        raise ConfigurationError(f"Cannot make the branch {branch!r}: its name {error}.") from error
    repository = _repository(git, target)
    ref = f"refs/heads/{branch}"
    if _has(repository, ref):
        raise ConfigurationError(f"{target} has a branch {branch!r} already.", hint="Choose another name.")
    if not _has(repository, f"{work.commit}^{{commit}}"):
        with repository.objects() as objects:
            known = filter(None, [objects.resolve("HEAD")])
        repository.fetch_commit(str(work.repository.absolute()), work.ref, known=tuple(known))
    repository.move_ref(ref, work.commit, expected=None)


def save_patch(git: Git, work: KeptWork, file: Path) -> None:
    """Write the commit as a patch that ``git apply`` takes; ``ConfigurationError`` when the file is there already."""
    content = _patch(_repository(git, work.repository), work.commit)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigurationError(f"Cannot write {file}: {error.strerror}.", hint="Choose another file.") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def prune(git: Git, works: Iterable[KeptWork], before: datetime) -> int:
    """Forget the commits that were made before; how many. git deletes their objects when it next cleans up."""
    old = [work for work in works if work.committed_at < before]
    for path in {work.repository for work in old}:
        lines = [f"delete {work.ref} {work.commit}\n" for work in old if work.repository == path]
        _repository(git, path).run("update-ref", "--stdin", stdin="".join(lines).encode())
    return len(old)


def newest_patch(git: Git, repository: Path, run_id: str) -> bytes:
    """The patch of the last commit that a run has made; empty where there is none, or no such repository any more.

    A slot that is gone has left its mirror behind.
    """
    for path in (repository, repository.parent.parent / "mirror.git"):
        if path.is_dir() and (works := [work for work in kept_work(git, [path]) if work.run_id == run_id]):
            return _patch(_repository(git, path), works[-1].commit)
    return b""


def _repository(git: Git, path: Path) -> Repository:
    git.prepare()
    if not path.is_dir():
        raise RepositoryNotFoundError(f"There is no repository at {path}.")
    is_bare = (path / "HEAD").is_file() and (path / "objects").is_dir()  # git takes no bare one that is not called that
    return Repository(git, path, bare=is_bare)


def _patch(repository: Repository, commit: str) -> bytes:
    return repository.diff(f"{commit}^", commit)


def _has(repository: Repository, name: str) -> bool:
    with repository.objects() as objects:
        return objects.read(name) is not None
