-- What people do about it. Each action is written down with its name when the caller gives one (`who`).

create or replace function public.toban_audit(p jsonb, p_what text, p_target text, p_details jsonb default '{}')
returns void
language sql set search_path = '' as $$
  insert into public.audit_log (who, what, target, details)
  select p ->> 'who', p_what, p_target, coalesce(jsonb_strip_nulls(p_details), '{}') where p ->> 'who' is not null
$$;

create or replace function public.toban_require_job(p_job text) returns void
language plpgsql stable set search_path = '' as $$
begin
  if not exists (select from public.jobs where job = p_job) then
    raise exception 'there is no job %; the jobs are %', p_job,
      (select string_agg(job, ', ' order by job) from public.jobs) using errcode = 'TB404';
  end if;
end
$$;

-- Change a job; what is not named stays. p: job, and any of enabled, every (s), at (s), zone, batch_limit, timeout (s)
-- and filters {name: value}; null takes a limit, a timeout or a filter away; who? → edited
create or replace function public.toban_edit_job(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  j public.jobs;
  n public.jobs;
begin
  perform public.toban_require_job(p ->> 'job');
  select * into j from public.jobs where job = p ->> 'job' for no key update;
  update public.jobs set
    enabled = coalesce((p ->> 'enabled')::boolean, enabled),
    every = coalesce((p ->> 'every')::numeric * interval '1 s', every),
    at = coalesce((p ->> 'at')::numeric * interval '1 s', at),
    zone = coalesce(p ->> 'zone', zone),
    batch_limit = case when p ? 'batch_limit' then (p ->> 'batch_limit')::integer else batch_limit end,
    timeout = case when p ? 'timeout' then (p ->> 'timeout')::numeric * interval '1 s' else timeout end,
    filters = jsonb_strip_nulls(filters || coalesce(p -> 'filters', '{}')),
    updated_at = now()
  where job = j.job returning * into n;
  -- What changed: {column: [before, after]}.
  perform public.toban_audit(p, 'edit job', j.job, (
    select jsonb_object_agg(b.key, jsonb_build_array(b.value, a.value))
    from jsonb_each(to_jsonb(j) - 'updated_at') b join jsonb_each(to_jsonb(n)) a using (key)
    where a.value is distinct from b.value));
  return jsonb_build_object('edited', true);
end
$$;

-- What is expected of a job: of one outside, or beside its own row of one of the timetable. p: job_key, and any of
-- every (s; of jobs outside), grace (s), fail_after, paused; null takes what was said before away; who? → edited
create or replace function public.toban_edit_watch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_key text := p ->> 'job_key';
begin
  if not exists (select from public.jobs where job = v_key)
     and not exists (select from public.job_status where job_key = v_key)
     and not exists (select from public.job_watch where job_key = v_key) then
    raise exception 'there is no job %', v_key using errcode = 'TB404';
  elsif p ? 'every' and exists (select from public.jobs where job = v_key) then
    raise exception 'the schedule of % is its own row''s: edit the job', v_key using errcode = 'TB400';
  elsif (p ->> 'every')::numeric <= 0 or (p ->> 'grace')::numeric < 0 or (p ->> 'fail_after')::integer < 1 then
    raise exception 'every has to be more than 0, grace at least 0, fail_after at least 1' using errcode = 'TB400';
  end if;
  insert into public.job_watch (job_key) values (v_key) on conflict do nothing;
  update public.job_watch set
    every = case when p ? 'every' then (p ->> 'every')::numeric * interval '1 s' else every end,
    grace = case when p ? 'grace' then (p ->> 'grace')::numeric * interval '1 s' else grace end,
    fail_after = case when p ? 'fail_after' then (p ->> 'fail_after')::integer else fail_after end,
    changed_at = case when p ? 'every' or paused and not (p ->> 'paused')::boolean then now() else changed_at end,
    paused = coalesce((p ->> 'paused')::boolean, paused)
  where job_key = v_key;
  perform public.toban_audit(p, 'edit watch', v_key, p - 'job_key' - 'who');
  return jsonb_build_object('edited', true);
end
$$;

-- p: job (of the timetable, or one outside), paused, who? → paused
create or replace function public.toban_pause(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_paused boolean := (p ->> 'paused')::boolean;
begin
  if exists (select from public.jobs where job = p ->> 'job') then
    update public.jobs set enabled = not v_paused, updated_at = now() where job = p ->> 'job';
  else
    perform public.toban_edit_watch(jsonb_build_object('job_key', p ->> 'job', 'paused', v_paused));
  end if;
  perform public.toban_audit(p, case when v_paused then 'pause' else 'resume' end, p ->> 'job');
  return jsonb_build_object('paused', v_paused);
end
$$;

-- The job's next tick runs, whatever its schedule says; the next heartbeat sends one. p: job, who? → wanted
create or replace function public.toban_run_now(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  perform public.toban_require_job(p ->> 'job');
  -- (Without a last slot it is overdue at once, so that it need not wait for beat.)
  update public.jobs set wanted_at = now(), last_slot = null, nudged_at = null where job = p ->> 'job' and enabled;
  if not found then
    raise exception 'the job % is paused', p ->> 'job' using errcode = 'TB400';
  end if;
  perform public.toban_audit(p, 'run now', p ->> 'job');
  return jsonb_build_object('wanted', true);
end
$$;

-- May this tick run? One run a slot, whoever asks first; a run that a person wants is one beside the slots. p: job,
-- worker, lease (s: a run without an end after this is lost, and its slot may run again) → run true, run_id, slot   or
-- run false, reason
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
  if j.wanted_at is null and not j.catch_up and now() > v_slot + least(j.every, interval '2 min') then
    -- Noted as if it had run, so that heartbeats do not call it overdue again and again.
    update public.jobs set last_slot = greatest(last_slot, v_slot), nudged_at = null where job = j.job;
    return jsonb_build_object('run', false, 'reason', 'its moment has passed');
  end if;
  -- The lock on the job's row makes this the one place that decides. A run that was lost on the way may go again.
  if j.wanted_at is null and j.last_slot >= v_slot and not exists (
    select from public.runs r where r.job = j.job and r.slot = v_slot
      and r.state in ('running', 'lost') and r.lease_until < now())
  then
    return jsonb_build_object('run', false, 'reason', 'this slot has run');
  end if;
  insert into public.runs as r (job, slot, worker, filters, lease_until)
  values (j.job, case when j.wanted_at is null then v_slot else now() end, p ->> 'worker', j.filters,
          now() + (p ->> 'lease')::numeric * interval '1 s')
  -- A claim that came before, or a run that was lost.
  on conflict (job, slot) do update set
    worker = excluded.worker, lease_until = excluded.lease_until, state = 'running', finished_at = null, message = null,
    started_at = now()
  returning id, slot into v_run, v_slot;
  update public.jobs set last_slot = public.toban_slot(j, now()), last_started_at = now(), nudged_at = null,
    wanted_at = null where job = j.job;
  return jsonb_build_object('run', true, 'run_id', v_run, 'slot', v_slot);
end
$$;

-- Ask for items again. p: source, keys, who? → as toban_reprocess()
create or replace function public.toban_retry_items(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_done jsonb := public.toban_reprocess(jsonb_build_object('source', p -> 'source', 'keys', p -> 'keys'));
begin
  perform public.toban_audit(p, 'retry', p ->> 'source', jsonb_build_object('keys', p -> 'keys'));
  return v_done;
end
$$;

-- Ask again for all that failed for one reason, the oldest first. p: source, fingerprint, limit? (default 5000), who?
-- → as toban_reprocess(), and more (call again)
create or replace function public.toban_retry_reason(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 5000);
  v_keys text[] := array(
    select w.key from public.work_items w
    where w.fingerprint = p ->> 'fingerprint' and w.source = p ->> 'source' and w.incident_since is not null
      and w.state = 'failed' order by w.incident_since limit v_limit);
  v_done jsonb := '{"matched": 0, "opened": 0, "waiting": 0, "running": 0}';
begin
  if v_keys <> '{}' then
    v_done := public.toban_reprocess(jsonb_build_object('source', p -> 'source', 'keys', to_jsonb(v_keys)));
  end if;
  perform public.toban_audit(p, 'retry all', p ->> 'fingerprint', v_done);
  return v_done || jsonb_build_object('more', cardinality(v_keys) = v_limit);
end
$$;

-- Settle an incident by hand. p: incident (its id), or source and key of one failed item; who? → dismissed. Failed
-- items stay failed, and are no incident any more. Anything else stays dismissed until its cause ends, or it fails
-- again.
create or replace function public.toban_dismiss(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  i public.incidents;
begin
  if p ? 'incident' then
    select * into i from public.incidents where id = (p ->> 'incident')::bigint for update;
    if not found then
      raise exception 'there is no incident %', p ->> 'incident' using errcode = 'TB404';
    elsif i.recovered_at is not null or i.dismissed_at is not null then
      return jsonb_build_object('dismissed', false);
    end if;
  end if;
  if not p ? 'incident' or i.kind = 'items' then
    with mine as (
      select w.id from public.work_items w
      where w.incident_since is not null
        and case when i.id is null then w.source = p ->> 'source' and w.key = p ->> 'key'
            else w.fingerprint = i.fingerprint end
      order by w.source, w.key for update
    )
    update public.work_items w set incident_since = null from mine where w.id = mine.id;
    if not found and i.id is null then
      raise exception 'there is no failed item % of %', p ->> 'key', p ->> 'source' using errcode = 'TB404';
    end if;
    perform public.toban_report(jsonb_build_object('jobs', (
      select coalesce(jsonb_agg(j.job), '[]') from public.jobs j where j.source = coalesce(i.source, p ->> 'source'))));
  end if;
  update public.incidents set dismissed_at = now(), dismissed_by = p ->> 'who',
    recovered_at = case when kind = 'items' then now() end
  where id = i.id;
  perform public.toban_audit(p, 'dismiss', coalesce(i.fingerprint, format('%s %s', p ->> 'source', p ->> 'key')),
    jsonb_build_object('title', i.title, 'reason', i.reason));
  return jsonb_build_object('dismissed', true);
end
$$;

-- Forget a job outside that is no more. p: job_key, who? → forgotten
create or replace function public.toban_forget_job(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_forgotten boolean;
begin
  if exists (select from public.jobs where job = p ->> 'job_key') then
    raise exception 'the job % is of the timetable: pause it', p ->> 'job_key' using errcode = 'TB400';
  end if;
  delete from public.job_reports where job_key = p ->> 'job_key';
  delete from public.job_watch where job_key = p ->> 'job_key';
  v_forgotten := found;
  delete from public.job_status where job_key = p ->> 'job_key';
  v_forgotten := v_forgotten or found;
  -- Nobody is told of a recovery.
  update public.incidents set dismissed_at = now(), dismissed_by = p ->> 'who', recovered_at = now()
    where job_key = p ->> 'job_key' and recovered_at is null;
  perform public.toban_audit(p, 'forget job', p ->> 'job_key');
  return jsonb_build_object('forgotten', v_forgotten);
end
$$;

-- The latest entries of the audit log. p: limit? (default 50), before? (an id), target? → entries [{id, at, who, what,
-- target, details}]
create or replace function public.toban_audited(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('entries', coalesce(jsonb_agg(to_jsonb(x) order by x.id desc), '[]')) from (
    select a.* from public.audit_log a
    where (p ->> 'before' is null or a.id < (p ->> 'before')::bigint)
      and (p ->> 'target' is null or a.target = p ->> 'target')
    order by a.id desc limit coalesce((p ->> 'limit')::integer, 50)) x
$$;

-- Upkeep: forget what is old. p: days, audit_days, limit? (default 10000) → incidents, alerts, reports, entries, more
-- (call again)
create or replace function public.toban_upkeep_monitor(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_before timestamptz := now() - (p ->> 'days')::integer * interval '1 day';
  v_incidents integer;
  v_alerts integer;
  v_reports integer;
  v_entries integer;
begin
  delete from public.incidents where id in (
    select id from public.incidents where recovered_at < v_before order by recovered_at limit v_limit
    for update skip locked);  -- its messages go with it
  get diagnostics v_incidents = row_count;
  delete from public.alerts where id in (
    select id from public.alerts where created_at < v_before and coalesce(sent_at, cancelled_at) is not null
    order by id limit v_limit for update skip locked);
  get diagnostics v_alerts = row_count;
  delete from public.job_reports where id in (
    select id from public.job_reports where reported_at < v_before order by id limit v_limit for update skip locked);
  get diagnostics v_reports = row_count;
  delete from public.audit_log where id in (
    select id from public.audit_log where at < now() - (p ->> 'audit_days')::integer * interval '1 day'
    order by id limit v_limit for update skip locked);
  get diagnostics v_entries = row_count;
  -- A beat that is no more, though not the last one that was known; a channel that nobody uses any more.
  delete from public.beats where ticked_at < now() - interval '1 day'
    and beat <> (select beat from public.beats order by ticked_at desc limit 1);
  delete from public.alert_channels where used_at < now() - interval '7 days';
  return jsonb_build_object('incidents', v_incidents, 'alerts', v_alerts, 'reports', v_reports, 'entries', v_entries,
    'more', greatest(v_incidents, v_alerts, v_reports, v_entries) >= v_limit);
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
