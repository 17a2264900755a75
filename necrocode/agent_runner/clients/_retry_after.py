"""How long a busy server asks to be left alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from necrocode.agent_runner._clock import Clock

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
LONGEST_WAIT_SECONDS = 366 * 86_400.0


def retry_after_seconds(value: str, clock: Clock) -> float | None:
    """The wait in a ``Retry-After``, in seconds or as a date (RFC 9110, section 10.2.3); None where it is neither.

    At most a year, whatever the number: callers have limits of their own, and the clock has one too.
    """
    if _NUMBER.fullmatch(value.strip()):
        return min(float(value), LONGEST_WAIT_SECONDS)
    try:
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - _utc(clock.now())).total_seconds()
    except (ValueError, OverflowError, LookupError, TypeError):  # how the standard library says: that is no date
        return None
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
