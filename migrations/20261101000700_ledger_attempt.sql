-- One attempt: start, then finish, retry, fail or skip.
--
-- Every function called by the program takes one jsonb object and returns one jsonb value, in one transaction.
-- Locks are taken in one order everywhere: the watched row, then the item; many in the order of their keys.

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
    v_answer := jsonb_build_object(
      'written', false, 'state', 'pending', 'reason', 'the row changed meanwhile; it goes again');
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
      incident_since = case when p_outcome = 'failed' then coalesce(w.incident_since, now()) end,
      last_error = p ->> 'error', last_error_kind = p ->> 'kind', last_traceback = p ->> 'traceback'
    where id = w.id;
    perform public.toban_note_result(w, p_outcome);
    if p_outcome = 'completed' then
      perform public.toban_mark(s, w.ref, s.completed_value, v_result -> 'row');
    else
      perform public.toban_mark_end(s, w, case p_outcome when 'failed' then s.failed_value else s.skipped_value end);
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
-- remark for a person)
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

-- A child died while it ran a task: take the item back now. p: task_id, reason. → reaped
create or replace function public.toban_lost(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.workers k using public.work_items w
    where w.task_id = (p ->> 'task_id')::uuid and w.state = 'processing' and k.id = w.worker and k.slots = 1;
  return jsonb_build_object('reaped', public.toban_reap(1, (p ->> 'task_id')::uuid, p ->> 'reason'));
end
$$;
