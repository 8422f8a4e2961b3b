-- Tables of the queue, for PostgreSQL 15 and newer. Applied by `aiworker migrate`, psql or the Supabase CLI.

do $$
begin
  if to_regclass('public.analysis_jobs') is not null and not exists (
    select from information_schema.columns
    where table_schema = 'public' and table_name = 'analysis_jobs' and column_name = 'lease_token'
  ) then
    raise exception using
      errcode = 'AW100',
      message = 'a table analysis_jobs of another shape is already there',
      hint = 'rename it, or take an empty database, before applying these migrations';
  end if;
end;
$$;

create table if not exists public.analysis_jobs (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  type text not null,
  input jsonb not null,
  status text not null default 'pending'
    check (status in ('pending', 'processing', 'completed', 'failed', 'cancelled')),
  priority smallint not null default 5 check (priority between 1 and 10),
  attempts smallint not null default 0 check (attempts between 0 and max_attempts),
  max_attempts smallint not null default 3 check (max_attempts >= 1),
  progress smallint not null default 0 check (progress between 0 and 100),
  stage text,
  result jsonb,
  error text,
  error_code text,
  processing_time_ms integer,
  worker_id text,
  lease_token uuid,
  lease_expires_at timestamptz,
  cancel_requested_at timestamptz,
  cache_key text,
  idempotency_key text,
  request_hash bytea,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  started_at timestamptz,
  completed_at timestamptz,
  deadline_at timestamptz not null,
  -- When it first could run: its place in line counts from here and is kept through retries.
  due_at timestamptz not null default now(),
  -- When it may run next: `due_at`, or later after a retry.
  run_after timestamptz not null default now(),
  order_key timestamp not null
    generated always as ((due_at at time zone 'UTC') + priority * interval '10 seconds') stored,
  check ((status = 'processing') = (lease_token is not null)),
  check ((status = 'processing') = (lease_expires_at is not null)),
  check ((status in ('completed', 'failed', 'cancelled')) = (completed_at is not null))
) with (
  -- Renewals and progress touch no indexed column: with room on the page they stay heap-only updates.
  fillfactor = 80,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_vacuum_cost_delay = 0
);

comment on column public.analysis_jobs.priority is '1 is most urgent; a level is worth 10 seconds of waiting';
comment on column public.analysis_jobs.lease_token is 'proves the right to finish this attempt; new at every claim';

-- The order of the claim, and nothing but rows that can be claimed.
create index if not exists analysis_jobs_claim on public.analysis_jobs (order_key) where status = 'pending';

-- A user's limit and the depth of the queue: unfinished rows only.
create index if not exists analysis_jobs_active on public.analysis_jobs (user_id)
  where status in ('pending', 'processing');

-- Rescue. Not keyed by the lease's end, or every renewal would have to write the index.
create index if not exists analysis_jobs_running on public.analysis_jobs (started_at) where status = 'processing';

create unique index if not exists analysis_jobs_idempotency on public.analysis_jobs (user_id, idempotency_key)
  where idempotency_key is not null;

create table if not exists public.analysis_cache (
  cache_key text primary key,
  type text not null,
  response jsonb not null,
  hit_count bigint not null default 0,
  last_hit_at timestamptz,
  expires_at timestamptz not null,
  created_at timestamptz not null default now()
) with (fillfactor = 90);

-- No policy yet: roles other than the owner and those that bypass row security see nothing.
alter table public.analysis_jobs enable row level security;
alter table public.analysis_cache enable row level security;
