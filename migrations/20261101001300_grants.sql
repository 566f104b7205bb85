-- By default everybody may execute a new function, and a hosted project's default privileges give anon and
-- authenticated every new table. The ledger is for the service alone.
create or replace function public.toban_lock_down() returns void
language plpgsql set search_path = '' as $$
declare
  v_name text;
  v_called boolean;
  v_sequence text;
  v_roles text := (select string_agg(quote_ident(rolname), ', ') from pg_catalog.pg_roles
                   where rolname in ('anon', 'authenticated'));
  v_service boolean := exists (select from pg_catalog.pg_roles where rolname = 'service_role');
begin
  for v_name, v_called in
    select p.oid::regprocedure::text, p.prosecdef and pg_catalog.pg_get_function_identity_arguments(p.oid) = 'p jsonb'
    from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname like 'toban\_%'
  loop
    execute format('revoke all on function %s from public%s', v_name, coalesce(', ' || v_roles, ''));
    -- The program's own calls; the rest is called by these alone.
    if v_service and v_called then
      execute format('grant execute on function %s to service_role', v_name);
    end if;
  end loop;
  foreach v_name in array
    array['toban_sources', 'jobs', 'runs', 'run_results', 'workers', 'work_items', 'transcripts']
  loop
    if v_roles is not null then
      execute format('revoke all on public.%I from %s', v_name, v_roles);
      for v_sequence in
        select d.objid::regclass::text from pg_catalog.pg_depend d
        join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S'
        where d.refobjid = format('public.%I', v_name)::regclass
      loop
        execute format('revoke all on sequence %s from %s', v_sequence, v_roles);
      end loop;
    end if;
    if v_service then
      execute format('grant select on public.%I to service_role', v_name);
    end if;
  end loop;
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
