"""A TCP proxy on loopback that spoils what passes, in the ways that networks and services do."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["refuse", "blackhole", "latency", "cut_request", "cut_response", "rate"]
FAULTS: tuple[Fault, ...] = ("refuse", "blackhole", "latency", "cut_request", "cut_response", "rate")
LATENCY_SECONDS = 0.05
RATE_BYTES = 2_000
"""So much passes at once under ``rate``, with a pause of ``RATE_PAUSE_SECONDS`` after it."""
RATE_PAUSE_SECONDS = 0.01
CUT_AFTER_BYTES = 40
_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """Stands in front of an HTTP service; ``fault`` decides what becomes of each connection opened from then on.

    refuse: it is reset at once; blackhole: nothing passes, in either direction; latency: each piece is late;
    cut_request: it is reset after a part of the request; cut_response: the request passes, and of the answer a part
    before it is reset; rate: the bytes trickle. None: all passes. Open connections have the fault too.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._target = (address.hostname, address.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault: Fault | None = None
        self._released = threading.Event()
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._released.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            _reset(end)

    def _accept(self) -> None:
        while not self._released.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.fault == "refuse":
            _reset(client)
            return
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            _reset(client)
            return
        with self._lock:
            self._ends |= {client, server}
        back = threading.Thread(target=self._pass, args=(server, client), kwargs={"is_answer": True}, daemon=True)
        back.start()
        self._pass(client, server, is_answer=False)
        back.join()
        with self._lock:
            self._ends -= {client, server}
        client.close()
        server.close()

    def _pass(self, source: socket.socket, sink: socket.socket, *, is_answer: bool) -> None:
        """Hand on what comes, spoiled; at its end the other side is told, after a cut both are reset."""
        with suppress(OSError):
            while data := source.recv(65_536):
                cut = "cut_response" if is_answer else "cut_request"
                if self.fault == "blackhole":
                    self._released.wait()
                if self.fault in {"refuse", "blackhole"}:
                    break
                if self.fault == cut:
                    sink.sendall(data[:CUT_AFTER_BYTES])
                    break
                self._hand_on(data, sink)
            else:
                sink.shutdown(socket.SHUT_WR)
                return
            _reset(source)
            _reset(sink)

    def _hand_on(self, data: bytes, sink: socket.socket) -> None:
        if self.fault == "latency":
            self._released.wait(LATENCY_SECONDS)
        size = RATE_BYTES if self.fault == "rate" else len(data)
        for start in range(0, len(data), size):
            sink.sendall(data[start : start + size])
            if self.fault == "rate":
                self._released.wait(RATE_PAUSE_SECONDS)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)
    end.close()
