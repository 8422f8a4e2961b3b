"""Two transactions at the same rows: one is held open, the other must come out right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fakes.queue_bench import LEASE_S, RULES, SHARED
from fakes.queue_bench import TEXT as TYPE

from aiworker.domain.errors import TooManyActiveJobs
from aiworker.domain.job import ClaimedJob, JobStatus, JobType, NewJob
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.postgres import PostgresQueue, QueueRules


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[PostgresQueue]:
    async with PostgresQueue(database_url, RULES, timeout_s=20) as queue:
        await queue.configure(RULES)
        yield queue


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Any]:
    """A connection that opens transactions by hand."""
    connection = await asyncpg.connect(database_url, timeout=10)
    yield connection
    await connection.close()


def new_job(**changes: Any) -> NewJob:
    return NewJob(**({"user_id": uuid4(), "type": TYPE, "input": {}} | changes))


async def running(queue: PostgresQueue, count: int) -> list[ClaimedJob]:
    for _ in range(count):
        await queue.enqueue(new_job())
    return await queue.claim("w", count, LEASE_S, [TYPE])


async def until_blocked(connection: Any) -> None:
    """Returns when another session waits for a lock that this one's transaction holds."""
    async with asyncio.timeout(20):
        while not await connection.fetchval(
            "select exists (select from pg_locks where not granted and pg_backend_pid() = any (pg_blocking_pids(pid)))"
        ):
            await asyncio.sleep(0.01)


async def until_asleep(connection: Any) -> None:
    """Returns when another session waits a little before it looks again."""
    async with asyncio.timeout(20):
        while not await connection.fetchval(
            "select exists (select from pg_stat_activity where wait_event = 'PgSleep')"
        ):
            await asyncio.sleep(0.001)


async def test_a_claim_passes_by_rows_that_an_open_claim_holds(queue: PostgresQueue, other: Any) -> None:
    for _ in range(4):
        await queue.enqueue(new_job())
    async with other.transaction():
        held = {row["id"] for row in await other.fetch("select id from claim_analyses('a', 3, '6 s', $1)", [TYPE])}
        taken = {job.id for job in await queue.claim("b", 10, LEASE_S, [TYPE])}

    assert len(held) == 3
    assert len(taken) == 1
    assert not held & taken


async def test_a_claim_holds_only_what_it_takes(queue: PostgresQueue, other: Any) -> None:
    """Of other priorities too: a job that one claim holds and leaves would start nowhere, though workers are idle."""
    for priority in (1, 5, 9):
        await queue.enqueue(new_job(priority=priority))
    async with other.transaction():
        [held] = await other.fetch("select id from claim_analyses('a', 1, '6 s', $1)", [TYPE])
        taken = {job.id for job in await queue.claim("b", 10, LEASE_S, [TYPE])}

    assert len(taken) == 2
    assert held["id"] not in taken


async def test_however_many_heads_are_held_what_stands_behind_them_is_taken(queue: PostgresQueue, other: Any) -> None:
    for _ in range(40):
        await queue.enqueue(new_job())
    async with other.transaction():
        held = {row["id"] for row in await other.fetch("select id from claim_analyses('a', 37, '6 s', $1)", [TYPE])}
        taken = {job.id for job in await queue.claim("b", 2, LEASE_S, [TYPE])}

    assert (len(held), len(taken)) == (37, 2)
    assert not held & taken


@pytest.mark.parametrize(
    "outcome", [Completed({}, 60), Failed("bad", "image_unreadable"), Retry(0, "x", "y"), Interrupted()]
)
async def test_an_outcome_that_waited_for_a_cancel_is_refused(
    queue: PostgresQueue, other: Any, outcome: Outcome
) -> None:
    [job] = await running(queue, 1)
    async with other.transaction():
        await other.execute("select cancel_analysis($1)", job.id)
        finalising = asyncio.create_task(queue.finalise([(job.lease, outcome)]))
        await until_blocked(other)

    assert await finalising == {job.id}
    assert (await queue.status(job.id, None)).status is JobStatus.CANCELLED


async def test_an_outcome_that_waited_for_a_rescue_is_refused(queue: PostgresQueue, other: Any) -> None:
    [job] = await running(queue, 1)
    await other.execute("update analysis_jobs set lease_expires_at = now() - interval '1 s'")
    async with other.transaction():
        assert await other.fetchval("select rescued from rescue_expired()") == 1
        finalising = asyncio.create_task(queue.finalise([(job.lease, Completed({}))]))
        await until_blocked(other)

    assert await finalising == {job.id}
    assert (await queue.status(job.id, None)).status is JobStatus.PENDING


async def test_the_limit_counts_a_job_whose_transaction_was_still_open(queue: PostgresQueue, other: Any) -> None:
    user = uuid4()
    for _ in range(RULES.max_active - 1):
        await queue.enqueue(new_job(user_id=user))
    async with other.transaction():
        await other.execute("select enqueue_analysis($1, '{}', $2)", TYPE, user)
        second = asyncio.create_task(queue.enqueue(new_job(user_id=user)))
        await until_blocked(other)
        # Another user does not wait.
        assert (await queue.enqueue(new_job())).job_id is not None

    with pytest.raises(TooManyActiveJobs):
        await second


async def test_who_waits_for_himself_takes_no_connection_from_others(database_url: str, other: Any) -> None:
    user = uuid4()
    async with PostgresQueue(database_url, RULES, timeout_s=20, connections=2) as queue:
        await queue.configure(RULES)
        async with other.transaction():
            await other.execute("select enqueue_analysis($1, '{}', $2)", TYPE, user)
            waiting = [asyncio.create_task(queue.enqueue(new_job(user_id=user))) for _ in range(4)]
            await until_blocked(other)
            assert (await queue.enqueue(new_job())).job_id is not None

        assert all(each.job_id for each in await asyncio.gather(*waiting))


async def test_what_an_old_release_finds_is_not_shared_as_the_new_ones(queue: PostgresQueue, database_url: str) -> None:
    newer = QueueRules((JobType(SHARED, "2", slo_s=20.0, sharing="everyone"),))
    async with PostgresQueue(database_url, newer) as new_release:
        first, second = [await new_release.enqueue(new_job(type=SHARED)) for _ in range(2)]
        [by_old] = await queue.claim("old", 9, LEASE_S, [SHARED])
        assert await queue.finalise([(by_old.lease, Completed({"by": "old"}, 60))]) == frozenset()
        assert (await new_release.status(by_old.id, None)).result == {"by": "old"}

        [by_new] = await new_release.claim("new", 9, LEASE_S, [SHARED])
        assert {by_old.id, by_new.id} == {first.job_id, second.job_id}
        assert await new_release.finalise([(by_new.lease, Completed({"by": "new"}, 60))]) == frozenset()
        assert (await new_release.enqueue(new_job(type=SHARED))).cached_result == {"by": "new"}


class TestSingleFlight:
    """An identical request while the first one's end, or beginning, is not committed yet."""

    @pytest.mark.parametrize("ttl_s", [60, None], ids=["shared", "degraded"])
    async def test_who_asks_while_the_first_ends(self, queue: PostgresQueue, other: Any, ttl_s: float | None) -> None:
        await queue.enqueue(new_job(type=SHARED))
        [first] = await queue.claim("w", 1, LEASE_S, [SHARED])
        async with other.transaction():
            await other.execute(
                "select finalise_analyses($1, $2, '{completed}', '{\"{}\"}', $3)",
                [first.id],
                [first.lease.token],
                [ttl_s],
            )
            asking = asyncio.create_task(queue.enqueue(new_job(type=SHARED)))
            await until_asleep(other)

        if ttl_s:
            assert (await asking).cached_result == {}
        else:
            second = (await asking).job_id
            assert [job.id for job in await queue.claim("w", 2, LEASE_S, [SHARED])] == [second]

    async def test_who_asks_while_the_first_passes_on(self, queue: PostgresQueue, other: Any) -> None:
        await queue.enqueue(new_job(type=SHARED))
        heir = (await queue.enqueue(new_job(type=SHARED))).job_id
        [first] = await queue.claim("w", 1, LEASE_S, [SHARED])
        async with other.transaction():
            await other.execute("select finalise_analyses($1, $2, '{failed}')", [first.id], [first.lease.token])
            asking = asyncio.create_task(queue.enqueue(new_job(type=SHARED)))
            await until_asleep(other)

        late = (await asking).job_id
        [running] = await queue.claim("w", 3, LEASE_S, [SHARED])
        assert running.id == heir
        assert not await queue.finalise([(running.lease, Completed({"n": 1}, 60))])
        assert (await queue.status(late, None)).result == {"n": 1}

    async def test_who_asks_while_another_first_one_is_not_committed(self, queue: PostgresQueue, other: Any) -> None:
        async with other.transaction():
            first = await other.fetchval("select job_id from enqueue_analysis($1, '{}', $2)", SHARED, uuid4())
            asking = asyncio.create_task(queue.enqueue(new_job(type=SHARED)))
            await until_blocked(other)

        second = (await asking).job_id
        [running] = await queue.claim("w", 3, LEASE_S, [SHARED])
        assert running.id == first
        assert not await queue.finalise([(running.lease, Completed({"n": 1}, 60))])
        assert (await queue.status(second, None)).result == {"n": 1}

    @pytest.mark.parametrize("ttl_s", [60, None], ids=["shared", "degraded"])
    async def test_nobody_waits_for_a_first_one_that_somebody_holds(
        self, queue: PostgresQueue, other: Any, ttl_s: float | None
    ) -> None:
        await queue.enqueue(new_job(type=SHARED))
        [first] = await queue.claim("w", 1, LEASE_S, [SHARED])
        async with other.transaction():
            await other.execute(
                "select finalise_analyses($1, $2, '{completed}', '{\"{}\"}', $3)",
                [first.id],
                [first.lease.token],
                [ttl_s],
            )
            asking = (await queue.enqueue(new_job(type=SHARED, priority=1))).job_id
            assert (await queue.status(asking, None)).status is JobStatus.PENDING

        await queue.rescue()

        if ttl_s:
            assert (await queue.status(asking, None)).result == {}
        else:
            assert [job.id for job in await queue.claim("w", 2, LEASE_S, [SHARED])] == [asking]

    async def test_who_ends_while_a_follower_is_not_committed(self, queue: PostgresQueue, other: Any) -> None:
        await queue.enqueue(new_job(type=SHARED))
        [first] = await queue.claim("w", 1, LEASE_S, [SHARED])
        async with other.transaction():
            follower = await other.fetchval("select job_id from enqueue_analysis($1, '{}', $2)", SHARED, uuid4())
            ending = asyncio.create_task(queue.finalise([(first.lease, Completed({"n": 1}, 60))]))
            await until_blocked(other)

        assert not await ending
        assert (await queue.status(follower, None)).result == {"n": 1}


async def test_batches_in_opposite_order_do_not_deadlock(database_url: str, queue: PostgresQueue) -> None:
    jobs = await running(queue, 40)
    leases = [job.lease for job in jobs]
    async with PostgresQueue(database_url, timeout_s=20) as second:

        async def renew() -> None:
            for _ in range(20):
                assert not (await queue.renew(leases, LEASE_S)).lost

        async def report() -> None:
            for percent in range(20):
                await second.report(dict.fromkeys(reversed(leases), (percent, "detect")))

        await asyncio.gather(renew(), report(), renew(), report())
        lost, _ = await asyncio.gather(
            second.finalise([(lease, Completed({}, 60)) for lease in reversed(leases)]), queue.renew(leases, LEASE_S)
        )

    assert not lost
