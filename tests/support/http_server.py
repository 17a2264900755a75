"""A loopback HTTP server whose answers a test writes down beforehand."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What the server says. ``cut`` ends the connection after that many bytes of the body; ``drop`` answers nothing.

    ``pieces`` are sent in the body's place, one by one, an event among them is waited for; without ``ends`` the
    connection then breaks off.
    """

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drop: bool = False
    wait: threading.Event | None = None
    pieces: Iterable[bytes | threading.Event] | None = None
    ends: bool = True

    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


def send_body(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    """Write the rest of an answer, after its headers."""
    if answer.pieces is None:
        content = answer.content()
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if answer.cut is not None:
            content, handler.close_connection = content[: answer.cut], True
        handler.wfile.write(content)
        return
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in answer.pieces:
        if isinstance(piece, threading.Event):
            piece.wait(30)
        elif piece:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n" if answer.ends else b"")
    handler.close_connection = not answer.ends


Script = Callable[[Request], Answer]


class ScriptedServer:
    """The server: ``requests`` has all that came, ``url`` is where it listens."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {key.lower(): value for key, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                outer.requests.append(request)
                self.answer(script(request))

            def answer(self, answer: Answer) -> None:
                if answer.wait is not None:
                    answer.wait.wait(30)
                if answer.drop:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                send_body(self, answer)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815

            def log_message(self, *_arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments: Any) -> None:
                pass  # clients that hang up are part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(answers: Iterable[Answer] | Script, *, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """A running server that gives these answers in order (the last one again and again), or what a function says."""
    if callable(answers):
        script: Script = answers
    else:
        waiting = list(answers)
        lock = threading.Lock()

        def script(_request: Request) -> Answer:
            with lock:
                return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    with ScriptedServer(script, tls=tls) as server:
        yield server
