-- What the gateway, an Edge Function or any RPC client calls. A user's token acts for that user and no other; the
-- arguments that only the service may use say so. Errors that a client can cause have their own SQLSTATE:
--   AW001 too many active jobs, AW002 idempotency key used for another request,
--   AW003 no such job (or not this user's), AW004 the job has already ended,
--   AW005 no such type of analysis, AW006 not allowed, AW007 the input is too large.

-- JSON text that is the same for the same value. jsonb has put the keys in order already, at every depth; what is left are
-- the zeros at the end of 1.0. A string is matched as a whole, so that nothing in it is taken for a number. Where there is
-- much to read they stay: going over every value of a few megabytes took half a minute, in which one user held up all.
create or replace function public.analysis_canonical(p_value jsonb)
returns text
language plpgsql immutable parallel safe
set search_path = public, pg_temp
as $$
declare
  v_text text := p_value::text;
begin
  if octet_length(v_text) <= 262144 and v_text ~ $re$\.\d*0(?!\d)$re$ then
    return regexp_replace(
      v_text, $re$("(?:[^"\\]|\\.)*")|(\.\d*[1-9])0+(?!\d)|\.0+(?!\d)$re$, $re$\1\2$re$, 'g');
  end if;
  return v_text;
end;
$$;

-- What makes two requests the same: type, the whole input, the user where results may not be shared between users, and,
-- to be read after the first 65 characters, the version of the analysis. Null where they may not be shared at all.
create or replace function public.analysis_cache_key(p_type public.analysis_types, p_user_id uuid, p_input jsonb)
returns text
language sql immutable parallel safe
set search_path = public, pg_temp
as $$
  select case (p_type).sharing when 'never' then null else
    encode(sha256(convert_to(analysis_canonical(jsonb_build_array(
      (p_type).type, case (p_type).sharing when 'user' then p_user_id end, p_input)), 'UTF8')), 'hex')
    || ' ' || (p_type).version
  end
$$;

-- Where a job stands: urgent ones first, a level of priority worth ten seconds of waiting. `p_last` is where the last of
-- the user's waiting jobs that are as urgent stands, without its priority; `p_active` counts those that run, too. A
-- user's jobs stand apart, by a second, and by a whole level each beyond the ordinary limit, so that one user's backlog
-- never stands before what others send later.
create or replace function public.analysis_place(
  p_due timestamptz, p_priority integer, p_last timestamptz, p_active integer, p_max_active integer
) returns timestamptz
language sql immutable parallel safe
as $$
  select p_priority * interval '10 seconds' + greatest(
    p_due, p_last + case when p_active < p_max_active then interval '1 second' else interval '10 seconds' end)
$$;

-- A cached result comes back with `job_id` null. For the service only: a `p_user_id` that is not the caller,
-- `p_max_attempts`, and `p_unlimited`, which leaves the limit of active jobs out.
create or replace function public.enqueue_analysis(
  p_type text,
  p_input jsonb,
  p_user_id uuid default null,
  p_priority integer default 5,
  p_idempotency_key text default null,
  p_delay_s double precision default 0,
  p_use_cache boolean default true,
  p_max_attempts integer default null,
  p_unlimited boolean default false
) returns table (job_id uuid, status text, cached_result jsonb)
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_user uuid := analysis_user(p_user_id);
  v_type analysis_types;
  v_limits analysis_limits;
  v_hash bytea;
  v_earlier record;
  v_key text;
  v_leader uuid;
  v_leader_place timestamptz;
  v_leads boolean;
  v_cached jsonb;
  v_now timestamptz;
  v_due timestamptz;
  v_place timestamptz;
  v_active integer;
  v_last timestamptz;
  v_id uuid;
begin
  -- An explicit null is what was left out.
  p_priority := coalesce(p_priority, 5);
  p_use_cache := coalesce(p_use_cache, true);
  p_unlimited := coalesce(p_unlimited, false);
  p_delay_s := least(greatest(coalesce(p_delay_s, 0), 0), 2592000);
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception using errcode = '0A000', message = 'enqueue_analysis needs the isolation level read committed',
      hint = 'what others have enqueued meanwhile cannot be counted in an older snapshot';
  end if;
  if (p_unlimited or p_max_attempts is not null) and not analysis_is_service() then
    raise exception using errcode = 'AW006', message = 'not_allowed';
  end if;
  if v_user is null or p_type is null or jsonb_typeof(p_input) is distinct from 'object' then
    raise exception using errcode = '22023', message = 'user, type and an input object are needed';
  end if;
  if p_priority not between 1 and 10 or p_max_attempts not between 1 and 100 then
    raise exception using errcode = '22023', message = 'priority is 1 to 10, max_attempts is 1 to 100';
  end if;
  -- As text, for a number of a few bytes can be a hundred thousand digits, and the worker reads text.
  if octet_length(p_input::text) > 16777216 then
    raise exception using errcode = 'AW007', message = 'input_too_large';
  end if;
  select * into v_type from analysis_types t where t.type = p_type;
  if not found then
    raise exception using errcode = 'AW005', message = 'unknown_job_type';
  end if;
  select * into strict v_limits from analysis_limits;

  if p_idempotency_key is not null or not p_unlimited then
    -- One enqueue at a time for one user, so that what is counted and looked up below is exact.
    perform pg_advisory_xact_lock(hashtextextended('aiworker.user:' || v_user::text, 0));
  end if;

  if p_idempotency_key is not null then
    v_hash := sha256(convert_to(p_type || chr(10) || p_input::text, 'UTF8'));
    select e.* into v_earlier from (
      select j.id, j.status, j.request_hash, null::jsonb as response
        from analysis_jobs j where j.user_id = v_user and j.idempotency_key = p_idempotency_key
      union all
      select null, 'completed', a.request_hash, c.response
        from analysis_answers a join analysis_cache c on c.cache_key = a.cache_key and c.expires_at > now()
       where a.user_id = v_user and a.idempotency_key = p_idempotency_key) e
     limit 1;
    if found then
      -- Null: an adopted job, of which only the key is known.
      if v_earlier.request_hash <> v_hash then
        raise exception using errcode = 'AW002', message = 'idempotency_conflict';
      end if;
      return query select v_earlier.id, v_earlier.status, v_earlier.response;
      return;
    end if;
  end if;

  v_key := analysis_cache_key(v_type, v_user, p_input);
  -- What is delayed is wanted then, not now, and nobody must wait for it: it runs for itself.
  if v_key is not null and p_use_cache and p_delay_s <= 0 then
    perform pg_advisory_xact_lock(hashtextextended('aiworker.flight:' || v_key, 0));
    -- Held, so that the leader does not end before this one is seen to follow. Whoever ends it, or renews its lease, holds
    -- it for a moment; who holds it for longer is not waited for, and `rescue_expired` finds this one if the leader has
    -- ended meanwhile. The cache comes last: what a leader left behind when it ended is seen then.
    for v_look in 1..100 loop
      select j.id, j.place into v_leader, v_leader_place
        from analysis_jobs j where j.cache_key = v_key and j.leads and j.line is not null for no key update skip locked;
      exit when found;
      select j.id into v_leader from analysis_jobs j where j.cache_key = v_key and j.leads and j.line is not null;
      exit when not found;
      perform pg_sleep(0.02);
    end loop;
    v_leads := v_leader is null;
    if v_leads then
      update analysis_cache c set hit_count = c.hit_count + 1, last_hit_at = now()
        where c.cache_key = v_key and c.expires_at > now()
        returning c.response into v_cached;
      if found then
        if p_idempotency_key is not null then
          insert into analysis_answers (user_id, idempotency_key, request_hash, cache_key, answered_at)
          values (v_user, p_idempotency_key, v_hash, v_key, clock_timestamp())
          on conflict (user_id, idempotency_key) do update
             set request_hash = excluded.request_hash, cache_key = excluded.cache_key, answered_at = excluded.answered_at;
          delete from analysis_answers a
           where a.user_id = v_user and a.idempotency_key in (
             select o.idempotency_key from analysis_answers o where o.user_id = v_user
              order by o.answered_at desc offset v_limits.max_active);
        end if;
        return query select null::uuid, 'completed', v_cached;
        return;
      end if;
    end if;
  end if;

  -- Not now(): the waits for locks above must not count as waiting in line.
  v_now := clock_timestamp();
  v_due := v_now + p_delay_s * interval '1 second';
  -- In words that only the user's own index understands: the others step over what has ended. No more than the last ones
  -- of each line are read, however many are in it.
  select count(*) into v_active
    from (select from analysis_jobs o where o.user_id = v_user and o.completed_at is null
           limit v_limits.max_active) j;
  select max(j.place - j.priority * interval '10 seconds') into v_last
    from generate_series(-3, p_priority) as l (line)
   cross join lateral (
     select o.line, o.place, o.priority, o.run_after, o.status
       from analysis_jobs o
      where o.user_id = v_user and o.completed_at is null and (o.line, o.place) <= (l.line, 'infinity')
      order by o.line desc, o.place desc limit v_limits.max_active) j
   -- What runs already puts nothing back: who has a job running all the time would stand a second further with each.
   where j.line = l.line and j.status = 'pending' and j.priority <= p_priority and j.run_after <= v_due;
  if v_active >= v_limits.max_active and not p_unlimited then
    raise exception using errcode = 'AW001', message = 'too_many_active_jobs';
  end if;
  v_place := analysis_place(v_due, p_priority, v_last, v_active, v_limits.max_active);

  if v_place < v_leader_place then
    -- Whoever waits for a job lends it its own urgency.
    update analysis_jobs j set place = v_place, line = case when j.line > 0 then p_priority else j.line end
     where j.id = v_leader and j.status = 'pending';
  end if;
  insert into analysis_jobs as j (
    user_id, type, input, priority, max_attempts, line, place, leads, cache_key, idempotency_key, request_hash,
    created_at, updated_at, run_after, deadline_at
  ) values (
    v_user, p_type, p_input, p_priority, coalesce(p_max_attempts, v_limits.max_attempts),
    case when v_due > v_now then -1 when not v_leads then -2 else p_priority end,
    v_place, v_leads, v_key, p_idempotency_key, v_hash,
    v_now, v_now, v_due, v_due + v_type.slo_s * interval '1 second'
  ) returning j.id into v_id;
  if v_due <= v_now then
    perform pg_notify('analysis_jobs', 'work');
  end if;
  return query select v_id, 'pending', null::jsonb;
end;
$$;

-- What a client may see of a job.
do $$
begin
  -- One of another kind is in the way, and is told of here rather than at the first request.
  if not exists (select from pg_type t where t.oid = to_regtype('public.analysis_status') and t.typtype = 'c') then
    create type public.analysis_status as (
      id uuid, user_id uuid, type text, status text, priority integer, attempts integer, max_attempts integer,
      created_at timestamptz, updated_at timestamptz, started_at timestamptz, completed_at timestamptz,
      progress integer, stage text, result jsonb, error text, error_code text, processing_time_ms integer,
      worker_id text
    );
  end if;
end;
$$;

-- No row for an unknown job, nor for another user's. For the service, `p_user_id` null sees all.
create or replace function public.get_analysis_status(p_job_id uuid, p_user_id uuid default null)
returns setof public.analysis_status
language plpgsql stable security definer
set search_path = public, pg_temp
as $$
declare
  v_user uuid := analysis_user(p_user_id);
begin
  return query
  select j.id, j.user_id, j.type, j.status, j.priority::integer, j.attempts::integer, j.max_attempts::integer,
         j.created_at, j.updated_at, j.started_at, j.completed_at,
         j.progress::integer, j.stage, j.result, j.error, j.error_code, j.processing_time_ms, j.worker_id
    from analysis_jobs j
   where j.id = p_job_id and (v_user is null or j.user_id = v_user);
end;
$$;

-- The job that led for a `p_cache_key` has ended: with a result that may be shared all that waited and have not been
-- begun have it, else the one of them with the most time left runs for the others, at the first one's place; as a suspect
-- where the one before it was one and did not end by itself. (The first has the least time left: after a leader that used
-- up its own, each would come too late to ask a model, one after the other.) One that somebody else holds is left to
-- `rescue_expired`, for nobody waits here; so are those beyond twenty megabytes of results, which would take seconds.
create or replace function public.analysis_pass_on(p_cache_key text, p_result jsonb, p_suspect boolean default false)
returns void
language plpgsql
set search_path = public, pg_temp
set enable_seqscan = off
as $$
begin
  if p_result is not null then
    update analysis_jobs f
       set status = 'completed', line = null, result = p_result, progress = 100, error = null, error_code = null,
           completed_at = now(), updated_at = now()
     where f.ctid = any (array(
       select w.ctid from analysis_jobs w
        where w.cache_key = p_cache_key and not w.leads and w.line is not null and w.status = 'pending'
        limit greatest(1, 20000000 / octet_length(p_result::text))
          for update skip locked));
    return;
  end if;
  update analysis_jobs f
     set line = case when p_suspect then -3 else 0 end,
         leads = true,
         place = (select min(w.place) from analysis_jobs w
                   where w.cache_key = p_cache_key and not w.leads and w.line = -2)
   where f.id = (select w.id from analysis_jobs w where w.cache_key = p_cache_key and not w.leads and w.line = -2
                  order by w.deadline_at desc, w.id desc limit 1 for update skip locked);
  if found then
    perform pg_notify('analysis_jobs', 'work');
  end if;
end;
$$;

-- The job ends here, whether it waits or runs: with its lease gone, nothing that its worker writes is taken any more, and
-- the worker stops when it hears of it. Asking again changes nothing.
create or replace function public.cancel_analysis(p_job_id uuid, p_user_id uuid default null)
returns setof public.analysis_status
language plpgsql security definer
set search_path = public, pg_temp
as $$
declare
  v_user uuid := analysis_user(p_user_id);
  v_job record;
begin
  select j.status, j.line, j.leads, j.cache_key into v_job from analysis_jobs j
   where j.id = p_job_id and (v_user is null or j.user_id = v_user) for update;
  if not found then
    raise exception using errcode = 'AW003', message = 'job_not_found';
  elsif v_job.status in ('completed', 'failed') then
    raise exception using errcode = 'AW004', message = 'job_already_finished';
  elsif v_job.status <> 'cancelled' then
    update analysis_jobs j
       set status = 'cancelled', line = null, lease_token = null, lease_expires_at = null, stage = null,
           error = null, error_code = null,
           processing_time_ms = case v_job.status when 'processing' then least(date_part('epoch', now() - j.started_at) * 1000, 2147483647) end,
           cancel_requested_at = now(), completed_at = now(), updated_at = now()
     where j.id = p_job_id;
    if v_job.leads then
      perform analysis_pass_on(v_job.cache_key, null, v_job.line = -3);
    end if;
    if v_job.status = 'processing' then
      perform pg_notify('analysis_jobs', 'cancel');
    end if;
  end if;
  return query select * from get_analysis_status(p_job_id, p_user_id);
end;
$$;
