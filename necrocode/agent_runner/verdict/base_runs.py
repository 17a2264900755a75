"""The tests on the base, run once per base and kept on disk for the runs that start from the same tree.

An entry is one file: the sha256 of the rest on its first line, then JSON. It is written aside and moved into place, so
a reader finds a whole one or none; a damaged one counts as none. The digest finds damage, no forgery: code that runs as
the same user could read a key as well. Of several processes that want the same entry one runs the tests; the others
wait for it, as long as they would have run them themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import GitError
from necrocode.agent_runner.errors import RunnerTimeoutError, TestExecutionError
from necrocode.agent_runner.test_results import TestResult
from necrocode.agent_runner.verdict.test_run import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from necrocode.agent_runner._clock import Clock
    from necrocode.agent_runner.verdict.test_run import TestRunner
    from necrocode.agent_runner.workspace import Workspace

BASE_SHARE = 1 / 3
"""How much of the time that a task has left its base run may take."""
MAX_AGE = timedelta(days=1)
"""How long an entry is believed: what a tree needs besides its own files may change."""
MAX_ENTRIES = 200
MAX_ENTRY_BYTES = 16 * 1024 * 1024
FORMAT = 3
_LOOK_SECONDS = 0.05  # flock has no time limit: it is looked at this often, in real time, for so is the other's work
_LOCKS = 64
_WORTH_ANOTHER = 1.5  # how many times the time that was not enough must be there for another try


@dataclass(frozen=True)
class BaseRuns:
    """The kept results below ``folder``."""

    folder: Path
    clock: Clock

    def result(
        self,
        workspace: Workspace,
        commands: Sequence[str],
        runner: TestRunner,
        *,
        on_note: Callable[[str], None],
    ) -> TestResult | None:
        """What the tests say on the workspace's base, whose files the checkout must hold; None when that is not known.

        It takes at most a third of the time that the task has left. Where that is not enough, or the commands cannot be
        run, ``on_note`` is told so. A brought checkout is tested each time, for what git does not track counts there.
        """
        seconds = runner.deadline.remaining_seconds() * BASE_SHARE
        deadline = Deadline(seconds, self.clock, runner.deadline.cancellation)
        tree = workspace.objects.tree_of(workspace.base_commit)
        run = partial(_run, workspace, commands, runner, tree=tree, deadline=deadline, on_note=on_note)
        if workspace.is_brought:
            return _known(run(), deadline, on_note)
        key = self._key(commands, runner, tree)
        with self._locked(key, deadline) as is_held:
            kept = self._read(key)
            if kept is not None and not _is_whole(kept) and kept.duration_seconds * _WORTH_ANOTHER > seconds:
                on_note(f"the tests on the base did not end in {kept.duration_seconds:.0f} seconds the last time")
                return None
            if kept is not None and _is_whole(kept):
                on_note(f"the tests on the base are known from an earlier run ({tree[:12]})")
                masks = tuple(masked(command, runner.redactor.text) for command in kept.commands)
                return kept.model_copy(update={"commands": masks})
            if not is_held:
                on_note("another run is still testing the base: how it fares is not known")
                return None
            result = run()
            if result is not None:
                with suppress(OSError):
                    self._write(key, result)
            return _known(result, deadline, on_note)

    def _key(self, commands: Sequence[str], runner: TestRunner, tree: str) -> str:
        """All that the result depends on, as far as it can be told."""
        sandbox = type(runner.sandbox)
        identity = getattr(runner.sandbox, "identity", "")
        inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TZ"}}
        parts = [
            FORMAT, tree, list(commands), runner.is_by_cases,
            sorted(runner.environment.items()), sorted(inherited.items()),
            f"{sandbox.__module__}.{sandbox.__qualname__} {identity}", sys.version, os.getuid(),
            "" if runner.prepared is None else runner.prepared.key(tree),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode(errors="surrogatepass")).hexdigest()

    def _read(self, key: str) -> TestResult | None:
        """The entry, when it is there, whole and young enough."""
        try:
            with (self.folder / f"{key}.json").open("rb") as stream:
                content = stream.read(MAX_ENTRY_BYTES + 1)
            digest, _, rest = content.partition(b"\n")
            if hashlib.sha256(rest).hexdigest().encode() != digest:
                return None
            entry = json.loads(rest)
            age = self.clock.now() - datetime.fromisoformat(entry["stored_at"])
            return TestResult.model_validate(entry["result"]) if timedelta() <= age <= MAX_AGE else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def _write(self, key: str, result: TestResult) -> None:
        entry = {"stored_at": self.clock.now().isoformat(), "result": result.model_dump(mode="json")}
        rest = json.dumps(entry).encode()
        if len(rest) > MAX_ENTRY_BYTES - 100:
            return
        draft = self.folder / f"{key}.{secrets.token_hex(8)}.tmp"
        try:
            with open(draft, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
                stream.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            draft.replace(self.folder / f"{key}.json")
        finally:
            draft.unlink(missing_ok=True)
        self._prune()

    def _prune(self) -> None:
        """Keep the newest entries; drafts of processes that died count as such."""
        files = [*self.folder.glob("*.json"), *self.folder.glob("*.tmp")]
        with suppress(OSError):
            files.sort(key=lambda file: file.stat().st_mtime_ns, reverse=True)
            for file in files[MAX_ENTRIES:]:
                file.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str, deadline: Deadline) -> Iterator[bool]:
        """Whether the entry is ours to make; False when another still held it as the time was up."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stream = (self.folder / f"lock-{int(key[:8], 16) % _LOCKS}").open("a")
        except OSError:  # nothing can be kept: then this run is its own
            yield True
            return
        with stream:
            yield _is_locked(stream.fileno(), deadline)


def _run(
    workspace: Workspace,
    commands: Sequence[str],
    runner: TestRunner,
    *,
    tree: str,
    deadline: Deadline,
    on_note: Callable[[str], None],
) -> TestResult | None:
    try:
        result = runner.run(commands, workspace.path, tree, fail_fast=False, deadline=deadline)
    except (TestExecutionError, GitError, RunnerTimeoutError) as error:
        on_note(f"the tests on the base cannot be run: {error}")
        return None
    workspace.check_hold()  # another holder may have written to the slot meanwhile: then it was not this tree
    return result


def _known(result: TestResult | None, deadline: Deadline, on_note: Callable[[str], None]) -> TestResult | None:
    if result is None or _is_whole(result):
        return result
    on_note(f"the tests on the base did not end in {deadline.total_seconds:.0f} seconds, their share of the time")
    return None


def _is_locked(handle: int, deadline: Deadline) -> bool:
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            deadline.cancellation.check()
            if deadline.remaining_seconds() <= 0:
                return False
            pause.wait(_LOOK_SECONDS)
        else:
            return True


def _is_whole(result: TestResult) -> bool:
    return not any(command.timed_out for command in result.commands)
