"""Who may do what: a table of role x operation, tried cell by cell, on plain PostgreSQL and on one like Supabase's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from fakes.databases import LOGINS, as_login, cloned_database, execute
from fakes.queue_bench import RULES, TEXT

from aiworker.domain.errors import ConfigurationError
from aiworker.domain.job import NewJob
from aiworker.domain.outcome import Completed
from aiworker.queue.migrate import migrate, shipped
from aiworker.queue.postgres import PostgresQueue

ME, OTHER = UUID(int=1), UUID(int=2)

# What Supabase has before anybody migrates: its roles' rights on all that is new, its own auth.uid(), a publication.
SUPABASE = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
create schema auth;
create function auth.uid() returns uuid language sql stable
  as $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
grant usage on schema auth to anon, authenticated, service_role;
create publication supabase_realtime;
"""

ROWS, NOTHING, DENIED = "rows", "nothing", "42501"
NOT_ALLOWED, NOT_FOUND = "AW006", "AW003"

READ = "select * from analysis_jobs where id = {}"
CHANGE = "update analysis_jobs set {} where id = {} returning id"

# Columns: anon, a user, Supabase's service role, the worker's role, somebody without any role.
#          A user's own job is {own}, another user's {other}, one that runs {running} under {token}.
TABLE: dict[str, tuple[str, tuple[str, str, str, str, str]]] = {
    "read own job": (READ.format("{own}"), (DENIED, ROWS, ROWS, DENIED, DENIED)),
    "read another's job": (READ.format("{other}"), (DENIED, NOTHING, ROWS, DENIED, DENIED)),
    "insert a job": (
        "insert into analysis_jobs (user_id, type, input, deadline_at, run_after, place, line)"
        " values ({me}, 'text', '{{}}', now(), now(), now(), 5) returning id",
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "change own result": (CHANGE.format("result = '{{}}'", "{own}"), (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "change own input": (CHANGE.format("input = '{{}}'", "{own}"), (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "change own status": (
        CHANGE.format("status = 'cancelled', line = null, completed_at = now()", "{own}"),
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "change own place": (CHANGE.format("place = now()", "{own}"), (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "delete own job": (
        "delete from analysis_jobs where id = {own} returning id",
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "empty the table": ("truncate analysis_jobs", (DENIED, DENIED, DENIED, DENIED, DENIED)),
    "read the cache": ("select * from analysis_cache", (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "write the cache": (
        "insert into analysis_cache values ('k', 'text', '{{}}', 0, null, now(), now()) returning cache_key",
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "read the answers": ("select * from analysis_answers", (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "write the answers": (
        "insert into analysis_answers select {me}, 'other', '', cache_key, now() from analysis_cache returning 1",
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "read types": ("select * from analysis_types", (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "write limits": ("update analysis_limits set max_active = 99 returning 1", (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "write pauses": ("insert into analysis_pauses values ('*') returning 1", (DENIED, DENIED, ROWS, DENIED, DENIED)),
    "read the ledger": ("select * from aiworker_migrations", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "enqueue for oneself": (
        "select job_id from enqueue_analysis('text', '{{}}')",
        (DENIED, ROWS, "22023", "22023", DENIED),
    ),
    "enqueue for me": (
        "select job_id from enqueue_analysis('text', '{{}}', {me})",
        (DENIED, ROWS, ROWS, ROWS, DENIED),
    ),
    "enqueue for another": (
        "select job_id from enqueue_analysis('text', '{{}}', {other_user})",
        (DENIED, NOT_ALLOWED, ROWS, ROWS, DENIED),
    ),
    "enqueue without limit": (
        "select job_id from enqueue_analysis('text', '{{}}', {me}, p_unlimited => true)",
        (DENIED, NOT_ALLOWED, ROWS, ROWS, DENIED),
    ),
    "choose the attempts": (
        "select job_id from enqueue_analysis('text', '{{}}', {me}, p_max_attempts => 9)",
        (DENIED, NOT_ALLOWED, ROWS, ROWS, DENIED),
    ),
    "status of own job": ("select * from get_analysis_status({own})", (DENIED, ROWS, ROWS, ROWS, DENIED)),
    "status of another's": ("select * from get_analysis_status({other})", (DENIED, NOTHING, ROWS, ROWS, DENIED)),
    "status as another": (
        "select * from get_analysis_status({other}, {other_user})",
        (DENIED, NOT_ALLOWED, ROWS, ROWS, DENIED),
    ),
    "cancel own job": ("select * from cancel_analysis({own})", (DENIED, ROWS, ROWS, ROWS, DENIED)),
    "cancel another's": ("select * from cancel_analysis({other})", (DENIED, NOT_FOUND, ROWS, ROWS, DENIED)),
    "depth": ("select count(*) from analysis_queue_depth()", (DENIED, DENIED, ROWS, ROWS, DENIED)),
    "configure": ("select configure_analyses('[]', 10, 3)", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "claim": ("select id from claim_analyses('w', 1, '6 s', '{{text}}')", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "renew": (
        "select id from renew_leases(array[{running}], array[{token}], '6 s')",
        (DENIED, DENIED, DENIED, ROWS, DENIED),
    ),
    "report": (
        "select report_progress(array[{running}], array[{token}], '{{5}}', '{{x}}')",
        (DENIED, DENIED, DENIED, ROWS, DENIED),
    ),
    "finalise": (
        "select count(*) from finalise_analyses(array[{running}], array[{token}], '{{failed}}')",
        (DENIED, DENIED, DENIED, ROWS, DENIED),
    ),
    "rescue": ("select rescue_expired()", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "pause": ("select pause_analyses()", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "resume": ("select resume_analyses()", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "prune": ("select prune_analyses('30 days')", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "read what models cost": (
        "insert into analysis_spend values ('2026-01-01', 'x', 1) returning usd",
        (DENIED, DENIED, ROWS, DENIED, DENIED),
    ),
    "add to it": ("select add_spend('2026-01-02', 'x', 1)", (DENIED, DENIED, DENIED, ROWS, DENIED)),
    "pass a lead on": ("select analysis_pass_on('k', '{{}}')", (DENIED, DENIED, DENIED, DENIED, DENIED)),
    "whose jobs": ("select analysis_user(null)", (DENIED, DENIED, DENIED, DENIED, DENIED)),
    "am I the service": ("select analysis_is_service()", (DENIED, DENIED, DENIED, DENIED, DENIED)),
}
ROLES = ("anon", "authenticated", "service_role", "worker", "stranger")


@dataclass
class Place:
    """A migrated database with three jobs in it, and connections to it by login."""

    runner: asyncio.Runner
    url: str
    values: dict[str, str]
    connections: dict[str, Any]

    def try_as(self, role: str, sql: str) -> str:
        return self.runner.run(self._try(role, sql.format(**self.values)))

    async def _try(self, role: str, sql: str) -> str:
        login = role if role in ("worker", "stranger") else "authenticator"
        connection = self.connections[login]
        transaction = connection.transaction()
        await transaction.start()
        try:
            if login == "authenticator":
                claims = json.dumps({"sub": str(ME), "role": role} if role == "authenticated" else {"role": role})
                await connection.execute(f"set local role {role}")
                await connection.execute("select set_config('request.jwt.claims', $1, true)", claims)
            return ROWS if await connection.fetch(sql) else NOTHING
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        finally:
            await transaction.rollback()


@pytest.fixture(scope="module", params=["plain", "supabase"])
def place(request: pytest.FixtureRequest, postgres_server: str, migrated_template: str) -> Iterator[Place]:
    with asyncio.Runner() as runner, cloned_database(postgres_server, "template0") as url:
        runner.run(execute(postgres_server, LOGINS))
        if request.param == "supabase":
            runner.run(execute(url, SUPABASE))
        values = runner.run(_fill(url))
        logins = {
            name: runner.run(asyncpg.connect(as_login(url, f"test_{name}")))
            for name in ("authenticator", "worker", "stranger")
        }
        try:
            yield Place(runner, url, values, logins)
        finally:
            for connection in logins.values():
                runner.run(connection.close())


async def _fill(url: str) -> dict[str, str]:
    await migrate(url)
    async with PostgresQueue(url, RULES) as queue:
        running = (await queue.enqueue(NewJob(uuid4(), TEXT, {}))).job_id
        [job] = await queue.claim("w", 1, 600.0, [TEXT])
        own = (await queue.enqueue(NewJob(ME, TEXT, {}))).job_id
        other = (await queue.enqueue(NewJob(OTHER, TEXT, {}))).job_id
        await queue.enqueue(NewJob(ME, "shared", {}))
        [shared] = await queue.claim("w", 1, 600.0, ["shared"])
        await queue.finalise([(shared.lease, Completed({}, cache_ttl_s=600))])
        assert (await queue.enqueue(NewJob(ME, "shared", {}, idempotency_key="once"))).job_id is None
    ids = {"own": own, "other": other, "running": running, "token": job.lease.token, "me": ME, "other_user": OTHER}
    return {name: f"'{value}'::uuid" for name, value in ids.items()}


@pytest.mark.parametrize("operation", TABLE)
def test_each_cell(place: Place, operation: str) -> None:
    sql, expected = TABLE[operation]

    assert {role: place.try_as(role, sql) for role in ROLES} == dict(zip(ROLES, expected, strict=True))


def test_a_token_without_a_user_is_nobody(place: Place) -> None:
    async def tokenless() -> str:
        connection = place.connections["authenticator"]
        async with connection.transaction():
            await connection.execute("set local role authenticated")
            assert await connection.fetch("select * from analysis_jobs") == []
            try:
                async with connection.transaction():
                    await connection.fetch("select * from enqueue_analysis('text', '{}')")
            except asyncpg.PostgresError as error:
                return str(error.sqlstate)
            return ROWS

    assert place.runner.run(tokenless()) == NOT_ALLOWED


def test_a_user_is_limited_through_rpc_too(place: Place) -> None:
    async def hammer() -> list[str]:
        connection = place.connections["authenticator"]
        replies = []
        async with connection.transaction():
            await connection.execute("set local role authenticated")
            await connection.execute(
                "select set_config('request.jwt.claims', $1, true)", json.dumps({"sub": str(uuid4())})
            )
            for _ in range(12):
                try:
                    async with connection.transaction():
                        await connection.fetch("select * from enqueue_analysis('text', '{}')")
                        replies.append(ROWS)
                except asyncpg.PostgresError as error:
                    replies.append(str(error.sqlstate))
            await connection.execute("set local role none")
        return replies

    assert place.runner.run(hammer()) == [ROWS] * 10 + ["AW001"] * 2


def test_the_worker_needs_nothing_but_its_role(place: Place) -> None:
    async def live() -> None:
        async with PostgresQueue(as_login(place.url, "test_worker"), RULES) as queue:
            job_id = (await queue.enqueue(NewJob(uuid4(), TEXT, {}, priority=1))).job_id
            [job] = await queue.claim("w", 1, 600.0, [TEXT])
            assert job.id == job_id
            assert not (await queue.renew([job.lease], 600.0)).lost
            await queue.report({job.lease: (50, "detect")})
            assert not await queue.finalise([(job.lease, Completed({"kcal": 1}))])
            await queue.rescue()
            await queue.depth()
            await queue.prune(3600)
            assert (await queue.status(job_id, None)).result == {"kcal": 1}

    place.runner.run(live())


def test_a_login_without_the_role_is_told_what_it_lacks(place: Place) -> None:
    async def ask() -> None:
        async with PostgresQueue(as_login(place.url, "test_stranger")) as queue:
            await queue.depth()

    with pytest.raises(ConfigurationError, match="grant aiworker to"):
        place.runner.run(ask())


def test_realtime_sees_the_jobs_where_there_is_realtime(place: Place, request: pytest.FixtureRequest) -> None:
    published = place.runner.run(_published(place.url))

    assert published in ([], [("public", "analysis_jobs")])
    assert bool(published) == ("supabase" in request.node.name)


async def _published(url: str) -> list[tuple[str, str]]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("select schemaname, tablename from pg_publication_tables")
    await connection.close()
    return [tuple(row) for row in rows]


def test_an_owner_who_is_no_superuser_can_migrate_and_work(postgres_server: str, migrated_template: str) -> None:
    """As on Supabase, where the roles are there and `postgres` is an ordinary user."""
    with asyncio.Runner() as runner, cloned_database(postgres_server, "template0") as url:
        runner.run(execute(postgres_server, LOGINS))
        name = urlsplit(url).path[1:]
        runner.run(execute(postgres_server, f"alter database {name} owner to test_owner"))
        owned = as_login(url, "test_owner")

        assert runner.run(migrate(owned)) == [migration.name for migration in shipped()]
        runner.run(_fill(owned))


def test_the_owner_may_be_called_as_the_workers_role_is(postgres_server: str, migrated_template: str) -> None:
    """A managed PostgreSQL whose one user, who is no superuser, was named after the program."""
    with asyncio.Runner() as runner, cloned_database(postgres_server, "template0") as url:
        name = urlsplit(url).path[1:]
        runner.run(execute(postgres_server, f"alter database {name} owner to aiworker"))
        runner.run(execute(postgres_server, "alter role aiworker login createrole password 'x'"))
        try:
            runner.run(_fill(as_login(url, "aiworker")))
        finally:
            runner.run(execute(postgres_server, "alter role aiworker nologin nocreaterole password null"))
