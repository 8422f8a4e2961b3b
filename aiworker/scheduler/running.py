"""The jobs that this worker holds, shared by the services that start, renew and report them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from aiworker.domain.job import ClaimedJob, Lease


class StopReason(Enum):
    """Why a running job was told to stop."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class RunningJob:
    """`task` and `stop_reason` are written by `stop` and the dispatcher only."""

    job: ClaimedJob
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
    """Held leases by job id. The dispatcher adds; a job leaves when its outcome has been written or given up."""

    by_id: dict[UUID, RunningJob] = field(default_factory=dict)
    slot_freed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, running: RunningJob) -> None:
        self.by_id[running.job.id] = running

    def remove(self, lease: Lease) -> None:
        """Forgets the job, unless another attempt of it has begun here meanwhile."""
        held = self.by_id.get(lease.job_id)
        if held is not None and held.job.lease == lease:
            del self.by_id[lease.job_id]
            self.slot_freed.set()

    def leases(self) -> list[Lease]:
        return [running.job.lease for running in self.by_id.values()]

    def __len__(self) -> int:
        return len(self.by_id)
