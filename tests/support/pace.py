"""How long something takes, told so that a busy machine does not change the answer."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 3


def seconds_of(action: Callable[[], object]) -> float:
    """How long the processor is busy with it. No garbage is collected meanwhile: it may be another test's."""
    gc.disable()
    try:
        start = time.process_time()
        action()
        return time.process_time() - start
    finally:
        gc.enable()


def is_within(seconds: float, action: Callable[[], object]) -> bool:
    """Whether one of a few tries takes less than so many seconds."""
    return any(seconds_of(action) < seconds for _ in range(TRIES))


def is_in_proportion(action: Callable[[int], object], small: int, large: int) -> bool:
    """Whether a unit of ``large`` takes at most 4 times as long as one of ``small``, or all half a second."""

    def is_once() -> bool:
        unit, whole = seconds_of(lambda: action(small)), seconds_of(lambda: action(large))
        return whole < max(0.5, unit * 4 * large / small)

    action(min(small, 100))
    return any(is_once() for _ in range(TRIES))
