"""What a client of the SQL functions may try, or leave behind: nobody else's job suffers from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from fakes.queue_bench import LEASE_S, RULES, SHARED, TEXT

from aiworker.analyses.registry import ANALYSES, read_input
from aiworker.domain.errors import InputRejected, InputTooLarge
from aiworker.domain.job import JobStatus, NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.postgres import PostgresQueue

ENQUEUE = "select job_id from enqueue_analysis($1, $2::text::jsonb, $3)"


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[PostgresQueue]:
    async with PostgresQueue(database_url, RULES, timeout_s=20) as queue:
        await queue.configure(RULES)
        yield queue


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[Any]:
    """A connection of somebody who writes SQL by hand."""
    connection = await asyncpg.connect(database_url, timeout=10)
    yield connection
    await connection.close()


@pytest.fixture
async def user(queue: PostgresQueue, client: Any) -> UUID:
    """`client` acts for this user, as over RPC, from now on."""
    user = uuid4()
    await client.execute("set role authenticated")
    claims = json.dumps({"sub": str(user), "role": "authenticated"})
    await client.execute("select set_config('request.jwt.claims', $1, false)", claims)
    return user


def new_job(**changes: Any) -> NewJob:
    return NewJob(**({"user_id": uuid4(), "type": TEXT, "input": {}} | changes))


@pytest.mark.parametrize(
    "unreadable", ['{"n": 1e400}', '{"a": ' + "[" * 2000 + "]" * 2000 + "}"], ids=["number", "depth"]
)
async def test_an_input_that_nobody_can_read_is_handed_out_beside_the_others(
    queue: PostgresQueue, client: Any, unreadable: str
) -> None:
    good = (await queue.enqueue(new_job())).job_id
    bad = await client.fetchval(ENQUEUE, TEXT, unreadable, uuid4())

    claimed = {job.id: job for job in await queue.claim("w", 5, LEASE_S, [TEXT])}

    assert set(claimed) == {good, bad}
    with pytest.raises(InputRejected):
        read_input(ANALYSES["sofia_text"], claimed[bad].input)


async def test_an_input_that_is_small_here_and_huge_as_text_is_refused(queue: PostgresQueue, client: Any) -> None:
    digits = json.dumps({"a": ["N"] * 400}).replace('"N"', "1e100000")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await client.fetchval(ENQUEUE, TEXT, digits, uuid4())
    assert refused.value.sqlstate == "AW007"
    with pytest.raises(InputTooLarge):
        await queue.enqueue(new_job(input={"text": "x" * 17_000_000}))
    assert not await queue.claim("w", 5, LEASE_S, [TEXT])


async def test_null_is_what_was_left_out(queue: PostgresQueue, client: Any, user: UUID) -> None:
    call = (
        "select enqueue_analysis($1, '{}', p_priority => null, p_delay_s => null, p_use_cache => null,"
        " p_unlimited => null, p_max_attempts => null, p_idempotency_key => null)"
    )
    for _ in range(RULES.max_active):
        await client.fetchval(call, TEXT)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await client.fetchval(call, TEXT)
    assert refused.value.sqlstate == "AW001"
    assert (await queue.depth()).pending == RULES.max_active


@pytest.mark.parametrize("attempts", [0, -1, 40_000])
async def test_attempts_that_make_no_sense_are_refused(queue: PostgresQueue, attempts: int) -> None:
    with pytest.raises(InputRejected):
        await queue.enqueue(new_job(max_attempts=attempts))


@pytest.mark.parametrize("priority", [0, 11, -(2**31), 2**31 - 1])
async def test_a_priority_that_makes_no_sense_is_refused_at_once(queue: PostgresQueue, priority: int) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(InputRejected):
            await queue.enqueue(new_job(priority=priority))


async def test_a_job_that_somebody_holds_costs_no_other_its_lease(queue: PostgresQueue, client: Any) -> None:
    for _ in range(3):
        await queue.enqueue(new_job())
    jobs = await queue.claim("w", 3, LEASE_S, [TEXT])
    await client.execute("update analysis_jobs set lease_expires_at = now() - interval '1 s'")
    async with client.transaction():
        await client.execute("select from analysis_jobs where id = $1 for update", jobs[0].id)
        async with asyncio.timeout(10):
            assert not (await queue.renew([job.lease for job in jobs], LEASE_S)).lost
            await queue.report({job.lease: (50, "detect") for job in jobs})
            assert await queue.rescue() == 0
    assert [(await queue.status(job.id, None)).progress for job in jobs] == [0, 50, 50]


async def test_a_delay_is_thirty_days_at_most(queue: PostgresQueue, client: Any, user: UUID) -> None:
    for delay in ("1e9", "'Infinity'", "'NaN'"):
        await client.execute(f"select enqueue_analysis($1, '{{}}', p_delay_s => {delay})", TEXT)
    await client.execute("reset role")
    assert not await client.fetchval("select count(*) from analysis_jobs where run_after > now() + interval '31 days'")


@pytest.mark.parametrize("level", ["repeatable_read", "serializable"])
async def test_the_limit_cannot_be_counted_in_an_old_snapshot(queue: PostgresQueue, client: Any, level: Any) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="read committed"):
        async with client.transaction(isolation=level):
            await client.fetchval(ENQUEUE, TEXT, "{}", uuid4())


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_database_with_another_level_by_default_serves_us(client: Any, database_url: str, level: str) -> None:
    database = await client.fetchval("select current_database()")
    await client.execute(f"alter database {database} set default_transaction_isolation = '{level}'")
    async with PostgresQueue(database_url, RULES, timeout_s=20) as queue:
        job_id = (await queue.enqueue(new_job())).job_id
        assert [job.id for job in await queue.claim("w", 5, LEASE_S, [TEXT])] == [job_id]


async def test_a_row_that_somebody_holds_keeps_no_other_from_being_claimed(queue: PostgresQueue, client: Any) -> None:
    held = (await queue.enqueue(new_job(delay_s=3600))).job_id
    free = (await queue.enqueue(new_job())).job_id
    await client.execute("update analysis_jobs set run_after = now() where id = $1", held)
    async with client.transaction():
        await client.execute("select from analysis_jobs where id = $1 for update", held)
        async with asyncio.timeout(10):
            assert [job.id for job in await queue.claim("w", 5, LEASE_S, [TEXT])] == [free]
    assert [job.id for job in await queue.claim("w", 5, LEASE_S, [TEXT])] == [held]


async def test_who_cannot_lend_its_urgency_follows_all_the_same(queue: PostgresQueue, client: Any) -> None:
    leader = (await queue.enqueue(new_job(type=SHARED, priority=9))).job_id
    async with client.transaction():
        await client.execute("select from analysis_jobs where id = $1 for update", leader)
        async with asyncio.timeout(10):
            await queue.enqueue(new_job(type=SHARED, priority=1))
    assert [job.id for job in await queue.claim("w", 5, LEASE_S, [SHARED])] == [leader]


async def test_a_follower_that_somebody_holds_has_its_result_later(queue: PostgresQueue, client: Any) -> None:
    await queue.enqueue(new_job(type=SHARED))
    held = (await queue.enqueue(new_job(type=SHARED))).job_id
    free = (await queue.enqueue(new_job(type=SHARED))).job_id
    [first] = await queue.claim("w", 1, LEASE_S, [SHARED])
    async with client.transaction():
        await client.execute("select from analysis_jobs where id = $1 for update", held)
        async with asyncio.timeout(10):
            assert not await queue.finalise([(first.lease, Completed({"n": 1}, 60))])
    assert (await queue.status(free, None)).result == {"n": 1}
    assert (await queue.status(held, None)).status is JobStatus.PENDING

    await queue.rescue()

    assert (await queue.status(held, None)).result == {"n": 1}


async def test_a_large_result_reaches_many_followers_a_part_at_a_time(queue: PostgresQueue) -> None:
    """Two thousand rows of 100 KB in one statement took longer than it may, so that the job itself never ended."""
    result = {"text": "x" * 6_000_000}
    ids = [(await queue.enqueue(new_job(type=SHARED))).job_id for _ in range(8)]
    [leader] = await queue.claim("w", 5, LEASE_S, [SHARED])

    async def completed() -> int:
        return sum([(await queue.status(job_id, None)).status is JobStatus.COMPLETED for job_id in ids])

    assert not await queue.finalise([(leader.lease, Completed(result, 60))])
    assert await completed() == 1 + 3
    assert not await queue.claim("w", 5, LEASE_S, [SHARED])
    reached = []
    while await completed() < len(ids):
        await queue.rescue()
        reached.append(await completed())
    assert reached == [1 + 6, 8]
    assert (await queue.status(ids[-1], None)).result == result


async def test_who_waits_for_nobody_is_left_alone_while_somebody_asks_for_the_same(
    queue: PostgresQueue, client: Any
) -> None:
    await queue.enqueue(new_job(type=SHARED))
    orphan = (await queue.enqueue(new_job(type=SHARED))).job_id
    await client.execute("delete from analysis_jobs where id <> $1", orphan)
    async with client.transaction():
        leader = await client.fetchval(ENQUEUE, SHARED, "{}", uuid4())
        async with asyncio.timeout(10):
            await queue.rescue()

    await queue.rescue()
    assert [job.id for job in await queue.claim("w", 5, LEASE_S, [SHARED])] == [leader]


async def test_who_waited_for_a_job_that_was_removed_runs(queue: PostgresQueue, client: Any) -> None:
    leaver = uuid4()
    await queue.enqueue(new_job(type=SHARED, user_id=leaver))
    followers = {(await queue.enqueue(new_job(type=SHARED))).job_id for _ in range(2)}
    await client.execute("delete from analysis_jobs where user_id = $1", leaver)

    await queue.rescue()

    [heir] = await queue.claim("w", 5, LEASE_S, [SHARED])
    assert heir.id in followers
    await queue.rescue()
    assert not await queue.finalise([(heir.lease, Completed({"n": 1}, 60))])
    assert [(await queue.status(job_id, None)).result for job_id in followers] == [{"n": 1}] * 2
