"""A checkout that the caller brings, looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git.failures import GitError
from necrocode.agent_runner._git.repository import Repository
from necrocode.agent_runner.errors import RunnerTimeoutError, UnusableCheckoutError

if TYPE_CHECKING:
    from pathlib import Path

    from necrocode.agent_runner._git.door import Git

_LOOK_SECONDS = 30.0
_MOST_BYTES = 100_000


@dataclass(frozen=True)
class Checkout:
    """What there is to know of a checkout before it is used."""

    root: Path
    origin_url: str | None
    head_branch: str | None


def open_checkout(git: Git, path: Path, deadline: Deadline | None = None) -> Checkout:
    """Look at a checkout that the caller brings; :class:`UnusableCheckoutError` when it is none.

    ``deadline`` None: within 30 seconds; it takes no longer in any case.
    """
    try:
        return _look_at(Repository(git, path), path, deadline or Deadline(_LOOK_SECONDS))
    except GitError as error:
        raise UnusableCheckoutError(
            f"The slot_path {path} cannot be read as a git checkout: {_reason(error)}.",
            hint=f"try: git -C {path} status",
        ) from error
    except RunnerTimeoutError:
        raise
    except (OSError, ValueError) as error:  # a path that no system call takes
        raise UnusableCheckoutError(f"The slot_path {path} cannot be looked at: {_reason(error)}.") from error


def _look_at(repository: Repository, path: Path, deadline: Deadline) -> Checkout:
    if not path.is_dir():
        raise _unusable(path, "does not exist")
    if not os.path.lexists(path / ".git"):
        if all((path / name).exists() for name in ("HEAD", "objects", "refs")):
            raise UnusableCheckoutError(
                f"The slot_path {path} is a bare repository.", hint="Give it as repo_url instead."
            )
        raise _unusable(path, "is not the top of a git checkout")
    repository.run("rev-parse", "--git-dir", deadline=deadline.sooner(_LOOK_SECONDS))
    origin = _first_line(repository, deadline, "config", "--get", "remote.origin.url")
    return Checkout(path, origin, _first_line(repository, deadline, "symbolic-ref", "--quiet", "--short", "HEAD"))


def _first_line(repository: Repository, deadline: Deadline, *argv: str) -> str | None:
    """What git prints; None when there is nothing."""
    seconds = min(_LOOK_SECONDS, deadline.check("look at the checkout"))
    output, is_cut = repository.first_output(
        *argv, limit_bytes=_MOST_BYTES, seconds=seconds, cancellation=deadline.cancellation
    )
    if is_cut:
        deadline.check(f"read what git {argv[0]} says of the checkout")
        raise GitError(f"git {argv[0]} said too much, or nothing for {seconds:.0f} seconds")
    return output.decode(errors="surrogateescape").rstrip("\n") or None


def _unusable(path: Path, problem: str) -> UnusableCheckoutError:
    return UnusableCheckoutError(
        f"The slot_path {path} {problem}.", hint="Name a git checkout, or give repo_url alone to have one made."
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
