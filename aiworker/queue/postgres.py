"""The queue in PostgreSQL. Each call is one of the SQL functions in migrations/, and those hold the rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

from aiworker.domain.errors import JobNotFound
from aiworker.domain.job import ClaimedJob, Enqueued, JobView, Lease, NewJob, QueueDepth, Renewal
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Outcome
from aiworker.queue.database import Database
from aiworker.queue.rows import claimed_job, enqueued, job_view, outcome_record, queue_depth

_ENQUEUE = "select * from public.enqueue_analysis($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_STATUS = "select * from public.get_analysis_status($1, $2)"
_CANCEL = "select * from public.cancel_analysis($1, $2)"
_DEPTH = "select * from public.analysis_queue_depth()"
_CLAIM = "select * from public.claim_analyses($1, $2, $3, $4)"
_RENEW = "select * from public.renew_leases($1, $2, $3)"
_REPORT = "select public.report_progress($1, $2, $3, $4)"
_FINALISE = "select * from public.finalise_analyses($1) as id"
_RESCUE = "select public.rescue_expired($1) as rescued"


class PostgresQueue:
    """`JobIntake` and `JobSource`; use it as an async context manager.

    Every call is one round trip within `timeout_s` seconds and raises DatabaseUnavailable when that does not come
    back. Connections are made at the first call and again after every loss. Only PostgreSQL's clock counts.
    """

    def __init__(
        self, database_url: str, *, timeout_s: float = 10.0, application_name: str = "aiworker", connections: int = 4
    ) -> None:
        self._database = Database(
            database_url, timeout_s=timeout_s, application_name=application_name, connections=connections
        )

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    async def enqueue(self, job: NewJob, *, use_cache: bool = True) -> Enqueued:
        """Raises TooManyActiveJobs, IdempotencyConflict, InputRejected for a value that cannot be stored."""
        rows = await self._database.fetch(
            _ENQUEUE,
            job.user_id,
            job.type,
            job.input,
            job.slo_s,
            job.priority,
            job.max_attempts,
            job.cache_key,
            job.idempotency_key,
            job.delay_s,
            job.max_active,
            use_cache,
        )
        return enqueued(rows[0])

    async def status(self, job_id: UUID, user_id: UUID | None) -> JobView:
        """`user_id` None is the service and sees all. Raises JobNotFound."""
        rows = await self._database.fetch(_STATUS, job_id, user_id)
        if not rows:
            raise JobNotFound
        return job_view(rows[0])

    async def cancel(self, job_id: UUID, user_id: UUID | None) -> JobView:
        """Cancelling a cancelled job is fine. Raises JobNotFound, JobAlreadyFinished."""
        rows = await self._database.fetch(_CANCEL, job_id, user_id)
        return job_view(rows[0])

    async def depth(self) -> QueueDepth:
        return queue_depth(await self._database.fetch(_DEPTH))

    async def claim(self, worker_id: str, limit: int, lease_s: float, types: Collection[str]) -> list[ClaimedJob]:
        """At most `limit` due jobs, most urgent first."""
        if limit <= 0 or not types:
            return []
        lease = timedelta(seconds=lease_s)
        return [claimed_job(row) for row in await self._database.fetch(_CLAIM, worker_id, limit, lease, list(types))]

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Renewal:
        if not leases:
            return Renewal()
        rows = await self._database.fetch(_RENEW, *_columns(leases), timedelta(seconds=lease_s))
        return Renewal(
            lost=frozenset(lease.job_id for lease in leases) - {row["id"] for row in rows},
            cancel_requested=frozenset(row["id"] for row in rows if row["cancel_requested"]),
        )

    async def report(self, progress: Mapping[Lease, tuple[int, str]]) -> None:
        if progress:
            percents = [percent for percent, _ in progress.values()]
            stages = [stage for _, stage in progress.values()]
            await self._database.fetch(_REPORT, *_columns(list(progress)), percents, stages)

    async def finalise(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        if not outcomes:
            return frozenset()
        records = [outcome_record(lease, outcome) for lease, outcome in outcomes]
        return frozenset(row["id"] for row in await self._database.fetch(_FINALISE, records))

    async def rescue(self) -> int:
        rows = await self._database.fetch(_RESCUE, sentence("attempts_exhausted"))
        rescued: int = rows[0]["rescued"]
        return rescued


def _columns(leases: Sequence[Lease]) -> tuple[list[UUID], list[UUID]]:
    return [lease.job_id for lease in leases], [lease.token for lease in leases]
