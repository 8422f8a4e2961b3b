"""What a job is: one row of `analysis_jobs`, as the two sides of the queue see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID

JsonObject = Mapping[str, Any]


PRIORITIES = range(1, 11)
"""Most urgent first."""

LEVEL_S = 10.0
"""What a level of priority is worth, in seconds of waiting."""


class JobStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


Sharing = Literal["never", "user", "everyone"]
"""Who may be given the result of an identical request: nobody; its own user, where it reads personal context; all."""


@dataclass(frozen=True, slots=True)
class JobType:
    """What a type of job asks of the queue. `version` is part of what makes two requests the same; a job's deadline is
    `slo_s` seconds after it is due."""

    name: str
    version: str
    slo_s: float
    sharing: Sharing


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for. `unlimited` leaves the limit of active jobs out; None attempts are the queue's own."""

    user_id: UUID
    type: str
    input: JsonObject
    priority: int = 5
    idempotency_key: str | None = None
    delay_s: float = 0.0
    use_cache: bool = True
    unlimited: bool = False
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """`cached_result` is set, and `job_id` None, when the cache had the answer."""

    job_id: UUID | None
    status: JobStatus
    cached_result: JsonObject | None = None


class Lease(NamedTuple):
    """The right to finish one attempt of one job. Every write carries both. In order of the job's id."""

    job_id: UUID
    token: UUID


class ClaimedJob(NamedTuple):
    """One attempt. `input` is JSON; `attempt` counts from 1; `deadline_in_s` may be negative for a job that is already
    late.

    `apart` marks a suspect: a worker fell silent over it before, or over the identical job that it waited for. Nothing
    else is taken beside it, and if this worker falls silent too it has failed.
    """

    lease: Lease
    user_id: UUID
    type: str
    input: str
    attempt: int
    max_attempts: int
    deadline_in_s: float
    waited_s: float
    apart: bool = False

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
    """The parent's answer from the queue: leases that are gone, and those that a cancel has ended."""

    lost: frozenset[UUID] = frozenset()
    cancelled: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Unfinished rows only. `following` wait for the result of an identical job, `oldest_pending_s` is the age of the
    oldest job that could run now, and `paused` are types that are not handed out ("*" is all)."""

    pending: int = 0
    processing: int = 0
    delayed: int = 0
    following: int = 0
    oldest_pending_s: float = 0.0
    by_type: Mapping[str, int] = field(default_factory=dict)
    paused: tuple[str, ...] = ()
