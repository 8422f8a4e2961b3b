"""The jobs that this worker holds, shared by the services that start, renew and report them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
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
    """`task` and `stop_reason` are written by `stop` and the dispatcher only; `began` is of `time.monotonic()`."""

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

    def add(self, running: RunningJob) -> None:
        self.by_id[running.job.lease.job_id] = running
        self.working += 1

    def worked(self) -> None:
        """One of them is done working; its lease is held until the outcome is written."""
        self.working -= 1
        self.stirred.set()

    def remove(self, jobs: Iterable[RunningJob]) -> None:
        """Forgets them, but for those of which another attempt has begun here meanwhile."""
        by_id = self.by_id
        for running in jobs:
            job_id = running.job.lease.job_id
            if by_id.get(job_id) is running:
                del by_id[job_id]
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
        return any(running.job.apart for running in self.by_id.values())

    def __len__(self) -> int:
        return len(self.by_id)
