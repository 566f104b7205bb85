-- Source `transcription`: audio_files rows become transcripts, and vibe_whisper gets each time block's text.

create table if not exists public.transcripts (
  device_id text not null,
  recorded_at timestamptz not null,
  date date not null,
  time_block text not null check (time_block ~ '^([01][0-9]|2[0-3])-(00|30)$'),
  text text not null,
  segments jsonb not null default '[]',
  language text,
  duration_seconds double precision not null,
  model text not null,
  engine text not null,
  real_time_factor double precision,
  note text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (device_id, recorded_at)
);
comment on column public.transcripts.segments is '[{"start": seconds, "end": seconds, "text": words}]';
comment on column public.transcripts.real_time_factor is
  'seconds of work per second of audio; below 1 is faster than live';
create index if not exists transcripts_block_idx on public.transcripts (device_id, date, time_block);
alter table public.transcripts enable row level security;

create or replace function public.toban_store_transcription(item public.work_items, result jsonb) returns void
language plpgsql set search_path = '' as $$
declare
  v_device text := item.ref ->> 'device_id';
  v_date date := result ->> 'date';
  v_block text := result ->> 'time_block';
begin
  -- Two recordings of one block may finish at once; each must see the other's text.
  perform pg_advisory_xact_lock(hashtextextended(format('toban:block:%s/%s/%s', v_device, v_date, v_block), 0));
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

select public.toban_watch('audio_files', 'transcription', array['device_id', 'recorded_at'], 'transcriptions_status',
  p_time => 'recorded_at', p_inputs => array['file_path'], p_store => 'public.toban_store_transcription');
