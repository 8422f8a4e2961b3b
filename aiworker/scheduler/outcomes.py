"""Writes outcomes and progress in batches, each only under its lease."""

from __future__ import annotations

import asyncio
from uuid import UUID

from aiworker.domain.errors import InputRejected, QueueError, WorkerError
from aiworker.domain.job import Lease
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Failed, Outcome, label
from aiworker.domain.ports import JobSource
from aiworker.scheduler.running import RunningJobs
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.outcomes")

_LARGEST_BATCH = 200
_DATABASE_RETRY_S = 0.5
_PROGRESS_INTERVAL_S = 0.2


Ended = tuple[Lease, str, Outcome]
"""A lease, the job's type, and how the attempt ended."""


class OutcomeWriter:
    """Takes outcomes at once, writes whatever has gathered while the last write was under way.

    While the database is away outcomes wait here and their leases stay held, so that nothing is done twice.
    """

    def __init__(self, source: JobSource, running: RunningJobs, metrics: Metrics) -> None:
        self._source = source
        self._running = running
        self._metrics = metrics
        self._waiting: list[Ended] = []
        self._arrived = asyncio.Event()
        self._closing = False

    def submit(self, lease: Lease, job_type: str, outcome: Outcome) -> None:
        self._waiting.append((lease, job_type, outcome))
        self._arrived.set()

    def close(self) -> None:
        """`run` returns once everything that was submitted has been written."""
        self._closing = True
        self._arrived.set()

    async def run(self) -> None:
        while not (self._closing and not self._waiting):
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
                await self._write(batch)

    async def _write(self, batch: list[Ended]) -> None:
        try:
            written = await self._source.finalise([(lease, outcome) for lease, _, outcome in batch])
        except QueueError as error:
            _log.warning("outcomes wait for the database", waiting=len(batch), exc_info=error)
            self._waiting = batch + self._waiting
            await asyncio.sleep(_DATABASE_RETRY_S)
        except InputRejected as error:
            await self._write_apart(batch, error)
        else:
            self._note(batch, written)

    async def _write_apart(self, batch: list[Ended], error: InputRejected) -> None:
        """One of `batch` cannot be stored: the others must not wait for it, and it must end."""
        if len(batch) > 1:
            for ended in batch:
                await self._write([ended])
            return
        ((lease, job_type, outcome),) = batch
        _log.error("outcome cannot be stored", job_id=str(lease.job_id), type=job_type, exc_info=error)
        if not isinstance(outcome, Failed):
            await self._write([(lease, job_type, Failed(sentence(WorkerError.code), WorkerError.code))])
        else:
            self._running.remove(lease)

    def _note(self, batch: list[Ended], written: frozenset[UUID]) -> None:
        for lease, job_type, outcome in batch:
            self._running.remove(lease)
            held = lease.job_id in written
            if not held:
                self._metrics.leases_lost.inc()
            self._metrics.jobs.labels(job_type, label(outcome) if held else "lease_lost").inc()
            _log.info(
                "job ended", job_id=str(lease.job_id), type=job_type, outcome=label(outcome) if held else "lease_lost"
            )


class ProgressWriter:
    """Coalesces progress: the newest report of each job, at most one write in every interval."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self._newest: dict[Lease, tuple[int, str]] = {}
        self._arrived = asyncio.Event()

    def report(self, lease: Lease, percent: int, stage: str) -> None:
        self._newest[lease] = (percent, stage)
        self._arrived.set()

    def forget(self, lease: Lease) -> None:
        """The job has ended; its outcome says more than its progress."""
        self._newest.pop(lease, None)

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            newest, self._newest = self._newest, {}
            if newest:
                try:
                    await self._source.report(newest)
                except QueueError:
                    _log.debug("progress dropped: the database is away")
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
