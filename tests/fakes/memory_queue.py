"""The queue in one dictionary, with a clock that the test owns. Same ports and rules as the one in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid4

from aiworker.domain.errors import IdempotencyConflict, JobAlreadyFinished, JobNotFound, TooManyActiveJobs
from aiworker.domain.job import (
    ClaimedJob,
    Enqueued,
    JobStatus,
    JobView,
    JsonObject,
    Lease,
    NewJob,
    QueueDepth,
    Renewal,
)
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Cancelled, Completed, Failed, Interrupted, Outcome, Retry

PENDING, PROCESSING = JobStatus.PENDING, JobStatus.PROCESSING
LEVEL_S = 10.0


@dataclass
class _Row:
    new: NewJob
    created_at: float
    updated_at: float
    due_at: float
    run_after: float
    id: UUID = field(default_factory=uuid4)
    status: JobStatus = PENDING
    attempts: int = 0
    progress: int = 0
    stage: str | None = None
    result: JsonObject | None = None
    error: str | None = None
    error_code: str | None = None
    worker_id: str | None = None
    token: UUID | None = None
    lease_expires_at: float = 0.0
    cancel_requested: bool = False
    started_at: float | None = None
    completed_at: float | None = None

    @property
    def order_key(self) -> float:
        return self.due_at + self.new.priority * LEVEL_S


@dataclass
class _CacheEntry:
    type: str
    response: JsonObject
    expires_at: float
    hit_count: int = 0


class MemoryQueue:
    """`JobIntake`, `JobSource` and `WakeUps`. `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: dict[UUID, _Row] = {}
        self._cache: dict[str, _CacheEntry] = {}
        self._listeners: list[asyncio.Queue[str]] = []

    async def enqueue(self, job: NewJob, *, use_cache: bool = True) -> Enqueued:
        now = self._clock()
        if earlier := self._earlier(job):
            if _body(earlier.new) != _body(job):
                raise IdempotencyConflict
            return Enqueued(earlier.id, earlier.status)
        entry = self._cache.get(job.cache_key or "")
        if use_cache and entry and entry.type == job.type and entry.expires_at > now:
            entry.hit_count += 1
            return Enqueued(None, JobStatus.COMPLETED, entry.response)
        active = [r for r in self._rows.values() if r.new.user_id == job.user_id and not r.status.terminal]
        if job.max_active is not None and len(active) >= job.max_active:
            raise TooManyActiveJobs
        due = now + job.delay_s
        row = _Row(job, created_at=now, updated_at=now, due_at=due, run_after=due)
        self._rows[row.id] = row
        if job.delay_s <= 0:
            self._hint("work")
        return Enqueued(row.id, PENDING)

    def _earlier(self, job: NewJob) -> _Row | None:
        if job.idempotency_key is None:
            return None
        wanted = (job.user_id, job.idempotency_key)
        return next((r for r in self._rows.values() if (r.new.user_id, r.new.idempotency_key) == wanted), None)

    async def status(self, job_id: UUID, user_id: UUID | None) -> JobView:
        return _view(self._owned(job_id, user_id))

    async def cancel(self, job_id: UUID, user_id: UUID | None) -> JobView:
        row = self._owned(job_id, user_id)
        if row.status in (JobStatus.COMPLETED, JobStatus.FAILED):
            raise JobAlreadyFinished
        if row.status is PENDING:
            self._end(row, JobStatus.CANCELLED)
        elif row.status is PROCESSING and not row.cancel_requested:
            row.cancel_requested = True
            self._hint("cancel")
        return _view(row)

    def _owned(self, job_id: UUID, user_id: UUID | None) -> _Row:
        row = self._rows.get(job_id)
        if row is None or user_id not in (None, row.new.user_id):
            raise JobNotFound
        return row

    async def depth(self) -> QueueDepth:
        now = self._clock()
        unfinished = [row for row in self._rows.values() if not row.status.terminal]
        due = [row for row in unfinished if row.status is PENDING and row.run_after <= now]
        running = [row for row in unfinished if row.status is PROCESSING]
        types = [row.new.type for row in unfinished]
        return QueueDepth(
            pending=len(due),
            processing=len(running),
            delayed=len(unfinished) - len(due) - len(running),
            oldest_pending_s=max((now - row.run_after for row in due), default=0.0),
            by_type={name: types.count(name) for name in set(types)},
        )

    async def claim(self, worker_id: str, limit: int, lease_s: float, types: Collection[str]) -> list[ClaimedJob]:
        now = self._clock()
        due = [r for r in self._rows.values() if r.status is PENDING and r.run_after <= now and r.new.type in types]
        chosen = sorted(due, key=lambda row: row.order_key)[: max(0, limit)]
        return [self._claimed(row, worker_id, now, lease_s) for row in chosen]

    def _claimed(self, row: _Row, worker_id: str, now: float, lease_s: float) -> ClaimedJob:
        row.status, row.attempts, row.token = PROCESSING, row.attempts + 1, uuid4()
        row.worker_id, row.started_at, row.updated_at = worker_id, now, now
        row.lease_expires_at, row.progress, row.stage = now + lease_s, 0, None
        return ClaimedJob(
            lease=Lease(row.id, row.token),
            user_id=row.new.user_id,
            type=row.new.type,
            input=row.new.input,
            attempt=row.attempts,
            max_attempts=row.new.max_attempts,
            deadline_in_s=row.due_at + row.new.slo_s - now,
            waited_s=now - row.run_after,
            cache_key=row.new.cache_key,
        )

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Renewal:
        held = {lease.job_id: row for lease in leases if (row := self._held(lease))}
        for row in held.values():
            row.lease_expires_at = self._clock() + lease_s
        return Renewal(
            lost=frozenset(lease.job_id for lease in leases) - held.keys(),
            cancel_requested=frozenset(job_id for job_id, row in held.items() if row.cancel_requested),
        )

    def _held(self, lease: Lease) -> _Row | None:
        row = self._rows.get(lease.job_id)
        return row if row and row.status is PROCESSING and row.token == lease.token else None

    async def report(self, progress: Mapping[Lease, tuple[int, str]]) -> None:
        for lease, (percent, stage) in progress.items():
            if row := self._held(lease):
                row.progress, row.stage, row.updated_at = percent, stage, self._clock()

    async def finalise(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        return frozenset(row.id for lease, outcome in outcomes if (row := self._finalised(lease, outcome)))

    def _finalised(self, lease: Lease, outcome: Outcome) -> _Row | None:
        row = self._held(lease)
        if row is None:
            return None
        if row.cancel_requested:
            outcome = Cancelled()
        elif isinstance(outcome, Retry) and row.attempts >= row.new.max_attempts:
            outcome = Failed(outcome.error, outcome.error_code)
        match outcome:
            case Completed(result, cache_ttl_s):
                self._end(row, JobStatus.COMPLETED, result=result)
                self._remember(row, result, cache_ttl_s)
            case Failed(error, error_code):
                self._end(row, JobStatus.FAILED, error=error, error_code=error_code)
            case Cancelled():
                self._end(row, JobStatus.CANCELLED)
            case Retry(delay_s, error, error_code):
                self._put_back(row, delay_s, error, error_code)
            case Interrupted():
                row.attempts -= 1
                self._put_back(row)
                self._hint("work")
        return row

    def _remember(self, row: _Row, result: JsonObject, ttl_s: float | None) -> None:
        if row.new.cache_key is not None and ttl_s:
            self._cache[row.new.cache_key] = _CacheEntry(row.new.type, result, self._clock() + ttl_s)

    async def rescue(self) -> int:
        now = self._clock()
        expired = [row for row in self._rows.values() if row.status is PROCESSING and row.lease_expires_at < now]
        for row in expired:
            if row.cancel_requested:
                self._end(row, JobStatus.CANCELLED)
            elif row.attempts >= row.new.max_attempts:
                code = "attempts_exhausted"
                self._end(row, JobStatus.FAILED, error=sentence(code), error_code=code)
            else:
                self._put_back(row)
                self._hint("work")
        return len(expired)

    def _put_back(self, row: _Row, delay_s: float = 0.0, error: str | None = None, code: str | None = None) -> None:
        now = self._clock()
        row.status, row.token, row.run_after, row.updated_at = PENDING, None, now + delay_s, now
        row.error, row.error_code, row.worker_id, row.started_at = error, code, None, None
        row.progress, row.stage = 0, None

    def _end(
        self,
        row: _Row,
        status: JobStatus,
        *,
        result: JsonObject | None = None,
        error: str | None = None,
        error_code: str | None = None,
    ) -> None:
        row.status, row.result, row.error, row.error_code = status, result, error, error_code
        row.token, row.stage = None, None
        row.progress = 100 if status is JobStatus.COMPLETED else row.progress
        row.completed_at = row.updated_at = self._clock()

    def _hint(self, hint: str) -> None:
        for listener in self._listeners:
            listener.put_nowait(hint)

    async def listen(self) -> AsyncGenerator[str, None]:
        hints: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.append(hints)
        try:
            yield "work"
            yield "cancel"
            while True:
                yield await hints.get()
        finally:
            self._listeners.remove(hints)

    def hits(self, cache_key: str) -> int:
        """How often this result was shared."""
        return self._cache[cache_key].hit_count


def _body(job: NewJob) -> str:
    return json.dumps([job.type, job.input], sort_keys=True)


def _view(row: _Row) -> JobView:
    spent = None
    if row.completed_at is not None and row.started_at is not None:
        spent = int((row.completed_at - row.started_at) * 1000)
    return JobView(
        id=row.id,
        user_id=row.new.user_id,
        type=row.new.type,
        status=row.status,
        priority=row.new.priority,
        attempts=row.attempts,
        max_attempts=row.new.max_attempts,
        created_at=_moment(row.created_at),
        updated_at=_moment(row.updated_at),
        started_at=None if row.started_at is None else _moment(row.started_at),
        completed_at=None if row.completed_at is None else _moment(row.completed_at),
        progress=row.progress,
        stage=row.stage,
        result=row.result,
        error=row.error,
        error_code=row.error_code,
        processing_time_ms=spent,
        worker_id=row.worker_id,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
