-- What a long attempt has done so far, so that the next one goes on from there.

create table if not exists public.saved_parts (
  item_id bigint not null references public.work_items (id) on delete cascade,
  revision integer not null,
  part integer not null,
  data jsonb not null,
  saved_at timestamptz not null default now(),
  primary key (item_id, revision, part)
);
comment on table public.saved_parts is 'parts of unfinished work, in the shape of the item''s source';

-- p: id, attempt, token, data (of any shape) → saved true   or   saved false, reason
-- A part is saved only by the attempt that owns the item. Saved twice (a lost answer), it is there twice: the source
-- tells its parts apart.
create or replace function public.toban_save_part(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  w public.work_items;
begin
  perform set_config('synchronous_commit', 'off', true);  -- a part that a crash forgets is done again
  select * into w from public.work_items where id = (p ->> 'id')::bigint for key share;
  if not found or w.state <> 'processing' or w.attempt <> (p ->> 'attempt')::integer
     or w.token is distinct from (p ->> 'token')::uuid then
    return jsonb_build_object('saved', false, 'reason', 'another attempt owns the item');
  end if;
  insert into public.saved_parts (item_id, revision, part, data)
  select w.id, w.started_revision, coalesce(max(part), 0) + 1, p -> 'data'
    from public.saved_parts where item_id = w.id and revision = w.started_revision;
  return jsonb_build_object('saved', true);
end
$$;

-- p: id, attempt, token → parts [data] of the same revision, in the order they were saved
create or replace function public.toban_saved_parts(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('parts', coalesce(jsonb_agg(s.data order by s.part), '[]'))
  from public.work_items w join public.saved_parts s on s.item_id = w.id and s.revision = w.started_revision
  where w.id = (p ->> 'id')::bigint and w.state = 'processing' and w.attempt = (p ->> 'attempt')::integer
    and w.token = (p ->> 'token')::uuid
$$;

-- Whatever ends an item, or opens it anew, makes its parts useless; only a retry goes on from them.
create or replace function public.toban_forget_parts() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  delete from public.saved_parts where item_id = new.id;
  return null;
end
$$;
drop trigger if exists toban_forget_parts on public.work_items;
create trigger toban_forget_parts after update of state, revision on public.work_items for each row
  when (new.revision <> old.revision or new.state in ('completed', 'skipped'))
  execute function public.toban_forget_parts();

-- The ledger's tables are for the service alone, and so are the sequences behind their ids; a later table's migration
-- ends with this.
create or replace function public.toban_lock_table(p_table text) returns void
language plpgsql set search_path = '' as $$
declare
  v_roles text := (select string_agg(quote_ident(rolname), ', ') from pg_catalog.pg_roles
                   where rolname in ('anon', 'authenticated'));
  v_sequence text;
begin
  execute format('alter table public.%I enable row level security', p_table);
  if v_roles is not null then
    execute format('revoke all on public.%I from %s', p_table, v_roles);
    for v_sequence in
      select d.objid::regclass::text from pg_catalog.pg_depend d
      join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S'
      where d.refobjid = format('public.%I', p_table)::regclass
    loop
      execute format('revoke all on sequence %s from %s', v_sequence, v_roles);
    end loop;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
    execute format('grant select on public.%I to service_role', p_table);
  end if;
end
$$;

select public.toban_lock_table('saved_parts');
select public.toban_lock_down();
notify pgrst, 'reload schema';
