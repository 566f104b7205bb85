-- Work that is asked for again.
--
-- Every function called by the program takes one jsonb object and returns one jsonb value, in one transaction.
-- Locks are taken in one order everywhere: the watched row, then the item; many in the order of their keys.

-- Ask for finished or failed work again. p: source, and any of keys [text], partition, since, until (moments of the
-- row), date, block (for tables with such columns; beside since and until by who does not know the table), only_failed,
-- params, priority. → matched, opened, waiting, running
create or replace function public.toban_reprocess(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  v_where text := 'true';
  v_params jsonb := coalesce(nullif(p -> 'params', 'null'), '{}');
  v_timed boolean;
  v_dated boolean;
  v_join text;
  v_from text;
  v_refs jsonb[];
  v_keys text[];
  v_before record;
  v_pending integer;
begin
  p := jsonb_strip_nulls(p);  -- what is null was not asked for
  select * into s from public.toban_sources where source = p ->> 'source';
  if not found then
    raise exception 'there is no source %', p ->> 'source' using errcode = 'TB404';
  end if;
  v_join := replace(s.where_sql, '$1', 'k.ref');
  v_from := s.watched || ' r';
  if p ? 'keys' then
    -- A key is its columns' values; taken apart it finds the row by the table's own index.
    select array_agg((
        select jsonb_object_agg(c, replace(replace(split_part(k, '/', n::integer), '%2F', '/'), '%25', '%'))
        from unnest(s.key_columns) with ordinality u (c, n))) into v_refs
      from jsonb_array_elements_text(p -> 'keys') k;
    v_from := v_from || format(' join (select distinct ref from unnest($2::jsonb[]) k (ref)) k on %s', v_join);
    v_where := v_where || format(' and %s in (select jsonb_array_elements_text($1 -> ''keys''))', s.key_sql);
  end if;
  if p ? 'partition' then
    v_where := v_where || format(' and %s = $1 ->> ''partition''', s.partition_sql);
  end if;
  -- A condition that cannot be applied must not select every row instead. Moments and dates may be given together, as
  -- two ways to say the same period: a table takes the way that its columns allow.
  v_timed := p ?| array['since', 'until'] and s.time_column is not null;
  v_dated := p ? 'date' and s.date_column is not null;
  if p ?| array['since', 'until', 'date'] and not (v_timed or v_dated)
     or p ? 'block' and s.block_column is null and not v_timed then
    raise exception 'rows of % are not found by %', s.source,
      case when p ?| array['since', 'until'] then 'since and until' when p ? 'date' and not v_dated then 'date'
           else 'block' end using errcode = 'TB400';
  end if;
  if v_timed and p ? 'since' then
    v_where := v_where || format(' and r.%I >= ($1 ->> ''since'')::timestamptz', s.time_column);
  end if;
  if v_timed and p ? 'until' then
    v_where := v_where || format(' and r.%I < ($1 ->> ''until'')::timestamptz', s.time_column);
  end if;
  if v_dated then
    v_where := v_where || format(' and r.%I = ($1 ->> ''date'')::date', s.date_column);
  end if;
  if p ? 'block' and s.block_column is not null then
    v_where := v_where || format(' and r.%I = $1 ->> ''block''', s.block_column);
  end if;
  if (p ->> 'only_failed')::boolean then
    v_where := v_where || format(' and exists (select from public.work_items i where i.source = %L and i.key = %s
                                   and i.state = ''failed'')', s.source, s.key_sql);
  end if;
  -- The rows first, as everywhere. The app may hold one of them and want another, so this never waits for a row while
  -- it holds others: all or none, and again a little later.
  for i in 1..20 loop
    begin
      execute format('select array_agg(key), array_agg(ref) from (
                        select %s as key, %s as ref from %s where %s order by 1 for update of r nowait) x',
                     s.key_sql, s.ref_sql, v_from, v_where) into v_keys, v_refs using p, v_refs;
      exit;
    exception
      when lock_not_available then
        if i = 20 then
          raise;
        end if;
      when data_exception then  -- a part of a key is no value of its column
        raise exception 'what was asked for does not fit the rows of %: %', s.source, sqlerrm using errcode = 'TB400';
    end;
    perform pg_sleep(0.05 * i);
  end loop;
  perform from public.work_items where source = s.source and key = any (v_keys) order by key for update;
  select count(*) filter (where state = 'pending') as pending, count(*) filter (where state = 'queued') as queued,
         count(*) filter (where state = 'processing') as running
    into v_before from public.work_items where source = s.source and key = any (v_keys);
  execute format('update %s r set %I = %L from unnest($1) k (ref) where %s and r.%I::text is distinct from %L',
                 s.watched, s.status_column, s.pending_value, v_join, s.status_column, s.pending_value) using v_refs;
  -- Rows that said pending all along, or whose trigger is off, and running work, which goes again after it ends.
  execute public.toban_open_sql(s, format(
    $q$(select r.* from unnest($1) k (ref) join %s r on %s where not exists (
          select from public.work_items i where i.source = %L and i.key = %s and i.state in ('pending', 'queued')))$q$,
    s.watched, v_join, s.source, s.key_sql)) using v_refs;
  update public.work_items set
    params = params || v_params,
    priority = greatest(priority, coalesce((p ->> 'priority')::smallint, 10)),
    tries = case when state = 'pending' then 0 else tries end,
    available_at = case when state = 'pending' then least(available_at, now()) else available_at end
  where source = s.source and key = any (v_keys) and state in ('pending', 'queued', 'processing');
  select count(*) into v_pending from public.work_items
    where source = s.source and key = any (v_keys) and state = 'pending';
  return jsonb_build_object(
    'matched', coalesce(cardinality(v_keys), 0), 'opened', greatest(v_pending - v_before.pending, 0),
    'waiting', v_before.pending + v_before.queued, 'running', v_before.running);
end
$$;
