-- Batches that somebody asks for over the API: the waiting rows of one partition and day go before others, and are
-- followed to their end. (`llm_batches` are another thing: rows that go to a language model together.)
--
-- Locks are taken in one order: the request, its items in the order of their keys, then what is noted of them here.

create table if not exists public.batch_requests (
  id uuid primary key default gen_random_uuid(),
  source text not null,
  partition text not null,
  day date not null,
  model text,
  priority smallint not null,
  owner text not null,
  idempotency_key text,
  fingerprint text,
  total integer not null,
  completed integer not null,
  created_at timestamptz not null default now(),
  cancelled_at timestamptz
);
comment on column public.batch_requests.model is 'the model that was asked for; null: the workers'' own';
comment on column public.batch_requests.owner is 'who asked; an idempotency key is known within one owner''s';
comment on column public.batch_requests.fingerprint is 'of what was asked for, so that a key is not used for two things';
comment on column public.batch_requests.total is 'rows of that day when it was asked for, and how many of them were completed';
create unique index if not exists batch_requests_key_idx
  on public.batch_requests (owner, idempotency_key) where idempotency_key is not null;
create index if not exists batch_requests_created_idx on public.batch_requests (created_at);

create table if not exists public.batch_request_items (
  batch_id uuid not null references public.batch_requests (id) on delete cascade,
  item_id bigint not null,
  key text not null,
  at timestamptz,
  file text,
  state text not null default 'open' check (state in ('open', 'completed', 'skipped', 'failed', 'cancelled')),
  error text,
  ended_at timestamptz,
  was jsonb not null,
  primary key (batch_id, item_id)
);
comment on column public.batch_request_items.state is
  'open, or how the item ended first after it was asked for: what becomes of it later is not this batch''s';
comment on column public.batch_request_items.was is
  'the item''s {priority, model} before any batch that is still open; a cancelled one gives them back';
-- What goes before others is little, and is counted without reading all that waits.
create index if not exists work_items_urgent_idx on public.work_items (source) where state = 'pending' and priority > 0;
create index if not exists batch_request_items_open_idx on public.batch_request_items (item_id) where state = 'open';

alter table public.workers add column if not exists models text[];
alter table public.workers add column if not exists fits text[];
comment on column public.workers.models is 'the models that the process may be asked for; null: it has none, or has not said';
comment on column public.workers.fits is 'the sizes of models that its memory would have room for';

-- p: worker, bytes, models?, fits? → known: whether there is such a worker
create or replace function public.toban_memory_limit(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.workers set
    memory_limit = (p ->> 'bytes')::bigint,
    models = coalesce(array(select jsonb_array_elements_text(p -> 'models')), models),
    fits = coalesce(array(select jsonb_array_elements_text(p -> 'fits')), fits)
  where id = p ->> 'worker';
  return jsonb_build_object('known', found);
end
$$;

-- Whatever ends an item ends it for the batches that wait for it.
create or replace function public.toban_note_request() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.batch_request_items set state = new.state, ended_at = now(),
    error = case when new.state <> 'completed' then new.last_error end
  where item_id = new.id and state = 'open';
  return null;
end
$$;
drop trigger if exists toban_note_request on public.work_items;
create trigger toban_note_request after update of state on public.work_items for each row
  when (new.state in ('completed', 'skipped', 'failed') and old.state <> new.state)
  execute function public.toban_note_request();

-- What is known of a batch's items now: of an open one the ledger says the state, and it has ended with its item.
create or replace function public.toban_request_items(p_batch uuid)
returns table (item public.work_items, key text, at timestamptz, file text, state text, error text, ended_at timestamptz)
language sql stable set search_path = '' as $$
  select w, i.key, i.at, i.file,
    case when i.state <> 'open' then i.state else coalesce(w.state, 'skipped') end,
    case when i.state <> 'open' then i.error when w.id is null then 'the row is gone' else w.last_error end,
    coalesce(i.ended_at, w.finished_at)
  from public.batch_request_items i left join public.work_items w on w.id = i.item_id
  where i.batch_id = p_batch
$$;

-- One batch, and how it gets on. `why`: what keeps the first of its items that wait from being taken, as
-- toban_page_item() says it, without what is only a matter of turns. `eta`: seconds until the last one ends, by how long
-- the latest items took and what goes before; null: nothing can go on, or nothing has been measured.
create or replace function public.toban_request_json(b public.batch_requests, p_queue text, p_zone text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_items jsonb;
  v_open bigint;
  v_waits text;
  v_why jsonb := '[]';
  v_slots integer := public.toban_slots(p_queue);
  v_mean double precision;
  v_ahead integer;
  v_sum double precision;
  v_longest double precision;
  v_unknown bigint;
begin
  select avg(seconds) into v_mean from (
    select extract(epoch from ended_at - started_at) as seconds from public.work_attempts
    where source = b.source and outcome = 'completed' and ended_at > now() - interval '1 day'
    order by ended_at desc limit 20) x;
  with items as (
    select i.*, case
      when i.state in ('pending', 'queued') then v_mean
      when i.state = 'processing' then coalesce(
        (select extract(epoch from now() - (i.item).started_at) * (d.total - d.done) / d.done from (
           select ((i.item).progress ->> 'done')::double precision as done,
                  ((i.item).progress ->> 'total')::double precision as total) d
         where d.done > 0 and d.done <= d.total),
        greatest(v_mean - extract(epoch from now() - (i.item).started_at), 0)) end as rest
    from public.toban_request_items(b.id) i
  )
  select coalesce(jsonb_agg(jsonb_build_object(
      'key', key, 'at', at, 'file', file, 'state', state, 'error', error, 'ended_at', ended_at,
      'progress', case when state = 'processing' then (item).progress end,
      'tries', (item).tries) order by at, key), '[]'),
    count(*) filter (where state in ('pending', 'queued', 'processing')),
    (array_agg(key order by (item).available_at <= now() desc, at, key) filter (where state = 'pending'))[1],
    sum(rest), max(rest), count(*) filter (where state in ('pending', 'queued', 'processing') and rest is null)
    into v_items, v_open, v_waits, v_sum, v_longest, v_unknown from items;
  if v_waits is not null then
    select coalesce(jsonb_agg(w), '[]') into v_why from jsonb_array_elements(public.toban_page_item(jsonb_build_object(
      'source', b.source, 'key', v_waits, 'queue', p_queue, 'zone', p_zone)) -> 'why') w
    where w ->> 'code' not in ('turn', 'full');
  end if;
  select count(*) into v_ahead from (
    select id from public.work_items where source = b.source and queue = p_queue and state in ('queued', 'processing')
    union all
    select id from public.work_items
    where source = b.source and state = 'pending' and priority > 0 and priority >= b.priority and available_at <= now()) w
  where not exists (select from public.batch_request_items i where i.batch_id = b.id and i.item_id = w.id);
  return jsonb_build_object(
    'id', b.id, 'device', b.partition, 'day', b.day, 'model', b.model, 'total', b.total, 'completed', b.completed,
    'created_at', b.created_at, 'cancelled_at', b.cancelled_at, 'now', now(), 'open', v_open, 'items', v_items,
    'why', v_why,
    'eta', case when v_open > 0 and v_unknown = 0 and v_slots > 0 and v_why = '[]'
           then greatest((v_sum + v_ahead * v_mean) / v_slots, v_longest) end);
end
$$;

-- The request of this id.
create or replace function public.toban_request_of(p_id text) returns public.batch_requests
language plpgsql stable set search_path = '' as $$
declare
  b public.batch_requests;
begin
  select * into b from public.batch_requests where id = p_id::uuid;
  if not found then
    raise exception 'there is no batch %', p_id using errcode = 'TB404';
  end if;
  return b;
end
$$;

-- p: batch, queue, zone → {id, device, day, model?, total, completed, created_at, cancelled_at?, now, open, items [{key,
-- at, file, state, error?, ended_at?, progress?, tries}], why [{code, …}], eta? (s)}
create or replace function public.toban_requested_batch(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select public.toban_request_json(public.toban_request_of(p ->> 'batch'), p ->> 'queue', p ->> 'zone')
$$;

-- How many batches get on, in one look that costs little: asked twice a second by each process in which somebody waits.
-- p: batches [ids], followed? [those of them of which more is wanted] → batches [{id, open, mark}]: how many items are not
-- done; of a followed one, another text when anything about it has changed
create or replace function public.toban_requested_batches(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('batches', coalesce(jsonb_agg(jsonb_build_object(
    'id', b.id, 'mark', md5(concat(b.cancelled_at, x.open, x.mark)),
    'open', case when p -> 'followed' ? b.id::text then x.open else (
      select count(*) from public.batch_request_items i where i.batch_id = b.id and i.state = 'open') end)), '[]'))
  from public.batch_requests b
  left join lateral (
    select count(*) filter (where i.state in ('pending', 'queued', 'processing')) as open,
           string_agg(concat(i.state, (i.item).attempt, (i.item).progress), ',' order by i.key) as mark
    from public.toban_request_items(b.id) i) x on p -> 'followed' ? b.id::text
  where b.id in (select a::uuid from jsonb_array_elements_text(p -> 'batches') a)
$$;

-- Ask for the waiting rows of a partition and day. p: source, partition, day, since, until (the day's moments), file? (the
-- column that names a row's file), model?, held? [models, for when no worker has said which it holds], priority, owner,
-- idempotency_key?, fingerprint?, key_life (s), queue, zone
-- → batch (as toban_requested_batch), known: there was one by that key
-- or conflict true: that key was used for something else, or refused {models, fits}: no worker holds the model
--
-- What runs already is joined and not done twice; rows that a batch waits for are waited for by this one too.
create or replace function public.toban_request_batch(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '30s' as $$
declare
  s public.toban_sources;
  b public.batch_requests;
  v_model text := p ->> 'model';
  v_held text[];
  v_fits text[];
  v_where text;
  v_ids bigint[];
begin
  select * into s from public.toban_sources where source = p ->> 'source';
  if not found then
    raise exception 'there is no source %', p ->> 'source' using errcode = 'TB404';
  end if;
  if p ->> 'idempotency_key' is not null then
    -- The second of two requests at once waits for the first one's batch.
    perform pg_advisory_xact_lock(hashtextextended(
      format('toban:idempotency:%s/%s', p ->> 'owner', p ->> 'idempotency_key'), 0));
    select * into b from public.batch_requests
      where owner = p ->> 'owner' and idempotency_key = p ->> 'idempotency_key' for no key update;
    if b.created_at > now() - (p ->> 'key_life')::numeric * interval '1 s' then
      if b.fingerprint is distinct from p ->> 'fingerprint' then
        return jsonb_build_object('conflict', true);
      end if;
      return jsonb_build_object('known', true,
        'batch', public.toban_request_json(b, p ->> 'queue', p ->> 'zone'));
    end if;
    update public.batch_requests set idempotency_key = null where id = b.id;
  end if;
  if v_model is not null then
    -- Of the workers that live; where none does, of those that did lately.
    select array_agg(distinct m) filter (where m is not null), array_agg(distinct f) filter (where f is not null)
      into v_held, v_fits from (
        select k.*, bool_or(k.expires_at > now()) over () as any_alive from public.workers k
        where p ->> 'queue' = any (k.queues) and k.models is not null) k
      left join lateral unnest(k.models) m on true left join lateral unnest(k.fits) f on true
      where k.expires_at > now() or not any_alive;
    v_held := coalesce(v_held, array(select jsonb_array_elements_text(p -> 'held')));
    if v_model <> all (v_held) then
      return jsonb_build_object('refused', jsonb_build_object(
        'models', to_jsonb(v_held), 'fits', coalesce(to_jsonb(v_fits), '[]')));
    end if;
  end if;

  -- By the key's own type, so that the table's index is used.
  select format('r.%I = %L::%s and r.%I >= %L and r.%I < %L', a.attname, p ->> 'partition',
                pg_catalog.format_type(a.atttypid, null), s.time_column, p ->> 'since', s.time_column, p ->> 'until')
    into strict v_where from pg_catalog.pg_attribute a
    where a.attrelid = s.watched::regclass and a.attname = s.key_columns[1];
  begin
    execute format('select from %s r where %s limit 1', s.watched, v_where);
  exception when data_exception then
    v_where := 'false';  -- no device can be called that
  end;
  execute public.toban_open_sql(s, format(
    $q$(select r.* from %s r where %s and not exists (
          select from public.work_items i where i.source = %L and i.key = %s
          and i.state in ('pending', 'queued', 'processing')))$q$, s.watched, v_where, s.source, s.key_sql));
  -- Held, none of them ends before it is noted, nor while the rows are counted.
  execute format(
    $q$select array_agg(id) from (
         select i.id from %s r join public.work_items i on i.source = %L and i.key = %s
         where %s and i.state in ('pending', 'queued', 'processing') order by i.key for no key update of i) x$q$,
    s.watched, s.source, s.key_sql, v_where) into v_ids;
  execute format(
    $q$insert into public.batch_requests (source, partition, day, model, priority, owner, idempotency_key, fingerprint,
                                         total, completed)
       select %L, $1 ->> 'partition', ($1 ->> 'day')::date, $1 ->> 'model', ($1 ->> 'priority')::smallint, $1 ->> 'owner',
              $1 ->> 'idempotency_key', $1 ->> 'fingerprint',
              count(*), count(*) filter (where r.%I::text = %L) from %s r where %s
       returning *$q$,
    s.source, s.status_column, s.completed_value, s.watched, v_where) into b using p;
  execute format(
    $q$insert into public.batch_request_items (batch_id, item_id, key, at, file, was)
       select $1, i.id, i.key, i.at, %s, coalesce(
         (select o.was from public.batch_request_items o where o.item_id = i.id and o.state = 'open' limit 1),
         jsonb_strip_nulls(jsonb_build_object('priority', i.priority, 'model', i.params -> 'model')))
       from %s r join public.work_items i on i.source = %L and i.key = %s where %s and i.id = any ($2)$q$,
    case when p ->> 'file' is null then 'null::text' else format('r.%I::text', p ->> 'file') end,
    s.watched, s.source, s.key_sql, v_where) using b.id, v_ids;
  update public.work_items set
    priority = greatest(priority, b.priority),
    params = params || jsonb_strip_nulls(jsonb_build_object('model', b.model)),
    available_at = case when state = 'pending' then least(available_at, now()) else available_at end
  where id = any (v_ids) and (priority < b.priority or params -> 'model' is distinct from to_jsonb(b.model)
                              or state = 'pending' and available_at > now());
  return jsonb_build_object('known', false, 'batch', public.toban_request_json(b, p ->> 'queue', p ->> 'zone'));
end
$$;

-- Nobody waits for the batch any more: what has not been started is what it was before, unless another batch waits for it;
-- what runs is finished, as one of its items. Of a batch that is done nothing changes. p: batch, queue, zone
-- → as toban_requested_batch
create or replace function public.toban_cancel_request(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  b public.batch_requests := public.toban_request_of(p ->> 'batch');
begin
  select * into b from public.batch_requests where id = b.id for no key update;
  if b.cancelled_at is null then
    with held as (
      select w.id, w.state from public.work_items w
      join public.batch_request_items i on i.item_id = w.id and i.batch_id = b.id and i.state = 'open'
      order by w.source, w.key for no key update of w
    ), gone as (
      update public.batch_request_items i set state = 'cancelled', ended_at = now()
      from held where i.batch_id = b.id and i.item_id = held.id and i.state = 'open'
        and held.state in ('pending', 'queued')
      returning i.item_id, i.was
    ), others as (
      select distinct on (o.item_id) o.item_id, r.model, r.priority
      from gone join public.batch_request_items o on o.item_id = gone.item_id and o.state = 'open' and o.batch_id <> b.id
      join public.batch_requests r on r.id = o.batch_id
      order by o.item_id, r.created_at desc
    ), given_back as (
      update public.work_items w set
        priority = case when w.priority = b.priority
                   then greatest((gone.was ->> 'priority')::smallint, others.priority) else w.priority end,
        -- (A model that somebody asked for later is not taken away.)
        params = case when w.params -> 'model' = to_jsonb(b.model)
                 then (w.params - 'model') || jsonb_strip_nulls(jsonb_build_object(
                   'model', coalesce(others.model, gone.was ->> 'model'))) else w.params end
      from gone left join others on others.item_id = gone.item_id where w.id = gone.item_id
    )
    update public.batch_requests r set cancelled_at = now()
      where r.id = b.id and exists (select from held) returning * into b;
  end if;
  return public.toban_request_json(public.toban_request_of(p ->> 'batch'), p ->> 'queue', p ->> 'zone');
end
$$;

-- Forget batches that are old and done, and keys of analyses that are older than a day. p: days (of batches), limit?
-- (default 10000) → forgotten (batches), keys, more
create or replace function public.toban_upkeep_requests(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_forgotten integer;
  v_keys integer;
begin
  with old as (
    select b.id from public.batch_requests b
    where b.created_at < now() - (p ->> 'days')::numeric * interval '1 day' and not exists (
      select from public.batch_request_items i join public.work_items w on w.id = i.item_id
      where i.batch_id = b.id and i.state = 'open' and w.state in ('pending', 'queued', 'processing'))
    order by b.created_at limit v_limit for update skip locked
  )
  delete from public.batch_requests b using old where b.id = old.id;
  get diagnostics v_forgotten = row_count;
  delete from public.analysis_requests where (owner, idempotency_key) in (
    select owner, idempotency_key from public.analysis_requests where created_at < now() - interval '1 day'
    order by created_at limit v_limit for update skip locked);
  get diagnostics v_keys = row_count;
  return jsonb_build_object('forgotten', v_forgotten, 'keys', v_keys,
                            'more', greatest(v_forgotten, v_keys) >= v_limit);
end
$$;

select public.toban_lock_table('batch_requests');
select public.toban_lock_table('batch_request_items');
select public.toban_lock_down();
notify pgrst, 'reload schema';
