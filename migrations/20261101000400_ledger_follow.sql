-- Items follow their rows: what the app finished or deleted itself, and what the triggers did not see.

-- Close the items of rows that somebody else finished (p_status: the row's value now) or deleted (null).
create or replace function public.toban_close(p_source text, p_keys text[], p_status text) returns integer
language plpgsql set search_path = '' as $$
declare
  s public.toban_sources;
  v_state text;
  v_note text;
  v_closed integer;
begin
  select * into s from public.toban_sources where source = p_source;
  v_state := case p_status when s.completed_value then 'completed' when s.failed_value then 'failed' else 'skipped' end;
  v_note := case when p_status is null then 'the row is gone'
            else format('the row was set to %L elsewhere', p_status) end;
  with mine as (
    select w.id, w.state from public.work_items w
    where w.source = p_source and w.key = any (p_keys)
      -- What we settle ourselves already has its new state when the row is marked.
      and w.state <> v_state and w.state in ('pending', 'queued', 'processing', 'failed')
    order by w.key for update
  ), closed as (
    update public.work_items w set
      state = v_state, finished_at = now(), lease_until = null, marked = true,
      incident_since = case when v_state = 'failed' then coalesce(w.incident_since, now()) end,
      last_error = v_note, last_error_kind = 'elsewhere', last_traceback = null
    from mine where w.id = mine.id
    returning w.run_id, w.id, w.claim_no, mine.state in ('queued', 'processing') as claimed
  ), noted as (
    insert into public.run_results (run_id, item_id, claim_no, state)
    select run_id, id, claim_no, v_state from closed where claimed and run_id is not null
    on conflict do nothing
  )
  select count(*) into v_closed from closed;
  return v_closed;
end
$$;

-- What the triggers missed: TRUNCATE, disabled triggers, a restored backup. Finding it reads whole tables but locks
-- nothing; mending it locks, but only as many items as were found. p_limit: most of each kind, null for all (then only
-- items to close are looked for: toban_watch() has opened the others). → open [refs], close [ids], more
create or replace function public.toban_find_stale(p_source text, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  s public.toban_sources;
  v_open jsonb := '[]';
  v_close jsonb;
begin
  select * into strict s from public.toban_sources where source = p_source;
  -- (`materialized`: else the limit makes the planner expect to find enough soon, where mostly nothing is to be found.)
  if p_limit is not null then
    execute format(
      $q$with missed as materialized (select %s as ref from %s r)
         select coalesce(jsonb_agg(ref), '[]') from (select ref from missed limit $1) x$q$,
      s.ref_sql, public.toban_missed_sql(s)) into v_open using p_limit;
  end if;
  execute format(
    $q$with stale as materialized (
         select i.id from public.work_items i left join %s r on %s
         where i.source = %L and %s is not true
           and (i.state in ('pending', 'queued')
                or i.state = 'failed' and (not i.marked or r.%I::text is distinct from %L)))
       select coalesce(jsonb_agg(id), '[]') from (select id from stale limit $1) x$q$,
    s.watched, replace(s.where_sql, '$1', 'i.ref'), s.source, s.due_sql, s.status_column, s.failed_value)
    into v_close using p_limit;
  return jsonb_build_object('open', v_open, 'close', v_close,
    'more', coalesce(greatest(jsonb_array_length(v_open), jsonb_array_length(v_close)) >= p_limit, false));
end
$$;

-- Open and close what toban_find_stale() found, as far as it is still so. An item that somebody holds just now is left
-- for the next time: whoever waits with others in hand makes everybody wait. → opened, closed
create or replace function public.toban_mend(p_source text, p_stale jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  s public.toban_sources;
  v_refs jsonb[] := array(select jsonb_array_elements(p_stale -> 'open'));
  v_opened integer := 0;
  v_closed integer := 0;
begin
  select * into strict s from public.toban_sources where source = p_source;
  if v_refs <> '{}' then
    execute format(
      $q$with known as (
           select i.key, k.ref from unnest($1) k (ref) join %1$s r on %2$s
           join public.work_items i on i.source = %3$L and i.key = %4$s
         ), mine as (
           select i.key from public.work_items i where i.source = %3$L and i.key in (select key from known)
           order by i.key for update skip locked
         )
         select array(select unnest($1) except select ref from known where key not in (select key from mine))$q$,
      s.watched, replace(s.where_sql, '$1', 'k.ref'), s.source, s.key_sql) into v_refs using v_refs;
    execute public.toban_open_sql(s, format(
      '(select r.* from unnest($1) k (ref) join %s r on %s)',
      public.toban_missed_sql(s), replace(s.where_sql, '$1', 'k.ref'))) using v_refs;
    get diagnostics v_opened = row_count;
  end if;
  if p_stale -> 'close' <> '[]' then
    execute format(
      $q$with mine as (
           select i.key, i.ref from public.work_items i
           where i.id in (select x::bigint from jsonb_array_elements_text($1 -> 'close') x)
             and i.state in ('pending', 'queued', 'failed')
           order by i.key for update skip locked
         )
         select coalesce(sum(public.toban_close(%1$L, gone.keys, gone.status)), 0) from (
           select array_agg(mine.key) as keys, r.%2$I::text as status from mine left join %3$s r on %4$s
           where %5$s is not true group by 2) gone$q$,
      s.source, s.status_column, s.watched, replace(s.where_sql, '$1', 'mine.ref'), s.due_sql)
      into v_closed using p_stale;
  end if;
  return jsonb_build_object('opened', v_opened, 'closed', v_closed);
end
$$;
