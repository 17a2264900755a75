"""First answers, kept: a write that is repeated with its key is not done twice."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.errors import IdempotencyKeyReusedError, ServiceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

KEPT_SECONDS = 24 * 3600.0
_SCHEMA = """\
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, answer TEXT NOT NULL, answered_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_age ON answers (answered_at);
"""


class AnsweredWrites:
    """The answers of a service whose own store has no place for them, in a file beside that store, for a day.

    An answer is on disk before it is given; a write that failed is not kept, so that it can be tried again. Requests
    with one key wait for each other within a process.
    """

    def __init__(self, file: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._file = file
        self._clock = clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def once(self, key: str | None, fingerprint: str, write: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
        """What ``write`` answers (JSON), or answered when it was called with this key before.

        ``fingerprint`` says what was asked: ``IdempotencyKeyReusedError`` when the key came with something else. None
        as key: simply write.
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
            await anyio.to_thread.run_sync(self._keep, key, fingerprint, json.dumps(answer))
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
        with closing(self._connect()) as connection:
            row: tuple[str, str] | None = connection.execute(
                "SELECT fingerprint, answer FROM answers WHERE key = ? AND answered_at > ?",
                (key, self._now() - KEPT_SECONDS),
            ).fetchone()
            return row

    def _keep(self, key: str, fingerprint: str, answer: str) -> None:
        with closing(self._connect()) as connection, connection:
            connection.execute("DELETE FROM answers WHERE answered_at <= ?", (self._now() - KEPT_SECONDS,))
            connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, fingerprint, answer, self._now())
            )

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _connect(self) -> sqlite3.Connection:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=30)
            connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_SCHEMA}")
        except (OSError, sqlite3.Error) as error:
            raise ServiceError(f"The file of answered writes {self._file} cannot be used: {error}.") from error
        return connection
