"""Connections to an OpenAI-compatible endpoint, and what comes through them: within bounds of time and size."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from necrocode.agent_runner.clients._exchange import (
    ACCEPTED_ENCODINGS,
    AnswerTooLargeError,
    UnreadableBodyError,
    current_exchange,
    inflated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx2
    import openai

_PATH = "/chat/completions"
_MAX_REFUSAL_BYTES = 4_000_000


@dataclass(frozen=True)
class Endpoint:
    """Where questions go, and what they carry there. Its representation shows none of that."""

    base_url: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    bearer: str | None = None

    @classmethod
    def at(cls, url: str, *, key: str | None, key_header: str | None, headers: Mapping[str, str]) -> Self:
        """The endpoint at a base URL with or without a query; a URL that names the call itself will do as well.

        Azure's portal shows the latter. Its deployments take the key as ``api-key``, and are known by ``api-version``
        (https://learn.microsoft.com/azure/ai-foundry/openai/reference).
        """
        parts = urlsplit(url)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        base_url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix(_PATH), "", ""))
        header = key_header or ("api-key" if "api-version" in dict(query) else "Authorization")
        is_bearer = header.lower() == "authorization"
        sent = dict(headers) if key is None or is_bearer else {header: key, **headers}
        return cls(base_url, query, tuple(sent.items()), key if is_bearer else None)

    @property
    def is_named_by_bearer(self) -> bool:
        """Whether there is an ``Authorization``; where nothing says who asks, the openai package insists on one."""
        return (
            self.bearer is not None or not self.headers or "authorization" in (name.lower() for name, _ in self.headers)
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"


class _Clients:
    """One client per endpoint: building one costs 25 ms.

    And per process, for its locks. Each question has a connection of its own, so that its time limit knows from the
    first byte on which one to hang up on; answers take seconds, and the next question seldom comes within the few for
    which an idle connection is kept.
    """

    _MOST = 32

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be as new, in a child process too."""
        self._lock = threading.Lock()
        self._known: dict[Endpoint, openai.OpenAI] = {}

    def of(self, endpoint: Endpoint) -> openai.OpenAI:
        """The client; several threads that ask for it at once get the same one."""
        with self._lock:
            client = self._known.pop(endpoint, None) or _new_client(endpoint)
            self._known[endpoint] = client
            if len(self._known) > self._MOST:  # the one that was used longest ago
                del self._known[next(iter(self._known))]
            return client


_clients = _Clients()
os.register_at_fork(after_in_child=_clients.forget)


def shared_client(endpoint: Endpoint) -> openai.OpenAI:
    """The process's client for the endpoint; it keeps no connection open between questions."""
    return _clients.of(endpoint)


def _new_client(endpoint: Endpoint) -> openai.OpenAI:
    import httpx2  # noqa: PLC0415
    import openai  # noqa: PLC0415

    before = [_watch] if endpoint.is_named_by_bearer else [_watch, _without_bearer]
    connections = openai.DefaultHttpxClient(
        event_hooks={"request": before, "response": [_read_refusal]},
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        headers={"Accept-Encoding": ACCEPTED_ENCODINGS},
        follow_redirects=False,  # one could carry key and question to another host
    )
    client = openai.OpenAI(
        api_key=endpoint.bearer or "unused",
        base_url=endpoint.base_url,
        default_query=dict(endpoint.query),
        default_headers=dict(endpoint.headers),
        max_retries=0,
        http_client=connections,
    )
    weakref.finalize(client, connections.close)
    return client


def _watch(request: httpx2.Request) -> None:
    """Put the connection, as soon as there is one, under the time limit of the exchange."""
    exchange = current_exchange()

    def note(event: str, facts: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete" and exchange is not None:
            exchange.hold(facts["return_value"].get_extra_info("socket"))

    request.extensions["trace"] = note


def _without_bearer(request: httpx2.Request) -> None:
    """Take out the bearer token that the openai package insists on."""
    del request.headers["Authorization"]


def _read_refusal(response: httpx2.Response) -> None:
    """Read the body of a refusal within its limit, before the openai package does without one."""
    if response.is_success:
        return
    import httpx2  # noqa: PLC0415  loaded already: its client calls this

    stream = response.stream
    assert isinstance(stream, httpx2.SyncByteStream)  # noqa: S101  the client is no asynchronous one
    try:
        body = b"".join(pieces_of(response, limit_bytes=_MAX_REFUSAL_BYTES))
    finally:
        stream.close()
    response.stream = httpx2.ByteStream(body)
    response.read()


def pieces_of(response: httpx2.Response, *, limit_bytes: int) -> Iterator[bytes]:
    """The body as it comes, its Content-Encoding undone; every trouble is one of the openai package's errors."""
    import httpx2  # noqa: PLC0415  loaded already: the response is its
    import openai  # noqa: PLC0415

    stream = response.stream
    assert isinstance(stream, httpx2.SyncByteStream)  # noqa: S101  the client is no asynchronous one
    encoding = response.headers.pop("content-encoding", "")
    try:
        yield from inflated(stream, encoding, limit_bytes=limit_bytes)
    except httpx2.TimeoutException as error:
        raise openai.APITimeoutError(request=response.request) from error
    except (httpx2.TransportError, AnswerTooLargeError, UnreadableBodyError) as error:
        raise openai.APIConnectionError(request=response.request) from error
