-- Moving in beside another system that works on the same rows: shadow mode, take-over, rollback, collisions.
--
-- A source in shadow mode claims nothing of its own. What somebody else has completed is kept in shadow_rows with the
-- result of then, and shadow_rows is a watched table like any other: each row is an item of the source shadow_<source>.
-- So what is done for it has the same leases, retries and limits, and the ledger marks no other table than that one.

create table if not exists public.source_modes (
  source text primary key,
  mode text not null check (mode in ('shadow', 'live')),
  since timestamptz not null default now(),
  set_by text not null,
  daily_limit integer not null default 0,
  zone text not null default 'UTC'
);
comment on table public.source_modes is 'a source without a row is live: nobody has decided anything';
comment on column public.source_modes.daily_limit is 'rows that are compared within 24 hours at most; 0: all';
comment on column public.source_modes.zone is 'in which dates and time blocks are meant';

create table if not exists public.shadow_rows (
  source text not null,
  key text not null,
  partition text not null default '',
  at timestamptz,
  status text not null default 'pending' check (status in ('pending', 'completed', 'failed', 'skipped')),
  row jsonb not null,
  theirs jsonb not null,
  their_seconds double precision,
  completed_at timestamptz not null default now(),
  ours jsonb,
  verdict text check (verdict in ('identical', 'near', 'different', 'unmatched')),
  difference double precision,
  seconds double precision,
  primary key (source, key)
);
comment on column public.shadow_rows.row is 'the app''s row, as it was when somebody else had completed it';
comment on column public.shadow_rows.theirs is 'what they made of it';
comment on column public.shadow_rows.their_seconds is
  'from the row''s created_at, else its own moment, to its processed_at, else its completion: waiting included';
comment on column public.shadow_rows.difference is 'in the unit of the source: an error rate, or points of a score';
comment on column public.shadow_rows.seconds is 'how long our attempt took';
comment on column public.shadow_rows.verdict is 'unmatched: they have left no result to compare with';
create index if not exists shadow_rows_completed_idx on public.shadow_rows (source, completed_at);

create table if not exists public.work_collisions (
  id bigint generated always as identity primary key,
  source text not null,
  key text not null,
  attempt integer not null,
  kind text not null check (kind in ('during', 'after')),
  worker text,
  at timestamptz not null default now(),
  unique (source, key, attempt)
);
comment on column public.work_collisions.kind is
  'during: somebody else completed the row while our attempt ran, which then wrote nothing; after: somebody else wrote '
  'that it is completed when our attempt had completed it';
create index if not exists work_collisions_at_idx on public.work_collisions (at);

-- Whether a source claims. Held until the transaction ends, so that whoever has changed the mode knows that no claim
-- from before is still under way.
create or replace function public.toban_shadowed(p_source text) returns boolean
language plpgsql set search_path = '' as $$
begin
  perform pg_advisory_xact_lock_shared(hashtextextended('toban:mode:' || p_source, 0));
  return exists (select from public.source_modes where source = p_source and mode = 'shadow');
end
$$;

-- What others left as the result of a row, in the shape that the source's comparison takes.
create or replace function public.toban_their_result(w public.work_items, p_row jsonb, p_zone text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_local timestamp := w.at at time zone p_zone;
  v_text text;
begin
  if w.source = 'analysis' then
    return (select jsonb_object_agg(k, p_row -> k)
            from unnest(array['vibe_score', 'summary', 'behavior', 'analysis_result']) k);
  elsif w.source <> 'transcription' then
    return p_row;
  end if;
  select v.transcription into v_text from public.vibe_whisper v
  where v.device_id::text = w.ref ->> 'device_id' and v.date = v_local::date
    and v.time_block = to_char(date_bin('30 min', v_local, timestamp '2000-01-01'), 'HH24-MI');
  return jsonb_build_object('text', v_text);
end
$$;

-- Somebody else has completed items: those that we ran are collisions, and in shadow mode all are ours to do again, as
-- far as the limit goes. Trouble in here must not undo the closing of the items, nor fail the app's own statement.
create or replace function public.toban_elsewhere(s public.toban_sources, p_ids bigint[], p_ran bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
  m public.source_modes;
  v_room integer;
begin
  insert into public.work_collisions (source, key, attempt, kind, worker)
  select source, key, attempt, 'during', worker from public.work_items where id = any (p_ran)
  on conflict do nothing;
  select * into m from public.source_modes where source = s.source and mode = 'shadow';
  if not found or not exists (select from public.toban_sources where source = 'shadow_' || s.source) then
    return;
  end if;
  if m.daily_limit > 0 then
    v_room := greatest(0, m.daily_limit - (select count(*) from public.shadow_rows r
      where r.source = s.source and r.completed_at > now() - interval '1 day'));
  end if;
  execute format($q$
    insert into public.shadow_rows as t (source, key, partition, at, row, theirs, their_seconds)
    select w.source, w.key, w.partition, w.at, x.row, public.toban_their_result(w, x.row, $2),
      greatest(0, extract(epoch from coalesce((x.row ->> 'processed_at')::timestamptz, now())
                                     - coalesce((x.row ->> 'created_at')::timestamptz, w.at)))
    from public.work_items w join %s r on %s cross join lateral (select to_jsonb(r) as row) x
    where w.id = any ($1) order by w.key limit $3
    on conflict (source, key) do update set
      partition = excluded.partition, at = excluded.at, status = 'pending', row = excluded.row,
      theirs = excluded.theirs, their_seconds = excluded.their_seconds, completed_at = excluded.completed_at,
      ours = null, verdict = null, difference = null, seconds = null$q$,
    s.watched, replace(s.where_sql, '$1', 'w.ref')) using p_ids, m.zone, v_room;
exception when others then
  raise warning 'toban: what was completed of % was not noted for comparison: %', s.source, sqlerrm;
end
$$;

-- Close the items of rows that somebody else finished (p_status: the row's value now) or deleted (null).
create or replace function public.toban_close(p_source text, p_keys text[], p_status text) returns integer
language plpgsql set search_path = '' as $$
declare
  s public.toban_sources;
  v_state text;
  v_note text;
  v_ids bigint[];
  v_ran bigint[];
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
    returning w.run_id, w.id, w.claim_no, mine.state as was
  ), noted as (
    insert into public.run_results (run_id, item_id, claim_no, state)
    select run_id, id, claim_no, v_state from closed where was in ('queued', 'processing') and run_id is not null
    on conflict do nothing
  )
  select array_agg(id), array_agg(id) filter (where was = 'processing') into v_ids, v_ran from closed;
  if v_state = 'completed' and v_ids is not null then
    perform public.toban_elsewhere(s, v_ids, v_ran);
  elsif p_status is null and p_source not like 'shadow\_%' then
    -- Of a row that is gone nothing is kept. (Deleting from shadow_rows comes here once more, and has nothing to delete.)
    delete from public.shadow_rows where source = p_source and key = any (p_keys);
  end if;
  return coalesce(cardinality(v_ids), 0);
end
$$;

-- On each watched table: who writes that a row is completed which is that already, shortly after we have completed it,
-- had begun before us.
create or replace function public.toban_guard() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '300ms' as $$
declare
  s public.toban_sources;
  v_key text;
begin
  select * into strict s from public.toban_sources where source = tg_argv[0];
  execute format('select %s from (select ($1).*) r', s.key_sql) into v_key using old;
  insert into public.work_collisions (source, key, attempt, kind, worker)
  select w.source, w.key, w.attempt, 'after', w.worker from public.work_items w
  where w.source = s.source and w.key = v_key and w.state = 'completed'
    and w.last_error_kind is distinct from 'elsewhere' and w.finished_at > now() - interval '1 day'
  on conflict do nothing;
  return null;
exception when others then
  raise warning 'toban: % on % was not looked at: %', tg_op, tg_relid::regclass, sqlerrm;
  return null;
end
$$;

-- toban_watch() writes its row anew; the guard goes where that says. (Not for the tables of shadow sources: ours.)
create or replace function public.toban_place_guard() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if tg_op = 'DELETE' then
    if to_regclass(old.watched) is not null then
      execute format('drop trigger if exists %I on %s', 'toban_' || old.source || '_again', old.watched);
    end if;
  elsif new.source not like 'shadow\_%' then
    execute format('create or replace trigger %I after update of %I on %s for each row
                      when (old.%2$I::text = %4$L and new.%2$I::text = %4$L) execute function public.toban_guard(%5$L)',
      'toban_' || new.source || '_again', new.status_column, new.watched, new.completed_value, new.source);
  end if;
  return null;
end
$$;
create or replace trigger toban_place_guard after insert or delete on public.toban_sources for each row
  execute function public.toban_place_guard();

-- Sources that are watched already.
do $$
declare
  s public.toban_sources;
begin
  for s in select * from public.toban_sources loop
    delete from public.toban_sources where source = s.source;
    insert into public.toban_sources select (s).*;
  end loop;
end
$$;

-- A call to a language model ends with the comparison that it was for.
create or replace function public.toban_store_shadow(item public.work_items, result jsonb) returns void
language plpgsql set search_path = '' as $$
begin
  if result ? 'call' then
    perform public.toban_end_call(result -> 'call');
  end if;
end
$$;

select public.toban_watch('shadow_rows', 'shadow_transcription', array['source', 'key'], 'status',
  p_partition => 'partition', p_time => 'at', p_due => $$r.source = 'transcription'$$,
  p_inputs => array['row', 'theirs', 'completed_at'], p_store => 'public.toban_store_shadow');
select public.toban_watch('shadow_rows', 'shadow_analysis', array['source', 'key'], 'status',
  p_partition => 'partition', p_due => $$r.source = 'analysis'$$,
  p_inputs => array['row', 'theirs', 'completed_at'], p_store => 'public.toban_store_shadow');

-- Turn a source to shadow or to live; it holds from the next claim on. p: source, mode, who, release? (true: what runs
-- now is given back at once, and writes nothing more), limit?, zone? (as in source_modes)
-- → mode, changed, released, running, dropped (comparisons that will not be made)
create or replace function public.toban_set_mode(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_source text := p ->> 'source';
  v_mode text := p ->> 'mode';
  v_before text;
  v_unsent bigint[];
  v_released integer := 0;
  v_running integer := 0;
  v_dropped integer := 0;
begin
  if not exists (select from public.toban_sources where source = v_source and source not like 'shadow\_%') then
    raise exception 'there is no source %; the sources are %', v_source, (
      select string_agg(source, ', ' order by source) from public.toban_sources where source not like 'shadow\_%')
      using errcode = 'TB404';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('toban:mode:' || v_source, 0));
  v_before := coalesce((select mode from public.source_modes where source = v_source), 'live');
  insert into public.source_modes as m (source, mode, set_by, daily_limit, zone)
  values (v_source, v_mode, coalesce(p ->> 'who', 'somebody'), coalesce((p ->> 'limit')::integer, 0),
          coalesce(p ->> 'zone', 'UTC'))
  on conflict (source) do update set
    mode = excluded.mode, set_by = excluded.set_by, since = case when m.mode = v_mode then m.since else now() end,
    daily_limit = coalesce((p ->> 'limit')::integer, m.daily_limit), zone = coalesce(p ->> 'zone', m.zone);
  if v_mode = 'shadow' then
    with mine as (
      select w.id, w.state from public.work_items w where w.source = v_source
        and (w.state = 'queued' or w.state = 'processing' and (p ->> 'release')::boolean)
      order by w.key for update
    ), released as (
      update public.work_items w set
        state = 'pending', lease_until = null, available_at = least(w.available_at, now()),
        tries = case when mine.state = 'processing' then greatest(w.tries - 1, 0) else w.tries end
      from mine where w.id = mine.id
      returning w.run_id, mine.state = 'queued' as unsent
    )
    select count(*), array_agg(run_id) filter (where unsent and run_id is not null) into v_released, v_unsent
      from released;
    perform public.toban_unsend(v_unsent);
    select count(*) into v_running from public.work_items where source = v_source and state = 'processing';
  else
    -- In the order of their keys, as everywhere.
    with mine as (
      select r.key from public.shadow_rows r where r.source = v_source and r.status = 'pending' order by r.key for update
    )
    delete from public.shadow_rows r using mine where r.source = v_source and r.key = mine.key;
    get diagnostics v_dropped = row_count;
  end if;
  update public.jobs set updated_at = now() where source = v_source;  -- so that open pages look again
  if v_before <> v_mode then
    perform public.toban_audit(p, case v_mode when 'live' then 'take over' else 'shadow' end, v_source,
      jsonb_build_object('mode', jsonb_build_array(v_before, v_mode), 'released', v_released));
  end if;
  return jsonb_build_object('mode', v_mode, 'changed', v_before <> v_mode, 'released', v_released,
                            'running', v_running, 'dropped', v_dropped);
end
$$;

-- What a program's settings say when it starts. A source about which somebody has decided stays as it is. p: shadow
-- [sources], limit, zone → shadowed [those that were live until now]
create or replace function public.toban_sync_modes(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_source text;
  v_shadowed jsonb := '[]';
begin
  update public.source_modes set daily_limit = (p ->> 'limit')::integer, zone = p ->> 'zone'
    where (daily_limit, zone) is distinct from ((p ->> 'limit')::integer, p ->> 'zone');
  for v_source in select s.source from public.toban_sources s where p -> 'shadow' ? s.source order by 1 loop
    -- One after the other, and not over the head of somebody who decides just now.
    perform pg_advisory_xact_lock(hashtextextended('toban:mode:' || v_source, 0));
    continue when exists (select from public.source_modes where source = v_source);
    perform public.toban_set_mode(p || jsonb_build_object('source', v_source, 'mode', 'shadow', 'who', 'TOBAN_SHADOW'));
    v_shadowed := v_shadowed || to_jsonb(v_source);
  end loop;
  return jsonb_build_object('shadowed', v_shadowed);
end
$$;

-- p: (nothing) → modes [{source, mode, since?, by?, limit?, compares, collisions, last_collision?, elsewhere,
-- last_elsewhere?}]: what somebody else completed, and what was completed twice, in the last 24 hours
create or replace function public.toban_modes(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  with elsewhere as (
    select w.source, count(*) as n, max(w.finished_at) as last from public.work_items w
    where w.state = 'completed' and w.last_error_kind = 'elsewhere' and w.finished_at > now() - interval '1 day'
    group by w.source
  ), collisions as (
    select c.source, count(*) as n, max(c.at) as last from public.work_collisions c
    where c.at > now() - interval '1 day' group by c.source
  )
  select jsonb_build_object('modes', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'source', s.source, 'mode', coalesce(m.mode, 'live'), 'since', m.since, 'by', m.set_by, 'limit', m.daily_limit,
    'compares', exists (select from public.toban_sources t where t.source = 'shadow_' || s.source),
    'collisions', coalesce(c.n, 0), 'last_collision', c.last, 'elsewhere', coalesce(e.n, 0), 'last_elsewhere', e.last))
    order by s.source), '[]'))
  from public.toban_sources s
  left join public.source_modes m on m.source = s.source
  left join collisions c on c.source = s.source
  left join elsewhere e on e.source = s.source
  where s.source not like 'shadow\_%'
$$;

-- How far both agree. p: and any of source, device (the partition), since (moment of their completion), limit (of the
-- differences that are listed; default 20), texts (true: with both results)
-- → sources [{source, rows, waiting, identical, near, different, unmatched, missing, seconds? [p50, p95],
--   their_seconds? [p50, p95], cost, first, last}], differences [{source, key, state, verdict?, difference?, reason?,
--   completed_at, theirs?, ours?}], the latest first
create or replace function public.toban_shadow_report(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '30s' as $$
  with chosen as (
    select r.*, w.id as item_id, w.last_error from public.shadow_rows r
    left join public.work_items w
      on w.source = 'shadow_' || r.source
      and w.key = r.source || '/' || replace(replace(r.key, '%', '%25'), '/', '%2F')
    where (p ->> 'source' is null or r.source = p ->> 'source')
      and (p ->> 'device' is null or r.partition = p ->> 'device')
      and (p ->> 'since' is null or r.completed_at >= (p ->> 'since')::timestamptz)
  ), sums as (
    select r.source, count(*) as rows, count(*) filter (where r.status = 'pending') as waiting,
      count(*) filter (where r.verdict = 'identical') as identical, count(*) filter (where r.verdict = 'near') as near,
      count(*) filter (where r.verdict = 'different') as different,
      count(*) filter (where r.verdict = 'unmatched') as unmatched,
      count(*) filter (where r.status in ('failed', 'skipped')) as missing,
      percentile_cont(array[0.5, 0.95]) within group (order by r.seconds) as seconds,
      percentile_cont(array[0.5, 0.95]) within group (order by r.their_seconds) as their_seconds,
      min(r.completed_at) as first, max(r.completed_at) as last,
      coalesce((select sum(c.cost) from public.llm_calls c where c.item_id = any (array_agg(r.item_id))), 0) as cost
    from chosen r group by r.source
  ), told as (
    select r.* from chosen r where r.status in ('failed', 'skipped') or r.verdict in ('different', 'unmatched')
    order by r.completed_at desc, r.key limit coalesce((p ->> 'limit')::integer, 20)
  )
  select jsonb_build_object(
    'sources', (select coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(s)) order by s.source), '[]') from sums s),
    'differences', (select coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'source', r.source, 'key', r.key, 'state', r.status, 'verdict', r.verdict, 'difference', r.difference,
      'reason', case when r.verdict is null then r.last_error end, 'completed_at', r.completed_at,
      'theirs', case when (p ->> 'texts')::boolean then r.theirs end,
      'ours', case when (p ->> 'texts')::boolean then r.ours end)) order by r.completed_at desc, r.key), '[]') from told r))
$$;

-- Forget comparisons that were made and collisions, of `days` ago, and say in job_status whether the other system still works on rows
-- that are ours: an error from the first collision until there has been none for two hours, since such systems mostly
-- run once an hour. p: days, limit? (most rows; default 10000) → rows, collisions, alarms, more
create or replace function public.toban_upkeep_shadow(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_before timestamptz := now() - (p ->> 'days')::integer * interval '1 day';
  v_rows integer;
  v_collisions integer;
  v_alarms integer;
begin
  with mine as (
    select source, key from public.shadow_rows where completed_at < v_before and status <> 'pending'
    order by source, key limit v_limit for update skip locked
  )
  delete from public.shadow_rows r using mine where r.source = mine.source and r.key = mine.key;
  get diagnostics v_rows = row_count;
  delete from public.work_collisions where id in (
    select id from public.work_collisions where at < v_before order by id limit v_limit for update skip locked);
  get diagnostics v_collisions = row_count;
  insert into public.job_status as t (job_key, title, last_status, last_finished_at, last_message)
  select 'old-cron-' || c.source, 'Old cron of ' || c.source, 'error', max(c.at),
    format('it is still running: it completed %s %s too, the latest %s; switch it off, or `toban rollback %s`',
           count(*), case count(*) when 1 then 'row that Toban ran' else 'rows that Toban ran' end,
           (array_agg(c.key order by c.id desc))[1], c.source)
  from public.work_collisions c where c.at > now() - interval '2 hours' group by c.source order by c.source
  on conflict (job_key) do update set last_status = 'error', last_finished_at = excluded.last_finished_at,
    last_message = excluded.last_message, updated_at = now()
    where (t.last_status, t.last_finished_at) is distinct from ('error', excluded.last_finished_at);
  get diagnostics v_alarms = row_count;
  update public.job_status t set last_status = 'success', last_finished_at = now(), updated_at = now(),
    last_message = 'no row was completed twice in the last two hours'
  where t.job_key like 'old-cron-%' and t.last_status = 'error' and not exists (
    select from public.work_collisions c where 'old-cron-' || c.source = t.job_key and c.at > now() - interval '2 hours');
  return jsonb_build_object('rows', v_rows, 'collisions', v_collisions, 'alarms', v_alarms,
                            'more', greatest(v_rows, v_collisions) >= v_limit);
end
$$;

-- In shadow mode: nothing is claimed, put into a batch, planned or asked for again. Each function that would is found
-- under another name from here on, which only the one of its own name calls.
do $$
declare
  v_name text;
begin
  foreach v_name in array array['claim', 'open_batch', 'unprompted_blocks', 'reprocess'] loop
    -- (This file may run again, after the earlier ones or alone.)
    continue when (select prosrc from pg_catalog.pg_proc
                   where oid = to_regprocedure(format('public.toban_%s(jsonb)', v_name))) like '%toban\_live\_%';
    execute format('drop function if exists public.toban_live_%s(jsonb)', v_name);
    execute format('alter function public.toban_%s(jsonb) rename to toban_live_%1$s', v_name);
    execute format('alter function public.toban_live_%s(jsonb) security invoker', v_name);
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
      execute format('revoke all on function public.toban_live_%s(jsonb) from service_role', v_name);
    end if;
  end loop;
end
$$;

-- p, → as toban_live_claim(). A pause of the source holds for its comparisons too.
create or replace function public.toban_claim(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
begin
  if public.toban_shadowed(p ->> 'source') then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason',
                              coalesce(public.toban_stopped('shadow_' || (p ->> 'source')), 'shadow'));
  elsif p ->> 'source' like 'shadow\_%' and public.toban_stopped(p ->> 'source') = 'paused' then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'paused');
  end if;
  return public.toban_live_claim(p);
end
$$;

-- p, → as toban_live_open_batch()
create or replace function public.toban_open_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
begin
  if public.toban_shadowed(p ->> 'source') then
    return jsonb_build_object('batch', null, 'reason', 'shadow');
  end if;
  return public.toban_live_open_batch(p);
end
$$;

-- p, → as toban_live_unprompted_blocks()
create or replace function public.toban_unprompted_blocks(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
begin
  if public.toban_shadowed('analysis') then
    return jsonb_build_object('blocks', '[]'::jsonb);
  end if;
  return public.toban_live_unprompted_blocks(p);
end
$$;

-- p, → as toban_live_reprocess()
create or replace function public.toban_reprocess(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
begin
  if public.toban_shadowed(p ->> 'source') then
    raise exception '% is in shadow mode, in which its rows stay as they are; `toban takeover %` ends it',
      p ->> 'source', p ->> 'source' using errcode = 'TB400';
  end if;
  return public.toban_live_reprocess(p);
end
$$;

select public.toban_lock_table('source_modes');
select public.toban_lock_table('shadow_rows');
select public.toban_lock_table('work_collisions');
select public.toban_lock_down();
notify pgrst, 'reload schema';
