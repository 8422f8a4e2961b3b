"""Renews every held lease in one statement, obeys cancels, and rescues the jobs of workers that went silent."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from aiworker.domain.errors import InputRejected, QueueError
from aiworker.domain.ports import JobSource
from aiworker.scheduler.running import RunningJobs, StopReason
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.leases")

# A cancel is seen within a second also when its notification is lost, or cannot come through a pooler.
_LONGEST_BEAT_S = 0.8


class LeaseKeeper:
    """Renews often enough for two renewals to fail, or one to hang, before a job is taken away.

    It does not vouch for an attempt that has lasted `attempt_timeout_s`: that one is stopped.
    """

    def __init__(
        self, source: JobSource, running: RunningJobs, metrics: Metrics, *, lease_s: float, attempt_timeout_s: float
    ) -> None:
        self._source = source
        self._running = running
        self._metrics = metrics
        self._lease_s = lease_s
        self._attempt_timeout_s = attempt_timeout_s
        self._beat_s = min(lease_s / 3, attempt_timeout_s, _LONGEST_BEAT_S)
        self._rescue_due = 0.0
        self._look_now = asyncio.Event()
        self.last_success = time.monotonic()

    def look_now(self) -> None:
        """Somebody cancelled something: ask at once instead of at the next beat."""
        self._look_now.set()

    @property
    def alive(self) -> bool:
        """False when nothing got through for a whole lease: other workers may take our jobs."""
        return time.monotonic() - self.last_success < self._lease_s

    async def run(self) -> None:
        while True:
            next_beat = time.monotonic() + self._beat_s
            self._stop_stuck()
            try:
                await self._renew()
                await self._rescue()
            except (QueueError, InputRejected) as error:
                _log.warning("leases not renewed", held=len(self._running), exc_info=error)
            await self._pause(next_beat - time.monotonic())

    async def _renew(self) -> None:
        leases = self._running.leases()
        if not leases:
            return
        renewal = await self._source.renew(leases, self._lease_s)
        self.last_success = time.monotonic()
        self._stop(renewal.lost, StopReason.LEASE_LOST)
        self._stop(renewal.cancelled, StopReason.CANCELLED)

    async def _rescue(self) -> None:
        now = time.monotonic()
        if now >= self._rescue_due:
            self._rescue_due = now + self._lease_s / 3
            self._metrics.rescued.inc(await self._source.rescue())
            # A turn with nothing to renew and nothing due asks nobody, so it proves nothing.
            self.last_success = time.monotonic()

    def _stop(self, ids: frozenset[UUID], reason: StopReason) -> None:
        for job_id in ids:
            running = self._running.by_id.get(job_id)
            if running is not None:
                _log.info("job stopped", job_id=str(job_id), reason=reason.value)
                running.stop(reason)

    def _stop_stuck(self) -> None:
        oldest = time.monotonic() - self._attempt_timeout_s
        stuck = frozenset(job_id for job_id, running in self._running.by_id.items() if running.began <= oldest)
        self._stop(stuck, StopReason.STUCK)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._look_now.wait()
        except TimeoutError:
            return
        self._look_now.clear()
