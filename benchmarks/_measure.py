"""Medians of things measured side by side: every round measures each of them once, in turn."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def side_by_side(subjects: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each subject, by round; one round before the first warms caches and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            start = time.perf_counter()
            subject()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median over rounds of ``name`` divided by ``base``."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True))
