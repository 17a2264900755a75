"""Running services: sockets, signals, logs, and an orderly end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import signal
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.errors import ConfigurationError, RunnerError, ServiceConnectionError
from necrocode.services._app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from fastapi import FastAPI

    from necrocode.services._app import Service

GRACEFUL_SECONDS = 10
_BACKLOG = 2048


@dataclass(frozen=True)
class Serving:
    """One service and where it listens. ``port`` 0: any free one."""

    service: Service
    host: str
    port: int


def refuse_open_door(host: str, token: str | None, *, allow_anonymous: bool) -> None:
    """Refuse an address that others can reach when no token is set; ``ConfigurationError``."""
    if token is None and not allow_anonymous and not _is_loopback(host):
        raise ConfigurationError(
            f"Without a token a service listens on this machine only, not on {host}.",
            hint="Set NECROCODE_SERVICE_TOKEN (or --token-file), listen on 127.0.0.1, or say --allow-anonymous where"
            " something else keeps strangers out.",
        )


def serve(
    servings: Sequence[Serving],
    *,
    token: str | None = None,
    rate_limit_per_second: float = 0,
    on_ready: Callable[[Service, str], None],
) -> int:
    """Serve until Ctrl-C or SIGTERM; the signal's number. ``on_ready`` is told each service's URL once it listens.

    The end is orderly: no new connections, requests under way get ten seconds, endless streams are ended at once.
    ``ServiceConnectionError`` when an address cannot be had.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(_listening(one.host, one.port)) for one in servings]
        apps = [create_app(one.service, token=token, rate_limit_per_second=rate_limit_per_second) for one in servings]
        return asyncio.run(_serve(servings, apps, sockets, on_ready))


async def _serve(
    servings: Sequence[Serving],
    apps: Sequence[FastAPI],
    sockets: Sequence[socket.socket],
    on_ready: Callable[[Service, str], None],
) -> int:
    servers = [_Server(app, one.service) for one, app in zip(servings, apps, strict=True)]
    stopped_by: list[int] = []
    with _signals(servers, stopped_by):
        tasks = [asyncio.create_task(server.serve_on(sock)) for server, sock in zip(servers, sockets, strict=True)]
        for one, server, sock in zip(servings, servers, sockets, strict=True):
            await server.until_started()
            if server.started:
                on_ready(one.service, url_of(sock))
        try:
            await asyncio.gather(*tasks)
        finally:
            for server in servers:
                server.stop()
    return stopped_by[0] if stopped_by else 0


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the edge writes its own, with what a machine wants to read
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )


class _Server(uvicorn.Server):
    """uvicorn beside others in one process: the signals are ours."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        super().__init__(_config(app))
        self._app = app
        self._service = service
        self._begun = asyncio.Event()

    async def serve_on(self, sock: socket.socket) -> None:
        try:
            await self._serve([sock])
        except SystemExit:  # uvicorn's way to say that the application did not start
            self.started = False
        finally:
            self._begun.set()
        if not self.started:
            error = getattr(self._app.state, "start_error", None)
            if isinstance(error, RunnerError):
                raise error
            raise ServiceConnectionError(f"The {self._service.name} service did not start; the log says why.")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun.set()

    async def until_started(self) -> None:
        await self._begun.wait()

    def stop(self, *, at_once: bool = False) -> None:
        self._service.stopping.set()
        self.should_exit = True
        self.force_exit = self.force_exit or at_once


@contextmanager
def _signals(servers: Sequence[_Server], stopped_by: list[int]) -> Iterator[None]:
    """The first signal begins an orderly end, a second one ends at once."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: FrameType | None) -> None:
        stopped_by.append(number)
        for server in servers:
            loop.call_soon_threadsafe(partial(server.stop, at_once=len(stopped_by) > 1))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {host}: {error.strerror}.") from error
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            raise ServiceConnectionError(
                f"Cannot listen on {host}, port {port}: {error.strerror}.", hint="Choose another with --port."
            ) from error
        yield sock


def url_of(sock: socket.socket) -> str:
    """The URL of a listening socket; for one on all addresses, as this machine reaches it."""
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


@contextmanager
def logging_to_stderr(*, access_log: bool, secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """Whatever the services log, as lines on standard error, secrets masked; access lines are JSON objects."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter(Redactor(secrets)))
    root, edge, server = (logging.getLogger(name) for name in (None, "necrocode.services.access", "uvicorn"))
    before = [(logger, logger.level) for logger in (root, edge, server)]
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    edge.setLevel(logging.INFO if access_log else logging.WARNING)
    server.setLevel(logging.CRITICAL)  # what goes wrong is told by the edge and by serve()
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, level in before:
            logger.setLevel(level)


class _LineFormatter(logging.Formatter):
    """Access lines stand alone: a prefix would make them no JSON."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        access: dict[str, object] | None = getattr(record, "access", None)
        if access is None:
            return self._redactor.text(super().format(record))
        return json.dumps(self._redactor.data(access), ensure_ascii=False)
