"""Connections of the requests package that are under the time limit of the exchange they are used in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from necrocode.agent_runner.clients._exchange import current_exchange

if TYPE_CHECKING:
    from urllib3 import HTTPResponse, PoolManager


def _begin(connection: HTTPConnection) -> None:
    """The request is sent: from here on the answer's time runs. A large upload may take longer than that."""
    exchange = current_exchange()
    if exchange is not None and connection.sock is not None:
        exchange.start()
        exchange.hold(connection.sock)


class _Connection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _begin(self)
        return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _begin(self)
        return super().getresponse()


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
