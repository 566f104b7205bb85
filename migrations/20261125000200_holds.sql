-- A queue that is held: nothing of it can go on for a while, whatever the row. Credit is used up, a key is refused, a
-- budget is spent: that is one incident, not one for each row. A server that asks for a pause holds without one.

create table if not exists public.queue_holds (
  queue text not null,
  cause text not null,
  reason text not null,
  incident boolean not null,
  since timestamptz not null default now(),
  until timestamptz not null,
  primary key (queue, cause)
);
comment on column public.queue_holds.until is
  'claims go on after it; the row stays until one has led to a completed item, so that since is the whole time';
comment on column public.queue_holds.incident is 'whether work that is out already stops too, and a person is told';

-- A hold and the end of one, of the same queue, go one after the other: else the end of one could be told as the end
-- of an incident that has just begun.
create or replace function public.toban_hold_lock(p_queue text) returns void
language sql set search_path = '' as $$
  select pg_advisory_xact_lock(hashtextextended('toban:hold:' || p_queue, 0))
$$;

-- p: queue, cause, reason, seconds, incident → until
create or replace function public.toban_hold(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_hold public.queue_holds;
begin
  perform public.toban_hold_lock(p ->> 'queue');
  insert into public.queue_holds as h (queue, cause, reason, incident, until)
  values (p ->> 'queue', p ->> 'cause', p ->> 'reason', (p ->> 'incident')::boolean,
          now() + (p ->> 'seconds')::numeric * interval '1 s')
  on conflict (queue, cause) do update set
    reason = excluded.reason, incident = excluded.incident, until = greatest(h.until, excluded.until)
  returning h.* into v_hold;
  if v_hold.incident then
    insert into public.job_status as t (job_key, title, last_status, last_finished_at, last_message)
    values ('queue-' || v_hold.queue, format('Queue %s', v_hold.queue), 'error', now(), v_hold.reason)
    on conflict (job_key) do update set title = excluded.title, last_status = 'error', updated_at = now(),
      last_finished_at = excluded.last_finished_at, last_message = excluded.last_message;
  end if;
  return jsonb_build_object('until', v_hold.until);
end
$$;

-- Why nothing of a queue may be claimed now, or (p_incident) not even started; null: it may.
create or replace function public.toban_held(p_queue text, p_incident boolean, out reason text, out until timestamptz)
language sql stable set search_path = '' as $$
  select h.reason, h.until from public.queue_holds h
  where h.queue = p_queue and h.until > now() and (h.incident or not p_incident)
  order by h.incident desc, h.until desc limit 1
$$;

-- End the holds of a queue whose time is over.
create or replace function public.toban_lift(p_queue text) returns integer
language plpgsql set search_path = '' as $$
declare
  v_lifted integer;
begin
  perform public.toban_hold_lock(p_queue);
  with lifted as (
    delete from public.queue_holds where queue = p_queue and until <= now() returning since
  ), told as (
    -- (Whatever the lifted ones say of `incident` by now: a cause may have begun as one.)
    update public.job_status t set last_status = 'success', last_finished_at = now(), updated_at = now(),
      last_message = format('it goes on; it was held since %s', to_char(x.since at time zone 'UTC',
                                                                      'YYYY-MM-DD HH24:MI "UTC"'))
    from (select min(since) as since from lifted) x
    where t.job_key = 'queue-' || p_queue and t.last_status = 'error' and x.since is not null
      and not exists (select from public.queue_holds h where h.queue = p_queue and h.incident and h.until > now())
  )
  select count(*) into v_lifted from lifted;
  return v_lifted;
end
$$;

-- An item that its worker has completed shows that its queue goes on (one that the app has completed does not).
create or replace function public.toban_goes_on() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from public.queue_holds where queue = new.queue and until <= now()) then
    perform public.toban_lift(new.queue);
  end if;
  return null;
end
$$;
drop trigger if exists toban_goes_on on public.work_items;
create trigger toban_goes_on after update of state on public.work_items for each row
  when (old.state = 'processing' and new.state = 'completed' and new.settled_token is distinct from old.settled_token)
  execute function public.toban_goes_on();

-- The due items to take next: by priority, then in turns among the partitions, those with fewer items under way first;
-- of one partition the oldest first, by the row's own time. p_filters: those of toban_filters(), and opened_before: take
-- only what waits since before then, is urgent, or has the parameter `direct` or `model`.
create or replace function public.toban_choose(p_source text, p_queue text, p_room integer, p_filters jsonb)
returns bigint[]
language plpgsql stable set search_path = '' as $$
declare
  v_partition text := p_filters ->> 'partition';
  v_since timestamptz := p_filters ->> 'since';
  v_until timestamptz := p_filters ->> 'until';
  v_date text := p_filters ->> 'date';
  v_before timestamptz := p_filters ->> 'opened_before';
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
          and (v_date is null or w.ref ->> (p_filters ->> 'date_column') = v_date)
          and (v_before is null or w.opened_at < v_before or w.priority > 0 or w.params ?| array['direct', 'model'])
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

-- p: source, queue, limit, max_attempts, lease (s), zone? (for the run's dates and the filter `date`), opened_before?
-- (leave what came later to somebody else). The source's row in jobs may pause it, and has the filters and the limit of
-- a slot. What is taken is written into the run of the job's slot, whoever dispatches.
-- → items [{id, key, ref, task_id, claim_no, partition, at, opened_at, params}], found (capped at 10,000), slots,
--   queued, reason?
create or replace function public.toban_claim(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_source text := p ->> 'source';
  v_queue text := p ->> 'queue';
  j public.jobs;
  s public.toban_sources;
  f jsonb;
  v_since timestamptz;
  v_until timestamptz;
  v_before timestamptz := p ->> 'opened_before';
  v_held text;
  v_run bigint;
  v_slots integer;
  v_queued integer;
  v_found integer;
  v_left integer;
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
  select * into s from public.toban_sources where source = v_source;
  if not found then
    raise exception 'there is no source %', v_source using errcode = 'TB404';
  end if;
  select * into j from public.jobs where source = v_source order by job limit 1;
  if not j.enabled then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'paused');
  end if;
  f := public.toban_filters(j, s, coalesce(p ->> 'zone', 'UTC'));
  f := f || jsonb_strip_nulls(jsonb_build_object('opened_before', v_before));
  v_since := f ->> 'since';
  v_until := f ->> 'until';
  -- One claim of a queue at a time keeps "no more than can run" true; whoever comes second has nothing to add.
  if not pg_try_advisory_xact_lock(hashtextextended('toban:claim:' || v_queue, 0)) then
    return jsonb_build_object('items', '[]'::jsonb, 'found', 0, 'reason', 'another dispatcher is claiming');
  end if;
  perform public.toban_reap(100);
  v_held := (select reason from public.toban_held(v_queue, false));
  v_slots := public.toban_slots(v_queue);
  v_queued := public.toban_queued(v_queue);
  select count(*) into v_found from (
    select from public.work_items where source = v_source and state = 'pending' and available_at <= now()
      and (f ->> 'partition' is null or partition = f ->> 'partition')
      and (v_since is null or at >= v_since) and (v_until is null or at < v_until)
      and (f ->> 'date' is null or ref ->> (f ->> 'date_column') = f ->> 'date')
      and (v_before is null or opened_at < v_before or priority > 0 or params ?| array['direct', 'model'])
    order by partition limit 10000) x;
  v_left := j.batch_limit - coalesce(
    (select r.dispatched from public.runs r where r.job = j.job and r.slot = public.toban_slot(j, now())), 0);
  v_room := least((p ->> 'limit')::integer, 2 * v_slots - v_queued, v_left);
  if v_found = 0 or v_room <= 0 or v_held is not null then
    return jsonb_build_object('items', '[]'::jsonb, 'found', v_found, 'slots', v_slots, 'queued', v_queued, 'reason',
      case when v_found = 0 then 'nothing is due' when v_slots = 0 then 'no worker listens to ' || v_queue
           when v_held is not null then 'held: ' || v_held
           when v_left <= 0 then format('the batch limit of this slot, %s, is reached', j.batch_limit)
           else 'the queue is full' end);
  end if;
  v_ids := public.toban_choose(v_source, v_queue, v_room, f);
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
    select (i ->> 'at')::timestamptz as at, (i -> 'ref' ->> s.date_column)::date as day
    from jsonb_array_elements(v_items) i
  )
  update public.runs r set
    dispatched = r.dispatched + jsonb_array_length(v_items),
    period_from = least(r.period_from, (select min(at) from taken)),
    period_to = greatest(r.period_to, (select max(at) from taken)),
    dates = coalesce((select array_agg(distinct d order by d) from (
      select unnest(r.dates)
      union select coalesce(day, (at at time zone coalesce(p ->> 'zone', 'UTC'))::date) from taken
      where coalesce(day::timestamptz, at) is not null) x (d)), '{}')
  where r.id = v_run;
  return jsonb_build_object('items', v_items, 'found', v_found, 'slots', v_slots, 'queued', v_queued);
end
$$;

-- Some claims of these runs (one element each) came to nothing: they use up no batch limit. After the items, as in a
-- claim.
create or replace function public.toban_unsend(p_runs bigint[]) returns void
language sql set search_path = '' as $$
  with held as (
    select r.id from public.runs r where r.id = any (p_runs) order by r.id for no key update
  )
  update public.runs r set dispatched = greatest(r.dispatched - c.n, 0)
  from (select id, count(*) as n from unnest(p_runs) u (id) join held using (id) group by id) c where r.id = c.id
$$;

-- Give items back unharmed: they cost no try. p: node? (all items that its workers run, and the workers go), or
-- tasks? [task ids that were claimed but could not be sent]. → released
create or replace function public.toban_release(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_released integer;
  v_unsent bigint[];
begin
  with mine as (
    select w.id, w.state from public.work_items w
    where w.state = 'processing' and w.worker in (select id from public.workers where node = p ->> 'node')
       or w.state = 'queued'
          and w.task_id in (select t::uuid from jsonb_array_elements_text(coalesce(p -> 'tasks', '[]')) t)
    order by w.source, w.key for update
  ), released as (
    update public.work_items w set
      state = 'pending', lease_until = null, available_at = least(w.available_at, now()),
      tries = case when w.state = 'processing' then greatest(w.tries - 1, 0) else w.tries end
    from mine where w.id = mine.id
    returning w.run_id, mine.state = 'queued' as unsent
  )
  select count(*), array_agg(run_id) filter (where unsent and run_id is not null) into v_released, v_unsent
    from released;
  perform public.toban_unsend(v_unsent);
  delete from public.workers where node = p ->> 'node';
  return jsonb_build_object('released', v_released);
end
$$;

-- p: id, task_id, token, worker, max_run (s), lease (s)
-- → started, attempt, tries, max_attempts, run_id, key, ref, params, at, opened_at, row, queue, timeout (s, of the
-- source's job)   or   started false, reason
-- A repeated call with the same token gets the same answer.
create or replace function public.toban_start(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  s public.toban_sources;
  v_row jsonb;
  v_due boolean;
  h record;
begin
  -- The commit does not wait for the disk (see toban_claim). A crash of the database may then forget this start: the
  -- item is queued or pending again and goes again with another task id, one try fewer counted. Should the attempt that
  -- was forgotten still run, its finish is refused: even where one attempt number is given twice, the token differs.
  perform set_config('synchronous_commit', 'off', true);
  select * into w from public.work_items where id = (p ->> 'id')::bigint for update;
  if not found then
    return jsonb_build_object('started', false, 'reason', 'the item is gone');
  end if;
  select * into strict s from public.toban_sources where source = w.source;
  if w.state = 'processing' and w.token = (p ->> 'token')::uuid then
    null;  -- the first answer was lost
  elsif w.state <> 'queued' or w.task_id is distinct from (p ->> 'task_id')::uuid then
    return jsonb_build_object(
      'started', false, 'reason', format('this message is out of date: the item is %s', w.state));
  end if;
  execute format('select to_jsonb(r), %s from %s r where %s', s.due_sql, s.watched, s.where_sql)
    into v_row, v_due using w.ref;
  if v_due is not true then
    update public.work_items set
      state = 'skipped', finished_at = now(), lease_until = null, incident_since = null, last_error_kind = 'elsewhere',
      last_error = case when v_row is null then 'the row is gone' else 'the row no longer waits' end
    where id = w.id;
    perform public.toban_note_result(w, 'skipped');
    return jsonb_build_object('started', false, 'reason', 'the row no longer waits');
  end if;
  if w.state = 'queued' then
    select * into h from public.toban_held(w.queue, true);
    if h.reason is not null then
      update public.work_items set state = 'pending', lease_until = null, available_at = h.until where id = w.id;
      perform public.toban_unsend(array[w.run_id]);
      return jsonb_build_object('started', false, 'reason', 'held: ' || h.reason);
    end if;
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
    'key', w.key, 'ref', w.ref, 'params', w.params, 'at', w.at, 'opened_at', w.opened_at, 'row', v_row,
    'queue', w.queue, 'timeout', (select extract(epoch from j.timeout) from public.jobs j
                                  where j.source = w.source order by j.job limit 1));
end
$$;

select public.toban_lock_table('queue_holds');
select public.toban_lock_down();
notify pgrst, 'reload schema';
