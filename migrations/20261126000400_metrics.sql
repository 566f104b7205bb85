-- What Prometheus asks for: numbers that only grow, counted once however many web processes there are, and a picture of
-- the rest that is taken at most every few seconds.

-- What happened since it was counted last. Rows are only ever added here (by whatever ends an attempt or a call), so
-- nobody waits for anybody; toban_count_events() adds them up and takes them away, each exactly once.
--   attempt  labels {source, outcome, kind}     amounts {seconds it waited, seconds it ran} (null: does not count)
--   call     labels {model, outcome, lane}      amounts {prompt, cached, completion tokens, US dollars}
--   speech   labels {model, engine}             amounts {seconds of audio, seconds of work}
create table if not exists public.metric_events (
  what text not null,
  labels text[] not null,
  amounts double precision[] not null
);

-- The sums, by the metric's short name and its labels.
create table if not exists public.metric_counts (
  metric text not null,
  labels text[] not null,
  value double precision not null,
  primary key (metric, labels)
);

-- One row: the last picture, when it was taken, and how long that took; the same of what is dear to count.
create table if not exists public.metric_snapshot (
  one boolean primary key default true check (one),
  taken_at timestamptz not null,
  took interval not null,
  picture jsonb not null,
  ended_at timestamptz not null,
  ended_took interval not null,
  ended jsonb not null
);
comment on column public.metric_snapshot.ended is
  '{source: {state: count}} of the states in which an item may stay for months';

create or replace function public.toban_count_attempt() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.metric_events (what, labels, amounts)
  values ('attempt', array[new.source, new.outcome, coalesce(new.kind, '')], array[
    -- As on the page of the work: the first try tells how long it waited, what came to an end how long it ran.
    case when new.try = 1 then greatest(extract(epoch from new.started_at - new.opened_at), 0) end,
    case when new.outcome in ('completed', 'failed')
         then greatest(extract(epoch from new.ended_at - new.started_at), 0) end]);
  return null;
end
$$;
drop trigger if exists toban_count_attempt on public.work_attempts;
create trigger toban_count_attempt after insert on public.work_attempts for each row
  execute function public.toban_count_attempt();

create or replace function public.toban_count_call() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.metric_events (what, labels, amounts)
  values ('call', array[new.model, new.outcome, new.lane], array[
    coalesce(new.prompt_tokens, 0), coalesce(new.cached_tokens, 0), coalesce(new.completion_tokens, 0),
    -- A lost call has cost its estimate; should its end come after all, that is not cost once more.
    case when old.outcome = 'sent' then new.cost else 0 end]);
  return null;
end
$$;
drop trigger if exists toban_count_call on public.llm_calls;
create trigger toban_count_call after update of outcome on public.llm_calls for each row
  when (new.outcome is distinct from old.outcome and new.outcome <> 'sent')
  execute function public.toban_count_call();

create or replace function public.toban_count_speech() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.metric_events (what, labels, amounts)
  values ('speech', array[new.model, new.engine],
          array[new.duration_seconds, new.duration_seconds * new.real_time_factor]);
  return null;
end
$$;
drop trigger if exists toban_count_speech on public.transcripts;
create trigger toban_count_speech after insert or update of duration_seconds, real_time_factor on public.transcripts
  for each row when (new.duration_seconds is not null and new.real_time_factor is not null)
  execute function public.toban_count_speech();

-- A name that comes from outside, as a label: no control characters, not long.
create or replace function public.toban_label(p_text text) returns text
language sql immutable set search_path = '' as $$
  select left(regexp_replace(p_text, '[[:cntrl:]]+', ' ', 'g'), 60)
$$;

-- The upper bounds of the histograms, seconds; the last one is without end.
create or replace function public.toban_metric_bounds() returns double precision[]
language sql immutable set search_path = '' as $$
  select array[0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 'Infinity']
$$;

-- Add up what happened: one caller at a time (toban_metrics() sees to that), and so many that a backlog is no burden.
create or replace function public.toban_count_events(p_limit integer) returns void
language sql set search_path = '' as $$
  with gone as (
    delete from public.metric_events
    where ctid = any (array(select ctid from public.metric_events limit p_limit)) returning what, labels, amounts
  ), cleaned as (
    select what, amounts,
      case when what = 'attempt' then labels else array[public.toban_label(labels[1])] || labels[2:] end as labels
    from gone
  ), models as (
    -- What a server calls its models nobody here decides: the first thirty have their own lines, then all are `other`.
    select what, model, row_number() over (partition by what order by known desc, model) as place
    from (
      select what, model, bool_or(known) as known from (
        select what, labels[1] as model, false as known from cleaned where what <> 'attempt'
        union all
        select case metric when 'calls' then 'call' else 'speech' end, labels[1], true
        from public.metric_counts where metric in ('calls', 'audio')) x
      where model <> 'other' group by what, model) y
  ), events as (
    select c.what, c.amounts,
      case when m.place > 30 then array['other'] || c.labels[2:] else c.labels end as labels
    from cleaned c left join models m on m.what = c.what and m.model = c.labels[1]
  ), counted as (
    select 'attempts' as metric, labels, 1::double precision as value from events where what = 'attempt'
    union all
    -- (No function of ours for each row: that would take most of the time.)
    select t.metric || '_bucket',
           array[e.labels[1], b.bounds[case when b.bounds[w] = t.seconds then w else w + 1 end]::text], 1
      from events e, (select public.toban_metric_bounds() as bounds) b,
           unnest(array['wait', 'run'], e.amounts) t (metric, seconds), width_bucket(t.seconds, b.bounds) w
      where e.what = 'attempt' and t.seconds is not null
    union all
    select t.metric || '_sum', e.labels[1:1], t.seconds
      from events e, unnest(array['wait', 'run'], e.amounts) t (metric, seconds)
      where e.what = 'attempt' and t.seconds is not null
    union all
    select 'calls', labels, 1 from events where what = 'call'
    union all
    select 'tokens', array[e.labels[1], t.kind], t.tokens
      from events e, unnest(array['prompt', 'cached', 'completion', 'cost'], e.amounts) t (kind, tokens)
      where e.what = 'call' and t.kind <> 'cost' and t.tokens > 0
    union all
    select 'cost', array[labels[1], labels[3]], amounts[4] from events where what = 'call'
    union all
    select t.metric, e.labels, t.seconds
      from events e, unnest(array['audio', 'work'], e.amounts) t (metric, seconds)
      where e.what = 'speech'
  ), summed as (
    select metric, labels, sum(value) as value from counted group by metric, labels
  )
  insert into public.metric_counts as c (metric, labels, value) select metric, labels, value from summed
  on conflict (metric, labels) do update set value = c.value + excluded.value
$$;

-- What is so at this moment; of the items, what is not over.
create or replace function public.toban_metric_picture() returns jsonb
language plpgsql volatile set search_path = '' as $$
begin
  return jsonb_build_object(
    'waiting', (
      -- What nobody may claim needs no workers; nor is it late, if it is somebody else's.
      select coalesce(jsonb_object_agg(source, jsonb_build_object('pending', n,
        'due', case when stopped is null then due else 0 end,
        'since', case when stopped is distinct from 'shadow' then since end)), '{}')
      from (
        select source, count(*) as n, count(*) filter (where available_at <= now()) as due,
               -- (A recording's item is available from when it was recorded.)
               extract(epoch from min(greatest(opened_at, available_at)) filter (where available_at <= now())) as since
        from public.work_items where state = 'pending' group by source) x
      cross join lateral public.toban_stopped(x.source) as stopped),
    'under_way', (select coalesce(jsonb_agg(to_jsonb(x)), '[]') from (
      select source, state, count(*) as n from public.work_items
      where state in ('queued', 'processing') group by source, state) x),
    'workers', (select coalesce(jsonb_agg(to_jsonb(x)), '[]') from (
      select split_part(k.node, '/', 1) as node, array_to_string(k.queues, ',') as queue,
        count(distinct k.node) as workers, count(*) as processes, sum(k.slots) as slots, sum(k.busy) as busy,
        sum(k.rss_bytes) as memory, sum(k.memory_limit) as memory_limit
      from public.workers k where k.expires_at > now() group by 1, 2) x),
    'incidents', (select coalesce(jsonb_object_agg(kind, n), '{}') from (
      select kind, count(*) as n from public.incidents
      where recovered_at is null and dismissed_at is null group by kind) x),
    'holds', (select coalesce(jsonb_agg(distinct jsonb_build_array(h.queue, h.cause)), '[]')
      from public.queue_holds h where h.until > now()),
    'jobs', (select coalesce(jsonb_agg(to_jsonb(x)), '[]') from (
      select w.job_key as job, w.state, w.failing, w.paused, extract(epoch from l.finished_at) as success_at,
        extract(epoch from coalesce(d.finished_at - d.started_at, l.finished_at - l.started_at)) as seconds
      from public.toban_watched() w
      left join public.jobs j on j.job = w.job_key
      -- (An empty run leaves no row in runs.)
      left join lateral (
        select j.last_started_at as started_at, j.last_finished_at as finished_at
        where j.last_status = 'success' and j.last_finished_at >= j.last_started_at
        union all
        (select r.started_at, r.finished_at from public.runs r
         where r.job = j.job and r.state = 'success' and r.finished_at is not null order by r.slot desc limit 1)
        union all
        (select r.started_at, r.finished_at from public.job_reports r
         where j.job is null and r.job_key = w.job_key and r.status = 'success' order by r.id desc limit 1)
        order by finished_at desc limit 1) l on true
      left join lateral (
        select j.last_started_at as started_at, j.last_finished_at as finished_at
        where j.last_finished_at >= j.last_started_at
        union all
        (select r.started_at, r.finished_at from public.job_reports r
         where j.job is null and r.job_key = w.job_key and r.finished_at is not null order by r.id desc limit 1)
        limit 1) d on true
      where not w.retired order by w.kind, w.job_key limit 200) x),
    'beat', (select extract(epoch from max(ticked_at)) from public.beats),
    'looked', (select extract(epoch from ran_at) from public.monitor_state));
end
$$;

-- Everything of /metrics. p: zone? (of what was spent today), max_age? (s, default 10: of the picture)
-- → now, taken_at (both s since 1970), picture (see above), ended {source: {state: count}}, sources, counts [{metric,
-- labels, value}], bounds (of the histograms), spent {day, month} (US dollars)
-- A picture is taken once for all web processes, by whoever comes first when the last one is older than max_age and
-- than twenty times what it took; what is dear to count once a minute, or a hundred times what that took.
create or replace function public.toban_metrics(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_age interval := coalesce((p ->> 'max_age')::numeric, 10) * interval '1 s';
  s public.metric_snapshot;
  v_began timestamptz;
  v_budget jsonb := public.toban_budget(p, 0);
begin
  select * into s from public.metric_snapshot;
  if not found then
    -- The first of all: who comes at the same time waits for it.
    perform pg_advisory_xact_lock(hashtextextended('toban:metrics', 0));
    select * into s from public.metric_snapshot;
  end if;
  if s.one is null or (clock_timestamp() > s.taken_at + greatest(v_age, 20 * s.took)
                       and pg_try_advisory_xact_lock(hashtextextended('toban:metrics', 0))) then
    select * into s from public.metric_snapshot;  -- somebody may just have been here
    if s.one is null or clock_timestamp() > s.taken_at + greatest(v_age, 20 * s.took) then
      if s.one is null
         or clock_timestamp() > s.ended_at + greatest(least(6 * v_age, interval '1 min'), 100 * s.ended_took) then
        v_began := clock_timestamp();
        select coalesce(jsonb_object_agg(source, states), '{}') into s.ended from (
          select source, jsonb_object_agg(state, n) as states from (
            select source, state, count(*) as n from public.work_items
            where state in ('completed', 'skipped', 'failed') group by source, state) x group by source) y;
        s.ended_at := clock_timestamp();
        s.ended_took := s.ended_at - v_began;
      end if;
      v_began := clock_timestamp();
      perform public.toban_count_events(100000);
      s.picture := public.toban_metric_picture();
      s.taken_at := clock_timestamp();
      s.took := s.taken_at - v_began;
      insert into public.metric_snapshot as m (taken_at, took, picture, ended_at, ended_took, ended)
      values (s.taken_at, s.took, s.picture, s.ended_at, s.ended_took, s.ended)
      on conflict (one) do update set taken_at = excluded.taken_at, took = excluded.took, picture = excluded.picture,
        ended_at = excluded.ended_at, ended_took = excluded.ended_took, ended = excluded.ended;
    end if;
  end if;
  return jsonb_build_object(
    'now', extract(epoch from clock_timestamp()), 'taken_at', extract(epoch from s.taken_at),
    'picture', s.picture, 'ended', s.ended,
    'sources', (select coalesce(jsonb_agg(source order by source), '[]') from public.toban_sources),
    'counts', (select coalesce(jsonb_agg(to_jsonb(c) order by c.metric, c.labels), '[]') from public.metric_counts c),
    -- (JSON has no infinity.)
    'bounds', (select jsonb_agg(b::text order by b) from unnest(public.toban_metric_bounds()) b),
    'spent', jsonb_build_object('day', v_budget -> 'spent_today', 'month', v_budget -> 'spent_this_month'));
end
$$;

-- Where a request's trace leads: an item that was opened, or made urgent, by a call that was traced carries the call's
-- trace context (W3C traceparent) among its params until it ends; so whoever works on it later goes on with the trace.
-- The caller names it in the setting toban.trace, over REST in the header toban-trace.
create or replace function public.toban_trace() returns text
language sql stable set search_path = '' as $$
  select t from coalesce(nullif(current_setting('toban.trace', true), ''),
    case when current_setting('request.headers', true) like '%"toban-trace"%'
         then current_setting('request.headers', true)::jsonb ->> 'toban-trace' end) t
  where t ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'
$$;

create or replace function public.toban_note_trace() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_trace text := public.toban_trace();
begin
  if v_trace is not null then
    new.params := new.params || jsonb_build_object('traceparent', v_trace);
  end if;
  return new;
end
$$;
drop trigger if exists toban_trace_opened on public.work_items;
create trigger toban_trace_opened before insert on public.work_items for each row
  when (coalesce(current_setting('toban.trace', true), '') <> ''
        or current_setting('request.headers', true) like '%"toban-trace"%')
  execute function public.toban_note_trace();
drop trigger if exists toban_trace_reopened on public.work_items;
create trigger toban_trace_reopened before update on public.work_items for each row
  when ((new.revision <> old.revision or new.priority > old.priority)
        and (coalesce(current_setting('toban.trace', true), '') <> ''
             or current_setting('request.headers', true) like '%"toban-trace"%'))
  execute function public.toban_note_trace();

select public.toban_lock_table(t) from unnest(array['metric_events', 'metric_counts', 'metric_snapshot']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
