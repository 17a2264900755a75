"""Many calls at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result | Exception]:
    """What the work gave for each item, or the exception that it raised; a thread each, started together."""
    todo = list(items)
    gate = threading.Barrier(len(todo))

    def one(item: Item) -> Result | Exception:
        gate.wait(30)
        try:
            return work(item)
        except Exception as error:  # noqa: BLE001  the test looks at it
            return error

    with ThreadPoolExecutor(len(todo)) as pool:
        return list(pool.map(one, todo))
