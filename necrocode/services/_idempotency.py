"""First answers, kept: a write that is repeated with its key is not done twice."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.errors import (
    IdempotencyKeyReusedError,
    RunnerError,
    ServiceConnectionError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_SECONDS = 24 * 3600.0
_SCHEMA = """\
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, answer TEXT NOT NULL, answered_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_age ON answers (answered_at);
"""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PRIMARY = 0xFF  # the low byte of an extended result code (sqlite.org/rescode.html)


class AnsweredWrites:
    """The answers of a service whose own store has no place for them, in a file beside that store, for a day.

    An answer is on disk before it is given; a write that failed is not kept, so that it can be tried again. Requests
    with one key wait for each other within a process.
    """

    def __init__(self, file: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._file = file
        self._clock = clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def prepare(self) -> None:
        """Set a damaged file aside, for a new one; to be called before the first write. Other trouble is only told."""
        try:
            await anyio.to_thread.run_sync(self._set_damaged_aside)
            await self.check()
        except (RunnerError, OSError) as error:
            logger.warning("Writes with an Idempotency-Key will be refused: %s", error)

    async def check(self) -> None:
        """Return when answers can be kept; else ``ServiceConnectionError`` or ``StorageFullError``."""
        await anyio.to_thread.run_sync(self._try)

    async def once(
        self,
        key: str | None,
        fingerprint: str,
        write: Callable[[], Awaitable[Any]],
        *,
        undo: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Any:  # noqa: ANN401
        """What ``write`` answers (JSON), or answered when it was called with this key before.

        ``fingerprint`` says what was asked: ``IdempotencyKeyReusedError`` when the key came with something else. None
        as key: simply write. When the answer cannot be kept, ``undo`` is called with it, and the write has failed:
        ``ServiceConnectionError``, or ``StorageFullError``.
        """
        if key is None:
            return await write()
        async with self._lock(key):
            found = await anyio.to_thread.run_sync(self._find, key)
            if found is not None:
                if found[0] != fingerprint:
                    raise IdempotencyKeyReusedError(
                        "This Idempotency-Key was used for another request.", hint="Use a new key for a new request."
                    )
                return json.loads(found[1])
            answer = await write()
            try:
                await anyio.to_thread.run_sync(self._keep, key, fingerprint, json.dumps(answer))
            except RunnerError:
                if undo is not None:
                    await undo(answer)
                raise
            return answer

    @asynccontextmanager
    async def _lock(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            users = self._locks[key][1]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1

    def _find(self, key: str) -> tuple[str, str] | None:
        with self._connected() as connection:
            row: tuple[str, str] | None = connection.execute(
                "SELECT fingerprint, answer FROM answers WHERE key = ? AND answered_at > ?",
                (key, self._now() - KEPT_SECONDS),
            ).fetchone()
            return row

    def _keep(self, key: str, fingerprint: str, answer: str) -> None:
        with self._connected() as connection, connection:
            connection.execute("DELETE FROM answers WHERE answered_at <= ?", (self._now() - KEPT_SECONDS,))
            connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, fingerprint, answer, self._now())
            )

    def _try(self) -> None:
        with self._connected() as connection, connection:
            connection.execute("DELETE FROM answers WHERE answered_at <= ?", (self._now() - KEPT_SECONDS,))
            connection.execute("SELECT * FROM answers LIMIT 1").fetchone()

    def _set_damaged_aside(self) -> None:
        if not self._file.is_file() or _is_sound(self._file):
            return
        aside = f"{self._file.name}.damaged-{self._clock.now():%Y%m%dT%H%M%S}"
        for ending in ("-wal", "-shm", ""):  # a log that stayed would be played into the new file
            part = self._file.with_name(f"{self._file.name}{ending}")
            if part.exists():
                part.rename(part.with_name(f"{aside}{ending}"))
        logger.warning(
            "The answers in %s were damaged: that file is now %s, and a new one is begun.", self._file, aside
        )

    def _now(self) -> float:
        return self._clock.now().timestamp()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=30)) as connection:
                connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_SCHEMA}")
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> RunnerError:
        told = f"The file of answered writes {self._file} cannot be used: {error}."
        code = _code(error)
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
            return StorageFullError(told, hint="Make room on that disk.")
        hint = "Start the service anew: it sets the file aside." if code in _DAMAGED else "Can it be written to?"
        return ServiceConnectionError(told, hint=hint)


def _is_sound(file: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file; what it cannot open is not said to be damaged."""
    try:
        with closing(sqlite3.connect(file, timeout=30)) as connection:
            found: list[tuple[str]] = connection.execute("PRAGMA quick_check").fetchall()
            return found == [("ok",)]
    except sqlite3.Error as error:
        return _code(error) not in _DAMAGED


def _code(error: Exception) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY
