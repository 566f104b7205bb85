-- Source `analysis`: a dashboard row with a prompt gets a language model's verdict.

-- As in app_tables: a table of that name that is something else is told before anything is changed.
do $$
declare
  v_missing text := (
    select string_agg(c, ', ' order by n) from unnest(array['device_id', 'date', 'time_block', 'prompt', 'summary',
      'behavior', 'vibe_score', 'analysis_result', 'status', 'processed_at', 'updated_at']) with ordinality u (c, n)
    where not exists (select from pg_attribute a where a.attrelid = to_regclass('public.dashboard')
                      and a.attname = c and not a.attisdropped));
begin
  if to_regclass('public.dashboard') is null then
    create table public.dashboard (
      -- (Text, as in audio_files: a device may have any name. An app's own table mostly has uuid here.)
      device_id text not null,
      date date not null,
      time_block varchar(5) not null,
      prompt text,
      summary text,
      behavior text,
      vibe_score double precision,
      analysis_result jsonb,
      status varchar(20) default 'pending',
      processed_at timestamptz,
      created_at timestamptz default now(),
      updated_at timestamptz default now(),
      primary key (device_id, date, time_block)
    );
    alter table public.dashboard enable row level security;
  elsif v_missing is not null then
    raise exception 'a table that is there already is not the one that Toban needs: public.dashboard has no %. Rename '
      'it, or give Toban a database of its own', v_missing using errcode = 'duplicate_table';
  end if;
end
$$;

-- The result's `row` is written into dashboard by the ledger; the call that brought it ends in the same transaction.
-- A score outside of its range, and so NaN and Infinity, is never stored, whoever sends it.
create or replace function public.toban_store_analysis(item public.work_items, result jsonb) returns void
language plpgsql set search_path = '' as $$
begin
  if (result -> 'row' ->> 'vibe_score')::double precision not between -100 and 100 then
    raise exception 'vibe_score is %, but has to be from -100 to 100', result -> 'row' ->> 'vibe_score'
      using errcode = 'TB400';
  end if;
  if result ? 'call' then
    perform public.toban_end_call(result -> 'call');
  end if;
end
$$;

select public.toban_watch('dashboard', 'analysis', array['device_id', 'date', 'time_block'], 'status',
  p_date => 'date', p_block => 'time_block', p_due => 'r.prompt is not null', p_inputs => array['prompt'],
  p_store => 'public.toban_store_analysis');

-- An update of an app's row runs the app's own triggers, which count on finding the app's tables without naming their
-- schema, as they do in the app's own statements. What the function itself does is named in full.
alter function public.toban_mark(public.toban_sources, jsonb, text, jsonb) set search_path = public, extensions, pg_temp;

-- Which blocks have their prompt, so that the planner writes each once for what was said in it.
create table if not exists public.prompted_blocks (
  device_id text not null,
  date date not null,
  time_block text not null,
  prompted_at timestamptz not null default now(),
  primary key (device_id, date, time_block)
);
create index if not exists transcripts_updated_idx on public.transcripts (updated_at);

-- Blocks in which somebody spoke and whose prompt is missing or older than the words. A block waits for all of its
-- recordings, so that it is analysed once. p: zone, job? (whose filters hold), days? (how far back, default 7), limit
-- → blocks [{device_id, date, time_block, transcription, heard_at}]
create or replace function public.toban_unprompted_blocks(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  j public.jobs;
  s public.toban_sources;
  f jsonb;
  v_zone text := coalesce(p ->> 'zone', 'UTC');
  v_blocks jsonb;
begin
  select * into strict s from public.toban_sources where source = 'analysis';
  select * into j from public.jobs where job = p ->> 'job';
  f := public.toban_filters(j, s, v_zone);
  with heard as (
    select t.device_id, t.date, t.time_block, max(t.updated_at) as heard_at
    from public.transcripts t
    where t.updated_at > now() - coalesce((p ->> 'days')::integer, 7) * interval '1 day'
      and (f ->> 'partition' is null or t.device_id = f ->> 'partition')
      and (f ->> 'date' is null or t.date = (f ->> 'date')::date)
    group by t.device_id, t.date, t.time_block
  ), due as (
    select h.*, v.transcription from heard h
    join public.vibe_whisper v on v.device_id::text = h.device_id and v.date = h.date and v.time_block = h.time_block
    left join public.prompted_blocks b
      on b.device_id = h.device_id and b.date = h.date and b.time_block = h.time_block
    where v.transcription ~ '\S' and (b.prompted_at is null or b.prompted_at < h.heard_at)
      and not exists (
        select from public.work_items w where w.source = 'transcription' and w.partition = h.device_id
          and w.state in ('pending', 'queued', 'processing')
          and w.at >= (h.date + replace(h.time_block, '-', ':')::time) at time zone v_zone
          and w.at < (h.date + replace(h.time_block, '-', ':')::time) at time zone v_zone + interval '30 min')
    order by h.heard_at limit (p ->> 'limit')::integer
  )
  select coalesce(jsonb_agg(to_jsonb(due) order by heard_at), '[]') into v_blocks from due;
  return jsonb_build_object('blocks', v_blocks);
end
$$;

-- p: blocks [{device_id, date, time_block, prompt, heard_at}] → written, refused [{device_id, date, time_block, error}]
-- A device that the app's table can't name (its column is a uuid) is refused alone, and not asked for again until
-- something new is heard. A prompt that is there already, for these words or word for word, is not written again: its
-- verdict is there or on the way. A row that somebody holds is left for the next time: the app may hold it and want
-- another of these.
create or replace function public.toban_write_prompts(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  b jsonb;
  s public.toban_sources;
  v_written integer := 0;
  v_count integer;
  v_refused jsonb := '[]';
begin
  select * into strict s from public.toban_sources where source = 'analysis';
  -- One after the other, and after that no long waiting: only for a row that somebody inserts at this moment.
  perform pg_advisory_xact_lock(hashtextextended('toban:prompts', 0));
  perform set_config('lock_timeout', '300ms', true);
  for b in select x from jsonb_array_elements(p -> 'blocks') x
           order by x ->> 'device_id', x ->> 'date', x ->> 'time_block' loop
    continue when exists (
      select from public.prompted_blocks t
      where t.device_id = b ->> 'device_id' and t.date = (b ->> 'date')::date and t.time_block = b ->> 'time_block'
        and t.prompted_at >= (b ->> 'heard_at')::timestamptz);
    begin
      continue when public.toban_try_lock(s, b) = 'busy';
      insert into public.dashboard as d (device_id, date, time_block, prompt, status)
      select r.device_id, r.date, r.time_block, r.prompt, 'pending'
      from jsonb_populate_record(null::public.dashboard, b) r
      on conflict (device_id, date, time_block) do update set
        prompt = excluded.prompt, status = 'pending', updated_at = now()
        where d.prompt is distinct from excluded.prompt;
      get diagnostics v_count = row_count;
      v_written := v_written + v_count;
    exception when data_exception or integrity_constraint_violation then
      v_refused := v_refused || jsonb_build_object('device_id', b -> 'device_id', 'date', b -> 'date',
        'time_block', b -> 'time_block', 'error', sqlerrm);
    end;
    insert into public.prompted_blocks as t (device_id, date, time_block, prompted_at)
    values (b ->> 'device_id', (b ->> 'date')::date, b ->> 'time_block', (b ->> 'heard_at')::timestamptz)
    on conflict (device_id, date, time_block) do update set prompted_at = excluded.prompted_at;
  end loop;
  return jsonb_build_object('written', v_written, 'refused', v_refused);
end
$$;

select public.toban_lock_table('prompted_blocks');
select public.toban_lock_down();
notify pgrst, 'reload schema';
