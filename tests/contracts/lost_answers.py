"""Connections that fail after the service has done its work: the client cannot know whether it did."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from necrocode.agent_runner.clients._http import ServiceClient


class _Losing(HTTPAdapter):
    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        answer = super().send(request, *arguments, **options)
        if request.method == "GET" or not self._left:
            return answer
        self._left -= 1
        answer.close()
        raise requests.ConnectionError("the answer was lost")


def lose_answers(client: ServiceClient, count: int = 1) -> None:
    """The answers to the client's next writes are lost; the service has them done."""
    client._http._session.mount("http://", _Losing(count))
