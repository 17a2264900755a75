"""Times in a query string."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator


def _is_no_number(value: object) -> object:
    """Pydantic would take a number for seconds since the epoch."""
    if isinstance(value, str) and "-" not in value[1:]:
        raise ValueError("must be a time of RFC 3339, with its zone")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be within the years 1 to 9999, in UTC too") from error


Moment = Annotated[AwareDatetime, BeforeValidator(_is_no_number), AfterValidator(_in_utc)]
"""A time of RFC 3339 with its zone."""
