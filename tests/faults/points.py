"""The places at which a runner can die: before and after everything it does that lasts.

Found by looking, not by a list: every function of ``_durable``, every method of a service that a run calls, every git
process. Something new that lasts and goes through these is a new place, without anybody thinking of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from necrocode.agent_runner import _durable, protocols
from necrocode.agent_runner._git import Git

ROLES: dict[str, tuple[type, ...]] = {
    "task_registry": (protocols.TaskRegistry, protocols.TaskLeases, protocols.SpecBudgets),
    "repo_pool": (protocols.RepoPool,),
    "artifact_store": (protocols.ArtifactStore,),
    "llm": (protocols.LanguageModel,),
    "sandbox": (protocols.Sandbox,),
}
"""What a run is given, and the roles it plays."""
_READING = frozenset({"cat-file", "diff", "grep", "log", "ls-tree", "rev-parse", "for-each-ref", "status", "diff-tree"})


class Points:
    """Counts the places as they are passed, by name; at one of them, or after so many, the process kills itself."""

    def __init__(self, dies_at: str = "", *, dies_after: int = 0, by: int = signal.SIGKILL) -> None:
        self._dies_at = dies_at
        self._dies_after = dies_after
        self._by = by
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self.passed: list[str] = []

    def reach(self, name: str) -> None:
        """A place is reached; the same name again is another place."""
        with self._lock:
            self._counts[name] = count = self._counts.get(name, 0) + 1
            point = f"{name}#{count}"
            self.passed.append(point)
            if point == self._dies_at or len(self.passed) == self._dies_after:
                os.kill(os.getpid(), self._by)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a place before and one after each call."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self.reach(f"before {name}")
            try:
                return function(*arguments, **options)
            finally:
                self.reach(f"after {name}")

        return call

    def install(self) -> None:
        """Put the places of this process: durable writes and git processes."""
        for name, function in inspect.getmembers(_durable, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == _durable.__name__:
                setattr(_durable, name, self.around(f"durable {name}", function))
        run = Git.run

        @functools.wraps(run)
        def run_git(git: Git, argv: Sequence[str], **options: Any) -> bytes:
            verb = next((word for word in argv if not word.startswith(("-", "/"))), "git")
            if verb in _READING:
                return run(git, argv, **options)
            output: bytes = self.around(f"git {verb}", functools.partial(run, git))(argv, **options)
            return output

        Git.run = run_git  # type: ignore[method-assign]

    def watch(self, service: Any, roles: Sequence[type]) -> Any:
        """The service with places around every method of its roles, whatever its class is."""
        for role in roles:
            for name in vars(role):
                if not name.startswith("_") and callable(getattr(service, name, None)):
                    setattr(service, name, self.around(f"{role.__name__}.{name}", getattr(service, name)))
        return service
