"""Connections that are kept between two calls: as few as are needed, none that is dead, none in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asyncpg.connection import Connection
from fakes.silent_proxy import SilentProxy

from aiworker.domain.errors import DatabaseUnavailable
from aiworker.queue import database as module
from aiworker.queue.connect import Connector
from aiworker.queue.database import Database

SERVER = "select pg_backend_pid() as pid"
BUSY = "select pg_backend_pid() as pid from pg_sleep(0.01)"
OPEN = "select pid from pg_stat_activity where application_name = 'kept'"


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[Database]:
    connector = Connector(database_url, timeout_s=10, application_name="kept", pooler="none")
    async with Database(connector, timeout_s=10, connections=2) as database:
        yield database


async def pid_of(database: Database, statement: str = SERVER) -> int:
    [row] = await database.fetch(statement)
    pid: int = row["pid"]
    return pid


async def test_calls_one_after_the_other_share_a_connection(two: Database, admin: Any) -> None:
    pids = {await pid_of(two) for _ in range(5)}

    assert pids == {row["pid"] for row in await admin.fetch(OPEN)}
    assert len(pids) == 1


async def test_calls_at_the_same_time_wait_for_no_kept_connection(two: Database, admin: Any) -> None:
    async with asyncio.timeout(30):
        for _ in range(3):
            pids = await asyncio.gather(*(pid_of(two, BUSY) for _ in range(20)))
            assert len(set(pids)) == 2
            assert await pid_of(two) in pids

    assert len(await admin.fetch(OPEN)) == 2


async def test_a_call_that_fails_leaves_its_connection_to_the_next(two: Database) -> None:
    pid = await pid_of(two)
    with pytest.raises(DatabaseUnavailable):
        await two.fetch("select pg_sleep(10)", within_s=0.1)

    assert len({await pid_of(two) for _ in range(3)}) == 1
    # What ran too long was given up together with its connection.
    assert await pid_of(two) != pid


async def test_a_server_that_goes_silent_while_an_outdated_statement_is_closed_costs_one_time_limit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Connection._cleanup_stmts

    async def silently_close(connection: Any) -> None:
        proxy.go_silent()
        await close(connection)

    async with SilentProxy(database_url) as proxy:
        connector = Connector(proxy.url, timeout_s=1, application_name="kept", pooler="none")
        async with Database(connector, timeout_s=1, connections=2) as database:
            await pid_of(database)
            kept, _ = database._kept[0]
            # As five minutes after it was prepared.
            kept._con._drop_local_statement_cache()
            monkeypatch.setattr(Connection, "_cleanup_stmts", silently_close)
            async with asyncio.timeout(10):
                with pytest.raises(DatabaseUnavailable):
                    await pid_of(database)


async def test_a_connection_that_died_between_two_calls_is_replaced(two: Database, admin: Any) -> None:
    pid = await pid_of(two)
    kept, _ = two._kept[0]
    await admin.fetch("select pg_terminate_backend($1)", pid)
    async with asyncio.timeout(30):
        while module._is_open(kept):
            await asyncio.sleep(0.01)

    assert await pid_of(two) != pid
    assert len(await asyncio.gather(*(pid_of(two, BUSY) for _ in range(10)))) == 10


async def test_what_nobody_used_for_long_is_closed(two: Database, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # One at a time: while somebody waits, a connection goes back to asyncpg's pool, which has a timer for those.
    before = await pid_of(two)
    assert await pid_of(two) == before
    monkeypatch.setattr(module, "_IDLE_S", 0.0)

    assert await pid_of(two) != before
    async with asyncio.timeout(30):
        while before in {row["pid"] for row in await admin.fetch(OPEN)}:
            await asyncio.sleep(0.01)


async def test_a_cancelled_call_costs_one_connection_at_most(two: Database, admin: Any) -> None:
    calls = [asyncio.create_task(two.fetch("select pg_sleep(30)")) for _ in range(2)]
    async with asyncio.timeout(30):
        while len(await admin.fetch(OPEN + " and state = 'active'")) < 2:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

        assert len(await asyncio.gather(*(pid_of(two, BUSY) for _ in range(6)))) == 6
        # The server was told to stop too.
        assert not await admin.fetch(OPEN + " and query like '%pg_sleep(30)%' and state = 'active'")


async def test_closing_closes_what_is_kept(database_url: str, admin: Any) -> None:
    connector = Connector(database_url, timeout_s=10, application_name="kept", pooler="none")
    async with Database(connector, timeout_s=10, connections=2) as database:
        await asyncio.gather(*(pid_of(database, BUSY) for _ in range(4)))
        under_way = asyncio.create_task(pid_of(database, "select pg_backend_pid() as pid from pg_sleep(0.3)"))
        async with asyncio.timeout(30):
            while not await admin.fetch(OPEN + " and state = 'active'"):
                await asyncio.sleep(0.01)

    assert await under_way
    async with asyncio.timeout(30):
        while await admin.fetch(OPEN):
            await asyncio.sleep(0.01)
