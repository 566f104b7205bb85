-- toban_watch(): one line that makes a table's waiting rows into work items, and keeps both in step.

-- What an insert into work_items does when the item exists: the row became pending (again).
create or replace function public.toban_reopen_sql() returns text
language sql immutable set search_path = '' as $$
  select $sql$
    on conflict (source, key) do update set
      ref = excluded.ref,
      partition = excluded.partition,
      at = excluded.at,
      revision = w.revision + 1,
      -- One that is out already stays there: its message starts the new revision, or its finish re-opens it.
      state = case when w.state in ('queued', 'processing') then w.state else 'pending' end,
      tries = case when w.state in ('queued', 'processing') then w.tries else 0 end,
      available_at = case when w.state in ('queued', 'processing') then w.available_at else excluded.available_at end,
      opened_at = case when w.state in ('pending', 'queued', 'processing') then w.opened_at else now() end,
      -- What was asked for the finished round does not bind the next one.
      params = case when w.state in ('pending', 'queued', 'processing') then w.params else '{}' end,
      priority = case when w.state in ('pending', 'queued', 'processing') then w.priority else 0 end,
      -- An incident stays one, with its reason, until the item is resolved.
      last_error = case when w.incident_since is not null then w.last_error end,
      marked = true, finished_at = null, last_error_kind = null, last_traceback = null
  $sql$
$$;

create or replace function public.toban_open_sql(s public.toban_sources, rows_sql text) returns text
language sql immutable set search_path = '' as $$
  select format(
    $sql$insert into public.work_items as w (source, key, ref, partition, at, available_at)
    select distinct on (2) %L, %s, %s, %s, %s, least(coalesce(%s, now()), now())
    from %s r where %s order by 2 %s$sql$,
    s.source, s.key_sql, s.ref_sql, s.partition_sql, s.at_sql, s.at_sql, rows_sql, s.due_sql, public.toban_reopen_sql())
$$;

-- The rows that wait although no item says so, as toban_open_sql() takes them.
create or replace function public.toban_missed_sql(s public.toban_sources) returns text
language sql immutable set search_path = '' as $$
  select format(
    $q$(select r.* from %s r where %s and not exists (
          select from public.work_items i where i.source = %L and i.key = %s
          and (i.state in ('pending', 'queued', 'processing') or not i.marked)))$q$,
    s.watched, s.due_sql, s.source, s.key_sql)
$$;

-- Expressions over a row r for an item's key and its ref, and the condition that finds the row by the ref $1.
create or replace function public.toban_key_sql(
  p_table regclass, p_key text[], out key_sql text, out ref_sql text, out where_sql text)
language plpgsql stable set search_path = '' as $$
declare
  v_column text;
  v_type text;
  v_text text;
  v_keys text[] := '{}';
  v_refs text[] := '{}';
  v_wheres text[] := '{}';
begin
  foreach v_column in array p_key loop
    select pg_catalog.format_type(atttypid, atttypmod) into v_type
      from pg_catalog.pg_attribute where attrelid = p_table and attname = v_column;
    v_text := format('r.%I', v_column);
    if v_type like 'timestamp%with time zone' then
      -- In UTC, without trailing zeros: 2025-07-18T03:00:00Z. (A function for it, with a search_path of its own, would
      -- take three times as long.)
      v_text := format(
        $f$(rtrim(rtrim(to_char(r.%I at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z')$f$, v_column);
      v_keys := v_keys || v_text;
    elsif v_type = 'date' then
      -- As text it would follow the session's DateStyle.
      v_keys := v_keys || format($f$to_char(r.%I, 'YYYY-MM-DD')$f$, v_column);
    else
      -- A slash inside a value would make two keys look alike.
      v_keys := v_keys || format($f$replace(replace(r.%I::text, '%%', '%%25'), '/', '%%2F')$f$, v_column);
    end if;
    v_refs := v_refs || format('%L, %s', v_column, v_text);
    v_wheres := v_wheres || format('r.%I = ($1->>%L)::%s', v_column, v_column, v_type);
  end loop;
  key_sql := array_to_string(v_keys, $f$ || '/' || $f$);
  ref_sql := format('jsonb_build_object(%s)', array_to_string(v_refs, ', '));
  where_sql := array_to_string(v_wheres, ' and ');
end
$$;

-- Watch a table. Existing rows that wait get their items; calling it again changes the settings.
--   p_key        the row's key columns
--   p_status     the column that says whether a row waits: p_pending, then p_completed / p_failed / p_skipped; a null
--                p_failed or p_skipped leaves the row as it is
--   p_partition  claims are shared out fairly among its values; default: the first key column
--   p_time       the row's own moment (timestamptz): the oldest goes first; reprocess finds rows by it
--   p_date, p_block   date and time-block columns, for tables that have these instead
--   p_due        a further condition, an expression over r: 'r.prompt is not null'
--   p_inputs     columns whose change makes waiting or running work out of date
--   p_store      function (item public.work_items, result jsonb) that writes a result in the finishing transaction
-- Returns how many rows wait now.
create or replace function public.toban_watch(
  p_table text, p_source text, p_key text[], p_status text,
  p_partition text default null, p_time text default null, p_date text default null, p_block text default null,
  p_due text default null, p_inputs text[] default '{}', p_store text default null,
  p_pending text default 'pending', p_completed text default 'completed',
  p_failed text default 'failed', p_skipped text default 'skipped'
) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_table regclass := to_regclass(case when position('.' in p_table) > 0 then p_table else 'public.' || p_table end);
  s public.toban_sources;
  v_columns text[];
  v_column text;
  v_inputs text;
  v_roles text := (select string_agg(', ' || quote_ident(rolname), '') from pg_catalog.pg_roles
                   where rolname in ('anon', 'authenticated'));
  v_before text := (select watched from public.toban_sources where source = p_source);
  v_opened bigint;
begin
  if v_table is null then
    raise exception 'toban_watch: there is no table %', p_table;
  end if;
  if p_source !~ '^[a-z][a-z0-9_]{0,40}$' then
    raise exception 'toban_watch: a source is named in lower case letters, digits and _, not %', p_source;
  end if;
  select array_agg(attname::text) into v_columns
    from pg_catalog.pg_attribute where attrelid = v_table and attnum > 0 and not attisdropped;
  foreach v_column in array
    p_key || array_remove(array[p_status, p_partition, p_time, p_date, p_block], null) || p_inputs
  loop
    if v_column <> all (v_columns) then
      raise exception 'toban_watch: % has no column %', p_table, v_column;
    end if;
  end loop;

  s.source := p_source;
  s.watched := (select format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c
                join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = v_table);
  s.key_columns := p_key;
  s.status_column := p_status;
  s.time_column := p_time;
  s.date_column := p_date;
  s.block_column := p_block;
  select * into s.key_sql, s.ref_sql, s.where_sql from public.toban_key_sql(v_table, p_key);
  s.partition_sql := format($f$coalesce(r.%I::text, '')$f$, coalesce(p_partition, p_key[1]));
  s.at_sql := case when p_time is null then 'null::timestamptz' else format('r.%I', p_time) end;
  s.due_sql := format('(r.%I::text = %L%s)', p_status, p_pending, coalesce(' and (' || p_due || ')', ''));
  s.pending_value := p_pending;
  s.completed_value := p_completed;
  s.failed_value := p_failed;
  s.skipped_value := p_skipped;
  s.store_function := p_store;
  delete from public.toban_sources where source = p_source;
  insert into public.toban_sources select (s).*;

  v_inputs := case when p_inputs = '{}' then 'null::text' else
    (select format('row(%s)', string_agg(format('r.%I', i), ', ')) from unnest(p_inputs) i) end;

  -- Trouble in here must never fail the app's own statement: it is reported as a warning, and reconcile mends the rest.
  -- Nor may the app wait until its own time is up, which `others` does not catch: an item that somebody holds for so
  -- long is trouble too.
  execute format($f$
    create or replace function public.toban_on_%1$s() returns trigger
    language plpgsql security definer set search_path = '' set lock_timeout = '300ms' as $body$
    begin
      if tg_op = 'INSERT' then
        %2$s;
      elsif tg_op = 'UPDATE' then
        -- Closed: every row that no longer waits under its old key.
        perform public.toban_close(%1$L, array_agg(gone.key), gone.status)
        from (select o.key, n.status from (select %3$s as key, %4$s as due, r.%5$I::text as status from old_rows r) o
              left join (select %3$s as key, %4$s as due, r.%5$I::text as status from new_rows r) n using (key)
              where n.due is not true and (o.due or o.status is distinct from n.status)) gone
        group by gone.status;
        -- Opened: every row that waits now, and did not or had other inputs.
        %6$s;
      else
        perform public.toban_close(%1$L, array_agg(%3$s), null) from old_rows r;
      end if;
      return null;
    exception when others then
      raise warning 'toban: %% on %% was not followed: %%', tg_op, tg_relid::regclass, sqlerrm;
      return null;
    end $body$ $f$,
    p_source,
    public.toban_open_sql(s, 'new_rows'),
    s.key_sql, s.due_sql, p_status,
    public.toban_open_sql(s, format(
      $q$(select r.* from new_rows r where not exists (
            select from (select %1$s as key, %2$s as inputs from old_rows r where %3$s) o
            where o.key = %1$s and o.inputs is not distinct from %2$s))$q$,
      s.key_sql, v_inputs, s.due_sql)));
  execute format('revoke all on function public.toban_on_%s() from public%s', p_source, coalesce(v_roles, ''));

  foreach v_column in array array['insert', 'update', 'delete'] loop
    execute format('drop trigger if exists %I on %s', 'toban_' || p_source || '_' || v_column, s.watched);
    if v_before <> s.watched and to_regclass(v_before) is not null then
      execute format('drop trigger if exists %I on %s', 'toban_' || p_source || '_' || v_column, v_before);
    end if;
    execute format(
      'create trigger %I after %s on %s referencing %s for each statement execute function public.toban_on_%s()',
      'toban_' || p_source || '_' || v_column, v_column, s.watched,
      case v_column when 'insert' then 'new table as new_rows' when 'delete' then 'old table as old_rows'
        else 'old table as old_rows new table as new_rows' end, p_source);
  end loop;

  execute public.toban_open_sql(s, public.toban_missed_sql(s));
  perform public.toban_mend(p_source, public.toban_find_stale(p_source, null));
  select count(*) into v_opened from public.work_items where source = p_source and state = 'pending';
  return v_opened;
end
$$;
