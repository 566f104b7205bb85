-- The cheap lane: rows that may wait go to the language model in batches, at half the price.
--
-- In a batch an item is `processing` like any other, with an attempt and a token of its own. It is in no queue, its
-- worker is called `batch <id>`, and its lease is its deadline: should nobody look after the batch any more, it is
-- taken back then and asked for alone.

create table if not exists public.llm_batches (
  id bigint generated always as identity primary key,
  uid uuid not null default gen_random_uuid(),
  source text not null,
  state text not null default 'preparing' check (state in ('preparing', 'submitted', 'cancelling', 'ended')),
  model text not null,
  size integer not null,
  provider_id text,
  leave_by timestamptz not null,
  busy_until timestamptz not null,
  created_at timestamptz not null default now(),
  submitted_at timestamptz,
  ended_at timestamptz,
  answered integer not null default 0,
  message text
);
comment on column public.llm_batches.uid is
  'the batch''s name at the provider, by which one is found whose number was lost';
comment on column public.llm_batches.leave_by is
  'when the first of its rows has to leave the lane to keep its deadline';
comment on column public.llm_batches.busy_until is 'somebody looks after it until then; nobody else does';
comment on column public.llm_batches.submitted_at is 'null: the provider has not got it, as far as is known';
create index if not exists llm_batches_out_idx on public.llm_batches (source, id) where state <> 'ended';

-- What went with a batch; forgotten when it has ended, since llm_calls tells the rest.
create table if not exists public.llm_batch_items (
  batch_id bigint not null references public.llm_batches (id) on delete cascade,
  item_id bigint not null,
  attempt integer not null,
  token uuid not null,
  call_id bigint,
  primary key (batch_id, item_id)
);
comment on column public.llm_batch_items.call_id is 'null: it was not sent';

-- The items of a batch that are still out with it: not finished, changed hands or taken back.
create or replace function public.toban_batch_out(p_batch bigint)
returns table (item public.work_items, call_id bigint)
language sql stable set search_path = '' as $$
  select w, i.call_id from public.llm_batch_items i
  join public.work_items w on w.id = i.item_id and w.state = 'processing' and w.token = i.token
  where i.batch_id = p_batch
$$;

-- Start a batch of waiting items: those that came lately enough, are not urgent, and for which nothing special was
-- asked (toban_claim takes all others). p: source, queue (whose holds count), model, limit, least (fewer are taken only
-- when the oldest has waited for `patience`), patience (s), pause (s, after a batch that could not be sent), stay (s:
-- how long a row may be in the lane; it has to be sent within half of it), deadline (s: the row's lease), busy (s,
-- until somebody else may look after the batch), max_attempts, zone?
-- → batch, uid, items [{id, attempt, row}]   or   batch null, reason
create or replace function public.toban_open_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  j public.jobs;
  f jsonb;
  v_stay interval := (p ->> 'stay')::numeric * interval '1 s';
  v_limit integer;
  v_reason text;
  v_ids bigint[];
  v_oldest timestamptz;
  b public.llm_batches;
  v_items jsonb;
begin
  select * into strict s from public.toban_sources where source = p ->> 'source';
  select * into j from public.jobs where source = s.source order by job limit 1;
  v_limit := least((p ->> 'limit')::integer, j.batch_limit);
  v_reason := case when not j.enabled then 'paused' else coalesce(
    (select 'held: ' || reason from public.toban_held(p ->> 'queue', false)),
    (select 'the last batch could not be sent: ' || message from public.llm_batches
     where source = s.source and submitted_at is null
       and ended_at > now() - (p ->> 'pause')::numeric * interval '1 s' order by id desc limit 1)) end;
  if v_reason is not null then
    return jsonb_build_object('batch', null, 'reason', v_reason);
  end if;
  f := public.toban_filters(j, s, coalesce(p ->> 'zone', 'UTC'));
  select array_agg(id), min(opened_at) into v_ids, v_oldest from (
    select w.id, w.opened_at from public.work_items w
    where w.source = s.source and w.state = 'pending' and w.available_at <= now()
      and w.opened_at >= now() - v_stay / 2 and w.priority <= 0 and not w.params ?| array['direct', 'model']
      and (f ->> 'partition' is null or w.partition = f ->> 'partition')
      and (f ->> 'since' is null or w.at >= (f ->> 'since')::timestamptz)
      and (f ->> 'until' is null or w.at < (f ->> 'until')::timestamptz)
      and (f ->> 'date' is null or w.ref ->> (f ->> 'date_column') = f ->> 'date')
    order by w.opened_at, w.id limit v_limit) x;
  if v_ids is null or cardinality(v_ids) < least((p ->> 'least')::integer, v_limit)
     and v_oldest > now() - (p ->> 'patience')::numeric * interval '1 s' then
    return jsonb_build_object('batch', null, 'reason', format('%s wait', coalesce(cardinality(v_ids), 0)));
  end if;
  insert into public.llm_batches (source, model, size, leave_by, busy_until)
  values (s.source, p ->> 'model', 0, v_oldest + v_stay, now() + (p ->> 'busy')::numeric * interval '1 s')
  returning * into b;
  -- In the order of their keys, as everywhere.
  v_ids := array(select w.id from public.work_items w where w.id = any (v_ids) and w.state = 'pending'
                 order by w.key for update skip locked);
  execute format($q$
    with mine as (
      update public.work_items w set
        state = 'processing', queue = null, claim_no = w.claim_no + 1, task_id = gen_random_uuid(), run_id = null,
        claimed_at = now(), max_attempts = $1, attempt = w.attempt + 1, tries = w.tries + 1,
        started_revision = w.revision, token = gen_random_uuid(), worker = $2, started_at = now(),
        run_until = w.opened_at + $3, lease_until = w.opened_at + $3, progress = null, progress_at = now()
      from %s r
      where w.id = any ($4) and %s and %s
      returning w.id, w.attempt, w.token, to_jsonb(r) as row
    ), noted as (
      insert into public.llm_batch_items (batch_id, item_id, attempt, token)
      select $5, id, attempt, token from mine
    )
    select coalesce(jsonb_agg(to_jsonb(mine) order by id), '[]') from mine$q$,
    s.watched, replace(s.where_sql, '$1', 'w.ref'), s.due_sql)
    into v_items using (p ->> 'max_attempts')::integer, 'batch ' || b.id,
      (p ->> 'deadline')::numeric * interval '1 s', v_ids, b.id;
  if v_items = '[]' then
    delete from public.llm_batches where id = b.id;
    return jsonb_build_object('batch', null, 'reason', 'somebody else holds what is due');
  end if;
  update public.llm_batches set size = jsonb_array_length(v_items) where id = b.id;
  return jsonb_build_object('batch', b.id, 'uid', b.uid, 'items', v_items);
end
$$;

-- Note the calls of a batch that is about to be sent, the oldest first, as many as the budget allows. p: batch,
-- calls [{id, cost}], zone, daily?, monthly? → sent [item ids], over? {reason, seconds}: why not the others
create or replace function public.toban_begin_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_budget jsonb;
  v_sent jsonb;
  v_spent numeric;
  v_next numeric;
begin
  -- One after the other, as in toban_begin_call.
  perform pg_advisory_xact_lock(hashtextextended('toban:budget', 0));
  v_budget := public.toban_budget(p, 0);
  with asked as (
    select w.id, w.source, w.key, w.attempt, w.opened_at, b.model, coalesce(x.cost, 0) as cost,
           sum(coalesce(x.cost, 0)) over (order by w.opened_at, w.id) as total
    from jsonb_to_recordset(p -> 'calls') x (id bigint, cost numeric)
    join public.llm_batches b on b.id = (p ->> 'batch')::bigint and b.state = 'preparing'
    join public.llm_batch_items i on i.batch_id = b.id and i.item_id = x.id and i.call_id is null
    join public.work_items w on w.id = i.item_id
  ), allowed as materialized (
    select *, public.toban_budget(p, total) ? 'over' as too_much from asked
  ), noted as (
    insert into public.llm_calls (item_id, source, key, attempt, lane, model, cost, day)
    select id, source, key, attempt, 'batch', model, cost, (v_budget ->> 'day')::date from allowed where not too_much
    returning id, item_id, cost
  ), linked as (
    update public.llm_batch_items i set call_id = n.id from noted n
    where i.batch_id = (p ->> 'batch')::bigint and i.item_id = n.item_id
  )
  select (select coalesce(jsonb_agg(item_id order by item_id), '[]') from noted),
         (select coalesce(sum(cost), 0) from noted),
         (select cost from allowed where too_much order by opened_at, id limit 1)
    into v_sent, v_spent, v_next;
  perform public.toban_spend((v_budget ->> 'day')::date, jsonb_array_length(v_sent), v_spent);
  return jsonb_strip_nulls(jsonb_build_object('sent', v_sent, 'over',
    case when v_next is not null then public.toban_budget(p, v_next) -> 'over' end));
end
$$;

-- The provider has a batch. p: batch, provider_id → submitted; false: it has been given up meanwhile
create or replace function public.toban_batch_submitted(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.llm_batches set state = 'submitted', provider_id = p ->> 'provider_id', submitted_at = now(),
    busy_until = now()
  where id = (p ->> 'batch')::bigint and state = 'preparing';
  return jsonb_build_object('submitted', exists (
    select from public.llm_batches where id = (p ->> 'batch')::bigint and state <> 'ended'
      and provider_id = p ->> 'provider_id'));
end
$$;

-- Give items of a batch back, costing no try. p: batch, ids? (default: all that are out), direct (they leave the lane
-- for good and are asked for one by one) → left. Whose row changed meanwhile goes as a new one, in whichever lane.
create or replace function public.toban_leave_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_left integer;
begin
  with mine as (
    select w.id, w.revision <> w.started_revision as changed
    from public.toban_batch_out((p ->> 'batch')::bigint) o
    join public.work_items w on w.id = (o.item).id and w.state = 'processing' and w.token = (o.item).token
    where p ->> 'ids' is null or w.id in (select x::bigint from jsonb_array_elements_text(p -> 'ids') x)
    order by w.source, w.key for update of w
  )
  update public.work_items w set
    state = 'pending', lease_until = null, available_at = now(),
    opened_at = case when mine.changed then now() else w.opened_at end,
    tries = case when mine.changed then 0 else greatest(w.tries - 1, 0) end,
    params = case when (p ->> 'direct')::boolean and not mine.changed then w.params || '{"direct": true}'
             else w.params end
  from mine where w.id = mine.id;
  get diagnostics v_left = row_count;
  return jsonb_build_object('left', v_left);
end
$$;

-- The next batch to look after; it is the caller's until `busy` (s) is over. Items whose row changed, or was asked for
-- by hand, have left it by then: what it answers for them is of no use. p: source, busy, after (a batch's id)
-- → batch null, or {id, uid, state, model, provider_id, out (how many items), due: they have to leave it, age (s)}
create or replace function public.toban_take_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  b public.llm_batches;
  v_changed jsonb;
  v_out integer;
begin
  select * into b from public.llm_batches
    where source = p ->> 'source' and state <> 'ended' and busy_until <= now() and id > (p ->> 'after')::bigint
    order by id limit 1 for update skip locked;
  if not found then
    return jsonb_build_object('batch', null);
  end if;
  update public.llm_batches set busy_until = now() + (p ->> 'busy')::numeric * interval '1 s' where id = b.id;
  select jsonb_agg((o.item).id) into v_changed from public.toban_batch_out(b.id) o
    where (o.item).revision <> (o.item).started_revision;
  if v_changed is not null then
    perform public.toban_leave_batch(jsonb_build_object('batch', b.id, 'ids', v_changed, 'direct', false));
  end if;
  select count(*) into v_out from public.toban_batch_out(b.id);
  return jsonb_build_object('batch', jsonb_build_object('id', b.id, 'uid', b.uid, 'state', b.state, 'model', b.model,
    'provider_id', b.provider_id, 'out', v_out, 'due', b.leave_by <= now() or v_out = 0,
    'age', extract(epoch from now() - b.created_at)));
end
$$;

-- What was sent with a batch. p: batch → items [{id, attempt, call, out}], and of those that are still out also token,
-- tries, max_attempts, key, ref, opened_at
create or replace function public.toban_batch_items(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '30s' as $$
  select jsonb_build_object('items', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'id', i.item_id, 'attempt', i.attempt, 'call', i.call_id, 'out', w.id is not null, 'token', w.token,
    'tries', w.tries, 'max_attempts', w.max_attempts, 'key', w.key, 'ref', w.ref, 'opened_at', w.opened_at))
    order by i.item_id), '[]'))
  from public.llm_batch_items i
  left join public.work_items w on w.id = i.item_id and w.state = 'processing' and w.token = i.token
  where i.batch_id = (p ->> 'batch')::bigint and i.call_id is not null
$$;

-- How a batch gets on; nobody looks after it now. p: batch, state?, message? → noted
create or replace function public.toban_note_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.llm_batches set state = coalesce(p ->> 'state', state), message = coalesce(p ->> 'message', message),
    busy_until = now()
  where id = (p ->> 'batch')::bigint and state <> 'ended';
  return jsonb_build_object('noted', found);
end
$$;

-- A batch is over: what is still out leaves it, and its calls end. p: batch, message, direct (see toban_leave_batch),
-- lost (its unanswered calls may have been billed), days (older batches are forgotten) → left
create or replace function public.toban_end_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  b public.llm_batches;
  v_left jsonb;
  v_calls bigint[];
  v_call bigint;
begin
  update public.llm_batches set state = 'ended', ended_at = now(), busy_until = now(), message = p ->> 'message'
  where id = (p ->> 'batch')::bigint and state <> 'ended' returning * into b;
  if not found then
    return jsonb_build_object('left', 0);
  end if;
  v_left := public.toban_leave_batch(p - 'ids');
  v_calls := array(select call_id from public.llm_batch_items where batch_id = b.id and call_id is not null
                   order by call_id);
  if b.submitted_at is null then
    -- They never were. The day before the calls, as everywhere.
    perform from public.llm_days d
      where d.day in (select day from public.llm_calls where id = any (v_calls)) order by d.day for no key update;
    with gone as (
      delete from public.llm_calls where id = any (v_calls) and outcome in ('sent', 'lost') returning day, cost
    )
    update public.llm_days d set calls = d.calls - g.n, cost = d.cost - g.cost
    from (select day, count(*) as n, sum(cost) as cost from gone group by day) g where d.day = g.day;
  elsif (p ->> 'lost')::boolean then
    perform public.toban_lose_calls(v_calls);
  else
    foreach v_call in array v_calls loop
      perform public.toban_end_call(jsonb_build_object('call', v_call, 'outcome', 'unanswered', 'cost', 0));
    end loop;
  end if;
  update public.llm_batches set answered = (
    select count(*) from public.llm_calls where id = any (v_calls) and outcome = 'ok') where id = b.id;
  delete from public.llm_batch_items where batch_id = b.id;
  delete from public.llm_batches
    where state = 'ended' and ended_at < now() - (p ->> 'days')::integer * interval '1 day';
  return v_left;
end
$$;

-- Everything a person asks first. p: failed? (how many failed items to list, default 20) → sources, queues, workers,
-- jobs, failed, running (on workers), batches (that are out)
create or replace function public.toban_status(p jsonb) returns jsonb
language sql security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object(
    'now', now(),
    'sources', (select coalesce(jsonb_agg(x order by x.source), '[]') from (
      select s.source, s.watched,
        count(w.id) filter (where w.state = 'pending') as pending,
        count(w.id) filter (where w.state = 'queued') as queued,
        count(w.id) filter (where w.state = 'processing') as processing,
        count(w.id) filter (where w.state = 'completed') as completed,
        count(w.id) filter (where w.state = 'skipped') as skipped,
        count(w.id) filter (where w.state = 'failed') as failed,
        min(w.opened_at) filter (where w.state = 'pending' and w.available_at <= now()) as oldest_due
      from public.toban_sources s left join public.work_items w using (source) group by s.source) x),
    'workers', (select coalesce(jsonb_agg(to_jsonb(k) order by k.id), '[]')
                from public.workers k where k.expires_at > now()),
    'jobs', (select coalesce(jsonb_agg(jsonb_build_object(
        'job', j.job, 'title', j.title, 'source', j.source, 'enabled', j.enabled,
        'every', extract(epoch from j.every),
        'last_started_at', j.last_started_at, 'last_finished_at', j.last_finished_at,
        'last_status', j.last_status, 'last_message', j.last_message) order by j.job), '[]') from public.jobs j),
    'running', (select coalesce(jsonb_agg(jsonb_build_object(
        'source', w.source, 'key', w.key, 'worker', w.worker, 'attempt', w.attempt, 'tries', w.tries,
        'started_at', w.started_at, 'progress', w.progress) order by w.started_at), '[]')
      from public.work_items w where w.state = 'processing' and w.queue is not null),
    'batches', (select coalesce(jsonb_agg(jsonb_build_object(
        'id', b.id, 'source', b.source, 'state', b.state, 'size', b.size, 'created_at', b.created_at,
        'leave_by', b.leave_by, 'message', b.message,
        'out', (select count(*) from public.toban_batch_out(b.id))) order by b.id), '[]')
      from public.llm_batches b where b.state <> 'ended'),
    'failed', (select coalesce(jsonb_agg(x order by x.finished_at desc), '[]') from (
      select w.source, w.key, w.tries, w.finished_at, w.last_error_kind, w.last_error
      from public.work_items w where w.state = 'failed' and w.incident_since is not null  -- (as the index has it)
      order by w.finished_at desc limit coalesce((p ->> 'failed')::integer, 20)) x))
$$;

select public.toban_lock_table(t) from unnest(array['llm_batches', 'llm_batch_items']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
