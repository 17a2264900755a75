"""A session of the requests package for one service: what all calls have in common is worked out once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import requests
from requests.cookies import extract_cookies_to_jar

from necrocode.agent_runner.clients._exchange import ACCEPTED_ENCODINGS
from necrocode.agent_runner.clients._watched import WatchedAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ServiceSession(requests.Session):
    """Pooled connections to one service, with the proxy and CA bundle that the environment names at the first call.

    ``Session.request`` reads the environment and merges settings and cookie jars anew for each call, which takes longer
    than all else that it does. The token is sent as a header; no other name or password is, of a .netrc or the URL.
    """

    def __init__(self, base_url: str, token: str | None) -> None:
        super().__init__()
        self._base_url = base_url
        self.mount("http://", WatchedAdapter())
        self.mount("https://", WatchedAdapter())
        self._headers = {**self.headers, "Accept": "application/json", "Accept-Encoding": ACCEPTED_ENCODINGS}
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(
        self,
        method: str,
        path: str,
        *,
        timeout: tuple[float, float],
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | Iterable[bytes] | None = None,
    ) -> requests.Response:
        """The answer, its body unread; ``timeout`` is for connecting and for each read.

        A redirect is not followed: it could carry the token to another host, and turns a PUT into a GET.
        """
        request = requests.PreparedRequest()
        request.prepare_method(method)
        request.prepare_url(f"{self._base_url}{path}", params or None)
        request.prepare_headers({**self._headers, **(headers or {}), **self._authorization})
        if self.cookies:
            request.prepare_cookies(self.cookies)
        if isinstance(data, bytes):  # prepare_body takes a while to find out what it was given
            request.body = data
            request.prepare_content_length(data)
        else:
            request.prepare_body(data, None)
        answer = self.get_adapter(self._base_url).send(request, stream=True, timeout=timeout, **self._environment)
        if "Set-Cookie" in answer.headers:
            extract_cookies_to_jar(self.cookies, request, answer.raw)  # type: ignore[no-untyped-call]
        return answer

    @cached_property
    def _environment(self) -> dict[str, Any]:
        found = self.merge_environment_settings(self._base_url, {}, None, None, None)
        return {name: found[name] for name in ("proxies", "verify", "cert")}
