-- The life of one item: claim, start, then finish, retry, fail, skip or release; and what happens to the lost.
--
-- Every function called by the program takes one jsonb object and returns one jsonb value, in one transaction.
-- Locks are taken in one order everywhere: the watched row, then the item; many in the order of their keys.

-- Write an item's final status (and result columns) into its row. False: the row could not be written.
create or replace function public.toban_mark(s public.toban_sources, p_ref jsonb, p_status text, p_row jsonb)
returns boolean
language plpgsql set search_path = '' as $$
declare
  v_sets text := format('%I = %L', s.status_column, p_status);
  v_columns text;
  v_count integer;
begin
  if p_status is null then
    return false;
  end if;
  if p_row is not null and p_row <> '{}' then
    select string_agg(format('%I = v.%I', k, k), ', ') into v_columns from jsonb_object_keys(p_row) k;
    execute format('update %s r set %s, %s from jsonb_populate_record(null::%s, $2) v where %s',
                   s.watched, v_sets, v_columns, s.watched, s.where_sql) using p_ref, p_row;
  else
    execute format('update %s r set %s where %s', s.watched, v_sets, s.where_sql) using p_ref;
  end if;
  get diagnostics v_count = row_count;  -- `execute` leaves `found` alone
  return v_count > 0;
end
$$;

-- Lock a row without waiting for it: 'locked', 'busy' (somebody else has it) or 'gone'.
create or replace function public.toban_try_lock(s public.toban_sources, p_ref jsonb) returns text
language plpgsql set search_path = '' as $$
declare
  v_row text;
begin
  execute format('select ''locked'' from %s r where %s for update skip locked', s.watched, s.where_sql)
    into v_row using p_ref;
  if v_row is null then
    execute format('select ''busy'' from %s r where %s', s.watched, s.where_sql) into v_row using p_ref;
  end if;
  return coalesce(v_row, 'gone');
end
$$;

-- Rooms of a queue: what its live workers can run at once.
create or replace function public.toban_slots(p_queue text) returns integer
language sql stable set search_path = '' as $$
  select coalesce(sum(slots), 0)::integer from public.workers where p_queue = any (queues) and expires_at > now()
$$;

create or replace function public.toban_queued(p_queue text) returns integer
language sql stable set search_path = '' as $$
  select count(*)::integer from public.work_items where queue = p_queue and state = 'queued'
$$;

-- Take back what nobody looks after any more. With p_task_id: that item, now, for p_reason.
--   processing  its lease is over: the worker died, hangs, or lost its connection
--   queued      its message was lost: its lease is over and its queue has no worker, or one that has stood idle for
--               10 s, or one that has started an item claimed a whole lease later
create or replace function public.toban_reap(p_limit integer, p_task_id uuid default null, p_reason text default null)
returns integer
language plpgsql set search_path = '' as $$
declare
  w public.work_items;
  s public.toban_sources;
  v_reason text;
  v_changed boolean;
  v_reaped integer := 0;
begin
  for w in
    select i.* from public.work_items i
    where i.state in ('queued', 'processing') and case
      when p_task_id is not null then i.task_id = p_task_id
      when i.lease_until >= now() then false
      when i.state = 'processing' then true
      else
          not exists (select from public.workers k
                      where i.queue = any (k.queues) and k.slots > 0 and k.expires_at > now())
          or exists (select from public.workers k
                     where i.queue = any (k.queues) and k.slots > 0 and k.expires_at > now()
                     and (k.idle_since < now() - interval '10 s'
                          or k.last_claimed_at > i.lease_until))
      end
    order by i.source, i.key limit p_limit for update skip locked
  loop
    v_reason := coalesce(p_reason, case
      when w.state = 'queued' then 'its message was lost on the way to a worker'
      when w.run_until < now() then format('it ran longer than allowed on %s', w.worker)
      when w.progress_at < w.lease_until - interval '3 min' then format('it made no more progress on %s', w.worker)
      else format('its worker %s gave no more news (killed, out of memory or cut off)', w.worker) end);
    -- Its row became pending again meanwhile: what this attempt did no longer counts.
    v_changed := w.state = 'processing' and w.revision <> w.started_revision;
    if w.state = 'queued' or v_changed or w.tries < w.max_attempts then
      update public.work_items set
        state = 'pending', lease_until = null, tries = case when v_changed then 0 else w.tries end,
        available_at = case when w.state = 'queued' then w.available_at
                       else now() + least(w.tries - 1, 30) * interval '2 s' end,
        last_error = case when w.state = 'queued' then w.last_error
                     else format('try %s of %s: %s', w.tries, w.max_attempts, v_reason) end,
        last_error_kind = case when w.state = 'queued' then w.last_error_kind else 'lost' end
      where id = w.id;
    else
      -- The row comes before the item in the lock order; here the item is held already, so never wait for the row.
      s := null;
      begin
        select * into strict s from public.toban_sources where source = w.source;
        continue when public.toban_try_lock(s, w.ref) = 'busy';
      exception when others then
        null;  -- the table itself is gone or changed: that must not stop every worker's heartbeat
      end;
      update public.work_items set
        state = 'failed', finished_at = now(), lease_until = null, marked = false,
        last_error = format('given up after %s of %s tries: %s', w.tries, w.max_attempts, v_reason),
        last_error_kind = 'lost'
      where id = w.id;
      begin
        update public.work_items set marked = public.toban_mark(s, w.ref, s.failed_value, null) where id = w.id;
      exception when others then
        null;  -- an app whose column allows no such value keeps its row as it is
      end;
    end if;
    v_reaped := v_reaped + 1;
  end loop;
  return v_reaped;
end
$$;

-- p: source, queue, limit, max_attempts, lease (s), zone? (for the run's dates), filters? {partition, since, until}; the
-- source's row in jobs may pause it and has filters of its own. What is taken is written into the run of the job's slot,
-- whoever dispatches.
-- → items [{id, key, ref, task_id, claim_no, partition, at, opened_at, params}], found (capped at 10,000), slots,
--   queued, reason?
create or replace function public.toban_claim(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_source text := p ->> 'source';
  v_queue text := p ->> 'queue';
  j public.jobs;
  v_filters jsonb;
  v_partition text;
  v_since timestamptz;
  v_until timestamptz;
  v_run bigint;
  v_slots integer;
  v_queued integer;
  v_found integer;
  v_room integer;
  v_partitions text[];
  v_chosen bigint[];
  v_depth integer;
  v_most integer;
  v_items jsonb;
begin
  if not exists (select from public.toban_sources where source = v_source) then
    raise exception 'there is no source %', v_source using errcode = 'TB404';
  end if;
  select * into j from public.jobs where source = v_source;
  if not j.enabled then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'paused');
  end if;
  v_filters := coalesce(j.filters, '{}') || coalesce(p -> 'filters', '{}');
  v_partition := v_filters ->> 'partition';
  v_since := v_filters ->> 'since';
  v_until := v_filters ->> 'until';
  -- One claim of a queue at a time keeps "no more than can run" true; whoever comes second has nothing to add.
  if not pg_try_advisory_xact_lock(hashtextextended('toban:claim:' || v_queue, 0)) then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'another dispatcher is claiming');
  end if;
  perform public.toban_reap(100);
  v_slots := public.toban_slots(v_queue);
  v_queued := public.toban_queued(v_queue);
  select count(*) into v_found from (
    select from public.work_items where source = v_source and state = 'pending' and available_at <= now()
      and (v_partition is null or partition = v_partition)
      and (v_since is null or at >= v_since) and (v_until is null or at < v_until)
    order by partition limit 10000) x;
  v_room := least((p ->> 'limit')::integer, 2 * v_slots - v_queued);
  if v_found = 0 or v_room <= 0 then
    return jsonb_build_object('items', '[]'::jsonb, 'found', v_found, 'slots', v_slots, 'queued', v_queued, 'reason',
      case when v_found = 0 then 'nothing is due' when v_slots = 0 then 'no worker listens to ' || v_queue
           else 'the queue is full' end);
  end if;
  if j.job is not null then
    insert into public.runs as r (job, slot, state, filters, lease_until, finished_at, found)
    values (j.job, public.toban_slot(j, now()), 'success', v_filters, now(), now(), v_found)
    on conflict (job, slot) do update set found = greatest(r.found, r.dispatched + excluded.found)
    returning id into v_run;
  end if;
  with recursive partitions as (
    -- A loose index scan: one index look-up a partition, however many items each has.
    (select partition from public.work_items where source = v_source and state = 'pending'
       and (v_partition is null or partition = v_partition) order by partition limit 1)
    union all
    select (select w.partition from public.work_items w where w.source = v_source and w.state = 'pending'
              and w.partition > q.partition and v_partition is null order by w.partition limit 1)
    from partitions q where q.partition is not null
  )
  select array_agg(partition) into v_partitions from partitions where partition is not null;
  -- A few of each partition are enough, unless one has so few rivals, or such urgent items, that all of its few are
  -- chosen: then look deeper.
  v_depth := v_room / greatest(cardinality(v_partitions), 1) + 2;
  loop
    with in_flight as (
      select partition, count(*) as n from public.work_items
      where source = v_source and queue = v_queue and state in ('queued', 'processing') group by partition
    ), candidates as (
      select c.id, c.priority, c.available_at, q.partition,
             coalesce(f.n, 0) + row_number() over (
               partition by q.partition order by c.priority desc, c.available_at, c.id) as turn
      from unnest(v_partitions) q (partition)
      left join in_flight f on f.partition = q.partition
      cross join lateral (
        select w.id, w.priority, w.available_at from public.work_items w
        where w.source = v_source and w.state = 'pending' and w.partition = q.partition and w.available_at <= now()
          and (v_since is null or w.at >= v_since) and (v_until is null or w.at < v_until)
        order by w.priority desc, w.available_at, w.id limit least(v_depth, v_room)) c
    ), chosen as (
      select id, partition from candidates order by priority desc, turn, available_at, id limit v_room
    )
    select array_agg(id), max(n) into v_chosen, v_most
      from (select id, count(*) over (partition by partition) as n from chosen) x;
    exit when v_most is null or v_most < v_depth or v_depth >= v_room;
    v_depth := v_depth * 4;
  end loop;
  with locked as (
    select w.id from public.work_items w where w.id = any (v_chosen)
      and w.state = 'pending' order by w.source, w.key for update of w skip locked
  ), claimed as (
    update public.work_items w set
      state = 'queued', queue = v_queue, claim_no = w.claim_no + 1, task_id = gen_random_uuid(),
      claimed_at = now(), lease_until = now() + (p ->> 'lease')::numeric * interval '1 s',
      max_attempts = (p ->> 'max_attempts')::integer, run_id = v_run
    from locked where w.id = locked.id
    returning w.*
  )
  select coalesce(jsonb_agg(jsonb_build_object(
           'id', id, 'key', key, 'ref', ref, 'task_id', task_id, 'claim_no', claim_no, 'partition', partition,
           'at', at, 'opened_at', opened_at, 'params', params) order by priority desc, available_at, id), '[]')
    into v_items from claimed;
  with taken as (
    select (i ->> 'at')::timestamptz as at from jsonb_array_elements(v_items) i
  )
  update public.runs r set
    dispatched = r.dispatched + jsonb_array_length(v_items),
    period_from = least(r.period_from, (select min(at) from taken)),
    period_to = greatest(r.period_to, (select max(at) from taken)),
    dates = coalesce((select array_agg(distinct d order by d) from (
      select unnest(r.dates) union select (at at time zone coalesce(p ->> 'zone', 'UTC'))::date from taken
      where at is not null) x (d)), '{}')
  where r.id = v_run;
  return jsonb_build_object('items', v_items, 'found', v_found, 'slots', v_slots, 'queued', v_queued);
end
$$;

-- p: id, task_id, token, worker, max_run (s), lease (s)
-- → started, attempt, tries, max_attempts, run_id, key, ref, params, at, opened_at, row   or   started false, reason
-- A repeated call with the same token gets the same answer.
create or replace function public.toban_start(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  s public.toban_sources;
  v_row jsonb;
  v_due boolean;
begin
  select * into w from public.work_items where id = (p ->> 'id')::bigint for update;
  if not found then
    return jsonb_build_object('started', false, 'reason', 'the item is gone');
  end if;
  select * into strict s from public.toban_sources where source = w.source;
  if w.state = 'processing' and w.token = (p ->> 'token')::uuid then
    null;  -- the first answer was lost
  elsif w.state <> 'queued' or w.task_id is distinct from (p ->> 'task_id')::uuid then
    return jsonb_build_object('started', false, 'reason', format('this message is out of date: the item is %s', w.state));
  end if;
  execute format('select to_jsonb(r), %s from %s r where %s', s.due_sql, s.watched, s.where_sql)
    into v_row, v_due using w.ref;
  if v_due is not true then
    update public.work_items set state = 'skipped', finished_at = now(), lease_until = null, last_error_kind = 'elsewhere',
      last_error = case when v_row is null then 'the row is gone' else 'the row no longer waits' end
    where id = w.id;
    return jsonb_build_object('started', false, 'reason', 'the row no longer waits');
  end if;
  if w.state = 'queued' then
    update public.work_items set
      state = 'processing', attempt = attempt + 1, tries = tries + 1, started_revision = revision,
      token = (p ->> 'token')::uuid, worker = p ->> 'worker', started_at = now(),
      run_until = now() + (p ->> 'max_run')::numeric * interval '1 s',
      lease_until = now() + (p ->> 'lease')::numeric * interval '1 s', progress = null, progress_at = now()
    where id = w.id returning * into w;
    update public.workers set idle_since = null, last_claimed_at = greatest(last_claimed_at, w.claimed_at)
      where id = w.worker;
  end if;
  return jsonb_build_object('started', true, 'attempt', w.attempt, 'tries', w.tries, 'max_attempts', w.max_attempts,
    'run_id', w.run_id,
    'key', w.key, 'ref', w.ref, 'params', w.params, 'at', w.at, 'opened_at', w.opened_at, 'row', v_row);
end
$$;

-- How an attempt ends. p: id, attempt, token, and what the outcome needs (see the four functions below).
-- → written, state, hungry   or   written false, reason
create or replace function public.toban_settle(p jsonb, p_outcome text) returns jsonb
language plpgsql set search_path = '' as $$
declare
  w public.work_items;
  s public.toban_sources;
  v_token uuid := p ->> 'token';
  v_result jsonb := coalesce(p -> 'result', '{}');
  v_answer jsonb;
begin
  select * into w from public.work_items where id = (p ->> 'id')::bigint;
  if not found then
    return jsonb_build_object('written', false, 'reason', 'the item is gone');
  end if;
  select * into strict s from public.toban_sources where source = w.source;
  if p_outcome <> 'pending' then
    execute format('select from %s r where %s for update', s.watched, s.where_sql) using w.ref;
  end if;
  select * into w from public.work_items where id = w.id for update;
  if w.settled_token = v_token then
    return jsonb_build_object('written', true, 'state', w.state, 'hungry', false);  -- the first answer was lost
  end if;
  if w.state <> 'processing' or w.attempt <> (p ->> 'attempt')::integer or w.token is distinct from v_token then
    return jsonb_build_object('written', false, 'reason', format('another attempt owns the item: it is %s', w.state));
  end if;

  if w.revision <> w.started_revision then
    -- The row became pending again, or its inputs changed, while this attempt ran: what it found is out of date.
    -- (settled_token stays, so that a repeated call is told again that nothing was written.)
    update public.work_items set state = 'pending', available_at = now(), lease_until = null, tries = 0,
      opened_at = now(), last_error = null, last_error_kind = null, last_traceback = null
    where id = w.id;
    v_answer := jsonb_build_object('written', false, 'state', 'pending', 'reason', 'the row changed meanwhile; it goes again');
  elsif p_outcome = 'pending' then
    update public.work_items set
      state = 'pending', available_at = (p ->> 'at')::timestamptz, lease_until = null, settled_token = v_token,
      tries = case when (p ->> 'counted')::boolean then w.tries else greatest(w.tries - 1, 0) end,
      params = w.params || coalesce(p -> 'params', '{}'),
      last_error = p ->> 'error', last_error_kind = p ->> 'kind', last_traceback = p ->> 'traceback'
    where id = w.id;
    v_answer := jsonb_build_object('written', true, 'state', 'pending');
  else
    if p_outcome = 'completed' and s.store_function is not null then
      execute format('select %s($1, $2)', s.store_function) using w, v_result;
    end if;
    update public.work_items set
      state = p_outcome, finished_at = now(), lease_until = null, settled_token = v_token, marked = true,
      progress = coalesce(p -> 'progress', w.progress),
      last_error = p ->> 'error', last_error_kind = p ->> 'kind', last_traceback = p ->> 'traceback'
    where id = w.id;
    if p_outcome = 'completed' then
      perform public.toban_mark(s, w.ref, s.completed_value, v_result -> 'row');
    else
      declare
        v_marked boolean;
      begin
        -- An app whose column allows no such value keeps its row as it is; the item says how it ended.
        v_marked := public.toban_mark(
          s, w.ref, case p_outcome when 'failed' then s.failed_value else s.skipped_value end, null);
        update public.work_items set marked = v_marked where id = w.id and not v_marked;
      exception when others then
        update public.work_items set marked = false where id = w.id;
      end;
    end if;
    v_answer := jsonb_build_object('written', true, 'state', p_outcome);
  end if;
  update public.workers k set idle_since = now() where k.id = w.worker and k.slots <= 1;
  -- Fewer messages wait than the workers can run: the caller may claim more at once instead of waiting for a tick.
  return v_answer || jsonb_build_object('hungry',
    public.toban_queued(w.queue) < public.toban_slots(w.queue)
    -- (ordered, so that the index is used: a plain scan may pass a million finished items before the first waiting one)
    and (select true from public.work_items n where n.source = w.source and n.state = 'pending'
         and n.available_at <= now() order by n.partition limit 1) is true);
end
$$;

-- p: id, attempt, token, result {row?: columns of the watched row, … as the source's store function wants}, error? (a
-- remark for a person), progress?
create or replace function public.toban_finish(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '30s' as $$
  select public.toban_settle(p, 'completed')
$$;

-- p: id, attempt, token, at (moment of the next try), counted, error, kind, traceback?, params?
create or replace function public.toban_retry(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  select public.toban_settle(p, 'pending')
$$;

-- p: id, attempt, token, error, kind, traceback?
create or replace function public.toban_fail(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  select public.toban_settle(p, 'failed')
$$;

-- p: id, attempt, token, error, kind
create or replace function public.toban_skip(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  select public.toban_settle(p, 'skipped')
$$;

-- Give items back unharmed: they cost no try. p: node? (all items that its workers run, and the workers go), or
-- tasks? [task ids that were claimed but could not be sent]. → released
create or replace function public.toban_release(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_released integer;
begin
  with mine as (
    select w.id from public.work_items w
    where w.state = 'processing' and w.worker in (select id from public.workers where node = p ->> 'node')
       or w.state = 'queued' and w.task_id in (select t::uuid from jsonb_array_elements_text(coalesce(p -> 'tasks', '[]')) t)
    order by w.source, w.key for update
  )
  update public.work_items w set
    state = 'pending', lease_until = null, available_at = least(w.available_at, now()),
    tries = case when w.state = 'processing' then greatest(w.tries - 1, 0) else w.tries end
  from mine where w.id = mine.id;
  get diagnostics v_released = row_count;
  delete from public.workers where node = p ->> 'node';
  return jsonb_build_object('released', v_released);
end
$$;

-- A child died while it ran a task: take the item back now. p: task_id, reason. → reaped
create or replace function public.toban_lost(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.workers k using public.work_items w
    where w.task_id = (p ->> 'task_id')::uuid and w.state = 'processing' and k.id = w.worker and k.slots = 1;
  return jsonb_build_object('reaped', public.toban_reap(1, (p ->> 'task_id')::uuid, p ->> 'reason'));
end
$$;

-- Close claimed items whose thing is not there, without sending them. p: tasks [task ids], reason. → skipped
-- An item whose row somebody else holds just now stays queued, and is taken back like one whose message was lost:
-- waiting for one row while holding others could deadlock with the app.
create or replace function public.toban_skip_claimed(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  w public.work_items;
  s public.toban_sources;
  v_marked boolean;
  v_skipped integer := 0;
begin
  for w in select i.* from public.work_items i
           where i.task_id in (select t::uuid from jsonb_array_elements_text(p -> 'tasks') t) order by i.source, i.key
  loop
    select * into strict s from public.toban_sources where source = w.source;
    continue when public.toban_try_lock(s, w.ref) = 'busy';
    update public.work_items set
      state = 'skipped', finished_at = now(), lease_until = null, marked = true,
      last_error = p ->> 'reason', last_error_kind = 'nothing_there'
    where id = w.id and state = 'queued' and task_id = w.task_id;
    continue when not found;
    v_skipped := v_skipped + 1;
    begin
      v_marked := public.toban_mark(s, w.ref, s.skipped_value, null);
      update public.work_items set marked = v_marked where id = w.id and not v_marked;
    exception when others then
      update public.work_items set marked = false where id = w.id;
    end;
  end loop;
  return jsonb_build_object('skipped', v_skipped);
end
$$;

-- Ask for finished or failed work again. p: source, and any of keys [text], partition, since, until (moments of the
-- row), date, block (for tables with such columns; beside since and until by who does not know the table), only_failed,
-- params, priority. → matched, opened, waiting, running
create or replace function public.toban_reprocess(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  v_where text := 'true';
  v_params jsonb := coalesce(nullif(p -> 'params', 'null'), '{}');
  v_timed boolean;
  v_dated boolean;
  v_join text;
  v_from text;
  v_refs jsonb[];
  v_keys text[];
  v_before record;
  v_pending integer;
begin
  p := jsonb_strip_nulls(p);  -- what is null was not asked for
  select * into s from public.toban_sources where source = p ->> 'source';
  if not found then
    raise exception 'there is no source %', p ->> 'source' using errcode = 'TB404';
  end if;
  v_join := replace(s.where_sql, '$1', 'k.ref');
  v_from := s.watched || ' r';
  if p ? 'keys' then
    -- A key is its columns' values; taken apart it finds the row by the table's own index.
    select array_agg((select jsonb_object_agg(c, replace(replace(split_part(k, '/', n::integer), '%2F', '/'), '%25', '%'))
                      from unnest(s.key_columns) with ordinality u (c, n))) into v_refs
      from jsonb_array_elements_text(p -> 'keys') k;
    v_from := v_from || format(' join (select distinct ref from unnest($2::jsonb[]) k (ref)) k on %s', v_join);
    v_where := v_where || format(' and %s in (select jsonb_array_elements_text($1 -> ''keys''))', s.key_sql);
  end if;
  if p ? 'partition' then
    v_where := v_where || format(' and %s = $1 ->> ''partition''', s.partition_sql);
  end if;
  -- A condition that cannot be applied must not select every row instead. Moments and dates may be given together, as
  -- two ways to say the same period: a table takes the way that its columns allow.
  v_timed := p ?| array['since', 'until'] and s.time_column is not null;
  v_dated := p ? 'date' and s.date_column is not null;
  if p ?| array['since', 'until', 'date'] and not (v_timed or v_dated)
     or p ? 'block' and s.block_column is null and not v_timed then
    raise exception 'rows of % are not found by %', s.source,
      case when p ?| array['since', 'until'] then 'since and until' when p ? 'date' and not v_dated then 'date'
           else 'block' end using errcode = 'TB400';
  end if;
  if v_timed and p ? 'since' then
    v_where := v_where || format(' and r.%I >= ($1 ->> ''since'')::timestamptz', s.time_column);
  end if;
  if v_timed and p ? 'until' then
    v_where := v_where || format(' and r.%I < ($1 ->> ''until'')::timestamptz', s.time_column);
  end if;
  if v_dated then
    v_where := v_where || format(' and r.%I = ($1 ->> ''date'')::date', s.date_column);
  end if;
  if p ? 'block' and s.block_column is not null then
    v_where := v_where || format(' and r.%I = $1 ->> ''block''', s.block_column);
  end if;
  if (p ->> 'only_failed')::boolean then
    v_where := v_where || format(' and exists (select from public.work_items i where i.source = %L and i.key = %s
                                   and i.state = ''failed'')', s.source, s.key_sql);
  end if;
  -- The rows first, as everywhere. The app may hold one of them and want another, so this never waits for a row while
  -- it holds others: all or none, and again a little later.
  for i in 1..20 loop
    begin
      execute format('select array_agg(key), array_agg(ref) from (
                        select %s as key, %s as ref from %s where %s order by 1 for update of r nowait) x',
                     s.key_sql, s.ref_sql, v_from, v_where) into v_keys, v_refs using p, v_refs;
      exit;
    exception
      when lock_not_available then
        if i = 20 then
          raise;
        end if;
      when data_exception then  -- a part of a key is no value of its column
        raise exception 'what was asked for does not fit the rows of %: %', s.source, sqlerrm using errcode = 'TB400';
    end;
    perform pg_sleep(0.05 * i);
  end loop;
  perform from public.work_items where source = s.source and key = any (v_keys) order by key for update;
  select count(*) filter (where state = 'pending') as pending, count(*) filter (where state = 'queued') as queued,
         count(*) filter (where state = 'processing') as running
    into v_before from public.work_items where source = s.source and key = any (v_keys);
  execute format('update %s r set %I = %L from unnest($1) k (ref) where %s and r.%I::text is distinct from %L',
                 s.watched, s.status_column, s.pending_value, v_join, s.status_column, s.pending_value) using v_refs;
  -- Rows that said pending all along, or whose trigger is off, and running work, which goes again after it ends.
  execute public.toban_open_sql(s, format(
    $q$(select r.* from unnest($1) k (ref) join %s r on %s where not exists (
          select from public.work_items i where i.source = %L and i.key = %s and i.state in ('pending', 'queued')))$q$,
    s.watched, v_join, s.source, s.key_sql)) using v_refs;
  update public.work_items set
    params = params || v_params,
    priority = greatest(priority, coalesce((p ->> 'priority')::smallint, 10)),
    tries = case when state = 'pending' then 0 else tries end,
    available_at = case when state = 'pending' then least(available_at, now()) else available_at end
  where source = s.source and key = any (v_keys) and state in ('pending', 'queued', 'processing');
  select count(*) into v_pending from public.work_items
    where source = s.source and key = any (v_keys) and state = 'pending';
  return jsonb_build_object(
    'matched', coalesce(cardinality(v_keys), 0), 'opened', greatest(v_pending - v_before.pending, 0),
    'waiting', v_before.pending + v_before.queued, 'running', v_before.running);
end
$$;

-- The watched rows of some items. p: source, ids → [{id, row}]
create or replace function public.toban_rows(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  s public.toban_sources;
  v_rows jsonb;
begin
  select * into strict s from public.toban_sources where source = p ->> 'source';
  execute format(
    $q$select coalesce(jsonb_agg(jsonb_build_object('id', i.id, 'row', to_jsonb(r))), '[]')
       from public.work_items i join %s r on %s
       where i.source = %L and i.id in (select x::bigint from jsonb_array_elements_text($1 -> 'ids') x)$q$,
    s.watched, replace(s.where_sql, '$1', 'i.ref'), s.source) into v_rows using p;
  return v_rows;
end
$$;
