-- What a job's row can say beside its schedule: which day's rows its claims take, how many in a slot, how long one may
-- take. And a function for people's edits, so that they need no SQL.

alter table public.jobs add column if not exists batch_limit integer;
alter table public.jobs add column if not exists timeout interval;
comment on column public.jobs.batch_limit is 'most items that are sent in one slot; null: as many as can run';
comment on column public.jobs.timeout is 'the longest that one outside call for an item may take; null: as the program says';
comment on column public.jobs.filters is
  'which items its claims take: {"partition": text, "since": moment, "until": moment, "date": "today", "yesterday" or a day}';

-- Whether a filter of a job can be applied to the rows of its source; if not, every row would pass, or none. A job
-- without a source, or with one that is not watched yet, sees to its filters itself.
create or replace function public.toban_follows(s public.toban_sources, p_filter text) returns boolean
language sql immutable set search_path = '' as $$
  select s.source is null or s.time_column is not null
    or p_filter = 'date' and coalesce(s.date_column = any (s.key_columns), false)
$$;

create or replace function public.toban_not_followed(s public.toban_sources, p_filter text) returns text
language sql immutable set search_path = '' as $$
  select format('rows of %s are not found by %s%s', s.source, p_filter,
                case when public.toban_follows(s, 'date') then ', only by partition and date' else '' end)
$$;

create or replace function public.toban_check_job() returns trigger
language plpgsql set search_path = '' as $$
declare
  s public.toban_sources;
  v_key text;
  v_value jsonb;
  v_wrong text;
begin
  select * into s from public.toban_sources where source = new.source;
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
  elsif new.batch_limit < 1 then
    v_wrong := format('batch_limit is %s, but has to be at least 1, or null for no limit', new.batch_limit);
  elsif new.timeout <= interval '0' or not isfinite(new.timeout) or extract(year from new.timeout) <> 0
        or extract(month from new.timeout) <> 0 then
    v_wrong := format('timeout is %s, but has to be more than 0, in seconds, minutes …', new.timeout);
  elsif jsonb_typeof(new.filters) <> 'object' then
    v_wrong := 'filters have to be an object, {} for none';
  else
    for v_key, v_value in select * from jsonb_each(new.filters) loop
      if v_key not in ('partition', 'since', 'until', 'date') then
        v_wrong := format('there is no filter %s, only partition, since, until and date', v_key);
      elsif jsonb_typeof(v_value) <> 'string' then
        v_wrong := format('the filter %s has to be a text, not %s', v_key, v_value);
      elsif v_key in ('since', 'until', 'date') and not public.toban_follows(s, v_key) then
        v_wrong := public.toban_not_followed(s, v_key);
      elsif v_key in ('since', 'until') then
        begin
          perform (v_value #>> '{}')::timestamptz;
        exception when data_exception then
          v_wrong := format('the filter %s has to be a moment like 2025-07-18T03:00:00Z, not %s', v_key, v_value);
        end;
      elsif v_key = 'date' and v_value #>> '{}' not in ('today', 'yesterday') then
        begin
          -- (A date may also be read from other words: infinity, now, 18 July.)
          if v_value #>> '{}' !~ '^\d{4}-\d\d-\d\d$' then
            raise data_exception;
          end if;
          perform (v_value #>> '{}')::date;
        exception when data_exception then
          v_wrong := format('the filter date has to be today, yesterday or a day like 2025-07-18, not %s', v_value);
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
create or replace trigger toban_check_job before insert or update of every, at, zone, filters, batch_limit, timeout
  on public.jobs for each row execute function public.toban_check_job();

-- The filters of a job's claims at this moment, as toban_choose() takes them: `date` is a day, with the column of the
-- item's ref that holds it, or has become since and until for a source whose rows have moments instead.
create or replace function public.toban_filters(j public.jobs, s public.toban_sources, p_zone text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  f jsonb := coalesce(j.filters, '{}');
  v_day date;
  v_key text;
begin
  foreach v_key in array array['since', 'until', 'date'] loop
    if f ? v_key and not public.toban_follows(s, v_key) then
      raise exception 'job %: %', j.job, public.toban_not_followed(s, v_key) using errcode = 'TB400';
    end if;
  end loop;
  if f ? 'date' then
    v_day := case f ->> 'date' when 'today' then (now() at time zone p_zone)::date
             when 'yesterday' then (now() at time zone p_zone)::date - 1 else (f ->> 'date')::date end;
    if s.date_column = any (s.key_columns) then
      f := f || jsonb_build_object('date', to_char(v_day, 'YYYY-MM-DD'), 'date_column', s.date_column);
    else
      f := (f - 'date') || jsonb_build_object(
        'since', greatest((f ->> 'since')::timestamptz, v_day::timestamp at time zone p_zone),
        'until', least((f ->> 'until')::timestamptz, (v_day + 1)::timestamp at time zone p_zone));
    end if;
  end if;
  return f;
end
$$;

-- p: jobs [{job, title, source, every (s), at (s), zone, catch_up, enabled?}]. New jobs are added; of known ones only
-- title and source follow, because the rest may have been edited. → jobs
create or replace function public.toban_sync_jobs(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  with synced as (
    insert into public.jobs as j (job, title, source, every, at, zone, catch_up, enabled)
    select e ->> 'job', e ->> 'title', e ->> 'source', (e ->> 'every')::numeric * interval '1 s',
           coalesce((e ->> 'at')::numeric, 0) * interval '1 s', coalesce(e ->> 'zone', 'UTC'),
           coalesce((e ->> 'catch_up')::boolean, true), coalesce((e ->> 'enabled')::boolean, true)
    from jsonb_array_elements(p -> 'jobs') e order by 1
    on conflict (job) do update set title = excluded.title, source = excluded.source, updated_at = now()
      where (j.title, j.source) is distinct from (excluded.title, excluded.source)
    returning 1
  )
  select jsonb_build_object('jobs', count(*)) from synced
$$;

-- The jobs and what is set for them. → jobs [{job, title, source, enabled, every (s), at (s), zone, filters,
-- batch_limit, timeout (s), last_started_at, last_finished_at, last_status, last_message}]
create or replace function public.toban_jobs(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('jobs', coalesce(jsonb_agg(jsonb_build_object(
    'job', j.job, 'title', j.title, 'source', j.source, 'enabled', j.enabled,
    'every', extract(epoch from j.every), 'at', extract(epoch from j.at), 'zone', j.zone, 'filters', j.filters,
    'batch_limit', j.batch_limit, 'timeout', extract(epoch from j.timeout),
    'last_started_at', j.last_started_at, 'last_finished_at', j.last_finished_at,
    'last_status', j.last_status, 'last_message', j.last_message) order by j.job), '[]'))
  from public.jobs j
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
