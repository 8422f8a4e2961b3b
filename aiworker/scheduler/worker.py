"""The parent process's services, started together and stopped in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

from aiworker.analyses.base import Analysis, Tools
from aiworker.analyses.registry import ANALYSES
from aiworker.domain.ports import JobSource, WakeUps
from aiworker.domain.retry import RetryPolicy
from aiworker.scheduler.dispatcher import Dispatcher
from aiworker.scheduler.executor import JobExecutor
from aiworker.scheduler.housekeeping import Housekeeper
from aiworker.scheduler.leases import LeaseKeeper
from aiworker.scheduler.outcomes import OutcomeWriter, ProgressWriter
from aiworker.scheduler.running import RunningJobs
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics
from aiworker.telemetry.traces import Traces

_log = get_logger("aiworker.worker")

# With the database away at shutdown, jobs that could not be written are rescued by another worker.
_LAST_WRITES_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Times in seconds. `retention_s` None keeps jobs that have ended for ever."""

    worker_id: str
    slots: int
    lease_s: float
    poll_s: float
    attempt_timeout_s: float
    drain_timeout_s: float
    cache_ttl_s: float | None
    retention_s: float | None = None


class Worker:
    """Runs jobs until `stop` is set. One service that dies by a bug stops all: half a worker helps nobody."""

    def __init__(
        self,
        source: JobSource,
        wake_ups: WakeUps,
        tools: Tools,
        metrics: Metrics,
        limits: WorkerLimits,
        policy: RetryPolicy | None = None,
        analyses: Mapping[str, Analysis] = ANALYSES,
        traces: Traces | None = None,
    ) -> None:
        self._wake_ups = wake_ups
        self._limits = limits
        self.started_at = time.time()
        self.running = RunningJobs()
        self.leases = LeaseKeeper(
            source, self.running, metrics, lease_s=limits.lease_s, attempt_timeout_s=limits.attempt_timeout_s
        )
        self._outcomes = OutcomeWriter(source, self.running, metrics)
        self._progress = ProgressWriter(source)
        self._housekeeper = (
            Housekeeper(source, metrics, retention_s=limits.retention_s) if limits.retention_s is not None else None
        )
        executor = JobExecutor(
            tools,
            metrics,
            policy=policy or RetryPolicy(),
            attempt_timeout_s=limits.attempt_timeout_s,
            cache_ttl_s=limits.cache_ttl_s,
            analyses=analyses,
            traces=traces,
        )
        self._dispatcher = Dispatcher(
            source,
            executor,
            self._outcomes,
            self._progress,
            self.running,
            metrics,
            worker_id=limits.worker_id,
            slots=limits.slots,
            lease_s=limits.lease_s,
            poll_s=limits.poll_s,
            types=analyses,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Returns when `stop` was set and every job has ended or been put back."""
        async with asyncio.TaskGroup() as services:
            background = [
                services.create_task(self.leases.run(), name="leases"),
                services.create_task(self._progress.run(), name="progress"),
                services.create_task(self._listen(), name="listen"),
            ]
            if self._housekeeper is not None:
                background.append(services.create_task(self._housekeeper.run(), name="housekeeping"))
            writer = services.create_task(self._outcomes.run(), name="outcomes")
            dispatcher = services.create_task(self._dispatcher.run(), name="dispatcher")
            await stop.wait()
            _log.info("stopping", held=len(self.running))
            self._dispatcher.close()
            await dispatcher
            await self._dispatcher.drain(self._limits.drain_timeout_s)
            self._outcomes.close()
            await asyncio.wait([writer], timeout=_LAST_WRITES_S)
            for task in (writer, *background):
                task.cancel()

    async def _listen(self) -> None:
        async with aclosing(self._wake_ups.listen()) as hints:
            async for hint in hints:
                if hint == "cancel":
                    self.leases.look_now()
                else:
                    self._dispatcher.wake.set()
