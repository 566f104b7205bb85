-- What the pages of devices, days and recordings show, and the search for what was said.

-- The one- and two-character pieces of a text, by which it is found: words can't be told apart in Japanese, and a
-- hosted database may lack the extensions for it. Width and case make no difference.
create or replace function public.toban_fold(p_text text) returns text
language sql immutable parallel safe set search_path = '' as $$
  select lower(normalize(p_text, nfkc))
$$;

create or replace function public.toban_grams(p_text text) returns text[]
-- (Dear: so that the planner looks into the index, even when the table seems small.)
language sql immutable parallel safe cost 100000 set search_path = '' as $$
  select coalesce(array_agg(distinct g), '{}') from (
    select c, c || lead(c) over (order by n) as pair
    from unnest(string_to_array(public.toban_fold(p_text), null)) with ordinality u (c, n)) x
  cross join lateral (values (c), (pair)) v (g)
  where g !~ '\s'
$$;

create index if not exists transcripts_grams_idx on public.transcripts using gin (public.toban_grams(text));

-- p: words [text] (all of them; each at least one character), device?, limit? (default 50)
-- → found [{device_id, recorded_at, date, time_block, at (where in the text), text (around it)}], more
create or replace function public.toban_page_search(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '10s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 50);
  v_words text[] := array(select public.toban_fold(x) from jsonb_array_elements_text(p -> 'words') x);
  v_grams text[] := '{}';
  v_found jsonb;
  x text;
begin
  -- Pieces of two find much less than pieces of one.
  foreach x in array v_words loop
    v_grams := v_grams || array(select g from unnest(public.toban_grams(x)) g
                                where length(g) = least(2, length(x)));
  end loop;
  if v_grams = '{}' then
    raise exception 'there is no word to search for' using errcode = 'TB400';
  end if;
  with hits as (
    select t.device_id, t.recorded_at, t.date, t.time_block, public.toban_fold(t.text) as text
    from public.transcripts t
    where public.toban_grams(t.text) @> v_grams and (p ->> 'device' is null or t.device_id = p ->> 'device')
      and not exists (select from unnest(v_words) w where strpos(public.toban_fold(t.text), w) = 0)
    order by t.recorded_at desc limit v_limit + 1
  )
  select coalesce(jsonb_agg(jsonb_build_object(
    'device_id', h.device_id, 'recorded_at', h.recorded_at, 'date', h.date, 'time_block', h.time_block,
    'at', strpos(h.text, v_words[1]), 'text', substr(h.text, greatest(strpos(h.text, v_words[1]) - 40, 1), 110))
    order by h.recorded_at desc), '[]') into v_found from hits h;
  return jsonb_build_object('found', v_found - v_limit, 'more', jsonb_array_length(v_found) > v_limit);
end
$$;

-- Devices with recordings. p: zone, limit? (default 200) → devices [{device_id, first, last (days), waiting, failed}],
-- more
create or replace function public.toban_page_devices(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_zone text := coalesce(p ->> 'zone', 'UTC');
  v_limit integer := coalesce((p ->> 'limit')::integer, 200);
  v_devices jsonb;
begin
  -- A loose index scan: one look-up a device, however many recordings each has.
  with recursive devices as (
    (select device_id from public.audio_files order by device_id limit 1)
    union all
    select (select a.device_id from public.audio_files a where a.device_id > d.device_id order by a.device_id limit 1)
    from devices d where d.device_id is not null
  ), open as (
    select partition, count(*) filter (where state <> 'failed') as waiting,
           count(*) filter (where state = 'failed') as failed
    from public.work_items
    where source in ('transcription', 'analysis')
      and (state in ('pending', 'queued', 'processing') or state = 'failed' and incident_since is not null)
    group by partition
  ), told as (
    select d.device_id::text as device_id,
      (select min(recorded_at) from public.audio_files a where a.device_id = d.device_id) as first,
      (select max(recorded_at) from public.audio_files a where a.device_id = d.device_id) as last,
      coalesce(o.waiting, 0) as waiting, coalesce(o.failed, 0) as failed
    from (select device_id from devices where device_id is not null limit v_limit + 1) d
    left join open o on o.partition = d.device_id::text
  )
  select coalesce(jsonb_agg(jsonb_build_object(
    'device_id', device_id, 'first', to_char(first at time zone v_zone, 'YYYY-MM-DD'),
    'last', to_char(last at time zone v_zone, 'YYYY-MM-DD'), 'waiting', waiting, 'failed', failed)
    order by last desc, device_id), '[]') into v_devices from told;
  return jsonb_build_object('devices', v_devices - v_limit, 'more', jsonb_array_length(v_devices) > v_limit);
end
$$;

-- The recordings of a device in a period. Its own expressions find their items: the app's table may have device_id as
-- text or as uuid; who can't be one of its devices has no recordings.
create or replace function public.toban_recordings(p_device text, p_from timestamptz, p_to timestamptz, p_text boolean)
returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  s public.toban_sources;
  v_found jsonb;
begin
  select * into strict s from public.toban_sources where source = 'transcription';
  execute format(
    $q$select coalesce(jsonb_agg(to_jsonb(x) order by x.recorded_at), '[]') from (
         select r.recorded_at, r.file_path, r.transcriptions_status as status, %s as key,
           case when w.id is not null then public.toban_item_json(w) end as item,
           t.duration_seconds, t.language, t.model, t.engine, t.real_time_factor, t.note,
           case when $1 then t.text end as text, case when $1 then t.segments end as segments, t.text is not null as heard
         from %s r
         left join public.work_items w on w.source = 'transcription' and w.key = %s
         left join public.transcripts t on t.device_id = r.device_id::text and t.recorded_at = r.recorded_at
         where r.device_id = %L and r.recorded_at >= %L and r.recorded_at < %L) x$q$,
    s.key_sql, s.watched, s.key_sql, p_device, p_from, p_to) into v_found using p_text;
  return v_found;
exception when data_exception then
  return '[]';
end
$$;

-- The analyses of a device's day. → [{time_block, vibe_score, summary, behavior, status, processed_at, item}]
create or replace function public.toban_analyses(p_device text, p_date date, p_block text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  s public.toban_sources;
  v_found jsonb;
begin
  select * into strict s from public.toban_sources where source = 'analysis';
  execute format(
    $q$select coalesce(jsonb_agg(to_jsonb(x) order by x.time_block), '[]') from (
         select r.time_block, r.vibe_score, r.summary, r.behavior, r.status, r.processed_at, %s as key,
           case when w.id is not null then public.toban_item_json(w) end as item
         from %s r left join public.work_items w on w.source = 'analysis' and w.key = %s
         where r.device_id = %L and r.date = %L and ($1 is null or r.time_block = $1)) x$q$,
    s.key_sql, s.watched, s.key_sql, p_device, p_date) into v_found using p_block;
  return v_found;
exception when data_exception then
  return '[]';
end
$$;

-- A device's day. p: device, date, zone → recordings (toban_recordings, without their words), analyses, words {block:
-- text}, cost (US dollars), before, after (the next days with recordings)
create or replace function public.toban_page_day(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_zone text := coalesce(p ->> 'zone', 'UTC');
  v_date date := p ->> 'date';
  v_from timestamptz := v_date::timestamp at time zone v_zone;
  v_to timestamptz := (v_date + 1)::timestamp at time zone v_zone;
  v_analyses jsonb := public.toban_analyses(p ->> 'device', v_date, null);
  v_before timestamptz;
  v_after timestamptz;
begin
  begin
    execute format('select (select max(recorded_at) from public.audio_files where device_id = %L and recorded_at < $1),
                           (select min(recorded_at) from public.audio_files where device_id = %L and recorded_at >= $2)',
                   p ->> 'device', p ->> 'device') into v_before, v_after using v_from, v_to;
  exception when data_exception then
    null;
  end;
  return jsonb_build_object(
    'now', now(), 'today', to_char(now() at time zone v_zone, 'YYYY-MM-DD'),
    'recordings', public.toban_recordings(p ->> 'device', v_from, v_to, false), 'analyses', v_analyses,
    'words', (select coalesce(jsonb_object_agg(v.time_block, left(v.transcription, 300)), '{}')
              from public.vibe_whisper v where v.device_id::text = p ->> 'device' and v.date = v_date),
    'cost', (select coalesce(sum(c.cost), 0) from public.llm_calls c
             where c.source = 'analysis' and c.key in (select a ->> 'key' from jsonb_array_elements(v_analyses) a)),
    'before', to_char(v_before at time zone v_zone, 'YYYY-MM-DD'),
    'after', to_char(v_after at time zone v_zone, 'YYYY-MM-DD'));
end
$$;

-- One recording with its words, its attempts, and its block's analysis. p: device, at (its recorded_at), zone
-- → recording, date, time_block, attempts, analysis?, analysis_attempts, calls
create or replace function public.toban_page_recording(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_at timestamptz := p ->> 'at';
  v_local timestamp := v_at at time zone coalesce(p ->> 'zone', 'UTC');
  v_block text := to_char(date_bin('30 min', v_local, timestamp '2000-01-01'), 'HH24-MI');
  v_recording jsonb := public.toban_recordings(p ->> 'device', v_at, v_at + interval '1 us', true) -> 0;
  v_analysis jsonb := public.toban_analyses(p ->> 'device', v_local::date, v_block) -> 0;
begin
  if v_recording is null then
    raise exception 'there is no recording of % at %', p ->> 'device', p ->> 'at' using errcode = 'TB404';
  end if;
  return jsonb_build_object(
    'recording', v_recording, 'date', v_local::date, 'time_block', v_block, 'analysis', v_analysis,
    'attempts', public.toban_attempts_of((v_recording -> 'item' ->> 'id')::bigint, 20),
    'analysis_attempts', public.toban_attempts_of((v_analysis -> 'item' ->> 'id')::bigint, 20),
    'calls', public.toban_calls_of('analysis', v_analysis ->> 'key', 20));
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
