"""Takes over tables `analysis_jobs` and `analysis_cache` of another shape: MaxNutrition's production schema
(`job_type`, `input_data`, status `queued`, ...), its specification, or an aiworker of before 0.1.

The old tables stay, under another name and closed to everybody; every job is copied into the new one. All of it is one
transaction: it happens as a whole or not at all, and a rehearsal is the same transaction taken back at its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from aiworker.domain.errors import ConfigurationError, DatabaseUnavailable
from aiworker.domain.messages import sentence
from aiworker.queue.errors import error_of
from aiworker.queue.migrate import connected, exclusive, start_over

SUFFIX = "_before_aiworker"
_LOCK_TIMEOUT = "5s"
# The migrations put the new table into it.
_REALTIME = "supabase_realtime"

# As 0001_tables.sql tells them from ours: a column that we have, and the primary key.
_FOREIGN = """
select ours.name
  from (values ('analysis_jobs', 'place', 'id'), ('analysis_cache', 'response', 'cache_key')) as ours (name, sign, key)
 where to_regclass('public.' || ours.name) is not null and not exists (
   select from pg_index i
     join pg_attribute k on k.attrelid = i.indrelid and k.attnum = i.indkey[0] and k.attname = ours.key
     join pg_attribute s on s.attrelid = i.indrelid and s.attname = ours.sign
    where i.indrelid = to_regclass('public.' || ours.name) and i.indisprimary)
 order by ours.name desc"""
_COLUMNS = """
select column_name from information_schema.columns where table_schema = 'public' and table_name = $1"""
_INDEXES = "select indexname from pg_indexes where schemaname = 'public' and tablename = $1"
_POLICIES = "select policyname from pg_policies where schemaname = 'public' and tablename = $1"
# Those that name the table: one of a whole schema has ours too.
_PUBLICATIONS = """
select p.pubname from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
 where r.prrelid = to_regclass('public.' || $1)"""
# Functions whose arguments may differ from ours: two of one name could not be told apart.
_FUNCTIONS = """
select p.oid::regprocedure::text from pg_proc p
 where p.pronamespace = 'public'::regnamespace and p.proname = any ($1)"""
_OURS = (
    *("enqueue_analysis", "get_analysis_status", "cancel_analysis", "analysis_queue_depth", "claim_analyses"),
    *("renew_leases", "report_progress", "finalise_analyses", "rescue_expired"),
)
# The migrations keep what has the name and the kind of one of theirs.
_FOREIGN_TYPES = """
select t.typname from pg_type t join (values ('analysis_status', 'c'), ('analysis_priority', 'd')) as ours (name, kind)
    on t.typname = ours.name and t.typtype::text <> ours.kind
 where t.typnamespace = 'public'::regnamespace"""
_DEPENDENTS = """
select distinct c.relkind, c.oid::regclass::text as name
  from pg_depend d
  join pg_rewrite r on r.oid = d.objid
  join pg_class c on c.oid = r.ev_class
 where d.classid = 'pg_rewrite'::regclass and d.refobjid = $1::regclass and c.oid <> $1::regclass
union
select 'f', conrelid::regclass::text from pg_constraint where confrelid = $1::regclass and contype = 'f'
union
select 't', tgname from pg_trigger where tgrelid = $1::regclass and not tgisinternal
 order by 1, 2"""

_COUNTS = """
select (select count(*) from public.analysis_jobs_before_aiworker), (select count(*) from public.analysis_jobs)"""
_UNSERVED = """
select type, count(*)::int from public.analysis_jobs
 where line is not null and type <> all ($1) group by 1 order by 1"""
_ENDS = """
select o.status::text, n.status, count(*)::int
  from public.analysis_jobs_before_aiworker o join public.analysis_jobs n using (id)
 group by 1, 2 order by 1, 2"""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was, or would be, done. `ends` counts jobs by old and new status, `unserved` the unfinished ones by type of
    which no analysis is here; `kept` are the old tables' new names."""

    kept: dict[str, str] = field(default_factory=dict)
    ends: list[tuple[str, str, int]] = field(default_factory=list)
    unserved: list[tuple[str, int]] = field(default_factory=list)
    dropped_policies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _TakenBack(Exception):
    """The rehearsal is over."""


async def adopt(
    database_url: str, *, give_up_after_h: float, renamed: Mapping[str, str], served: Collection[str], rehearse: bool
) -> Adoption:
    """Raises ConfigurationError when a row would be lost or the database refuses, DatabaseUnavailable.

    Args:
        give_up_after_h: unfinished jobs older than this many hours end as failed, for nobody waits for them any more.
        renamed: types that are called otherwise now, the old name first.
        served: types that an analysis is here for.
        rehearse: everything is done, and then taken back. Jobs wait meanwhile.
    """
    adoption = Adoption()
    async with connected(database_url) as connection:
        try:
            async with exclusive(connection):
                # Not before: another one may have adopted them while this one waited.
                foreign = await _names(connection, _FOREIGN)
                if not foreign:
                    return adoption
                await _take_over(connection, foreign, adoption)
                if "analysis_jobs" in foreign:
                    await _copy_jobs(connection, give_up_after_h, renamed, adoption)
                    adoption.unserved.extend(tuple(row) for row in await connection.fetch(_UNSERVED, list(served)))
                if rehearse:
                    raise _TakenBack
        except _TakenBack:
            pass
    return adoption


async def _names(connection: Any, query: str, *arguments: object) -> list[str]:
    return [str(row[0]) for row in await connection.fetch(query, *arguments)]


async def _take_over(connection: Any, tables: Collection[str], adoption: Adoption) -> None:
    await connection.execute(f"set local lock_timeout = '{_LOCK_TIMEOUT}'")
    with _fitting("tables"):
        for table in tables:
            await _set_aside(connection, table, adoption)
        for function in await _names(connection, _FUNCTIONS, list(_OURS)):
            await connection.execute(f"drop function {function}")
        for name in await _names(connection, _FOREIGN_TYPES):
            await connection.execute(f"alter type public.{name} rename to {name + SUFFIX}")
            adoption.notes.append(f"type {name} is called {name + SUFFIX} from now on")
    await start_over(connection)


async def _set_aside(connection: Any, table: str, adoption: Adoption) -> None:
    kept = table + SUFFIX
    if await _names(connection, _COLUMNS, kept):
        raise ConfigurationError(f"a table {kept} is already there: look at it, then rename or drop it")
    for kind, name in await connection.fetch(_DEPENDENTS, f"public.{table}"):
        what = {b"f": "foreign key of", b"t": "trigger"}.get(kind, "view")
        adoption.notes.append(f"{what} {name} refers to {kept} from now on")
    for publication in await _names(connection, _PUBLICATIONS, table):
        await connection.execute(f"alter publication {_quoted(publication)} drop table public.{table}")
        if publication != _REALTIME:
            adoption.notes.append(f"publication {publication} has lost {table}")
    for policy in await _names(connection, _POLICIES, table):
        await connection.execute(f"drop policy {_quoted(policy)} on public.{table}")
        adoption.dropped_policies.append(f"{table}: {policy}")
    for number, index in enumerate(await _names(connection, _INDEXES, table)):
        # Names are cut at 63 bytes: the number keeps two that begin alike apart.
        renamed = f"{index[: 63 - len(SUFFIX) - 4]}_{number}{SUFFIX}"
        await connection.execute(f"alter index public.{_quoted(index)} rename to {_quoted(renamed)}")
    await connection.execute(f"alter table public.{table} rename to {kept}")
    # Not forced: an owner who is no superuser would see no row to copy, and count none.
    await connection.execute(f"alter table public.{kept} enable row level security, no force row level security")
    await connection.execute(f"revoke all on public.{kept} from public")
    for role in await _names(
        connection, "select rolname from pg_roles where rolname = any ($1)", ["anon", "authenticated"]
    ):
        await connection.execute(f"revoke all on public.{kept} from {_quoted(role)}")
    adoption.kept[table] = kept


async def _copy_jobs(connection: Any, give_up_after_h: float, renamed: Mapping[str, str], adoption: Adoption) -> None:
    columns = await _names(connection, _COLUMNS, adoption.kept["analysis_jobs"])
    late = sentence("deadline_exceeded")
    with _fitting("jobs"):
        await connection.execute(copy_statement(columns), give_up_after_h, late, list(renamed), list(renamed.values()))
    old, new = await connection.fetchrow(_COUNTS)
    if old != new:
        raise ConfigurationError(f"{old} jobs were there and {new} would be: nothing was changed")
    adoption.ends.extend(tuple(row) for row in await connection.fetch(_ENDS))


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    """Within, what the database refuses is said without its text, which may quote a row."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if isinstance(error_of(error), DatabaseUnavailable):
            raise
        why = ", ".join(filter(None, [type(error).__name__, f"SQLSTATE {error.sqlstate}", error.constraint_name]))
        raise ConfigurationError(
            f"the old {what} do not fit ({why}) and nothing was changed: correct analysis_jobs, then adopt it again"
        ) from None


def copy_statement(columns: Collection[str]) -> str:
    """Copies every job of the old table, which has these columns, into `analysis_jobs`.

    $1 is the age in hours after which an unfinished job is given up, $2 the sentence that it then ends with, $3 and $4
    are old and new names of types. Raises ConfigurationError when the table lacks what makes a job.
    """
    missing = {"id", "user_id", "status"} - set(columns)
    if missing or not {"type", "job_type"} & set(columns):
        raise ConfigurationError(
            f"analysis_jobs is no table of jobs, it lacks {', '.join(sorted(missing)) or 'type'}: rename it"
        )
    old = {name: _first(columns, names, default) for name, (names, default) in _SOURCES.items()}
    return _COPY.format(**old | {name: _readable(old[name]) for name in _MOMENTS})


# For each value that is needed the columns that may hold it, the best first, and what it is where none does.
_SOURCES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "type": (("type", "job_type"), "''"),
    "input": (("input", "input_data"), "'{}'::jsonb"),
    "result": (("result",), "null::jsonb"),
    "error": (("error", "error_message"), "null::text"),
    "error_code": (("error_code",), "null::text"),
    "priority": (("priority",), "5"),
    "attempts": (("attempts",), "0"),
    "max_attempts": (("max_attempts",), "3"),
    "spent_ms": (("processing_time_ms",), "null::integer"),
    "spent_s": (("actual_duration_seconds",), "null::numeric"),
    "worker_id": (("worker_id",), "null::text"),
    "created_at": (("created_at",), "now()"),
    "updated_at": (("updated_at", "created_at"), "now()"),
    "started_at": (("started_at",), "null::timestamptz"),
    "completed_at": (("completed_at",), "null::timestamptz"),
    "idempotency_key": (("idempotency_key",), "null::text"),
}

_MOMENTS = ("created_at", "updated_at", "started_at", "completed_at")

_COPY = """
with old as (
  select o.id, o.user_id, o.status::text as status,
         {type} as type, {input} as input, {result} as result, {error} as error, {error_code} as error_code,
         least(greatest({priority}, 1), 10) as priority,
         least(greatest({max_attempts}, 1), 32767) as max_attempts, least(greatest({attempts}, 0), 32767) as attempts,
         coalesce({spent_ms}, {spent_s} * 1000) as spent_ms, {worker_id} as worker_id,
         {created_at} as created_at, {updated_at} as updated_at,
         {started_at} as started_at, {completed_at} as completed_at, {idempotency_key} as idempotency_key
    from public.analysis_jobs_before_aiworker o
), judged as (
  select old.*,
         case when status in ('completed', 'failed', 'cancelled') then status
              when status in ('queued', 'pending', 'processing')
                   and created_at > now() - $1::double precision * interval '1 hour'
                   and attempts < max_attempts then 'pending'
              else 'failed' end as becomes
    from old
)
insert into public.analysis_jobs (
  id, user_id, created_at, updated_at, deadline_at, run_after, place, priority, attempts, max_attempts, progress,
  status, type, input, line, started_at, completed_at, processing_time_ms, worker_id, result, error, error_code,
  idempotency_key
)
select id, user_id, created_at, updated_at, created_at + interval '20 seconds', created_at,
       created_at + priority * interval '10 seconds', priority, least(attempts, max_attempts), max_attempts,
       case when becomes = 'completed' then 100 else 0 end,
       becomes, coalesce((select n.new from unnest($3::text[], $4::text[]) as n (old, new) where n.old = type), type),
       coalesce(input, '{{}}'), case when becomes = 'pending' then 0 end,
       case when becomes <> 'pending' then started_at end,
       case when becomes <> 'pending' then coalesce(completed_at, updated_at, created_at) end,
       -- least() passes over null, and would make it the largest number that there is.
       case when becomes <> 'pending' and spent_ms is not null then least(spent_ms, 2147483647)::integer end,
       case when becomes <> 'pending' then worker_id end,
       case when becomes = 'completed' then result end,
       case when becomes = 'failed' then coalesce(case when status = 'failed' then error end, $2::text) end,
       case when becomes = 'failed' then coalesce(
         error_code, case when status = 'failed' then 'internal_error' else 'deadline_exceeded' end) end,
       idempotency_key
  from judged
"""


def _first(columns: Collection[str], names: tuple[str, ...], default: str) -> str:
    present = [f"o.{name}" for name in names if name in columns]
    return f"coalesce({', '.join([*present, default])})" if present else default


def _readable(moment: str) -> str:
    """The moment between 1970 and now: an infinite one makes every claim fail before PostgreSQL 17, Python knows no
    year of five digits, and what ends in the future is not pruned."""
    return f"case when {moment} is not null then least(greatest({moment}, 'epoch'), now()) end"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
