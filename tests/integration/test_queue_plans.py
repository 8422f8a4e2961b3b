"""What the queue's functions read beside a million finished rows: always the right index, never the table."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fakes.databases import cloned_database
from fakes.queue_bench import RULES

from aiworker.queue.postgres import PostgresQueue

FINISHED = """
insert into analysis_jobs (id, user_id, type, input, status, attempts, result, deadline_at, run_after, place,
                           created_at, started_at, completed_at)
select analysis_job_id(at), gen_random_uuid(), 'text', '{}', 'completed', 1, '{}', at, at, at, at, at, at
from (select now() - n * interval '3 seconds' as at from generate_series(1000000, 1, -1) n) moments
"""
PENDING = """
insert into analysis_jobs (user_id, type, input, deadline_at, run_after, place, line)
select gen_random_uuid(), 'text', '{}', due, due, due + interval '50 s', case when $1::float > 0 then -1 else 5 end
from generate_series(1, $2::int), (select now() + $1::float * interval '1 s') as d (due)
"""
CLAIM = "select * from claim_analyses('w', 10, '6 s', '{text}')"
JOBS = "analysis_jobs"


@pytest.fixture(scope="module")
def crowded_template(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """Statistics taken while the queue was empty are the rule: it nearly always is."""
    with cloned_database(postgres_server, migrated_template) as url:
        asyncio.run(_crowd(url))
        yield url.rsplit("/", 1)[1]


async def _crowd(url: str) -> None:
    async with PostgresQueue(url) as queue:
        await queue.configure(RULES)
    connection = await asyncpg.connect(url)
    await connection.execute(FINISHED, timeout=300)
    await connection.execute("analyze analysis_jobs", timeout=300)
    await connection.close()


@pytest.fixture
async def connection(postgres_server: str, crowded_template: str) -> AsyncIterator[Any]:
    """A million finished rows; what a test does to them is undone."""
    connection = await asyncpg.connect(postgres_server.rsplit("/", 1)[0] + "/" + crowded_template)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


@pytest.fixture
async def busy(connection: Any) -> Any:
    await connection.execute(PENDING, 0.0, 2000)
    return connection


class Plans:
    """The plans of everything that ran inside the block, functions included."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.texts: list[str] = []

    async def __aenter__(self) -> Plans:
        await self._connection.execute(
            "load 'auto_explain'; set local auto_explain.log_min_duration = 0; set local auto_explain.log_analyze = on;"
            "set local auto_explain.log_timing = off; set local auto_explain.log_nested_statements = on;"
            "set local client_min_messages = log"
        )
        self._connection.add_log_listener(self._heard)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.execute("set local auto_explain.log_min_duration = -1")
        self._connection.remove_log_listener(self._heard)

    def _heard(self, _connection: Any, message: Any) -> None:
        self.texts.append(message.message)

    def indexes(self) -> set[str]:
        return set(re.findall(r"Scan using (analysis_jobs\w*)", "\n".join(self.texts)))

    def of_the_table(self) -> list[str]:
        """Lines that read the table from end to end."""
        return [line for text in self.texts for line in text.splitlines() if f"Seq Scan on {JOBS}" in line]


async def test_every_call_finds_its_rows_by_an_index(busy: Any) -> None:
    user = uuid4()
    async with Plans(busy) as plans:
        enqueued = await busy.fetchrow("select * from enqueue_analysis('text', '{}', $1)", user)
        jobs = await busy.fetch(CLAIM)
        ids, tokens = [job["id"] for job in jobs], [job["lease_token"] for job in jobs]
        assert len(await busy.fetch("select * from renew_leases($1, $2, '6 s')", ids, tokens)) == 10
        await busy.execute("select report_progress($1, $2, $3, $4)", ids, tokens, [5] * 10, ["detect"] * 10)
        kinds, results = ["retry", "interrupted", *["completed"] * 8], [json.dumps({})] * 10
        assert not await busy.fetch("select finalise_analyses($1, $2, $3, $4)", ids, tokens, kinds, results)
        await busy.execute("select rescue_expired()")
        await busy.execute("select * from analysis_queue_depth()")
        await busy.execute("select * from get_analysis_status($1)", enqueued["job_id"])
        await busy.execute("select * from cancel_analysis($1)", enqueued["job_id"])
        await busy.execute("select prune_analyses('30 days')")

    assert plans.of_the_table() == []
    assert len(plans.texts) > 10


@pytest.mark.parametrize(
    ("call", "indexes"),
    [
        (CLAIM, {"analysis_jobs_lines", "analysis_jobs_delayed"}),
        ("select rescue_expired()", {"analysis_jobs_lines", "analysis_jobs_followers", "analysis_jobs_leader"}),
        ("select * from analysis_queue_depth()", {"analysis_jobs_lines"}),
        ("select * from get_analysis_status(gen_random_uuid())", {"analysis_jobs_pkey"}),
        ("select * from cancel_analysis((select min(id::text)::uuid from few))", {"analysis_jobs_pkey"}),
        ("select prune_analyses('30 days')", {"analysis_jobs_pkey"}),
    ],
    ids=["claim", "rescue", "depth", "status", "cancel", "prune"],
)
async def test_the_index_of_each_call(busy: Any, call: str, indexes: set[str]) -> None:
    await busy.execute("create temporary table few as select id from analysis_jobs where line = 5 limit 3")
    async with Plans(busy) as plans:
        await busy.fetch(call)

    assert plans.indexes() - {"analysis_jobs_pkey"} == indexes - {"analysis_jobs_pkey"}
    assert plans.indexes() >= indexes
    assert plans.of_the_table() == []


@pytest.mark.parametrize("call", ["select rescue_expired()", "select * from analysis_queue_depth()", CLAIM])
async def test_finished_rows_are_not_touched(connection: Any, call: str) -> None:
    async with Plans(connection) as plans:
        await connection.fetch(call)

    rows = [int(float(n)) for text in plans.texts for n in re.findall(rf"on {JOBS}[^\n]*actual rows=([\d.]+)", text)]
    assert rows
    assert set(rows) == {0}


async def test_a_claim_reads_no_more_than_it_takes(busy: Any) -> None:
    async with Plans(busy) as plans:
        assert len(await busy.fetch(CLAIM)) == 10

    scans = re.findall(r"Scan using analysis_jobs_lines[^\n]*rows=([\d.]+) loops=(\d+)", "\n".join(plans.texts))
    assert [round(float(rows) * int(loops)) for rows, loops in scans] == [0, 10]


async def test_what_was_claimed_before_is_stepped_over_and_what_ended_is_not_there(busy: Any) -> None:
    first = await busy.fetch(CLAIM)
    kinds = ["completed"] * 10
    ids, tokens = [job["id"] for job in first], [job["lease_token"] for job in first]
    assert not await busy.fetch("select finalise_analyses($1, $2, $3)", ids, tokens, kinds)

    second = await busy.fetch(CLAIM)

    assert len(second) == 10
    assert not {job["id"] for job in second} & set(ids)


async def test_jobs_that_are_far_from_due_are_not_looked_at(connection: Any) -> None:
    await connection.execute(PENDING, 3600.0, 2000)
    async with Plans(connection) as plans:
        assert [row["id"] for row in await connection.fetch(CLAIM)] == [None]

    scanned = re.findall(r"Scan using analysis_jobs_\w+ on[^\n]*rows=([\d.]+)", "\n".join(plans.texts))
    assert scanned
    assert {float(rows) for rows in scanned} == {0.0}


async def test_a_plan_that_was_made_for_an_empty_table_does_not_look_through_delays(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.fetch(CLAIM)
    await connection.execute(PENDING, 3600.0, 2000)
    async with connection.transaction(), Plans(connection) as plans:
        await connection.fetch(CLAIM)
    await connection.close()

    assert "Rows Removed by Filter" not in "\n".join(plans.texts)


@pytest.mark.parametrize(
    "call",
    [
        "select * from renew_leases(array[$1::uuid], array[$1::uuid], '6 s')",
        "select report_progress(array[$1::uuid], array[$1::uuid], '{1}', '{fetch}')",
        "select finalise_analyses(array[$1::uuid], array[$1::uuid])",
        "select finalise_analyses(array[$1::uuid], array[$1::uuid], '{retry}')",
    ],
)
async def test_a_plan_that_was_made_for_an_empty_table_does_not_look_through_what_has_ended(
    database_url: str, call: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("alter table analysis_jobs set (autovacuum_enabled = off)")
    await connection.execute("vacuum analyze analysis_jobs")
    for _ in range(8):
        # A plan that does not depend on the arguments is made at the sixth call.
        await connection.fetch(call, uuid4())
    await connection.execute(FINISHED.replace("1000000", "2000"))
    async with connection.transaction(), Plans(connection) as plans:
        await connection.fetch(call, uuid4())
    await connection.close()

    assert max(float(rows) for rows in re.findall(r"actual rows=([\d.]+)", "\n".join(plans.texts))) < 100


async def test_results_of_megabytes_are_written_in_the_order_of_the_ids(busy: Any) -> None:
    """A hash that spills hands its rows over in the order of its parts."""
    jobs = await busy.fetch(CLAIM)
    ids, tokens = [job["id"] for job in jobs], [job["lease_token"] for job in jobs]
    async with Plans(busy) as plans:
        assert not await busy.fetch(
            "select finalise_analyses($1, $2, null, array_fill(to_jsonb(repeat('x', 2000000)), '{10}'))", ids, tokens
        )

    assert set(re.findall(r"Batches: (\d+)", "\n".join(plans.texts))) == {"1"}


async def test_a_crowd_that_falls_due_at_once_keeps_no_claim_waiting(connection: Any) -> None:
    await connection.execute(PENDING, 3600.0, 2500)
    await connection.execute("update analysis_jobs set run_after = now() where line = -1")
    left = []
    for _ in range(3):
        assert len(await connection.fetch(CLAIM)) == 10
        left.append(await connection.fetchval("select count(*) from analysis_jobs where line = -1"))

    assert left == [1500, 500, 0]


@pytest.mark.parametrize("delay_s", [0.0, 60.0], ids=["now", "later"])
async def test_an_enqueue_does_not_look_at_all_that_its_user_has_in_line(connection: Any, delay_s: float) -> None:
    user = uuid4()
    for later in (0.0, 3600.0):
        await connection.execute(PENDING, later, 2000)
    await connection.execute("update analysis_jobs set user_id = $1, priority = 9 where line is not null", user)
    async with Plans(connection) as plans:
        await connection.execute(
            "select enqueue_analysis('text', '{}', $1, p_unlimited => true, p_delay_s => $2)", user, delay_s
        )

    scans = re.findall(rf"on {JOBS}[^\n]*actual rows=([\d.]+) loops=(\d+)", "\n".join(plans.texts))
    assert 0 < sum(float(rows) * int(loops) for rows, loops in scans) < 100


async def test_claims_renewals_and_progress_leave_every_index_alone(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(PENDING, 0.0, 40)
    before = await _updates(connection)
    jobs = await connection.fetch(CLAIM)
    ids, tokens = [job["id"] for job in jobs], [job["lease_token"] for job in jobs]
    for _ in range(2):
        await connection.execute("select * from renew_leases($1, $2, '6 s')", ids, tokens)
        await connection.execute("select report_progress($1, $2, $3, $4)", ids, tokens, [5] * 10, ["detect"] * 10)

    updates, heap_only = [after - earlier for after, earlier in zip(await _updates(connection), before, strict=True)]
    await connection.close()

    assert (updates, heap_only) == (50, 50)


async def _updates(connection: Any) -> tuple[int, int]:
    # The counters of a session become visible after the transaction that follows this call.
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select 1")
    row = await connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'analysis_jobs'"
    )
    return row[0], row[1]
