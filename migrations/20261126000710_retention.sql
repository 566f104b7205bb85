-- How long each kind of data is kept. What waits or runs is never old.

-- Every kind, with the setting that counts for it, its table (x), what of it is old, and what is done then. $1 is the
-- moment and $2 the devices' day before which something is old, $3 the devices' zone. Without `done` another function
-- (or the rest of toban_retention) does it, and only the count is told here.
create or replace function public.toban_kinds() returns table (kind text, setting text, tab text, old text, done text)
language sql immutable set search_path = '' as $$
  values
    ('segments', 'segments_days', 'public.transcripts',
     'x.date < $2 and x.segments <> ''[]''', 'set segments = ''[]'''),
    ('transcripts', 'transcripts_days', 'public.transcripts', $q$x.date < $2 and not exists (
       select from public.work_items w where w.source = 'transcription' and w.partition = x.device_id
       and w.state in ('pending', 'queued', 'processing') and (w.at at time zone $3)::date = x.date)$q$, 'delete'),
    ('texts', 'transcripts_days', 'public.vibe_whisper', $q$x.date < $2 and not exists (
       select from public.work_items w where w.source = 'transcription' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and (w.at at time zone $3)::date = x.date)$q$, 'delete'),
    ('prompted_blocks', 'transcripts_days', 'public.prompted_blocks', 'x.date < $2', 'delete'),
    ('compared_texts', 'transcripts_days', 'public.shadow_rows', $q$x.source = 'transcription' and x.status <> 'pending'
       and coalesce((x.at at time zone $3)::date, (x.row ->> 'date')::date) < $2$q$, 'delete'),
    ('compared_prompts', 'prompts_days', 'public.shadow_rows', $q$x.source = 'analysis' and x.status <> 'pending'
       and coalesce((x.at at time zone $3)::date, (x.row ->> 'date')::date) < $2$q$, 'delete'),
    ('parts', 'parts_days', 'public.saved_parts', $q$x.saved_at < $1 and exists (
       select from public.work_items w where w.id = x.item_id and w.state = 'failed')$q$, 'delete'),
    ('prompts', 'prompts_days', 'public.dashboard', $q$x.date < $2 and x.prompt is not null
       and x.status is distinct from 'pending' and not exists (
       select from public.work_items w where w.source = 'analysis' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and w.ref ->> 'date' = to_char(x.date, 'YYYY-MM-DD'))$q$,
     'set prompt = null'),
    ('results', 'results_days', 'public.dashboard', $q$x.date < $2
       and x.status is distinct from 'pending' and not exists (
       select from public.work_items w where w.source = 'analysis' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and w.ref ->> 'date' = to_char(x.date, 'YYYY-MM-DD'))$q$,
     'delete'),
    -- (Of an incident the reason stays as long as it is one.)
    ('errors', 'errors_days', 'public.work_items', $q$x.finished_at < $1
       and x.state in ('completed', 'skipped', 'failed')
       and (x.last_traceback is not null or x.last_error is not null and x.incident_since is null)$q$,
     'set last_traceback = null, last_error = case when x.incident_since is not null then x.last_error end'),
    ('attempt_errors', 'errors_days', 'public.work_attempts', 'x.ended_at < $1 and x.error is not null',
     'set error = null'),
    ('job_logs', 'errors_days', 'public.job_watch', 'x.last_finished_at < $1 and x.log_tail is not null',
     'set log_tail = null'),
    ('incident_logs', 'errors_days', 'public.incidents', 'x.recovered_at < $1 and x.log_tail is not null',
     'set log_tail = null'),
    ('items', 'items_days', 'public.work_items',
     'x.state in (''completed'', ''skipped'') and x.marked and x.finished_at < $1', null),
    ('runs', 'runs_days', 'public.runs', 'x.state <> ''running'' and x.started_at < $1', null),
    ('batches', 'batches_days', 'public.batch_requests', $q$x.created_at < $1 and not exists (
       select from public.batch_request_items i join public.work_items w on w.id = i.item_id
       where i.batch_id = x.id and i.state = 'open' and w.state in ('pending', 'queued', 'processing'))$q$, null),
    ('request_keys', 'request_keys_days', 'public.analysis_requests', 'x.created_at < $1', null),
    -- (One without an answer, at which nobody works any more, is lost by then.)
    ('calls', 'calls_days', 'public.llm_calls', $q$x.sent_at < $1 and (x.outcome <> 'sent'
       or x.lane = 'direct' and not exists (select from public.work_items w
         where w.id = x.item_id and w.state = 'processing' and w.attempt = x.attempt))$q$, null),
    -- (Those of an incident that goes go with it.)
    ('messages', 'incidents_days', 'public.alerts', $q$x.created_at < $1
       and coalesce(x.sent_at, x.cancelled_at) is not null and not exists (
       select from public.incidents i where i.id = x.incident_id and i.recovered_at < $1)$q$, null),
    ('incidents', 'incidents_days', 'public.incidents', 'x.recovered_at < $1', null),
    ('reports', 'incidents_days', 'public.job_reports', 'x.reported_at < $1', null),
    ('audit', 'audit_days', 'public.audit_log', 'x.at < $1', null),
    ('workers', 'workers_days', 'public.workers', 'x.expires_at < $1', null)
$$;

-- Recordings whose audio is to be deleted now. p: days (those completed before, by their own moment), or device (all
-- of its, of the days since … until) and after (a moment: what was deleted before it may be there again); zone?,
-- limit? (default 500) → recordings [{device_id, recorded_at, file_path}], count? (with dry: of all). What another row
-- still needs is not told.
create or replace function public.toban_audio_to_delete(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  v_where text;
  v_path text := 'r.file_path';
  v_answer jsonb;
begin
  select * into strict s from public.toban_sources where source = 'transcription';
  p := jsonb_strip_nulls(p);
  if p ? 'device' then
    v_where := public.toban_device_sql(s.watched, 'device_id', p ->> 'device') || $q$
      and ($1 ->> 'since' is null or r.recorded_at >= ($1 ->> 'since')::date::timestamp at time zone ($1 ->> 'zone'))
      and ($1 ->> 'until' is null or r.recorded_at < (($1 ->> 'until')::date + 1)::timestamp at time zone ($1 ->> 'zone'))
      and not exists (select from public.deleted_audio d where d.device_id = r.device_id::text
        and d.recorded_at = r.recorded_at and d.deleted_at >= ($1 ->> 'after')::timestamptz)
      $q$;
    -- (The rows go, so all are told; but not the path of what is another device's too.)
    v_path := 'case when not exists (select from public.audio_files o where o.file_path = r.file_path
                                     and o.device_id <> r.device_id) then r.file_path end';
  else
    v_where := format($q$r.%I::text = %L
      and r.recorded_at < now() - ($1 ->> 'days')::integer * interval '1 day'
      and not exists (select from public.work_items w where w.source = %L and w.key = %s
        and w.state in ('pending', 'queued', 'processing'))
      and not exists (select from public.deleted_audio d where d.device_id = r.device_id::text
        and d.recorded_at = r.recorded_at and not exists (
          select from public.work_items w where w.source = %L and w.key = %s and w.finished_at > d.deleted_at))
      and not exists (select from public.audio_files o where o.file_path = r.file_path
        and o.%I::text is distinct from %L)$q$,
      s.status_column, s.completed_value, s.source, s.key_sql, s.source, s.key_sql, s.status_column, s.completed_value);
  end if;
  if (p ->> 'dry')::boolean then
    execute format('select jsonb_build_object(''recordings'', ''[]''::jsonb, ''count'', count(*)) from %s r where %s',
                   s.watched, v_where) into v_answer using p;
  else
    execute format(
      $q$select jsonb_build_object('recordings', coalesce(jsonb_agg(jsonb_build_object(
           'device_id', x.device_id, 'recorded_at', x.recorded_at, 'file_path', x.file_path)), '[]'))
         from (select r.device_id::text as device_id, r.recorded_at, %s as file_path from %s r where %s
               order by r.recorded_at limit %s) x$q$,
      v_path, s.watched, v_where, coalesce((p ->> 'limit')::integer, 500)) into v_answer using p;
  end if;
  return v_answer;
end
$$;

-- p: recordings [{device_id, recorded_at}] → noted
create or replace function public.toban_audio_deleted(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '30s' as $$
  with noted as (
    insert into public.deleted_audio as d (device_id, recorded_at)
    select distinct device_id, recorded_at
    from jsonb_to_recordset(p -> 'recordings') r (device_id text, recorded_at timestamptz) order by 1, 2
    on conflict (device_id, recorded_at) do update set deleted_at = excluded.deleted_at returning 1
  )
  select jsonb_build_object('noted', count(*)) from noted
$$;

-- The condition that rows r of a table are of a device: its column's own type, so that an index serves. A device that
-- the column can't name has none.
create or replace function public.toban_device_sql(p_table text, p_column text, p_device text) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_type text := (select pg_catalog.format_type(atttypid, null) from pg_catalog.pg_attribute
                  where attrelid = p_table::regclass and attname = p_column);
begin
  execute format('select %L::%s', p_device, v_type);
  return format('r.%I = %L::%s', p_column, p_device, v_type);
exception when data_exception then
  return 'false';
end
$$;

-- Forget what is old. Failed items stay: they are incidents; so do items whose row still says pending, because nothing
-- else tells that it has had its turn. p: items_days, runs_days, and any of segments_days, transcripts_days, parts_days,
-- prompts_days, results_days, errors_days (without one, that kind is kept); zone?, limit? (most of each kind, of one
-- call; default 10000), dry? (only count, then also with calls_days, incidents_days, audit_days)
-- → items, runs, workers, the other kinds, more (call again)
create or replace function public.toban_retention(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_zone text := coalesce(p ->> 'zone', 'UTC');
  v_dry boolean := coalesce((p ->> 'dry')::boolean, false);
  v_items integer;
  v_runs integer;
  v_workers integer;
  v_kinds jsonb := '{}';
  v_most integer := 0;
  v_count integer;
  v_moment timestamptz;
  v_day date;
  k record;
begin
  for k in select t.*, (p ->> t.setting)::integer as days from public.toban_kinds() t loop
    continue when k.days is null or k.done is null and not v_dry;
    v_moment := now() - k.days * interval '1 day';
    v_day := (now() at time zone v_zone)::date - k.days;
    -- (Each of the three is used by some.)
    if v_dry then
      execute format('select count(*) from %s x where ($1, $2, $3) is not null and %s', k.tab, k.old)
        into v_count using v_moment, v_day, v_zone;
    else
      execute format(
        'with mine as materialized (select x.ctid from %1$s x where ($1, $2, $3) is not null and %2$s limit $4
           for update of x skip locked) %3$s',
        k.tab, k.old, case k.done when 'delete' then format('delete from %s x using mine where x.ctid = mine.ctid', k.tab)
                      else format('update %s x %s from mine where x.ctid = mine.ctid', k.tab, k.done) end)
        using v_moment, v_day, v_zone, v_limit;
      get diagnostics v_count = row_count;
      v_most := greatest(v_most, v_count);
    end if;
    v_kinds := v_kinds || jsonb_build_object(k.kind, v_count);
  end loop;
  if v_dry then
    return v_kinds;
  end if;

  with old as (
    select id from public.work_items where state in ('completed', 'skipped') and marked
      and finished_at < now() - (p ->> 'items_days')::integer * interval '1 day'
    order by finished_at limit v_limit
  ), mine as (
    -- In the order of their keys and without waiting, as everywhere; and again: somebody may have opened it meanwhile.
    select w.id from public.work_items w join old on old.id = w.id
    where w.state in ('completed', 'skipped') and w.marked
    order by w.source, w.key for update of w skip locked
  )
  delete from public.work_items w using mine where w.id = mine.id;
  get diagnostics v_items = row_count;
  with mine as (
    select id from public.runs where state <> 'running'
      and started_at < now() - (p ->> 'runs_days')::integer * interval '1 day'
    order by id limit v_limit for update skip locked
  ), results as (
    delete from public.run_results t using mine where t.run_id = mine.id
  )
  delete from public.runs r using mine where r.id = mine.id;
  get diagnostics v_runs = row_count;
  delete from public.workers where expires_at < now() - interval '1 day';
  get diagnostics v_workers = row_count;
  return jsonb_build_object('items', v_items, 'runs', v_runs, 'workers', v_workers,
                            'more', greatest(v_items, v_runs, v_most) >= v_limit) || v_kinds;
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
