-- What a worker calls. Every write carries (id, lease_token) and happens only while that lease holds.
-- Functions that lock several rows do so in the order of id, so they cannot deadlock with one another.

-- At most `p_limit` due jobs of `p_types`, most urgent first. The attempt is counted here: a job that kills its
-- process uses its attempts up too.
create or replace function public.claim_analyses(
  p_worker_id text, p_limit integer, p_lease interval, p_types text[]
) returns table (
  id uuid, lease_token uuid, user_id uuid, type text, input jsonb, attempts integer, max_attempts integer,
  deadline_in_s double precision, waited_s double precision, cache_key text
)
language plpgsql
set search_path = public, pg_temp
-- Statistics of an empty queue must not talk the planner out of walking the claim index in its order.
set enable_sort = off
set enable_seqscan = off
-- The price put on sorting would make the JIT compiler think that this is expensive.
set jit = off
as $$
#variable_conflict use_column
begin
  return query
  with next_jobs as materialized (
    select j.id
      from analysis_jobs j
     where j.status = 'pending'
       -- A due job's key is at most ten levels ahead: jobs delayed for longer are not even looked at.
       and j.order_key <= (now() at time zone 'UTC') + interval '100 seconds'
       and j.run_after <= now()
       and j.type = any (p_types)
     order by j.order_key
     limit p_limit
       for update skip locked
  ), claimed as (
    update analysis_jobs j
       set status = 'processing',
           attempts = j.attempts + 1,
           worker_id = p_worker_id,
           lease_token = gen_random_uuid(),
           lease_expires_at = now() + p_lease,
           started_at = now(),
           updated_at = now(),
           progress = 0,
           stage = null
     where j.id = any (array(select n.id from next_jobs n))
    returning j.*
  )
  select c.id, c.lease_token, c.user_id, c.type, c.input, c.attempts::integer, c.max_attempts::integer,
         extract(epoch from c.deadline_at - now())::double precision,
         extract(epoch from now() - c.run_after)::double precision,
         c.cache_key
    from claimed c
   order by c.order_key;
end;
$$;

-- The leases that still hold, prolonged; those missing from the answer are lost.
create or replace function public.renew_leases(p_ids uuid[], p_tokens uuid[], p_lease interval)
returns table (id uuid, cancel_requested boolean)
language plpgsql
set search_path = public, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  return query
  with held as materialized (
    select j.id
      from unnest(p_ids, p_tokens) as l (id, token)
      join analysis_jobs j on j.id = l.id and j.lease_token = l.token
     where j.status = 'processing'
     order by j.id
       for update of j
  )
  update analysis_jobs j set lease_expires_at = now() + p_lease
   where j.id = any (array(select h.id from held h))
  returning j.id, j.cancel_requested_at is not null;
end;
$$;

create or replace function public.report_progress(p_ids uuid[], p_tokens uuid[], p_progress integer[], p_stages text[])
returns void
language plpgsql
set search_path = public, pg_temp
set enable_seqscan = off
as $$
begin
  with held as materialized (
    select j.id, r.progress, r.stage
      from unnest(p_ids, p_tokens, p_progress, p_stages) as r (id, token, progress, stage)
      join analysis_jobs j on j.id = r.id and j.lease_token = r.token
     where j.status = 'processing'
     order by j.id
       for update of j
  )
  update analysis_jobs j set progress = h.progress, stage = h.stage, updated_at = now()
    from held h
   where j.id = h.id;
end;
$$;

-- `p_outcomes` is an array of {id, token, kind, result?, cache_ttl_s?, delay_s?, error?, error_code?} where kind is
-- completed, retry, failed, cancelled or interrupted. Answers the ids that were written. A job whose user asked for
-- a cancel ends cancelled whatever its kind; a retry without attempts left ends failed.
create or replace function public.finalise_analyses(p_outcomes jsonb)
returns setof uuid
language plpgsql
set search_path = public, pg_temp
set enable_seqscan = off
as $$
begin
  if exists (
    select from jsonb_to_recordset(p_outcomes) as o (kind text)
     where o.kind is null or o.kind not in ('completed', 'retry', 'failed', 'cancelled', 'interrupted')
  ) then
    raise exception using errcode = '22023', message = 'unknown kind of outcome';
  end if;
  if exists (select from jsonb_to_recordset(p_outcomes) as o (kind text) where o.kind = 'interrupted') then
    perform pg_notify('analysis_jobs', 'work');
  end if;

  return query
  with held as materialized (
    select j.id, j.type, j.cache_key, o.result, o.cache_ttl_s, o.error, o.error_code,
           case when j.cancel_requested_at is not null then 'cancelled'
                when o.kind = 'retry' and j.attempts >= j.max_attempts then 'failed'
                else o.kind end as kind,
           -- At most 30 days: one absurd delay must not make the whole batch fail.
           now() + least(coalesce(o.delay_s, 0), 2592000) * interval '1 second' as run_after
      from jsonb_to_recordset(p_outcomes) as o (
             id uuid, token uuid, kind text, result jsonb, cache_ttl_s double precision,
             delay_s double precision, error text, error_code text)
      join analysis_jobs j on j.id = o.id and j.lease_token = o.token
     where j.status = 'processing'
     order by j.id
       for update of j
  ), stored as (
    insert into analysis_cache as c (cache_key, type, response, expires_at)
    select distinct on (h.cache_key) h.cache_key, h.type, h.result, now() + h.cache_ttl_s * interval '1 second'
      from held h
     where h.kind = 'completed' and h.cache_key is not null and h.cache_ttl_s > 0
     order by h.cache_key
    on conflict (cache_key) do update
       set type = excluded.type, response = excluded.response, expires_at = excluded.expires_at,
           created_at = now(), hit_count = 0, last_hit_at = null
  ), written as (
    update analysis_jobs j
       set status = case when h.kind in ('retry', 'interrupted') then 'pending' else h.kind end,
           attempts = j.attempts - (h.kind = 'interrupted')::integer,
           run_after = case when h.kind in ('retry', 'interrupted') then h.run_after else j.run_after end,
           result = case when h.kind = 'completed' then h.result end,
           error = case when h.kind in ('retry', 'failed') then h.error end,
           error_code = case when h.kind in ('retry', 'failed') then h.error_code end,
           progress = case when h.kind = 'completed' then 100
                           when h.kind in ('failed', 'cancelled') then j.progress else 0 end,
           stage = null,
           worker_id = case when h.kind in ('retry', 'interrupted') then null else j.worker_id end,
           started_at = case when h.kind in ('retry', 'interrupted') then null else j.started_at end,
           completed_at = case when h.kind in ('completed', 'failed', 'cancelled') then now() end,
           processing_time_ms = case when h.kind in ('completed', 'failed', 'cancelled')
                                     then extract(epoch from now() - j.started_at) * 1000 end,
           lease_token = null,
           lease_expires_at = null,
           updated_at = now()
      from held h
     where j.id = h.id
    returning j.id
  )
  select w.id from written w;
end;
$$;

-- Takes jobs whose lease ran out from silent workers: back into the line, or to their end when their user asked for
-- a cancel or their attempts are used up. Answers how many. Anybody may call it at any time.
create or replace function public.rescue_expired(p_error text default null)
returns integer
language plpgsql
set search_path = public, pg_temp
set enable_seqscan = off
as $$
declare
  v_rescued integer;
  v_back integer;
begin
  with expired as materialized (
    select j.id,
           case when j.cancel_requested_at is not null then 'cancelled'
                when j.attempts >= j.max_attempts then 'failed'
                else 'pending' end as status
      from analysis_jobs j
     where j.status = 'processing' and j.lease_expires_at < now()
       for update skip locked
  ), moved as (
    update analysis_jobs j
       set status = e.status,
           error = case when e.status = 'failed' then p_error end,
           error_code = case when e.status = 'failed' then 'attempts_exhausted' end,
           completed_at = case when e.status <> 'pending' then now() end,
           processing_time_ms = case when e.status <> 'pending' then extract(epoch from now() - j.started_at) * 1000 end,
           run_after = case when e.status = 'pending' then now() else j.run_after end,
           worker_id = case when e.status = 'pending' then null else j.worker_id end,
           started_at = case when e.status = 'pending' then null else j.started_at end,
           progress = case when e.status = 'pending' then 0 else j.progress end,
           stage = null,
           lease_token = null,
           lease_expires_at = null,
           updated_at = now()
      from expired e
     where j.id = e.id
    returning j.status
  )
  select count(*), count(*) filter (where m.status = 'pending') into v_rescued, v_back from moved m;
  if v_back > 0 then
    perform pg_notify('analysis_jobs', 'work');
  end if;
  return v_rescued;
end;
$$;
