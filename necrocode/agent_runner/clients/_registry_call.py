"""What a call of the registry is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner.clients._registry_sql import Transaction

_T_co = TypeVar("_T_co", covariant=True)


@dataclass(frozen=True)
class Call(Generic[_T_co]):
    """``run`` is done in a transaction; ``read`` makes the answer of what it gave."""

    run: Callable[[Transaction], Any]
    read: Callable[[Any], _T_co]
    changes: bool = True
    by_statement: bool = False
    """Whether each of its statements makes sense alone."""


@dataclass(frozen=True)
class OnceOnly:
    """What makes a repeated write known: its key, and a fingerprint of what was asked with it."""

    key: str
    fingerprint: str
