"""Every test that takes `bench` runs twice: on PostgreSQL and on the in-memory queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from fakes.queue_bench import RULES, Bench, memory_bench, postgres_bench

from aiworker.queue.listen import Listener
from aiworker.queue.postgres import PostgresQueue


@pytest.fixture(params=["memory", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def bench(database: str | None) -> AsyncIterator[Bench]:
    if database is None:
        yield memory_bench()
        return
    async with PostgresQueue(database, RULES, timeout_s=20) as queue:
        connection = await asyncpg.connect(database, timeout=10)
        try:
            yield postgres_bench(queue, Listener(database), connection)
        finally:
            await connection.close()
