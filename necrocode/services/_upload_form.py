"""An upload's multipart form, read as it comes: the file goes straight to where it will lie, the fields stay in memory.

Starlette's own parser would write the file to a temporary place first, so that every byte is written twice.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from necrocode.agent_runner.clients._artifact_incoming import IncomingArtifact

_MAX_FIELD_BYTES = 1_100_000  # the largest metadata, and some room for how it is written
_MAX_PARTS = 20


class UploadForm:
    """Takes the body piece by piece. The parts may come in any order; ``discard`` must be called at the end."""

    def __init__(self, content_type: str, receive: Callable[[], IncomingArtifact]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise wrong("body", "must be multipart/form-data with a boundary")
        self._receive = receive
        self._incoming: IncomingArtifact | None = None
        self._fields: dict[str, bytearray] = {}
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._parts = 0
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise wrong("body", str(error)) from error

    def feed(self, chunk: bytes) -> None:
        """Take the next piece; may write to the store."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise wrong("body", f"is no multipart form: {error}") from error

    def end(self) -> IncomingArtifact:
        """The file, after the last piece."""
        if not self._is_whole:
            raise wrong("body", "ends before the form does")
        if self._incoming is None:
            raise wrong("file", "is missing")
        return self._incoming

    def text(self, name: str) -> str | None:
        """A field; None when it was not sent."""
        if name not in self._fields:
            return None
        try:
            return self._fields[name].decode()
        except UnicodeDecodeError as error:
            raise wrong(name, "must be UTF-8") from error

    def required_text(self, name: str) -> str:
        """A field that must be there."""
        value = self.text(name)
        if value is None:
            raise wrong(name, "is missing")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A field that holds a JSON object; empty when it was not sent."""
        try:
            value = json.loads(self.text(name) or "{}")
        except (ValueError, RecursionError) as error:
            raise wrong(name, f"must be JSON: {error}") from error
        if not isinstance(value, dict):
            raise wrong(name, "must be a JSON object")
        return value

    def discard(self) -> None:
        """Leave nothing of a file that was not finished."""
        if self._incoming is not None:
            self._incoming.discard()

    def _on_part_begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > _MAX_PARTS:
            raise wrong("body", f"has more than {_MAX_PARTS} parts")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name in self._fields or (self._name == "file" and self._incoming is not None):
            raise wrong(self._name, "is given twice")
        if self._name == "file":
            self._incoming = self._receive()
        else:
            self._fields[self._name] = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file" and self._incoming is not None:
            self._incoming.write(memoryview(data)[start:end])
            return
        field = self._fields[self._name]
        field += memoryview(data)[start:end]
        if len(field) > _MAX_FIELD_BYTES:
            raise wrong(self._name, f"is longer than {_MAX_FIELD_BYTES} bytes")

    def _on_end(self) -> None:
        self._is_whole = True


def wrong(field: str, message: str) -> RequestValidationError:
    """A field of the body that does not fit, in the form that the shell answers as 422."""
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
