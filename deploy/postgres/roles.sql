-- The roles that PostgREST speaks for, as a Supabase project has them, in a database of one's own. The container runs this
-- once, when its data folder is new; elsewhere: psql --variable=ON_ERROR_STOP=1 --file=deploy/postgres/roles.sql <address>
-- with the password of PostgREST's connection in POSTGRES_PASSWORD. Running it again does no harm.
\getenv password POSTGRES_PASSWORD

select format('create role %I %s', name, options)
  from (values ('anon', 'nologin noinherit'), ('authenticated', 'nologin noinherit'),
               ('service_role', 'nologin noinherit bypassrls'), ('authenticator', 'login noinherit')) as wanted (name, options)
 where not exists (select from pg_catalog.pg_roles where rolname = name)
\gexec

alter role authenticator password :'password';
grant anon, authenticated, service_role to authenticator;
grant usage on schema public to anon, authenticated, service_role;

-- What is made later is for the service alone; give recorders and apps what they need, table by table.
alter default privileges in schema public grant all on tables to service_role;
alter default privileges in schema public grant all on sequences to service_role;
alter default privileges in schema public grant execute on functions to service_role;
