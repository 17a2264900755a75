"""Putting right, at the start of a runner, what runners of this machine have left that died.

Nothing is touched that a living process holds: runs, layers and slots in preparation are locked by their processes, and
the system gives such a lock back when its process dies.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from necrocode.agent_runner._names import slot_holder
from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.sandbox.layer import sweep_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from necrocode.agent_runner.outbox.book import RunIdentity
    from necrocode.agent_runner.outbox.folder import Outbox
    from necrocode.agent_runner.protocols import RepoPool

logger = logging.getLogger(__name__)


def reconcile(outbox: Outbox, pool: RepoPool, layers: Path, *, is_thorough: bool = False) -> list[str]:
    """Put right what dead runs have left; what was done, a line each. Never raises.

    Their test processes are ended and their layers removed; slots of an embedded pool that they held are free, and what
    killed git processes left in its mirrors is removed. ``is_thorough``: look at the pool even where no run is known to
    have died.
    """
    done = outbox.clean_up_after_the_dead()
    is_needed = bool(done) or is_thorough
    try:
        done += sweep_layers(layers)
        if is_needed:
            put_right: Callable[[], list[str]] | None = getattr(pool, "reconcile", None)
            done += put_right() if put_right is not None else []
    except Exception as error:  # noqa: BLE001  a run must not fail over what others have left
        logger.warning("Not all that dead runs have left could be put right: %s", error)
    for line in done:
        logger.info("reconciled: %s", line)
    return done


def give_back(pool: RepoPool, holder: str) -> list[str]:
    """Give back the slots of a dead run, where the pool can tell them; a service's leases end by themselves.

    Their ids. Raises ``RunnerError`` and :class:`OSError`.
    """
    release: Callable[[str], list[str]] | None = getattr(pool, "release_abandoned", None)
    return [] if release is None else release(holder)


def slots_given_back(pool: RepoPool, run: RunIdentity) -> list[str]:
    """Give back the slots that a dead run held; a line each. Never raises."""
    try:
        return [f"{slot_id}: given back" for slot_id in give_back(pool, slot_holder(run.runner_id, run.run_id))]
    except (RunnerError, OSError) as error:
        logger.warning("The slots of the dead run %s were not given back: %s", run.run_id, error)
        return []
