-- What the gateway, an Edge Function or any RPC client calls.
-- Errors that a client can cause have their own SQLSTATE:
--   AW001 too many active jobs, AW002 idempotency key used for another request,
--   AW003 no such job (or not this user's), AW004 the job has already ended.

-- A cached result comes back with `job_id` null. `p_max_active` null means no limit.
create or replace function public.enqueue_analysis(
  p_user_id uuid,
  p_type text,
  p_input jsonb,
  p_slo_s double precision,
  p_priority integer default 5,
  p_max_attempts integer default 3,
  p_cache_key text default null,
  p_idempotency_key text default null,
  p_delay_s double precision default 0,
  p_max_active integer default 10,
  p_use_cache boolean default true
) returns table (job_id uuid, status text, cached_result jsonb)
language plpgsql
set search_path = public, pg_temp
as $$
#variable_conflict use_column
declare
  v_due timestamptz;
  v_hash bytea;
  v_earlier record;
  v_id uuid;
  v_cached jsonb;
begin
  if p_idempotency_key is not null or p_max_active is not null then
    -- One enqueue at a time for one user, so that what is counted and looked up below is exact.
    perform pg_advisory_xact_lock(hashtextextended('aiworker.enqueue:' || p_user_id::text, 0));
  end if;
  -- Not now(): the wait for the lock above must not count as waiting in line.
  v_due := clock_timestamp() + p_delay_s * interval '1 second';

  if p_idempotency_key is not null then
    v_hash := sha256(convert_to(p_type || chr(10) || p_input::text, 'UTF8'));
    select j.id, j.status, j.request_hash into v_earlier
      from analysis_jobs j where j.user_id = p_user_id and j.idempotency_key = p_idempotency_key;
    if found then
      if v_earlier.request_hash is distinct from v_hash then
        raise exception using errcode = 'AW002', message = 'idempotency_conflict';
      end if;
      return query select v_earlier.id, v_earlier.status, null::jsonb;
      return;
    end if;
  end if;

  if p_use_cache and p_cache_key is not null then
    update analysis_cache c set hit_count = c.hit_count + 1, last_hit_at = now()
      where c.cache_key = p_cache_key and c.type = p_type and c.expires_at > now()
      returning c.response into v_cached;
    if found then
      return query select null::uuid, 'completed', v_cached;
      return;
    end if;
  end if;

  if p_max_active is not null and p_max_active <= (
    select count(*) from analysis_jobs j where j.user_id = p_user_id and j.status in ('pending', 'processing')
  ) then
    raise exception using errcode = 'AW001', message = 'too_many_active_jobs';
  end if;

  insert into analysis_jobs as j (
    user_id, type, input, priority, max_attempts, cache_key, idempotency_key, request_hash,
    created_at, updated_at, due_at, run_after, deadline_at
  ) values (
    p_user_id, p_type, p_input, p_priority, p_max_attempts, p_cache_key, p_idempotency_key, v_hash,
    clock_timestamp(), clock_timestamp(), v_due, v_due, v_due + p_slo_s * interval '1 second'
  ) returning j.id into v_id;
  if p_delay_s <= 0 then
    perform pg_notify('analysis_jobs', 'work');
  end if;
  return query select v_id, 'pending', null::jsonb;
end;
$$;

-- No row for an unknown job, nor for another user's. `p_user_id` null is the service and sees all.
create or replace function public.get_analysis_status(p_job_id uuid, p_user_id uuid default null)
returns table (
  id uuid, user_id uuid, type text, status text, priority integer, attempts integer, max_attempts integer,
  created_at timestamptz, updated_at timestamptz, started_at timestamptz, completed_at timestamptz,
  progress integer, stage text, result jsonb, error text, error_code text, processing_time_ms integer,
  worker_id text
)
language sql stable
set search_path = public, pg_temp
as $$
  select j.id, j.user_id, j.type, j.status, j.priority, j.attempts, j.max_attempts,
         j.created_at, j.updated_at, j.started_at, j.completed_at,
         j.progress, j.stage, j.result, j.error, j.error_code, j.processing_time_ms, j.worker_id
    from analysis_jobs j
   where j.id = p_job_id and (p_user_id is null or j.user_id = p_user_id)
$$;

-- A pending job ends here; a running one is asked to stop. Asking again changes nothing.
create or replace function public.cancel_analysis(p_job_id uuid, p_user_id uuid default null)
returns table (
  id uuid, user_id uuid, type text, status text, priority integer, attempts integer, max_attempts integer,
  created_at timestamptz, updated_at timestamptz, started_at timestamptz, completed_at timestamptz,
  progress integer, stage text, result jsonb, error text, error_code text, processing_time_ms integer,
  worker_id text
)
language plpgsql
set search_path = public, pg_temp
as $$
#variable_conflict use_column
declare
  v_status text;
begin
  select j.status into v_status from analysis_jobs j
   where j.id = p_job_id and (p_user_id is null or j.user_id = p_user_id) for update;
  if not found then
    raise exception using errcode = 'AW003', message = 'job_not_found';
  elsif v_status in ('completed', 'failed') then
    raise exception using errcode = 'AW004', message = 'job_already_finished';
  elsif v_status = 'pending' then
    update analysis_jobs j
       set status = 'cancelled', cancel_requested_at = now(), completed_at = now(), updated_at = now(),
           error = null, error_code = null
     where j.id = p_job_id;
  elsif v_status = 'processing' then
    update analysis_jobs j set cancel_requested_at = now(), updated_at = now()
     where j.id = p_job_id and j.cancel_requested_at is null;
    if found then
      perform pg_notify('analysis_jobs', 'cancel');
    end if;
  end if;
  return query select * from get_analysis_status(p_job_id, p_user_id);
end;
$$;

-- Unfinished jobs by type. Finished rows are never read.
create or replace function public.analysis_queue_depth()
returns table (type text, pending bigint, processing bigint, delayed bigint, oldest_pending_s double precision)
language sql stable
set search_path = public, pg_temp
as $$
  select j.type,
         count(*) filter (where j.status = 'pending' and j.run_after <= now()),
         count(*) filter (where j.status = 'processing'),
         count(*) filter (where j.status = 'pending' and j.run_after > now()),
         coalesce(extract(epoch from max(now() - j.run_after)
           filter (where j.status = 'pending' and j.run_after <= now())), 0)::double precision
    from analysis_jobs j
   where j.status in ('pending', 'processing')
   group by j.type
$$;
