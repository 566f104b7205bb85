-- New rows are claimed at once: who opens items notifies the channel `toban` with their source, if somebody listens.

-- Where the oldest that waits is found without reading all that wait.
create index if not exists work_items_waiting_idx on public.work_items (source, opened_at) where state = 'pending';

-- Whether somebody listens. The one who does holds this lock for as long as its connection lives, so that nobody else
-- has to be told when it dies.
create or replace function public.toban_listened() returns boolean
language sql set search_path = '' as $$
  select case when pg_try_advisory_lock_shared(hashtextextended('toban:listen', 0))
         then not pg_advisory_unlock_shared(hashtextextended('toban:listen', 0)) else true end
$$;

-- Runs inside the app's statement, which it must never fail. While nobody listens nothing is notified: commits that
-- notify take turns. A queue of notifications that is full would fail the app's commit; it fills when a listener sits
-- in a transaction for days, and then the ticks do.
create or replace function public.toban_notify(p_source text) returns void
language plpgsql set search_path = '' as $$
begin
  if public.toban_listened() and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('toban', p_source);
  end if;
exception when others then
  raise log 'toban: nobody was woken for %: %', p_source, sqlerrm;
end
$$;

-- A statement opens items of one source.
create or replace function public.toban_wake_opened() returns trigger
language plpgsql set search_path = '' as $$
begin
  perform public.toban_notify(source) from (select source from new_rows limit 1) x;
  return null;
end
$$;
create or replace trigger toban_wake_opened after insert on public.work_items
  referencing new table as new_rows for each statement execute function public.toban_wake_opened();

-- Items that wait again: for each row, because one for each statement would make every start and finish dearer. The
-- first of a transaction speaks for all.
create or replace function public.toban_wake_reopened() returns trigger
language plpgsql set search_path = '' as $$
begin
  if current_setting('toban.woken', true) is distinct from new.source then
    perform set_config('toban.woken', new.source, true), public.toban_notify(new.source);
  end if;
  return null;
end
$$;
create or replace trigger toban_wake_reopened after update on public.work_items
  for each row when (new.revision > old.revision and new.state = 'pending')
  execute function public.toban_wake_reopened();

-- p: (nothing) → listening: whether somebody does
create or replace function public.toban_listening(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
  select jsonb_build_object('listening', public.toban_listened())
$$;

-- Why nothing of a source is claimed for now: `shadow`, `paused`, or null. What is only compared (shadow_<source>) has
-- the pause of its source. (In PL/pgSQL, because source_modes comes with a later migration.)
create or replace function public.toban_stopped(p_source text) returns text
language plpgsql stable set search_path = '' as $$
begin
  if exists (select from public.source_modes where source = p_source and mode = 'shadow') then
    return 'shadow';
  elsif not (select enabled from public.jobs where source = regexp_replace(p_source, '^shadow_', '') order by job limit 1)
  then
    return 'paused';
  end if;
  return null;
end
$$;

-- How all is, cheap enough to be asked every second. p: (nothing)
-- → listening; tick: seconds since a beat last ticked, null: none ever has; beats [{node, pid, tick}];
--   workers [{node, pid, queues, slots, seen}] that are alive; sources [{source, used, paused, shadow, due}]: whether it has
--   ever had work, why nothing of it is claimed, and for how long the oldest row that is due has been so, null: none is (of a thousand, those that began to
--   wait first: one that is tried again later may have been due for less)
create or replace function public.toban_health(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
  select jsonb_build_object(
    'listening', public.toban_listened(),
    'tick', (select extract(epoch from now() - max(b.ticked_at)) from public.beats b),
    'beats', (select coalesce(jsonb_agg(jsonb_build_object(
        'node', b.node, 'pid', b.pid, 'tick', extract(epoch from now() - b.ticked_at)) order by b.ticked_at desc), '[]')
      from (select * from public.beats order by ticked_at desc limit 100) b),
    'workers', (select coalesce(jsonb_agg(jsonb_build_object(
        'node', k.node, 'pid', k.pid, 'queues', k.queues, 'slots', k.slots,
        'seen', extract(epoch from now() - k.seen_at)) order by k.id), '[]')
      from public.workers k where k.expires_at > now()),
    'sources', (select coalesce(jsonb_agg(jsonb_build_object(
        'source', s.source,
        'used', exists (select from public.work_items w where w.source = s.source),
        'paused', coalesce(stopped = 'paused', false),
        'shadow', coalesce(stopped = 'shadow', false),
        'due', (select extract(epoch from now() - min(greatest(w.available_at, w.opened_at))) from (
          select w.available_at, w.opened_at from public.work_items w
          where w.source = s.source and w.state = 'pending' and w.available_at <= now()
          order by w.opened_at limit 1000) w)) order by s.source), '[]')
      from public.toban_sources s cross join lateral public.toban_stopped(s.source) as stopped))
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
