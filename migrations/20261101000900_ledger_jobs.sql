-- Jobs: when their slots begin, and one run for each.

-- The newest slot of a job that has begun at p_now: multiples of `every` in the wall-clock time of the job's zone.
create or replace function public.toban_slot(j public.jobs, p_now timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
  select (date_bin(j.every, (p_now at time zone j.zone) - j.at, timestamp '2000-01-03') + j.at) at time zone j.zone
$$;

-- Rows of jobs are edited by people. What is wrong is refused with a reason while they look, instead of stopping the
-- job's source later.
create or replace function public.toban_check_job() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_key text;
  v_value jsonb;
  v_wrong text;
begin
  if extract(year from new.every) <> 0 or extract(month from new.every) <> 0 then
    v_wrong := format('every is %s, but months and years are not all of one length: use days, hours, …', new.every);
  elsif new.every < interval '1 s' or not isfinite(new.every) then
    v_wrong := format('every is %s, but has to be at least 1 second', new.every);
  elsif extract(year from new.at) <> 0 or extract(month from new.at) <> 0
        or new.at < interval '0' or new.at >= new.every then
    v_wrong := format('at is %s, but has to be at least 0 and less than every (%s)', new.at, new.every);
  -- (The list of zones is read from files: only for a zone that is new.)
  elsif not exists (select from public.jobs where job = new.job and zone = new.zone)
        and not exists (select from pg_catalog.pg_timezone_names where lower(name) = lower(new.zone)) then
    v_wrong := format('there is no time zone %s; one is called Asia/Tokyo', new.zone);
  elsif jsonb_typeof(new.filters) <> 'object' then
    v_wrong := 'filters have to be an object, {} for none';
  else
    for v_key, v_value in select * from jsonb_each(new.filters) loop
      if v_key not in ('partition', 'since', 'until') then
        v_wrong := format('there is no filter %s, only partition, since and until', v_key);
      elsif jsonb_typeof(v_value) <> 'string' then
        v_wrong := format('the filter %s has to be a text, not %s', v_key, v_value);
      elsif v_key <> 'partition' then
        begin
          perform (v_value #>> '{}')::timestamptz;
        exception when data_exception then
          v_wrong := format('the filter %s has to be a moment like 2025-07-18T03:00:00Z, not %s', v_key, v_value);
        end;
      end if;
    end loop;
  end if;
  if v_wrong is not null then
    raise exception 'job %: %', new.job, v_wrong using errcode = 'check_violation';
  end if;
  return new;
end
$$;
create or replace trigger toban_check_job before insert or update of every, at, zone, filters on public.jobs
  for each row execute function public.toban_check_job();

-- p: jobs [{job, title, source, every (s), at (s), zone, catch_up}]. New jobs are added; of known ones only title and
-- source follow, because the rest may have been edited. → jobs
create or replace function public.toban_sync_jobs(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  with synced as (
    insert into public.jobs as j (job, title, source, every, at, zone, catch_up)
    select e ->> 'job', e ->> 'title', e ->> 'source', (e ->> 'every')::numeric * interval '1 s',
           coalesce((e ->> 'at')::numeric, 0) * interval '1 s', coalesce(e ->> 'zone', 'UTC'),
           coalesce((e ->> 'catch_up')::boolean, true)
    from jsonb_array_elements(p -> 'jobs') e order by 1
    on conflict (job) do update set title = excluded.title, source = excluded.source, updated_at = now()
      where (j.title, j.source) is distinct from (excluded.title, excluded.source)
    returning 1
  )
  select jsonb_build_object('jobs', count(*)) from synced
$$;

-- May this tick run? One run a slot, whoever asks first. p: job, worker, lease (s: a run without an end after this is
-- lost, and its slot may run again) → run true, run_id, slot   or   run false, reason
create or replace function public.toban_begin_run(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  j public.jobs;
  v_slot timestamptz;
  v_run bigint;
begin
  -- Not `for update`: a claim that enters a run of this job looks the job up for its foreign key.
  select * into j from public.jobs where job = p ->> 'job' for no key update;
  if not found then
    return jsonb_build_object('run', false, 'reason', format('there is no job %s', p ->> 'job'));
  elsif not j.enabled then
    return jsonb_build_object('run', false, 'reason', 'paused');
  end if;
  v_slot := public.toban_slot(j, now());
  if not j.catch_up and now() > v_slot + least(j.every, interval '2 min') then
    -- Noted as if it had run, so that heartbeats do not call it overdue again and again.
    update public.jobs set last_slot = greatest(last_slot, v_slot), nudged_at = null where job = j.job;
    return jsonb_build_object('run', false, 'reason', 'its moment has passed');
  end if;
  -- The lock on the job's row makes this the one place that decides. A run that was lost on the way may go again.
  if j.last_slot >= v_slot and not exists (
    select from public.runs r where r.job = j.job and r.slot = v_slot
      and r.state in ('running', 'lost') and r.lease_until < now())
  then
    return jsonb_build_object('run', false, 'reason', 'this slot has run');
  end if;
  insert into public.runs as r (job, slot, worker, filters, lease_until)
  values (j.job, v_slot, p ->> 'worker', j.filters, now() + (p ->> 'lease')::numeric * interval '1 s')
  -- A claim that came before, or a run that was lost.
  on conflict (job, slot) do update set
    worker = excluded.worker, lease_until = excluded.lease_until, state = 'running', finished_at = null, message = null
  returning id into v_run;
  update public.jobs set last_slot = v_slot, last_started_at = now(), nudged_at = null where job = j.job;
  return jsonb_build_object('run', true, 'run_id', v_run, 'slot', v_slot);
end
$$;

-- p: run_id, worker? (whoever began it; a run that was lost may belong to another by now), status, message?, summary (of
-- any shape, kept in jobs), keep (false: a run that did nothing leaves no row; last_slot remembers that it ran) → ended
create or replace function public.toban_end_run(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  r public.runs;
begin
  -- The job before its run, as in begin_run.
  perform from public.jobs where job = (select job from public.runs where id = (p ->> 'run_id')::bigint)
    for no key update;
  update public.runs set
    state = p ->> 'status', finished_at = now(), message = p ->> 'message'
  where id = (p ->> 'run_id')::bigint and state = 'running' and worker = coalesce(p ->> 'worker', worker)
  returning * into r;
  if not found then
    return jsonb_build_object('ended', false);
  end if;
  update public.jobs set last_finished_at = now(), last_status = p ->> 'status', last_message = p ->> 'message',
    last_summary = p -> 'summary' where job = r.job;
  if (p ->> 'keep')::boolean is false and p ->> 'status' = 'success' and r.dispatched = 0 then
    delete from public.runs where id = r.id;
  end if;
  return jsonb_build_object('ended', true);
end
$$;
