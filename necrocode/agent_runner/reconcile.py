"""Putting right, at the start of a runner, what runners of this machine have left that died.

Nothing is touched that a living process holds: runs, layers and slots in preparation are locked by their processes, and
the system gives such a lock back when its process dies.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.sandbox.layer import sweep_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from necrocode.agent_runner.outbox.book import RunPlace
    from necrocode.agent_runner.outbox.folder import Outbox
    from necrocode.agent_runner.protocols import RepoPool

logger = logging.getLogger(__name__)


def reconcile(outbox: Outbox, pool: RepoPool, layers: Path, *, is_thorough: bool = False) -> list[str]:
    """Put right what dead runs have left; what was done, a line each. Never raises.

    Their test processes are ended and their layers removed; slots of an embedded pool that they held are free, and what
    killed git processes left in its mirrors is removed. ``is_thorough``: look at the pool even where no run is known to
    have died.
    """
    done: list[str] = []
    dead = outbox.dead_runs(lambda place: done.extend(_released(pool, place)))
    done += [f"run {run_id}: died, cleaned up after" for run_id in dead]
    try:
        done += sweep_layers(layers)
        if dead or is_thorough:
            put_right: Callable[[], list[str]] | None = getattr(pool, "reconcile", None)
            done += put_right() if put_right is not None else []
    except Exception as error:  # noqa: BLE001  a run must not fail over what others have left
        logger.warning("Not all that dead runs have left could be put right: %s", error)
    for line in done:
        logger.info("reconciled: %s", line)
    return done


def _released(pool: RepoPool, place: RunPlace) -> list[str]:
    """Give back the slot that a dead run held, where the pool can tell that it is still that hold."""
    release: Callable[[str, int], bool] | None = getattr(pool, "release_abandoned", None)
    if release is None or place.epoch is None:  # a service's lease ends by itself
        return []
    try:
        return [f"{place.slot_id}: given back"] if release(place.slot_id, place.epoch) else []
    except (RunnerError, OSError) as error:
        logger.warning("The slot %s of a dead run was not given back: %s", place.slot_id, error)
        return []
