"""What a repo pool service counts, beside what the shell counts of every service."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from necrocode.agent_runner.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from necrocode.agent_runner.clients.repo_pool_local import LocalRepoPool
    from necrocode.agent_runner.records import PoolRecord

logger = logging.getLogger(__name__)

_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def allocation_seconds(metrics: CollectorRegistry) -> Histogram:
    """The time of allocations by how they ended: ``allocated``, ``none-free``, ``failed``."""
    return Histogram(
        "necrocode_pool_allocation_seconds", "Time to allocate a slot", ("outcome",), buckets=_BUCKETS, registry=metrics
    )


class PoolCollector(Collector):
    """Slots by pool and state, and the pools' use, read from the pools themselves when they are asked for.

    So they count what other processes do with the same pools too.
    """

    def __init__(self, pool: LocalRepoPool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead: registering must not read the pools."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        try:
            pools = self._pool.pools_status()
        except RunnerError as error:
            logger.warning("The pools cannot be counted: %s", error)
            pools = ()
        yield _slots(pools)
        yield _damaged(pools)
        for name in ("allocations", "released", "forced", "expired", "fetches"):
            family = CounterMetricFamily(f"necrocode_pool_{name}", f"{name.capitalize()} of a pool", labels=("pool",))
            for pool in pools:
                family.add_metric((pool.name,), getattr(pool.use, name))
            yield family


def _slots(pools: tuple[PoolRecord, ...]) -> Metric:
    family = GaugeMetricFamily("necrocode_pool_slots", "Slots by state", labels=("pool", "state"))
    for pool in pools:
        for state, count in pool.counts.items():
            family.add_metric((pool.name, state), count)
    return family


def _damaged(pools: tuple[PoolRecord, ...]) -> Metric:
    family = GaugeMetricFamily("necrocode_pool_damaged", "1 when a pool's list of slots is damaged", labels=("pool",))
    for pool in pools:
        family.add_metric((pool.name,), int(pool.trouble is not None))
    return family
