"""Conditional and partial GETs (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


class UnsatisfiableRangeError(ValueError):
    """The range lies outside."""


def asked_range(header: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """The part (start, stop) that is asked for; None for the whole; ``UnsatisfiableRangeError``.

    Several ranges at once, other units and malformed ranges are answered with the whole, as a server may.
    """
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= stop:
        raise UnsatisfiableRangeError
    return start, stop


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller has this version already; ETags are compared weakly."""
    if if_none_match is None:
        return False
    listed = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in listed or etag in listed
