"""Migrations against real databases: once, in order, together, and never a changed one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import pytest
from fakes.databases import execute

from aiworker.domain.errors import ConfigurationError, DatabaseUnavailable
from aiworker.queue.migrate import Migration, apply, migrate, pending, shipped

NAMES = [
    "0001_tables.sql",
    "0002_roles.sql",
    "0003_client_functions.sql",
    "0004_worker_functions.sql",
    "0005_access.sql",
    "0006_spend.sql",
]


async def test_each_file_is_applied_once_and_in_order(empty_database_url: str) -> None:
    assert await pending(empty_database_url) == NAMES
    assert await migrate(empty_database_url) == NAMES
    assert await pending(empty_database_url) == []
    assert await migrate(empty_database_url) == []


async def test_migrators_that_start_together_share_the_work(empty_database_url: str) -> None:
    done = await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))

    assert sorted(name for names in done for name in names) == NAMES


async def test_a_database_that_psql_has_migrated_is_adopted(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url, timeout=10)
    for migration in shipped():
        await connection.execute(migration.sql)
    await connection.close()

    assert await migrate(empty_database_url) == NAMES


async def test_a_file_that_changed_after_it_was_applied_stops_everything(database_url: str) -> None:
    first, *rest = shipped()
    changed = [
        replace(first, sql=first.sql + "\n-- more"),
        *rest,
        Migration("0099_new.sql", "create table more (a int)"),
    ]

    with pytest.raises(ConfigurationError, match=r"0001_tables\.sql changed after it was applied"):
        await apply(database_url, changed)

    assert not await _exists(database_url, "more")


async def test_a_file_that_fails_leaves_nothing_of_itself_and_keeps_those_before_it(database_url: str) -> None:
    good = Migration("0098_good.sql", "create table good (a int)")
    bad = Migration("0099_bad.sql", "create table half (a int); insert into half values ('x');")

    with pytest.raises(ConfigurationError, match=r"0099_bad.sql.*22P02"):
        await apply(database_url, [*shipped(), good, bad])

    assert await _exists(database_url, "good")
    assert not await _exists(database_url, "half")
    assert await apply(database_url, [*shipped(), good]) == []


async def test_a_table_of_another_shape_is_not_touched(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url, timeout=10)
    await connection.execute("create table analysis_jobs (id uuid primary key, job_type text)")
    await connection.close()

    with pytest.raises(ConfigurationError, match="another shape"):
        await migrate(empty_database_url)

    assert await pending(empty_database_url) == NAMES


@pytest.mark.parametrize(
    ("in_the_way", "file"),
    [
        ("create table analysis_types (id int)", "0001_tables"),
        ("create table analysis_spend (id int)", "0006_spend"),
        ("create type analysis_status as enum ('queued')", "0003_client_functions"),
        ("create type analysis_priority as enum ('high')", "0001_tables"),
    ],
)
async def test_what_has_a_name_of_ours_is_found_and_the_file_named(
    empty_database_url: str, in_the_way: str, file: str
) -> None:
    await execute(empty_database_url, in_the_way)

    with pytest.raises(ConfigurationError, match=rf"({file}).* was refused .*run it with psql"):
        await migrate(empty_database_url)


async def test_no_database_no_password_and_no_address(database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate("postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as wrong_password:
        await migrate(database_url.replace("@", "wrong@", 1))
    assert "wrong@" not in str(wrong_password.value)
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await pending("mysql://somewhere/else")


async def _exists(url: str, table: str) -> bool:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval("select to_regclass($1) is not null", table)
    finally:
        await connection.close()
