"""`toban migrate` on the databases that it meets."""

from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from app.database import migrate as module
from app.database.migrate import Migration, migrate, migrations, pending
from app.errors import Permanent, Transient
from tests.support.ledger import at_once
from tests.support.servers import ROOT, PgBouncer, free_port

EVERYTHING = [str(migration) for migration in migrations()]

OLD_TABLES: LiteralString = """
create table audio_files (
  device_id {type} not null, recorded_at timestamptz not null, file_path text,
  transcriptions_status text default 'pending' check (transcriptions_status in ('pending', 'completed')),
  created_at timestamptz default now(), uploaded_by text, duration_seconds int,
  primary key (device_id, recorded_at)
);
create table vibe_whisper (
  device_id text not null, date date not null, time_block text not null, transcription text,
  primary key (device_id, date, time_block)
);
create table dashboard (
  device_id uuid not null, date date not null, time_block varchar(5) not null, prompt text, summary text, behavior text,
  vibe_score double precision, analysis_result jsonb, status varchar(20), processed_at timestamptz,
  created_at timestamptz default now(), updated_at timestamptz default now(), owner text,
  primary key (device_id, date, time_block)
);
insert into dashboard (device_id, date, time_block, prompt, status) values
  ('9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93', '2025-07-18', '12-00', 'How was it?', 'pending'),
  ('9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93', '2025-07-18', '12-30', null, 'pending'),
  ('9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93', '2025-07-18', '13-00', 'And then?', 'completed');
create table tools (id uuid primary key default gen_random_uuid());
create table job_status (
  id uuid primary key default gen_random_uuid(), job_key text unique not null, title text not null, tool_id uuid,
  last_status text not null, last_finished_at timestamptz not null, last_message text,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now()
);
insert into job_status (job_key, title, last_status, last_finished_at) values ('backup', 'Backup', 'success', now());
insert into audio_files (device_id, recorded_at, file_path, transcriptions_status) values
  ('9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93', '2025-07-18T03:00:00Z', 'a.wav', 'pending'),
  ('9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93', '2025-07-18T03:30:00Z', 'b.wav', 'completed');
"""


@pytest.fixture
def session(empty_database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


def items(connection: psycopg.Connection) -> list[tuple[str, str]]:
    return [(key, state) for key, state in connection.execute("select key, state from work_items order by key")]


def test_an_empty_database(empty_database_url: str, session: psycopg.Connection) -> None:
    assert pending(empty_database_url) == EVERYTHING
    assert migrate(empty_database_url) == EVERYTHING
    assert pending(empty_database_url) == []
    rows = session.execute("select version, name, cardinality(statements) from supabase_migrations.schema_migrations")
    assert {f"{version}_{name}": count for version, name, count in rows} == dict.fromkeys(EVERYTHING, 1)
    assert items(session) == []


def test_twice(empty_database_url: str) -> None:
    migrate(empty_database_url)
    assert migrate(empty_database_url) == []


def test_every_file_may_run_again(database_url: str) -> None:
    """A history that was lost, or a project whose owner ran the files by hand."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into audio_files values ('d1', '2025-07-18T03:00:00Z', 'a.wav', 'pending')")
        connection.execute("drop schema supabase_migrations cascade")
        assert migrate(database_url) == EVERYTHING
        assert items(connection) == [("d1/2025-07-18T03:00:00Z", "pending")]
        assert connection.execute("select revision from work_items").fetchone() == (1,)


def test_two_at_once(empty_database_url: str) -> None:
    answers = at_once(*[lambda: migrate(empty_database_url)] * 4)
    assert sorted(name for names in answers for name in names) == EVERYTHING


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_tables_and_rows_of_the_apps(empty_database_url: str, session: psycopg.Connection, kind: str) -> None:
    session.execute(OLD_TABLES.replace("{type}", kind))
    assert migrate(empty_database_url) == EVERYTHING
    device = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
    assert items(session) == [(f"{device}/2025-07-18/12-00", "pending"), (f"{device}/2025-07-18T03:00:00Z", "pending")]
    session.execute("update audio_files set transcriptions_status = 'pending', uploaded_by = 'phone'")
    session.execute("update dashboard set prompt = 'Well?' where prompt is null")
    assert len(items(session)) == 4
    columns = session.execute("select count(*) from information_schema.columns where table_name = 'audio_files'")
    assert columns.fetchone() == (7,)
    secured = session.execute(
        "select bool_or(relrowsecurity) from pg_class where relname in ('audio_files', 'dashboard')"
    )
    assert secured.fetchone() == (False,)
    assert session.execute("select last_status from job_status").fetchone() == ("success",)
    links = session.execute("select count(*) from pg_constraint where conname = 'job_status_tool_id_fkey'").fetchone()
    assert links == (1,)


@pytest.mark.parametrize(
    "name", ["workers", "jobs", "runs", "run_results", "work_items", "transcripts", "toban_sources"]
)
def test_a_table_of_ours_that_is_somebody_elses(
    empty_database_url: str, session: psycopg.Connection, name: str
) -> None:
    table = sql.Identifier(name)
    session.execute(sql.SQL("create table {} (id int primary key, title text)").format(table))
    with pytest.raises(Permanent, match=rf"app_tables\.sql failed and changed nothing: .*public\.{name} has no"):
        migrate(empty_database_url)
    assert pending(empty_database_url) == EVERYTHING
    tables = session.execute("select relname, relrowsecurity from pg_class where relkind = 'r' and relname = %s"
                             " or relname in ('audio_files', 'job_status')", [name]).fetchall()  # fmt: skip
    assert tables == [(name, False)]
    session.execute(sql.SQL("drop table {}").format(table))
    assert migrate(empty_database_url) == EVERYTHING


def test_an_apps_table_that_lacks_what_is_needed(empty_database_url: str, session: psycopg.Connection) -> None:
    session.execute("create table audio_files (device_id text, recorded_at timestamptz, file_path text)")
    with pytest.raises(Permanent, match=r"public\.audio_files has no transcriptions_status\. Rename"):
        migrate(empty_database_url)
    assert session.execute("select to_regclass('vibe_whisper')").fetchone() == (None,)


def test_a_dashboard_that_is_somebody_elses(empty_database_url: str, session: psycopg.Connection) -> None:
    session.execute("create table dashboard (id int primary key, status text, device_id text)")
    missing = "date, time_block, prompt, summary, behavior, vibe_score, analysis_result, processed_at, updated_at"
    with pytest.raises(Permanent, match=rf"analysis\.sql .*public\.dashboard has no {missing}\. Rename"):
        migrate(empty_database_url)
    later = EVERYTHING[EVERYTHING.index("20261125000400_analysis") :]
    assert pending(empty_database_url) == later
    session.execute("alter table dashboard rename to panels")
    assert migrate(empty_database_url) == later


def test_behind_a_transaction_pooler(
    empty_database_url: str, session: psycopg.Connection, pgbouncer: PgBouncer
) -> None:
    name = session.info.dbname
    assert at_once(*[lambda: migrate(pgbouncer.url(name))] * 2).count(EVERYTHING) <= 1
    assert pending(pgbouncer.url(name)) == []


def test_what_the_supabase_cli_has_applied_is_not_applied_again(
    empty_database_url: str, session: psycopg.Connection
) -> None:
    first = migrations()[0]
    # The table as older versions of the CLI made it, and its row for our first file.
    session.execute("create schema supabase_migrations")
    session.execute("create table supabase_migrations.schema_migrations (version text primary key)")
    session.execute(first.text.encode())
    session.execute("insert into supabase_migrations.schema_migrations values (%s)", [first.version])
    assert pending(empty_database_url) == EVERYTHING[1:]
    assert migrate(empty_database_url) == EVERYTHING[1:]


def test_the_supabase_cli_finds_the_same_files() -> None:
    linked = ROOT / "supabase" / "migrations"
    names = sorted(path.stem for path in linked.iterdir() if path.suffix == ".sql")
    assert names == EVERYTHING


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select 1;\n\nselect wrong from nowhere;", r'2_bad.sql line 3 failed and changed nothing: relation "nowhere"'),
        ("create table half (id int); select 1/0;", "2_bad.sql failed and changed nothing: division by zero"),
    ],
)
def test_a_file_that_fails(
    empty_database_url: str, session: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    files = [Migration("1", "good", "create table good (id int)"), Migration("2", "bad", text)]
    monkeypatch.setattr(module, "migrations", lambda: files)
    with pytest.raises(Permanent, match=words):
        migrate(empty_database_url)
    assert pending(empty_database_url) == ["2_bad"]
    found = session.execute("select to_regclass('good') is not null, to_regclass('half') is not null").fetchone()
    assert found == (True, False)


def test_a_database_that_is_not_there() -> None:
    for call in (migrate, pending):
        with pytest.raises(Transient, match="the database can't be reached"):
            call(f"postgresql://postgres@127.0.0.1:{free_port()}/none")


def test_a_user_who_may_not(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("delete from supabase_migrations.schema_migrations")
    with pytest.raises(Permanent, match="the list of migrations failed and changed nothing: permission denied"):
        migrate(f"{database_url}&options=-c%20role%3Danon")
