"""The registry's events as they happen, for any number of listeners and from any number of replicas."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from necrocode.agent_runner import LocalTaskRegistry
    from necrocode.agent_runner.records import EventRecord

MEDIA_TYPE = "text/event-stream"
_POLL_SECONDS = 0.5
_HEARTBEAT_SECONDS = 15.0
_PAGE = 500


class EventFeed:
    """Knows up to which number the events are complete; asks the database twice a second while somebody listens.

    An event that comes through this process is seen at once. One listener more costs no further question.
    """

    def __init__(self, registry: LocalTaskRegistry, stopping: asyncio.Event) -> None:
        self._registry = registry
        self._stopping = stopping
        self._settled = 0
        self._listeners = 0
        self._changed = asyncio.Condition()
        self._nudged = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def nudge(self) -> None:
        """There is a new event."""
        self._nudged.set()

    async def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def newest(self) -> int:
        """The number up to which events are complete now."""
        calls = self._registry.calls
        call = calls.last_settled_event()
        settled = call.read(await asyncio.wrap_future(self._registry.submit(call)))
        return max(settled, self._settled)

    async def follow(self, after: int, spec_name: str | None) -> AsyncIterator[str]:
        """The events above a number as server-sent events, until the service stops; a comment when nothing happens."""
        self._listeners += 1
        self.nudge()
        try:
            yield "retry: 1000\n\n"
            while not self._stopping.is_set():
                if not await self._is_beyond(after):
                    yield ": nothing new\n\n"
                    continue
                up_to = self._settled
                while after < up_to and not self._stopping.is_set():
                    events, after = await self._read(after, up_to, spec_name)
                    yield "".join(_line(event) for event in events) or ": nothing of this spec\n\n"
        finally:
            self._listeners -= 1

    async def _read(self, after: int, up_to: int, spec_name: str | None) -> tuple[tuple[EventRecord, ...], int]:
        calls = self._registry.calls
        call = calls.events(spec_name=spec_name, up_to=up_to, limit=_PAGE, cursor=calls.event_cursor(after))
        page = call.read(await asyncio.wrap_future(self._registry.submit(call)))
        return page.items, up_to if page.next_cursor is None else page.items[-1].sequence

    async def _is_beyond(self, after: int) -> bool:
        """Whether there are events above the number, before it is time for a sign of life."""
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await self._changed.wait_for(lambda: self._settled > after or self._stopping.is_set())
        return self._settled > after

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            if self._listeners:
                with suppress(RunnerError):  # a database that does not answer is asked again; /health tells of it
                    await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._nudged.wait()
            self._nudged.clear()
        async with self._changed:
            self._changed.notify_all()

    async def _look(self) -> None:
        call = self._registry.calls.newest_event()
        newest = call.read(await asyncio.wrap_future(self._registry.submit(call)))
        if newest > self._settled:
            self._settled = await self.newest()
            async with self._changed:
                self._changed.notify_all()


def _line(event: EventRecord) -> str:
    """One event of the stream (HTML Living Standard, "Server-sent events"); JSON has no line breaks of its own."""
    return f"id: {event.sequence}\ndata: {event.model_dump_json()}\n\n"
