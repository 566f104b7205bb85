-- What is told to people, and housekeeping.

-- Bring job_status and the counts of runs up to what the ledger says. Derived, never added up, so that it may be
-- called at any time, by anybody, as often as one likes. p: jobs? [names; default all], runs? [ids] → jobs
create or replace function public.toban_report(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_runs bigint[] := array(select x::bigint from jsonb_array_elements_text(coalesce(p -> 'runs', '[]')) x);
  v_jobs integer;
begin
  perform from public.runs where id = any (v_runs) order by id for no key update;
  update public.runs r set finished = c.finished, failed = c.failed, skipped = c.skipped
  from (select run_id, count(*) filter (where state = 'completed') as finished,
               count(*) filter (where state = 'failed') as failed, count(*) filter (where state = 'skipped') as skipped
        from public.run_results where run_id = any (v_runs) group by run_id) c
  where r.id = c.run_id and (r.finished, r.failed, r.skipped) is distinct from (c.finished, c.failed, c.skipped);

  insert into public.job_status as t (job_key, title, last_status, last_finished_at, last_message)
  select j.job, j.title,
    case when f.incidents > 0 or u.key is not null or j.last_status = 'error' then 'error' else 'success' end,
    coalesce(greatest(j.last_finished_at, f.last_at), now()),
    case when f.incidents > 0 then concat(
           f.incidents, ' failed',
           -- An incident is one until it is resolved, also while it waits or runs once more.
           case f.again when 0 then '' when f.incidents then ' and ' || case f.again when 1 then 'is' else 'are' end
             || ' being tried again' else format(', %s of them being tried again', f.again) end,
           '; the latest, ', f.key, ': ' || f.last_error)
         when u.key is not null then format('the worker is not ready: %s', u.last_error)
         else j.last_message end
  from public.jobs j
  left join lateral (
    select count(*) over () as incidents, count(*) filter (where w.state <> 'failed') over () as again,
           max(coalesce(w.finished_at, w.incident_since)) over () as last_at, w.key, w.last_error
    from public.work_items w where w.source = j.source and w.incident_since is not null
    order by w.state = 'failed' desc, coalesce(w.finished_at, w.incident_since) desc limit 1) f on true
  left join lateral (
    select w.key, w.last_error from public.work_items w
    where w.source = j.source and w.state = 'pending' and w.last_error_kind = 'not_ready' limit 1) u on true
  where (j.last_finished_at is not null or f.incidents > 0 or u.key is not null)
    and (p -> 'jobs' is null or p -> 'jobs' ? j.job)
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

-- p: limit? (most items of a source to open, and to close; default 5000) → sources [{source, opened, closed} or
-- {source, error}], runs_lost, more (call again)
create or replace function public.toban_reconcile(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 5000);
  v_source text;
  v_stale jsonb;
  v_found jsonb := '{}';
  v_sources jsonb := '[]';
  v_more boolean := false;
  v_lost integer;
begin
  -- First everything is read, which takes seconds with a million items; only then is anything locked.
  for v_source in select source from public.toban_sources order by source loop
    begin
      v_stale := public.toban_find_stale(v_source, v_limit);
      v_more := v_more or (v_stale ->> 'more')::boolean;
    exception when others then  -- a table that was dropped or changed must not keep the others from being mended
      v_stale := jsonb_build_object('error', sqlerrm);
    end;
    v_found := v_found || jsonb_build_object(v_source, v_stale);
  end loop;
  perform public.toban_reap(500);
  for v_source, v_stale in select key, value from jsonb_each(v_found) order by key loop
    begin
      if v_stale ? 'error' then
        v_sources := v_sources || jsonb_build_object('source', v_source, 'error', v_stale ->> 'error');
      else
        v_sources := v_sources || (jsonb_build_object('source', v_source) || public.toban_mend(v_source, v_stale));
      end if;
    exception when others then
      v_sources := v_sources || jsonb_build_object('source', v_source, 'error', sqlerrm);
    end;
  end loop;
  update public.runs set state = 'lost', finished_at = now(), message = 'its worker gave no more news'
    where state = 'running' and lease_until < now();
  get diagnostics v_lost = row_count;
  perform public.toban_report(jsonb_build_object('runs',
    (select coalesce(jsonb_agg(id), '[]') from public.runs where started_at > now() - interval '1 day')));
  return jsonb_build_object('sources', v_sources, 'runs_lost', v_lost, 'more', v_more);
end
$$;

-- Forget what is old. Failed items stay: they are incidents; so do items whose row still says pending, because nothing
-- else tells that it has had its turn. p: items_days, runs_days, limit? (most items, and runs, of one call; default
-- 10000) → items, runs, workers, more (call again)
create or replace function public.toban_retention(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_items integer;
  v_runs integer;
  v_workers integer;
begin
  with old as (
    select id from public.work_items where state in ('completed', 'skipped') and marked
      and finished_at < now() - (p ->> 'items_days')::integer * interval '1 day'
    order by finished_at limit v_limit
  ), mine as (
    -- In the order of their keys and without waiting, as everywhere; and again: somebody may have opened it meanwhile.
    select w.id from public.work_items w join old on old.id = w.id
    where w.state in ('completed', 'skipped') and w.marked
    order by w.source, w.key for update of w skip locked
  )
  delete from public.work_items w using mine where w.id = mine.id;
  get diagnostics v_items = row_count;
  with mine as (
    select id from public.runs where state <> 'running'
      and started_at < now() - (p ->> 'runs_days')::integer * interval '1 day'
    order by id limit v_limit for update skip locked
  ), results as (
    delete from public.run_results t using mine where t.run_id = mine.id
  )
  delete from public.runs r using mine where r.id = mine.id;
  get diagnostics v_runs = row_count;
  delete from public.workers where expires_at < now() - interval '1 day';
  get diagnostics v_workers = row_count;
  return jsonb_build_object('items', v_items, 'runs', v_runs, 'workers', v_workers,
                            'more', greatest(v_items, v_runs) >= v_limit);
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
    'workers', (select coalesce(jsonb_agg(to_jsonb(k) order by k.id), '[]')
                from public.workers k where k.expires_at > now()),
    'jobs', (select coalesce(jsonb_agg(jsonb_build_object(
        'job', j.job, 'title', j.title, 'source', j.source, 'enabled', j.enabled,
        'every', extract(epoch from j.every),
        'last_started_at', j.last_started_at, 'last_finished_at', j.last_finished_at,
        'last_status', j.last_status, 'last_message', j.last_message) order by j.job), '[]') from public.jobs j),
    'running', (select coalesce(jsonb_agg(jsonb_build_object(
        'source', w.source, 'key', w.key, 'worker', w.worker, 'attempt', w.attempt, 'tries', w.tries,
        'started_at', w.started_at, 'progress', w.progress) order by w.started_at), '[]')
      from public.work_items w where w.state = 'processing'),
    'failed', (select coalesce(jsonb_agg(x order by x.finished_at desc), '[]') from (
      select w.source, w.key, w.tries, w.finished_at, w.last_error_kind, w.last_error
      from public.work_items w where w.state = 'failed' and w.incident_since is not null  -- (as the index has it)
      order by w.finished_at desc limit coalesce((p ->> 'failed')::integer, 20)) x))
$$;
