-- Shared by all that moves an item: locks, marks, counts; and what becomes of items that nobody looks after any more.
--
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

-- Mark the row of an item that failed or was skipped, and note in the item whether it could be done: an app whose column
-- allows no such value keeps its row as it is, and the item says how it ended.
create or replace function public.toban_mark_end(s public.toban_sources, w public.work_items, p_status text)
returns void
language plpgsql set search_path = '' as $$
declare
  v_marked boolean := false;
begin
  begin
    v_marked := public.toban_mark(s, w.ref, p_status, null);
  exception when others then
    null;
  end;
  update public.work_items set marked = v_marked where id = w.id;
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

-- Note how an item's claim ended for the counts of its run.
create or replace function public.toban_note_result(w public.work_items, p_state text) returns void
language sql set search_path = '' as $$
  insert into public.run_results (run_id, item_id, claim_no, state)
  select w.run_id, w.id, w.claim_no, p_state where w.run_id is not null
  on conflict do nothing
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
        state = 'failed', finished_at = now(), lease_until = null,
        incident_since = coalesce(incident_since, now()),
        last_error = format('given up after %s of %s tries: %s', w.tries, w.max_attempts, v_reason),
        last_error_kind = 'lost'
      where id = w.id;
      perform public.toban_note_result(w, 'failed');
      perform public.toban_mark_end(s, w, s.failed_value);
    end if;
    v_reaped := v_reaped + 1;
  end loop;
  return v_reaped;
end
$$;
