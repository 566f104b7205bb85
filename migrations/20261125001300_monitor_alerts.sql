-- One message for each incident and one for its recovery, put into an outbox and sent by whoever lives.

-- How many messages could be sent now that have waited for so long. One incident's go in their order.
create or replace function public.toban_due_alerts(p_waited numeric) returns integer
language sql stable set search_path = '' as $$
  select count(*)::integer from public.alerts a
  where a.sent_at is null and a.cancelled_at is null
    and a.due_at <= now() - coalesce(p_waited, 0) * interval '1 s'
    and (a.claimed_until is null or a.claimed_until < now())
    and not exists (select from public.alerts b where b.incident_id = a.incident_id and b.id < a.id
                    and b.sent_at is null and b.cancelled_at is null)
$$;

-- Put into the outbox what people do not know yet. An incident that comes and goes is told as one: its recovery is told
-- when it has held for `settle`, and nothing in between.
create or replace function public.toban_queue_alerts() returns void
language plpgsql set search_path = '' as $$
begin
  -- Nobody was told, and there is nothing to tell any more.
  with gone as (
    update public.alerts a set cancelled_at = now() from public.incidents i
    where i.id = a.incident_id and a.kind = 'opened' and a.sent_at is null and a.cancelled_at is null and a.tries = 0
      and (i.recovered_at is not null or i.dismissed_at is not null)
    returning i.id
  )
  update public.incidents i set told = null from gone where i.id = gone.id and i.recovered_at is not null;
  with news as (
    update public.incidents i set told = case when i.recovered_at is null then 'opened' else 'recovered' end
    where i.dismissed_at is null
      and (i.recovered_at is null and i.told is distinct from 'opened'
           or i.recovered_at is not null and i.told = 'opened'
              and (i.flaps = 0 or i.recovered_at < now() - i.settle))
    returning i.id, i.told
  )
  insert into public.alerts (incident_id, kind) select id, told from news order by id;
  -- Nobody needs to know tomorrow what could not be told today; the pages still show it.
  update public.alerts set cancelled_at = now(), error = coalesce(error, 'it could not be sent within a day')
    where sent_at is null and cancelled_at is null and due_at < now() - interval '1 day';
end
$$;

-- Take messages to send. Whoever takes one has it for `lease`: with an end told in time, it is sent once.
-- p: limit? (default 10), lease? (s, default 120), waited? (s: only those that nobody else took for so long)
-- → alerts [{id, kind, tries, channels (that have it already), incident {id, kind, fingerprint, job_key, source, title,
-- reason, details, since, last_at, count, flaps, recovered_at, downtime (s)}}]
create or replace function public.toban_claim_alerts(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  with mine as (
    select a.id from public.alerts a
    where a.sent_at is null and a.cancelled_at is null and a.kind <> 'test'
      and a.due_at <= now() - coalesce((p ->> 'waited')::numeric, 0) * interval '1 s'
      and (a.claimed_until is null or a.claimed_until < now())
      and not exists (select from public.alerts b where b.incident_id = a.incident_id and b.id < a.id
                      and b.sent_at is null and b.cancelled_at is null)
    order by a.id limit coalesce((p ->> 'limit')::integer, 10) for update skip locked
  ), taken as (
    update public.alerts a set tries = a.tries + 1,
      claimed_until = now() + coalesce((p ->> 'lease')::numeric, 120) * interval '1 s'
    from mine where a.id = mine.id returning a.*
  )
  select jsonb_build_object('alerts', coalesce(jsonb_agg(jsonb_build_object(
    'id', t.id, 'kind', t.kind, 'tries', t.tries, 'channels', to_jsonb(t.channels),
    'incident', jsonb_build_object('id', i.id, 'kind', i.kind, 'fingerprint', i.fingerprint, 'job_key', i.job_key,
      'source', i.source, 'title', i.title, 'reason', i.reason, 'details', i.details, 'since', i.opened_at,
      'last_at', i.last_at, 'count', i.count, 'flaps', i.flaps, 'recovered_at', i.recovered_at,
      'downtime', extract(epoch from i.recovered_at - i.opened_at))) order by t.id), '[]'))
  from taken t join public.incidents i on i.id = t.incident_id
$$;

-- A message for a person who tries the channels. p: who? → id
create or replace function public.toban_test_alert(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_id bigint;
begin
  insert into public.alerts (kind, tries, claimed_until) values ('test', 1, now() + interval '2 min')
    returning id into v_id;
  perform public.toban_audit(p, 'test alerts', null);
  return jsonb_build_object('id', v_id);
end
$$;

-- How sending went. p: id, channels [{channel, error?}] → sent; when a channel failed, the message goes to that one
-- again, later and later; a test does not.
create or replace function public.toban_alert_sent(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_channels jsonb := coalesce(p -> 'channels', '[]');
  v_error text := (select string_agg(format('%s: %s', c ->> 'channel', c ->> 'error'), '; ')
                   from jsonb_array_elements(coalesce(p -> 'channels', '[]')) c where c ->> 'error' is not null);
  a public.alerts;
begin
  update public.alerts x set
    channels = array(select distinct c from (
      select unnest(x.channels) union select c ->> 'channel' from jsonb_array_elements(v_channels) c
      where c ->> 'error' is null) y (c) order by c),
    sent_at = case when v_error is null then now() end,
    cancelled_at = case when v_error is not null and x.kind = 'test' then now() end,
    claimed_until = null, error = v_error,
    due_at = case when v_error is null then x.due_at
             else now() + least(30 * 2 ^ least(x.tries - 1, 10), 1800) * interval '1 s' end
  where x.id = (p ->> 'id')::bigint and x.sent_at is null
  returning * into a;
  insert into public.alert_channels as t (channel, last_sent_at, failing_since, fails_in_row, error)
  select c ->> 'channel', case when c ->> 'error' is null then now() end,
         case when c ->> 'error' is not null then now() end, (c ->> 'error' is not null)::integer, c ->> 'error'
  from jsonb_array_elements(v_channels) c order by 1
  on conflict (channel) do update set
    last_sent_at = coalesce(excluded.last_sent_at, t.last_sent_at), error = excluded.error, used_at = now(),
    failing_since = case when excluded.error is not null then coalesce(t.failing_since, now()) end,
    fails_in_row = case when excluded.error is not null then t.fails_in_row + 1 else 0 end;
  return jsonb_build_object('sent', a.sent_at is not null);
end
$$;

-- The channels, the failing ones first, and the latest messages. p: limit? (default 20) → channels [{channel,
-- last_sent_at, failing_since, fails_in_row, error, used_at}], alerts [{id, kind, title, created_at, due_at, sent_at,
-- cancelled_at, tries, channels, error}], waiting
create or replace function public.toban_alerts(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object(
    'channels', (select coalesce(jsonb_agg(to_jsonb(c) order by c.failing_since, c.channel), '[]')
                 from public.alert_channels c),
    'alerts', (select coalesce(jsonb_agg(to_jsonb(x) order by x.id desc), '[]') from (
      select a.id, a.kind, i.title, a.created_at, a.due_at, a.sent_at, a.cancelled_at, a.tries, a.channels, a.error
      from public.alerts a left join public.incidents i on i.id = a.incident_id
      order by a.id desc limit coalesce((p ->> 'limit')::integer, 20)) x),
    'waiting', (select count(*) from public.alerts where sent_at is null and cancelled_at is null))
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
