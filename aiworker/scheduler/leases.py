"""Renews every held lease in one statement, obeys cancels, and rescues the jobs of workers that went silent."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from aiworker.domain.errors import QueueError
from aiworker.domain.ports import JobSource
from aiworker.scheduler.running import RunningJobs, StopReason
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.leases")


class LeaseKeeper:
    """Renews at a third of the lease, so that two renewals may fail before a job is taken away."""

    def __init__(self, source: JobSource, running: RunningJobs, metrics: Metrics, *, lease_s: float) -> None:
        self._source = source
        self._running = running
        self._metrics = metrics
        self._lease_s = lease_s
        self._look_now = asyncio.Event()
        self.last_success = time.monotonic()

    def look_now(self) -> None:
        """Somebody cancelled something: ask at once instead of at the next renewal."""
        self._look_now.set()

    @property
    def alive(self) -> bool:
        """False when no renewal got through for a whole lease: other workers may take our jobs."""
        return time.monotonic() - self.last_success < self._lease_s

    async def run(self) -> None:
        while True:
            try:
                await self._renew()
                self._metrics.rescued.inc(await self._source.rescue())
                self.last_success = time.monotonic()
            except QueueError as error:
                _log.warning("leases not renewed", held=len(self._running), exc_info=error)
            await self._pause()

    async def _renew(self) -> None:
        leases = self._running.leases()
        if not leases:
            return
        renewal = await self._source.renew(leases, self._lease_s)
        self._stop(renewal.lost, StopReason.LEASE_LOST)
        self._stop(renewal.cancel_requested, StopReason.CANCELLED)

    def _stop(self, ids: frozenset[UUID], reason: StopReason) -> None:
        for job_id in ids:
            running = self._running.by_id.get(job_id)
            if running is not None:
                _log.info("job stopped", job_id=str(job_id), reason=reason.value)
                running.stop(reason)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._lease_s / 3):
                await self._look_now.wait()
        except TimeoutError:
            return
        self._look_now.clear()
