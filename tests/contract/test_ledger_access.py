"""Who may do what: the service everything, the public keys nothing but what the app gives them."""

import psycopg
import pytest
from psycopg import sql

from app.database.postgres import PostgresDatabase
from app.database.supabase import SupabaseDatabase
from app.errors import Permanent, Transient
from tests.support.ledger import NOON, Ledger
from tests.support.servers import PostgREST, free_port, key_of, wait_for

OURS = ["work_items", "toban_sources", "jobs", "runs", "run_results", "workers", "transcripts", "saved_parts",
        "queue_holds", "llm_calls", "llm_days", "prompted_blocks", "llm_batches", "llm_batch_items", "work_attempts",
        "analysis_requests", "batch_requests", "batch_request_items",
        "job_watch", "job_reports", "beats", "queue_watch",
        "source_modes", "shadow_rows", "work_collisions",
        "incidents", "alerts", "alert_channels", "audit_log", "monitor_state",
        "metric_events", "metric_counts", "metric_snapshot",
        "web_users", "web_sessions", "web_links", "web_keys", "web_tries", "web_secrets"]  # fmt: skip
# Made by the migrations in a database that has none.
APPS = ["job_status", "audio_files", "vibe_whisper", "dashboard"]
PUBLIC_KEYS = ["anon", "authenticated"]


@pytest.mark.parametrize("role", PUBLIC_KEYS)
def test_public_keys_are_refused_with_the_remedy(postgrest: PostgREST, clean_url: str, role: str) -> None:
    rest = SupabaseDatabase(postgrest.url, key_of(role), rest_url=postgrest.url)
    direct = PostgresDatabase(f"{clean_url}&options=-c%20role%3D{role}")
    for database in (rest, direct):
        with pytest.raises(Permanent, match="check SUPABASE_SERVICE_ROLE_KEY"):
            database.call("toban_status")
        database.close()


def test_a_key_of_another_project_is_refused(postgrest: PostgREST, clean_url: str) -> None:
    database = SupabaseDatabase(postgrest.url, key_of("service_role")[:-4] + "AAAA", rest_url=postgrest.url)
    with pytest.raises(Permanent, match="check SUPABASE_SERVICE_ROLE_KEY"):
        database.call("toban_status")
    database.close()


@pytest.mark.parametrize("role", PUBLIC_KEYS)
def test_public_roles_reach_nothing_of_ours(direct_ledger: Ledger, role: str) -> None:
    # A table watched later than the migrations gets a function of its own.
    direct_ledger.sql("create table toy (id text primary key, state text)")
    direct_ledger.one("select toban_watch('toy', 'toy', array['id'], 'state')")
    rows = direct_ledger.sql(
        "select proname from pg_proc where pronamespace = 'public'::regnamespace and proname like 'toban\\_%%'"
        " and has_function_privilege(%s, oid, 'execute')",
        role,
    )
    assert rows == []
    rows = direct_ledger.sql(
        "select relname, privilege from pg_class, unnest(array['select', 'insert', 'update', 'delete', 'truncate'])"
        " privilege where relnamespace = 'public'::regnamespace and relname = any (%s)"
        " and has_table_privilege(%s, oid, privilege)",
        OURS,
        role,
    )
    assert rows == []
    rows = direct_ledger.sql(
        "select relname from pg_class where relnamespace = 'public'::regnamespace"
        " and case when relkind = 'S' then has_sequence_privilege(%s, oid, 'usage, select, update') end",
        role,
    )
    assert rows == []


def test_row_level_security_is_on_for_every_table_that_the_migrations_made(direct_ledger: Ledger) -> None:
    rows = direct_ledger.sql(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relrowsecurity"
    )
    assert {row["relname"] for row in rows} == {*OURS, *APPS}


def test_every_function_of_ours_has_a_fixed_search_path(direct_ledger: Ledger) -> None:
    rows = direct_ledger.sql(
        "select proname from pg_proc where pronamespace = 'public'::regnamespace and proname like 'toban\\_%%'"
        " and not coalesce('search_path=\"\"' = any (proconfig), false)"
    )
    # Its updates run the app's own triggers, which expect the app's path; the system's names come first there too.
    assert [row["proname"] for row in rows] == ["toban_mark"]
    assert direct_ledger.one("select proconfig from pg_proc where proname = 'toban_mark'") == [
        "search_path=public, extensions, pg_temp"
    ]


def test_an_apps_own_trigger_finds_its_tables(ledger: Ledger) -> None:
    """It names them without their schema, as one does."""
    ledger.sql("create table toy_log (what text); create table toy (id text primary key, state text)")
    ledger.sql("create function toban_on_toy_own() returns trigger language plpgsql as"
               " $$ begin insert into toy_log values (new.state); return null; end $$")  # fmt: skip
    ledger.sql("create trigger own after update on toy for each row execute function toban_on_toy_own()")
    ledger.one("select toban_watch('toy', 'toy', array['id'], 'state')")
    ledger.sql("insert into toy values ('x', 'pending')")
    attempt = ledger.running("toy")
    assert ledger.call("finish", **attempt.ids(), result={})["written"]
    assert ledger.sql("select what from toy_log") == [{"what": "completed"}]


def test_job_status_is_read_by_users_and_written_by_nobody(direct_ledger: Ledger) -> None:
    direct_ledger.sql(
        "insert into job_status (job_key, title, last_status, last_finished_at) values ('j', 'J', 'success', now())"
    )
    with psycopg.connect(direct_ledger.url, autocommit=True) as session:
        session.execute("set role authenticated")
        assert session.execute("select job_key from job_status").fetchall() == [("j",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("update job_status set title = 'x'")
        session.execute("set role anon")
        for statement in ("select from job_status", "delete from job_status", "select from work_items"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(sql.SQL(statement))


def test_an_upload_with_the_anon_key_opens_its_item(direct_ledger: Ledger) -> None:
    with (
        direct_ledger.altered(
            "create policy uploads on audio_files to anon using (true)", "drop policy uploads on audio_files"
        ),
        psycopg.connect(direct_ledger.url, autocommit=True) as session,
    ):
        session.execute("set role anon")
        session.execute("insert into audio_files values ('d1', %s, 'a.wav', 'pending')", [NOON])
        session.execute("update audio_files set file_path = 'b.wav'")
        assert direct_ledger.state("d1/" + NOON) == "pending"
        session.execute("delete from audio_files")
    assert direct_ledger.state("d1/" + NOON) == "skipped"


@pytest.mark.parametrize("role", PUBLIC_KEYS)
def test_tables_that_the_migrations_made_show_a_public_key_nothing(direct_ledger: Ledger, role: str) -> None:
    direct_ledger.file()
    direct_ledger.finish(direct_ledger.running())
    direct_ledger.block()
    with psycopg.connect(direct_ledger.url, autocommit=True) as session:
        session.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        assert session.execute("select from audio_files").fetchall() == []
        assert session.execute("select from vibe_whisper").fetchall() == []
        assert session.execute("select from dashboard").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("insert into audio_files values ('d2', now(), 'a.wav', 'pending')")


def test_a_server_that_is_not_there_is_transient(clean_url: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    rest = SupabaseDatabase(url, key_of("service_role"), rest_url=url)
    with pytest.raises(Transient):
        rest.call("toban_status")
    rest.close()


def test_a_function_that_is_not_there_names_the_remedy(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match=r"the database lacks toban_nothing\(\); run `toban migrate`"):
        ledger.call("nothing")


def test_a_call_ends_at_its_functions_deadline(ledger: Ledger) -> None:
    with ledger.altered(
        "create function toy_slow(p jsonb) returns jsonb language plpgsql set statement_timeout = '100ms' as"
        " $$ begin perform pg_sleep(30); return p; end $$; notify pgrst, 'reload schema'",
        "drop function toy_slow; notify pgrst, 'reload schema'",
    ):
        wait_for(lambda: _error(ledger, "toy_slow") is Transient, "the function")


def _error(ledger: Ledger, function: str) -> type[Exception] | None:
    try:
        ledger.db.call(function)
    except (Transient, Permanent) as error:
        return type(error)
    return None


def test_a_connection_that_broke_is_replaced(direct_ledger: Ledger) -> None:
    direct_ledger.call("status")
    direct_ledger.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'toban'"
        " and datname = current_database()"
    )
    assert direct_ledger.call("status")["sources"]
