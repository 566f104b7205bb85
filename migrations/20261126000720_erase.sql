-- Everything of one device goes, at a person's wish, and a receipt stays.

-- What was erased, when and at whose wish: of the device only its hash.
create table if not exists public.erasures (
  id uuid primary key default gen_random_uuid(),
  device_sha256 text not null,
  since date,
  until date,
  audio boolean not null,
  who text not null,
  begun_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  counts jsonb not null default '{}',
  receipt jsonb
);
comment on column public.erasures.counts is '{what: how many}, so far; kept with each step, so that a kill loses none';
create index if not exists erasures_device_idx on public.erasures (device_sha256);

-- Tables with rows of devices that are not watched: whose a row is, and (for a part of the days) of which day, as
-- expressions over the row r and the devices' zone $1. A migration that makes such a table adds its line here.
create table if not exists public.private_tables (
  name text primary key,
  device_sql text not null,
  day_sql text not null
);
insert into public.private_tables (name, device_sql, day_sql) values
  ('transcripts', 'r.device_id', 'r.date'),
  ('vibe_whisper', 'r.device_id::text', 'r.date'),
  ('prompted_blocks', 'r.device_id', 'r.date'),
  ('forgotten_recordings', 'r.device_id', '(r.recorded_at at time zone $1)::date'),
  ('deleted_audio', 'r.device_id', '(r.recorded_at at time zone $1)::date'),
  ('batch_request_items', '(select b.partition from public.batch_requests b where b.id = r.batch_id)',
   '(select b.day from public.batch_requests b where b.id = r.batch_id)'),
  ('batch_requests', 'r.partition', 'r.day'),
  ('analysis_requests', 'replace(replace(split_part(r.key, ''/'', 1), ''%2F'', ''/''), ''%25'', ''%'')',
   'substring(r.key from ''/(\d{4}-\d\d-\d\d)/'')::date'),
  ('shadow_rows', 'r.partition', 'coalesce((r.at at time zone $1)::date, (r.row ->> ''date'')::date)'),
  ('work_collisions', 'replace(replace(split_part(r.key, ''/'', 1), ''%2F'', ''/''), ''%25'', ''%'')',
   $q$case when r.key ~ '/\d{4}-\d\d-\d\dT[0-9:.]+Z$' then (split_part(r.key, '/', 2)::timestamptz at time zone $1)::date
      else substring(r.key from '/(\d{4}-\d\d-\d\d)/')::date end$q$),
  ('saved_parts', '(select coalesce(w.ref ->> ''device_id'', w.partition) from public.work_items w where w.id = r.item_id)',
   '(select coalesce((w.ref ->> ''date'')::date, (w.at at time zone $1)::date) from public.work_items w
     where w.id = r.item_id)')
on conflict (name) do update set device_sql = excluded.device_sql, day_sql = excluded.day_sql;

-- Texts for people in which a device may be named, and whether they are JSON.
create or replace function public.toban_mentions() returns table (tab text, col text, is_json boolean)
language sql immutable set search_path = '' as $$
  values ('job_status', 'last_message', false), ('jobs', 'last_message', false), ('jobs', 'last_summary', true),
    ('runs', 'message', false), ('runs', 'filters', true), ('incidents', 'title', false), ('incidents', 'reason', false),
    ('incidents', 'details', true), ('incidents', 'log_tail', false), ('alerts', 'error', false),
    ('job_reports', 'message', false), ('job_watch', 'log_tail', false), ('queue_holds', 'reason', false),
    ('llm_batches', 'message', false), ('audit_log', 'target', false), ('audit_log', 'details', true)
$$;

-- p: device_sha256, since?, until?, audio, who → id, begun_at, resumed (one that was not finished goes on), counts
create or replace function public.toban_begin_erasure(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  e public.erasures;
  v_resumed boolean;
begin
  perform pg_advisory_xact_lock(hashtextextended('toban:erasure:' || (p ->> 'device_sha256'), 0));
  select * into e from public.erasures where device_sha256 = p ->> 'device_sha256' and ended_at is null
    and since is not distinct from (p ->> 'since')::date and until is not distinct from (p ->> 'until')::date
    and audio = (p ->> 'audio')::boolean order by begun_at desc limit 1;
  v_resumed := found;
  if not v_resumed then
    insert into public.erasures (device_sha256, since, until, audio, who)
    values (p ->> 'device_sha256', (p ->> 'since')::date, (p ->> 'until')::date, (p ->> 'audio')::boolean, p ->> 'who')
    returning * into e;
  end if;
  return jsonb_build_object('id', e.id, 'begun_at', e.begun_at, 'resumed', v_resumed, 'counts', e.counts);
end
$$;

create or replace function public.toban_add_counts(a jsonb, b jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select coalesce(jsonb_object_agg(key, n), '{}') from (
    select key, sum(value::bigint) as n from (
      select * from jsonb_each_text(a) union all select * from jsonb_each_text(b)) x group by key) y
$$;

-- What the private tables have of a device. → {table: n}
create or replace function public.toban_count_private(
  p_device text, p_zone text, p_since date, p_until date, p_days boolean) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  t public.private_tables;
  v_count integer;
  v_counts jsonb := '{}';
begin
  for t in select * from public.private_tables where to_regclass('public.' || quote_ident(name)) is not null loop
    execute format('select count(*) from public.%I r where ($1, $2, $3) is not null and %s = %L%s', t.name,
                   t.device_sql, p_device, case when p_days then format(' and %s between $2 and $3', t.day_sql) end)
      into v_count using p_zone, p_since, p_until;
    v_counts := v_counts || jsonb_build_object(t.name, v_count);
  end loop;
  return v_counts;
end
$$;

-- Erase a part of what is there of a device, of all days or of since … until. p: device, zone, since?, until?, erasure?
-- (its id, for the counts), audio_after? (only recordings whose audio was deleted after this moment), also? {what: n}
-- (what was erased elsewhere), limit? (rows of each table, of one call; default 1000), dry? (only count)
-- → counts {table: n}; nothing to erase: all are 0, or what there is is held by somebody
create or replace function public.toban_erase(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  t public.private_tables;
  m record;
  v_device text;
  v_zone text;
  v_since date;
  v_until date;
  v_days boolean;
  v_shadow boolean;
  v_dry boolean;
  v_limit integer;
  v_prefix text;
  v_word text;
  v_where text;
  v_day text;
  v_refs jsonb[];
  v_ids bigint[];
  v_count integer;
  v_counts jsonb := '{}';
  v_before jsonb;
begin
  p := jsonb_strip_nulls(p);
  v_device := p ->> 'device';
  v_zone := coalesce(p ->> 'zone', 'UTC');
  v_since := coalesce((p ->> 'since')::date, '-infinity');
  v_until := coalesce((p ->> 'until')::date, 'infinity');
  v_days := p ?| array['since', 'until'];
  v_dry := coalesce((p ->> 'dry')::boolean, false);
  v_limit := coalesce((p ->> 'limit')::integer, 1000);
  if coalesce(v_device, '') = '' then
    raise exception 'a device is needed' using errcode = 'TB400';
  end if;
  if not v_dry then
    -- Whoever writes prompts has read the words before; it looks again when it has this lock.
    perform pg_advisory_xact_lock(hashtextextended('toban:prompts', 0));
  end if;

  -- (Counted before and after: the triggers of the watched rows take most of them.)
  v_before := public.toban_count_private(v_device, v_zone, v_since, v_until, v_days);

  -- The watched rows of the device: their triggers close the items and forget what was said. Whoever holds a row is
  -- not waited for; it is found by the next call.
  for s in select * from public.toban_sources where 'device_id' = any (key_columns) order by watched, source loop
    v_where := public.toban_device_sql(s.watched, 'device_id', v_device);
    v_day := case when s.time_column is not null then format('(r.%I at time zone $1)::date', s.time_column)
             when s.date_column is not null then format('r.%I', s.date_column) end;
    if v_days then
      continue when v_day is null;
      v_where := v_where || format(' and %s between $2 and $3', v_day);
    end if;
    if p ? 'audio_after' and s.source = 'transcription' and not v_dry then
      v_where := v_where || format($q$ and exists (select from public.deleted_audio d where d.device_id = %L
        and d.recorded_at = r.recorded_at and d.deleted_at >= %L)$q$, v_device, p ->> 'audio_after');
    end if;
    if v_dry then
      execute format('select count(*) from %s r where ($1, $2, $3) is not null and %s', s.watched, v_where)
        into v_count using v_zone, v_since, v_until;
    else
      execute format($q$select array_agg(ref) from (select %s as ref from %s r where ($1, $2, $3) is not null and %s
                        order by %s limit %s for update skip locked) x$q$,
                     s.ref_sql, s.watched, v_where, s.key_sql, v_limit) into v_refs using v_zone, v_since, v_until;
      execute format('delete from %s r using unnest($1) k (ref) where %s', s.watched,
                     replace(s.where_sql, '$1', 'k.ref')) using v_refs;
      get diagnostics v_count = row_count;
    end if;
    v_counts := public.toban_add_counts(v_counts,
      jsonb_build_object(regexp_replace(s.watched, '^public\.', ''), v_count));
  end loop;

  if v_dry then
    v_counts := v_counts || v_before;
  else
    for t in select * from public.private_tables where to_regclass('public.' || quote_ident(name)) is not null loop
      v_where := format('%s = %L', t.device_sql, v_device)
                 || case when v_days then format(' and %s between $2 and $3', t.day_sql) else '' end;
      if p ? 'audio_after' and t.name = 'deleted_audio' then
        -- It says which rows may go.
        v_where := v_where || ' and not exists (select from public.audio_files a where a.device_id::text = r.device_id
                                                and a.recorded_at = r.recorded_at)';
      end if;
      execute format('with mine as (select r.ctid from public.%1$I r where ($1, $2, $3) is not null and %2$s limit %3$s
                        for update skip locked)
                      delete from public.%1$I r using mine where r.ctid = mine.ctid', t.name, v_where, v_limit)
        using v_zone, v_since, v_until;
    end loop;
    v_counts := v_counts || (
      select coalesce(jsonb_object_agg(b.key, greatest(b.value::integer - a.value::integer, 0)), '{}')
      from jsonb_each_text(v_before) b
      join jsonb_each_text(public.toban_count_private(v_device, v_zone, v_since, v_until, v_days)) a using (key));
  end if;

  -- The items, running ones too: an attempt whose item is gone can write nothing. Their attempts go with them;
  -- calls to a model stay, for the books, and belong to nobody.
  v_counts := v_counts || '{"work_items": 0, "work_attempts": 0, "run_results": 0, "llm_calls": 0}';
  for s in select * from public.toban_sources
           where 'device_id' = any (key_columns) or watched = 'public.shadow_rows' order by source loop
    v_prefix := replace(replace(v_device, '%', '%25'), '/', '%2F') || '/';
    v_shadow := s.watched = 'public.shadow_rows';
    if v_shadow then  -- its key is the real one's source and key
      v_prefix := replace(s.source, 'shadow_', '') || '/' || replace(replace(v_prefix, '%', '%25'), '/', '%2F');
    end if;
    v_where := format('w.source = %L and ', s.source)
               || case when v_shadow then format('w.partition = %L', v_device)
                  else format('w.ref ->> ''device_id'' = %L', v_device) end;
    if v_days and v_shadow then
      v_where := v_where || $q$ and coalesce((w.at at time zone $1)::date,
        substring(w.key from '(\d{4}-\d\d-\d\d)%2F')::date) between $2 and $3$q$;
    elsif v_days then
      continue when s.date_column is null and s.time_column is null;
      v_where := v_where || format(' and coalesce((w.ref ->> %L)::date, (w.at at time zone $1)::date) between $2 and $3',
                                   coalesce(s.date_column, ''));
    end if;
    execute format('select array_agg(id) from (select w.id from public.work_items w where ($1, $2, $3) is not null
                    and %s %s) x', v_where,
                   case when v_dry then '' else format('order by w.key limit %s for update skip locked', v_limit) end)
      into v_ids using v_zone, v_since, v_until;
    v_where := format('c.source = %L and starts_with(c.key, %L)', s.source, v_prefix);
    if v_days then
      -- (Sources that call a model have their day in the key.)
      v_where := case when v_shadow then v_where ||
        $q$ and substring(c.key from '(\d{4}-\d\d-\d\d)%2F')::date between $2 and $3$q$ when s.date_column = any (s.key_columns) then v_where || format(
        ' and split_part(c.key, ''/'', %s)::date between $2 and $3', array_position(s.key_columns, s.date_column))
        else 'false' end;
    end if;
    if v_dry then
      v_counts := public.toban_add_counts(v_counts, jsonb_build_object('work_items', coalesce(cardinality(v_ids), 0),
        'work_attempts', (select count(*) from public.work_attempts where item_id = any (v_ids)),
        'run_results', (select count(*) from public.run_results where item_id = any (v_ids))));
      execute format('select count(*) from public.llm_calls c where ($1, $2, $3) is not null and %s', v_where)
        into v_count using v_zone, v_since, v_until;
    else
      -- A batch that is out holds the words: it is called back, its files are deleted, and its other rows
      -- go alone. (Its list of items stays until then: by it the calls are ended.)
      update public.llm_batches b set leave_by = least(b.leave_by, now())
        where b.state in ('preparing', 'submitted') and exists (select from public.llm_batch_items i where i.batch_id = b.id and i.item_id = any (v_ids));
      get diagnostics v_count = row_count;
      v_counts := public.toban_add_counts(v_counts, jsonb_build_object('batches_called_back', v_count));
      with gone as (delete from public.run_results where item_id = any (v_ids) returning 1)
        select count(*) into v_count from gone;
      v_counts := public.toban_add_counts(v_counts, jsonb_build_object('run_results', v_count,
        'work_attempts', (select count(*) from public.work_attempts where item_id = any (v_ids))));
      delete from public.work_items where id = any (v_ids);
      get diagnostics v_count = row_count;
      v_counts := public.toban_add_counts(v_counts, jsonb_build_object('work_items', v_count));
      execute format('update public.llm_calls c set key = '''' where ($1, $2, $3) is not null and %s', v_where)
        using v_zone, v_since, v_until;
      get diagnostics v_count = row_count;
    end if;
    v_counts := public.toban_add_counts(v_counts, jsonb_build_object('llm_calls', v_count));
  end loop;

  -- Where it is named, and a job that is for it alone: that one stops, instead of taking the rows of all others.
  if not v_days then
    v_word := '(?<![[:alnum:]_-])' || regexp_replace(v_device, '([^[:alnum:]_ -])', '\\\1', 'g') || '(?![[:alnum:]_-])';
    v_counts := v_counts || '{"mentions": 0}';
    if v_dry then
      select count(*) into v_count from public.jobs where filters ->> 'partition' = v_device;
    else
      update public.jobs set enabled = false, filters = filters - 'partition', updated_at = now()
        where filters ->> 'partition' = v_device;
      get diagnostics v_count = row_count;
    end if;
    v_counts := v_counts || jsonb_build_object('job_filters', v_count);
    for m in select * from public.toban_mentions() loop
      if v_dry then
        execute format('select count(*) from public.%I where %I::text ~ $1', m.tab, m.col) into v_count using v_word;
      else
        execute format('update public.%1$I set %2$I = regexp_replace(%2$I::text, $1, ''(erased)'', ''g'')%3$s
                        where %2$I::text ~ $1', m.tab, m.col, case when m.is_json then '::jsonb' else '' end)
          using v_word;
        get diagnostics v_count = row_count;
      end if;
      v_counts := public.toban_add_counts(v_counts, jsonb_build_object('mentions', v_count));
    end loop;
  end if;

  if not v_dry and p ? 'erasure' then
    update public.erasures set
      counts = public.toban_add_counts(public.toban_add_counts(counts, v_counts), coalesce(p -> 'also', '{}'))
    where id = (p ->> 'erasure')::uuid;
  end if;
  return jsonb_build_object('counts', v_counts);
end
$$;

-- p: id, receipt → ended, receipt. The first end counts; the audit log has it too.
create or replace function public.toban_end_erasure(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  e public.erasures;
begin
  update public.erasures set ended_at = clock_timestamp(), receipt = p -> 'receipt'
    where id = (p ->> 'id')::uuid and ended_at is null returning * into e;
  if not found then
    return jsonb_build_object('ended', false);
  end if;
  perform public.toban_audit(jsonb_build_object('who', e.who), 'erase', 'device sha256:' || e.device_sha256,
    jsonb_build_object('erasure', e.id, 'since', e.since, 'until', e.until, 'counts', e.counts));
  return jsonb_build_object('ended', true);
end
$$;

-- p: id, or device_sha256 → erasures [{id, begun_at, ended_at, counts, receipt …}], the newest first
create or replace function public.toban_erasures(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('erasures', coalesce(jsonb_agg(to_jsonb(e) order by e.begun_at desc), '[]'))
  from public.erasures e where e.device_sha256 = p ->> 'device_sha256' or e.id = (p ->> 'id')::uuid
$$;

-- What a provider may have of our batches. → out [uid] of those that have not ended, ended [provider_id]
create or replace function public.toban_batches_known(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object(
    'out', coalesce(jsonb_agg(b.uid) filter (where b.state <> 'ended'), '[]'),
    'ended', coalesce(jsonb_agg(b.provider_id) filter (where b.state = 'ended' and b.provider_id is not null), '[]'))
  from public.llm_batches b
$$;

-- As before, and: its item can't go while the call is noted.
create or replace function public.toban_begin_call(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  v_cost numeric := coalesce((p ->> 'cost')::numeric, 0);
  v_budget jsonb;
  v_call bigint;
begin
  -- (The fence that counts is the finish's. A call that is sent for an item just lost is a call all the same.)
  select * into w from public.work_items where id = (p ->> 'id')::bigint for key share;
  if w.state is distinct from 'processing' or w.attempt <> (p ->> 'attempt')::integer
     or w.token is distinct from (p ->> 'token')::uuid then
    return jsonb_build_object('lost', true);
  end if;
  -- One after the other, so that ten calls at once can't each be the last one that the budget allows.
  perform pg_advisory_xact_lock(hashtextextended('toban:budget', 0));
  v_budget := public.toban_budget(p, v_cost);
  if v_budget ? 'over' then
    return jsonb_build_object('over', v_budget -> 'over');
  end if;
  perform public.toban_spend((v_budget ->> 'day')::date, 1, v_cost);
  insert into public.llm_calls (item_id, source, key, attempt, model, cost, day)
  values (w.id, w.source, w.key, w.attempt, p ->> 'model', v_cost, (v_budget ->> 'day')::date)
  returning id into v_call;
  -- Whoever worked on the item before and left a call without an end, has died. (Last: the day comes before the calls.)
  perform public.toban_lose_calls(array(
    select id from public.llm_calls where item_id = w.id and outcome = 'sent' and attempt < w.attempt));
  return jsonb_build_object('call', v_call);
end
$$;

select public.toban_lock_table(t) from unnest(array['erasures', 'private_tables']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
