-- What a worker calls. Every write carries (id, lease_token) and happens only while that lease holds.
-- Functions that lock several rows take the ids in the order given, which is that of the ids, or skip what is locked,
-- so they cannot deadlock with one another.

-- Tells the queue what there is: `p_types` is an array of {type, version, slo_s, sharing}. Types that it does not name
-- stay as they are, for another release may still serve them.
create or replace function public.configure_analyses(p_types jsonb, p_max_active integer, p_max_attempts integer)
returns void
language plpgsql security definer
set search_path = public, pg_temp
as $$
begin
  insert into analysis_types as t (type, version, slo_s, sharing)
  select n.type, n.version, n.slo_s, n.sharing
    from jsonb_to_recordset(p_types) as n (type text, version text, slo_s double precision, sharing text)
   order by n.type
  on conflict (type) do update
     set version = excluded.version, slo_s = excluded.slo_s, sharing = excluded.sharing
   where (t.version, t.slo_s, t.sharing) is distinct from (excluded.version, excluded.slo_s, excluded.sharing);
  update analysis_limits l set max_active = p_max_active, max_attempts = p_max_attempts
   where (l.max_active, l.max_attempts) is distinct from (p_max_active, p_max_attempts);
end;
$$;

-- At most `p_limit` jobs of `p_types`, those with the earliest place first. The attempt is counted here: a job that
-- kills its process uses its attempts up too, and has the last of them apart: a claim takes such a suspect alone, and its
-- worker takes no other beside it. So whoever worked beside it in the first ones does not fail with it. Suspects come
-- before all others, but for a claim whose `p_suspects` is false: then it is the others' turn.
--
-- `p_floors` holds, for each priority, the place before which nothing waits for this claimer, in seconds since 1970 (null:
-- it does not know). The entries before it, all of jobs that have ended, need not be read: with a transaction open that
-- keeps vacuum from removing them they can be many. What a claim leaves behind was enqueued after `looked_at_s`, by then
-- or so, or stands behind the last `place_s` of a claim that took all it wanted; what that misses, because an enqueue took
-- seconds to commit or a row was held, `rescue_expired` moves to line 0. `looked_at_s` is null where jobs were left
-- behind on purpose. Where there was nothing to take, a row without an id says when that was seen.
create or replace function public.claim_analyses(
  p_worker_id text, p_limit integer, p_lease interval, p_types text[], p_token uuid default gen_random_uuid(),
  p_floors double precision[] default null, p_suspects boolean default true
) returns table (
  id uuid, lease_token uuid, user_id uuid, type text, input jsonb, attempts smallint, max_attempts smallint,
  deadline_in_s double precision, waited_s double precision, apart boolean, place_s double precision,
  looked_at_s double precision
)
language plpgsql security definer
set search_path = public, pg_temp
-- Statistics of an empty queue must not talk the planner out of walking each line in its order.
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
-- The price put on sorting would make the JIT compiler think that this is expensive.
set jit = off
-- The plan never depends on the arguments, and making it anew took a fifth of the time.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_looked_at_s double precision := date_part('epoch', now());
  v_paused boolean;
  v_due boolean;
  v_suspected boolean;
  v_apart tid;
  v_heads tid[];
  v_reach integer := p_limit;
  v_wanted integer := p_limit;
  v_taken integer;
begin
  -- What is seldom there has one look for all, and a statement of its own only where it is. The order keeps a plan that
  -- was made for an empty table from looking through all that is delayed.
  select exists (select from analysis_pauses),
         (select true from analysis_jobs d where d.line = -1 and d.run_after <= now() order by d.run_after limit 1),
         p_suspects and exists (select from analysis_jobs j where j.line = -3 and j.status = 'pending')
    into v_paused, v_due, v_suspected;
  if v_paused then
    v_looked_at_s := null;
    p_types := array(select t.type from unnest(p_types) as t (type)
                      where not exists (select from analysis_pauses p where p.type in (t.type, '*')));
  end if;
  -- If the server dies before this commit reaches the disk, the job is pending again and the stale token is refused.
  perform set_config('synchronous_commit', 'off', true);
  if v_due then
    -- So many that a crowd which falls due at once keeps no claim waiting; the next claim takes more of it.
    update analysis_jobs j set line = 0
     where j.ctid = any (array(
       select d.ctid from analysis_jobs d where d.line = -1 and d.run_after <= now()
        order by d.run_after limit 1000 for update skip locked));
  end if;
  if v_suspected then
    select j.ctid into v_apart from analysis_jobs j
     where p_limit > 0 and j.line = -3 and j.status = 'pending' and j.type = any (p_types) and j.attempts < j.max_attempts
     order by j.place limit 1 for update skip locked;
    if found then
      v_looked_at_s := null;
    end if;
  end if;
  loop
    v_heads := case when v_apart is not null then array[v_apart] else array(
      select c.row_id
        from unnest('{0,1,2,3,4,5,6,7,8,9,10}'::smallint[]) as l (line)
       cross join lateral (
         select j.ctid as row_id, j.place
           from analysis_jobs j
          where j.line = l.line and j.status = 'pending' and j.type = any (p_types) and j.attempts < j.max_attempts
            -- A millisecond less, for seconds as a number are not exact.
            and j.place >= coalesce(to_timestamp(p_floors[l.line]) - interval '1 millisecond', '-infinity')
          order by j.place
          limit v_reach) c
       order by c.place
       limit v_reach) end;
    return query
    -- Only what is taken is locked: a row that this claim held and left would be passed over by another one.
    with next_jobs as materialized (
      select j.ctid as row_id
        from unnest(v_heads) with ordinality as h (row_id, number)
        join analysis_jobs j on j.ctid = h.row_id
       where (j.line >= 0 or j.ctid = v_apart)
         and j.status = 'pending' and j.type = any (p_types) and j.attempts < j.max_attempts
       order by h.number
       limit v_wanted
         for update of j skip locked)
    update analysis_jobs j
       set status = 'processing',
           attempts = j.attempts + 1,
           worker_id = p_worker_id,
           lease_token = p_token,
           lease_expires_at = now() + p_lease,
           started_at = now(),
           updated_at = now(),
           progress = 0,
           stage = null
      from next_jobs n
     where j.ctid = n.row_id
    returning j.id, j.lease_token, j.user_id, j.type, j.input, j.attempts, j.max_attempts,
              date_part('epoch', j.deadline_at - now()), date_part('epoch', now() - j.run_after),
              j.line = -3, date_part('epoch', j.place), v_looked_at_s;
    get diagnostics v_taken = row_count;
    v_wanted := v_wanted - v_taken;
    exit when v_wanted <= 0 or cardinality(v_heads) < v_reach;
    -- Others hold the heads of the lines: what stands behind them is free.
    v_reach := 4 * v_reach;
  end loop;
  if v_wanted = p_limit and v_looked_at_s is not null then
    looked_at_s := v_looked_at_s;
    return next;
  end if;
end;
$$;

-- The leases that still hold, prolonged, and those that went with a cancel; those missing from the answer are lost. A row
-- that somebody else holds keeps the others waiting for nothing: it is answered as it is, and `rescue_expired` does not
-- take it either.
--
-- `id = any (p_ids)` says nothing new, here and below, but to a plan that was made while the table was empty: that one
-- would read all of it for each of the ids, until the next analyze.
create or replace function public.renew_leases(p_ids uuid[], p_tokens uuid[], p_lease interval)
returns table (id uuid, cancelled boolean)
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
  perform set_config('synchronous_commit', 'off', true);
  return query
  with free as materialized (
    select j.ctid as row_id
      from unnest(p_ids, p_tokens) as l (id, token)
      join analysis_jobs j on j.id = l.id and j.lease_token = l.token and j.id = any (p_ids)
       for no key update of j skip locked
  ), renewed as (
    update analysis_jobs j set lease_expires_at = now() + p_lease from free f where j.ctid = f.row_id
  )
  select j.id, j.status = 'cancelled'
    from unnest(p_ids, p_tokens) as l (id, token)
    join analysis_jobs j on j.id = l.id and j.id = any (p_ids) and (j.lease_token = l.token or j.status = 'cancelled');
end;
$$;

create or replace function public.report_progress(p_ids uuid[], p_tokens uuid[], p_progress integer[], p_stages text[])
returns void
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  with free as materialized (
    select j.ctid as row_id, r.progress, r.stage
      from unnest(p_ids, p_tokens, p_progress, p_stages) as r (id, token, progress, stage)
      join analysis_jobs j on j.id = r.id and j.lease_token = r.token and j.id = any (p_ids)
       for no key update of j skip locked
  )
  update analysis_jobs j set progress = least(greatest(f.progress, 0), 100), stage = f.stage, updated_at = now()
    from free f where j.ctid = f.row_id;
end;
$$;

-- The arrays run in parallel; `p_kinds` holds completed, retry, failed or interrupted, and is null where all have
-- completed. A retry without attempts left has failed. A result with a `p_cache_ttls_s` above zero is shared with
-- identical requests for that long, unless another version of the analysis was asked for than the worker's own, which
-- `p_versions` holds by type: while a new release comes, old workers serve new jobs too. Answers the ids whose lease
-- was gone, with a cancel too: nothing is written of those.
create or replace function public.finalise_analyses(
  p_ids uuid[], p_tokens uuid[], p_kinds text[] default null, p_results jsonb[] default null,
  p_cache_ttls_s double precision[] default null, p_delays_s double precision[] default null,
  p_errors text[] default null, p_error_codes text[] default null, p_versions jsonb default null
) returns setof uuid
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
-- A hash that does not fit into this spills, and hands the rows over in another order than that of the ids.
set hash_mem_multiplier = 100
-- As in the claim: a plan for each call is no better.
set plan_cache_mode = force_generic_plan
as $$
declare
  v_ended uuid[];
  v_put_back uuid[];
  v_followed boolean;
  v_leader record;
begin
  if p_kinds is null then
    p_kinds := array_fill('completed'::text, array[cardinality(p_ids)]);
  elsif not p_kinds <@ '{completed,retry,failed,interrupted}'::text[] then
    raise exception using errcode = '22023', message = 'unknown kind of outcome';
  end if;
  -- Results come in one JSON: a text that is not one value must not move the others to jobs that are not theirs.
  if cardinality(p_results) <> cardinality(p_ids) then
    raise exception using errcode = '22023', message = 'not one result for each job';
  end if;

  if p_kinds && '{retry,interrupted}'::text[] then
    with put_back as (
      update analysis_jobs j
         set status = 'pending',
             line = case when o.delay_s > 0 then -1 when o.kind = 'interrupted' and j.line = -3 then -3 else 0 end,
             -- At most 30 days: one absurd delay must not make the whole batch fail.
             run_after = now() + least(greatest(coalesce(o.delay_s, 0), 0), 2592000) * interval '1 second',
             attempts = j.attempts - (o.kind = 'interrupted')::integer,
             error = o.error,
             error_code = o.error_code,
             progress = 0,
             stage = null,
             worker_id = null,
             started_at = null,
             lease_token = null,
             lease_expires_at = null,
             updated_at = now()
        from unnest(p_ids, p_tokens, p_kinds, p_delays_s, p_errors, p_error_codes)
               as o (id, token, kind, delay_s, error, error_code)
       where j.id = o.id and j.lease_token = o.token and j.id = any (p_ids)
         and (o.kind = 'interrupted' or (o.kind = 'retry' and j.attempts < j.max_attempts))
      returning j.id
    )
    select array_agg(b.id) into v_put_back from put_back b;
    perform pg_notify('analysis_jobs', 'work');
  end if;

  with ended as (
    update analysis_jobs j
       set status = case o.kind when 'retry' then 'failed' else o.kind end,
           line = null,
           result = case when o.kind = 'completed' then o.result end,
           error = case when o.kind <> 'completed' then o.error end,
           error_code = case when o.kind <> 'completed' then o.error_code end,
           progress = case when o.kind = 'completed' then 100 else j.progress end,
           stage = null,
           completed_at = now(),
           -- As much as fits, for a worker may have been switched off for a month, or the clock put right by years.
           processing_time_ms = least(date_part('epoch', now() - j.started_at) * 1000, 2147483647),
           lease_token = null,
           lease_expires_at = null,
           updated_at = now()
      from unnest(p_ids, p_tokens, p_kinds, p_results, p_errors, p_error_codes)
             as o (id, token, kind, result, error, error_code)
     where j.id = o.id and j.lease_token = o.token and j.id = any (p_ids)
    returning j.id, j.leads
  )
  select array_agg(e.id), bool_or(e.leads) into v_ended, v_followed from ended e;

  if p_cache_ttls_s is not null then
    insert into analysis_cache as c (cache_key, type, response, expires_at)
    select distinct on (j.cache_key) j.cache_key, j.type, j.result, now() + o.ttl_s * interval '1 second'
      from unnest(p_ids, p_cache_ttls_s) as o (id, ttl_s)
      join analysis_jobs j on j.id = o.id
     where j.id = any (v_ended) and j.status = 'completed' and j.cache_key is not null and o.ttl_s > 0
       and (p_versions is null or substr(j.cache_key, 66) = p_versions ->> j.type)
     order by j.cache_key
    on conflict (cache_key) do update
       set type = excluded.type, response = excluded.response, expires_at = excluded.expires_at,
           created_at = now(), hit_count = 0, last_hit_at = null;
  end if;
  if v_followed then
    for v_leader in
      select j.cache_key,
             case when j.status = 'completed' and o.ttl_s > 0
                       and (p_versions is null or substr(j.cache_key, 66) = p_versions ->> j.type)
                  then j.result end as result
        from unnest(p_ids, p_cache_ttls_s) as o (id, ttl_s)
        join analysis_jobs j on j.id = o.id
       where j.id = any (v_ended) and j.leads
       order by j.cache_key
    loop
      perform analysis_pass_on(v_leader.cache_key, v_leader.result);
    end loop;
  end if;
  if coalesce(cardinality(v_ended), 0) + coalesce(cardinality(v_put_back), 0) < cardinality(p_ids) then
    return query select unnest(p_ids) except select unnest(v_ended || v_put_back);
  end if;
end;
$$;

-- Takes jobs whose lease ran out from silent workers: back into the line, or to their end when their attempts are used
-- up, or when they were alone with that worker for being suspected of silencing one. Answers how many, at most `p_limit`.
-- Anybody may call it at any time. Jobs that wait for one that is gone (its row was removed, or they were held when it
-- ended) have its result, or one of them leads. Those that have waited until their deadline is near run for themselves,
-- unless the one that leads has not been begun, for then they would be no faster, or a worker fell silent with it, for it
-- may be the input that does that.
--
-- `p_since_s` is an `earliest_s` of a call before: what was due before that, priorities left out, has ended and need not
-- be read. Without it everything is, and what waits before `p_floors`, where a claimer does not look, moves to line 0,
-- which all look at as a whole.
create or replace function public.rescue_expired(
  p_error text default null, p_since_s double precision default null, p_floors double precision[] default null,
  p_limit integer default 500, out rescued integer, out earliest_s double precision
)
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
set enable_sort = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_since timestamptz := coalesce(to_timestamp(p_since_s) - interval '1 millisecond', '-infinity');
  v_earliest timestamptz;
  v_job record;
  v_key text;
begin
  rescued := 0;
  select least(now() - interval '2 seconds', min(f.due)) into v_earliest
    from generate_series(1, 10) as l (line)
   cross join lateral (
     select j.place - l.line * interval '10 seconds' as due from analysis_jobs j
      where j.line = l.line and j.place >= v_since + l.line * interval '10 seconds'
      order by j.place limit 1) f;
  earliest_s := date_part('epoch', v_earliest);
  if p_since_s is null and p_floors is not null then
    update analysis_jobs j set line = 0
     where j.ctid = any (array(
       select m.row_id
         from generate_series(1, 10) as l (line)
        cross join lateral (
          select w.ctid as row_id from analysis_jobs w
           where w.line = l.line and w.status = 'pending'
             and w.place >= v_earliest + l.line * interval '10 seconds'
             and w.place < to_timestamp(p_floors[l.line]) - interval '1 millisecond'
           limit p_limit
             for update skip locked) m));
    if found then
      perform pg_notify('analysis_jobs', 'work');
    end if;
  end if;
  for v_job in
    with expired as materialized (
      select j.id,
             case when j.attempts >= j.max_attempts or j.line = -3 then 'failed' else 'pending' end as status
        from unnest('{-3,0,1,2,3,4,5,6,7,8,9,10}'::smallint[]) as l (line)
       cross join lateral (
         select e.id, e.attempts, e.max_attempts, e.line from analysis_jobs e
          where e.line = l.line and e.status = 'processing' and e.lease_expires_at < now()
            and e.place >= case when l.line > 0 then v_earliest + l.line * interval '10 seconds' else '-infinity' end
          limit p_limit
            for update skip locked) j
       limit p_limit
    )
    update analysis_jobs j
       set status = e.status,
           line = case when e.status = 'pending' then case when j.attempts = j.max_attempts - 1 then -3 else 0 end end,
           error = case when e.status = 'failed' then p_error end,
           error_code = case when e.status = 'failed' then 'attempts_exhausted' end,
           completed_at = case when e.status <> 'pending' then now() end,
           processing_time_ms = case when e.status <> 'pending' then least(date_part('epoch', now() - j.started_at) * 1000, 2147483647) end,
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
    returning j.status, j.leads, j.cache_key
  loop
    rescued := rescued + 1;
    if v_job.leads and v_job.status <> 'pending' then
      perform analysis_pass_on(v_job.cache_key, null, true);
    end if;
  end loop;
  for v_key in
    select distinct f.cache_key from analysis_jobs f
     where not f.leads and f.line = -2 and not exists (
       select from analysis_jobs l where l.cache_key = f.cache_key and l.leads and l.line is not null)
     limit p_limit
  loop
    continue when not pg_try_advisory_xact_lock(hashtextextended('aiworker.flight:' || v_key, 0));
    -- Looked at again under the lock of those who enqueue: one of them may lead by now.
    if not exists (select from analysis_jobs l where l.cache_key = v_key and l.leads and l.line is not null) then
      perform analysis_pass_on(
        v_key, (select c.response from analysis_cache c where c.cache_key = v_key and c.expires_at > now()));
    end if;
  end loop;
  with late as materialized (
    select f.ctid as row_id
      from analysis_jobs f
      join analysis_jobs l on l.cache_key = f.cache_key and l.leads and l.line is not null
     where not f.leads and f.line = -2 and f.deadline_at < now() + interval '4 seconds'
       and l.line <> -3 and (l.status = 'processing' and l.attempts = 1 or l.error_code is not null)
     limit p_limit
       for update of f skip locked
  )
  update analysis_jobs f set line = 0 from late w where f.ctid = w.row_id;
  if found or rescued > 0 then
    perform pg_notify('analysis_jobs', 'work');
  end if;
end;
$$;

-- Unfinished jobs by type, and the types that are paused ('*': all). Finished rows are never read.
create or replace function public.analysis_queue_depth()
returns table (
  type text, pending bigint, processing bigint, delayed bigint, following bigint,
  oldest_pending_s double precision, paused boolean
)
language sql stable security definer
set search_path = public, pg_temp
set enable_seqscan = off
as $$
  select coalesce(d.type, p.type), coalesce(d.pending, 0), coalesce(d.processing, 0), coalesce(d.delayed, 0),
         coalesce(d.following, 0), coalesce(d.oldest_pending_s, 0), p.type is not null
    from (
      select j.type,
             count(*) filter (where j.status = 'pending' and j.line not in (-1, -2)) as pending,
             count(*) filter (where j.status = 'processing') as processing,
             count(*) filter (where j.line = -1) as delayed,
             count(*) filter (where j.line = -2) as following,
             date_part('epoch', max(now() - j.run_after) filter (where j.status = 'pending' and j.line not in (-1, -2)))
               as oldest_pending_s
        from analysis_jobs j
       where j.line is not null
       group by j.type) d
    full join analysis_pauses p on p.type = d.type
$$;

-- No more jobs of `p_type` are handed out; '*' stands for all types. Those that run go on.
create or replace function public.pause_analyses(p_type text default '*')
returns void
language sql security definer
set search_path = public, pg_temp
as $$
  insert into analysis_pauses (type) values (p_type) on conflict do nothing
$$;

-- Takes back one pause. A type stays paused while all are.
create or replace function public.resume_analyses(p_type text default '*')
returns void
language plpgsql security definer
set search_path = public, pg_temp
as $$
begin
  delete from analysis_pauses p where p.type = p_type;
  perform pg_notify('analysis_jobs', 'work');
end;
$$;

-- Removes at most `p_limit` jobs that ended longer than `p_keep` ago, and as many expired cache entries; answers how
-- many rows went. Ids of version 7 are in the order of their age. Those of version 4, which an adopted table has, lie
-- anywhere, mostly behind all others.
create or replace function public.prune_analyses(p_keep interval, p_limit integer default 500)
returns integer
language plpgsql security definer
set search_path = public, pg_temp
set enable_seqscan = off
as $$
declare
  v_ended_before timestamptz := now() - p_keep;
  v_young uuid := analysis_job_id(v_ended_before);
  v_future uuid := analysis_job_id(now() + interval '1 day');
  v_jobs integer;
  v_foreign integer;
  v_entries integer;
begin
  delete from analysis_jobs j
   where j.ctid = any (array(
     select o.ctid from analysis_jobs o
      where o.id < v_young and o.line is null and o.completed_at < v_ended_before
      order by o.id limit p_limit for update skip locked));
  get diagnostics v_jobs = row_count;
  delete from analysis_jobs j
   where j.ctid = any (array(
     select o.ctid from analysis_jobs o
      where o.id > v_future and o.line is null and o.completed_at < v_ended_before
      order by o.id limit p_limit - v_jobs for update skip locked));
  get diagnostics v_foreign = row_count;
  delete from analysis_cache c
   where c.ctid = any (array(
     select e.ctid from analysis_cache e where e.expires_at < now()
      order by e.expires_at limit p_limit for update skip locked));
  get diagnostics v_entries = row_count;
  return v_jobs + v_foreign + v_entries;
end;
$$;
