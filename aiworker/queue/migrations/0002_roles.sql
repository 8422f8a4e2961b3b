-- Roles and functions that Supabase brings along, made where they are missing, and the role of gateway and worker.

do $$
declare
  v_role text;
begin
  foreach v_role in array array['anon', 'authenticated', 'service_role', 'aiworker'] loop
    if not exists (select from pg_roles where rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then
        -- Roles belong to the whole server, and another database was migrated at the same moment.
        null;
      end;
    end if;
  end loop;
end;
$$;

do $$
begin
  if to_regprocedure('auth.uid()') is null then
    create schema if not exists auth;
    execute $function$
      create function auth.uid() returns uuid language sql stable
      as $body$
        select coalesce(
          nullif(current_setting('request.jwt.claim.sub', true), ''),
          nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
        )::uuid
      $body$
    $function$;
    grant usage on schema auth to anon, authenticated, service_role;
  end if;
end;
$$;

-- True for the service: members of aiworker (gateway and worker), Supabase's service role, and the owner of the tables.
-- It asks for the role that the session has taken, which a function with its owner's rights does not change.
create or replace function public.analysis_is_service()
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(r.name, 'aiworker', 'member') or pg_has_role(r.name, 'service_role', 'member')
         or pg_has_role(r.name, (select c.relowner from pg_class c where c.oid = 'public.analysis_jobs'::regclass), 'member')
    from (values (coalesce(nullif(current_setting('role', true), 'none'), session_user)::name)) as r (name)
$$;

-- Whose jobs the caller may touch: `p_user_id` for the service (null is everybody), else the user of the token.
create or replace function public.analysis_user(p_user_id uuid)
returns uuid
language plpgsql stable
set search_path = public, pg_temp
as $$
declare
  v_user uuid;
begin
  if analysis_is_service() then
    return p_user_id;
  end if;
  v_user := auth.uid();
  if v_user is null or p_user_id <> v_user then
    raise exception using errcode = 'AW006', message = 'not_allowed';
  end if;
  return v_user;
end;
$$;
