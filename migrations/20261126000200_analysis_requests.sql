-- A time block that somebody asks for over the API, and waits for: it goes through the ledger like every other row.

create table if not exists public.analysis_requests (
  owner text not null,
  idempotency_key text not null,
  fingerprint text not null,
  key text not null,
  created_at timestamptz not null default now(),
  primary key (owner, idempotency_key)
);
comment on table public.analysis_requests is 'requests with an idempotency key, for a day';
comment on column public.analysis_requests.owner is 'who asked; a key is known within one owner''s';
comment on column public.analysis_requests.key is 'of the block''s item';
comment on column public.analysis_requests.fingerprint is 'of what was asked for, so that a key is not used for two things';
create index if not exists analysis_requests_created_idx on public.analysis_requests (created_at);

-- Why an item is not taken yet, beside its turn; [] for one that does not wait. Codes as in toban_page_item().
create or replace function public.toban_why(w public.work_items, p_queue text, p_zone text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  s public.toban_sources;
  j public.jobs;
  h public.queue_holds;
  f jsonb;
  v_slots integer;
  v_queued integer;
  v_sent integer;
  v_why jsonb := '[]';
begin
  if w.state <> 'pending' then
    return v_why;
  end if;
  if exists (select from public.source_modes m where m.source = w.source and m.mode = 'shadow') then
    return '[{"code": "shadow"}]';  -- and nothing else matters
  end if;
  select * into s from public.toban_sources where source = w.source;
  select * into j from public.jobs where source = w.source order by job limit 1;
  select * into h from public.queue_holds where queue = p_queue and until > now()
    order by incident desc, until desc limit 1;
  v_slots := public.toban_slots(p_queue);
  v_queued := public.toban_queued(p_queue);
  if not j.enabled then
    v_why := v_why || jsonb_build_object('code', 'paused', 'job', j.job);
  end if;
  f := public.toban_filters(j, s, p_zone);
  if f ->> 'partition' <> w.partition then
    v_why := v_why || jsonb_build_object('code', 'excluded', 'filter', 'partition', 'value', f ->> 'partition');
  end if;
  if w.at < (f ->> 'since')::timestamptz or w.at >= (f ->> 'until')::timestamptz
     or w.ref ->> (f ->> 'date_column') <> f ->> 'date' then
    v_why := v_why || jsonb_build_object('code', 'excluded', 'filter',
      case when j.filters ? 'date' then 'date' when w.at < (f ->> 'since')::timestamptz then 'since' else 'until' end,
      'value', coalesce(j.filters ->> 'date',
        case when w.at < (f ->> 'since')::timestamptz then f ->> 'since' else f ->> 'until' end));
  end if;
  if h.queue is not null then
    v_why := v_why || jsonb_build_object('code', 'held', 'cause', h.cause, 'reason', h.reason, 'until', h.until,
                                         'incident', h.incident);
  end if;
  if v_slots = 0 then
    v_why := v_why || jsonb_build_object('code', 'no_worker', 'queue', p_queue);
  end if;
  if w.available_at > now() then
    v_why := v_why || jsonb_build_object('code', 'later', 'at', w.available_at, 'try', w.tries + 1,
                                         'max_attempts', w.max_attempts);
  end if;
  if w.last_error_kind = 'not_ready' then
    v_why := v_why || jsonb_build_object('code', 'not_ready', 'error', w.last_error);
  end if;
  v_sent := (select dispatched from public.runs where job = j.job and slot = public.toban_slot(j, now()));
  if coalesce(v_sent, 0) >= j.batch_limit then
    v_why := v_why || jsonb_build_object('code', 'batch_limit', 'limit', j.batch_limit,
                                         'next',
      ((public.toban_slot(j, now()) at time zone j.zone) + j.every) at time zone j.zone);
  end if;
  if v_slots > 0 and v_queued >= 2 * v_slots then
    v_why := v_why || jsonb_build_object('code', 'full', 'queue', p_queue, 'queued', v_queued, 'slots', v_slots);
  end if;
  return v_why;
end
$$;

-- One item, and why it still waits. p: source, key, queue (that its source's work goes to), zone (of the filters' days)
-- → item, attempts, calls, why [{code, …}]. Codes, in the order in which they have to go:
--   shadow                                    its source is in shadow mode (alone; the rest does not matter then)
--   paused {job}                              its job is
--   excluded {filter, value}                  its job's filters leave it out
--   held {cause, reason, until, incident}     its queue is
--   no_worker {queue}                         nobody listens
--   later {at, try, max_attempts}             not due yet; `try` would be the next
--   not_ready {error}                         the worker could not work, and it was put back
--   batch_limit {limit, next}                 the slot's limit is reached; `next` begins the next one
--   full {queue, queued, slots}               enough is under way
--   turn {ahead}                              it is due; so many others of its source are
create or replace function public.toban_page_item(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
  v_why jsonb;
begin
  select * into w from public.work_items where source = p ->> 'source' and key = p ->> 'key';
  if not found then
    raise exception 'there is no item % of %', p ->> 'key', p ->> 'source' using errcode = 'TB404';
  end if;
  v_why := public.toban_why(w, p ->> 'queue', coalesce(p ->> 'zone', 'UTC'));
  if w.state = 'pending' and v_why = '[]' then
    v_why := v_why || jsonb_build_object('code', 'turn', 'ahead', (
      select count(*) from public.work_items o where o.source = w.source and o.state = 'pending'
        and o.available_at <= now() and o.id <> w.id
        and (o.priority, -extract(epoch from coalesce(o.at, o.opened_at)))
          > (w.priority, -extract(epoch from coalesce(w.at, w.opened_at)))));
  end if;
  return jsonb_build_object('now', now(), 'item', public.toban_item_json(w), 'traceback', w.last_traceback,
    'attempts', public.toban_attempts_of(w.id, 50), 'calls', public.toban_calls_of(w.source, w.key, 20),
    'why', v_why);
end
$$;

-- The key of the item of a time block, as the table writes its values. p: device_id, date, time_block
create or replace function public.toban_block_key(p jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_key text;
begin
  execute (select format('select %s from jsonb_populate_record(null::%s, $1) r', key_sql, watched)
           from public.toban_sources where source = 'analysis') into v_key using p;
  return v_key;
exception when data_exception then
  raise exception 'the table dashboard has no such block: %', sqlerrm using errcode = 'TB400';
end
$$;

-- How a block gets on, as toban_analyses() tells it. p_prompt: SHA-256 (hex) of the prompt that is meant; null: any
create or replace function public.toban_analysis_json(p_key text, p_prompt text, p_queue text, p_zone text)
returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  w public.work_items;
  s public.toban_sources;
  r public.dashboard;
begin
  select * into w from public.work_items where source = 'analysis' and key = p_key;
  if not found then
    return jsonb_build_object('key', p_key, 'state', null);
  end if;
  select * into s from public.toban_sources where source = 'analysis';
  execute format('select r.* from public.dashboard r where %s', s.where_sql) into r using w.ref;
  return jsonb_build_object('key', p_key, 'state', w.state,
    'own', coalesce(encode(sha256(convert_to(r.prompt, 'UTF8')), 'hex') = p_prompt, true),
    'result', case when w.state = 'completed' then r.analysis_result end, 'processed_at', r.processed_at,
    'tries', w.tries, 'available_at', w.available_at, 'error', w.last_error, 'kind', w.last_error_kind,
    'outcome', (select outcome from public.llm_calls where item_id = w.id order by id desc limit 1),
    'why', public.toban_why(w, p_queue, p_zone));
end
$$;

-- How some blocks get on. p: blocks [{key, prompt?}], or one block as device_id, date, time_block; queue, zone
-- → blocks [{key, state (null: there is none), own (its prompt is the one that is meant), result?, processed_at, tries,
-- available_at, error, kind, outcome (of the last call to a model), why}]
create or replace function public.toban_analyses(p jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_blocks jsonb := coalesce(p -> 'blocks', jsonb_build_array(jsonb_build_object('key', public.toban_block_key(p))));
begin
  return jsonb_build_object('blocks', (
    select coalesce(jsonb_agg(public.toban_analysis_json(b ->> 'key', b ->> 'prompt', p ->> 'queue',
                                                         coalesce(p ->> 'zone', 'UTC'))), '[]')
    from jsonb_array_elements(v_blocks) b));
end
$$;

-- Write a block's prompt so that it is analysed before others. A block that waits or runs with this very prompt is not
-- asked for twice: whoever asks shares its verdict. One in a batch leaves it.
-- p: device_id, date, time_block, prompt; owner; idempotency_key? and fingerprint
-- → key, timeout (s, of the job; null: it has none), and how it went: `opened`, `joined` (it was under way), `repeated`
-- (the same request, by its idempotency key), `mismatch` (its idempotency key was used for another request), or `shadow`
-- (the source is in shadow mode, in which its rows stay as they are)
create or replace function public.toban_ask_analysis(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' set lock_timeout = '5s' as $$
declare
  s public.toban_sources;
  w public.work_items;
  q public.analysis_requests;
  r public.dashboard;
  v_key text := public.toban_block_key(p);
  v_answer jsonb := jsonb_build_object('key', v_key, 'timeout', (
    select extract(epoch from timeout) from public.jobs where source = 'analysis' order by job limit 1));
  v_batch bigint;
begin
  if p ->> 'idempotency_key' is not null then
    -- The second of two requests at once waits for the first one.
    perform pg_advisory_xact_lock(hashtextextended(
      format('toban:idempotency:%s/%s', p ->> 'owner', p ->> 'idempotency_key'), 0));
    select * into q from public.analysis_requests a
      where a.owner = p ->> 'owner' and a.idempotency_key = p ->> 'idempotency_key'
        and a.created_at > now() - interval '1 day'
        -- (One whose item is gone has no answer any more.)
        and exists (select from public.work_items i where i.source = 'analysis' and i.key = a.key);
    if found then
      return v_answer || jsonb_build_object('how',
        case when q.fingerprint = p ->> 'fingerprint' then 'repeated' else 'mismatch' end);
    end if;
  end if;
  if public.toban_shadowed('analysis') then
    return v_answer || '{"how": "shadow"}';
  end if;
  if p ->> 'idempotency_key' is not null then
    insert into public.analysis_requests (owner, idempotency_key, fingerprint, key)
    values (p ->> 'owner', p ->> 'idempotency_key', p ->> 'fingerprint', v_key)
    on conflict (owner, idempotency_key) do update set
      fingerprint = excluded.fingerprint, key = excluded.key, created_at = excluded.created_at;
  end if;
  select * into strict s from public.toban_sources where source = 'analysis';
  -- Those who ask for one block come one after the other. Then the row, then its item: that of a row that was not there
  -- a moment ago must not be locked before the row.
  perform pg_advisory_xact_lock(hashtextextended('toban:ask:' || v_key, 0));
  select d.* into r from public.dashboard d, jsonb_populate_record(null::public.dashboard, p) x
    where d.device_id = x.device_id and d.date = x.date and d.time_block = x.time_block for update of d;
  if found then
    select * into w from public.work_items where source = 'analysis' and key = v_key for update;
  end if;
  v_batch := (select i.batch_id from public.llm_batch_items i where i.item_id = w.id and i.token = w.token limit 1);
  if r.status = s.pending_value and r.prompt = p ->> 'prompt' and v_batch is null
     and (w.state in ('pending', 'queued') or w.state = 'processing' and w.revision = w.started_revision) then
    update public.work_items set priority = greatest(priority, 10), available_at = least(available_at, now())
      where id = w.id;
    return v_answer || '{"how": "joined"}';
  end if;
  insert into public.dashboard as d (device_id, date, time_block, prompt, status)
  select x.device_id, x.date, x.time_block, x.prompt, s.pending_value
  from jsonb_populate_record(null::public.dashboard, p) x
  on conflict (device_id, date, time_block) do update set
    prompt = excluded.prompt, status = excluded.status, updated_at = now();
  perform public.toban_reprocess(jsonb_build_object('source', 'analysis', 'keys', jsonb_build_array(v_key)));
  if v_batch is not null then
    perform public.toban_leave_batch(jsonb_build_object('batch', v_batch, 'ids', jsonb_build_array(w.id),
                                                        'direct', true));
  end if;
  return v_answer || '{"how": "opened"}';
exception when integrity_constraint_violation or data_exception then
  raise exception 'the table dashboard does not take this block: %', sqlerrm using errcode = 'TB400';
end
$$;

select public.toban_lock_table('analysis_requests');
select public.toban_lock_down();
notify pgrst, 'reload schema';
