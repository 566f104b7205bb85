"""`toban migrate`: bring a database's schema up to this program.

The files of `migrations/` are applied in the order of their names, each in a transaction of its own, and noted in the
table that the Supabase CLI keeps for the same purpose, so `supabase db push` and `toban migrate` agree on what has been
applied. Nothing is held between transactions, so a transaction pooler in between is fine.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import Connection, sql

from app.errors import Permanent, Transient

# <version>_<name>.sql, the Supabase CLI's rule; it passes over other files.
FILE_NAME = re.compile(r"^(?P<version>[0-9]+)_(?P<name>.+)\.sql$")

HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
"""

# One runner at a time: whoever comes second finds everything applied. Held until the transaction ends.
LOCK = "select pg_advisory_xact_lock(hashtextextended('toban:migrate', 0))"

# An app's long transaction on a watched table must not make everybody queue behind the migration for ever. The wait for
# another runner is longer: it is doing the work.
WAIT_FOR_RUNNER = "set local statement_timeout = 0; set local lock_timeout = '5min'"
WAIT_FOR_TABLE = "set local lock_timeout = '30s'"


@dataclass(frozen=True)
class Migration:
    """One file: `20261101000100_app_tables.sql` has version `20261101000100` and name `app_tables`."""

    version: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.version}_{self.name}"


def migrations() -> list[Migration]:
    """Every migration that comes with this program, the oldest first."""
    found = [
        Migration(match["version"], match["name"], entry.read_text(encoding="utf-8"))
        for entry in resources.files("migrations").iterdir()
        if (match := FILE_NAME.match(entry.name))
    ]
    return sorted(found, key=lambda migration: (int(migration.version), migration.name))


def pending(dsn: str) -> list[str]:
    """Names of the migrations that `dsn` still lacks; changes nothing.

    Raises `Transient` when the database can't be reached, `Permanent` when it refuses.
    """
    with _connection(dsn) as connection, _explained("the list of migrations", ""):
        known = connection.execute("select to_regclass('supabase_migrations.schema_migrations')").fetchone()
        done = _applied(connection) if known and known[0] else set()
        return [str(migration) for migration in migrations() if migration.version not in done]


def migrate(dsn: str) -> list[str]:
    """Apply what is missing to the database at `dsn` (libpq connection string); returns the names applied.

    May be called again at any time and by several at once.
    Raises `Transient` when the database can't be reached, `Permanent`, naming the file and the reason, when a file
    fails; the files before it stay applied.
    """
    applied = []
    with _connection(dsn) as connection:
        with _explained("the list of migrations", ""), _locked(connection):
            connection.execute(HISTORY)
        for migration in migrations():
            with _explained(f"{migration}.sql", migration.text), _locked(connection):
                if migration.version in _applied(connection):
                    continue
                connection.execute(WAIT_FOR_TABLE)
                connection.execute(sql.SQL(migration.text))  # our own file, no outside text
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
                    [migration.version, migration.name, [migration.text]],
                )
            applied.append(str(migration))
    return applied


def _applied(connection: Connection) -> set[str]:
    rows = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
    return {str(version) for (version,) in rows}


@contextmanager
def _connection(dsn: str) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(dsn, prepare_threshold=None, connect_timeout=10, application_name="toban migrate")
    except psycopg.OperationalError as error:
        raise Transient(f"the database can't be reached: {str(error).strip()}") from error
    with connection:
        connection.autocommit = True
        yield connection


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    with connection.transaction():
        connection.execute(WAIT_FOR_RUNNER)
        connection.execute(LOCK)
        yield


@contextmanager
def _explained(what: str, text: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise Transient(f"the connection was lost during {what}: {str(error).strip()}") from error
        position = error.diag.statement_position
        where = f" line {text.count(chr(10), 0, int(position)) + 1}" if position and text else ""
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        raise Permanent(
            f"{what}{where} failed and changed nothing: {error.diag.message_primary or error}{detail}"
        ) from error
