-- How busy a worker is: what runs in it now, not what its last heartbeat told.

-- Everything a person asks first. p: failed? (how many failed items to list, default 20) → sources, queues, workers,
-- jobs, failed, running (on workers), batches (that are out)
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
    'workers', (
      with running as (
        select worker, count(*) as n from public.work_items where state = 'processing' group by worker)
      select coalesce(jsonb_agg(to_jsonb(k) || jsonb_build_object('busy', coalesce(r.n, 0)) order by k.id), '[]')
      from public.workers k left join running r on r.worker = k.id where k.expires_at > now()),
    'jobs', (select coalesce(jsonb_agg(jsonb_build_object(
        'job', j.job, 'title', j.title, 'source', j.source, 'enabled', j.enabled,
        'every', extract(epoch from j.every),
        'last_started_at', j.last_started_at, 'last_finished_at', j.last_finished_at,
        'last_status', j.last_status, 'last_message', j.last_message) order by j.job), '[]') from public.jobs j),
    'running', (select coalesce(jsonb_agg(jsonb_build_object(
        'source', w.source, 'key', w.key, 'worker', w.worker, 'attempt', w.attempt, 'tries', w.tries,
        'started_at', w.started_at, 'progress', w.progress) order by w.started_at), '[]')
      from public.work_items w where w.state = 'processing' and w.queue is not null),
    'batches', (select coalesce(jsonb_agg(jsonb_build_object(
        'id', b.id, 'source', b.source, 'state', b.state, 'size', b.size, 'created_at', b.created_at,
        'leave_by', b.leave_by, 'message', b.message,
        'out', (select count(*) from public.toban_batch_out(b.id))) order by b.id), '[]')
      from public.llm_batches b where b.state <> 'ended'),
    'failed', (select coalesce(jsonb_agg(x order by x.finished_at desc), '[]') from (
      select w.source, w.key, w.tries, w.finished_at, w.last_error_kind, w.last_error
      from public.work_items w where w.state = 'failed' and w.incident_since is not null  -- (as the index has it)
      order by w.finished_at desc limit coalesce((p ->> 'failed')::integer, 20)) x))
$$;

-- Worker processes and what they run. → now, workers [{id, node, pid, queues, slots, busy, rss_bytes, memory_limit,
-- started_at, seen_at, alive, hour (attempts that ended well in the last hour), items}], troubles [{queue, message,
-- since}]. Those without news stay for an hour.
create or replace function public.toban_page_workers(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  with done as (
    select worker, count(*) as n from public.work_attempts
    where ended_at > now() - interval '1 hour' and outcome = 'completed' group by worker
  ), running as (
    select w.worker, count(*) as n, jsonb_agg(public.toban_item_json(w) order by w.started_at) as items
    from public.work_items w where w.state = 'processing' group by w.worker
  )
  select jsonb_build_object(
    'now', now(),
    'workers', (select coalesce(jsonb_agg(jsonb_build_object(
        'id', k.id, 'node', k.node, 'pid', k.pid, 'queues', k.queues, 'slots', k.slots, 'busy', coalesce(r.n, 0),
        'rss_bytes', k.rss_bytes, 'memory_limit', k.memory_limit, 'started_at', k.started_at, 'seen_at', k.seen_at,
        'alive', k.expires_at > now(), 'hour', coalesce(d.n, 0), 'items', coalesce(r.items, '[]'))
        order by k.node, k.id), '[]')
      from public.workers k left join done d on d.worker = k.id left join running r on r.worker = k.id
      where k.expires_at > now() - interval '1 hour'),
    'troubles', (select coalesce(jsonb_agg(jsonb_build_object(
        'queue', substr(t.job_key, 8), 'message', t.last_message, 'since', t.last_finished_at) order by t.job_key), '[]')
      from public.job_status t where t.job_key like 'worker-%' and t.last_status = 'error'))
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
