-- What a worker's parent process tells: a child that died, and that it can't work at all.

-- A child died while it ran a task: take the item back now. p: task_id, reason, params? (for its next try) → reaped
create or replace function public.toban_lost(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.workers k using public.work_items w
    where w.task_id = (p ->> 'task_id')::uuid and w.state = 'processing' and k.id = w.worker and k.slots = 1;
  if p ? 'params' then
    update public.work_items set params = params || (p -> 'params')
      where task_id = (p ->> 'task_id')::uuid and state = 'processing';
  end if;
  return jsonb_build_object('reaped', public.toban_reap(1, (p ->> 'task_id')::uuid, p ->> 'reason'));
end
$$;

-- A worker of these queues refuses to start, or (without a reason) has started: an incident, and its end.
-- p: queues, node, reason? → incidents: how many were opened or closed
create or replace function public.toban_worker_trouble(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_count integer;
begin
  if p ->> 'reason' is null then
    update public.job_status set last_status = 'success', last_finished_at = now(), updated_at = now(),
        last_message = format('%s has started', p ->> 'node')
      where last_status = 'error' and job_key in (
        select 'worker-' || q from jsonb_array_elements_text(p -> 'queues') q);
  else
    insert into public.job_status as t (job_key, title, last_status, last_finished_at, last_message)
    select 'worker-' || q, format('Worker of the queue %s', q), 'error', now(),
           format('%s can''t start: %s', p ->> 'node', p ->> 'reason')
      from jsonb_array_elements_text(p -> 'queues') q order by q
    on conflict (job_key) do update set title = excluded.title, last_status = 'error', updated_at = now(),
      last_finished_at = excluded.last_finished_at, last_message = excluded.last_message;
  end if;
  get diagnostics v_count = row_count;
  return jsonb_build_object('incidents', v_count);
end
$$;

-- What is in error and no job of the timetable: workers that can't start, scripts that report for themselves.
-- → incidents [{job_key, title, since, message}]
create or replace function public.toban_other_incidents(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('incidents', coalesce(jsonb_agg(jsonb_build_object(
    'job_key', t.job_key, 'title', t.title, 'since', t.last_finished_at, 'message', t.last_message)
    order by t.last_finished_at desc), '[]'))
  from public.job_status t
  where t.last_status = 'error' and not exists (select from public.jobs j where j.job = t.job_key)
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
