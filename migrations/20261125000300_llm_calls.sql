-- Every call to a language model: what it was for, how it ended, what it cost. Noted before it is sent, so that one
-- whose answer was lost is known, and a budget holds.

create table if not exists public.llm_calls (
  id bigint generated always as identity primary key,
  item_id bigint not null,
  source text not null,
  key text not null,
  attempt integer not null,
  lane text not null default 'direct' check (lane in ('direct', 'batch')),
  model text not null,
  outcome text not null default 'sent',
  possibly_billed boolean not null default false,
  prompt_tokens integer,
  cached_tokens integer,
  completion_tokens integer,
  cost numeric(14, 8) not null default 0,
  latency_ms integer,
  day date not null,
  sent_at timestamptz not null default now(),
  ended_at timestamptz
);
comment on column public.llm_calls.item_id is 'no foreign key: the item is forgotten earlier';
comment on column public.llm_calls.outcome is
  'sent (no answer yet), ok, lost (there was none), or what was wrong: refusal, truncated, invalid_json, timeout …';
comment on column public.llm_calls.possibly_billed is
  'the call went out and no answer came: whether it is billed only the bill tells; cost is an estimate';
comment on column public.llm_calls.cost is 'US dollars; while it is sent, an estimate; 0 also where no price is known';
comment on column public.llm_calls.day is 'when it was sent, in the devices'' zone: the day whose budget it uses';
create index if not exists llm_calls_item_idx on public.llm_calls (item_id);
create index if not exists llm_calls_key_idx on public.llm_calls (source, key);
create index if not exists llm_calls_sent_idx on public.llm_calls (sent_at) where outcome = 'sent';

-- What a day's calls cost so far, because a sum over a month's calls for each call would not be free.
create table if not exists public.llm_days (
  day date primary key,
  calls integer not null default 0,
  cost numeric(14, 8) not null default 0
);

create or replace function public.toban_spend(p_day date, p_calls integer, p_cost numeric) returns void
language sql set search_path = '' as $$
  insert into public.llm_days as d (day, calls, cost) values (p_day, p_calls, p_cost)
  on conflict (day) do update set calls = d.calls + excluded.calls, cost = d.cost + excluded.cost
$$;

-- A call's answer was lost. It may have been billed: the estimate stays its cost.
create or replace function public.toban_lose_calls(p_ids bigint[]) returns integer
language plpgsql set search_path = '' as $$
declare
  v_lost integer;
begin
  with mine as (
    select id from public.llm_calls where id = any (p_ids) and outcome = 'sent' order by id for update
  )
  update public.llm_calls c set outcome = 'lost', possibly_billed = true, ended_at = now()
    from mine where c.id = mine.id;
  get diagnostics v_lost = row_count;
  return v_lost;
end
$$;

-- How much may still be spent. p: zone, daily?, monthly? (budgets, US dollars) → day, spent_today, spent_this_month,
-- over? {reason, seconds until it goes on} when `p_cost` more would be too much
create or replace function public.toban_budget(p jsonb, p_cost numeric) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_zone text := coalesce(p ->> 'zone', 'UTC');
  v_now timestamp := now() at time zone v_zone;
  v_daily numeric := p ->> 'daily';
  v_monthly numeric := p ->> 'monthly';
  v_today numeric := coalesce((select cost from public.llm_days where day = v_now::date), 0);
  v_month numeric := coalesce(
    (select sum(cost) from public.llm_days where day >= date_trunc('month', v_now)::date and day <= v_now::date), 0);
  v_next timestamp;
  v_name text;
  v_limit numeric;
  v_spent numeric;
begin
  if v_month + p_cost > v_monthly then
    v_next := date_trunc('month', v_now) + interval '1 month';
    v_name := 'month'; v_limit := v_monthly; v_spent := v_month;
  elsif v_today + p_cost > v_daily then
    v_next := date_trunc('day', v_now) + interval '1 day';
    v_name := 'day'; v_limit := v_daily; v_spent := v_today;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('day', v_now::date, 'spent_today', v_today, 'spent_this_month', v_month,
    'over', case when v_name is not null then jsonb_build_object(
      'reason', format('the budget of %s USD a %s is used up (%s spent, and the next call may cost %s); it goes on at '
                       '%s %s, or soon after LLM_BUDGET_%s is raised', trim_scale(v_limit), v_name,
                       trim_scale(round(v_spent, 4)), trim_scale(round(p_cost, 4)),
                       to_char(v_next, 'YYYY-MM-DD HH24:MI'), v_zone,
                       case v_name when 'day' then 'DAILY' else 'MONTHLY' end),
      'seconds', extract(epoch from (v_next at time zone v_zone) - now())) end));
end
$$;

-- A call is about to be sent. p: id, attempt, token, model, cost (estimate, US dollars), zone, daily?, monthly?
-- → call   or   over {reason, seconds}: the budget does not allow it   or   lost: another attempt owns the item
create or replace function public.toban_begin_call(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  v_cost numeric := coalesce((p ->> 'cost')::numeric, 0);
  v_budget jsonb;
  v_call bigint;
begin
  -- (No lock: the fence that counts is the finish's. A call that is sent for an item just lost is a call all the same.)
  select * into w from public.work_items where id = (p ->> 'id')::bigint;
  if w.state is distinct from 'processing' or w.attempt <> (p ->> 'attempt')::integer
     or w.token is distinct from (p ->> 'token')::uuid then
    return jsonb_build_object('lost', true);
  end if;
  -- One after the other, so that ten calls at once can't each be the last one that the budget allows.
  perform pg_advisory_xact_lock(hashtextextended('toban:budget', 0));
  v_budget := public.toban_budget(p, v_cost);
  if v_budget ? 'over' then
    return jsonb_build_object('over', v_budget -> 'over');
  end if;
  perform public.toban_spend((v_budget ->> 'day')::date, 1, v_cost);
  insert into public.llm_calls (item_id, source, key, attempt, model, cost, day)
  values (w.id, w.source, w.key, w.attempt, p ->> 'model', v_cost, (v_budget ->> 'day')::date)
  returning id into v_call;
  -- Whoever worked on the item before and left a call without an end, has died. (Last: the day comes before the calls.)
  perform public.toban_lose_calls(array(
    select id from public.llm_calls where item_id = w.id and outcome = 'sent' and attempt < w.attempt));
  return jsonb_build_object('call', v_call);
end
$$;

-- How it ended. p: call, outcome, model?, prompt_tokens?, cached_tokens?, completion_tokens?, latency_ms?, cost? (US
-- dollars; without one the estimate stays), possibly_billed? → ended; a repeated call changes nothing
create or replace function public.toban_end_call(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  c public.llm_calls;
begin
  -- The day before the call, as everywhere: a finish has its item locked and must not wait in a circle.
  perform from public.llm_days d
    where d.day = (select day from public.llm_calls where id = (p ->> 'call')::bigint) for no key update;
  select * into c from public.llm_calls where id = (p ->> 'call')::bigint for update;
  if not found or c.outcome not in ('sent', 'lost') then
    return jsonb_build_object('ended', false);
  end if;
  update public.llm_calls set
    outcome = p ->> 'outcome', model = coalesce(p ->> 'model', model), ended_at = now(),
    possibly_billed = coalesce((p ->> 'possibly_billed')::boolean, false),
    prompt_tokens = (p ->> 'prompt_tokens')::integer, cached_tokens = (p ->> 'cached_tokens')::integer,
    completion_tokens = (p ->> 'completion_tokens')::integer, latency_ms = (p ->> 'latency_ms')::integer,
    cost = coalesce((p ->> 'cost')::numeric, cost)
  where id = c.id;
  if p ->> 'cost' is not null and (p ->> 'cost')::numeric <> c.cost then
    perform public.toban_spend(c.day, 0, (p ->> 'cost')::numeric - c.cost);
  end if;
  return jsonb_build_object('ended', true);
end
$$;

-- Upkeep: calls whose worker died and whose item never went again, holds whose time is long over and whose queue had
-- nothing to do since, and calls that are old enough to be forgotten. p: calls_days, limit? (default 10000)
-- → lost, lifted, forgotten, more (call again)
create or replace function public.toban_upkeep_calls(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_lost integer;
  v_lifted integer := 0;
  v_forgotten integer;
  v_queue text;
begin
  v_lost := public.toban_lose_calls(array(
    select c.id from public.llm_calls c where c.outcome = 'sent' and c.lane = 'direct'
      and c.sent_at < now() - interval '5 min' and not exists (
        select from public.work_items w where w.id = c.item_id and w.state = 'processing' and w.attempt = c.attempt)));
  for v_queue in select distinct queue from public.queue_holds where until < now() - interval '15 min' loop
    v_lifted := v_lifted + public.toban_lift(v_queue);
  end loop;
  with old as (
    select id from public.llm_calls where sent_at < now() - (p ->> 'calls_days')::integer * interval '1 day'
      and outcome <> 'sent' order by id limit v_limit for update skip locked
  )
  delete from public.llm_calls c using old where c.id = old.id;
  get diagnostics v_forgotten = row_count;
  delete from public.llm_days where day < now() - greatest((p ->> 'calls_days')::integer, 62) * interval '1 day';
  return jsonb_build_object('lost', v_lost, 'lifted', v_lifted, 'forgotten', v_forgotten,
                            'more', v_forgotten >= v_limit);
end
$$;

-- What was spent. p: zone, days? (default 31; 1: today) → today, month (US dollars), and of these days: outcomes
-- {outcome: count}, models {model: {calls, cost}}, days [{day, calls, cost}], paid_calls, possibly_billed, completed
-- (items with an answer)
create or replace function public.toban_spending(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '30s' as $$
  with budget as (select public.toban_budget(p, 0) as b),
  recent as (
    select c.* from public.llm_calls c, budget
    where c.day > (b ->> 'day')::date - coalesce((p ->> 'days')::integer, 31)
  )
  select jsonb_build_object(
    'today', b -> 'spent_today', 'month', b -> 'spent_this_month',
    'outcomes', (select coalesce(jsonb_object_agg(outcome, n), '{}')
                 from (select outcome, count(*) as n from recent group by outcome) x),
    'models', (select coalesce(jsonb_object_agg(model, jsonb_build_object('calls', n, 'cost', cost)), '{}')
               from (select model, count(*) as n, sum(cost) as cost from recent group by model) x),
    'paid_calls', (select count(*) from recent where coalesce(completion_tokens, 0) > 0 or possibly_billed),
    'possibly_billed', (select count(*) from recent where possibly_billed),
    'completed', (select count(distinct item_id) from recent where outcome = 'ok'),
    'days', (select coalesce(jsonb_agg(to_jsonb(d) order by d.day), '[]') from public.llm_days d
             where d.day > (b ->> 'day')::date - coalesce((p ->> 'days')::integer, 31)))
  from budget
$$;

select public.toban_lock_table(t) from unnest(array['llm_calls', 'llm_days']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
