-- The cheap lane: rows that may wait go to the language model in batches, at half the price. In a batch an item is
-- `processing` like any other, with the attempt and the token of its own; its worker is called `batch <id>`.

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
comment on column public.llm_batches.uid is 'the batch''s name at the provider, by which one is found whose number was lost';
comment on column public.llm_batches.leave_by is 'when the first of its rows has to leave the lane to keep its deadline';
comment on column public.llm_batches.busy_until is 'somebody looks after it until then; nobody else does';

create table if not exists public.llm_batch_items (
  batch_id bigint not null references public.llm_batches (id) on delete cascade,
  item_id bigint not null,
  attempt integer not null,
  token uuid not null,
  call_id bigint,
  primary key (batch_id, item_id)
);

-- Start a batch of waiting items. p: source, queue, model, limit, least (fewer are taken only when the oldest has waited
-- for `patience`), patience (s), lease (s, of its rows until it is submitted), busy (s, until somebody else looks after
-- it), max_attempts, deadline (s), lead (s: before the deadline a row leaves the lane), zone? → batch, uid, items [{id, attempt, token, key, ref, row, tries, max_attempts}]   or   batch null, reason
create or replace function public.toban_open_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  s public.toban_sources;
  j public.jobs;
  f jsonb;
  v_held text := (select reason from public.toban_held(p ->> 'queue', false));
  v_since timestamptz := now() - ((p ->> 'deadline')::numeric - (p ->> 'lead')::numeric) * interval '1 s';
  v_lease timestamptz := now() + (p ->> 'lease')::numeric * interval '1 s';
  v_ids bigint[];
  v_oldest timestamptz;
  b public.llm_batches;
  v_items jsonb;
begin
  select * into s from public.toban_sources where source = p ->> 'source';
  select * into j from public.jobs where source = p ->> 'source';
  if v_held is not null or not j.enabled then
    return jsonb_build_object('batch', null, 'reason', coalesce('held: ' || v_held, 'paused'));
  end if;
  f := public.toban_filters(j, s, coalesce(p ->> 'zone', 'UTC'));
  v_ids := array(
    select w.id from public.work_items w
    where w.source = s.source and w.state = 'pending' and w.available_at <= now()
      and w.opened_at >= v_since and w.priority <= 0 and not w.params ? 'direct'
      and (f ->> 'partition' is null or w.partition = f ->> 'partition')
      and (f ->> 'date' is null or w.ref ->> (f ->> 'date_column') = f ->> 'date')
    order by w.opened_at limit (p ->> 'limit')::integer);
  -- In the order of their keys, as everywhere.
  v_ids := array(select w.id from public.work_items w where w.id = any (v_ids) and w.state = 'pending'
                 order by w.key for update skip locked);
  select min(opened_at) into v_oldest from public.work_items where id = any (v_ids);
  if v_ids = '{}' or cardinality(v_ids) < (p ->> 'least')::integer
     and v_oldest > now() - (p ->> 'patience')::numeric * interval '1 s' then
    return jsonb_build_object('batch', null, 'reason', format('%s wait', cardinality(v_ids)));
  end if;
  insert into public.llm_batches (source, model, size, leave_by, busy_until)
  values (s.source, p ->> 'model', cardinality(v_ids),
          v_oldest + ((p ->> 'deadline')::numeric - (p ->> 'lead')::numeric) * interval '1 s',
          now() + (p ->> 'busy')::numeric * interval '1 s')
  returning * into b;
  execute format($q$
    with mine as (
      update public.work_items w set
        state = 'processing', queue = $1 ->> 'queue', claim_no = w.claim_no + 1, task_id = gen_random_uuid(),
        run_id = null, claimed_at = now(), max_attempts = ($1 ->> 'max_attempts')::integer,
        attempt = w.attempt + 1, tries = w.tries + 1, started_revision = w.revision, token = gen_random_uuid(),
        worker = $2, started_at = now(), run_until = $3, lease_until = $3,
        progress = '{"phase": "in a batch"}', progress_at = now()
      from %s r
      where w.id = any ($4) and %s and %s
      returning w.id, w.attempt, w.token, w.key, w.ref, w.tries, w.max_attempts, to_jsonb(r) as row
    ), noted as (
      insert into public.llm_batch_items (batch_id, item_id, attempt, token)
      select $5, id, attempt, token from mine
    )
    select coalesce(jsonb_agg(to_jsonb(mine)), '[]') from mine$q$,
    s.watched, replace(s.where_sql, '$1', 'w.ref'), s.due_sql)
    into v_items using p, 'batch ' || b.id, v_lease, v_ids, b.id;
  return jsonb_build_object('batch', b.id, 'uid', b.uid, 'items', v_items);
end
$$;

-- The items of a batch that are still out with it.
create or replace function public.toban_batch_out(p_batch bigint)
returns table (item public.work_items, call_id bigint)
language sql stable set search_path = '' as $$
  select w, i.call_id from public.llm_batch_items i
  join public.work_items w on w.id = i.item_id and w.state = 'processing' and w.attempt = i.attempt
    and w.token = i.token
  where i.batch_id = p_batch
$$;

-- Give items of a batch back, costing no try; they are answered one by one. p_ids: null for all that are still out.
create or replace function public.toban_leave_batch(p_batch bigint, p_ids bigint[], p_outcome text) returns integer
language plpgsql set search_path = '' as $$
declare
  v_calls bigint[];
  v_left integer;
  c bigint;
begin
  select array_agg(o.call_id order by o.call_id) into v_calls from public.toban_batch_out(p_batch) o
    where p_ids is null or (o.item).id = any (p_ids);
  with mine as (
    select w.id from public.work_items w join public.toban_batch_out(p_batch) o on (o.item).id = w.id
    where p_ids is null or w.id = any (p_ids) order by w.source, w.key for update of w
  )
  update public.work_items w set
    state = 'pending', lease_until = null, available_at = now(), tries = greatest(w.tries - 1, 0),
    params = w.params || '{"direct": true}'
  from mine where w.id = mine.id;
  get diagnostics v_left = row_count;
  foreach c in array coalesce(array_remove(v_calls, null), '{}') loop
    perform public.toban_end_call(jsonb_build_object('call', c, 'outcome', p_outcome, 'cost', 0));
  end loop;
  return v_left;
end
$$;

-- Note the calls of a batch that is about to be sent, as far as the budget allows; the other items go back, to be
-- answered, or held, one by one. p: batch, calls [{id, cost}], zone, daily?, monthly?
-- → calls {item id: call}, over? {reason, seconds}
create or replace function public.toban_begin_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  b public.llm_batches;
  c record;
  v_budget jsonb;
  v_over jsonb;
  v_call bigint;
  v_calls jsonb := '{}';
  v_left bigint[] := '{}';
begin
  select * into strict b from public.llm_batches where id = (p ->> 'batch')::bigint;
  perform pg_advisory_xact_lock(hashtextextended('toban:budget', 0));
  for c in
    select w.id, w.source, w.key, w.attempt, coalesce(x.cost, 0) as cost
    from jsonb_to_recordset(p -> 'calls') x (id bigint, cost numeric)
    join public.llm_batch_items i on i.batch_id = b.id and i.item_id = x.id
    join public.work_items w on w.id = i.item_id order by w.opened_at, w.id
  loop
    v_budget := public.toban_budget(p, c.cost);
    if v_budget ? 'over' then
      v_over := v_budget -> 'over';
      v_left := v_left || c.id;
      continue;
    end if;
    perform public.toban_spend((v_budget ->> 'day')::date, 1, c.cost);
    insert into public.llm_calls (item_id, source, key, attempt, lane, model, cost, day)
    values (c.id, c.source, c.key, c.attempt, 'batch', b.model, c.cost, (v_budget ->> 'day')::date)
    returning id into v_call;
    update public.llm_batch_items set call_id = v_call where batch_id = b.id and item_id = c.id;
    v_calls := v_calls || jsonb_build_object(c.id, v_call);
  end loop;
  perform public.toban_leave_batch(b.id, v_left, 'unsent');
  return jsonb_strip_nulls(jsonb_build_object('calls', v_calls, 'over', v_over));
end
$$;

-- The provider has taken a batch. p: batch, provider_id, seconds (until it expires there) → submitted
create or replace function public.toban_batch_submitted(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  v_until timestamptz := now() + ((p ->> 'seconds')::numeric + 3600) * interval '1 s';
begin
  update public.llm_batches set state = 'submitted', provider_id = p ->> 'provider_id', submitted_at = now(),
    busy_until = now()
  where id = (p ->> 'batch')::bigint and state = 'preparing';
  if not found then
    return jsonb_build_object('submitted', false);
  end if;
  update public.work_items w set lease_until = v_until, run_until = v_until
    from public.toban_batch_out((p ->> 'batch')::bigint) o where w.id = (o.item).id;
  return jsonb_build_object('submitted', true);
end
$$;

-- Batches to look after; each is the caller's until `lease` (s) is over. p: source, lease, limit?
-- → batches [{id, uid, state, model, provider_id, due: its rows have to leave it, age (s)}]
create or replace function public.toban_batches(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_batches jsonb;
begin
  with mine as (
    select id from public.llm_batches
    where source = p ->> 'source' and state <> 'ended' and busy_until <= now()
    order by id limit coalesce((p ->> 'limit')::integer, 20) for update skip locked
  ), taken as (
    update public.llm_batches b set busy_until = now() + (p ->> 'lease')::numeric * interval '1 s'
    from mine where b.id = mine.id returning b.*
  )
  select coalesce(jsonb_agg(jsonb_build_object('id', t.id, 'uid', t.uid, 'state', t.state, 'model', t.model,
    'provider_id', t.provider_id, 'due', t.leave_by <= now(), 'age', extract(epoch from now() - t.created_at))
    order by t.id), '[]') into v_batches from taken t;
  return jsonb_build_object('batches', v_batches);
end
$$;

-- The items that are still out with a batch. p: batch
-- → items [{id, attempt, token, tries, max_attempts, key, ref, call, queue}]
create or replace function public.toban_batch_items(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '30s' as $$
  select jsonb_build_object('items', coalesce(jsonb_agg(jsonb_build_object(
    'id', (o.item).id, 'attempt', (o.item).attempt, 'token', (o.item).token, 'tries', (o.item).tries,
    'max_attempts', (o.item).max_attempts, 'key', (o.item).key, 'ref', (o.item).ref, 'call', o.call_id,
    'queue', (o.item).queue, 'opened_at', (o.item).opened_at)), '[]'))
  from public.toban_batch_out((p ->> 'batch')::bigint) o
$$;

-- How a batch got on. p: batch, state?, answered?, message?; `ended` gives back what is still out. → left
create or replace function public.toban_batch_state(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_left integer := 0;
begin
  update public.llm_batches set
    state = coalesce(p ->> 'state', state), answered = coalesce((p ->> 'answered')::integer, answered),
    message = coalesce(p ->> 'message', message), busy_until = now(),
    ended_at = case when p ->> 'state' = 'ended' then now() end
  where id = (p ->> 'batch')::bigint and state <> 'ended';
  if p ->> 'state' = 'ended' then
    v_left := public.toban_leave_batch((p ->> 'batch')::bigint, null, 'unanswered');
  end if;
  return jsonb_build_object('left', v_left);
end
$$;

select public.toban_lock_table(t) from unnest(array['llm_batches', 'llm_batch_items']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
