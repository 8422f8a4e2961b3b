-- Who may do what. Users read; every change of theirs goes through a function, which has its owner's rights and asks
-- who calls. The worker's role has functions and no table. Run by the owner of the tables.

alter table public.analysis_jobs enable row level security;
alter table public.analysis_cache enable row level security;
alter table public.analysis_answers enable row level security;
alter table public.analysis_types enable row level security;
alter table public.analysis_limits enable row level security;
alter table public.analysis_pauses enable row level security;

-- Supabase grants everything on new tables and functions to its roles, PostgreSQL lets everybody execute: both are
-- taken back before anything is given.
revoke all on
  public.analysis_jobs, public.analysis_cache, public.analysis_answers, public.analysis_types, public.analysis_limits,
  public.analysis_pauses
from public, anon, authenticated, service_role, aiworker;
-- An owner who is called as one of these keeps its rights, here and below: the functions have no others.
grant all on
  public.analysis_jobs, public.analysis_cache, public.analysis_answers, public.analysis_types, public.analysis_limits,
  public.analysis_pauses
to current_user;

grant select on public.analysis_jobs to authenticated;
drop policy if exists "users read their own jobs" on public.analysis_jobs;
create policy "users read their own jobs" on public.analysis_jobs
  for select to authenticated using (user_id = (select auth.uid()));

-- Whoever holds the service key may do everything, also what no function does: remove all that a user left behind.
grant select, insert, update, delete on
  public.analysis_jobs, public.analysis_cache, public.analysis_answers, public.analysis_types, public.analysis_limits,
  public.analysis_pauses
to service_role;
do $$
declare
  v_table text;
begin
  foreach v_table in array array[
    'analysis_jobs', 'analysis_cache', 'analysis_answers', 'analysis_types', 'analysis_limits', 'analysis_pauses'
  ] loop
    execute format('drop policy if exists "the service may do all" on public.%I', v_table);
    execute format('create policy "the service may do all" on public.%I to service_role using (true)', v_table);
  end loop;
end;
$$;

do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname = 'public' and p.proname in (
       'analysis_job_id', 'analysis_is_service', 'analysis_user', 'analysis_canonical', 'analysis_cache_key',
       'analysis_place', 'analysis_pass_on', 'enqueue_analysis', 'get_analysis_status', 'cancel_analysis', 'configure_analyses',
       'claim_analyses', 'renew_leases', 'report_progress', 'finalise_analyses', 'rescue_expired',
       'analysis_queue_depth', 'pause_analyses', 'resume_analyses', 'prune_analyses')
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role, aiworker', v_function);
    execute format('grant execute on function %s to current_user', v_function);
  end loop;
end;
$$;

grant execute on function
  public.enqueue_analysis, public.get_analysis_status, public.cancel_analysis
to authenticated, service_role, aiworker;
grant execute on function public.analysis_queue_depth to service_role, aiworker;
-- The default of a column that the service may write.
grant execute on function public.analysis_job_id to service_role;
grant execute on function
  public.configure_analyses, public.claim_analyses, public.renew_leases, public.report_progress,
  public.finalise_analyses, public.rescue_expired, public.pause_analyses, public.resume_analyses,
  public.prune_analyses
to aiworker;

do $$
begin
  if to_regclass('public.aiworker_migrations') is not null then
    revoke all on public.aiworker_migrations from public, anon, authenticated, service_role, aiworker;
    grant all on public.aiworker_migrations to current_user;
    alter table public.aiworker_migrations enable row level security;
    -- So that gateway, worker and doctor can say that something is not applied.
    grant select on public.aiworker_migrations to aiworker;
    drop policy if exists "aiworker reads it" on public.aiworker_migrations;
    create policy "aiworker reads it" on public.aiworker_migrations for select to aiworker using (true);
  end if;
  if exists (select from pg_publication where pubname = 'supabase_realtime' and not puballtables) and not exists (
    select from pg_publication_tables
     where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'analysis_jobs'
  ) then
    alter publication supabase_realtime add table public.analysis_jobs;
  end if;
end;
$$;
