"""What happens often has to be cheap."""

import psycopg

from app.database.postgres import PostgresDatabase
from bench.scale import TABLE, Fleet, updates
from tests.support.servers import wait_for


def test_a_heartbeat_writes_no_index(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute("insert into chores (id, owner) select n, 'me' from generate_series(1, 20) n")
        database = PostgresDatabase(database_url, pool_size=1)
        try:
            fleet = Fleet(database, 3)
            for number in range(30):
                fleet.beat(number % 3)
        finally:
            database.close()
        claimed = 3 + len(fleet.queued)
        # PostgreSQL tells what it has counted when the connection ends, and a little later.
        wait_for(lambda: updates(connection, "work_items")["updates"] >= claimed + 3 + 30, "the count of updates")
        assert updates(connection, "work_items")["hot"] >= 30
