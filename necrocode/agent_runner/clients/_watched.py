"""Connections of the requests package that are under the time limit of the exchange they are used in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from necrocode.agent_runner.clients._exchange import current_exchange

if TYPE_CHECKING:
    from socket import socket

    from urllib3 import HTTPResponse, PoolManager


class _Watched(HTTPConnection):
    """A connection that is hung up on as soon as its exchange is over, while it is being made and used."""

    def _new_conn(self) -> socket:
        made = super()._new_conn()
        _hold(made)
        return made

    def request(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  passed on
        if self.sock is not None:  # one that was used before
            _hold(self.sock)
        super().request(*arguments, **options)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        """The request is sent: from here on the answer's time runs. A large upload may take longer than that."""
        exchange = current_exchange()
        if exchange is not None:
            exchange.start()
        return super().getresponse()


class _Connection(_Watched):
    pass


class _SecureConnection(_Watched, HTTPSConnection):
    pass


def _hold(connection: socket) -> None:
    exchange = current_exchange()
    if exchange is not None:
        exchange.hold(connection)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class WatchedAdapter(HTTPAdapter):
    """requests' own adapter over such connections, direct ones and those through a proxy, all to one service."""

    _found: HTTPConnectionPool | None = None

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> HTTPConnectionPool:  # noqa: ANN401  passed on
        """The pool of the service's connections, looked up once until it is closed."""
        found = self._found
        if found is None or found.pool is None:  # the latter after close()
            found = cast("HTTPConnectionPool", super().get_connection_with_tls_context(*arguments, **options))
            self._found = found
        return found

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  passed on
        """The manager of direct connections."""
        super().init_poolmanager(*arguments, **options)
        _watch(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> PoolManager:  # noqa: ANN401  passed on
        """The manager of connections through a proxy."""
        manager: PoolManager = super().proxy_manager_for(*arguments, **options)
        _watch(manager)
        return manager


def _watch(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
