"""``necrocode serve`` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_ENDS_WITHIN_SECONDS = 30


@dataclass
class Served:
    """The running process; ``urls`` by service."""

    process: subprocess.Popen[str]
    log: Path
    urls: dict[str, str] = field(default_factory=dict)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(_ENDS_WITHIN_SECONDS)


@contextmanager
def necrocode_serve(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """The command, once it has said where each of its services listens; its log is in ``folder``."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "necrocode", "serve", *arguments]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env={**os.environ, **(env or {})}
        )
    served = Served(process, log)
    assert process.stdout is not None
    try:
        for _ in range(3 if arguments[0] == "all" else 1):
            line = process.stdout.readline()
            assert line, log.read_text()
            name, _, url = line.strip().partition(" ")
            served.urls[name] = url
        yield served
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
