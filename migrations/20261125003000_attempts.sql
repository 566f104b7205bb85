-- How each attempt ended: what a person asks first about an item that fails, and what waiting and running times are
-- counted from. Written by a trigger, so that whatever ends an attempt is seen, a reaper too.

create table if not exists public.work_attempts (
  item_id bigint not null references public.work_items (id) on delete cascade,
  attempt integer not null,
  source text not null,
  try integer not null,
  max_attempts integer not null,
  worker text,
  opened_at timestamptz not null,
  started_at timestamptz not null,
  ended_at timestamptz not null default now(),
  outcome text not null
    check (outcome in ('completed', 'skipped', 'failed', 'retry', 'lost', 'outdated', 'released')),
  kind text,
  error text,
  primary key (item_id, attempt)
);
comment on column public.work_attempts.try is 'which of the counted tries it was';
comment on column public.work_attempts.outcome is
  'lost: its worker gave no more news; outdated: the row changed meanwhile; released: given back unharmed';
comment on column public.work_attempts.error is 'why it did not succeed; of a success, its remark';
create index if not exists work_attempts_ended_idx on public.work_attempts (ended_at);

alter table public.workers add column if not exists memory_limit bigint;
comment on column public.workers.memory_limit is 'bytes at which the process is replaced; null: not known';

create or replace function public.toban_note_attempt() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_outcome text := case
    when new.state <> 'pending' then new.state
    when old.revision <> old.started_revision then 'outdated'
    when new.settled_token = new.token then 'retry'
    when new.last_error_kind = 'lost' and new.last_error is distinct from old.last_error then 'lost'
    else 'released' end;
begin
  -- (A crash of the database may forget a start, and then a number comes twice.)
  insert into public.work_attempts as a
    (item_id, attempt, source, try, max_attempts, worker, opened_at, started_at, outcome, kind, error)
  values (new.id, new.attempt, new.source, old.tries, new.max_attempts, new.worker, old.opened_at, old.started_at,
          v_outcome, case when v_outcome not in ('outdated', 'released') then new.last_error_kind end,
          case when v_outcome not in ('outdated', 'released') then new.last_error end)
  on conflict (item_id, attempt) do update set
    try = excluded.try, worker = excluded.worker, started_at = excluded.started_at, ended_at = excluded.ended_at,
    outcome = excluded.outcome, kind = excluded.kind, error = excluded.error;
  -- One that is put off for days must not gather rows for ever.
  delete from public.work_attempts where item_id = new.id and attempt <= new.attempt - 50;
  return null;
end
$$;
drop trigger if exists toban_note_attempt on public.work_items;
create trigger toban_note_attempt after update of state on public.work_items for each row
  when (old.state = 'processing' and new.state <> 'processing')
  execute function public.toban_note_attempt();

-- p: worker, bytes → known: whether there is such a worker
create or replace function public.toban_memory_limit(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.workers set memory_limit = (p ->> 'bytes')::bigint where id = p ->> 'worker';
  return jsonb_build_object('known', found);
end
$$;

select public.toban_lock_table('work_attempts');
select public.toban_lock_down();
notify pgrst, 'reload schema';
