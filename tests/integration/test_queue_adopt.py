"""Adopting the production schema of MaxNutrition, its specification, and tables that are no jobs at all."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from fakes.databases import LOGINS, as_login, execute

from aiworker.domain.errors import ConfigurationError
from aiworker.domain.job import JobStatus
from aiworker.queue.adopt import Adoption, adopt, copy_statement
from aiworker.queue.migrate import migrate, pending, shipped
from aiworker.queue.postgres import PostgresQueue

# The columns, checks, indexes, policies and neighbours that the facts page tells of, in our words.
PRODUCTION = """
create type job_state as enum ('queued', 'pending', 'processing', 'completed', 'failed', 'cancelled');
create table analysis_jobs (
  id uuid primary key default gen_random_uuid(), user_id uuid not null, job_type text not null,
  input_data jsonb default '{}', status job_state default 'queued', priority integer default 5,
  attempts integer default 0, max_attempts integer default 3, result jsonb, error_message text,
  estimated_duration_seconds integer default 10, actual_duration_seconds integer, worker_id text,
  created_at timestamptz default now(), updated_at timestamptz default now(), started_at timestamptz,
  completed_at timestamptz);
create index idx_analysis_jobs_status on analysis_jobs (status);
alter table analysis_jobs enable row level security;
create policy "Anyone can update" on analysis_jobs for update using (true);
create policy "Anyone can insert" on analysis_jobs for insert with check (true);
grant all on analysis_jobs to public;
create table job_queue (id serial primary key, job_id uuid unique references analysis_jobs (id));
create view slow_jobs as select id from analysis_jobs where actual_duration_seconds > 30;
create table analysis_cache (
  id uuid primary key default gen_random_uuid(), image_hash text not null, analysis_type text, result jsonb,
  hits integer default 0, cache_key text);
insert into analysis_cache (image_hash, result) values ('h', '{}');
create publication supabase_realtime for table analysis_jobs;
"""
FILL = """
insert into analysis_jobs (id, user_id, job_type, input_data, status, priority, attempts, result, error_message,
                           actual_duration_seconds, worker_id, created_at, started_at, completed_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, now() - $12::float * interval '1 hour',
        now() - $12::float * interval '1 hour', $13)
"""
SPECIFICATION = """
create table analysis_jobs (
  id uuid primary key default gen_random_uuid(), user_id uuid not null, type text not null, input jsonb not null,
  status text not null default 'pending', priority integer not null default 5, attempts integer not null default 0,
  max_attempts integer not null default 3, result jsonb, error text, processing_time_ms integer, worker_id text,
  created_at timestamptz not null default now(), updated_at timestamptz, started_at timestamptz,
  completed_at timestamptz);
insert into analysis_jobs (user_id, type, input, status, result, processing_time_ms, completed_at)
  values (gen_random_uuid(), 'meal_plan', '{}', 'completed', '{"dias": 7}', 1234, now());
create table analysis_cache (
  id uuid primary key default gen_random_uuid(), cache_key text not null unique, type text not null,
  response jsonb not null, hit_count integer default 0, last_hit_at timestamptz, expires_at timestamptz not null,
  created_at timestamptz default now());
"""
USER = UUID(int=7)


async def take_over(url: str, rehearse: bool = False) -> Adoption:
    served = ["sofia_image", "sofia_text"]
    return await adopt(url, give_up_after_h=24, renamed={"food_image": "sofia_image"}, served=served, rehearse=rehearse)


async def production(url: str) -> dict[str, UUID]:
    connection = await asyncpg.connect(url)
    await connection.execute(PRODUCTION)
    ids = {}
    for name, kind, status, attempts, result, error, spent, hours in (
        ("fresh", "food_image", "queued", 0, None, None, None, 1),
        ("waiting", "sofia_text", "pending", 1, None, "429", None, 2),
        ("stuck", "medical_exam", "processing", 1, None, None, None, 3),
        ("spent", "sofia_text", "processing", 3, None, None, None, 3),
        ("ancient", "sofia_text", "queued", 0, None, None, None, 900),
        ("done", "sofia_text", "completed", 1, {"total_kcal": 128.3}, None, 12, 5),
        ("broken", "body_composition", "failed", 3, None, "Timeout", 30, 6),
        ("unwanted", "meal_plan", "cancelled", 0, None, None, None, 7),
    ):
        ids[name] = uuid4()
        await connection.execute(
            FILL,
            ids[name],
            USER,
            kind,
            json.dumps({"text": name}),
            status,
            3,
            attempts,
            json.dumps(result) if result else None,
            error,
            spent,
            "old" if spent else None,
            float(hours),
            None,
        )
    await connection.execute("insert into job_queue (job_id) select id from analysis_jobs")
    await connection.close()
    return ids


async def test_every_row_of_production_becomes_one_of_ours(empty_database_url: str) -> None:
    ids = await production(empty_database_url)

    adoption = await take_over(empty_database_url)

    assert Counter({(was, now): count for was, now, count in adoption.ends}) == Counter(
        {
            ("queued", "pending"): 1,
            ("queued", "failed"): 1,
            ("pending", "pending"): 1,
            ("processing", "pending"): 1,
            ("processing", "failed"): 1,
            ("completed", "completed"): 1,
            ("failed", "failed"): 1,
            ("cancelled", "cancelled"): 1,
        }
    )
    assert adoption.unserved == [("medical_exam", 1)]
    assert await pending(empty_database_url) == []
    async with PostgresQueue(empty_database_url) as queue:
        views = {name: await queue.status(job_id, USER) for name, job_id in ids.items()}
        assert (views["fresh"].type, views["fresh"].status) == ("sofia_image", JobStatus.PENDING)
        assert (views["waiting"].attempts, views["waiting"].priority) == (1, 3)
        done = views["done"]
        assert (done.result, done.processing_time_ms, done.worker_id) == ({"total_kcal": 128.3}, 12_000, "old")
        assert done.completed_at is not None
        assert (views["broken"].error, views["broken"].error_code) == ("Timeout", "internal_error")
        assert views["ancient"].error_code == views["spent"].error_code == "deadline_exceeded"
        assert views["unwanted"].processing_time_ms is None
        claimed = await queue.claim("w", 9, 6.0, ["sofia_image", "sofia_text", "medical_exam"])
        assert [job.id for job in claimed] == [ids["stuck"], ids["waiting"], ids["fresh"]]
        assert json.loads(claimed[2].input) == {"text": "fresh"}


async def test_values_beyond_our_columns_are_cut_and_long_index_names_kept_apart(empty_database_url: str) -> None:
    await production(empty_database_url)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("update analysis_jobs set max_attempts = 99999, actual_duration_seconds = 2147483647")
    for end in "ab":
        await connection.execute(f"create index {'i' * 60}{end} on analysis_jobs (priority)")
    await connection.close()

    adoption = await take_over(empty_database_url)

    assert sum(count for *_, count in adoption.ends) == 8


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("alter table analysis_jobs alter input type json", "CannotCoerceError"),
        (
            "alter table analysis_jobs add idempotency_key text default 'k';"
            "insert into analysis_jobs (id, user_id, type, input)"
            " select gen_random_uuid(), user_id, type, input from analysis_jobs",
            "analysis_jobs_idempotency",
        ),
        (
            "create function cancel_analysis(a text) returns int language sql as 'select 1';"
            "create view cancelled as select cancel_analysis('x')",
            "DependentObjectsStillExistError",
        ),
        ("alter table analysis_jobs rename to jobs; create view analysis_jobs as select * from jobs", "WrongObject"),
    ],
)
async def test_what_does_not_fit_is_said(empty_database_url: str, change: str, what: str) -> None:
    await execute(empty_database_url, SPECIFICATION)
    await execute(empty_database_url, change)

    with pytest.raises(ConfigurationError, match=f"{what}.*nothing was changed"):
        await take_over(empty_database_url)


async def test_nothing_was_created_later_than_now(empty_database_url: str) -> None:
    await production(empty_database_url)
    await execute(empty_database_url, "update analysis_jobs set created_at = 'infinity' where status = 'queued'")
    await take_over(empty_database_url)

    async with PostgresQueue(empty_database_url) as queue:
        claimed = await queue.claim("w", 9, 6.0, ["sofia_text", "sofia_image", "medical_exam"])
    assert len(claimed) == 4
    assert all(0 <= job.waited_s < 4 * 3600 for job in claimed)


@pytest.mark.parametrize("moment", ["infinity", "55841-01-01", "0044-03-15 BC", "-infinity"])
async def test_no_moment_is_beyond_what_everybody_can_read(empty_database_url: str, moment: str) -> None:
    ids = await production(empty_database_url)
    columns = ("created_at", "updated_at", "started_at", "completed_at")
    await execute(
        empty_database_url, "update analysis_jobs set " + ", ".join(f"{column} = '{moment}'" for column in columns)
    )
    await take_over(empty_database_url)

    async with PostgresQueue(empty_database_url) as queue:
        for job_id in ids.values():
            view = await queue.status(job_id, USER)
            for moments in (view.created_at, view.updated_at, view.started_at, view.completed_at):
                assert moments is None or 1970 <= moments.astimezone(UTC).year < 2100


async def test_rows_that_their_owner_cannot_see_are_copied_too(
    postgres_server: str, migrated_template: str, empty_database_url: str
) -> None:
    await execute(postgres_server, LOGINS)
    await execute(empty_database_url, f"alter database {urlsplit(empty_database_url).path[1:]} owner to test_owner")
    owned = as_login(empty_database_url, "test_owner")
    await execute(owned, SPECIFICATION)
    await execute(
        owned,
        "alter table analysis_jobs enable row level security; alter table analysis_jobs force row level security",
    )

    assert (await take_over(owned)).ends == [("completed", "completed", 1)]


async def test_what_no_longer_follows_the_table_is_named(empty_database_url: str) -> None:
    await production(empty_database_url)
    await execute(
        empty_database_url,
        """create function told() returns trigger language plpgsql as 'begin return new; end';
        create trigger webhook after insert on analysis_jobs for each row execute function told();
        create publication warehouse for table analysis_jobs where (priority > 3);
        create publication whole for tables in schema public""",
    )

    notes = (await take_over(empty_database_url)).notes

    for name in ("trigger webhook", "publication warehouse"):
        assert any(name in note for note in notes)
    assert not any("supabase_realtime" in note or "whole" in note for note in notes)


async def test_an_old_type_with_the_name_of_ours_steps_aside(empty_database_url: str) -> None:
    ids = await production(empty_database_url)
    await execute(empty_database_url, "alter type job_state rename to analysis_status")

    adoption = await take_over(empty_database_url)

    assert "type analysis_status is called analysis_status_before_aiworker from now on" in adoption.notes
    async with PostgresQueue(empty_database_url) as queue:
        assert (await queue.status(ids["done"], USER)).status is JobStatus.COMPLETED


async def test_two_that_adopt_at_once_do_it_once(empty_database_url: str) -> None:
    await production(empty_database_url)

    both = await asyncio.gather(take_over(empty_database_url), take_over(empty_database_url))

    assert sorted(len(each.kept) for each in both) == [0, 2]


async def test_the_old_tables_stay_and_are_closed(empty_database_url: str) -> None:
    await production(empty_database_url)

    adoption = await take_over(empty_database_url)

    assert adoption.kept == {
        "analysis_jobs": "analysis_jobs_before_aiworker",
        "analysis_cache": "analysis_cache_before_aiworker",
    }
    assert len(adoption.dropped_policies) == 2
    assert len(adoption.notes) == 2
    assert any("job_queue" in note for note in adoption.notes)
    assert any("slow_jobs" in note for note in adoption.notes)
    connection = await asyncpg.connect(empty_database_url)
    assert await connection.fetchval("select count(*) from analysis_jobs_before_aiworker") == 8
    assert await connection.fetchval("select count(*) from analysis_cache_before_aiworker") == 1
    for role in ("anon", "authenticated"):
        for right in ("select", "insert", "update", "delete"):
            assert not await connection.fetchval(
                "select has_table_privilege($1, 'analysis_jobs_before_aiworker', $2)", role, right
            )
    published = await connection.fetch("select tablename from pg_publication_tables")
    assert [row[0] for row in published] == ["analysis_jobs"]
    names = await connection.fetch("select indexname from pg_indexes where tablename = 'analysis_jobs'")
    assert "analysis_jobs_pkey" in {row[0] for row in names}
    await connection.close()


async def test_a_rehearsal_says_the_same_and_changes_nothing(empty_database_url: str) -> None:
    await production(empty_database_url)
    before = await snapshot(empty_database_url)

    rehearsed = await take_over(empty_database_url, rehearse=True)

    assert await snapshot(empty_database_url) == before
    assert await take_over(empty_database_url) == rehearsed


async def snapshot(url: str) -> Any:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("select * from analysis_jobs order by id")
    relations = await connection.fetch(
        "select relname, relrowsecurity, relacl::text from pg_class"
        " where relnamespace = 'public'::regnamespace order by 1"
    )
    policies = await connection.fetch("select * from pg_policies order by 1, 2, 3")
    await connection.close()
    return rows, relations, policies


async def test_the_specification_is_adopted_too(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(SPECIFICATION)
    job_id = await connection.fetchval("select id from analysis_jobs")
    await connection.close()

    adoption = await take_over(empty_database_url)

    assert adoption.ends == [("completed", "completed", 1)]
    assert list(adoption.kept) == ["analysis_jobs", "analysis_cache"]
    async with PostgresQueue(empty_database_url) as queue:
        view = await queue.status(job_id, None)
        assert (view.type, view.result, view.processing_time_ms) == ("meal_plan", {"dias": 7}, 1234)


async def test_there_may_be_nothing_to_adopt(database_url: str, empty_database_url: str) -> None:
    assert await take_over(database_url) == Adoption()
    assert await take_over(empty_database_url) == Adoption()
    assert len(await migrate(empty_database_url)) == len(shipped())


async def test_it_is_not_done_twice_nor_to_what_is_no_job(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("create table analysis_jobs (id uuid primary key, name text)")
    with pytest.raises(ConfigurationError, match="lacks status, user_id"):
        await take_over(empty_database_url)
    assert await connection.fetchval("select to_regclass('analysis_jobs_before_aiworker')") is None
    await connection.execute(f"drop table analysis_jobs; {SPECIFICATION}")
    await connection.execute("create table analysis_jobs_before_aiworker (id uuid)")
    with pytest.raises(ConfigurationError, match="already there"):
        await take_over(empty_database_url)
    await connection.close()


@pytest.mark.parametrize("without", ["analysis_jobs", "analysis_cache"])
async def test_migrating_first_says_what_to_do(empty_database_url: str, without: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(SPECIFICATION)
    await connection.execute(f"drop table {without}")
    await connection.close()

    with pytest.raises(ConfigurationError, match="aiworker adopt --dry-run"):
        await migrate(empty_database_url)


def test_the_statement_takes_the_first_column_that_there_is() -> None:
    statement = copy_statement({"id", "user_id", "status", "job_type", "error_message", "error"})

    assert "coalesce(o.error, o.error_message, null::text) as error" in statement
    assert "coalesce(o.job_type, '') as type" in statement
    assert "'{}'::jsonb as input" in statement
