-- What is wrong now, and the look that makes incidents of it.

-- Moments and durations as the reasons of incidents say them.
create or replace function public.toban_utc(p_at timestamptz) returns text
language sql stable set search_path = '' as $$
  select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')
$$;
create or replace function public.toban_words(p_span interval) returns text
language sql immutable set search_path = '' as $$
  select case when s >= 172800 or s = 86400 then round(s / 86400) || ' d'
              when s >= 7200 or s = 3600 then round(s / 3600) || ' h'
              when s >= 120 or s = 60 then round(s / 60) || ' min' else round(s) || ' s' end
  from extract(epoch from p_span) s
$$;

-- Everything that is wrong at this moment. p: as for toban_monitor()
create or replace function public.toban_troubles(p jsonb) returns table (
  fingerprint text, kind text, job_key text, source text, title text, reason text, details jsonb, log_tail text,
  since timestamptz, last_at timestamptz, count integer, settle interval)
language sql stable set search_path = '' as $$
  with watched as (
    select * from public.toban_watched(p -> 'timetable')
  ), dispatchers as (
    select distinct on (j.source) j.source, j.job, j.title from public.jobs j order by j.source, j.job
  ), queues as (
    select q.queue, q.alive_at, waiting.n as waiting, waiting.oldest,
      q.queue = 'default' and exists (select from watched j where j.kind = 'beat' and not j.paused and not j.retired)
        as ticks
    from public.queue_watch q
    cross join lateral (
      -- (capped: how many there are is told elsewhere)
      select count(*) as n, min(x.since) as oldest from (
        (select greatest(w.available_at, w.opened_at) as since from public.work_items w
         where w.source = any (q.sources) and w.state = 'pending' and w.available_at < now() - interval '30 s'
         order by w.source, w.partition limit 1000)
        union all
        (select w.opened_at from public.work_items w where w.queue = q.queue and w.state = 'queued' limit 1000)) x
      ) waiting
    where q.alive_at < now() - interval '60 s'
  ), beat as (
    select coalesce(max(b.ticked_at), (select min(j.created_at) from public.jobs j)) as ticked_at,
           count(b.beat) > 0 as known
    from public.beats b
  ), silent as (
    select b.*, not exists (select from queues q where q.queue = 'default') as stood_in from beat b
    where b.ticked_at < now() - (3 * coalesce((p ->> 'beat_every')::numeric, 10) + 15) * interval '1 s'
  )
  select 'job/' || j.job_key, 'job', j.job_key, null, j.title, j.message,
    jsonb_strip_nulls(jsonb_build_object('fails', j.fails, 'exit_code', j.exit_code)), j.log_tail,
    j.failing_since, j.finished_at, j.fails, greatest(j.grace, interval '10 min')
  from watched j where j.failing
  union all
  select 'overdue/' || j.job_key, 'overdue', j.job_key, null, j.title,
    case j.overdue when 'overran' then format('it has been running since %s; %s was expected at most',
        public.toban_utc(j.running_since), public.toban_words(coalesce(j.every, interval '1 day')))
      else concat(format('it was due at %s, every %s', public.toban_utc(j.due_at), public.toban_words(j.every)),
        case when j.kind = 'beat' and exists (select from queues where queue = 'default')
             then '; no worker listens to default' end,
        case when j.kind = 'beat' and exists (select from silent) then '; no beat ticks' end) end,
    jsonb_strip_nulls(jsonb_build_object('state', j.overdue, 'every', extract(epoch from j.every),
      'grace', extract(epoch from j.grace), 'due_at', j.due_at, 'running_since', j.running_since,
      'last_run_at', j.started_at)), null,
    x.since, x.since, 1, greatest(j.grace, interval '10 min')
  from watched j
  cross join lateral (select case j.overdue when 'overran' then j.running_since else j.due_at end as since) x
  -- A caller whose program does not have this job neither finds it missing nor back.
  where j.overdue is not null and (not j.retired or exists (
    select from public.incidents i where i.fingerprint = 'overdue/' || j.job_key and i.recovered_at is null))
  union all
  select x.fingerprint, 'items', d.job, l.source, coalesce(d.title, l.source), l.last_error,
    jsonb_build_object('kind', l.last_error_kind), null, x.since, greatest(x.since, l.finished_at), x.n,
    interval '10 min'
  from (
    select w.fingerprint, count(*)::integer as n, min(w.incident_since) as since from public.work_items w
    where w.incident_since is not null and w.fingerprint is not null
    -- More reasons than anybody reads: the oldest are told.
    group by w.fingerprint order by min(w.incident_since) limit 200) x
  cross join lateral (
    select w.source, w.last_error, w.last_error_kind, w.finished_at from public.work_items w
    where w.fingerprint = x.fingerprint and w.incident_since is not null
    order by w.incident_since desc limit 1) l
  left join dispatchers d on d.source = l.source
  union all
  select 'not-ready/' || s.source, 'worker', d.job, s.source, coalesce(d.title, s.source), u.last_error,
    '{"state": "not_ready"}', null, u.since, u.since, 1, interval '10 min'
  from public.toban_sources s
  left join dispatchers d on d.source = s.source
  cross join lateral (
    select w.last_error, coalesce(w.started_at, w.opened_at) as since from public.work_items w
    where w.source = s.source and w.state = 'pending' and w.last_error_kind = 'not_ready' limit 1) u
  union all
  select case when t.job_key like 'worker-%' then 'worker-trouble/' else 'queue/' end
      || regexp_replace(t.job_key, '^[a-z]+-', ''), split_part(t.job_key, '-', 1), t.job_key, null, t.title,
    t.last_message,
    jsonb_build_object('state', case when t.job_key like 'worker-%' then 'refuses' else 'held' end,
                       'queue', regexp_replace(t.job_key, '^[a-z]+-', '')), null,
    coalesce((select min(h.since) from public.queue_holds h where 'queue-' || h.queue = t.job_key and h.incident),
             t.last_finished_at), t.last_finished_at, 1, interval '10 min'
  from public.job_status t
  where t.last_status = 'error' and t.job_key ~ '^(worker|queue)-'
    and not exists (select from public.job_watch w where w.job_key = t.job_key)
    and not exists (select from public.jobs j where j.job = t.job_key)
  union all
  select 'worker/' || q.queue, 'worker', null, null, format('No worker listens to %s', q.queue),
    concat_ws('; ', case when q.waiting > 0 then format('%s%s wait, the oldest since %s', q.waiting,
        case when q.waiting = 1000 then ' or more' end, public.toban_utc(q.oldest)) end,
      case when q.ticks then 'the jobs of the timetable need one' end),
    jsonb_build_object('state', 'none', 'queue', q.queue, 'waiting', q.waiting), null, q.alive_at, q.alive_at,
    q.waiting::integer, interval '10 min'
  from queues q where q.waiting > 0 or q.ticks
  union all
  select 'beat', 'beat', null, null, 'No beat ticks',
    case when s.known then format('the last tick came at %s', public.toban_utc(s.ticked_at)) else 'none ever has' end
      || case when s.stood_in then '; workers stand in for it'
              else '; no worker stands in for it, so no job runs' end,
    jsonb_build_object('stood_in', s.stood_in), null, s.ticked_at, s.ticked_at, 1, interval '10 min'
  from silent s where exists (select from watched j where j.kind = 'beat' and not j.paused and not j.retired)
  union all
  select 'alerts/' || c.channel, 'alerts', null, null, format('Alerts don''t get through to %s', c.channel), c.error,
    jsonb_build_object('channel', c.channel), null, c.failing_since, c.used_at, c.fails_in_row, interval '10 min'
  from public.alert_channels c where c.failing_since is not null
$$;

-- One look at everything. Whoever lives calls it every few seconds; one at a time looks, and not more often than every
-- `min_every`. p: and any of timetable [names of the jobs that the caller has; default all], queues {queue: [sources]},
-- beat_every (s, how often a beat ticks; default 10), min_every (s, default 5), waited (s, of the alerts to be counted)
-- → looked, opened [fingerprints], recovered [fingerprints], due_alerts
create or replace function public.toban_monitor(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_troubles jsonb;
  v_opened jsonb := '[]';
  v_recovered jsonb := '[]';
begin
  if not pg_try_advisory_xact_lock(hashtextextended('toban:monitor', 0))
     or exists (select from public.monitor_state
                where ran_at > now() - coalesce((p ->> 'min_every')::numeric, 5) * interval '1 s') then
    return jsonb_build_object('looked', false, 'opened', v_opened, 'recovered', v_recovered,
                              'due_alerts', public.toban_due_alerts((p ->> 'waited')::numeric));
  end if;
  insert into public.monitor_state (ran_at) values (now()) on conflict (one) do update set ran_at = excluded.ran_at;

  insert into public.queue_watch as q (queue, sources)
  select e.key, array(select jsonb_array_elements_text(e.value)) from jsonb_each(coalesce(p -> 'queues', '{}')) e
  on conflict (queue) do update set
    sources = array(select distinct s from unnest(q.sources || excluded.sources) s order by s)
    where not q.sources @> excluded.sources;
  update public.queue_watch q set alive_at = k.seen_at
  from (select u.queue, max(k.seen_at) as seen_at from public.workers k, unnest(k.queues) u (queue)
        where k.expires_at > now() and k.slots > 0 group by u.queue) k
  where k.queue = q.queue and k.seen_at > q.alive_at;

  insert into public.job_watch as w (job_key, state, state_since)
  select j.job_key, j.state, now() from public.toban_watched() j order by j.job_key
  on conflict (job_key) do update set state = excluded.state, state_since = excluded.state_since
    where w.state is distinct from excluded.state;
  -- A run without an end, after which another one began, has died unseen.
  update public.job_reports r set status = 'lost' where r.status = 'running' and r.started_at < now() - interval '1 day'
    and exists (select from public.job_reports n where n.job_key = r.job_key and n.id > r.id);

  select coalesce(jsonb_agg(to_jsonb(t)), '[]') into v_troubles from public.toban_troubles(p) t;

  -- What was dismissed and fails once more is told once more.
  update public.incidents i set recovered_at = now()
  from jsonb_to_recordset(v_troubles) as t (fingerprint text, last_at timestamptz)
  where i.fingerprint = t.fingerprint and i.recovered_at is null and i.kind = 'job' and i.dismissed_at < t.last_at;

  update public.incidents i set title = n.title, reason = n.reason, details = n.details, log_tail = n.log_tail,
    last_at = n.latest, count = n.times, settle = n.settle
  from (
    select i.id, t.title, t.reason, t.details, t.log_tail, t.settle, greatest(i.last_at, t.last_at) as latest,
      -- Items that are resolved one by one are fewer and fewer; failures only add up.
      case when i.kind in ('items', 'worker') then t.count else greatest(i.count, t.count) end as times
    from jsonb_populate_recordset(null::public.incidents, v_troubles) t
    join public.incidents i on i.fingerprint = t.fingerprint and i.recovered_at is null) n
  where i.id = n.id and (i.title, i.reason, i.details, i.log_tail, i.last_at, i.count, i.settle)
    is distinct from (n.title, n.reason, n.details, n.log_tail, n.latest, n.times, n.settle);

  with back as (
    update public.incidents i set recovered_at = null, flaps = i.flaps + 1, reason = t.reason, details = t.details,
      log_tail = t.log_tail, last_at = greatest(i.last_at, t.last_at), count = greatest(i.count, t.count)
    from jsonb_populate_recordset(null::public.incidents, v_troubles) t
    where i.id = (select max(x.id) from public.incidents x where x.fingerprint = t.fingerprint)
      and i.recovered_at > now() - i.settle and i.dismissed_at is null
    returning i.fingerprint
  ), new as (
    insert into public.incidents (fingerprint, kind, job_key, source, title, reason, details, log_tail, opened_at,
                                  last_at, count, settle)
    select t.fingerprint, t.kind, t.job_key, t.source, t.title, t.reason, t.details, t.log_tail, t.since, t.last_at,
           t.count, t.settle
    from jsonb_to_recordset(v_troubles) as t (
      fingerprint text, kind text, job_key text, source text, title text, reason text, details jsonb, log_tail text,
      since timestamptz, last_at timestamptz, count integer, settle interval)
    where not exists (select from public.incidents i where i.fingerprint = t.fingerprint and i.recovered_at is null)
      and t.fingerprint not in (select b.fingerprint from back b)
    returning fingerprint
  )
  select coalesce(jsonb_agg(fingerprint), '[]') into v_opened
    from (select fingerprint from back union all select fingerprint from new) x;

  with gone as (
    update public.incidents i set
      recovered_at = case when i.kind = 'job' then greatest(i.opened_at, coalesce(j.finished_at, now())) else now() end,
      -- A pause ends an incident, but mends nothing.
      dismissed_at = case when j.paused then coalesce(i.dismissed_at, now()) else i.dismissed_at end
    from public.incidents o left join public.toban_watched() j on j.job_key = o.job_key and o.kind in ('job', 'overdue')
    where o.id = i.id and i.recovered_at is null
      and i.fingerprint not in (select t ->> 'fingerprint' from jsonb_array_elements(v_troubles) t)
      and not (i.kind = 'items' and exists (
        select from public.work_items w where w.fingerprint = i.fingerprint and w.incident_since is not null))
    returning i.fingerprint
  )
  select coalesce(jsonb_agg(fingerprint), '[]') into v_recovered from gone;

  perform public.toban_queue_alerts();
  return jsonb_build_object('looked', true, 'opened', v_opened, 'recovered', v_recovered,
                            'due_alerts', public.toban_due_alerts((p ->> 'waited')::numeric));
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
