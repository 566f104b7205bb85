-- Who may use the web pages: accounts, sessions, one-time links, API keys; and how often somebody may guess. Passwords
-- come hashed by the program; of tokens, links and keys only the SHA-256 is here, so a copy of these tables opens nothing.

create table if not exists public.web_users (
  name text primary key check (name <> '' and length(name) <= 100),
  password_hash text not null,
  role text not null check (role in ('viewer', 'operator')),
  created_at timestamptz not null default now(),
  signed_in_at timestamptz
);
comment on column public.web_users.name is 'in lower case';
comment on column public.web_users.password_hash is 'argon2id, in its own text form';

create table if not exists public.web_sessions (
  session text primary key,
  user_name text references public.web_users (name) on delete cascade,
  guest text,
  guest_role text check (guest_role in ('viewer', 'operator')),
  created_at timestamptz not null default now(),
  seen_at timestamptz not null default now(),
  expires_at timestamptz not null,
  check ((user_name is null) = (guest is not null) and (guest is null) = (guest_role is null))
);
comment on column public.web_sessions.session is 'SHA-256 of the token in the cookie, in hex';
comment on column public.web_sessions.guest is 'who it is, where another service has the account (Supabase Auth)';
create index if not exists web_sessions_user_idx on public.web_sessions (user_name);
create index if not exists web_sessions_expires_idx on public.web_sessions (expires_at);

create table if not exists public.web_links (
  link text primary key,
  user_name text references public.web_users (name) on delete cascade,
  expires_at timestamptz not null
);
comment on table public.web_links is 'one-time links: to the first account (no user_name), or to a new password';

create table if not exists public.web_keys (
  name text primary key check (name <> '' and length(name) <= 100),
  key text not null unique,
  hint text not null,
  scopes text[] not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  used_at timestamptz,
  revoked_at timestamptz
);
comment on column public.web_keys.key is 'SHA-256 of the key, in hex';

create table if not exists public.web_tries (
  subject text primary key,
  tries integer not null,
  until timestamptz not null
);
comment on table public.web_tries is 'sign-ins that were tried, by account and by address, and until when they count';

create table if not exists public.web_secrets (
  name text primary key,
  value text not null
);

-- The secret that signs cookies: made by whoever comes first. p: candidate → secret
create or replace function public.toban_web_secret(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  insert into public.web_secrets values ('sessions', p ->> 'candidate') on conflict do nothing;
  return jsonb_build_object('secret', (select value from public.web_secrets where name = 'sessions'));
end
$$;

-- --- accounts ------------------------------------------------------------------------------------------------------

-- p: name, password_hash, role → added
create or replace function public.toban_add_user(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  insert into public.web_users (name, password_hash, role)
  values (p ->> 'name', p ->> 'password_hash', p ->> 'role') on conflict do nothing;
  if not found then
    raise exception 'there is a user % already', p ->> 'name' using errcode = 'TB400';
  end if;
  delete from public.web_links where user_name is null;
  return jsonb_build_object('added', true);
end
$$;

-- Another password or role. A new password ends the user's sessions and links. p: name, password_hash?, role? → edited
create or replace function public.toban_edit_user(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.web_users set password_hash = coalesce(p ->> 'password_hash', password_hash),
    role = coalesce(p ->> 'role', role) where name = p ->> 'name';
  if not found then
    raise exception 'there is no user %', p ->> 'name' using errcode = 'TB404';
  end if;
  if p ? 'password_hash' then
    delete from public.web_sessions where user_name = p ->> 'name';
    delete from public.web_links where user_name = p ->> 'name';
  end if;
  return jsonb_build_object('edited', true);
end
$$;

-- p: name → removed; the user's sessions end
create or replace function public.toban_remove_user(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.web_users where name = p ->> 'name';
  if not found then
    raise exception 'there is no user %', p ->> 'name' using errcode = 'TB404';
  end if;
  return jsonb_build_object('removed', true);
end
$$;

-- → users [{name, role, created_at, signed_in_at, sessions}]
create or replace function public.toban_users(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('users', coalesce(jsonb_agg(jsonb_build_object(
    'name', u.name, 'role', u.role, 'created_at', u.created_at, 'signed_in_at', u.signed_in_at,
    'sessions', (select count(*) from public.web_sessions s where s.user_name = u.name and s.expires_at > now()))
    order by u.name), '[]'))
  from public.web_users u
$$;

-- --- signing in ----------------------------------------------------------------------------------------------------

-- One more try of a subject. → seconds until the next one is allowed; 0: this one is
create or replace function public.toban_try(p_subject text, p_most integer, p_window interval) returns numeric
language plpgsql set search_path = '' as $$
declare
  t public.web_tries;
begin
  insert into public.web_tries as w (subject, tries, until) values (p_subject, 1, now() + p_window)
  on conflict (subject) do update set
    tries = case when w.until <= now() then 1 else least(w.tries + 1, p_most + 1) end,
    until = case when w.until <= now() then now() + p_window else w.until end
  returning * into t;
  return case when t.tries > p_most then ceil(extract(epoch from t.until - now())) else 0 end;
end
$$;

-- Somebody is about to try a password; the try counts before it is compared, so that many at once count too.
-- p: name, address, most (by account), most_address, window (s)
-- → wait (s): not now   or   password_hash (null: there is no such account)
create or replace function public.toban_try_sign_in(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  v_window interval := (p ->> 'window')::numeric * interval '1 s';
  v_wait numeric;
begin
  v_wait := public.toban_try('address:' || (p ->> 'address'), (p ->> 'most_address')::integer, v_window);
  if v_wait = 0 then  -- an address that has had its share can't use up that of accounts
    v_wait := public.toban_try('account:' || (p ->> 'name'), (p ->> 'most')::integer, v_window);
  end if;
  -- (Last, and without waiting: an address comes before its account.)
  delete from public.web_tries where subject in (
    select subject from public.web_tries where until <= now() order by subject limit 100 for update skip locked);
  if v_wait > 0 then
    return jsonb_build_object('wait', v_wait);
  end if;
  return jsonb_build_object('password_hash', (select password_hash from public.web_users where name = p ->> 'name'));
end
$$;

-- A session begins. p: session, seconds, and user (an account here; its tries are forgiven, new_hash? replaces its
-- password's), or guest and role (an account elsewhere) → opened
create or replace function public.toban_open_session(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  if p ? 'user' then
    update public.web_users set signed_in_at = now(), password_hash = coalesce(p ->> 'new_hash', password_hash)
      where name = p ->> 'user';
    if not found then
      return jsonb_build_object('opened', false);
    end if;
    delete from public.web_tries where subject = 'account:' || (p ->> 'user');
  end if;
  insert into public.web_sessions (session, user_name, guest, guest_role, expires_at)
  values (p ->> 'session', p ->> 'user', p ->> 'guest', p ->> 'role',
          now() + (p ->> 'seconds')::numeric * interval '1 s');
  -- (Last, and without waiting: an account comes before its sessions.)
  delete from public.web_sessions where session in (
    select session from public.web_sessions where expires_at <= now() order by session limit 100 for update skip locked);
  return jsonb_build_object('opened', true);
end
$$;

-- Whose session it is. One of an account here lasts `seconds` from its last use. p: session, seconds
-- → name, role, local, badge; null: it is over
create or replace function public.toban_session(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  s public.web_sessions;
  v_role text;
begin
  select * into s from public.web_sessions where session = p ->> 'session' and expires_at > now();
  if not found then
    return null;
  end if;
  v_role := coalesce(s.guest_role, (select role from public.web_users where name = s.user_name));
  if s.seen_at < now() - interval '1 min' then
    update public.web_sessions set seen_at = now(),
      expires_at = case when guest is null then now() + (p ->> 'seconds')::numeric * interval '1 s' else expires_at end
      where session = s.session;
  end if;
  return jsonb_build_object('name', coalesce(s.guest, s.user_name), 'role', v_role, 'local', s.guest is null,
                            'badge', public.toban_count_incidents());
end
$$;

-- p: session → closed
create or replace function public.toban_close_session(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.web_sessions where session = p ->> 'session';
  return jsonb_build_object('closed', found);
end
$$;

-- --- one-time links ------------------------------------------------------------------------------------------------

-- p: link, seconds, user? (a new password for that account; without it: the first account) → made; false: there are
-- accounts already
create or replace function public.toban_make_link(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  delete from public.web_links where expires_at <= now();
  if not p ? 'user' and exists (select from public.web_users) then
    return jsonb_build_object('made', false);
  elsif p ? 'user' and not exists (select from public.web_users where name = p ->> 'user') then
    raise exception 'there is no user %', p ->> 'user' using errcode = 'TB404';
  end if;
  insert into public.web_links values (p ->> 'link', p ->> 'user', now() + (p ->> 'seconds')::numeric * interval '1 s');
  return jsonb_build_object('made', true);
end
$$;

-- What a link is for. p: link → user (null: the first account); null: it is used, or too old
create or replace function public.toban_link(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('user', l.user_name) from public.web_links l
  where l.link = p ->> 'link' and l.expires_at > now()
    and (l.user_name is not null or not exists (select from public.web_users))
$$;

-- Use it up. p: link, password_hash, name (of the first account, an operator) → user; null: it is used, or too old
create or replace function public.toban_use_link(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  l public.web_links;
begin
  perform pg_advisory_xact_lock(hashtextextended('toban:web-link', 0));
  delete from public.web_links where link = p ->> 'link' and expires_at > now() returning * into l;
  if not found or (l.user_name is null and exists (select from public.web_users)) then
    return null;
  elsif l.user_name is null then
    perform public.toban_add_user(jsonb_build_object(
      'name', p ->> 'name', 'password_hash', p ->> 'password_hash', 'role', 'operator'));
    return jsonb_build_object('user', p ->> 'name');
  end if;
  perform public.toban_edit_user(jsonb_build_object('name', l.user_name, 'password_hash', p ->> 'password_hash'));
  return jsonb_build_object('user', l.user_name);
end
$$;

-- --- API keys ------------------------------------------------------------------------------------------------------

-- p: name, key (its SHA-256), hint, scopes, seconds? → added
create or replace function public.toban_add_key(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  insert into public.web_keys as k (name, key, hint, scopes, expires_at)
  values (p ->> 'name', p ->> 'key', p ->> 'hint', array(select jsonb_array_elements_text(p -> 'scopes')),
          now() + (p ->> 'seconds')::numeric * interval '1 s')
  on conflict (name) do update set key = excluded.key, hint = excluded.hint, scopes = excluded.scopes,
    created_at = now(), expires_at = excluded.expires_at, used_at = null, revoked_at = null
    where k.revoked_at is not null or k.expires_at <= now();
  if not found then
    raise exception 'there is a key % already; revoke it first', p ->> 'name' using errcode = 'TB400';
  end if;
  return jsonb_build_object('added', true);
end
$$;

-- → keys [{name, hint, scopes, created_at, expires_at, used_at, revoked_at, live}]
create or replace function public.toban_keys(p jsonb) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '15s' as $$
  select jsonb_build_object('keys', coalesce(jsonb_agg(to_jsonb(k) - 'key' || jsonb_build_object(
    'live', k.revoked_at is null and coalesce(k.expires_at > now(), true)) order by k.name), '[]'))
  from public.web_keys k
$$;

-- p: name → revoked
create or replace function public.toban_revoke_key(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
begin
  update public.web_keys set revoked_at = now() where name = p ->> 'name' and revoked_at is null;
  if not found then
    raise exception 'there is no live key %', p ->> 'name' using errcode = 'TB404';
  end if;
  return jsonb_build_object('revoked', true);
end
$$;

-- p: key (its SHA-256) → name, scopes, badge; null: there is none, or it was revoked, or is too old
create or replace function public.toban_key(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
  k public.web_keys;
begin
  select * into k from public.web_keys
    where key = p ->> 'key' and revoked_at is null and coalesce(expires_at > now(), true);
  if not found then
    return null;
  end if;
  if k.used_at is null or k.used_at < now() - interval '1 min' then
    update public.web_keys set used_at = now() where name = k.name;
  end if;
  return jsonb_build_object('name', k.name, 'scopes', k.scopes, 'badge', public.toban_count_incidents());
end
$$;

select public.toban_lock_table(t) from unnest(
  array['web_users', 'web_sessions', 'web_links', 'web_keys', 'web_tries', 'web_secrets']) t;
select public.toban_lock_down();
notify pgrst, 'reload schema';
