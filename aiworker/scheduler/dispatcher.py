"""Claims no more jobs than there are free slots, runs them, and stops in two steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Sequence

from aiworker.domain.errors import DeadlineExceeded, InputRejected, QueueError
from aiworker.domain.job import ClaimedJob
from aiworker.domain.outcome import Interrupted, Outcome
from aiworker.domain.ports import JobSource
from aiworker.scheduler.executor import JobExecutor
from aiworker.scheduler.outcomes import OutcomeWriter, ProgressWriter
from aiworker.scheduler.running import RunningJob, RunningJobs, StopReason
from aiworker.scheduler.shared_tasks import SharedTasks
from aiworker.scheduler.turns import Turns
from aiworker.telemetry.logs import current_job, get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.dispatcher")

_DATABASE_RETRY_S = 0.5
# More in one statement gains nothing, and while it is under way other slots can work.
_LARGEST_CLAIM = 50


class Dispatcher:
    """One per worker. `wake` is set by notifications and freed slots; they fall back to the poll interval.

    A slot is free as soon as its job has worked. The lease is held until the outcome is written, and no more jobs are
    claimed while more outcomes than there are slots wait for that: a slow database slows the claims down.

    While claims come back full, one is on its way as the jobs of another are begun.
    """

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
        self._tasks = SharedTasks(self._work, self._worked)
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._types = frozenset(types)
        self._closing = False
        # Jobs asked for by claims that are under way.
        self._asked = 0
        self._full = asyncio.Event()
        self._suspect_waits = False
        self._turns = Turns.starting(time.monotonic())
        self.wake = running.stirred
        metrics.active_jobs.set_function(lambda: running.working)

    async def run(self) -> None:
        """Claims and starts jobs until `close`."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._claim_beside())
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

    async def _claim_beside(self) -> None:
        """The second claim. It brings no suspect: whose turn it is, the first one settles."""
        while not self._closing:
            await self._full.wait()
            self._full.clear()
            if (wanted := self._room()) > 0 and not self._closing:
                await self._claim(wanted, suspects=False)
                # The first may have found no room for what this one had asked for, and left a notification unheard.
                self.wake.set()

    def close(self) -> None:
        """No more claims."""
        self._closing = True
        self.wake.set()
        self._full.set()

    async def drain(self, patience_s: float) -> None:
        """Waits for running jobs, then puts the rest back without costing them an attempt."""
        if held := self._running.working:
            try:
                async with asyncio.timeout(patience_s):
                    await self._until_worked()
            except TimeoutError:
                pass
            late = self._running.working
            _log.info("drained", finished=held - late, put_back=late)
        for running in list(self._running.by_id.values()):
            running.stop(StopReason.SHUTDOWN)
        await self._until_worked()

    async def _until_worked(self) -> None:
        while self._running.working:
            self._running.stirred.clear()
            await self._running.stirred.wait()

    async def _claim_some(self) -> bool:
        """True when more may be waiting: a full batch came back, or it is a suspect's turn now."""
        if (wanted := self._room()) <= 0:
            return False
        suspects = self._turns.of_suspects(time.monotonic())
        jobs = await self._claim(wanted, suspects)
        if jobs is None:
            return True
        now = time.monotonic()
        # A suspect comes alone.
        self._turns.claimed(now, suspect=bool(jobs) and jobs[0].apart)
        if not jobs and not suspects:
            self._turns.nobody_else_waits(now)
            return True
        return len(jobs) == wanted

    def _room(self) -> int:
        """How many more jobs may be asked for."""
        if self._running.unwritten > self._slots or self._must_be_alone():
            return 0
        return min(self._slots - self._running.working - self._asked, _LARGEST_CLAIM)

    async def _claim(self, wanted: int, suspects: bool) -> list[ClaimedJob] | None:
        """What there was, begun; None, after a pause, where the database did not say."""
        self._asked += wanted
        try:
            jobs = await self._source.claim(self._worker_id, wanted, self._lease_s, self._types, suspects)
        except (QueueError, InputRejected) as error:
            self._metrics.database_up.set(0)
            _log.warning("cannot claim", exc_info=error)
            await asyncio.sleep(_DATABASE_RETRY_S)
            return None
        finally:
            self._asked -= wanted
        self._metrics.database_up.set(1)
        self._begin(jobs, time.monotonic())
        if len(jobs) == wanted:
            self._full.set()
        return jobs

    def _must_be_alone(self) -> bool:
        """Nothing is begun beside a job that may be what killed a worker, nor it beside others."""
        if not len(self._running) and not self._asked:
            self._suspect_waits = False
        return self._suspect_waits or self._running.apart

    def _begin(self, jobs: Sequence[ClaimedJob], now: float) -> None:
        begun = [RunningJob(job, now) for job in jobs]
        alone = not len(self._running) and not self._asked
        self._running.add(begun)
        if self._running.apart and not alone:
            # Back it goes, free of charge, to whoever is idle first.
            self._suspect_waits = True
            for running in begun:
                self._running.worked()
                self._outcomes.submit(running, Interrupted())
            return
        for job in jobs:
            self._metrics.pickup_seconds.observe(job.waited_s if job.waited_s > 0 else 0.0, job.type)
        self._tasks.begin(begun)

    def _work(self, running: RunningJob) -> Awaitable[Outcome]:
        job = running.job
        current_job.set(job.lease.job_id)
        return self._executor.execute(job, lambda percent, stage: self._progress.report(running, percent, stage))

    def _worked(self, running: RunningJob, outcome: Outcome | None) -> None:
        job = running.job
        if outcome is None:
            outcome = self._outcome_of_stop(running)
        self._progress.forget(running)
        if job.apart:
            self._turns.over(time.monotonic())
        self._running.worked()
        if outcome is not None:
            self._outcomes.submit(running, outcome)
            return
        if running.stop_reason is StopReason.CANCELLED:
            self._metrics.jobs.labels(job.type, StopReason.CANCELLED.value).inc()
        else:
            self._metrics.leases_lost.inc()
        self._running.remove([running])

    def _outcome_of_stop(self, running: RunningJob) -> Outcome | None:
        """None when there is nothing to write, for the lease is gone."""
        match running.stop_reason:
            case StopReason.LEASE_LOST | StopReason.CANCELLED:
                return None
            case StopReason.STUCK:
                return self._executor.failed(running.job, DeadlineExceeded("the attempt lasted too long"))
            case _:
                return Interrupted()
