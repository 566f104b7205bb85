-- From waiting to sent, and back: claim, skip, release.
--
-- Every function called by the program takes one jsonb object and returns one jsonb value, in one transaction.
-- Locks are taken in one order everywhere: the watched row, then the item; many in the order of their keys.

-- The due items to take next: by priority, then in turns among the partitions, those with fewer items under way first;
-- of one partition the oldest first, by the row's own time.
create or replace function public.toban_choose(p_source text, p_queue text, p_room integer, p_filters jsonb)
returns bigint[]
language plpgsql stable set search_path = '' as $$
declare
  v_partition text := p_filters ->> 'partition';
  v_since timestamptz := p_filters ->> 'since';
  v_until timestamptz := p_filters ->> 'until';
  v_partitions text[];
  v_chosen bigint[];
  v_depth integer;
  v_most integer;
begin
  with recursive partitions as (
    -- A loose index scan: one index look-up a partition, however many items each has.
    (select partition from public.work_items where source = p_source and state = 'pending'
       and (v_partition is null or partition = v_partition) order by partition limit 1)
    union all
    select (select w.partition from public.work_items w where w.source = p_source and w.state = 'pending'
              and w.partition > q.partition and v_partition is null order by w.partition limit 1)
    from partitions q where q.partition is not null
  )
  select array_agg(partition) into v_partitions from partitions where partition is not null;
  -- A few of each partition are enough, unless one has so few rivals, or such urgent items, that all of its few are
  -- chosen: then look deeper.
  v_depth := p_room / greatest(cardinality(v_partitions), 1) + 2;
  loop
    with in_flight as (
      select partition, count(*) as n from public.work_items
      where source = p_source and queue = p_queue and state in ('queued', 'processing') group by partition
    ), candidates as (
      select c.id, c.priority, c.moment, q.partition,
             coalesce(f.n, 0) + row_number() over (
               partition by q.partition order by c.priority desc, c.moment, c.id) as turn
      from unnest(v_partitions) q (partition)
      left join in_flight f on f.partition = q.partition
      cross join lateral (
        select w.id, w.priority, coalesce(w.at, w.opened_at) as moment from public.work_items w
        where w.source = p_source and w.state = 'pending' and w.partition = q.partition and w.available_at <= now()
          and (v_since is null or w.at >= v_since) and (v_until is null or w.at < v_until)
        order by w.priority desc, coalesce(w.at, w.opened_at), w.id limit least(v_depth, p_room)) c
    ), chosen as (
      select id, partition from candidates order by priority desc, turn, moment, id limit p_room
    )
    select array_agg(id), max(n) into v_chosen, v_most
      from (select id, count(*) over (partition by partition) as n from chosen) x;
    exit when v_most is null or v_most < v_depth or v_depth >= p_room;
    v_depth := v_depth * 4;
  end loop;
  return v_chosen;
end
$$;

-- p: source, queue, limit, max_attempts, lease (s), zone? (for the run's dates). The source's row in jobs may pause it,
-- and has the filters. What is taken is written into the run of the job's slot, whoever dispatches.
-- → items [{id, key, ref, task_id, claim_no, partition, at, opened_at, params}], found (capped at 10,000), slots,
--   queued, reason?
create or replace function public.toban_claim(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_source text := p ->> 'source';
  v_queue text := p ->> 'queue';
  j public.jobs;
  v_since timestamptz;
  v_until timestamptz;
  v_run bigint;
  v_slots integer;
  v_queued integer;
  v_found integer;
  v_room integer;
  v_ids bigint[];
  v_items jsonb;
begin
  -- The commit does not wait for the disk: that is half of what a small item costs. A crash of the database (not of
  -- ours, nor of a worker) may then forget this claim, and no harm is done: the item is pending again and goes again
  -- with another task id, and the message of the forgotten claim is refused by toban_start(). What toban_reap() did in
  -- here is forgotten as a whole, an item's 'failed' with its row's mark and its run's count, and the next reap does it
  -- again. Whatever commits later and does wait, as every finish does, takes this to the disk with it.
  -- (Set like this because a function's own setting would end before the commit.)
  perform set_config('synchronous_commit', 'off', true);
  if not exists (select from public.toban_sources where source = v_source) then
    raise exception 'there is no source %', v_source using errcode = 'TB404';
  end if;
  select * into j from public.jobs where source = v_source;
  if not j.enabled then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'paused');
  end if;
  v_since := j.filters ->> 'since';
  v_until := j.filters ->> 'until';
  -- One claim of a queue at a time keeps "no more than can run" true; whoever comes second has nothing to add.
  if not pg_try_advisory_xact_lock(hashtextextended('toban:claim:' || v_queue, 0)) then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'another dispatcher is claiming');
  end if;
  perform public.toban_reap(100);
  v_slots := public.toban_slots(v_queue);
  v_queued := public.toban_queued(v_queue);
  select count(*) into v_found from (
    select from public.work_items where source = v_source and state = 'pending' and available_at <= now()
      and (j.filters ->> 'partition' is null or partition = j.filters ->> 'partition')
      and (v_since is null or at >= v_since) and (v_until is null or at < v_until)
    order by partition limit 10000) x;
  v_room := least((p ->> 'limit')::integer, 2 * v_slots - v_queued);
  if v_found = 0 or v_room <= 0 then
    return jsonb_build_object('items', '[]'::jsonb, 'found', v_found, 'slots', v_slots, 'queued', v_queued, 'reason',
      case when v_found = 0 then 'nothing is due' when v_slots = 0 then 'no worker listens to ' || v_queue
           else 'the queue is full' end);
  end if;
  v_ids := public.toban_choose(v_source, v_queue, v_room, j.filters);
  v_ids := array(select w.id from public.work_items w where w.id = any (v_ids) and w.state = 'pending'
                 order by w.key for update skip locked);
  if v_ids = '{}' then
    return jsonb_build_object('items', '[]'::jsonb, 'found', v_found, 'slots', v_slots, 'queued', v_queued,
                              'reason', 'somebody else holds what is due');
  end if;
  if j.job is not null then
    insert into public.runs as r (job, slot, state, filters, lease_until, finished_at, found)
    values (j.job, public.toban_slot(j, now()), 'success', j.filters, now(), now(), v_found)
    on conflict (job, slot) do update set found = greatest(r.found, r.dispatched + excluded.found)
    returning id into v_run;
  end if;
  with claimed as (
    update public.work_items w set
      state = 'queued', queue = v_queue, claim_no = w.claim_no + 1, task_id = gen_random_uuid(),
      claimed_at = now(), lease_until = now() + (p ->> 'lease')::numeric * interval '1 s',
      max_attempts = (p ->> 'max_attempts')::integer, run_id = v_run
    where w.id = any (v_ids)
    returning w.*
  )
  select jsonb_agg(jsonb_build_object(
           'id', id, 'key', key, 'ref', ref, 'task_id', task_id, 'claim_no', claim_no, 'partition', partition,
           'at', at, 'opened_at', opened_at, 'params', params) order by priority desc, coalesce(at, opened_at), id)
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
  v_skipped integer := 0;
begin
  for w in select i.* from public.work_items i
           where i.task_id in (select t::uuid from jsonb_array_elements_text(p -> 'tasks') t) order by i.source, i.key
  loop
    select * into strict s from public.toban_sources where source = w.source;
    continue when public.toban_try_lock(s, w.ref) = 'busy';
    update public.work_items set
      state = 'skipped', finished_at = now(), lease_until = null, incident_since = null,
      last_error = p ->> 'reason', last_error_kind = 'nothing_there'
    where id = w.id and state = 'queued' and task_id = w.task_id;
    continue when not found;
    v_skipped := v_skipped + 1;
    perform public.toban_note_result(w, 'skipped');
    perform public.toban_mark_end(s, w, s.skipped_value);
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
       or w.state = 'queued'
          and w.task_id in (select t::uuid from jsonb_array_elements_text(coalesce(p -> 'tasks', '[]')) t)
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
