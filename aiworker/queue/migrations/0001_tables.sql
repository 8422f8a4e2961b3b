-- Tables of the queue, for PostgreSQL 15 and newer. Applied by `aiworker migrate`, psql or the Supabase CLI.

do $$
begin
  if exists (
    select from (values ('analysis_jobs', 'place', 'id'), ('analysis_cache', 'response', 'cache_key'))
                  as ours (name, sign, key)
     where to_regclass('public.' || ours.name) is not null and not exists (
       select from pg_index i
         join pg_attribute k on k.attrelid = i.indrelid and k.attnum = i.indkey[0] and k.attname = ours.key
         join pg_attribute s on s.attrelid = i.indrelid and s.attname = ours.sign
        where i.indrelid = to_regclass('public.' || ours.name) and i.indisprimary)
  ) then
    raise exception using
      errcode = 'AW100',
      message = 'a table analysis_jobs or analysis_cache of another shape is already there',
      hint = 'run `aiworker adopt --dry-run`, which says how its rows would be taken over';
  end if;
end;
$$;

-- UUID of version 7 (RFC 9562): new rows lie together in the primary key, and its order is that of their age.
create or replace function public.analysis_job_id(p_at timestamptz default clock_timestamp())
returns uuid
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
              placing substring(int8send((extract(epoch from p_at) * 1000)::bigint) from 3) from 1 for 6),
      52, 1), 53, 1),
    'hex')::uuid
$$;

-- What a type of analysis asks of the queue. Written by `configure_analyses` when a gateway or worker starts.
create table if not exists public.analysis_types (
  type text primary key,
  -- Part of what makes two requests the same: raised when prompt, rules or result change.
  version text not null,
  -- A job's deadline is this long after it is due.
  slo_s double precision not null check (slo_s > 0),
  sharing text not null check (sharing in ('never', 'user', 'everyone'))
);

comment on column public.analysis_types.sharing is
  'who may be given the result of an identical request: nobody, the same user (it reads personal context), everyone';

create table if not exists public.analysis_limits (
  only_row boolean primary key default true check (only_row),
  max_active integer not null default 10 check (max_active >= 1),
  max_attempts smallint not null default 3 check (max_attempts >= 1)
);
insert into public.analysis_limits default values on conflict do nothing;

-- Types whose jobs are not handed out; '*' stands for all.
create table if not exists public.analysis_pauses (
  type text primary key,
  paused_at timestamptz not null default now()
);

do $$
begin
  if to_regtype('public.analysis_priority') is null then
    create domain public.analysis_priority as smallint check (value between 1 and 10);
  end if;
end;
$$;

-- Columns that never change size and are never null come first: reading a row is measurably cheaper so. There is one
-- check, since each is read anew for every statement that writes; a domain is looked at only where its column is written.
create table if not exists public.analysis_jobs (
  -- The end of a job writes this index again: without room on its page, it first looks through that for what is dead.
  id uuid primary key with (fillfactor = 45) default public.analysis_job_id(),
  user_id uuid not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  deadline_at timestamptz not null,
  run_after timestamptz not null,
  place timestamptz not null,
  priority public.analysis_priority not null default 5,
  attempts smallint not null default 0,
  max_attempts smallint not null default 3,
  progress smallint not null default 0,
  status text not null default 'pending',
  type text not null,
  input jsonb not null,
  line smallint,
  lease_token uuid,
  lease_expires_at timestamptz,
  started_at timestamptz,
  completed_at timestamptz,
  cancel_requested_at timestamptz,
  processing_time_ms integer,
  leads boolean,
  worker_id text,
  stage text,
  result jsonb,
  error text,
  error_code text,
  cache_key text,
  idempotency_key text,
  request_hash bytea,
  constraint analysis_jobs_state check (
    max_attempts >= 1 and attempts <= max_attempts and (line is null) = (completed_at is not null) and case
      when lease_token is not null then status = 'processing' and line is not null
      when line is not null then status = 'pending'
      else status in ('completed', 'failed', 'cancelled')
    end)
) with (
  -- Claim, renewal and progress touch no indexed column: with room on the page they stay heap-only updates. A claimed row
  -- is a fifth larger than a waiting one.
  fillfactor = 40,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_vacuum_cost_delay = 0
);

comment on column public.analysis_jobs.priority is '1 is most urgent; a level is worth 10 seconds of waiting';
comment on column public.analysis_jobs.place is
  'the order of the claim, set once: when it is due, plus 10 seconds a level of priority, plus what the user''s other'
  ' waiting jobs put it back';
comment on column public.analysis_jobs.line is
  'the line that an unfinished job stands in: 1 to 10 that of its priority, 0 those that came back,'
  ' -1 not due before run_after, -2 waiting for the result of an identical job, -3 suspected of silencing its worker: it'
  ' runs alone, and if that worker falls silent too it has failed; null when it has ended';
comment on column public.analysis_jobs.run_after is 'when it may first run, or run again';
comment on column public.analysis_jobs.lease_token is 'proves the right to finish this attempt; new at every claim';
comment on column public.analysis_jobs.leads is
  'true: jobs of the same cache_key wait for its result; false: it waits for one, or has until its time was short, and'
  ' still has it if it comes before this one is begun; null: it runs for itself';

-- Each line in the order of its claim. A claimed job stays in, so that claiming writes no index.
create index if not exists analysis_jobs_lines on public.analysis_jobs (line, place) where line is not null;

-- A user's limit, and where the user's last job of each line stands. That completed_at is null says the same as that line
-- is not, but in words that no other index has: statistics of an empty table must not make one of those look as good.
create index if not exists analysis_jobs_of_user on public.analysis_jobs (user_id, line, place)
  where completed_at is null;

-- Delays that end, soonest first.
create index if not exists analysis_jobs_delayed on public.analysis_jobs (run_after) where line = -1;

create unique index if not exists analysis_jobs_idempotency on public.analysis_jobs (user_id, idempotency_key)
  where idempotency_key is not null;

-- One job at a time runs for all that are identical to it.
create unique index if not exists analysis_jobs_leader on public.analysis_jobs (cache_key)
  where leads and line is not null;
create index if not exists analysis_jobs_followers on public.analysis_jobs (cache_key, place)
  where not leads and line is not null;

create table if not exists public.analysis_cache (
  cache_key text primary key,
  type text not null,
  response jsonb not null,
  hit_count bigint not null default 0,
  last_hit_at timestamptz,
  expires_at timestamptz not null,
  created_at timestamptz not null default now()
) with (fillfactor = 90);

create index if not exists analysis_cache_expiry on public.analysis_cache (expires_at);

-- Requests with an idempotency key that the cache answered: the key stands for its request as long as the result is kept.
-- There is no job that would count, so of each user only as many are remembered as jobs may be active.
create table if not exists public.analysis_answers (
  user_id uuid not null,
  idempotency_key text not null,
  request_hash bytea not null,
  cache_key text not null references public.analysis_cache on delete cascade,
  answered_at timestamptz not null,
  primary key (user_id, idempotency_key)
);

create index if not exists analysis_answers_of_result on public.analysis_answers (cache_key);
