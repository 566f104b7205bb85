-- What the pages show.

-- p: recovered? (how many of these to list, default 20), keys? (sample keys of failed items, default 5)
-- → now, badge (how many are open), incidents [{id, kind, job_key, source, fingerprint, title, reason, details, since,
-- last_at, count, log_tail, flapping, flaps, items? [keys]}] (jobs in error, failed items by reason, overdue, the
-- rest), recovered [{the same, recovered_at, downtime (s), dismissed_by?}], channels (that fail) [{channel,
-- failing_since, error}], looked_at (when toban_monitor() last looked)
create or replace function public.toban_incidents(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  with shown as (
    select i.id, i.recovered_at, i.dismissed_at, i.kind, i.opened_at, jsonb_strip_nulls(jsonb_build_object(
      'id', i.id, 'kind', i.kind, 'job_key', i.job_key, 'source', i.source, 'fingerprint', i.fingerprint,
      'title', i.title, 'reason', i.reason, 'details', i.details, 'since', i.opened_at, 'last_at', i.last_at,
      'count', i.count, 'log_tail', i.log_tail, 'flapping', i.flaps > 0, 'flaps', i.flaps,
      'recovered_at', i.recovered_at, 'downtime', extract(epoch from i.recovered_at - i.opened_at),
      'dismissed_by', i.dismissed_by, 'dismissed_at', i.dismissed_at)) as shown
    from public.incidents i
  ), open as (
    select s.*, case s.kind when 'job' then 1 when 'items' then 2 when 'overdue' then 3 else 4 end as place
    from shown s where s.recovered_at is null and s.dismissed_at is null
  )
  select jsonb_build_object(
    'now', now(),
    'looked_at', (select ran_at from public.monitor_state),
    'badge', (select count(*) from open),
    'incidents', (select coalesce(jsonb_agg(o.shown || case when o.kind = 'items' then jsonb_build_object('items', (
        select coalesce(jsonb_agg(x.key), '[]') from (
          select w.key from public.work_items w
          where w.fingerprint = o.shown ->> 'fingerprint' and w.incident_since is not null
          order by w.incident_since desc limit coalesce((p ->> 'keys')::integer, 5)) x)) else '{}' end
        order by o.place, o.opened_at desc), '[]') from open o),
    'recovered', (select coalesce(jsonb_agg(x.shown order by x.recovered_at desc), '[]') from (
      select s.shown, s.recovered_at from shown s where s.recovered_at is not null
      order by s.recovered_at desc limit coalesce((p ->> 'recovered')::integer, 20)) x),
    'channels', (select coalesce(jsonb_agg(jsonb_build_object(
        'channel', c.channel, 'failing_since', c.failing_since, 'error', c.error) order by c.failing_since), '[]')
      from public.alert_channels c where c.failing_since is not null))
$$;

-- Every job, those that need somebody first. p: timetable? [names: jobs that the caller's program does not have are
-- left out], runs? (how many of each, default 20), durations? (default 30) → now, jobs [{job_key, title, kind (beat,
-- reported), state, since, overdue?, paused, status?, message?, fails, exit_code?, log_tail?, last_run_at?,
-- last_finished_at?, running_since?, next_due_at?, wanted, durations [s, the oldest first], runs [{slot, state,
-- started_at, seconds, period_from, period_to, dates, filters, found, dispatched, finished, failed, skipped, message}]
-- (the newest first; of reported jobs slot, state, started_at, seconds, exit_code, message), settings {every, grace,
-- fail_after, and of a beat job enabled, at, zone, filters, batch_limit, timeout, source}}]
create or replace function public.toban_job_states(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('now', now(), 'jobs', coalesce(jsonb_agg(
    jsonb_strip_nulls(jsonb_build_object(
      'job_key', j.job_key, 'title', j.title, 'kind', j.kind, 'state', j.state,
      'since', case when w.state = j.state then w.state_since else now() end, 'overdue', j.overdue,
      'paused', j.paused, 'status', j.status, 'message', j.message, 'fails', j.fails, 'exit_code', j.exit_code,
      'log_tail', j.log_tail, 'last_run_at', j.started_at, 'last_finished_at', j.finished_at,
      'running_since', j.running_since, 'next_due_at', case when not j.paused then j.due_at end,
      'wanted', b.wanted_at is not null))
    || jsonb_build_object(
      'durations', coalesce(t.durations, r.durations, '[]'), 'runs', coalesce(t.runs, r.runs, '[]'),
      'settings', jsonb_build_object('every', extract(epoch from j.every), 'grace', extract(epoch from j.grace),
        'fail_after', j.fail_after)
        || case when b.job is null then '{}' else jsonb_build_object(
          'enabled', b.enabled, 'at', extract(epoch from b.at), 'zone', b.zone, 'filters', b.filters,
          'batch_limit', b.batch_limit, 'timeout', extract(epoch from b.timeout), 'source', b.source) end)
    order by not (j.failing or j.overdue is not null), j.kind, j.title, j.job_key), '[]'))
  from public.toban_watched(p -> 'timetable') j
  left join public.job_watch w on w.job_key = j.job_key
  left join public.jobs b on b.job = j.job_key
  left join lateral (
    select jsonb_agg(x.seconds order by x.slot) filter (where x.seconds is not null) as durations,
      jsonb_agg(jsonb_build_object('slot', x.slot, 'state', x.state, 'started_at', x.started_at, 'seconds', x.seconds,
        'period_from', x.period_from, 'period_to', x.period_to, 'dates', x.dates, 'filters', x.filters,
        'found', x.found, 'dispatched', x.dispatched, 'finished', x.finished, 'failed', x.failed,
        'skipped', x.skipped, 'message', x.message) order by x.slot desc)
        filter (where x.n <= coalesce((p ->> 'runs')::integer, 20)) as runs
    from (
      select r.*, extract(epoch from r.finished_at - r.started_at) as seconds,
             row_number() over (order by r.slot desc) as n
      from public.runs r where r.job = b.job
      order by r.slot desc limit greatest(coalesce((p ->> 'runs')::integer, 20),
                                          coalesce((p ->> 'durations')::integer, 30))) x) t on b.job is not null
  left join lateral (
    select jsonb_agg(x.seconds order by x.id) filter (where x.seconds is not null) as durations,
      jsonb_agg(jsonb_build_object('slot', coalesce(x.started_at, x.finished_at), 'state', x.status,
        'started_at', x.started_at, 'seconds', x.seconds, 'exit_code', x.exit_code, 'message', x.message)
        order by x.id desc) filter (where x.n <= coalesce((p ->> 'runs')::integer, 20)) as runs
    from (
      select r.*, extract(epoch from r.finished_at - r.started_at) as seconds,
             row_number() over (order by r.id desc) as n
      from public.job_reports r where r.job_key = j.job_key
      order by r.id desc limit greatest(coalesce((p ->> 'runs')::integer, 20),
                                        coalesce((p ->> 'durations')::integer, 30))) x) r on b.job is null
  where not j.retired
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
