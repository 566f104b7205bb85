-- What the pages of work and workers show: one call a page.

-- The attempts of an item, the newest first.
create or replace function public.toban_attempts_of(p_item bigint, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'attempt', a.attempt, 'try', a.try, 'max_attempts', a.max_attempts, 'worker', a.worker,
    'started_at', a.started_at, 'ended_at', a.ended_at, 'seconds', extract(epoch from a.ended_at - a.started_at),
    'outcome', a.outcome, 'kind', a.kind, 'error', a.error) order by a.attempt desc), '[]')
  from (select * from public.work_attempts where item_id = p_item order by attempt desc limit p_limit) a
$$;

-- The calls to language models of a row, the newest first, with their sum.
create or replace function public.toban_calls_of(p_source text, p_key text, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'cost', coalesce(sum(c.cost), 0), 'count', count(*),
    'list', coalesce(jsonb_agg(jsonb_build_object(
      'model', c.model, 'outcome', c.outcome, 'lane', c.lane, 'prompt_tokens', c.prompt_tokens,
      'completion_tokens', c.completion_tokens, 'cost', c.cost, 'latency_ms', c.latency_ms,
      'possibly_billed', c.possibly_billed, 'sent_at', c.sent_at, 'attempt', c.attempt) order by c.id desc)
      filter (where c.place <= p_limit), '[]'))
  from (select *, row_number() over (order by id desc) as place
        from public.llm_calls where source = p_source and key = p_key) c
$$;

-- What is shown of an item wherever it stands.
create or replace function public.toban_item_json(w public.work_items) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'id', w.id, 'source', w.source, 'key', w.key, 'partition', w.partition, 'state', w.state, 'at', w.at,
    'priority', w.priority, 'opened_at', w.opened_at, 'available_at', w.available_at, 'queue', w.queue,
    'claimed_at', w.claimed_at, 'attempt', w.attempt, 'tries', w.tries, 'max_attempts', w.max_attempts,
    'worker', w.worker, 'started_at', w.started_at, 'run_until', w.run_until, 'progress', w.progress,
    'finished_at', w.finished_at, 'incident_since', w.incident_since, 'error', w.last_error,
    'kind', w.last_error_kind, 'task_id', w.task_id, 'params', w.params)
$$;

-- Every source and state: how many, since when, how fast. p: queues {source: queue}
-- → now, sources [{source, queue, enabled, job, states {state: {count, oldest, latest}}, due, oldest_due, next_due,
-- slots, queued, hold?, hour {completed, failed, skipped, retried, minutes [12 counts of 5 min], wait [p50, p95],
-- run [p50, p95]}}]  (seconds; null: none in the last hour)
create or replace function public.toban_page_work(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  with counts as (
    select w.source, w.state, count(*) as n, count(*) filter (where w.available_at <= now()) as due,
      min(case w.state when 'pending' then w.opened_at when 'queued' then w.claimed_at
          when 'processing' then w.started_at when 'failed' then w.incident_since else w.finished_at end) as oldest,
      max(w.finished_at) as latest,
      min(w.opened_at) filter (where w.available_at <= now()) as oldest_due,
      min(w.available_at) filter (where w.available_at > now()) as next_due
    from public.work_items w group by w.source, w.state
  ), states as (
    select source,
      jsonb_object_agg(state, jsonb_build_object('count', n, 'oldest', oldest, 'latest', latest)) as states,
      max(due) filter (where state = 'pending') as due, min(oldest_due) filter (where state = 'pending') as oldest_due,
      min(next_due) filter (where state = 'pending') as next_due
    from counts group by source
  ), hour as (
    select a.source,
      count(*) filter (where a.outcome = 'completed') as completed,
      count(*) filter (where a.outcome = 'failed') as failed,
      count(*) filter (where a.outcome = 'skipped') as skipped,
      count(*) filter (where a.outcome in ('retry', 'lost')) as retried,
      percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from a.started_at - a.opened_at))
        filter (where a.try = 1) as wait,
      percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from a.ended_at - a.started_at))
        filter (where a.outcome in ('completed', 'failed')) as run
    from public.work_attempts a where a.ended_at > now() - interval '1 hour' group by a.source
  ), fives as (
    select s.source, jsonb_agg(coalesce(f.n, 0) order by i) as minutes
    from public.toban_sources s cross join generate_series(11, 0, -1) with ordinality as b (five, i)
    left join (
      select source, floor(extract(epoch from now() - ended_at) / 300)::integer as five, count(*) as n
      from public.work_attempts where ended_at > now() - interval '1 hour' and outcome = 'completed' group by 1, 2) f
      on f.source = s.source and f.five = b.five
    group by s.source
  )
  select jsonb_build_object('now', now(), 'sources', coalesce(jsonb_agg(jsonb_build_object(
    'source', s.source, 'queue', p -> 'queues' ->> s.source, 'job', j.job, 'enabled', coalesce(j.enabled, true),
    'states', coalesce(c.states, '{}'), 'due', coalesce(c.due, 0), 'oldest_due', c.oldest_due, 'next_due', c.next_due,
    'slots', public.toban_slots(p -> 'queues' ->> s.source), 'queued', public.toban_queued(p -> 'queues' ->> s.source),
    'hold', (select jsonb_build_object('cause', h.cause, 'reason', h.reason, 'until', h.until, 'since', h.since)
             from public.queue_holds h where h.queue = p -> 'queues' ->> s.source and h.until > now()
             order by h.incident desc, h.until desc limit 1),
    'hour', jsonb_build_object(
      'completed', coalesce(h.completed, 0), 'failed', coalesce(h.failed, 0), 'skipped', coalesce(h.skipped, 0),
      'retried', coalesce(h.retried, 0), 'minutes', f.minutes, 'wait', h.wait, 'run', h.run))
    order by s.source), '[]'))
  from public.toban_sources s
  left join states c on c.source = s.source
  left join hour h on h.source = s.source
  left join fives f on f.source = s.source
  left join lateral (select * from public.jobs where source = s.source order by job limit 1) j on true
$$;

-- Items of a source. p: source, state?, q? (part of the key), skip?, limit? (default 50) → now, items, more
-- What waits comes in the order of claims, everything else with the latest first.
create or replace function public.toban_page_items(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 50);
  v_pattern text := '%' || regexp_replace(coalesce(p ->> 'q', ''), '([\\%_])', '\\\1', 'g') || '%';
  v_items jsonb;
begin
  if not exists (select from public.toban_sources where source = p ->> 'source') then
    raise exception 'there is no source %', p ->> 'source' using errcode = 'TB404';
  end if;
  with chosen as (
    select w.*, row_number() over () as place from (
      select w.* from public.work_items w
      where w.source = p ->> 'source' and (p ->> 'state' is null or w.state = p ->> 'state')
        and (v_pattern = '%%' or w.key ilike v_pattern)
      order by case when w.state = 'pending' then w.priority end desc nulls last,
        case when w.state = 'pending' then coalesce(w.at, w.opened_at) end nulls last,
        coalesce(w.finished_at, w.started_at, w.opened_at) desc, w.id
      offset coalesce((p ->> 'skip')::integer, 0) limit v_limit + 1) w
  )
  select coalesce(jsonb_agg(public.toban_item_json(w) order by c.place), '[]') into v_items
  from chosen c join public.work_items w on w.id = c.id;
  return jsonb_build_object('now', now(), 'items', v_items - v_limit, 'more', jsonb_array_length(v_items) > v_limit);
end
$$;

-- One item, and why it still waits. p: source, key, queue (that its source's work goes to), zone (of the filters' days)
-- → item, attempts, calls, why [{code, …}]. Codes, in the order in which they have to go:
--   paused {job}                      its job is
--   excluded {filter, value}          its job's filters leave it out
--   held {cause, reason, until}       its queue is
--   no_worker {queue}                 nobody listens
--   later {at, try, max_attempts}     not due yet; `try` would be the next
--   not_ready {error}                 the worker could not work, and it was put back
--   batch_limit {limit, next}         the slot's limit is reached; `next` begins the next one
--   full {queue, queued, slots}       enough is under way
--   turn {ahead}                      it is due; so many others of its source are
create or replace function public.toban_page_item(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  s public.toban_sources;
  j public.jobs;
  h public.queue_holds;
  f jsonb;
  v_queue text := p ->> 'queue';
  v_slots integer;
  v_queued integer;
  v_sent integer;
  v_why jsonb := '[]';
begin
  select * into w from public.work_items where source = p ->> 'source' and key = p ->> 'key';
  if not found then
    raise exception 'there is no item % of %', p ->> 'key', p ->> 'source' using errcode = 'TB404';
  end if;
  if w.state = 'pending' then
    select * into s from public.toban_sources where source = w.source;
    select * into j from public.jobs where source = w.source order by job limit 1;
    select * into h from public.queue_holds where queue = v_queue and until > now()
      order by incident desc, until desc limit 1;
    v_slots := public.toban_slots(v_queue);
    v_queued := public.toban_queued(v_queue);
    if not j.enabled then
      v_why := v_why || jsonb_build_object('code', 'paused', 'job', j.job);
    end if;
    f := public.toban_filters(j, s, coalesce(p ->> 'zone', 'UTC'));
    if f ->> 'partition' <> w.partition then
      v_why := v_why || jsonb_build_object('code', 'excluded', 'filter', 'partition', 'value', f ->> 'partition');
    end if;
    if w.at < (f ->> 'since')::timestamptz or w.at >= (f ->> 'until')::timestamptz
       or w.ref ->> (f ->> 'date_column') <> f ->> 'date' then
      v_why := v_why || jsonb_build_object('code', 'excluded', 'filter',
        case when j.filters ? 'date' then 'date' when w.at < (f ->> 'since')::timestamptz then 'since' else 'until' end,
        'value', coalesce(j.filters ->> 'date',
          case when w.at < (f ->> 'since')::timestamptz then f ->> 'since' else f ->> 'until' end));
    end if;
    if h.queue is not null then
      v_why := v_why || jsonb_build_object('code', 'held', 'cause', h.cause, 'reason', h.reason, 'until', h.until);
    end if;
    if v_slots = 0 then
      v_why := v_why || jsonb_build_object('code', 'no_worker', 'queue', v_queue);
    end if;
    if w.available_at > now() then
      v_why := v_why || jsonb_build_object('code', 'later', 'at', w.available_at, 'try', w.tries + 1,
                                           'max_attempts', w.max_attempts);
    end if;
    if w.last_error_kind = 'not_ready' then
      v_why := v_why || jsonb_build_object('code', 'not_ready', 'error', w.last_error);
    end if;
    v_sent := (select dispatched from public.runs where job = j.job and slot = public.toban_slot(j, now()));
    if coalesce(v_sent, 0) >= j.batch_limit then
      v_why := v_why || jsonb_build_object('code', 'batch_limit', 'limit', j.batch_limit,
                                           'next',
        ((public.toban_slot(j, now()) at time zone j.zone) + j.every) at time zone j.zone);
    end if;
    if v_slots > 0 and v_queued >= 2 * v_slots then
      v_why := v_why || jsonb_build_object('code', 'full', 'queue', v_queue, 'queued', v_queued, 'slots', v_slots);
    end if;
    if v_why = '[]' then
      v_why := v_why || jsonb_build_object('code', 'turn', 'ahead', (
        select count(*) from public.work_items o where o.source = w.source and o.state = 'pending'
          and o.available_at <= now() and o.id <> w.id
          and (o.priority, -extract(epoch from coalesce(o.at, o.opened_at)))
            > (w.priority, -extract(epoch from coalesce(w.at, w.opened_at)))));
    end if;
  end if;
  return jsonb_build_object('now', now(), 'item', public.toban_item_json(w), 'traceback', w.last_traceback,
    'attempts', public.toban_attempts_of(w.id, 50), 'calls', public.toban_calls_of(w.source, w.key, 20),
    'why', v_why);
end
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
    select w.worker, jsonb_agg(public.toban_item_json(w) order by w.started_at) as items
    from public.work_items w where w.state = 'processing' group by w.worker
  )
  select jsonb_build_object(
    'now', now(),
    'workers', (select coalesce(jsonb_agg(jsonb_build_object(
        'id', k.id, 'node', k.node, 'pid', k.pid, 'queues', k.queues, 'slots', k.slots, 'busy', k.busy,
        'rss_bytes', k.rss_bytes, 'memory_limit', k.memory_limit, 'started_at', k.started_at, 'seen_at', k.seen_at,
        'alive', k.expires_at > now(), 'hour', coalesce(d.n, 0), 'items', coalesce(r.items, '[]'))
        order by k.node, k.id), '[]')
      from public.workers k left join done d on d.worker = k.id left join running r on r.worker = k.id
      where k.expires_at > now() - interval '1 hour'),
    'troubles', (select coalesce(jsonb_agg(jsonb_build_object(
        'queue', substr(t.job_key, 8), 'message', t.last_message, 'since', t.last_finished_at) order by t.job_key), '[]')
      from public.job_status t where t.job_key like 'worker-%' and t.last_status = 'error'))
$$;

-- Somebody stopped a worker; who did it by Celery's remote control says so here. p: node, who → noted
create or replace function public.toban_note_stop(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  perform public.toban_audit(p, 'stop worker', p ->> 'node');
  return jsonb_build_object('noted', true);
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
