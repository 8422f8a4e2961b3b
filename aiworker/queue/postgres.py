"""The queue in PostgreSQL. Each call is one of the SQL functions in migrations/, and those hold the rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from asyncpg.pgproto import pgproto

from aiworker.domain.errors import DatabaseUnavailable, JobNotFound
from aiworker.domain.job import ClaimedJob, Enqueued, JobType, JobView, Lease, NewJob, QueueDepth, Renewal
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Outcome
from aiworker.queue.connect import Connector, Pooler
from aiworker.queue.database import Database
from aiworker.queue.errors import translated
from aiworker.queue.looks import Floors, Walks
from aiworker.queue.rows import (
    claimed_jobs,
    enqueued,
    in_lock_order,
    job_view,
    lease_columns,
    number_literal,
    outcome_columns,
    queue_depth,
)

_ENQUEUE = "select * from public.enqueue_analysis($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_STATUS = "select * from public.get_analysis_status($1, $2)"
_CANCEL = "select * from public.cancel_analysis($1, $2)"
_DEPTH = "select * from public.analysis_queue_depth()"
_MIGRATED = "select to_regprocedure('public.analysis_queue_depth()') is not null as migrated"
CLAIM = """
select id, user_id, type, input::text, attempts, max_attempts, deadline_in_s, waited_s, apart, place_s, looked_at_s
  from public.claim_analyses($1, $2, $3, $4, $5, $6::text::float8[], $7)"""
_RENEW = "select * from public.renew_leases($1::text::uuid[], $2::text::uuid[], $3)"
_REPORT = "select public.report_progress($1::text::uuid[], $2::text::uuid[], $3, $4)"
FINALISE = """
select public.finalise_analyses(
         $1::text::uuid[], $2::text::uuid[], $3,
         case when $4::jsonb is not null then array(select jsonb_array_elements($4)) end,
         $5, $6, $7, $8, $9) as lost"""
# How long the server worked on it: the way there and back is no reason to look at everything less often.
_RESCUE = """
select rescued, earliest_s, date_part('epoch', clock_timestamp() - statement_timestamp()) as took_s
  from public.rescue_expired($1, $2, $3)"""
_CONFIGURE = "select public.configure_analyses($1, $2, $3)"
_PAUSE = "select public.pause_analyses($1)"
_RESUME = "select public.resume_analyses($1)"
_PRUNE = "select public.prune_analyses($1, $2) as pruned"
_ADD_SPEND = "select public.add_spend($1, $2, $3) as usd"

ALL_TYPES = "*"
"""Stands for every type where one is paused or resumed."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What a process tells the queue before it first uses it: the types that it serves, how many unfinished jobs a
    user may have, and how often a job is tried. The last to say so is right."""

    types: tuple[JobType, ...]
    max_active: int = 10
    max_attempts: int = 3


class PostgresQueue:
    """`JobIntake` and `JobSource`; use it as an async context manager.

    Every call is one round trip within `timeout_s` seconds and raises DatabaseUnavailable when that does not come
    back. Connections are made at the first call and again after every loss. Only PostgreSQL's clock counts.
    """

    def __init__(
        self,
        database_url: str,
        rules: QueueRules | None = None,
        *,
        timeout_s: float = 10.0,
        application_name: str = "aiworker",
        connections: int = 7,
        pooler: Pooler = "auto",
    ) -> None:
        connector = Connector(database_url, timeout_s=timeout_s, application_name=application_name, pooler=pooler)
        self._database = Database(connector, timeout_s=timeout_s, connections=connections)
        self._floors = Floors()
        self._walks = Walks()
        self._untold = rules
        self._versions: dict[str, str] | None = None
        self._timeout_s = timeout_s
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    async def configure(self, rules: QueueRules) -> None:
        """Types that `rules` does not name stay as they are: another release may still serve them."""
        types = [
            {"type": each.name, "version": each.version, "slo_s": each.slo_s, "sharing": each.sharing}
            for each in rules.types
        ]
        await self._database.fetch(_CONFIGURE, types, rules.max_active, rules.max_attempts)
        self._untold = None
        self._versions = {each.name: each.version for each in rules.types}

    async def _tell(self) -> None:
        # At the first use and not when it is opened, for the database may not be there yet.
        if (rules := self._untold) is not None:
            await self.configure(rules)

    async def enqueue(self, job: NewJob) -> Enqueued:
        """Raises TooManyActiveJobs, IdempotencyConflict, UnknownJobType, InputRejected for what cannot be stored.

        A user's jobs are enqueued one after the other; one that waits `timeout_s` for that raises DatabaseUnavailable.
        """
        await self._tell()
        if job.unlimited and job.idempotency_key is None:
            return await self._enqueue(job)
        # The database takes one of a user's at a time: those that wait for it must not hold every connection meanwhile.
        turn = self._turns.setdefault(job.user_id, asyncio.Lock())
        with translated():
            async with asyncio.timeout(self._timeout_s):
                await turn.acquire()
        try:
            return await self._enqueue(job)
        finally:
            turn.release()

    async def _enqueue(self, job: NewJob) -> Enqueued:
        rows = await self._database.fetch(
            _ENQUEUE,
            job.type,
            job.input,
            job.user_id,
            job.priority,
            job.idempotency_key,
            job.delay_s,
            job.use_cache,
            job.max_attempts,
            job.unlimited,
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

    async def ping(self) -> None:
        """Raises DatabaseUnavailable, also where our functions are not in the database."""
        # As a value and not as an error: whether they are there is no reason to doubt the address.
        if not (await self._database.fetch(_MIGRATED))[0]["migrated"]:
            raise DatabaseUnavailable("the database lacks tables or functions: run `aiworker migrate`")

    async def depth(self) -> QueueDepth:
        return queue_depth(await self._database.fetch(_DEPTH))

    async def claim(
        self, worker_id: str, limit: int, lease_s: float, types: Collection[str], suspects: bool = True
    ) -> list[ClaimedJob]:
        """At most `limit` due jobs, most urgent first, or one suspect. One token fences all of them, since no job is in
        it twice."""
        if limit <= 0 or not types:
            return []
        await self._tell()
        # asyncpg's own, for it writes and reads Python's more slowly.
        token = pgproto.UUID(uuid4().bytes)
        lease = timedelta(seconds=lease_s)
        known = self._floors
        floors = None if known.places is None else number_literal(known.places)
        try:
            rows = await self._database.fetch(CLAIM, worker_id, limit, lease, list(types), token, floors, suspects)
        except BaseException:
            # A claim beside this one passed over the rows that it held, and may say so later.
            self._floors = Floors()
            raise
        jobs = claimed_jobs(rows, token)
        if rows and (looked_at_s := rows[0]["looked_at_s"]) is not None:
            last_place = max([row["place_s"] for row in rows]) if len(jobs) == limit else None
            known.looked(looked_at_s, last_place)
        return jobs

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Renewal:
        if not leases:
            return Renewal()
        columns = lease_columns(in_lock_order(leases))
        # A connection that has gone silent is given up while there is time to ask once more over another one.
        rows = await self._database.fetch(_RENEW, *columns, timedelta(seconds=lease_s), within_s=lease_s / 2)
        return Renewal(
            lost=frozenset(lease.job_id for lease in leases) - {row["id"] for row in rows},
            cancelled=frozenset(row["id"] for row in rows if row["cancelled"]),
        )

    async def report(self, progress: Mapping[Lease, tuple[int, str]]) -> None:
        if progress:
            leases = in_lock_order(progress)
            percents = [progress[lease][0] for lease in leases]
            stages = [progress[lease][1] for lease in leases]
            await self._database.fetch(_REPORT, *lease_columns(leases), percents, stages)

    async def finalise(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        """Answers the ids whose lease was gone."""
        if not outcomes:
            return frozenset()
        rows = await self._database.fetch(FINALISE, *outcome_columns(outcomes), self._versions)
        return frozenset(row["lost"] for row in rows)

    async def rescue(self) -> int:
        since = self._walks.since(time.monotonic())
        [row] = await self._database.fetch(_RESCUE, sentence("attempts_exhausted"), since, self._floors.places)
        ended = time.monotonic()
        self._walks.walked(since, ended - row["took_s"], ended, row["earliest_s"])
        rescued: int = row["rescued"]
        return rescued

    async def pause(self, job_type: str = ALL_TYPES) -> None:
        """Hands out no more jobs of this type; those that run go on."""
        await self._database.fetch(_PAUSE, job_type)

    async def resume(self, job_type: str = ALL_TYPES) -> None:
        """Takes one pause back; a type stays paused while all are."""
        await self._database.fetch(_RESUME, job_type)

    async def prune(self, keep_s: float, limit: int = 500) -> int:
        """Removes jobs that ended longer than `keep_s` ago and expired cache entries, at most `limit` of each."""
        rows = await self._database.fetch(_PRUNE, timedelta(seconds=keep_s), limit)
        pruned: int = rows[0]["pruned"]
        return pruned

    async def add_spend(self, day: date, provider: str, usd: float) -> float:
        """Adds to what `provider` has cost on `day`, as it counts days, and answers the sum, in dollars."""
        rows = await self._database.fetch(_ADD_SPEND, day, provider, usd)
        total: float = rows[0]["usd"]
        return total
