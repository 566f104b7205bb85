-- The tables that the apps own. On a database that already has them nothing changes.

create table if not exists public.audio_files (
  device_id text not null,
  recorded_at timestamptz not null,
  file_path text,
  transcriptions_status text default 'pending',
  created_at timestamptz default now(),
  primary key (device_id, recorded_at)
);

create table if not exists public.vibe_whisper (
  device_id text not null,
  date date not null,
  time_block text not null check (time_block ~ '^[0-2][0-9]-[0-5][0-9]$'),
  transcription text,
  primary key (device_id, date, time_block)
);

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
