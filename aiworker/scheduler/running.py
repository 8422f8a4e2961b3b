"""The jobs that this worker holds, shared by the services that start, renew and report them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from aiworker.domain.job import ClaimedJob, Lease


class StopReason(Enum):
    """Why a running job was told to stop."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"
    STUCK = "stuck"


@dataclass(slots=True, eq=False)
class RunningJob:
    """`task` is set while it works, `stop_reason` by `stop` only; `began` is of `time.monotonic()`."""

    job: ClaimedJob
    began: float
    task: asyncio.Task[None] | None = None
    stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Cancels the work once; the first reason stands."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self.task is not None:
                self.task.cancel(reason.value)


@dataclass(slots=True)
class RunningJobs:
    """Held leases by job id: of jobs that work, and of those that have worked and wait to be written.

    The dispatcher adds; a job leaves when its outcome has been written or given up. `stirred` is set whenever there may
    be room for another one.
    """

    by_id: dict[UUID, RunningJob] = field(default_factory=dict)
    working: int = 0
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    _suspects: set[RunningJob] = field(default_factory=set)

    def add(self, begun: Collection[RunningJob]) -> None:
        """An older attempt of one of them, whose lease is gone without that anybody has told us, is stopped."""
        by_id = self.by_id
        for running in begun:
            job_id = running.job.lease.job_id
            if (older := by_id.get(job_id)) is not None:
                older.stop(StopReason.LEASE_LOST)
            by_id[job_id] = running
            if running.job.apart:
                self._suspects.add(running)
        self.working += len(begun)

    def worked(self) -> None:
        """One of them is done working; its lease is held until the outcome is written."""
        self.working -= 1
        self.stirred.set()

    def remove(self, jobs: Collection[RunningJob]) -> None:
        """Forgets them, but for those of which another attempt has begun here meanwhile."""
        by_id = self.by_id
        for running in jobs:
            job_id = running.job.lease.job_id
            if by_id.get(job_id) is running:
                del by_id[job_id]
        self._suspects.difference_update(jobs)
        self.stirred.set()

    def leases(self) -> list[Lease]:
        return [running.job.lease for running in self.by_id.values()]

    @property
    def unwritten(self) -> int:
        """Jobs that have worked and are not written yet."""
        return len(self.by_id) - self.working

    @property
    def apart(self) -> bool:
        """One of them may be what killed a worker."""
        return bool(self._suspects)

    def __len__(self) -> int:
        return len(self.by_id)
