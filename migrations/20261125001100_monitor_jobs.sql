-- Jobs as they stand: those of the timetable, and those outside that report themselves.

-- How long after it was due a job counts as missed, when nobody has said so. A tick comes once a minute at the latest,
-- and with beat dead the workers send it after half of `every`.
create or replace function public.toban_grace(p_every interval) returns interval
language sql immutable set search_path = '' as $$
  select least(greatest(p_every / 2, least(p_every, interval '1 min') + interval '35 s'), interval '1 hour')
$$;

-- The first slot of a job that begins after p_after.
create or replace function public.toban_next_slot(j public.jobs, p_after timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
  select (date_bin(j.every, (p_after at time zone j.zone) - j.at, timestamp '2000-01-03') + j.at + j.every)
         at time zone j.zone
$$;

-- One row a job. p_timetable: the names of the jobs that the caller's program has, null: all rows of jobs are.
--   state    ok, running, late, missed, overran, failed, paused
--   overdue  missed or overran, also where state says something that matters more
--   failing  its last runs failed, as many in a row as make an incident
create or replace function public.toban_watched(p_timetable jsonb default null) returns table (
  job_key text, kind text, title text, state text, overdue text, failing boolean, paused boolean,
  every interval, grace interval, fail_after integer, fails integer, failing_since timestamptz,
  started_at timestamptz, finished_at timestamptz, running_since timestamptz, due_at timestamptz,
  status text, message text, exit_code integer, log_tail text, retired boolean)
language sql stable set search_path = '' as $$
  with known as (
    select j.job as job_key, 'beat' as kind, j.title, not j.enabled or coalesce(w.paused, false) as paused,
      j.every, coalesce(w.grace, public.toban_grace(j.every)) as grace, coalesce(w.fail_after, 1) as fail_after,
      case when j.last_status = 'error' then greatest(coalesce(w.fails_in_row, 0), 1) else 0 end as fails,
      coalesce(w.failing_since, j.last_finished_at) as failing_since,
      j.last_started_at as started_at, j.last_finished_at as finished_at, r.started_at as running_since,
      public.toban_next_slot(j, greatest(coalesce(j.last_slot, j.created_at), w.changed_at)) as due_at,
      -- A tick comes somewhere inside its slot.
      least(j.every, interval '1 min') + interval '15 s' as tolerance,
      greatest(j.every, interval '1 min') as longest,
      j.last_status as status, j.last_message as message, null::integer as exit_code, null::text as log_tail,
      coalesce(not p_timetable ? j.job, false) as retired
    from public.jobs j
    left join public.job_watch w on w.job_key = j.job
    left join lateral (
      select r.started_at from public.runs r
      where r.job = j.job and r.state = 'running' and r.lease_until > now() order by r.slot desc limit 1) r on true
    union all
    select k.job_key, 'reported', coalesce(s.title, w.title, k.job_key), coalesce(w.paused, false),
      w.every, coalesce(w.grace, public.toban_grace(w.every)), coalesce(w.fail_after, 1),
      case when s.last_status = 'error' then greatest(coalesce(w.fails_in_row, 0), 1) else 0 end,
      coalesce(w.failing_since, s.last_finished_at),
      w.last_started_at, least(greatest(w.last_finished_at, s.last_finished_at), now()), r.started_at,
      greatest(coalesce(w.last_started_at, least(s.last_finished_at, now())), w.changed_at) + w.every,
      least(coalesce(w.grace, public.toban_grace(w.every)) / 2, interval '1 min'),
      coalesce(w.every, interval '1 day'),
      s.last_status, s.last_message, w.exit_code, w.log_tail, false
    from (
      select w.job_key from public.job_watch w
      union
      -- Workers and queues in trouble have rows of this kind too, and are incidents of other kinds.
      select s.job_key from public.job_status s where s.job_key !~ '^(worker|queue)-'
    ) k
    left join public.job_watch w using (job_key)
    left join public.job_status s using (job_key)
    left join lateral (
      select r.started_at from public.job_reports r
      where r.job_key = k.job_key and r.status = 'running'
        and r.started_at >= coalesce(w.last_started_at, '-infinity') order by r.id desc limit 1) r on true
    where not exists (select from public.jobs j where j.job = k.job_key)
      and (w.run_id is not null or w.last_started_at is not null or s.job_key is not null)
  ), judged as (
    select k.*,
      case when k.paused then null
           when now() > k.running_since + k.longest + coalesce(k.grace, interval '0') then 'overran'
           when k.running_since is null and now() > k.due_at + k.grace then 'missed' end as overdue,
      not k.paused and k.fails >= k.fail_after as failing
    from known k
  )
  select j.job_key, j.kind, j.title,
    case when j.paused then 'paused' when j.overdue is not null then j.overdue
         when j.running_since is not null then 'running' when j.failing then 'failed'
         when now() > j.due_at + j.tolerance then 'late' else 'ok' end,
    j.overdue, j.failing, j.paused, j.every, j.grace, j.fail_after, j.fails, j.failing_since,
    j.started_at, j.finished_at, j.running_since, j.due_at, j.status, j.message, j.exit_code, j.log_tail, j.retired
  from judged j
$$;

-- What a job outside says of itself. p: job_key, title, status (success, error; running: it has started), finished_at
-- (not for running), and any of message, tool_id, run_id (pairs start and finish; the same finish told twice counts
-- once), started_at, exit_code, log (its last lines), expect_every, grace (s), fail_after → id, job_key
-- job_status has finished states only, so a start leaves it alone (id is null for one that has never finished).
create or replace function public.toban_job_report(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_key text := p ->> 'job_key';
  v_run text := p ->> 'run_id';
  v_status text := p ->> 'status';
  v_started timestamptz := p ->> 'started_at';
  v_finished timestamptz := p ->> 'finished_at';
  v_id uuid;
  r public.job_reports;
begin
  -- Reports of one job one after the other.
  insert into public.job_watch as w (job_key, title) values (v_key, p ->> 'title')
    on conflict (job_key) do update set title = excluded.title;
  select * into r from public.job_reports
    where job_key = v_key and (run_id = v_run or v_run is null and run_id is null and status = 'running')
    order by id desc limit 1;
  if v_status = 'running' then
    if r.id is null then
      insert into public.job_reports (job_key, run_id, status, started_at)
      values (v_key, v_run, 'running', least(coalesce(v_started, now()), now()));
    end if;  -- else its finish was here first, or this was told twice
    select id into v_id from public.job_status where job_key = v_key;
  else
    if r.id is null then
      insert into public.job_reports (job_key, run_id, status, started_at, finished_at, exit_code, message)
      values (v_key, v_run, v_status, v_started, v_finished, (p ->> 'exit_code')::integer, p ->> 'message');
    else
      update public.job_reports set status = v_status, started_at = coalesce(v_started, started_at),
        finished_at = v_finished, exit_code = (p ->> 'exit_code')::integer, message = p ->> 'message'
      where id = r.id;
    end if;
    insert into public.job_status as t (job_key, title, tool_id, last_status, last_finished_at, last_message)
    values (v_key, p ->> 'title', (p ->> 'tool_id')::uuid, v_status, v_finished, p ->> 'message')
    on conflict (job_key) do update set title = excluded.title, last_status = excluded.last_status,
      tool_id = case when p ? 'tool_id' then excluded.tool_id else t.tool_id end,
      last_finished_at = excluded.last_finished_at, last_message = excluded.last_message, updated_at = now()
    returning id into v_id;
  end if;
  update public.job_watch w set
    every = coalesce((p ->> 'expect_every')::numeric * interval '1 s', w.every),
    grace = coalesce((p ->> 'grace')::numeric * interval '1 s', w.grace),
    fail_after = coalesce((p ->> 'fail_after')::integer, w.fail_after),
    run_id = coalesce(v_run, w.run_id),
    -- A clock that goes fast must not make a job look as if it were not due for hours.
    last_started_at = least(greatest(w.last_started_at, coalesce(v_started, r.started_at,
                        case when v_status = 'running' then now() else v_finished end)), now()),
    last_finished_at = case when v_status = 'running' then w.last_finished_at else least(v_finished, now()) end,
    exit_code = case when v_status = 'running' then w.exit_code else (p ->> 'exit_code')::integer end,
    log_tail = case when v_status = 'running' then w.log_tail else p ->> 'log' end,
    fails_in_row = case v_status when 'running' then w.fails_in_row when 'success' then 0
                   else w.fails_in_row + (r.status is distinct from 'error')::integer end,
    failing_since = case v_status when 'running' then w.failing_since
                    when 'error' then coalesce(w.failing_since, least(v_finished, now())) end
  where job_key = v_key;
  return jsonb_build_object('id', v_id, 'job_key', v_key);
end
$$;

-- A beat has sent ticks. p: beat (its name), node, pid → ticked_at
create or replace function public.toban_beat(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  insert into public.beats as b (beat, node, pid) values (p ->> 'beat', p ->> 'node', (p ->> 'pid')::integer)
  on conflict (beat) do update set node = excluded.node, pid = excluded.pid, ticked_at = now()
  returning jsonb_build_object('ticked_at', b.ticked_at)
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
