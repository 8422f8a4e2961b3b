-- What language models cost, so that a day's budget outlives a worker and counts for all of them together.

create table if not exists public.analysis_spend (
  -- As the provider counts its days.
  day date not null,
  provider text not null,
  usd double precision not null check (usd >= 0),
  primary key (day, provider)
);

-- Adds to what `p_provider` has cost on `p_day` and returns the sum; 0 only asks.
create or replace function public.add_spend(p_day date, p_provider text, p_usd double precision)
returns double precision
language sql security definer
set search_path = public, pg_temp
as $$
  insert into analysis_spend as s (day, provider, usd) values (p_day, p_provider, p_usd)
  on conflict (day, provider) do update set usd = s.usd + excluded.usd
  returning usd
$$;

alter table public.analysis_spend enable row level security;
revoke all on public.analysis_spend from public, anon, authenticated, service_role, aiworker;
grant all on public.analysis_spend to current_user;
grant select, insert, update, delete on public.analysis_spend to service_role;
drop policy if exists "the service may do all" on public.analysis_spend;
create policy "the service may do all" on public.analysis_spend to service_role using (true);
revoke all on function public.add_spend from public, anon, authenticated, service_role, aiworker;
grant execute on function public.add_spend to current_user;
grant execute on function public.add_spend to aiworker;
