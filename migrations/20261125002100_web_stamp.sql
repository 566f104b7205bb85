-- What every page shows of the whole: how many incidents there are, and whether anything has changed.

-- How many incidents are open.
create or replace function public.toban_count_incidents() returns integer
language sql stable set search_path = '' as $$
  select count(*)::integer from public.incidents where recovered_at is null and dismissed_at is null
$$;

-- p: (nothing) → badge: how many incidents are open
create or replace function public.toban_badge(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('badge', public.toban_count_incidents())
$$;

-- Asked every second by each process that shows pages, so it reads what the indexes have and counts nothing big. A row
-- that waits again without having run (a reprocess) shows when it is claimed, or with the pages' slow refresh.
-- p: sessions? → stamp: another text when something has changed; gone: those of `sessions` that are over
create or replace function public.toban_page_stamp(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_parts text[];
begin
  v_parts := array[
    (select row(max(w.id))::text from public.work_items w),
    (select row(count(*), max(w.started_at), sum(w.attempt), sum(hashtext(w.progress::text)))::text
     from public.work_items w where w.state in ('queued', 'processing')),
    (select row(count(*), count(*) filter (where w.state = 'failed'), max(w.finished_at))::text
     from (select * from public.work_items where incident_since is not null limit 10000) w),
    (select row(max(w.finished_at))::text from public.work_items w where w.state in ('completed', 'skipped')),
    (select row(count(*), max(j.updated_at), max(j.last_started_at), max(j.last_finished_at),
                count(*) filter (where j.enabled))::text from public.jobs j),
    (select row(max(r.id))::text from public.runs r),
    (select row(count(*), sum(k.busy), max(k.seen_at))::text from public.workers k where k.expires_at > now()),
    (select row(count(*) filter (where t.last_status = 'error'), max(t.updated_at))::text from public.job_status t),
    (select row(max(v.id), max(v.reported_at))::text from (select * from public.job_reports order by id desc limit 50) v),
    (select row(max(v.changed_at), max(v.state_since), max(v.last_started_at))::text from public.job_watch v),
    (select row(count(*), count(i.dismissed_at), max(i.last_at), sum(i.flaps))::text
     from public.incidents i where i.recovered_at is null),
    (select row(max(i.recovered_at))::text from public.incidents i),
    (select row(count(*), max(c.failing_since))::text from public.alert_channels c),
    (select row(max(h.until), count(*))::text from public.queue_holds h)];
  return jsonb_build_object('stamp', md5(v_parts::text), 'gone', (
    select coalesce(jsonb_agg(a.session), '[]') from jsonb_array_elements_text(coalesce(p -> 'sessions', '[]')) a (session)
    where not exists (select from public.web_sessions s where s.session = a.session and s.expires_at > now())));
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
