"""What a job is: one row of `analysis_jobs`, as the two sides of the queue see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

JsonObject = Mapping[str, Any]


class JobStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for. `slo_s` sets the deadline; `cache_key` None means never share the result."""

    user_id: UUID
    type: str
    input: JsonObject
    slo_s: float
    priority: int = 5
    max_attempts: int = 3
    cache_key: str | None = None
    idempotency_key: str | None = None
    delay_s: float = 0.0
    max_active: int | None = 10


@dataclass(frozen=True, slots=True)
class Enqueued:
    """`cached_result` is set, and `job_id` None, when the cache had the answer."""

    job_id: UUID | None
    status: JobStatus
    cached_result: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to finish one attempt of one job. Every write carries both."""

    job_id: UUID
    token: UUID


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """One attempt. `attempt` counts from 1; `deadline_in_s` may be negative for a job that is already late."""

    lease: Lease
    user_id: UUID
    type: str
    input: JsonObject
    attempt: int
    max_attempts: int
    deadline_in_s: float
    waited_s: float
    cache_key: str | None = None

    @property
    def id(self) -> UUID:
        return self.lease.job_id


@dataclass(frozen=True, slots=True)
class JobView:
    """What a client may see of a job."""

    id: UUID
    user_id: UUID
    type: str
    status: JobStatus
    priority: int
    attempts: int
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    progress: int = 0
    stage: str | None = None
    result: JsonObject | None = None
    error: str | None = None
    error_code: str | None = None
    processing_time_ms: int | None = None
    worker_id: str | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The parent's answer from the queue: leases that are gone, and jobs whose user wants them stopped."""

    lost: frozenset[UUID] = frozenset()
    cancel_requested: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Unfinished rows only. `oldest_pending_s` is the age of the oldest job that could run now."""

    pending: int = 0
    processing: int = 0
    delayed: int = 0
    oldest_pending_s: float = 0.0
    by_type: Mapping[str, int] = field(default_factory=dict)
