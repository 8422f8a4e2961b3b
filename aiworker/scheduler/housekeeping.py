"""Removes what has ended and is older than it has to be, a little at a time."""

from __future__ import annotations

import asyncio

from aiworker.domain.errors import InputRejected, QueueError
from aiworker.domain.ports import JobSource
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.housekeeping")

# Small enough for one statement to hold up nobody; the pause leaves the database to the jobs.
_BATCH = 500
_BETWEEN_BATCHES_S = 0.5
_INTERVAL_S = 60.0


class Housekeeper:
    """Prunes jobs that ended longer than `retention_s` ago, and cache entries that have run out.

    Every worker may run one: none waits for another.
    """

    def __init__(self, source: JobSource, metrics: Metrics, *, retention_s: float) -> None:
        self._source = source
        self._metrics = metrics
        self._retention_s = retention_s

    async def run(self) -> None:
        while True:
            more = await self.prune()
            await asyncio.sleep(_BETWEEN_BATCHES_S if more else _INTERVAL_S)

    async def prune(self) -> bool:
        """One batch. True when more may be left."""
        try:
            pruned = await self._source.prune(self._retention_s, _BATCH)
        except (QueueError, InputRejected) as error:
            _log.warning("nothing pruned", exc_info=error)
            return False
        self._metrics.pruned.inc(pruned)
        return pruned >= _BATCH
