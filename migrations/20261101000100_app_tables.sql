-- The tables that the apps own. On a database that already has them nothing changes.

-- `create table if not exists` says nothing when a table of that name is something else. So before anything is changed,
-- look at every name that this and the later files use.
do $$
declare
  v_taken text;
begin
  with needed (name, columns) as (values
    ('audio_files', '{device_id,recorded_at,file_path,transcriptions_status}'::text[]),
    ('vibe_whisper', '{device_id,date,time_block,transcription}'),
    ('job_status', '{job_key,title,tool_id,last_status,last_finished_at,last_message,updated_at}'),
    ('toban_sources', '{source,watched,key_columns,status_column}'),
    ('jobs', '{job,title,source,every,at,zone,enabled,catch_up,filters,last_slot}'),
    ('runs', '{id,job,slot,state,lease_until,found,dispatched}'),
    ('run_results', '{run_id,item_id,claim_no,state}'),
    ('workers', '{id,node,queues,slots,busy,expires_at,idle_since}'),
    ('work_items', '{id,source,key,ref,state,revision,available_at,claim_no,task_id,attempt,tries}'),
    ('transcripts', '{device_id,recorded_at,date,time_block,text,segments,model,engine}')
  )
  select string_agg(format('public.%s has no %s', n.name, m.columns), '; ' order by n.name) into v_taken
  from needed n
  join lateral (
    select string_agg(c, ', ') as columns from unnest(n.columns) c
    where not exists (select from pg_attribute a where a.attrelid = to_regclass('public.' || n.name)
                      and a.attname = c and not a.attisdropped)) m on m.columns is not null
  where to_regclass('public.' || n.name) is not null;
  if v_taken is not null then
    raise exception 'tables that are there already are not those that Toban needs: %. Rename them, or give Toban a '
      'database of its own', v_taken using errcode = 'duplicate_table';
  end if;
end
$$;

-- On a hosted project the default privileges give the public keys every new table. Row level security closes those
-- that are made here, until their owner writes a policy; tables that were there keep what they have.
do $$
begin
  if to_regclass('public.audio_files') is null then
    create table public.audio_files (
      device_id text not null,
      recorded_at timestamptz not null,
      file_path text,
      transcriptions_status text default 'pending',
      created_at timestamptz default now(),
      primary key (device_id, recorded_at)
    );
    alter table public.audio_files enable row level security;
  end if;
  if to_regclass('public.vibe_whisper') is null then
    create table public.vibe_whisper (
      device_id text not null,
      date date not null,
      time_block text not null check (time_block ~ '^[0-2][0-9]-[0-5][0-9]$'),
      transcription text,
      primary key (device_id, date, time_block)
    );
    alter table public.vibe_whisper enable row level security;
  end if;
end
$$;

-- One row a job, its last finished state; scripts outside Toban report here too.
create table if not exists public.job_status (
  id uuid primary key default gen_random_uuid(),
  job_key text unique not null,
  title text not null,
  tool_id uuid,
  last_status text not null check (last_status in ('success', 'error')),
  last_finished_at timestamptz not null,
  last_message text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index if not exists job_status_last_status_idx on public.job_status (last_status);
create index if not exists job_status_last_finished_at_idx on public.job_status (last_finished_at desc);
alter table public.job_status enable row level security;

do $$
begin
  if to_regclass('public.tools') is not null
     and not exists (select from pg_constraint where conname = 'job_status_tool_id_fkey') then
    alter table public.job_status
      add constraint job_status_tool_id_fkey foreign key (tool_id) references public.tools (id) on delete set null;
  end if;
  if exists (select from pg_roles where rolname = 'authenticated') then
    -- On a hosted project the default privileges have given both roles everything.
    execute 'revoke all on public.job_status from anon, authenticated';
    execute 'grant select on public.job_status to authenticated';
    if not exists (select from pg_policies where schemaname = 'public' and tablename = 'job_status'
                   and policyname = 'authenticated may read') then
      execute 'create policy "authenticated may read" on public.job_status for select to authenticated using (true)';
    end if;
  end if;
end
$$;
