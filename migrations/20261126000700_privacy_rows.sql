-- Whoever deletes a recording's row deletes its words: the transcript, its part of the block's text, and what Toban made
-- of that text.

-- Rows that were deleted while somebody held what belongs to them, or in greater numbers than one statement should have
-- to wait for: `reconcile` does the rest.
create table if not exists public.forgotten_recordings (
  device_id text not null,
  recorded_at timestamptz not null,
  file_path text,
  primary key (device_id, recorded_at)
);
comment on table public.forgotten_recordings is 'deleted rows of audio_files whose words are not gone yet';

-- Recordings whose audio Toban has deleted, so that no object is deleted again every day.
create table if not exists public.deleted_audio (
  device_id text not null,
  recorded_at timestamptz not null,
  deleted_at timestamptz not null default clock_timestamp(),
  primary key (device_id, recorded_at)
);

do $$
begin
  if to_regtype('public.toban_block') is null then
    create type public.toban_block as (device_id text, date date, time_block text);
  end if;
end
$$;

-- Nobody else writes texts of these blocks until the transaction ends. A finish holds `toban:blocks` shared and its one
-- block alone; so do few blocks here, and many take the whole. In the order of their names, as everywhere.
create or replace function public.toban_lock_blocks(p_blocks public.toban_block[]) returns void
language plpgsql set search_path = '' as $$
begin
  if cardinality(p_blocks) > 100 then
    perform pg_advisory_xact_lock(hashtextextended('toban:blocks', 0));
    return;
  end if;
  perform pg_advisory_xact_lock_shared(hashtextextended('toban:blocks', 0));
  perform pg_advisory_xact_lock(hashtextextended(name, 0)) from (
    select format('toban:block:%s/%s/%s', b.device_id, b.date, b.time_block) as name
    from unnest(p_blocks) b order by 1) x;
end
$$;

-- The texts of these blocks, from the transcripts that are there; a block without one has none.
create or replace function public.toban_rebuild_blocks(p_blocks public.toban_block[]) returns void
language sql set search_path = '' as $$
  with now_said as (
    select b.device_id, b.date, b.time_block, count(t.device_id) as recordings,
           coalesce(string_agg(nullif(t.text, ''), e'\n' order by t.recorded_at), '') as text
    from unnest(p_blocks) b left join public.transcripts t using (device_id, date, time_block)
    group by 1, 2, 3
  ), emptied as (
    delete from public.vibe_whisper v using now_said n
    where v.device_id::text = n.device_id and v.date = n.date and v.time_block = n.time_block and n.recordings = 0
  )
  update public.vibe_whisper v set transcription = n.text from now_said n
  where v.device_id::text = n.device_id and v.date = n.date and v.time_block = n.time_block and n.recordings > 0
$$;

-- What Toban asked about these blocks, and the answers: the prompts hold the words. What is left in a block counts as
-- heard now, so that the planner asks anew. Prompts that the app wrote are the app's.
create or replace function public.toban_unprompt_blocks(p_blocks public.toban_block[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_blocks jsonb;
begin
  -- Whoever writes prompts has read the words before; it looks again when it has this lock.
  perform pg_advisory_xact_lock(hashtextextended('toban:prompts', 0));
  delete from public.shadow_rows s using unnest(p_blocks) b where s.source = 'analysis' and s.key = concat_ws('/',
    replace(replace(b.device_id, '%', '%25'), '/', '%2F'), to_char(b.date, 'YYYY-MM-DD'), b.time_block);
  update public.transcripts t set updated_at = clock_timestamp() from unnest(p_blocks) b
    where t.device_id = b.device_id and t.date = b.date and t.time_block = b.time_block;
  for v_blocks in
    with gone as (
      delete from public.prompted_blocks p using unnest(p_blocks) b
      where p.device_id = b.device_id and p.date = b.date and p.time_block = b.time_block
      returning p.device_id, p.date, p.time_block
    )
    select jsonb_agg(to_jsonb(gone)) from gone group by device_id order by device_id
  loop
    begin
      with mine as (
        select d.device_id, d.date, d.time_block from public.dashboard d
        join jsonb_populate_recordset(null::public.dashboard, v_blocks) b using (device_id, date, time_block)
        order by 1, 2, 3 for update of d
      )
      update public.dashboard d set prompt = null, summary = null, behavior = null, vibe_score = null,
        analysis_result = null, processed_at = null, status = 'pending', updated_at = now()
      from mine where d.device_id = mine.device_id and d.date = mine.date and d.time_block = mine.time_block;
    exception when data_exception then
      null;  -- a device that the app's column can't name has no row there
    end;
  end loop;
end
$$;

-- Forget what was said in recordings whose rows are gone. Of a recording without a transcript of ours (the old program
-- heard it) the block is the one that its path names.
create or replace function public.toban_forget(p_gone public.forgotten_recordings[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_blocks public.toban_block[];
begin
  delete from public.deleted_audio d using unnest(p_gone) g
    where d.device_id = g.device_id and d.recorded_at = g.recorded_at;
  select array_agg(distinct row(x.device_id, x.date, x.time_block)::public.toban_block) into v_blocks from (
    -- (A day that its month does not have makes no error.)
    select g.device_id, coalesce(t.date, make_date(m[1]::integer, m[2]::integer, 1) + m[3]::integer - 1) as date,
           coalesce(t.time_block, m[4] || case when m[5] < '30' then '-00' else '-30' end) as time_block
    from unnest(p_gone) g
    left join public.transcripts t on t.device_id = g.device_id and t.recorded_at = g.recorded_at
    left join lateral regexp_match(g.file_path,
      '/(20\d\d)-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])/([01]\d|2[0-3])-([0-5]\d)/') m on t.device_id is null) x
  where x.date is not null;
  if v_blocks is null then
    return;
  end if;
  perform public.toban_lock_blocks(v_blocks);
  delete from public.transcripts t using unnest(p_gone) g
    where t.device_id = g.device_id and t.recorded_at = g.recorded_at;
  perform public.toban_rebuild_blocks(v_blocks);
  perform public.toban_unprompt_blocks(v_blocks);
end
$$;

-- After the trigger that closes the items (triggers run in the order of their names): a recording that is being heard
-- is nobody's any more. Never fails the app's statement, nor waits long: what can't be done now is noted.
create or replace function public.toban_on_recordings_deleted() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '300ms' as $$
declare
  v_gone public.forgotten_recordings[] := array(
    select row(r.device_id::text, r.recorded_at, r.file_path)::public.forgotten_recordings from old_rows r);
begin
  if cardinality(v_gone) <= 50000 then
    begin
      perform public.toban_forget(v_gone);
      return null;
    exception when others then
      null;
    end;
  end if;
  insert into public.forgotten_recordings select g.* from unnest(v_gone) g
    on conflict (device_id, recorded_at) do update set file_path = excluded.file_path;
  return null;
exception when others then
  raise warning 'toban: what was said in deleted rows of % is still there: %', tg_relid::regclass, sqlerrm;
  return null;
end
$$;
drop trigger if exists toban_transcription_forget on public.audio_files;
create trigger toban_transcription_forget after delete on public.audio_files referencing old table as old_rows
  for each statement execute function public.toban_on_recordings_deleted();

-- The rest of what was deleted. A row that is there again keeps its words: it waits, and will be heard anew, or the app
-- has put it back. What somebody still holds is left for the next time. p: limit? (default 1000) → forgotten, more (call
-- again)
create or replace function public.toban_forget_recordings(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' set lock_timeout = '5s' as $$
declare
  v_gone public.forgotten_recordings[];
  v_limit integer := coalesce((p ->> 'limit')::integer, 1000);
begin
  with mine as (
    select f.* from public.forgotten_recordings f order by device_id, recorded_at limit v_limit for update skip locked
  ), taken as (
    delete from public.forgotten_recordings f using mine
    where f.device_id = mine.device_id and f.recorded_at = mine.recorded_at returning f.*
  )
  select array_agg(taken) into v_gone from taken;
  if v_gone is not null then
    perform public.toban_forget(array(select g from unnest(v_gone) g where not exists (
      select from public.audio_files a where a.device_id::text = g.device_id and a.recorded_at = g.recorded_at)));
  end if;
  return jsonb_build_object('forgotten', coalesce(cardinality(v_gone), 0),
                            'more', coalesce(cardinality(v_gone) >= v_limit, false));
exception when lock_not_available then
  return jsonb_build_object('forgotten', 0, 'more', false);
end
$$;

-- As before, and: a recording whose row is gone is not written; the lock on all blocks comes first; and a finish does
-- not wait for long for somebody who may be waiting for its row (it is repeated).
create or replace function public.toban_store_transcription(item public.work_items, result jsonb) returns void
language plpgsql set search_path = '' as $$
declare
  s public.toban_sources;
  v_device text := item.ref ->> 'device_id';
  v_date date := result ->> 'date';
  v_block text := result ->> 'time_block';
begin
  select * into strict s from public.toban_sources where source = item.source;
  if public.toban_try_lock(s, item.ref) = 'gone' then
    return;
  end if;
  perform set_config('lock_timeout', '500ms', true);
  -- Two recordings of one block may finish at once; each must see the other's text.
  perform public.toban_lock_blocks(array[row(v_device, v_date, v_block)::public.toban_block]);
  insert into public.transcripts as t
    (device_id, recorded_at, date, time_block, text, segments, language, duration_seconds, model, engine,
     real_time_factor, note)
  values (v_device, (item.ref ->> 'recorded_at')::timestamptz, v_date, v_block, result ->> 'text', result -> 'segments',
          result ->> 'language', (result ->> 'duration_seconds')::double precision, result ->> 'model',
          result ->> 'engine', (result ->> 'real_time_factor')::double precision, result ->> 'note')
  on conflict (device_id, recorded_at) do update set
    date = excluded.date, time_block = excluded.time_block, text = excluded.text, segments = excluded.segments,
    language = excluded.language, duration_seconds = excluded.duration_seconds, model = excluded.model,
    engine = excluded.engine, real_time_factor = excluded.real_time_factor, note = excluded.note, updated_at = now();
  insert into public.vibe_whisper as v (device_id, date, time_block, transcription)
  select v_device, v_date, v_block, coalesce(string_agg(nullif(t.text, ''), e'\n' order by t.recorded_at), '')
    from public.transcripts t where t.device_id = v_device and t.date = v_date and t.time_block = v_block
  on conflict (device_id, date, time_block) do update set transcription = excluded.transcription;
end
$$;

-- As before, and: words that are gone are not asked about. p: blocks [{device_id, date, time_block,
-- prompt, heard_at}] → written, refused [{device_id, date, time_block, error}]
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
    -- (Where a recording was deleted, the rest counts as heard later.)
    continue when not exists (
      select from public.transcripts t
      where t.device_id = b ->> 'device_id' and t.date = (b ->> 'date')::date and t.time_block = b ->> 'time_block'
        and t.updated_at <= (b ->> 'heard_at')::timestamptz);
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

select public.toban_lock_table(t) from unnest(array['forgotten_recordings', 'deleted_audio']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
