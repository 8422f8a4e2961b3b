"""What a worker leaves out because it remembers that nothing is left there, and who finds what it misses by that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from aiworker.domain.errors import DatabaseUnavailable
from aiworker.domain.job import JobType, NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.looks import Walks
from aiworker.queue.postgres import PostgresQueue, QueueRules

TYPE = "text"
RULES = QueueRules((JobType(TYPE, "1", slo_s=20.0, sharing="never"),))
LEASE_S = 6.0
READ = "select pg_stat_get_xact_tuples_returned('analysis_jobs_lines'::regclass)"

OLD_JOBS = """
insert into analysis_jobs (user_id, type, input, deadline_at, run_after, place, line)
select gen_random_uuid(), $1, '{}', due, due, due + interval '50 s', 5
  from generate_series(1, 1000), (select now() - interval '1 hour') as d (due)"""


@pytest.fixture
async def queues(database_url: str) -> AsyncIterator[list[PostgresQueue]]:
    """Two workers' views of one queue."""
    async with PostgresQueue(database_url, RULES) as one, PostgresQueue(database_url, RULES) as two:
        await one.configure(RULES)
        yield [one, two]


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url, timeout=10)
    yield connection
    await connection.close()


async def enqueue(queue: PostgresQueue, priority: int = 5) -> UUID:
    job = NewJob(user_id=uuid4(), type=TYPE, input={}, priority=priority)
    job_id = (await queue.enqueue(job)).job_id
    assert job_id is not None
    return job_id


async def committed_late(queue: PostgresQueue, other: Any) -> UUID:
    """A job that nobody could see for the first minute after its place was given."""
    job_id = await enqueue(queue)
    await other.execute("update analysis_jobs set place = place - interval '1 minute' where id = $1", job_id)
    return job_id


async def test_what_is_left_out_never_holds_a_job(queues: list[PostgresQueue]) -> None:
    dice = random.Random(7)
    added, claimed = [], []
    for _ in range(150):
        queue = dice.choice(queues)
        for _ in range(dice.choice([0, 0, 1, 1, 3, 12])):
            added.append(await enqueue(queue, dice.randint(1, 10)))
        claimed += [job.id for job in await queue.claim("w", dice.randint(1, 5), LEASE_S, [TYPE])]
    while jobs := await queues[0].claim("w", 7, LEASE_S, [TYPE]):
        claimed += [job.id for job in jobs]

    assert sorted(claimed) == sorted(added)


async def test_a_job_whose_enqueue_took_long_to_commit_is_found(queues: list[PostgresQueue], other: Any) -> None:
    queue = queues[0]
    assert await queue.claim("w", 3, LEASE_S, [TYPE]) == []
    late = await committed_late(queue, other)
    assert await queue.claim("w", 3, LEASE_S, [TYPE]) == []

    assert await queue.rescue() == 0

    assert [job.id for job in await queue.claim("w", 3, LEASE_S, [TYPE])] == [late]


async def test_and_rescued_when_its_worker_dies(queues: list[PostgresQueue], other: Any) -> None:
    queue, dying = queues
    assert await queue.rescue() == 0
    late = await committed_late(queue, other)
    assert [job.id for job in await dying.claim("dying", 3, LEASE_S, [TYPE])] == [late]
    await other.execute("update analysis_jobs set lease_expires_at = now() - interval '1 s'")
    assert await queue.rescue() == 0

    queue._walks = Walks()

    assert await queue.rescue() == 1


async def test_a_walk_begins_at_the_oldest_job_that_has_not_ended(queues: list[PostgresQueue], other: Any) -> None:
    queue = queues[0]
    slow = await enqueue(queue)
    [running] = await queue.claim("w", 1, LEASE_S, [TYPE])
    assert running.id == slow
    # Long ago, so that the two seconds for slow commits do not hide what is asked here.
    await other.execute("update analysis_jobs set place = place - interval '1 hour'")
    assert await queue.rescue() == 0
    for _ in range(3):
        await enqueue(queue, priority=1)
        assert len(await queue.claim("w", 1, LEASE_S, [TYPE])) == 1
    assert await queue.rescue() == 0
    await other.execute("update analysis_jobs set lease_expires_at = now() - interval '1 s'")

    assert await queue.rescue() == 4


async def test_nobody_steps_over_what_has_ended_while_a_transaction_is_forgotten(
    queues: list[PostgresQueue], other: Any, database_url: str
) -> None:
    queue, forgotten = queues[0], await asyncpg.connect(database_url, timeout=10)
    async with forgotten.transaction(isolation="repeatable_read"):
        await forgotten.fetchval("select count(*) from analysis_jobs")
        await other.execute(OLD_JOBS, TYPE)
        while jobs := await queue.claim("w", 25, LEASE_S, [TYPE]):
            await queue.finalise([(job.lease, Completed({})) for job in jobs])
        await queue.rescue()
        floors, since = queue._floors.places, queue._walks.since(0.0)

        assert await entries_read(other, "select claim_analyses('w', 25, '6 s', '{text}')") > 900
        claim = "select claim_analyses('w', 25, '6 s', '{text}', p_floors => $1)"
        assert await entries_read(other, claim, floors) == 0
        assert await entries_read(other, "select rescue_expired()") > 900
        assert await entries_read(other, "select rescue_expired(p_since_s => $1)", since) == 0
        assert await entries_read(other, "select enqueue_analysis($1, '{}', gen_random_uuid())", TYPE) == 0
    await forgotten.close()


async def entries_read(connection: Any, call: str, *arguments: Any) -> int:
    """Entries of the lines that `call` looks at, those of ended jobs too."""
    async with connection.transaction():
        before: int = await connection.fetchval(READ)
        await connection.fetch(call, *arguments)
        after: int = await connection.fetchval(READ)
    return after - before


HOLD = """
create function hold_claims() returns trigger language plpgsql as $$
begin
  if new.worker_id = 'held' then
    perform pg_advisory_xact_lock(7);
  end if;
  return new;
end;
$$;
create trigger hold_claims before update on analysis_jobs for each row execute function hold_claims();
select pg_advisory_lock(7)"""
HELD = "select pid from pg_locks where locktype = 'advisory' and objid = 7 and not granted"


async def test_of_two_claims_under_way_one_is_lost_and_its_jobs_are_there_for_the_next(
    queues: list[PostgresQueue], other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, _ = queues
    jobs = [await enqueue(queue) for _ in range(4)]
    await other.execute("update analysis_jobs set place = place - interval '1 minute'")
    await other.execute(HOLD)
    lost = asyncio.create_task(queue.claim("held", 1, LEASE_S, [TYPE]))
    async with asyncio.timeout(10):
        while (pid := await other.fetchval(HELD)) is None:
            await asyncio.sleep(0)
    assert [job.id for job in await queue.claim("w", 1, LEASE_S, [TYPE])] == [jobs[1]]
    # This one has passed over what the first holds, and comes back after that one is known to be lost.
    looked, back = asyncio.Event(), asyncio.Event()
    fetch = queue._database.fetch

    async def late(*arguments: Any) -> Any:
        rows = await fetch(*arguments)
        looked.set()
        await back.wait()
        return rows

    monkeypatch.setattr(queue._database, "fetch", late)
    beside = asyncio.create_task(queue.claim("w", 1, LEASE_S, [TYPE]))
    await looked.wait()
    monkeypatch.undo()
    await other.execute("select pg_terminate_backend($1)", pid)
    with pytest.raises(DatabaseUnavailable):
        await lost
    back.set()
    assert [job.id for job in await beside] == [jobs[2]]

    assert [job.id for job in await queue.claim("w", 5, LEASE_S, [TYPE])] == [jobs[0], jobs[3]]


async def test_a_slow_way_to_the_server_is_no_reason_to_look_at_everything_less_often(
    queues: list[PostgresQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, _ = queues
    clock = [1000.0]
    fetch = queue._database.fetch

    async def slow(*arguments: Any) -> Any:
        clock[0] += 0.5
        return await fetch(*arguments)

    monkeypatch.setattr("aiworker.queue.postgres.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(queue._database, "fetch", slow)
    await queue.rescue()
    clock[0] += 60
    assert queue._walks.since(clock[0]) is None
