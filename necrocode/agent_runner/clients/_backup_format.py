"""The file of a backup: gzipped JSON lines, whole and unchanged or else refused.

::

    {"format": "necrocode-registry-backup", "version": 1, "schema": "0002", "created_at": …, "necrocode": …}
    {"table": "specs", "columns": ["spec_name", …]}
    ["chat-app", …]
    …
    {"rows": {"specs": 1, …}, "sha256": …}

The last line's hash is that of all lines before it. What is in a row is the business of ``registry_backup``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

_FORMAT, _VERSION = "necrocode-registry-backup", 1
_LONGEST_LINE_BYTES = 64 * 1024 * 1024  # bounds the memory that a damaged or hostile file can take
_COMPRESSION = 3  # a third of the time of the default for a tenth more bytes


@dataclass(frozen=True)
class BackupHeader:
    """What a backup says about itself."""

    schema: str
    """The revision of the schema that the rows are of."""
    created_at: str
    necrocode: str
    """The release that made it."""


@dataclass(frozen=True)
class BackupTable:
    """A table in a backup; its rows hold values in the order of ``columns``."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class BackupSummary:
    """A backup that was found whole."""

    header: BackupHeader
    rows: dict[str, int] = field(default_factory=dict)
    """How many of each table."""


class BackupWriter:
    """Writes a backup to a stream; nothing but ``close`` makes it a whole one."""

    def __init__(self, stream: BinaryIO, header: BackupHeader) -> None:
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=stream)
        self._hash = hashlib.sha256()
        self._rows: dict[str, int] = {}
        self._line({"format": _FORMAT, "version": _VERSION, **vars(header)})

    def table(self, table: BackupTable, rows: Iterable[Iterable[object]]) -> None:
        """Write all rows of a table."""
        self._line({"table": table.name, "columns": table.columns})
        self._rows[table.name] = 0
        for row in rows:
            self._line(list(row))
            self._rows[table.name] += 1

    def close(self) -> None:
        """Write the last line; the stream stays open."""
        self._line({"rows": self._rows, "sha256": self._hash.hexdigest()})
        self._file.close()

    def _line(self, value: object) -> None:
        line = json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._hash.update(line)
        self._file.write(line)


class BackupReader:
    """Reads a backup; ``ConfigurationError`` naming the file for one that is torn, changed, or no backup at all."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._file = gzip.GzipFile(fileobj=stream, mode="rb")
        self._name = name
        self._hash = hashlib.sha256()
        self._line_number = 0
        self._counts: dict[str, int] = {}
        self.header = self._read_header()

    def rows(self) -> Iterator[tuple[BackupTable, list[Any]]]:
        """Every row with its table. Only when this has ended without an error is the file known to be whole."""
        table: BackupTable | None = None
        while True:
            line = self._line()
            value = self._parsed(line)
            if isinstance(value, list) and table is not None and len(value) == len(table.columns):
                self._counts[table.name] += 1
                yield table, value
            elif isinstance(value, dict) and "table" in value:
                table = self._table(value)
            elif isinstance(value, dict) and "sha256" in value:
                self._check_end(value)
                return
            else:
                raise self._damaged(f"line {self._line_number} is none that can stand there")
            self._hash.update(line)

    def summary(self) -> BackupSummary:
        """What the file holds, read to its end and found whole."""
        for _ in self.rows():
            pass
        return BackupSummary(self.header, self._counts)

    def _read_header(self) -> BackupHeader:
        line = self._line()
        value = self._parsed(line)
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise ConfigurationError(f"{self._name} is not a backup of a task registry.")
        if value.get("version") != _VERSION:
            raise ConfigurationError(
                f"{self._name} is a backup of version {value.get('version')}, which this release cannot read.",
                hint="Upgrade necrocode.",
            )
        self._hash.update(line)
        try:
            return BackupHeader(*(str(value[name]) for name in ("schema", "created_at", "necrocode")))
        except KeyError as error:
            raise self._damaged(f"its first line has no {error}") from None

    def _table(self, value: dict[str, Any]) -> BackupTable:
        name, columns = value["table"], value.get("columns")
        if not isinstance(name, str) or not isinstance(columns, list) or name in self._counts:
            raise self._damaged(f"line {self._line_number} is none that can stand there")
        self._counts[name] = 0
        return BackupTable(name, tuple(map(str, columns)))

    def _check_end(self, value: dict[str, Any]) -> None:
        if value["sha256"] != self._hash.hexdigest():
            raise self._damaged("its content is not that which its checksum was made of")
        if value.get("rows") != self._counts:
            raise self._damaged(f"it holds {self._counts} rows where {value.get('rows')} were written")
        if self._read(1):
            raise self._damaged("something follows after its end")

    def _line(self) -> bytes:
        line = self._read(_LONGEST_LINE_BYTES)
        self._line_number += 1
        if not line.endswith(b"\n"):
            too_long = len(line) == _LONGEST_LINE_BYTES
            raise self._damaged(f"line {self._line_number} is too long" if too_long else "its end is missing")
        return line

    def _read(self, limit: int) -> bytes:
        try:
            return self._file.readline(limit)
        except EOFError:
            raise self._damaged("its end is missing") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            if self._line_number == 0:
                raise ConfigurationError(f"{self._name} is not a backup of a task registry.") from error
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise ConfigurationError(f"Cannot read the backup {self._name}: {error.strerror}.") from error

    def _parsed(self, line: bytes) -> object:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"line {self._line_number} is not JSON") from error

    def _damaged(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"The backup {self._name} is damaged: {what}. Nothing was restored.", hint="Use another copy of it."
        )
