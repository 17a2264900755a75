"""What a store of artifacts needs of the place where the bytes lie: the least that folders and S3 both can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Blob:
    """Something that lies at a key."""

    key: str
    size_bytes: int
    modified_at: float
    """Seconds since the epoch, by the clock of the place."""


class Draft(Protocol):
    """Bytes on their way in, which nobody sees yet."""

    source_bytes: int | None
    """How much the draft will read from its source by itself; None: all of it is written to the draft."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Add to the end."""

    def publish(self, key: str, encoding: Literal["gzip"] | None) -> bool:
        """Put the whole, durably, at a key; False, and nothing done, when something is there. May be tried again.

        A place that can say of its bytes how they are encoded says it.
        """

    def discard(self) -> None:
        """Give up what was not published; also after publishing, and twice."""


class Blobs(Protocol):
    """Bytes at keys.

    Safe for several threads. Raises ``StorageFullError`` when there is no room, ``ArtifactUploadError`` when
    something cannot be written, ``ServiceError`` or a subclass when the place does not answer or refuses.
    """

    def ensure_available(self) -> None:
        """Return when writing can be expected to work."""

    def named(self) -> str:
        """The place, for messages."""

    def uri(self, key: str) -> str:
        """The URI of a key."""

    def key_of(self, uri: str) -> str | None:
        """The key of a URI; None when it is not of this place."""

    def draft(self, source: IO[bytes] | None = None) -> Draft:
        """A new draft; its maker discards it. ``source``: a file that it may read from here on by itself."""

    def chunks(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``stop`` (None: all); ``KeyError`` when the key is free."""

    def read_small(self, key: str) -> bytes | None:
        """All that is at a key; None when it is free."""

    def write_small(self, key: str, content: bytes) -> None:
        """Put bytes at a key at once and durably, whatever was there."""

    def delete(self, key: str) -> None:
        """Free a key; nothing is done when it is free."""

    def walk(self, prefix: str, after: str) -> Iterator[Blob]:
        """What lies under a prefix (empty, or whole parts and a slash), after a key, in the order of the keys."""

    def exclusive(self, folder: str) -> AbstractContextManager[None]:
        """Keep others that change things in the same folder waiting; as far as the place can reach."""

    def clear_drafts(self, *, before: float) -> int:
        """Remove drafts, begun before a moment, of uploads that never came to an end; how many there were."""
