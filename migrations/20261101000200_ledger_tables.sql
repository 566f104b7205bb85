-- The work ledger: what waits, who has it, and how it ended.

-- A watched table: one row a source, written by toban_watch(). The *_sql columns are expressions over the alias r
-- (a row of the watched table) or, for where_sql, over r and $1 (an item's ref).
create table if not exists public.toban_sources (
  source text primary key,
  watched text not null,
  key_columns text[] not null,
  status_column text not null,
  time_column text,
  date_column text,
  block_column text,
  key_sql text not null,
  ref_sql text not null,
  partition_sql text not null,
  at_sql text not null,
  due_sql text not null,
  where_sql text not null,
  pending_value text not null,
  completed_value text not null,
  failed_value text,
  skipped_value text,
  store_function text
);

create table if not exists public.jobs (
  job text primary key,
  title text not null,
  source text,
  every interval not null,
  at interval not null default '0',
  zone text not null default 'UTC',
  enabled boolean not null default true,
  catch_up boolean not null default true,
  filters jsonb not null default '{}',
  last_slot timestamptz,
  last_started_at timestamptz,
  last_finished_at timestamptz,
  last_status text check (last_status in ('success', 'error')),
  last_message text,
  last_summary jsonb,
  nudged_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
comment on column public.jobs.every is 'one slot begins every so often, in the wall-clock time of zone';
comment on column public.jobs.at is 'how far into `every` a slot begins: every 1 hour at 10 minutes is :10';
comment on column public.jobs.catch_up is 'whether the newest slot still runs when its moment has passed';
comment on column public.jobs.filters is
  'which items its claims take: {"partition": text, "since": moment, "until": moment}';

create table if not exists public.runs (
  id bigint generated always as identity primary key,
  job text not null references public.jobs (job) on delete cascade,
  slot timestamptz not null,
  state text not null default 'running' check (state in ('running', 'success', 'error', 'lost')),
  worker text,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  lease_until timestamptz not null,
  period_from timestamptz,
  period_to timestamptz,
  filters jsonb not null default '{}',
  dates date[] not null default '{}',
  found integer not null default 0,
  dispatched integer not null default 0,
  finished integer not null default 0,
  skipped integer not null default 0,
  failed integer not null default 0,
  message text,
  unique (job, slot)
);
create index if not exists runs_started_at_idx on public.runs (started_at desc);

-- How each claim of a run ended, written with the item's own end and never changed, so that a run's counts stay what
-- they were when its items go again. No foreign keys: a finish must not wait for whoever holds the run's row.
create table if not exists public.run_results (
  run_id bigint not null,
  item_id bigint not null,
  claim_no integer not null,
  state text not null check (state in ('completed', 'skipped', 'failed')),
  primary key (run_id, item_id, claim_no)
);

-- One row a process that can run items: a prefork child, or a worker with threads.
create table if not exists public.workers (
  id text primary key,
  node text not null,
  pid integer,
  queues text[] not null,
  slots integer not null check (slots >= 0),
  busy integer not null default 0,
  rss_bytes bigint,
  started_at timestamptz not null default now(),
  seen_at timestamptz not null default now(),
  expires_at timestamptz not null,
  idle_since timestamptz,
  last_claimed_at timestamptz
);

create table if not exists public.work_items (
  id bigint generated always as identity primary key,
  source text not null,
  key text not null,
  ref jsonb not null,
  partition text not null default '',
  at timestamptz,
  params jsonb not null default '{}',
  state text not null default 'pending'
    check (state in ('pending', 'queued', 'processing', 'completed', 'skipped', 'failed')),
  priority smallint not null default 0,
  revision integer not null default 1,
  available_at timestamptz not null default now(),
  opened_at timestamptz not null default now(),
  -- the current or last claim
  queue text,
  claim_no integer not null default 0,
  task_id uuid,
  run_id bigint,
  claimed_at timestamptz,
  lease_until timestamptz,
  -- the current or last attempt
  attempt integer not null default 0,
  tries integer not null default 0,
  max_attempts integer not null default 5,
  started_revision integer,
  token uuid,
  settled_token uuid,
  worker text,
  started_at timestamptz,
  run_until timestamptz,
  progress jsonb,
  progress_at timestamptz,
  -- how it ended
  finished_at timestamptz,
  incident_since timestamptz,
  marked boolean not null default true,
  last_error text,
  last_error_kind text,
  last_traceback text,
  unique (source, key)
);
comment on column public.work_items.attempt is 'starts ever; the fence: a worker with an older attempt cannot write';
comment on column public.work_items.tries is 'starts since the row last became pending that count towards max_attempts';
comment on column public.work_items.settled_token is
  'token of the last attempt that ended, so that a repeated call is known';
comment on column public.work_items.run_id is 'the run of the last claim; may be forgotten by now';
comment on column public.work_items.incident_since is
  'when it failed; kept while it is tried again, until it is resolved';
comment on column public.work_items.marked is
  'whether the watched row carries the final status; if not, it may still say pending';

-- The order in which claims take them. available_at comes last, to pass over what is not due yet without reading it.
create index if not exists work_items_pending_idx
  on public.work_items (source, partition, priority desc, coalesce(at, opened_at), id, available_at)
  where state = 'pending';
create index if not exists work_items_in_flight_idx
  on public.work_items (queue, state, lease_until) where state in ('queued', 'processing');
create index if not exists work_items_incident_idx on public.work_items (source) where incident_since is not null;
create index if not exists work_items_not_ready_idx
  on public.work_items (source) where state = 'pending' and last_error_kind = 'not_ready';
create index if not exists work_items_finished_idx
  on public.work_items (finished_at) where state in ('completed', 'skipped');
create index if not exists work_items_task_idx on public.work_items (task_id) where task_id is not null;

alter table public.toban_sources enable row level security;
alter table public.jobs enable row level security;
alter table public.runs enable row level security;
alter table public.run_results enable row level security;
alter table public.workers enable row level security;
alter table public.work_items enable row level security;
