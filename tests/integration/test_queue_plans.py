"""What the queue's functions read with 100,000 finished rows in the table: never the table, always the right index."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

FINISHED = """
insert into analysis_jobs (user_id, type, input, status, attempts, result, deadline_at, started_at, completed_at)
select gen_random_uuid(), 'sofia_text', '{}', 'completed', 1, '{}', now(), now(), now() from generate_series(1, 100000)
"""
PENDING = """
insert into analysis_jobs (user_id, type, input, deadline_at, due_at, run_after)
select gen_random_uuid(), 'sofia_text', '{}', now(), due, due
from generate_series(1, $2::int), (select now() + $1::float * interval '1 s') as d (due)
"""
CLAIM = "select * from claim_analyses('w', 10, '6 s', '{sofia_text}')"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url, timeout=10)
    yield connection
    await connection.close()


# Statistics taken while the queue was empty are the rule: it nearly always is.
@pytest.fixture(params=["never analysed", "analysed while empty"])
async def busy(request: pytest.FixtureRequest, connection: Any) -> Any:
    await connection.execute(FINISHED)
    if request.param == "analysed while empty":
        await connection.execute("analyze analysis_jobs")
    await connection.execute(PENDING, 0, 2000)
    return connection


async def test_no_call_reads_the_table_from_end_to_end(busy: Any) -> None:
    before = await _scans(busy)
    user = uuid4()
    enqueued = await busy.fetchrow("select * from enqueue_analysis($1, 'sofia_text', '{}', 20)", user)
    jobs = await busy.fetch(CLAIM)
    ids, tokens = [job["id"] for job in jobs], [job["lease_token"] for job in jobs]
    assert len(await busy.fetch("select * from renew_leases($1, $2, '6 s')", ids, tokens)) == 10
    await busy.execute("select report_progress($1, $2, $3, $4)", ids, tokens, [5] * 10, ["detect"] * 10)
    outcomes = [
        {"id": str(job["id"]), "token": str(job["lease_token"]), "kind": "completed", "result": {}} for job in jobs
    ]
    assert len(await busy.fetch("select finalise_analyses($1)", json.dumps(outcomes))) == 10
    await busy.execute("select rescue_expired()")
    await busy.execute("select * from analysis_queue_depth()")
    await busy.execute("select * from get_analysis_status($1, $2)", enqueued["job_id"], user)
    await busy.execute("select * from cancel_analysis($1, $2)", enqueued["job_id"], user)

    after = await _scans(busy)

    assert after["analysis_jobs"] == before["analysis_jobs"]
    assert after["analysis_jobs_claim"] > before["analysis_jobs_claim"]
    assert after["analysis_jobs_running"] > before["analysis_jobs_running"]
    assert after["analysis_jobs_active"] > before["analysis_jobs_active"]


async def test_a_claim_reads_no_more_of_its_index_than_it_takes(busy: Any) -> None:
    before = await _rows_read(busy)
    assert len(await busy.fetch(CLAIM)) == 10

    assert await _rows_read(busy) - before <= 11


async def test_jobs_that_are_far_from_due_are_not_looked_at(connection: Any) -> None:
    await connection.execute(PENDING, 3600, 2000)
    before = await _rows_read(connection)

    assert await connection.fetch(CLAIM) == []

    assert await _rows_read(connection) == before


async def test_renewals_and_progress_leave_every_index_alone(connection: Any) -> None:
    await connection.execute(PENDING, 0, 2000)
    jobs = await connection.fetch(CLAIM)
    ids, tokens = [job["id"] for job in jobs], [job["lease_token"] for job in jobs]
    before = await _updates(connection)
    for _ in range(5):
        await connection.execute("select * from renew_leases($1, $2, '6 s')", ids, tokens)
        await connection.execute("select report_progress($1, $2, $3, $4)", ids, tokens, [5] * 10, ["detect"] * 10)

    updates, heap_only = [after - earlier for after, earlier in zip(await _updates(connection), before, strict=True)]

    assert updates == 100
    # The first may have to leave a page that the load above had filled up.
    assert heap_only >= 90


async def _scans(connection: Any) -> dict[str, int]:
    await _flush(connection)
    rows = await connection.fetch(
        "select indexrelname as name, idx_scan as scans from pg_stat_user_indexes where relname = 'analysis_jobs' "
        "union all select relname, seq_scan from pg_stat_user_tables where relname = 'analysis_jobs'"
    )
    return {row["name"]: row["scans"] for row in rows}


async def _rows_read(connection: Any) -> int:
    await _flush(connection)
    return await connection.fetchval(
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'analysis_jobs_claim'"
    )


async def _updates(connection: Any) -> tuple[int, int]:
    await _flush(connection)
    row = await connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'analysis_jobs'"
    )
    return row[0], row[1]


async def _flush(connection: Any) -> None:
    # The counters of a session become visible after the transaction that follows this call.
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select 1")
