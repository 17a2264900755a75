"""One fetch for many callers.

A caller needs a fetch that *started* after its call: one that was already under way may have read the remote before.
So at most one fetch runs and one more is waited for, which then serves all that came meanwhile, in whatever thread or
process of this machine: whoever ends a fetch writes beside the lock when it had started.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._git import GitError
from necrocode.agent_runner.clients._pool_files import locked_within, write_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._clock import Deadline

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST_RECORDS = 50


class SharedFetches:
    """The fetches of one mirror; ``folder`` is where their lock and their record lie."""

    def __init__(self, folder: Path) -> None:
        self._lock = folder / "fetch.lock"
        self._file = folder / "fetches.json"

    def fetch(self, what: str, deadline: Deadline, fetch: Callable[[int], None]) -> bool:
        """Return when ``what`` has been fetched by a fetch that started after this call; whether it was this caller's.

        ``fetch`` is given the number of the open lock file. Its ``GitError`` is raised to all whom it was to serve;
        another error, such as its caller's time limit, is its caller's alone. ``WorkspacePreparationError`` when the
        lock is not to be had in time.
        """
        called = _now()

        def is_done() -> bool:
            return self._served(what, called) is not None

        doing = "fetch from the repository"
        with locked_within(self._lock, deadline, doing=doing, is_done=is_done) as lock:
            if lock is not None:
                self._fetch(what, lambda: fetch(lock.fileno()))
                return True
        record = self._served(what, called)
        if record is not None and record["failure"] is not None:
            raise GitError(record["failure"]["text"], output=record["failure"]["output"])
        return False

    def _fetch(self, what: str, fetch: Callable[[], None]) -> None:
        started = _now()
        try:
            fetch()
        except GitError as error:
            self._write(what, started, {"text": str(error), "output": error.output})
            raise
        self._write(what, started, None)

    def _served(self, what: str, called: int) -> dict[str, Any] | None:
        """The record of a fetch that started after ``called``."""
        record = self._records().get(what)
        return record if record is not None and record["started"] >= called else None

    def _records(self) -> dict[str, Any]:
        try:
            data = json.loads(self._file.read_bytes())
            fetches: dict[str, Any] = data["fetches"] if data["boot"] == _boot() else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        return fetches

    def _write(self, what: str, started: int, failure: dict[str, str] | None) -> None:
        records = self._records()
        records.pop(what, None)
        records[what] = {"started": started, "failure": failure}
        kept = dict(list(records.items())[-_MOST_RECORDS:])
        write_again(self._file, json.dumps({"boot": _boot(), "fetches": kept}).encode())


def _now() -> int:
    """CLOCK_MONOTONIC: one for all processes since the machine started, and never set back.

    The machine's even where the pool is given another clock: it is compared with what other processes wrote.
    """
    return time.monotonic_ns()


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return ""
