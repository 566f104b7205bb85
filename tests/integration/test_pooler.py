"""The ledger behind PgBouncer in transaction mode: what a session remembers must not matter."""

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from app.database.postgres import PostgresDatabase
from tests.support.ledger import Ledger, at_once
from tests.support.servers import PgBouncer


@pytest.fixture
def pooled(database_url: str, pgbouncer: PgBouncer) -> Iterator[Ledger]:
    with psycopg.connect(database_url) as connection:
        database = PostgresDatabase(pgbouncer.url(connection.info.dbname), pool_size=10)
    ledger = Ledger(database, database_url)
    yield ledger
    ledger.close()
    database.close()


def test_one_item_from_upload_to_transcript(pooled: Ledger) -> None:
    key = pooled.file()
    assert pooled.finish(pooled.running(), "言葉")["written"]
    assert pooled.status_of(key) == "completed"


def test_many_calls_of_many_threads(pooled: Ledger) -> None:
    pooled.files("d1", 40)
    pooled.heartbeat(slots=40)
    runs = [pooled.start(item) for items in at_once(*[lambda: pooled.claim(5)] * 16) for item in items]
    assert len({run.id for run in runs}) == len(runs)
    for run in runs:
        at_once(partial(pooled.finish, run), pooled.heartbeat)
    pooled.drain()
    assert pooled.states() == {"completed": 40}


def test_two_recordings_of_one_block(pooled: Ledger) -> None:
    for day in range(10):
        pooled.file(f"d{day}", "2025-07-18T03:00:00Z")
        pooled.file(f"d{day}", "2025-07-18T03:15:00Z")
        pooled.heartbeat(slots=2)
        first, second = [pooled.start(item) for item in pooled.claim(2)]
        at_once(partial(pooled.finish, second, "b"), partial(pooled.finish, first, "a"))
    assert pooled.sql("select distinct transcription as t from vibe_whisper") == [{"t": "a\nb"}]


def test_dead_server_connections_are_replaced(pooled: Ledger) -> None:
    pooled.call("status")
    pooled.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        " and datname = current_database()"
    )
    assert pooled.call("status")["sources"]
