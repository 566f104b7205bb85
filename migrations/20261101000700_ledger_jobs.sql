-- What surrounds the items: workers' heartbeats, runs of jobs, reports, housekeeping.

-- The newest slot of a job that has begun at p_now: multiples of `every` in the wall-clock time of the job's zone.
create or replace function public.toban_slot(j public.jobs, p_now timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
  select (date_bin(j.every, (p_now at time zone j.zone) - j.at, timestamp '2000-01-03') + j.at) at time zone j.zone
$$;

-- p: jobs [{job, title, source, every (s), at (s), zone, catch_up}]. New jobs are added; of known ones only title and
-- source follow, because the rest may have been edited. → jobs
create or replace function public.toban_sync_jobs(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  with synced as (
    insert into public.jobs as j (job, title, source, every, at, zone, catch_up)
    select e ->> 'job', e ->> 'title', e ->> 'source', (e ->> 'every')::numeric * interval '1 s',
           coalesce((e ->> 'at')::numeric, 0) * interval '1 s', coalesce(e ->> 'zone', 'UTC'),
           coalesce((e ->> 'catch_up')::boolean, true)
    from jsonb_array_elements(p -> 'jobs') e order by 1
    on conflict (job) do update set title = excluded.title, source = excluded.source, updated_at = now()
      where (j.title, j.source) is distinct from (excluded.title, excluded.source)
    returning 1
  )
  select jsonb_build_object('jobs', count(*)) from synced
$$;

-- May this tick run? One run a slot, whoever asks first. p: job, worker, lease (s: a run without an end after this is
-- lost, and its slot may run again) → run true, run_id, slot, previous, filters, source   or   run false, reason
create or replace function public.toban_begin_run(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  j public.jobs;
  v_slot timestamptz;
  v_run bigint;
begin
  -- Not `for update`: a claim that enters a run of this job looks the job up for its foreign key.
  select * into j from public.jobs where job = p ->> 'job' for no key update;
  if not found then
    return jsonb_build_object('run', false, 'reason', format('there is no job %s', p ->> 'job'));
  elsif not j.enabled then
    return jsonb_build_object('run', false, 'reason', 'paused');
  end if;
  v_slot := public.toban_slot(j, now());
  if not j.catch_up and now() > v_slot + least(j.every, interval '2 min') then
    return jsonb_build_object('run', false, 'reason', 'its moment has passed');
  end if;
  -- The lock on the job's row makes this the one place that decides. A run that was lost on the way may go again.
  if j.last_slot >= v_slot and not exists (
    select from public.runs r where r.job = j.job and r.slot = v_slot
      and r.state in ('running', 'lost') and r.lease_until < now())
  then
    return jsonb_build_object('run', false, 'reason', 'this slot has run');
  end if;
  insert into public.runs as r (job, slot, worker, filters, lease_until)
  values (j.job, v_slot, p ->> 'worker', j.filters, now() + (p ->> 'lease')::numeric * interval '1 s')
  on conflict (job, slot) do update set worker = excluded.worker, lease_until = excluded.lease_until, state = 'running'
  returning id into v_run;
  update public.jobs set last_slot = v_slot, last_started_at = now(), nudged_at = null where job = j.job;
  return jsonb_build_object('run', true, 'run_id', v_run, 'slot', v_slot, 'previous', j.last_slot,
                            'filters', j.filters, 'source', j.source);
end
$$;

-- p: run_id, worker? (whoever began it; a run that was lost may belong to another by now), status, message?, summary (of any
-- shape, kept in jobs), keep (false: a run that did nothing leaves no row; last_slot remembers that it ran) → ended
create or replace function public.toban_end_run(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  r public.runs;
begin
  -- The job before its run, as in begin_run.
  perform from public.jobs where job = (select job from public.runs where id = (p ->> 'run_id')::bigint)
    for no key update;
  update public.runs set
    state = p ->> 'status', finished_at = now(), message = p ->> 'message'
  where id = (p ->> 'run_id')::bigint and state = 'running' and worker = coalesce(p ->> 'worker', worker)
  returning * into r;
  if not found then
    return jsonb_build_object('ended', false);
  end if;
  update public.jobs set last_finished_at = now(), last_status = p ->> 'status', last_message = p ->> 'message',
    last_summary = p -> 'summary' where job = r.job;
  if (p ->> 'keep')::boolean is false and p ->> 'status' = 'success' and r.dispatched = 0 then
    delete from public.runs where id = r.id;
  end if;
  return jsonb_build_object('ended', true);
end
$$;

-- One call of each worker process every few seconds. p: worker, node, pid, queues, slots, rss_bytes, info, lease (s),
-- stall (s), items [{id, attempt, progress, max_run? (s, from the attempt's start)}]
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
  insert into public.workers as k (id, node, pid, queues, slots, busy, rss_bytes, info, expires_at, idle_since)
  values (p ->> 'worker', p ->> 'node', (p ->> 'pid')::integer, v_queues, v_slots, v_busy,
          (p ->> 'rss_bytes')::bigint, coalesce(p -> 'info', '{}'), now() + v_lease,
          case when v_busy < v_slots then now() end)
  on conflict (id) do update set
    node = excluded.node, pid = excluded.pid, queues = excluded.queues, slots = excluded.slots, busy = excluded.busy,
    rss_bytes = excluded.rss_bytes, info = excluded.info, seen_at = now(), expires_at = excluded.expires_at,
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

  with late as (
    select j.job from public.jobs j
    where j.enabled and now() > coalesce(j.last_slot, j.created_at) + j.every + greatest(j.every / 2, interval '15 s')
      and (j.nudged_at is null or j.nudged_at < now() - interval '30 s')
    order by j.job for update skip locked
  ), nudged as (
    update public.jobs j set nudged_at = now() from late where j.job = late.job returning j.job
  )
  select coalesce(jsonb_agg(job), '[]') into v_overdue from nudged;

  return jsonb_build_object(
    'lost', v_lost, 'overdue', v_overdue, 'reaped', v_reaped,
    'hungry', v_busy < v_slots or exists (
      select from unnest(v_queues) q where public.toban_queued(q) < public.toban_slots(q)));
end
$$;

-- A worker process ends in good order. p: worker
create or replace function public.toban_goodbye(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  with gone as (delete from public.workers where id = p ->> 'worker' returning 1)
  select jsonb_build_object('gone', count(*)) from gone
$$;

-- Bring job_status and the counts of runs up to what the ledger says. Derived, never added up, so that it may be
-- called at any time, by anybody, as often as one likes. p: jobs? [names; default all], runs? [ids] → jobs
create or replace function public.toban_report(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_jobs integer;
begin
  perform from public.runs
    where id in (select x::bigint from jsonb_array_elements_text(coalesce(p -> 'runs', '[]')) x) order by id for update;
  update public.runs r set finished = c.finished, failed = c.failed, skipped = c.skipped
  from (select w.run_id, count(*) filter (where w.state = 'completed') as finished,
               count(*) filter (where w.state = 'failed') as failed, count(*) filter (where w.state = 'skipped') as skipped
        from public.work_items w
        where w.run_id in (select x::bigint from jsonb_array_elements_text(coalesce(p -> 'runs', '[]')) x)
        group by w.run_id) c
  where r.id = c.run_id and (r.finished, r.failed, r.skipped) is distinct from (c.finished, c.failed, c.skipped);

  insert into public.job_status as t (job_key, title, last_status, last_finished_at, last_message)
  select j.job, j.title,
    case when f.failed > 0 or u.key is not null or j.last_status = 'error' then 'error' else 'success' end,
    coalesce(greatest(j.last_finished_at, f.last_at), now()),
    case when f.failed > 0 then format('%s failed; the latest, %s: %s', f.failed, f.key, f.last_error)
         when u.key is not null then format('the worker is not ready: %s', u.last_error)
         else j.last_message end
  from public.jobs j
  left join lateral (
    select count(*) over () as failed, w.key, w.last_error, w.finished_at as last_at
    from public.work_items w where w.source = j.source and w.state = 'failed'
    order by w.finished_at desc limit 1) f on true
  left join lateral (
    select w.key, w.last_error from public.work_items w
    where w.source = j.source and w.state = 'pending' and w.last_error_kind = 'not_ready' limit 1) u on true
  where (j.last_finished_at is not null or f.failed > 0 or u.key is not null)
    and (p -> 'jobs' is null or j.job in (select jsonb_array_elements_text(p -> 'jobs')))
  order by j.job
  on conflict (job_key) do update set
    title = excluded.title, last_status = excluded.last_status, last_finished_at = excluded.last_finished_at,
    last_message = excluded.last_message, updated_at = now()
    where (t.title, t.last_status, t.last_finished_at, t.last_message)
      is distinct from (excluded.title, excluded.last_status, excluded.last_finished_at, excluded.last_message);
  get diagnostics v_jobs = row_count;
  return jsonb_build_object('jobs', v_jobs);
end
$$;

-- p: nothing → sources [{source, opened, closed} or {source, error}], runs_lost
create or replace function public.toban_reconcile(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s' as $$
declare
  v_source text;
  v_sources jsonb := '[]';
  v_lost integer;
begin
  perform public.toban_reap(500);
  for v_source in select source from public.toban_sources order by source loop
    begin
      v_sources := v_sources || public.toban_reconcile_source(v_source);
    exception when others then  -- a table that was dropped or changed must not keep the others from being mended
      v_sources := v_sources || jsonb_build_object('source', v_source, 'error', sqlerrm);
    end;
  end loop;
  update public.runs set state = 'lost', finished_at = now(), message = 'its worker gave no more news'
    where state = 'running' and lease_until < now();
  get diagnostics v_lost = row_count;
  perform public.toban_report(jsonb_build_object('runs',
    (select coalesce(jsonb_agg(id), '[]') from public.runs where started_at > now() - interval '1 day')));
  return jsonb_build_object('sources', v_sources, 'runs_lost', v_lost);
end
$$;

-- Forget what is old. Failed items stay: they are incidents; so do items whose row still says pending, because nothing
-- else tells that it has had its turn. p: items_days, runs_days → items, runs, workers
create or replace function public.toban_retention(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s' as $$
declare
  v_items integer;
  v_runs integer;
  v_workers integer;
begin
  delete from public.work_items where state in ('completed', 'skipped') and marked
    and finished_at < now() - (p ->> 'items_days')::integer * interval '1 day';
  get diagnostics v_items = row_count;
  delete from public.runs where state <> 'running' and started_at < now() - (p ->> 'runs_days')::integer * interval '1 day';
  get diagnostics v_runs = row_count;
  delete from public.workers where expires_at < now() - interval '1 day';
  get diagnostics v_workers = row_count;
  return jsonb_build_object('items', v_items, 'runs', v_runs, 'workers', v_workers);
end
$$;

-- Everything a person asks first. p: failed? (how many failed items to list, default 20) → sources, queues, workers,
-- jobs, failed, running
create or replace function public.toban_status(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object(
    'now', now(),
    'sources', (select coalesce(jsonb_agg(x order by x.source), '[]') from (
      select s.source, s.watched,
        count(w.id) filter (where w.state = 'pending') as pending,
        count(w.id) filter (where w.state = 'queued') as queued,
        count(w.id) filter (where w.state = 'processing') as processing,
        count(w.id) filter (where w.state = 'completed') as completed,
        count(w.id) filter (where w.state = 'skipped') as skipped,
        count(w.id) filter (where w.state = 'failed') as failed,
        min(w.opened_at) filter (where w.state = 'pending' and w.available_at <= now()) as oldest_due
      from public.toban_sources s left join public.work_items w using (source) group by s.source) x),
    'workers', (select coalesce(jsonb_agg(to_jsonb(k) - 'info' || k.info order by k.id), '[]')
                from public.workers k where k.expires_at > now()),
    'jobs', (select coalesce(jsonb_agg(jsonb_build_object(
        'job', j.job, 'title', j.title, 'source', j.source, 'enabled', j.enabled,
        'every', extract(epoch from j.every), 'last_started_at', j.last_started_at, 'last_finished_at', j.last_finished_at,
        'last_status', j.last_status, 'last_message', j.last_message) order by j.job), '[]') from public.jobs j),
    'running', (select coalesce(jsonb_agg(jsonb_build_object(
        'source', w.source, 'key', w.key, 'worker', w.worker, 'attempt', w.attempt, 'tries', w.tries,
        'started_at', w.started_at, 'progress', w.progress) order by w.started_at), '[]')
      from public.work_items w where w.state = 'processing'),
    'failed', (select coalesce(jsonb_agg(x order by x.finished_at desc), '[]') from (
      select w.source, w.key, w.tries, w.finished_at, w.last_error_kind, w.last_error
      from public.work_items w where w.state = 'failed'
      order by w.finished_at desc limit coalesce((p ->> 'failed')::integer, 20)) x))
$$;
