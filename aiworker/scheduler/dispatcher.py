"""Claims no more jobs than there are free slots, runs each in a task of its own, and stops in two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from aiworker.domain.errors import QueueError
from aiworker.domain.job import ClaimedJob
from aiworker.domain.outcome import Cancelled, Interrupted
from aiworker.domain.ports import JobSource
from aiworker.scheduler.executor import JobExecutor
from aiworker.scheduler.outcomes import OutcomeWriter, ProgressWriter
from aiworker.scheduler.running import RunningJob, RunningJobs, StopReason
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.dispatcher")

_DATABASE_RETRY_S = 1.0


class Dispatcher:
    """One per worker. `wake` is set by notifications; the poll interval is what they fall back to."""

    def __init__(
        self,
        source: JobSource,
        executor: JobExecutor,
        outcomes: OutcomeWriter,
        progress: ProgressWriter,
        running: RunningJobs,
        metrics: Metrics,
        *,
        worker_id: str,
        slots: int,
        lease_s: float,
        poll_s: float,
        types: Collection[str],
    ) -> None:
        self._source = source
        self._executor = executor
        self._outcomes = outcomes
        self._progress = progress
        self._running = running
        self._metrics = metrics
        self._worker_id = worker_id
        self._slots = slots
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._types = frozenset(types)
        self._closing = False
        self.wake = asyncio.Event()
        running.slot_freed = self.wake
        metrics.active_jobs.set_function(lambda: len(running))

    async def run(self) -> None:
        """Claims and starts jobs until `close`."""
        while not self._closing:
            # Cleared before the claim: a notification that arrives during it makes us look again.
            self.wake.clear()
            if await self._claim_some():
                continue
            try:
                async with asyncio.timeout(self._poll_s):
                    await self.wake.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """No more claims."""
        self._closing = True
        self.wake.set()

    async def drain(self, patience_s: float) -> None:
        """Waits for running jobs, then puts the rest back without costing them an attempt."""
        tasks = self._tasks()
        if tasks and patience_s > 0:
            _, late = await asyncio.wait(tasks, timeout=patience_s)
            _log.info("drained", finished=len(tasks) - len(late), put_back=len(late))
        for running in list(self._running.by_id.values()):
            running.stop(StopReason.SHUTDOWN)
        if tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [running.task for running in self._running.by_id.values() if running.task and not running.task.done()]

    async def _claim_some(self) -> bool:
        """True when a full batch came back, so that more may be waiting."""
        free = self._slots - len(self._running)
        if free <= 0:
            return False
        try:
            jobs = await self._source.claim(self._worker_id, free, self._lease_s, self._types)
        except QueueError as error:
            self._metrics.database_up.set(0)
            _log.warning("cannot claim", exc_info=error)
            await asyncio.sleep(_DATABASE_RETRY_S)
            return False
        self._metrics.database_up.set(1)
        for job in jobs:
            self._start(job)
        return len(jobs) == free

    def _start(self, job: ClaimedJob) -> None:
        running = RunningJob(job)
        self._running.add(running)
        self._metrics.pickup_seconds.labels(job.type).observe(max(0.0, job.waited_s))
        running.task = asyncio.create_task(self._run_job(running), name=f"job-{job.id}")

    async def _run_job(self, running: RunningJob) -> None:
        job = running.job
        structlog.contextvars.bind_contextvars(job_id=str(job.id))
        _log.info("job started", type=job.type, attempt=job.attempt, waited_ms=round(1000 * job.waited_s, 1))
        try:
            outcome = await self._executor.execute(
                job, lambda percent, stage: self._progress.report(job.lease, percent, stage)
            )
        except asyncio.CancelledError:
            self._stopped(running)
        else:
            self._outcomes.submit(job.lease, job.type, outcome)
        finally:
            self._progress.forget(job.lease)

    def _stopped(self, running: RunningJob) -> None:
        lease, job_type = running.job.lease, running.job.type
        if running.stop_reason is StopReason.LEASE_LOST:
            self._metrics.leases_lost.inc()
            self._running.remove(lease)
        elif running.stop_reason is StopReason.CANCELLED:
            self._outcomes.submit(lease, job_type, Cancelled())
        else:
            self._outcomes.submit(lease, job_type, Interrupted())
