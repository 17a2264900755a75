"""A service over a real uvicorn on loopback, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from necrocode.services._serving import _listening, url_of

_STARTS_WITHIN_SECONDS = 30
_ENDS_WITHIN_SECONDS = 30


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The URL under which ``app`` is served; at the end it has been shut down in order."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with _listening("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
        thread.start()
        waited = threading.Event()
        for _ in range(_STARTS_WITHIN_SECONDS * 100):
            if server.started or not thread.is_alive():
                break
            waited.wait(0.01)
        assert server.started, "the service did not start"
        try:
            yield url_of(sock)
        finally:
            server.should_exit = True
            thread.join(_ENDS_WITHIN_SECONDS)
            assert not thread.is_alive(), "the service did not stop"
