"""Four processes at one user's limit: it is exact, whatever else goes on."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from fakes.queue_bench import LEASE_S, RULES, TEXT

from aiworker.domain.errors import TooManyActiveJobs
from aiworker.domain.job import NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.postgres import PostgresQueue

PROCESSES, REQUESTS = 4, 50
ACTIVE = "select count(*) from analysis_jobs where user_id = $1 and line is not null"
TESTS = Path(__file__).parent.parent


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[PostgresQueue]:
    async with PostgresQueue(database_url, RULES, timeout_s=20) as queue:
        await queue.configure(RULES)
        yield queue


async def hammers(url: str, user: UUID) -> list[Process]:
    """All are connected and wait for the word."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fakes.hammer", url, str(user), str(REQUESTS), stdin=PIPE, stdout=PIPE, cwd=TESTS
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    return processes


async def taken(processes: list[Process]) -> int:
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert not any(process.returncode for process in processes)
    return sum(int(out) for out, _ in outputs)


async def test_exactly_ten_of_two_hundred_are_taken(database_url: str, queue: PostgresQueue) -> None:
    user = uuid4()

    assert await taken(await hammers(database_url, user)) == RULES.max_active

    with pytest.raises(TooManyActiveJobs):
        await queue.enqueue(NewJob(user, TEXT, {}))
    assert (await queue.enqueue(NewJob(user, TEXT, {}, unlimited=True))).job_id
    assert (await queue.enqueue(NewJob(uuid4(), TEXT, {}))).job_id


async def test_never_more_than_ten_while_some_end(database_url: str, queue: PostgresQueue) -> None:
    user, most = uuid4(), 0
    watcher: Any = await asyncpg.connect(database_url)
    processes = await hammers(database_url, user)
    hammering = asyncio.create_task(taken(processes))
    while not hammering.done():
        jobs = await queue.claim("w", 3, LEASE_S, [TEXT])
        most = max(most, await watcher.fetchval(ACTIVE, user))
        await queue.finalise([(job.lease, Completed({})) for job in jobs])
    await watcher.close()

    assert 0 < most <= RULES.max_active
    assert await hammering > RULES.max_active
