-- A beat that ticks is never called overdue, wherever in a slot its ticks fall.

-- One call of each worker process every few seconds. p: worker, node, pid, queues, slots, rss_bytes, lease (s),
-- stall (s), items [{id, attempt, progress, max_run? (s, from the attempt's start)}], jobs? [names of those that the
-- worker could tick; default all: a row of jobs may be of a job that the timetable no longer has]
--   extends the leases of its items, while they progress and until their run_until
--   takes back what others lost, tells which of its own items it lost and which jobs' ticks are overdue
-- → lost [ids], overdue [jobs], hungry, reaped
create or replace function public.toban_heartbeat(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_lease interval := (p ->> 'lease')::numeric * interval '1 s';
  v_stall interval := (p ->> 'stall')::numeric * interval '1 s';
  v_items jsonb := coalesce(p -> 'items', '[]');
  v_queues text[] := array(select jsonb_array_elements_text(p -> 'queues'));
  v_slots integer := (p ->> 'slots')::integer;
  v_busy integer := jsonb_array_length(v_items);
  v_lost jsonb;
  v_overdue jsonb;
  v_reaped integer;
begin
  insert into public.workers as k (id, node, pid, queues, slots, busy, rss_bytes, expires_at, idle_since)
  values (p ->> 'worker', p ->> 'node', (p ->> 'pid')::integer, v_queues, v_slots, v_busy,
          (p ->> 'rss_bytes')::bigint, now() + v_lease,
          case when v_busy < v_slots then now() end)
  on conflict (id) do update set
    node = excluded.node, pid = excluded.pid, queues = excluded.queues, slots = excluded.slots, busy = excluded.busy,
    rss_bytes = excluded.rss_bytes, seen_at = now(), expires_at = excluded.expires_at,
    idle_since = case when v_busy < v_slots then coalesce(k.idle_since, now()) end;

  select coalesce(jsonb_agg(h.id), '[]') into v_lost
    from jsonb_to_recordset(v_items) as h (id bigint, attempt integer)
    where not exists (select from public.work_items w where w.id = h.id and w.attempt = h.attempt
                      and w.state = 'processing' and w.worker = p ->> 'worker');
  -- Never waits for an item: a finish holds the item and waits for this worker's row; and an app's long transaction on
  -- one row must not let the leases of the others run out. (Nobody can reap what is locked.)
  with held as (
    select w.id, h.progress, coalesce(w.started_at + h.max_run * interval '1 s', w.run_until) as run_until
    from public.work_items w
    join jsonb_to_recordset(v_items) as h (id bigint, attempt integer, progress jsonb, max_run numeric)
      on w.id = h.id and w.attempt = h.attempt and w.state = 'processing' and w.worker = p ->> 'worker'
    order by w.source, w.key for update of w skip locked
  )
  update public.work_items w set
    progress = held.progress, run_until = held.run_until,
    progress_at = case when held.progress is distinct from w.progress then now() else w.progress_at end,
    lease_until = case when now() < held.run_until
                            and (held.progress is distinct from w.progress or now() < w.progress_at + v_stall)
                       then now() + v_lease else w.lease_until end
  from held where w.id = held.id;

  v_reaped := public.toban_reap(50);

  -- A tick comes once in `every`, or once a minute if that is less, anywhere inside its slot: for so long a slot may have
  -- to wait for one, and 10 s until somebody takes it. What was edited, or resumed, waits from then on. What a person
  -- wants is sent at once.
  with late as (
    select j.job from public.jobs j left join public.job_watch w on w.job_key = j.job
    where j.enabled
      and (j.wanted_at is not null
           or now() > greatest(public.toban_next_slot(j, coalesce(j.last_slot, j.created_at)), w.changed_at)
                      + least(j.every, interval '1 min') + interval '10 s')
      and (j.nudged_at is null or j.nudged_at < now() - interval '30 s')
      and (coalesce(p -> 'jobs', 'null') = 'null' or p -> 'jobs' ? j.job)
    order by j.job for update of j skip locked
  ), nudged as (
    update public.jobs j set nudged_at = now() from late where j.job = late.job returning j.job
  )
  select coalesce(jsonb_agg(job order by job), '[]') into v_overdue from nudged;

  return jsonb_build_object(
    'lost', v_lost, 'overdue', v_overdue, 'reaped', v_reaped,
    'hungry', v_busy < v_slots or exists (
      select from unnest(v_queues) q where public.toban_queued(q) < public.toban_slots(q)));
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
