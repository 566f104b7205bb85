-- The monitor: what is watched, what is wrong, who was told, who did something about it.

-- As in app_tables: a table of such a name that is something else is told before anything is changed.
do $$
declare
  v_taken text;
begin
  with needed (name, columns) as (values
    ('job_watch', '{job_key,every,grace,fail_after,paused,state}'::text[]),
    ('job_reports', '{job_key,run_id,status,reported_at}'),
    ('beats', '{beat,node,ticked_at}'),
    ('queue_watch', '{queue,sources,alive_at}'),
    ('incidents', '{fingerprint,kind,opened_at,recovered_at,flaps,told}'),
    ('alerts', '{incident_id,kind,due_at,claimed_until,sent_at,tries}'),
    ('alert_channels', '{channel,failing_since}'),
    ('audit_log', '{at,who,what,target,details}')
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

-- What is known of a job beside its row in jobs (those of the timetable) or job_status (those that report themselves).
create table if not exists public.job_watch (
  job_key text primary key,
  title text,
  every interval check (every > interval '0'),
  grace interval check (grace >= interval '0'),
  fail_after integer check (fail_after >= 1),
  paused boolean not null default false,
  changed_at timestamptz,
  -- the last start and finish that were reported
  run_id text,
  last_started_at timestamptz,
  last_finished_at timestamptz,
  exit_code integer,
  log_tail text,
  fails_in_row integer not null default 0,
  failing_since timestamptz,
  -- as the last look found it
  state text,
  state_since timestamptz
);
comment on column public.job_watch.every is
  'a report is expected so often; null: none is. Jobs of the timetable have theirs in jobs';
comment on column public.job_watch.grace is 'how long after it was due it counts as missed; null: toban_grace()';
comment on column public.job_watch.fail_after is 'failures in a row that make an incident; null: 1';
comment on column public.job_watch.changed_at is
  'when its schedule was edited or its pause ended: nothing that was due before counts as missed';

-- The runs of jobs that report themselves.
create table if not exists public.job_reports (
  id bigint generated always as identity primary key,
  job_key text not null,
  run_id text,
  status text not null check (status in ('running', 'success', 'error', 'lost')),
  started_at timestamptz,
  finished_at timestamptz,
  exit_code integer,
  message text,
  reported_at timestamptz not null default now(),
  unique (job_key, run_id)
);
create index if not exists job_reports_recent_idx on public.job_reports (job_key, id desc);
create index if not exists job_reports_running_idx on public.job_reports (job_key) where status = 'running';

-- Each beat, and when it last sent a tick.
create table if not exists public.beats (
  beat text primary key,
  node text not null,
  pid integer,
  started_at timestamptz not null default now(),
  ticked_at timestamptz not null default now()
);

-- Which sources need which queue's workers, and when one of these was last seen alive.
create table if not exists public.queue_watch (
  queue text primary key,
  sources text[] not null default '{}',
  alive_at timestamptz not null default now()
);

create table if not exists public.incidents (
  id bigint generated always as identity primary key,
  fingerprint text not null,
  kind text not null check (kind in ('job', 'items', 'overdue', 'beat', 'worker', 'queue', 'alerts')),
  job_key text,
  source text,
  title text not null,
  reason text,
  details jsonb not null default '{}',
  log_tail text,
  opened_at timestamptz not null,
  last_at timestamptz not null,
  count integer not null default 1,
  recovered_at timestamptz,
  dismissed_at timestamptz,
  dismissed_by text,
  flaps integer not null default 0,
  settle interval not null,
  told text check (told in ('opened', 'recovered'))
);
comment on column public.incidents.fingerprint is 'what makes two occurrences the same; one is open at a time';
comment on column public.incidents.recovered_at is 'when its cause ended; one that is dismissed is open until then too';
comment on column public.incidents.settle is 'when it comes back within this time after a recovery, it is flapping';
comment on column public.incidents.told is 'what the last message said';
create unique index if not exists incidents_open_idx on public.incidents (fingerprint) where recovered_at is null;
create index if not exists incidents_recovered_idx on public.incidents (recovered_at desc);
create index if not exists incidents_fingerprint_idx on public.incidents (fingerprint, id desc);

-- Messages to be sent, each once, by whoever lives.
create table if not exists public.alerts (
  id bigint generated always as identity primary key,
  incident_id bigint references public.incidents (id) on delete cascade,
  kind text not null check (kind in ('opened', 'recovered', 'test')),
  created_at timestamptz not null default now(),
  due_at timestamptz not null default now(),
  claimed_until timestamptz,
  tries integer not null default 0,
  channels text[] not null default '{}',
  sent_at timestamptz,
  cancelled_at timestamptz,
  error text
);
comment on column public.alerts.channels is 'those that have it; the others are tried again';
create index if not exists alerts_due_idx on public.alerts (due_at) where sent_at is null and cancelled_at is null;
create index if not exists alerts_incident_idx on public.alerts (incident_id);

-- How each channel does. A channel is named without its address, which is a secret.
create table if not exists public.alert_channels (
  channel text primary key,
  last_sent_at timestamptz,
  failing_since timestamptz,
  fails_in_row integer not null default 0,
  error text,
  used_at timestamptz not null default now()
);

-- Who changed what by hand.
create table if not exists public.audit_log (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  who text not null,
  what text not null,
  target text,
  details jsonb not null default '{}'
);
create index if not exists audit_log_at_idx on public.audit_log (at desc);

-- One row: when the monitor last looked.
create table if not exists public.monitor_state (
  one boolean primary key default true check (one),
  ran_at timestamptz not null
);

-- What a failed item's reason has in common with others': its words without what differs from row to row (paths,
-- quoted values, whatever has a digit in it). A status code tells reasons apart.
create or replace function public.toban_fingerprint(p_source text, p_kind text, p_error text) returns text
language sql immutable set search_path = '' as $$
  select format('items/%s/%s', p_source, left(md5(concat_ws('|', p_kind,
    (select string_agg(m[1], ',') from regexp_matches(p_error, '\m(?:http|status|code|error)\W{0,2}(\d{3})\M', 'gi') m),
    left(regexp_replace(regexp_replace(regexp_replace(regexp_replace(lower(p_error),
      '(?<!\w)(''[^'']*''|"[^"]*")', '~', 'g'),
      '\S*/\S*', '~', 'g'),
      '\S*\d\S*', '#', 'g'),
      '\s+', ' ', 'g'), 300))), 12))
$$;

-- Kept with the item, because its error is another one while it is tried again.
alter table public.work_items add column if not exists fingerprint text;
comment on column public.work_items.fingerprint is 'the reason it failed for, as incidents are grouped by it';
create or replace function public.toban_note_reason() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.fingerprint := public.toban_fingerprint(new.source, new.last_error_kind, new.last_error);
  return new;
end
$$;
create or replace trigger toban_note_reason before insert or update of state, last_error on public.work_items
  for each row when (new.state = 'failed' and new.incident_since is not null)
  execute function public.toban_note_reason();
update public.work_items set fingerprint = public.toban_fingerprint(source, last_error_kind, last_error)
  where incident_since is not null and fingerprint is null;
create index if not exists work_items_reason_idx
  on public.work_items (fingerprint, incident_since) where incident_since is not null;

-- People edit jobs, with or without our functions: what was due before the edit is not missed. And failures in a row
-- are counted here, because a run that found nothing leaves no row.
alter table public.jobs add column if not exists wanted_at timestamptz;
comment on column public.jobs.wanted_at is 'somebody wants its next tick to run, whatever its schedule says';
create or replace function public.toban_note_job() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if (old.enabled, old.every, old.at, old.zone) is distinct from (new.enabled, new.every, new.at, new.zone)
     or new.wanted_at > coalesce(old.wanted_at, '-infinity') then
    insert into public.job_watch as w (job_key, changed_at) values (new.job, now())
      on conflict (job_key) do update set changed_at = excluded.changed_at;
  end if;
  if new.last_finished_at is distinct from old.last_finished_at then
    if new.last_status = 'error' then
      insert into public.job_watch as w (job_key, fails_in_row, failing_since)
      values (new.job, 1, new.last_finished_at)
      on conflict (job_key) do update set fails_in_row = w.fails_in_row + 1,
        failing_since = coalesce(w.failing_since, excluded.failing_since);
    else
      update public.job_watch set fails_in_row = 0, failing_since = null
        where job_key = new.job and (fails_in_row > 0 or failing_since is not null);
    end if;
  end if;
  return null;
end
$$;
create or replace trigger toban_note_job
  after update of enabled, every, at, zone, wanted_at, last_finished_at on public.jobs
  for each row execute function public.toban_note_job();

select public.toban_lock_table(t) from unnest(array['job_watch', 'job_reports', 'beats', 'queue_watch', 'incidents',
  'alerts', 'alert_channels', 'audit_log', 'monitor_state']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
