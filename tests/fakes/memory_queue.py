"""The queue in one dictionary, with a clock that the test owns. Same ports and rules as the one in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from aiworker.analyses.registry import ANALYSES
from aiworker.domain.errors import (
    IdempotencyConflict,
    JobAlreadyFinished,
    JobNotFound,
    TooManyActiveJobs,
    UnknownJobType,
)
from aiworker.domain.job import (
    LEVEL_S,
    ClaimedJob,
    Enqueued,
    JobStatus,
    JobType,
    JobView,
    JsonObject,
    Lease,
    NewJob,
    QueueDepth,
    Renewal,
)
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry

PENDING, PROCESSING = JobStatus.PENDING, JobStatus.PROCESSING
APART_S, FAR_APART_S = 1.0, 10.0
LATE_S = 4.0
EVERY_TYPE = tuple(analysis.job_type for analysis in ANALYSES.values())


@dataclass(eq=False)
class _Row:
    new: NewJob
    created_at: float
    updated_at: float
    due_at: float
    run_after: float
    deadline_at: float
    place: float
    max_attempts: int
    cache_key: str | None = None
    leads: bool | None = None
    follows: bool = False
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
    apart: bool = False
    started_at: float | None = None
    completed_at: float | None = None


@dataclass
class _CacheEntry:
    response: JsonObject
    expires_at: float
    hit_count: int = 0


class MemoryQueue:
    """`JobIntake`, `JobSource` and `WakeUps`. `clock` gives seconds since 1970."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        types: Collection[JobType] = EVERY_TYPE,
        max_active: int = 10,
        max_attempts: int = 3,
    ) -> None:
        self._clock = clock
        self._types = {each.name: each for each in types}
        self._max_active = max_active
        self._max_attempts = max_attempts
        self._rows: dict[UUID, _Row] = {}
        self._cache: dict[str, _CacheEntry] = {}
        self._answers: dict[UUID, dict[str | None, tuple[str, str]]] = {}
        self._paused: set[str] = set()
        self._listeners: list[asyncio.Queue[str]] = []

    async def enqueue(self, job: NewJob) -> Enqueued:
        kind = self._types.get(job.type)
        if kind is None:
            raise UnknownJobType
        if earlier := self._earlier(job):
            body, answer = earlier
            if body != _body(job):
                raise IdempotencyConflict
            return answer
        key = _cache_key(kind, job)
        leader: _Row | None = None
        leads: bool | None = None
        if key is not None and job.use_cache and job.delay_s <= 0:
            leader = next((row for row in self._unfinished() if row.leads and row.cache_key == key), None)
            leads = leader is None
            if leader is None and (hit := self._hit(key)):
                if job.idempotency_key is not None:
                    self._remember(job, key)
                return Enqueued(None, JobStatus.COMPLETED, hit.response)
        row = self._new_row(job, kind, key, leads)
        if leader is not None and leader.status is PENDING:
            leader.place = min(leader.place, row.place)
        self._rows[row.id] = row
        if job.delay_s <= 0:
            self._hint("work")
        return Enqueued(row.id, PENDING)

    def _new_row(self, job: NewJob, kind: JobType, key: str | None, leads: bool | None) -> _Row:
        now = self._clock()
        due = now + job.delay_s
        others = [row for row in self._unfinished() if row.new.user_id == job.user_id]
        if len(others) >= self._max_active and not job.unlimited:
            raise TooManyActiveJobs
        apart = APART_S if len(others) < self._max_active else FAR_APART_S
        waiting = [row for row in others if row.status is PENDING]
        ahead = [row for row in waiting if row.new.priority <= job.priority and row.run_after <= due]
        last = sorted(ahead, key=lambda row: -row.place)[: self._max_active]
        before = [row.place - row.new.priority * LEVEL_S for row in last]
        return _Row(
            job,
            created_at=now,
            updated_at=now,
            due_at=due,
            run_after=due,
            deadline_at=due + kind.slo_s,
            place=max([due, *(place + apart for place in before)]) + job.priority * LEVEL_S,
            max_attempts=job.max_attempts or self._max_attempts,
            cache_key=key,
            leads=leads,
            follows=leads is False,
        )

    def _remember(self, job: NewJob, key: str) -> None:
        """The cache answered: the idempotency key stands for this request all the same."""
        answers = self._answers.setdefault(job.user_id, {})
        answers.pop(job.idempotency_key, None)
        answers[job.idempotency_key] = (_body(job), key)
        while len(answers) > self._max_active:
            del answers[next(iter(answers))]

    def _earlier(self, job: NewJob) -> tuple[str, Enqueued] | None:
        if job.idempotency_key is None:
            return None
        wanted = (job.user_id, job.idempotency_key)
        for row in self._rows.values():
            if (row.new.user_id, row.new.idempotency_key) == wanted:
                return _body(row.new), Enqueued(row.id, row.status)
        body, key = self._answers.get(job.user_id, {}).get(job.idempotency_key, ("", ""))
        entry = self._cache.get(key)
        if entry is None or entry.expires_at <= self._clock():
            return None
        return body, Enqueued(None, JobStatus.COMPLETED, entry.response)

    def _unfinished(self) -> list[_Row]:
        return [row for row in self._rows.values() if not row.status.terminal]

    def _hit(self, key: str) -> _CacheEntry | None:
        entry = self._cache.get(key)
        if entry is None or entry.expires_at <= self._clock():
            return None
        entry.hit_count += 1
        return entry

    async def status(self, job_id: UUID, user_id: UUID | None) -> JobView:
        return _view(self._owned(job_id, user_id))

    async def cancel(self, job_id: UUID, user_id: UUID | None) -> JobView:
        row = self._owned(job_id, user_id)
        if row.status in (JobStatus.COMPLETED, JobStatus.FAILED):
            raise JobAlreadyFinished
        if not row.status.terminal:
            ran = row.status is PROCESSING
            self._end(row, JobStatus.CANCELLED, suspect=row.apart)
            if ran:
                self._hint("cancel")
        return _view(row)

    def _owned(self, job_id: UUID, user_id: UUID | None) -> _Row:
        row = self._rows.get(job_id)
        if row is None or user_id not in (None, row.new.user_id):
            raise JobNotFound
        return row

    async def depth(self) -> QueueDepth:
        now = self._clock()
        unfinished = self._unfinished()
        due = [row for row in unfinished if row.status is PENDING and row.run_after <= now and not row.follows]
        running = [row for row in unfinished if row.status is PROCESSING]
        following = [row for row in unfinished if row.follows]
        types = [row.new.type for row in unfinished]
        return QueueDepth(
            pending=len(due),
            processing=len(running),
            delayed=len(unfinished) - len(due) - len(running) - len(following),
            following=len(following),
            oldest_pending_s=max((now - row.run_after for row in due), default=0.0),
            by_type={name: types.count(name) for name in set(types)},
            paused=tuple(sorted(self._paused)),
        )

    async def pause(self, job_type: str = "*") -> None:
        self._paused.add(job_type)

    async def resume(self, job_type: str = "*") -> None:
        self._paused.discard(job_type)
        self._hint("work")

    async def claim(
        self, worker_id: str, limit: int, lease_s: float, types: Collection[str], suspects: bool = True
    ) -> list[ClaimedJob]:
        now = self._clock()
        wanted = set() if "*" in self._paused else set(types) - self._paused
        due = [
            row
            for row in self._rows.values()
            if row.status is PENDING and row.run_after <= now and not row.follows and row.new.type in wanted
        ]
        apart = [row for row in due if row.apart and suspects]
        others = [row for row in due if not row.apart]
        chosen = sorted(apart or others, key=lambda row: row.place)[: min(1, limit) if apart else max(0, limit)]
        token = uuid4()
        return [self._claimed(row, worker_id, now, lease_s, token) for row in chosen]

    def _claimed(self, row: _Row, worker_id: str, now: float, lease_s: float, token: UUID) -> ClaimedJob:
        row.status, row.attempts, row.token = PROCESSING, row.attempts + 1, token
        row.worker_id, row.started_at, row.updated_at = worker_id, now, now
        row.lease_expires_at, row.progress, row.stage = now + lease_s, 0, None
        return ClaimedJob(
            lease=Lease(row.id, token),
            user_id=row.new.user_id,
            type=row.new.type,
            input=json.dumps(row.new.input),
            attempt=row.attempts,
            max_attempts=row.max_attempts,
            deadline_in_s=row.deadline_at - now,
            waited_s=now - row.run_after,
            apart=row.apart,
        )

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Renewal:
        held = {lease.job_id: row for lease in leases if (row := self._held(lease))}
        for row in held.values():
            row.lease_expires_at = self._clock() + lease_s
        gone = frozenset(lease.job_id for lease in leases) - held.keys()
        cancelled = frozenset(job_id for job_id in gone if self._rows[job_id].status is JobStatus.CANCELLED)
        return Renewal(lost=gone - cancelled, cancelled=cancelled)

    def _held(self, lease: Lease) -> _Row | None:
        row = self._rows.get(lease.job_id)
        return row if row and row.status is PROCESSING and row.token == lease.token else None

    async def report(self, progress: Mapping[Lease, tuple[int, str]]) -> None:
        for lease, (percent, stage) in progress.items():
            if row := self._held(lease):
                row.progress, row.stage, row.updated_at = percent, stage, self._clock()

    async def finalise(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        return frozenset(lease.job_id for lease, outcome in outcomes if not self._finalised(lease, outcome))

    def _finalised(self, lease: Lease, outcome: Outcome) -> bool:
        row = self._held(lease)
        if row is None:
            return False
        if isinstance(outcome, Retry) and row.attempts >= row.max_attempts:
            outcome = Failed(outcome.error, outcome.error_code)
        match outcome:
            case Completed(given, cache_ttl_s):
                result = json.loads(given) if isinstance(given, bytes) else given
                shared = result if row.cache_key is not None and cache_ttl_s else None
                if row.cache_key is not None and cache_ttl_s:
                    self._cache[row.cache_key] = _CacheEntry(result, self._clock() + cache_ttl_s)
                self._end(row, JobStatus.COMPLETED, result=result, shared=shared)
            case Failed(error, error_code):
                self._end(row, JobStatus.FAILED, error=error, error_code=error_code)
            case Retry(delay_s, error, error_code):
                self._put_back(row, delay_s, error, error_code)
                row.apart = False
            case Interrupted():
                row.attempts -= 1
                self._put_back(row)
        return True

    async def rescue(self) -> int:
        now = self._clock()
        expired = [row for row in self._rows.values() if row.status is PROCESSING and row.lease_expires_at < now]
        for row in expired:
            if row.attempts >= row.max_attempts or row.apart:
                code = "attempts_exhausted"
                self._end(row, JobStatus.FAILED, error=sentence(code), error_code=code, suspect=True)
            else:
                self._put_back(row)
                row.apart = row.attempts == row.max_attempts - 1
        for leader in [row for row in self._unfinished() if row.leads]:
            in_first_attempt = leader.status is PROCESSING and leader.attempts == 1
            if (in_first_attempt or leader.error_code is not None) and not leader.apart:
                self._let_late_ones_go(leader, now)
        return len(expired)

    def _let_late_ones_go(self, leader: _Row, now: float) -> None:
        for row in self._followers(leader):
            if row.deadline_at < now + LATE_S:
                row.follows = False
                self._hint("work")

    async def prune(self, keep_s: float, limit: int = 500) -> int:
        now = self._clock()
        old = [r.id for r in self._rows.values() if r.completed_at is not None and r.completed_at < now - keep_s]
        stale = [key for key, entry in self._cache.items() if entry.expires_at < now]
        for job_id in old[:limit]:
            del self._rows[job_id]
        for key in stale[:limit]:
            del self._cache[key]
        return len(old[:limit]) + len(stale[:limit])

    def _put_back(self, row: _Row, delay_s: float = 0.0, error: str | None = None, code: str | None = None) -> None:
        now = self._clock()
        row.status, row.token, row.run_after, row.updated_at = PENDING, None, now + delay_s, now
        row.error, row.error_code, row.worker_id, row.started_at = error, code, None, None
        row.progress, row.stage = 0, None
        self._hint("work")

    def _end(
        self,
        row: _Row,
        status: JobStatus,
        *,
        result: JsonObject | None = None,
        shared: JsonObject | None = None,
        error: str | None = None,
        error_code: str | None = None,
        suspect: bool = False,
    ) -> None:
        row.status, row.result, row.error, row.error_code = status, result, error, error_code
        row.token, row.stage, row.follows = None, None, False
        row.progress = 100 if status is JobStatus.COMPLETED else row.progress
        row.completed_at = row.updated_at = self._clock()
        if row.leads:
            self._pass_on(row, shared, suspect)

    def _pass_on(self, leader: _Row, shared: JsonObject | None, suspect: bool) -> None:
        followers = self._followers(leader)
        if shared is not None:
            waited = [row for row in self._rows.values() if row.leads is False and row.cache_key == leader.cache_key]
            for row in [row for row in waited if row.status is PENDING]:
                self._end(row, JobStatus.COMPLETED, result=shared)
        elif followers:
            heir = max(reversed(followers), key=lambda row: row.deadline_at)
            heir.follows, heir.leads, heir.apart = False, True, suspect
            heir.place = min(row.place for row in followers)
            self._hint("work")

    def _followers(self, leader: _Row) -> list[_Row]:
        return [row for row in self._rows.values() if row.follows and row.cache_key == leader.cache_key]

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

    def rows(self) -> Collection[Any]:
        """Every job that there is."""
        return self._rows.values()

    def cache_hits(self) -> int:
        """How often results were shared by the cache, all in all."""
        return sum(entry.hit_count for entry in self._cache.values())


def _body(job: NewJob) -> str:
    return json.dumps([job.type, job.input], sort_keys=True)


def _cache_key(kind: JobType, job: NewJob) -> str | None:
    if kind.sharing == "never":
        return None
    whose = str(job.user_id) if kind.sharing == "user" else None
    return json.dumps([kind.name, kind.version, whose, _plain(job.input)], sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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
        max_attempts=row.max_attempts,
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
