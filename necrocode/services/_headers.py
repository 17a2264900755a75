"""Request headers that several services take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A write that is repeated with the same key and body gets the first answer again (IETF draft "
        "draft-ietf-httpapi-idempotency-key-header); with another body it is refused.",
    ),
]
LeaseEpoch = Annotated[
    int | None,
    Header(
        alias="X-Lease-Epoch",
        ge=0,
        le=2**62,
        description="The epoch of the lease under which a runner writes; one older than the current is refused.",
    ),
]
