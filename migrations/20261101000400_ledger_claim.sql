-- From waiting to sent, and back: claim, skip, release, and what happens to the lost.
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
